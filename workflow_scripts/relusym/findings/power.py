"""The power of the tests to settle a claim, for normally distributed nets with known means and deviations."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache
from itertools import permutations

from relusym.findings import np, stats

# From the number of nets of a type and the level of the test to the probability that it detects the effect.
Power = Callable[[int, float], float]
Spread = tuple[float, float]  # mean and standard deviation over the nets of a type

SETTLES = 0.8  # the power that studies are usually planned for
MOST = 1000  # nets of a type; more are out of reach
DRAWS = 2000  # of simulated nets, where there is no formula


def t_power(effect: float, error: float, degrees: float, level: float) -> float:
    """The power of a two-sided t-test at `level` to detect an effect with this standard error, with the right sign."""
    if not degrees or not math.isfinite(error):
        return 0.0
    shift = abs(effect) / error if error else math.inf
    if shift > 50:  # certain, and out of range for computing the noncentral distribution
        return 1.0
    return float(stats.nct.sf(stats.t.isf(level / 2, degrees), degrees, shift))


def welch(high: Spread, low: Spread, margin: float = 0.0) -> Power:
    """The power of Welch's test that one type's mean is above another's, or less than `margin` below it."""

    def power(n: int, level: float) -> float:
        if n < 2:
            return 0.0
        variances = high[1] ** 2 / n, low[1] ** 2 / n
        total = sum(variances)
        degrees = (n - 1) * total**2 / sum(v**2 for v in variances) if total else n - 1
        return t_power(high[0] + margin - low[0], math.sqrt(total), degrees, level)

    return power


def one_sample(effect: float, std: float) -> Power:
    """The power of a t-test on one value per net."""
    return lambda n, level: t_power(effect, std / math.sqrt(n), n - 1, level)


def cycle_of_pairs(effect: float, std: float) -> Power:
    """The power of `evidence.flipped_against_other`, each net merged with the next, in its worst case.

    `std`: the standard deviation of a pair's difference (`evidence.std_of_pairs`).
    """

    def power(n: int, level: float) -> float:
        if n < 3:
            return 0.0
        # `evidence.shared_nets` of a cycle, in closed form: the variance of the mean is twice that of independent pairs
        return t_power(effect, std * math.sqrt(2 / n), (n - 2) ** 2 / (1.5 * n - 4), level)

    return power


def all_of(powers: list[Power]) -> Power:
    """A lower bound on the power of several tests to detect all their effects, however they depend on each other."""
    return lambda n, level: max(0.0, 1 - sum(1 - power(n, level) for power in powers))


def rank_correlation(first: Mapping[str, Spread], second: Mapping[str, Spread]) -> Power:
    """The power of `evidence.rank_correlation_of_types`, by simulation (seeded)."""
    spreads = [np.array([types[model] for model in first]) for types in (first, second)]

    def power(n: int, level: float) -> float:
        random = np.random.default_rng(0)
        sizes = (n + 1) // 2, n // 2  # the halves that the two means are over
        if not min(sizes):
            return 0.0
        first_ranks, second_ranks = (
            random.normal(means, stds / math.sqrt(size), (DRAWS, len(means))).argsort(1).argsort(1)
            for (means, stds), size in zip((spread.T for spread in spreads), sizes, strict=True)
        )
        centre, null = (len(first) - 1) / 2, _null(len(first))
        products = ((first_ranks - centre) * (second_ranks - centre)).sum(1)
        # two-sided: the share of all permutations that are at least as far from zero
        p = 2 * (1 - np.searchsorted(null, products - 0.25) / len(null))
        return float((p < level).mean())

    return power


@cache
def _null(types: int) -> np.ndarray:
    """The sum of the products of centred ranks for every permutation, sorted."""
    centred = np.arange(types) - (types - 1) / 2
    return np.sort(np.array(list(permutations(centred))) @ centred)


def nets_needed(power: Power, level: float) -> float:
    """The least number of nets of a type that gives the power `SETTLES`; infinite if `MOST` are too few."""
    numbers = range(2, MOST + 1)
    place = bisect_left(numbers, SETTLES, key=lambda n: power(n, level))
    return float(numbers[place]) if place < len(numbers) else math.inf
