"""The tests behind the claims, and their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from relusym.findings import Record, np, pd, power, stats
from relusym.findings.power import Power, Spread

SHARE = "share of the channels"
NO_SPREAD = "the nets of each type are all equal, so that the rank test counts"
ALL_EQUAL = "all nets are equal, so that their mean settles it, whatever p is"
EQUAL = 1e-12  # a standard deviation below this is rounding

RESAMPLES = 9999  # of a rank test with ties; all permutations if there are fewer
CONFIDENCE = 0.95  # of intervals

HELD, NOT_HELD, OPEN, UNTESTED = "held", "did not hold", "inconclusive", "cannot be tested here"


@dataclass(frozen=True)
class Evidence:
    """The result of a test."""

    n: str
    test: str
    effect: float = math.nan  # in the measure's unit
    low: float = math.nan  # of its 95% interval
    high: float = math.nan
    effect_size: float = math.nan
    measure: str = ""
    direction: float = math.nan  # positive if it is as claimed, negative if it is the opposite
    p_value: float = math.nan  # two-sided
    p_rank: float = math.nan  # of a rank test of the same claim
    p_rank_min: float = math.nan  # the least that p_rank can be with this number of nets
    settled: str = ""  # a verdict that needs no p-value
    remark: str = ""  # why there is no result, or a caveat
    nets: int = 0  # number of nets of the type that has the fewest
    power_paper: Power | None = None  # the test's power for the paper's effect and spread
    power_observed: Power | None = None  # for the effect and spread observed here


def interval(effect: float, error: float, degrees: float) -> dict[str, float]:
    """`low` and `high` of a t-interval around an effect with this standard error."""
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return {"low": effect - half, "high": effect + half}


def spread(values: np.ndarray) -> Spread:
    """Mean and sample standard deviation over nets."""
    return float(values.mean()), float(values.std(ddof=1))


def rank_correlation_of_types(
    nets: pd.DataFrame, first: str, second: str, power_paper: Power | None = None
) -> Evidence:
    """Spearman's ρ of the types' means, with its exact permutation p-value and a bootstrap interval over nets.

    The two means are over different halves of a type's nets, alternating by seed: if the two quantities of a net are
    correlated, so are their means over the same nets, which would give a ρ between types that are all equal.
    """
    test = "Spearman, exact, over halves of the nets"
    nets = nets.sort_values("seed")
    place = nets.groupby("model").cumcount()
    halves = [nets[place % 2 == half].groupby("model")[key] for half, key in enumerate((first, second))]
    means = pd.concat([half.mean() for half in halves], axis=1, join="inner")
    n, orders = counted(len(means), "type"), math.factorial(len(means))
    if len(means) < 3:
        return Evidence(n, test, remark="three types of two nets or more are needed")
    ranks = stats.rankdata(means.to_numpy(), axis=0)
    if not ranks.std(axis=0).all():
        return Evidence(n, test, remark="all types are equal")
    exact = stats.permutation_test(
        (ranks[:, 0],),
        lambda order, axis: rowwise_correlation(order, ranks[:, 1]),  # Pearson's ρ of ranks is Spearman's
        permutation_type="pairings",
        n_resamples=orders,
    )
    random = np.random.default_rng(0)

    def resampled(half, model: str) -> np.ndarray:
        return random.choice(half.get_group(model), (RESAMPLES, half.size()[model])).mean(1)

    drawn = [np.stack([resampled(half, model) for model in means.index]) for half in halves]
    rhos = rowwise_correlation(*(stats.rankdata(types, axis=0).T for types in drawn))
    low, high = np.nanquantile(rhos, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    whole = nets[nets["model"].isin(means.index)].groupby("model")
    spreads = ({model: spread(nets.to_numpy()) for model, nets in whole[key]} for key in (first, second))
    rho, p = float(exact.statistic), float(exact.pvalue)
    fields = {"effect": rho, "effect_size": rho, "direction": rho, "p_value": p, "p_rank": p}
    fields |= {"low": float(low), "high": float(high), "measure": "Spearman's ρ", "p_rank_min": 2 / orders}
    fields |= {"nets": int(whole.size().min()), "power_paper": power_paper}
    return Evidence(n, test, **fields, power_observed=power.rank_correlation(*spreads))


def rowwise_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of one array with the same row of the other, (…, m) each → (…)."""
    a, b = (rows - rows.mean(-1, keepdims=True) for rows in (first, second))
    with np.errstate(invalid="ignore"):  # NaN if a row is constant
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def is_higher(
    values: Mapping[str, np.ndarray],
    high: str,
    low: str,
    margin=0.0,
    paper: Mapping[str, Spread] | None = None,
) -> Evidence:
    """Welch's test that the mean of type `high` is above that of `low`, or less than `margin` below it.

    Two types share no randomness even for the same seed, so that nets aren't paired. `paper`: the paper's means and
    standard deviations, by type.
    """
    first, second = (np.asarray(values.get(model, [])) for model in (high, low))
    nets = min(len(first), len(second))
    n = f"{len(first)} and {len(second)} nets"
    if nets < 2:
        return Evidence(n, "Welch's t", remark="two nets or more of either type are needed")
    test = f"Welch's t against −{margin:.3f}" if margin else "Welch's t"
    fields = welch(first, second, (1, len(first) - 1), (1, len(second) - 1), margin=margin)
    power_paper = power.welch(paper[high], paper[low], margin) if paper else None
    evidence = Evidence(n, test, **fields, measure="Hedges' g", nets=nets, power_paper=power_paper)
    if math.isnan(evidence.low):
        return replace(evidence, p_value=evidence.p_rank, remark=NO_SPREAD)
    return replace(evidence, power_observed=power.welch(spread(first), spread(second), margin))


