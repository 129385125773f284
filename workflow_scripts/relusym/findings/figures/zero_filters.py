"""Zero-filters: filters that training left without weights (appendix A.1), counted by layer and model type."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Drawing, Figure, Inputs, Selection, Settings, np, pd
from relusym.findings.frames import count_zero_filters
from relusym.findings.print_style import layer_ticks, lines, panels_of
from relusym.findings.selection import has_vgg11s


def select(settings: Settings) -> Selection:
    """Models (ids, in order), and zero_filter (a share, see `frames.are_zero`)."""
    return {"models": settings.table("table2"), "zero_filter": settings.sections.filters.zero_filter}


FIGURE = Figure(__name__, reads=("filters",), csvs=(".csv", "_by_net.csv"), exists=has_vgg11s, select=select)


def count_by_type(by_net: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """One row per type and layer, over its nets: model, layer, filters, zero_filters_mean and _std (sample's, NaN
    for one net), share_mean and _std (of the layer's filters), smallest (median), n."""
    by_net = by_net.assign(share=by_net["zero_filters"] / by_net["filters"])
    by_net["model"] = pd.Categorical(by_net["model"], list(models), ordered=True)
    by = by_net.groupby(["model", "layer"], observed=True, sort=True)
    spreads = {f"{key}_{how}": (key, how) for key in ("zero_filters", "share") for how in ("mean", "std")}
    table = by.agg(
        filters=("filters", "first"), **spreads, smallest=("smallest", "median"), n=("seed", "size")
    )
    return table.reset_index()


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame, pd.DataFrame]:
    """The share of zero-filters and the smallest filter by conv layer, numbered as in Figure 4; one line per type."""
    models, zero, names = selection["models"], selection["zero_filter"], selection["names"]
    by_net = count_zero_filters(inputs["filters"], zero)
    by_type = count_by_type(by_net, models)
    drawing, ((left, right),) = panels_of(2.9, 1, 2)
    spread = np.linspace(-0.24, 0.24, len(models)) if len(models) > 1 else [0.0]
    for model, (colour, marker), shift in zip(models, lines(), spread, strict=False):
        rows = by_type[by_type["model"] == model]
        n = int(rows["n"].max()) if len(rows) else 0
        x = np.arange(1, len(rows) + 1) + shift  # beside each other, so that none hides another
        style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 0.8}
        left.errorbar(x, rows["share_mean"], rows["share_std"].fillna(0), zorder=2, elinewidth=0.6, **style)
        right.plot(x, rows["smallest"], label=f"{names.get(model, model)} ({n})", **style)
    right.axhline(zero, color="0.4", linewidth=0.8, linestyle="--", label="below: zero-filter")
    highest = max(0.1, 1.1 * by_type["share_mean"].max()) if len(by_type) else 0.1
    left.set(ylim=(0, highest), ylabel="Zero-filters, share of the layer")
    right.set(ylim=(0, 1), ylabel="Smallest norm / largest norm")
    ticks = layer_ticks(by_type["model"].value_counts().max() if len(by_type) else 0)
    for panel in (left, right):
        panel.set(xlabel="Conv layer", xticks=ticks)
    handles = right.get_legend_handles_labels()
    drawing.legend(*handles, loc="outside lower center", ncols=4, fontsize=6.5)
    return drawing, by_type, by_net
