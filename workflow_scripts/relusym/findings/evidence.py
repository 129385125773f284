"""The tests behind the claims, and what they found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from relusym.findings import Record
from relusym.permutations import channel_orders

SHARE = "share of the channels"
NO_SPREAD = "all nets of a type are equal, so that the rank test counts"

RESAMPLES = 9999  # of a rank test with ties; all permutations if there are no more

HELD, NOT_HELD, OPEN, UNTESTED = "held", "did not hold", "inconclusive", "cannot be tested here"


@dataclass(frozen=True)
class Evidence:
    """What a test found. `effect` is in the measure's own unit; `p_value` is two-sided.

    direction: positive if what was found is what the paper says, negative if it is the opposite.
    p_rank, p_rank_min: of a rank test of the same, and the least that it can come to with so few nets.
    settled: a verdict that needs no p-value.
    remark: why there is nothing, or what to bear in mind.
    """

    n: str
    test: str
    effect: float = math.nan
    effect_size: float = math.nan
    measure: str = ""
    direction: float = math.nan
    p_value: float = math.nan
    p_rank: float = math.nan
    p_rank_min: float = math.nan
    settled: str = ""
    remark: str = ""


def flipped_against_other(nets: pd.DataFrame, merged: pd.DataFrame, model: str) -> Evidence:
    """For each pair of nets of one type: its barrier, less the mean of its two nets' GCNN barriers.

    A net is in several pairs, so that the differences are correlated: see `shared_nets`.
    """
    same = merged[(merged["model_1"] == model) & (merged["model_2"] == model)]
    own = nets[nets["model"] == model].set_index("seed")["gcnn_barrier"]
    differences = same["barrier"] - (same["seed_1"].map(own) + same["seed_2"].map(own)) / 2
    seeds = same.loc[differences.notna(), ["seed_1", "seed_2"]].to_numpy()
    differences = differences.dropna().to_numpy()
    n = f"{_counted(len(differences), 'pair')} of {_counted(np.unique(seeds).size, 'net')}"
    factor, degrees = shared_nets(seeds)
    if not degrees:
        return Evidence(n, "paired t, for shared nets", remark="pairs of three nets or more are needed")
    if differences.std() == 0:
        return Evidence(
            n, "paired t, for shared nets", effect=differences.mean(), remark="all pairs are equal"
        )
    t = stats.ttest_1samp(differences, 0).statistic / math.sqrt(factor)
    return Evidence(
        n,
        "paired t, for shared nets",
        effect=differences.mean(),
        effect_size=differences.mean() / differences.std(ddof=1),
        measure="d of the differences",
        direction=differences.mean(),
        p_value=2 * float(stats.t.sf(abs(t), degrees)),
        p_rank=signed_rank_p(differences),
        p_rank_min=0.5 ** (len(differences) - 1),
    )


def shared_nets(seeds: np.ndarray) -> tuple[float, float]:
    """What a t-test over pairs of nets has to allow for if a net is in several pairs.

    If the value of a pair is the sum of something of either net and something of its own, two pairs have at most half
    their variance V in common for each net that they share: C = V (I + S/2), S the number of nets shared. With the
    centring matrix H, the variance of the mean is then 1ᵀC1 / m², and the sample variance is tr(HC) / (m − 1) in
    expectation, with tr(HC)² / tr(HCHC) degrees of freedom (Satterthwaite).

    Args:
        seeds: (m, 2), the two nets of each pair.

    Returns:
        the factor on the squared standard error s²/m, and the degrees of freedom; 1 and m − 1 for pairs that share
        nothing. Infinite and 0 if the pairs can't tell: fewer than two, or the same two nets again.
    """
    m = len(seeds)
    common = (seeds[:, None, :, None] == seeds[None, :, None, :]).sum((2, 3)) / 2  # 1 on the diagonal
    centred = common - common.mean(0, keepdims=True) if m else common
    left = np.trace(centred)
    if m < 2 or left < 1e-9:
        return math.inf, 0.0
    return float(common.sum() / m * (m - 1) / left), float(left**2 / np.trace(centred @ centred))


def rank_correlation_of_types(nets: pd.DataFrame, first: str, second: str) -> Evidence:
    """Spearman's ρ of the types' means, with its exact permutation p-value.

    Either mean is over other nets, every second one of a type by seed: where the two quantities of a net are
    correlated, those of a mean over the same nets are, and a ρ between types would be found where all types are equal.
    """
    test = "Spearman, exact, over halves of the nets"
    nets = nets.sort_values("seed")
    place = nets.groupby("model").cumcount()
    halves = [nets[place % 2 == half].groupby("model")[of].mean() for half, of in enumerate((first, second))]
    means = pd.concat(halves, axis=1, join="inner")
    n = _counted(len(means), "type")
    if len(means) < 3:
        return Evidence(n, test, remark="three types of two nets or more are needed")
    ranks = stats.rankdata(means.to_numpy(), axis=0)
    if not ranks.std(axis=0).all():
        return Evidence(n, test, remark="all types are equal")
    every = stats.PermutationMethod(n_resamples=math.factorial(len(means)))
    rho = stats.pearsonr(*ranks.T, method=every)  # Pearson's correlation of ranks is Spearman's
    return Evidence(
        n,
        test,
        effect=float(rho.statistic),
        effect_size=float(rho.statistic),
        measure="Spearman's ρ",
        direction=float(rho.statistic),
        p_value=float(rho.pvalue),
        p_rank=float(rho.pvalue),
        p_rank_min=2 / math.factorial(len(means)),
    )


def is_higher(of_type: dict[str, np.ndarray], high: str, low: str, margin: float = 0.0) -> Evidence:
    """Welch's test that the mean of type `high` is above that of `low`, or less than `margin` below it.

    Two types share no randomness even for the same seed, so that nets aren't paired.
    """
    high_values, low_values = (np.asarray(of_type.get(model, [])) for model in (high, low))
    n = f"{len(high_values)} and {len(low_values)} nets"
    if min(len(high_values), len(low_values)) < 2:
        return Evidence(n, "Welch's t", remark="two nets or more of either type are needed")
    shifted = high_values + margin
    effect = high_values.mean() - low_values.mean()
    spread = shifted.std() + low_values.std() > 0
    p_rank = rank_sum_p(shifted, low_values)
    return Evidence(
        n,
        f"Welch's t against −{margin:.3f}" if margin else "Welch's t",
        effect=effect,
        effect_size=hedges_g(high_values, low_values) if spread else math.nan,
        measure="Hedges' g",
        direction=effect + margin,
        p_value=float(stats.ttest_ind(shifted, low_values, equal_var=False).pvalue) if spread else p_rank,
        p_rank=p_rank,
        p_rank_min=2 / math.comb(len(shifted) + len(low_values), len(shifted)),
        remark="" if spread else NO_SPREAD,
    )


def is_highest(of_type: dict[str, np.ndarray], highest: str, names: Mapping[str, str]) -> Evidence:
    """Welch's test against each other type, the least certain of which counts (an intersection–union test).

    If some other type has the higher mean, it counts instead, corrected for having been picked out of all.
    """
    others = {other: is_higher(of_type, highest, other) for other in of_type if other != highest}
    n = f"{len(of_type.get(highest, []))} nets, {_counted(len(others), 'other type')}"
    if not others or any(math.isnan(evidence.p_value) for evidence in others.values()):
        return Evidence(n, "Welch's t, all others", remark="two nets or more of every type are needed")
    best = min(others, key=lambda other: others[other].effect)
    p_values = [evidence.p_value for evidence in others.values()]
    ahead = others[best].effect > 0
    return Evidence(
        n,
        "Welch's t, all others",
        effect=others[best].effect,
        effect_size=others[best].effect_size,
        measure=f"Hedges' g to {names.get(best, best)}",
        direction=others[best].effect,
        p_value=max(p_values) if ahead else min(1.0, len(others) * others[best].p_value),
        p_rank=max(evidence.p_rank for evidence in others.values()) if ahead else math.nan,
        p_rank_min=max(evidence.p_rank_min for evidence in others.values()),
    )


def more_zero_filters(zero_filters: pd.DataFrame, high: str, low: str) -> Evidence:
    """Welch's test on the number of zero-filters in all conv layers of a net."""
    counts = zero_filters.groupby(["model", "seed"])["zero_filters"].sum()
    return is_higher({model: group.to_numpy(float) for model, group in counts.groupby("model")}, high, low)


