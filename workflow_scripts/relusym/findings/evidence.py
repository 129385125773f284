"""The tests behind the claims, and what they found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from relusym.findings import Record, power
from relusym.findings.power import Power, Spread
from relusym.permutations import channel_orders

SHARE = "share of the channels"
NO_SPREAD = "all nets of a type are equal, so that the rank test counts"

RESAMPLES = 9999  # of a rank test with ties; all permutations if there are no more
SHARE_OF_NETS = 0.95  # that an interval holds

HELD, NOT_HELD, OPEN, UNTESTED = "held", "did not hold", "inconclusive", "cannot be tested here"


@dataclass(frozen=True)
class Evidence:
    """What a test found. `effect` is in the measure's own unit; `p_value` is two-sided.

    low, high: the effect's 95% interval.
    direction: positive if what was found is what the paper says, negative if it is the opposite.
    p_rank, p_rank_min: of a rank test of the same, and the least that it can come to with so few nets.
    settled: a verdict that needs no p-value.
    remark: why there is nothing, or what to bear in mind.
    nets: of the type that has the fewest.
    papers, ours: the test's power for the paper's effect and spread, and for those found here.
    """

    n: str
    test: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    effect_size: float = math.nan
    measure: str = ""
    direction: float = math.nan
    p_value: float = math.nan
    p_rank: float = math.nan
    p_rank_min: float = math.nan
    settled: str = ""
    remark: str = ""
    nets: int = 0
    papers: Power | None = None
    ours: Power | None = None


def interval(effect: float, error: float, degrees: float) -> dict[str, float]:
    """`low` and `high` of a t-interval about an effect."""
    half = float(stats.t.ppf((1 + SHARE_OF_NETS) / 2, degrees)) * error
    return {"low": effect - half, "high": effect + half}


def spread(values: np.ndarray) -> Spread:
    """Mean and standard deviation (the sample's) over nets."""
    return float(values.mean()), float(values.std(ddof=1))


def rank_correlation_of_types(
    nets: pd.DataFrame, first: str, second: str, papers: Power | None = None
) -> Evidence:
    """Spearman's ρ of the types' means, with its exact permutation p-value and a bootstrap interval over nets.

    Either mean is over other nets, every second one of a type by seed: where the two quantities of a net are
    correlated, those of a mean over the same nets are, and a ρ between types would be found where all types are equal.
    """
    test = "Spearman, exact, over halves of the nets"
    nets = nets.sort_values("seed")
    place = nets.groupby("model").cumcount()
    halves = [nets[place % 2 == half].groupby("model")[of] for half, of in enumerate((first, second))]
    means = pd.concat([half.mean() for half in halves], axis=1, join="inner")
    n = counted(len(means), "type")
    if len(means) < 3:
        return Evidence(n, test, remark="three types of two nets or more are needed")
    ranks = stats.rankdata(means.to_numpy(), axis=0)
    if not ranks.std(axis=0).all():
        return Evidence(n, test, remark="all types are equal")
    one, other = ranks.T
    rho = stats.permutation_test(
        (one,),
        lambda order, axis: rowwise_correlation(order, other),  # Pearson's, of ranks, is Spearman's
        permutation_type="pairings",
        n_resamples=math.factorial(len(means)),
    )
    random = np.random.default_rng(0)
    drawn = [
        np.stack(
            [
                random.choice(half.get_group(model), (RESAMPLES, half.size()[model])).mean(1)
                for model in means.index
            ]
        )
        for half in halves
    ]
    rhos = rowwise_correlation(*(stats.rankdata(of_types, axis=0).T for of_types in drawn))
    low, high = np.nanquantile(rhos, [(1 - SHARE_OF_NETS) / 2, (1 + SHARE_OF_NETS) / 2])
    whole = nets[nets["model"].isin(means.index)].groupby("model")
    return Evidence(
        n,
        test,
        effect=float(rho.statistic),
        low=float(low),
        high=float(high),
        effect_size=float(rho.statistic),
        measure="Spearman's ρ",
        direction=float(rho.statistic),
        p_value=float(rho.pvalue),
        p_rank=float(rho.pvalue),
        p_rank_min=2 / math.factorial(len(means)),
        nets=int(whole.size().min()),
        papers=papers,
        ours=power.rank_correlation(
            *({model: spread(group.to_numpy()) for model, group in whole[of]} for of in (first, second))
        ),
    )


def rowwise_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of one array with that of the other, (…, m) twice → (…)."""
    a, b = (rows - rows.mean(-1, keepdims=True) for rows in (first, second))
    with np.errstate(invalid="ignore"):  # all equal in a row: not a number
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def is_higher(
    of_type: dict[str, np.ndarray],
    high: str,
    low: str,
    margin: float = 0.0,
    paper: Mapping[str, Spread] | None = None,
) -> Evidence:
    """Welch's test that the mean of type `high` is above that of `low`, or less than `margin` below it.

    Two types share no randomness even for the same seed, so that nets aren't paired.

    Args:
        paper: its mean and standard deviation, by type.
    """
    high_values, low_values = (np.asarray(of_type.get(model, [])) for model in (high, low))
    n = f"{len(high_values)} and {len(low_values)} nets"
    if min(len(high_values), len(low_values)) < 2:
        return Evidence(n, "Welch's t", remark="two nets or more of either type are needed")
    shifted = high_values + margin
    effect = high_values.mean() - low_values.mean()
    varies = shifted.std() + low_values.std() > 0
    p_rank = rank_sum_p(shifted, low_values)
    welch = stats.ttest_ind(shifted, low_values, equal_var=False) if varies else None
    bounds = welch.confidence_interval(SHARE_OF_NETS) if varies else (math.nan, math.nan)
    return Evidence(
        n,
        f"Welch's t against −{margin:.3f}" if margin else "Welch's t",
        effect=effect,
        low=float(bounds[0]) - margin,
        high=float(bounds[1]) - margin,
        effect_size=hedges_g(high_values, low_values) if varies else math.nan,
        measure="Hedges' g",
        direction=effect + margin,
        p_value=float(welch.pvalue) if varies else p_rank,
        p_rank=p_rank,
        p_rank_min=2 / math.comb(len(shifted) + len(low_values), len(shifted)),
        remark="" if varies else NO_SPREAD,
        nets=min(len(high_values), len(low_values)),
        papers=power.welch(paper[high], paper[low], margin) if paper else None,
        ours=power.welch(spread(high_values), spread(low_values), margin) if varies else None,
    )


def is_highest(
    of_type: dict[str, np.ndarray],
    highest: str,
    names: Mapping[str, str],
    paper: Mapping[str, Spread] | None = None,
) -> Evidence:
    """Welch's test against each other type, the least certain of which counts (an intersection–union test).

    If some other type has the higher mean, it counts instead, corrected for having been picked out of all.
    """
    others = {other: is_higher(of_type, highest, other, 0.0, paper) for other in of_type if other != highest}
    n = f"{len(of_type.get(highest, []))} nets, {counted(len(others), 'other type')}"
    if not others or any(math.isnan(evidence.p_value) for evidence in others.values()):
        return Evidence(n, "Welch's t, all others", remark="two nets or more of every type are needed")
    best = min(others, key=lambda other: others[other].effect)
    p_values = [evidence.p_value for evidence in others.values()]
    ahead = others[best].effect > 0
    return Evidence(
        n,
        "Welch's t, all others",
        effect=others[best].effect,
        low=others[best].low,
        high=others[best].high,
        effect_size=others[best].effect_size,
        measure=f"Hedges' g to {names.get(best, best)}",
        direction=others[best].effect,
        p_value=max(p_values) if ahead else min(1.0, len(others) * others[best].p_value),
        p_rank=max(evidence.p_rank for evidence in others.values()) if ahead else math.nan,
        p_rank_min=max(evidence.p_rank_min for evidence in others.values()),
        nets=min(evidence.nets for evidence in others.values()),
        papers=power.all_of([evidence.papers for evidence in others.values()]) if paper else None,
        ours=power.all_of([evidence.ours for evidence in others.values() if evidence.ours])
        if ahead
        else others[best].ours,
    )


def more_zero_filters(zero_filters: pd.DataFrame, high: str, low: str) -> Evidence:
    """Welch's test on the number of zero-filters in all conv layers of a net."""
    counts = zero_filters.groupby(["model", "seed"])["zero_filters"].sum()
    return is_higher({model: group.to_numpy(float) for model, group in counts.groupby("model")}, high, low)


def most_have_order_two(flip_records: Sequence[Record]) -> Evidence:
    """A t-test over nets that more than half of a net's channels have order 1 or 2."""
    shares = np.array([(orders <= 2).mean() for orders in map(_orders, flip_records)])
    n = counted(len(shares), "net")
    if len(shares) < 2:
        return Evidence(n, "t against ½", remark="two nets or more are needed")
    varies = shares.std() > 0
    p_rank = signed_rank_p(shares - 0.5)
    if (shares == 1).all():
        return Evidence(
            *(n, "count", 1.0, 1.0, 1.0), measure=SHARE, settled=HELD, remark="all channels of all nets"
        )
    mean, std = spread(shares)
    return Evidence(
        n,
        "t against ½",
        effect=mean,
        **interval(mean, std / math.sqrt(len(shares)), len(shares) - 1),
        effect_size=(mean - 0.5) / std if varies else math.nan,
        measure=f"{SHARE}; d from ½",
        direction=mean - 0.5,
        p_value=float(stats.ttest_1samp(shares, 0.5).pvalue) if varies else p_rank,
        p_rank=p_rank,
        p_rank_min=0.5 ** (len(shares) - 1),
        remark="" if varies else NO_SPREAD,
        nets=len(shares),
        ours=power.one_sample(mean - 0.5, std) if varies else None,
    )


def some_have_a_higher_order(flip_records: Sequence[Record]) -> Evidence:
    """The count of channels of a higher order than 2; a single one settles that there are some.

    The interval is of the share in a net, by t over nets.
    """
    if not flip_records:
        return Evidence("0 nets", "count", remark="a net is needed")
    of_nets = [_orders(record) for record in flip_records]
    shares = np.array([(orders > 2).mean() for orders in of_nets])
    orders = np.concatenate(of_nets)
    higher, n = int((orders > 2).sum()), len(shares)
    error = spread(shares)[1] / math.sqrt(n) if n > 1 else math.nan
    return Evidence(
        counted(n, "net"),
        "count",
        effect=higher / orders.size,
        **interval(float(shares.mean()), error, n - 1),
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


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
