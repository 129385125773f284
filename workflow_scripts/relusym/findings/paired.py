"""The test behind claims about quantities of the same nets, or of pairs that share nets."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from relusym.findings import power
from relusym.findings.evidence import (
    HELD,
    NO_SPREAD,
    NOT_HELD,
    Evidence,
    counted,
    interval,
    signed_rank_p,
    spread,
)
from relusym.findings.power import Spread

ALL_EQUAL = "all nets are equal, so that their mean settles it, whatever p is"
EQUAL = 1e-12  # a standard deviation below this is rounding


def paired(differences: np.ndarray, margin: float = 0.0, seeds: np.ndarray | None = None) -> Evidence:
    """A t-test that the mean of one difference a net is above 0, or less than `margin` below it.

    For quantities of the same net, whose randomness is the net's. If all nets are equal, as where a largest barrier is
    always the halfway one, there is nothing to test: a margin settles it.

    Args:
        seeds: (n, 2), if the differences are of pairs of nets, which may share them (`shared_nets`).
    """
    differences = np.asarray(differences, float)
    m = len(differences)
    if seeds is None:
        n, nets, (factor, degrees) = counted(m, "net"), m, (1.0, m - 1)
    else:
        nets, (factor, degrees) = np.unique(seeds).size, shared_nets(seeds)
        n = f"{counted(m, 'pair')} of {counted(nets, 'net')}"
    test = f"paired t{', for shared nets' * (seeds is not None)}{f', against −{margin:.3f}' * (margin > 0)}"
    if m < 2 or not degrees:
        few = "two nets or more are needed" if seeds is None else "pairs of three nets or more are needed"
        return Evidence(n, test, remark=few)
    mean, std = spread(differences)
    shifted = differences + margin
    p_rank = signed_rank_p(shifted) if shifted.any() else 1.0
    varies = std > EQUAL
    error = std * math.sqrt(factor / m)
    to_come = power.one_sample if seeds is None else power.cycle_of_pairs
    return Evidence(
        n,
        test,
        effect=mean,
        **interval(mean, error, degrees),
        effect_size=mean / std if varies else math.nan,
        measure="d of the differences",
        direction=mean + margin,
        p_value=2 * float(stats.t.sf(abs(shifted.mean() / error), degrees)) if varies else p_rank,
        p_rank=p_rank,
        p_rank_min=0.5 ** (m - 1),
        settled="" if varies or not margin else HELD if mean > -margin else NOT_HELD,
        remark="" if varies else ALL_EQUAL if margin else NO_SPREAD,
        nets=nets,
        ours=to_come(mean + margin, std) if varies else None,
    )


def flipped_against_other(
    nets: pd.DataFrame, merged: pd.DataFrame, model: str, paper: tuple[Spread, Spread] | None = None
) -> Evidence:
    """For each pair of nets of one type: its barrier, less the mean of its two nets' GCNN barriers.

    Args:
        paper: its barriers of pairs, and of nets with their flipped selves.
    """
    same = merged[(merged["model_1"] == model) & (merged["model_2"] == model)]
    own = nets[nets["model"] == model].set_index("seed")["gcnn_barrier"]
    differences = same["barrier"] - (same["seed_1"].map(own) + same["seed_2"].map(own)) / 2
    seeds = same.loc[differences.notna(), ["seed_1", "seed_2"]].to_numpy()
    found = paired(differences.dropna().to_numpy(), seeds=seeds)
    if paper is None:
        return found
    # as if a pair's barrier said nothing of its nets' own
    (pairs, pairs_std), (own, own_std) = paper
    return replace(
        found, papers=power.cycle_of_pairs(pairs - own, math.hypot(pairs_std, own_std / math.sqrt(2)))
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