def higher_by_pairs(high: tuple[np.ndarray, np.ndarray], low: tuple[np.ndarray, np.ndarray]) -> Evidence:
    """Welch's test that the mean of one type's `pair_differences` is above another's; pairs may share nets."""
    nets = min(np.unique(seeds).size for _, seeds in (high, low))
    n, test = f"{counted(nets, 'net')} of a type", "Welch, for shared nets"
    allowed = [shared_nets(seeds) for _, seeds in (high, low)]
    if not all(degrees for _, degrees in allowed):
        return Evidence(n, test, remark="pairs of three nets or more of either type are needed")
    evidence = welch(high[0], low[0], *allowed)
    if math.isnan(evidence["low"]):
        return Evidence(n, test, effect=evidence["effect"], remark="the pairs of each type are all equal")
    return Evidence(n, test, **evidence, measure="Hedges' g of the differences", nets=nets)


def welch(
    high: np.ndarray, low: np.ndarray, *allowed: tuple[float, float], margin: float = 0.0
) -> dict[str, float]:
    """Welch's test, as fields of `Evidence`; `allowed`: for either type, the factor on its squared standard error and
    its degrees of freedom."""
    effect, orders = high.mean() - low.mean(), math.comb(len(high) + len(low), len(high))
    p_rank = rank_sum_p(high + margin, low)
    fields = {"effect": effect, "direction": effect + margin, "p_rank": p_rank, "p_rank_min": 2 / orders}
    (factor, freedom), (other_factor, other_freedom) = allowed
    variance = factor * high.var(ddof=1) / len(high)
    other = other_factor * low.var(ddof=1) / len(low)
    if (error := math.sqrt(variance + other)) <= EQUAL:
        return fields | dict.fromkeys(("low", "high", "effect_size", "p_value"), math.nan)
    degrees = (variance + other) ** 2 / (variance**2 / freedom + other**2 / other_freedom)
    p_value = 2 * float(stats.t.sf(abs(effect + margin) / error, degrees))
    g = hedges_g(high, low)
    return fields | interval(effect, error, degrees) | {"effect_size": g, "p_value": p_value}


def is_highest(
    values: Mapping[str, np.ndarray],
    highest: str,
    names: Mapping[str, str],
    paper: Mapping[str, Spread] | None = None,
) -> Evidence:
    """Welch's test against each other type; the largest p counts, or, if another is higher, its p, corrected."""
    others = {other: is_higher(values, highest, other, 0.0, paper) for other in values if other != highest}
    n = f"{len(values.get(highest, []))} nets, {counted(len(others), 'other type')}"
    if not others or any(math.isnan(evidence.p_value) for evidence in others.values()):
        return Evidence(n, "Welch's t, all others", remark="two nets or more of every type are needed")
    best = min(others, key=lambda other: others[other].effect)
    closest, tests = others[best], others.values()
    ahead = closest.effect > 0
    deciding = tests if ahead else [closest]
    observed = power.all_of([test.power_observed for test in tests if test.power_observed])
    return replace(
        closest,
        n=n,
        test="Welch's t, all others",
        measure=f"Hedges' g to {names.get(best, best)}",
        p_value=max(test.p_value for test in tests) if ahead else min(1.0, len(others) * closest.p_value),
        p_rank=max(test.p_rank for test in tests) if ahead else math.nan,
        p_rank_min=max(test.p_rank_min for test in tests),
        remark=NO_SPREAD if any(test.remark == NO_SPREAD for test in deciding) else "",
        nets=min(test.nets for test in tests),
        power_paper=power.all_of([test.power_paper for test in tests]) if paper else None,
        power_observed=observed if ahead else closest.power_observed,
    )