def most_have_order_two(flip_records: Sequence[Record]) -> Evidence:
    """A t-test over nets that more than half of a net's channels have order 1 or 2."""
    shares = np.array([(orders <= 2).mean() for orders in map(_orders, flip_records)])
    n = _counted(len(shares), "net")
    if len(shares) < 2:
        return Evidence(n, "t against ½", remark="two nets or more are needed")
    spread = shares.std() > 0
    p_rank = signed_rank_p(shares - 0.5)
    if (shares == 1).all():
        return Evidence(
            n, "count", effect=1.0, measure=SHARE, settled=HELD, remark="all channels of all nets"
        )
    return Evidence(
        n,
        "t against ½",
        effect=shares.mean(),
        effect_size=(shares.mean() - 0.5) / shares.std(ddof=1) if spread else math.nan,
        measure=f"{SHARE}; d from ½",
        direction=shares.mean() - 0.5,
        p_value=float(stats.ttest_1samp(shares, 0.5).pvalue) if spread else p_rank,
        p_rank=p_rank,
        p_rank_min=0.5 ** (len(shares) - 1),
        remark="" if spread else NO_SPREAD,
    )


def some_have_a_higher_order(flip_records: Sequence[Record]) -> Evidence:
    """The count of channels of a higher order than 2; a single one settles that there are some."""
    if not flip_records:
        return Evidence("0 nets", "count", remark="a net is needed")
    orders = np.concatenate([_orders(record) for record in flip_records])
    higher = int((orders > 2).sum())
    return Evidence(
        _counted(len(flip_records), "net"),
        "count",
        effect=higher / orders.size,
        measure=f"{SHARE} with a higher order",
        settled=HELD if higher else NOT_HELD,
        remark=f"{higher:,} of {orders.size:,} channels have a higher order",
    )


