"""The joint error rates of the claims' tests, on simulated nets that several claims share.

python tests/error_rates.py 20000 prints the table of docs/comparison.md (half a minute).
"""

import sys
from itertools import permutations, product

import numpy as np
import pandas as pd
from records import MODELS, flip, pair, train
from scipy import stats

from relusym import paper_values
from relusym.findings.evidence import shared_nets
from relusym.findings.tables.claims import lost_by_early_invariance_loss
from relusym.findings.tables.comparison import LOSS

PAPER = paper_values.table(2).set_index("model").loc[list(MODELS)]
PAIRS = paper_values.table(4).query("model_1 == model_2").set_index("model_1")
PAIRED = ["cnn", "cnn_inv", "gcnn"]
BEST = "pgcnn_late_inv"
CLAIMS = 3 + 1 + 3 + 2 + 1 + 1  # flip against pair, types, loss, late loss, most accurate, zero-filters
# The correlation between a net's error, barrier, inaccuracy and its part in the barriers of pairs.
SHARED = {"nothing": 0.0, "half": 0.5, "most": 0.7}
UNTRUE = {
    "all but one": "flip pair types loss late zero", "barriers": "flip pair types loss",
    "flip against pair, late loss, zero-filters": "flip pair late zero", "the loss": "loss late",
    "flip against pair, CNN": "flip",
}  # fmt: skip
Z = {"gcnn": (6.0, 2.0), "cnn": (2.0, 2.0)}  # zero-filters, mean and standard deviation


def means(untrue):
    """The types' means, the paper's except for `untrue` claims; and which claims then have no effect."""
    measured = ("invariance_error", "gcnn_barrier", "accuracy")
    error, barrier, accuracy = (PAPER[f"{quantity}_mean"].copy() for quantity in measured)
    pair_barrier = PAIRS["barrier_mean"].loc[PAIRED].copy()
    null = np.zeros(CLAIMS, bool)
    if "types" in untrue:
        barrier[:], error[:] = barrier.mean(), error.mean()
        null[3] = True
    if "loss" in untrue:
        for with_loss, without in LOSS:
            barrier[with_loss] = barrier[without]
        null[4:7] = True
    if "late" in untrue:
        for with_loss, without in LOSS[1:]:
            accuracy[with_loss] = accuracy[without] - lost_by_early_invariance_loss()
        null[7:9] = True
    if "flip" in untrue:
        which = PAIRED if "pair" in untrue else PAIRED[:1]
        pair_barrier[which] = barrier[which]
        null[: len(which)] = True
    zero = {**Z, "gcnn": Z["cnn"]} if "zero" in untrue else Z
    null[10] = "zero" in untrue
    return error, barrier, accuracy, pair_barrier, zero, null


def simulate(random, draws, n, untrue="", shared=0.7):
    """Nets of each type: error, barrier, accuracy (draws, 7, n); barriers of pairs (draws, 3, n); zero-filters; nulls.

    Pair i has nets i and i + 1, cyclically; at least half of its variance comes from its nets.
    """
    error, barrier, accuracy, pair_barrier, zero, null = means(untrue)
    common = random.normal(size=(draws, 7, n))

    def spread(mean, std, sign=1):
        noise = np.sqrt(shared) * common * sign + np.sqrt(1 - shared) * random.normal(size=common.shape)
        return mean.to_numpy()[:, None] + std.to_numpy()[:, None] * noise

    stds = [PAPER[f"{quantity}_std"] for quantity in ("invariance_error", "gcnn_barrier", "accuracy")]
    nets = spread(error, stds[0]), spread(barrier, stds[1]), spread(accuracy, stds[2], -1)
    index = [MODELS.index(model) for model in PAIRED]
    part = np.sqrt(shared) * common[:, index] + np.sqrt(1 - shared) * random.normal(size=(draws, 3, n))
    both = (part + np.roll(part, -1, 2)) / np.sqrt(2)
    pairs = pair_barrier.to_numpy()[:, None] + PAIRS["barrier_std"].loc[PAIRED].to_numpy()[:, None] * both
    zeros = {model: mean + std * random.normal(size=(draws, n)) for model, (mean, std) in zero.items()}
    return *nets, pairs, zeros, null


