"""Tables 2 and 4 at a glance: the barrier of each net with its flipped self beside that of pairs of its type.

about: models (ids, one row each, in order), names.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from relusym import paper_values
from relusym.findings import About, Inputs, frames
from relusym.findings.print_style import COLUMN_WIDTH, label_rows, plain_axes

FLIP, PAIR = "with its flipped self", "with another net of its type"
STYLES = {FLIP: ("#0072B2", "o", 0.17), PAIR: ("#D55E00", "s", -0.17)}  # colour, marker, offset from the row


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """The figure, and its points.

    Raises:
        UserError: an ok record lacks its barrier (named), is given twice, or doesn't go with the others.
    """
    found = points(inputs, about["models"])
    return figure(found, papers(), about["models"], about["names"]), found


def points(inputs: Inputs, models: Sequence[str]) -> pd.DataFrame:
    """One row a net or pair of nets of one type: model, merged (`FLIP` or `PAIR`), seed_1, seed_2, barrier."""
    nets, pairs = frames.nets(inputs), frames.pairs(inputs)
    nets = nets.rename(columns={"seed": "seed_1", "gcnn_barrier": "barrier"}).assign(
        merged=FLIP, seed_2=pd.NA
    )
    pairs = (
        pairs[pairs["model_1"] == pairs["model_2"]].rename(columns={"model_1": "model"}).assign(merged=PAIR)
    )
    columns = ["model", "merged", "seed_1", "seed_2", "barrier"]
    both = pd.concat([of.loc[of["ok"].astype(bool), columns].astype(object) for of in (nets, pairs)])
    both = both[both["model"].isin(models)]
    both = both.assign(barrier=both["barrier"].astype(float)).sort_values(["merged", "seed_1"], kind="stable")
    return frames.in_order(both, models)


def papers() -> dict[tuple[str, str], float]:
    """The paper's means by model and what it was merged with."""
    flips, pairs = paper_values.table(2), paper_values.table(4)
    pairs = pairs[pairs["model_1"] == pairs["model_2"]]
    return {
        (model, FLIP): mean for model, mean in zip(flips["model"], flips["gcnn_barrier_mean"], strict=True)
    } | {(model, PAIR): mean for model, mean in zip(pairs["model_1"], pairs["barrier_mean"], strict=True)}


def figure(
    found: pd.DataFrame,
    paper: Mapping[tuple[str, str], float],
    models: Sequence[str],
    names: Mapping[str, str],
) -> Figure:
    """A row a type: a point a net or pair, a line at their mean, a diamond at the paper's.

    Args:
        found: from `points`.
        paper: from `papers`.
    """
    drawn = Figure(figsize=(COLUMN_WIDTH, 0.9 + 0.36 * max(len(models), 1)), layout="constrained")
    axes = drawn.subplots()
    for merged, (colour, marker, offset) in STYLES.items():
        means = []
        for row, model in enumerate(models):
            values = found.loc[(found["model"] == model) & (found["merged"] == merged), "barrier"].to_numpy()
            y = row - offset  # rows run downwards
            spread = np.resize([-0.06, 0.0, 0.06], len(values))  # so that near ones don't hide each other
            axes.scatter(
                *(values, y + spread),
                s=13,
                marker=marker,
                facecolor=colour,
                alpha=0.45,
                linewidth=0,
                zorder=2,
            )
            if len(values):
                means.append((values.mean(), y))
            if (model, merged) in paper:
                axes.scatter(
                    paper[model, merged], y, s=22, marker="D", facecolor="white", edgecolor=colour, zorder=4
                )
        for mean, y in means:
            axes.plot([mean, mean], [y - 0.15, y + 0.15], color=colour, linewidth=1.8, zorder=3)
        axes.scatter([], [], s=13, marker=marker, facecolor=colour, alpha=0.6, linewidth=0, label=merged)
    axes.plot([], [], color="0.3", linewidth=1.8, label="mean")
    axes.scatter([], [], s=22, marker="D", facecolor="white", edgecolor="0.3", label="mean in the paper")
    label_rows(axes, [names.get(model, model) for model in models])
    axes.set_xlabel("Barrier: share of the accuracy that the halfway net lacks", fontsize=8)
    plain_axes(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="0.92", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    drawn.legend(
        loc="outside upper center", ncols=4, fontsize=7, frameon=False, handletextpad=0.4, columnspacing=1.2
    )
    return drawn