def _orders(record: Record) -> np.ndarray:
    """Orders of all channels of all layers of one net."""
    return np.concatenate([channel_orders(permutation) for permutation in record["permutations"].values()])


def rank_sum_p(first: np.ndarray, second: np.ndarray) -> float:
    """p of the Mann–Whitney test: exact, or by permutation where values are tied."""
    return float(stats.mannwhitneyu(first, second, method=_method(np.concatenate([first, second]))).pvalue)


def signed_rank_p(values: np.ndarray) -> float:
    """p of the Wilcoxon test against 0: exact, or by permutation where absolute values are tied, or zero."""
    return float(stats.wilcoxon(values, method=_method(np.append(0, abs(values)))).pvalue)


def _method(values: np.ndarray) -> "str | stats.PermutationMethod":
    """How a rank test comes to its p: with ties, scipy's own choice would be asymptotic, however few the values."""
    if np.unique(values).size == values.size:
        return "exact"
    return stats.PermutationMethod(RESAMPLES, random_state=np.random.default_rng(0))


def hedges_g(first: np.ndarray, second: np.ndarray) -> float:
    """Difference of the means in pooled standard deviations, corrected for its bias in small samples."""
    degrees = len(first) + len(second) - 2
    pooled = ((len(first) - 1) * first.var(ddof=1) + (len(second) - 1) * second.var(ddof=1)) / degrees
    return float((first.mean() - second.mean()) / math.sqrt(pooled) * (1 - 3 / (4 * degrees - 1)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
