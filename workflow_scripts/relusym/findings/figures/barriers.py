"""Tables 2 and 4 at a glance: the barrier of each net with its flipped self beside that of pairs of its type."""

from __future__ import annotations

from collections.abc import Sequence

from relusym import paper_values
from relusym.findings import MERGES, Drawing, Figure, Inputs, Selection, frames, np, pd
from relusym.findings.print_style import label_rows, legend_above, panels_of
from relusym.findings.selection import OF_VGG11S

FLIP, PAIR = "with its flipped self", "with another net of its type"
STYLES = {FLIP: ("#0072B2", "o", 0.17), PAIR: ("#D55E00", "s", -0.17)}  # colour, marker, offset from the row
COLUMNS = ["model", "merged", "seed_1", "seed_2", "barrier"]

FIGURE = Figure(__name__, reads=MERGES, csvs=(".csv",), **OF_VGG11S)


def points(inputs: Inputs, models: Sequence[str]) -> pd.DataFrame:
    """One row per net or pair of nets of one type: model, merged (`FLIP` or `PAIR`), seed_1, seed_2, barrier."""
    nets = frames.nets(inputs).rename(columns={"seed": "seed_1", "gcnn_barrier": "barrier"})
    pairs = frames.pairs(inputs).rename(columns={"model_1": "model"})
    pairs = pairs[pairs["model"] == pairs["model_2"]]
    both = [nets.assign(merged=FLIP, seed_2=pd.NA), pairs.assign(merged=PAIR)]
    both = [frames.ok(several)[COLUMNS].astype(object) for several in both]
    merges = pd.concat(both).astype({"barrier": float})
    merges = merges[merges["model"].isin(models)].sort_values(["merged", "seed_1"], kind="stable")
    return frames.in_order(merges, models)


def papers() -> dict[tuple[str, str], float]:
    flips = paper_values.table(2).set_index("model")["gcnn_barrier_mean"]
    pairs = paper_values.table(4).query("model_1 == model_2").set_index("model_1")["barrier_mean"]
    both = (FLIP, flips), (PAIR, pairs)
    return {(model, merged): mean for merged, means in both for model, mean in means.items()}


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """One row per type: a point per net or pair (of `points`), a line at their mean, a diamond at the paper's."""
    models, names, paper = selection["models"], selection["names"], papers()
    merges = points(inputs, models)
    drawing, ((axes,),) = panels_of(0.9 + 0.36 * max(len(models), 1))
    diamond = {"s": 22, "marker": "D", "facecolor": "white"}
    for merged, (colour, marker, offset) in STYLES.items():
        style = {"s": 13, "marker": marker, "facecolor": colour, "linewidth": 0}
        for row, model in enumerate(models):
            is_row = (merges["model"] == model) & (merges["merged"] == merged)
            values = merges.loc[is_row, "barrier"].to_numpy()
            y = row - offset  # rows run downwards
            spread = np.resize([-0.06, 0.0, 0.06], len(values))  # so that close points don't hide each other
            axes.scatter(values, y + spread, alpha=0.45, zorder=2, **style)
            if len(values):
                mean = values.mean(), values.mean()
                axes.plot(mean, [y - 0.15, y + 0.15], color=colour, linewidth=1.8, zorder=3)
            if (model, merged) in paper:
                axes.scatter(paper[model, merged], y, edgecolor=colour, zorder=4, **diamond)
        axes.scatter([], [], alpha=0.6, label=merged, **style)
    axes.plot([], [], color="0.3", linewidth=1.8, label="mean")
    axes.scatter([], [], edgecolor="0.3", label="mean in the paper", **diamond)
    label_rows(axes, [names.get(model, model) for model in models])
    axes.set_xlabel("Barrier: share of the accuracy that the halfway net lacks")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="0.92", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    legend_above(drawing, axes, 4, handletextpad=0.4, columnspacing=1.2)
    return drawing, merges