def one_sample(
    values: np.ndarray,
    threshold: float,
    n: str,
    test: str,
    measure: str,
    *,
    origin: float = 0.0,
    factor: float = 1.0,
    degrees: float | None = None,
    power_of: Callable[[float, float], Power] = power.one_sample,
) -> Evidence:
    """A t-test that the mean of two or more values is above a threshold. The effect size is measured from
    `origin`; `factor` on the squared standard error and `degrees` of freedom are for values that aren't independent."""
    mean, std = spread(values)
    shifted, varies, error = values - threshold, std > EQUAL, std * math.sqrt(factor / len(values))
    degrees = len(values) - 1 if degrees is None else degrees
    p_rank = signed_rank_p(shifted) if shifted.any() else 1.0
    fields = {"effect": mean, "measure": measure, "direction": mean - threshold, "nets": len(values)}
    fields |= interval(mean, error, degrees) | {"p_rank": p_rank, "p_rank_min": 0.5 ** (len(values) - 1)}
    if not varies:
        return Evidence(n, test, **fields, p_value=p_rank, remark=NO_SPREAD)
    p_value = 2 * float(stats.t.sf(abs(shifted.mean() / error), degrees))
    fields |= {"effect_size": (mean - origin) / std, "power_observed": power_of(mean - threshold, std)}
    return Evidence(n, test, **fields, p_value=p_value)


def paired(differences: np.ndarray, margin: float = 0.0, seeds: np.ndarray | None = None) -> Evidence:
    """A t-test that the mean of one difference a net is above 0, or less than `margin` below it.

    For two quantities of the same net, which share its randomness. If all nets are equal, for instance if the largest
    barrier is always the halfway one, there is nothing to test, and a margin settles the claim. `seeds`: (n, 2), if
    the differences are of pairs, which may share nets (`shared_nets`).
    """
    differences = np.asarray(differences, float)
    m = len(differences)
    if seeds is None:
        n, nets, how = counted(m, "net"), m, {"degrees": m - 1}
    else:
        nets, (factor, degrees) = np.unique(seeds).size, shared_nets(seeds)
        n = f"{counted(m, 'pair')} of {counted(nets, 'net')}"
        how = {"factor": factor, "degrees": degrees}
        how["power_of"] = lambda effect, std: power.cycle_of_pairs(effect, std_of_pairs(std, seeds))
    test = f"paired t{', for shared nets' * (seeds is not None)}{f', against −{margin:.3f}' * (margin > 0)}"
    if m < 2 or not how["degrees"]:
        few = "two nets or more are needed" if seeds is None else "pairs of three nets or more are needed"
        return Evidence(n, test, remark=few)
    evidence = replace(one_sample(differences, -margin, n, test, "d of the differences", **how), nets=nets)
    if margin and evidence.remark == NO_SPREAD:
        return replace(evidence, settled=HELD if evidence.direction > 0 else NOT_HELD, remark=ALL_EQUAL)
    return evidence


def flipped_against_other(
    nets: pd.DataFrame, merged: pd.DataFrame, model: str, paper: tuple[Spread, Spread] | None = None
) -> Evidence:
    """`paired` test that the `pair_differences` of a type are above 0; `paper`: its pair and GCNN barriers."""
    differences, seeds = pair_differences(nets, merged, model)
    evidence = paired(differences, seeds=seeds)
    if paper is None:
        return evidence
    # as if a pair's barrier were independent of its nets' GCNN barriers
    (pairs, pairs_std), (flip, flip_std) = paper
    power_paper = power.cycle_of_pairs(pairs - flip, math.hypot(pairs_std, flip_std / math.sqrt(2)))
    return replace(evidence, power_paper=power_paper)