def p_values(error, barrier, accuracy, pairs, zeros):
    """p-values and directions (draws, CLAIMS) as from `claims`, for all draws at once."""
    n, outcome = error.shape[2], []
    at = {model: i for i, model in enumerate(MODELS)}
    factor, degrees = shared_nets(np.array([(i, (i + 1) % n) for i in range(n)]))
    for i, model in enumerate(PAIRED):
        flips = barrier[:, at[model]]
        d = pairs[:, i] - (flips + np.roll(flips, -1, 1)) / 2
        t = d.mean(1) / d.std(1, ddof=1) * np.sqrt(n / factor)
        outcome.append((2 * stats.t.sf(abs(t), degrees), d.mean(1)))
    ranks = [stats.rankdata(x.mean(2), axis=1) - 4 for x in (error[..., ::2], barrier[..., 1::2])]
    every = np.sort([abs(np.dot(order, range(-3, 4))) for order in permutations(range(-3, 4))])
    rho = (ranks[0] * ranks[1]).sum(1)
    outcome.append((1 - np.searchsorted(every, abs(rho) - 0.5) / len(every), rho))

    def welch(high, low, margin=0.0):
        result = stats.ttest_ind(high + margin, low, axis=1, equal_var=False)
        return result.pvalue, result.statistic

    outcome += [welch(barrier[:, at[without]], barrier[:, at[loss]]) for loss, without in LOSS]
    margin = lost_by_early_invariance_loss()
    outcome += [welch(accuracy[:, at[loss]], accuracy[:, at[without]], margin) for loss, without in LOSS[1:]]
    others = [i for i in range(7) if MODELS[i] != BEST]
    ps = np.stack([welch(accuracy[:, at[BEST]], accuracy[:, i])[0] for i in others])
    ahead = accuracy[:, at[BEST]].mean(1) - accuracy[:, others].mean(2).T
    nearest = np.take_along_axis(ps, ahead.argmin(0)[None], 0)[0]
    p = np.where(ahead.min(0) > 0, ps.max(0), np.minimum(1, len(others) * nearest))
    outcome.append((p, ahead.min(0)))
    outcome.append(welch(zeros["gcnn"], zeros["cnn"]))
    return tuple(np.stack(values, 1) for values in zip(*outcome, strict=True))


def rates(draws, n, untrue, shared):
    """The false discovery rate and the share of effects detected, by method."""
    *simulated, null = simulate(np.random.default_rng(0), draws, n, UNTRUE[untrue], shared)
    p, direction = p_values(*simulated)
    _, barrier, accuracy, pairs, *_ = means(UNTRUE[untrue])
    truth = np.ones(CLAIMS)
    truth[:3] = np.sign(pairs - barrier[PAIRED])
    truth[9] = np.sign(accuracy[BEST] - accuracy.drop(BEST).max())
    truth[null] = 0
    collected = {}
    for method in ("bh", "by"):
        settled = stats.false_discovery_control(p, axis=1, method=method) < 0.05
        wrong = settled & (np.sign(direction) != truth)
        share = wrong.sum(1) / np.maximum(settled.sum(1), 1)
        collected[method] = share.mean(), (settled & ~wrong).sum(1).mean() / (truth != 0).sum()
    return collected


def as_records(error, barrier, accuracy, pairs, zeros):
    n = error.shape[1]
    made = {"train": [], "flip_merge": [], "pair_merge": []}
    for (i, model), seed in product(enumerate(MODELS), range(n)):
        made["train"].append(train(model, seed, accuracy[i, seed]))
        made["flip_merge"].append(flip(model, seed, barrier[i, seed], error=error[i, seed]))
    for (i, model), seed in product(enumerate(PAIRED), range(n)):
        made["pair_merge"].append(pair(model, seed, model, (seed + 1) % n, pairs[i, seed]))
    rows = [(model, seed, "conv1", zeros[model][seed]) for model in zeros for seed in range(n)]
    return made, pd.DataFrame(rows, columns=["model", "seed", "layer", "zero_filters"])


if __name__ == "__main__":
    heads = "untrue", "n", "shared", "FDR, BH", "FDR, BY", "found, BH", "found, BY"
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for untrue, n, (name, shared) in product(UNTRUE, (4, 12, 24), SHARED.items()):
        (bh, found_bh), (by, found_by) = rates(int(sys.argv[1]), n, untrue, shared).values()
        print(f"| {untrue} | {n} | {name} | {bh:.3f} | {by:.3f} | {found_bh:.2f} | {found_by:.2f} |")
