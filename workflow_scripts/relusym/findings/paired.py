"""The test behind claims about quantities of the same nets."""

import math

import numpy as np
from scipy import stats

from relusym.findings import power
from relusym.findings.evidence import HELD, NO_SPREAD, NOT_HELD, Evidence, interval, signed_rank_p, spread

EQUAL = 1e-12  # a standard deviation below this is rounding


def paired(differences: np.ndarray, margin: float = 0.0) -> Evidence:
    """A t-test that the mean of one difference a net is above 0, or less than `margin` below it.

    For quantities of the same net, whose randomness is the net's. If all nets are equal, as where a largest barrier is
    always the halfway one, there is nothing to test: a margin settles it.
    """
    differences = np.asarray(differences, float)
    n = f"{len(differences)} net{'s' * (len(differences) != 1)}"
    test = f"paired t against −{margin:.3f}" if margin else "paired t"
    if len(differences) < 2:
        return Evidence(n, test, remark="two nets or more are needed")
    mean, std = spread(differences)
    shifted = differences + margin
    p_rank = signed_rank_p(shifted) if shifted.any() else 1.0
    varies = std > EQUAL
    return Evidence(
        n,
        test,
        effect=mean,
        **interval(mean, std / math.sqrt(len(differences)), len(differences) - 1),
        effect_size=(mean + margin) / std if varies else math.nan,
        measure="d of the differences",
        direction=mean + margin,
        p_value=float(stats.ttest_1samp(shifted, 0).pvalue) if varies else p_rank,
        p_rank=p_rank,
        p_rank_min=0.5 ** (len(differences) - 1),
        settled="" if varies or not margin else HELD if mean > -margin else NOT_HELD,
        remark="" if varies else "all nets are equal" if margin else NO_SPREAD,
        nets=len(differences),
        ours=power.one_sample(mean + margin, std) if varies else None,
    )