def pair_differences(nets: pd.DataFrame, merged: pd.DataFrame, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's barrier minus the mean of its nets' GCNN barriers, (m,), for one type; and its seeds, (m, 2)."""
    same = merged[(merged["model_1"] == model) & (merged["model_2"] == model)]
    flips = nets[nets["model"] == model].set_index("seed")["gcnn_barrier"]
    differences = same["barrier"] - (same["seed_1"].map(flips) + same["seed_2"].map(flips)) / 2
    seeds = same.loc[differences.notna(), ["seed_1", "seed_2"]].to_numpy()
    return differences.dropna().to_numpy(), seeds


def shared_nets(seeds: np.ndarray) -> tuple[float, float]:
    """The corrections of a t-test over pairs of nets (their seeds, (m, 2)) for nets that are in several pairs.

    If the value of a pair is the sum of a term for each net and a term for the pair, the covariance of two pairs is at
    most half their variance V for each net that they share: C = V (I + S/2), with S the number of shared nets. With the
    centring matrix H, the variance of the mean is then 1ᵀC1 / m², and the expected sample variance is tr(HC) / (m − 1),
    with tr(HC)² / tr(HCHC) degrees of freedom (Satterthwaite).

    Returns the factor on the squared standard error s²/m, and the degrees of freedom: 1 and m − 1 for pairs that share
    no nets; infinity and 0 if nothing can be tested (fewer than two pairs, or all of the same two nets).
    """
    m = len(seeds)
    common = (seeds[:, None, :, None] == seeds[None, :, None, :]).sum((2, 3)) / 2  # 1 on the diagonal
    centred = common - common.mean(0, keepdims=True) if m else common
    left = np.trace(centred)
    if m < 2 or left < 1e-9:
        return math.inf, 0.0
    return float(common.sum() / m * (m - 1) / left), float(left**2 / np.trace(centred @ centred))


def std_of_pairs(std: float, seeds: np.ndarray) -> float:
    """√V of `shared_nets` from the sample's standard deviation over pairs, which shared nets make smaller."""
    m, (_, pairs_of_net) = len(seeds), np.unique(seeds, return_counts=True)
    return std * math.sqrt((m - 1) / (m - (pairs_of_net**2).sum() / (2 * m)))  # the last bracket is tr(HC)


def most_have_order_two(flip_records: Sequence[Record]) -> Evidence:
    """A t-test over nets that more than half of a net's channels have order 1 or 2."""
    shares = np.array([(orders <= 2).mean() for orders in map(_orders, flip_records)])
    n = counted(len(shares), "net")
    if len(shares) < 2:
        return Evidence(n, "t against ½", remark="two nets or more are needed")
    if (shares == 1).all():
        remark = "all channels of all nets"
        return Evidence(n, "count", 1.0, 1.0, 1.0, measure=SHARE, settled=HELD, remark=remark)
    return one_sample(shares, 0.5, n, "t against ½", f"{SHARE}; d from ½", origin=0.5)


def some_have_a_higher_order(flip_records: Sequence[Record]) -> Evidence:
    """The count of channels of a higher order than 2: one settles the claim. The interval is for a net's share."""
    if not flip_records:
        return Evidence("0 nets", "count", remark="a net is needed")
    by_net = [_orders(record) for record in flip_records]
    shares = np.array([(orders > 2).mean() for orders in by_net])
    orders = np.concatenate(by_net)
    higher, n = int((orders > 2).sum()), len(shares)
    error = spread(shares)[1] / math.sqrt(n) if n > 1 else math.nan
    fields = interval(float(shares.mean()), error, n - 1) | {"effect": higher / orders.size}
    fields |= {"measure": f"{SHARE} with a higher order", "settled": HELD if higher else NOT_HELD}
    remark = f"{higher:,} of {orders.size:,} channels have a higher order"
    return Evidence(counted(n, "net"), "count", **fields, remark=remark)


def _orders(record: Record) -> np.ndarray:
    from relusym.permutations import channel_orders

    return np.concatenate([channel_orders(permutation) for permutation in record["permutations"].values()])


def rank_sum_p(first: np.ndarray, second: np.ndarray) -> float:
    """p of the Mann–Whitney test: exact, or by permutation where values are tied."""
    return float(stats.mannwhitneyu(first, second, method=_method(np.concatenate([first, second]))).pvalue)


def signed_rank_p(values: np.ndarray) -> float:
    """p of the Wilcoxon test against 0: exact, or by permutation where absolute values are tied, or zero."""
    return float(stats.wilcoxon(values, method=_method(np.append(0, abs(values)))).pvalue)


def _method(values: np.ndarray) -> str | stats.PermutationMethod:
    """How a rank test computes its p: with ties, scipy would choose the asymptotic p, however few the values."""
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
