"""Figure 4: the order of each channel under the permutation that matches a net to its flipped self, drawn.

about: models (ids, one panel each, in order), names.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from relusym.findings import About, Inputs
from relusym.findings.agreement import check_agreement
from relusym.findings.permutation_order import order_counts
from relusym.findings.print_style import COLUMN_WIDTH, layer_ticks

# after ColorBrewer's RdYlBu: safe for colour-blind readers; neighbours differ in lightness too (grey print)
COLOURS = {"1": "#2c7bb6", "2": "#abd9e9", "3": "#fee090", "4": "#f98e52", "5+": "#b2182b"}
LABELS = {"1": "1 (fixed)", "2": "2 (swapped)", "3": "3", "4": "4", "5+": "5 or more"}


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """Figure 4 and its numbers.

    Raises:
        UserError: as `order_counts`, or records don't go together.
    """
    check_agreement(inputs)
    counts = order_counts(inputs["flip_merge"])
    return figure4(counts, about["models"], about["names"]), counts


def figure4(frame: pd.DataFrame, models: Sequence[str], names: Mapping[str, str]) -> Figure:
    """Figure 4: a panel a type, a bar a layer, parted by the order of its channels.

    Bars show shares, since layers differ eightfold in width; the widths stand below if all types have the same, the
    numbers in `frame`. Layers are numbered in each net's order, since nets of other architectures name them otherwise.

    Args:
        frame: from `order_counts`.
        models: ids, one panel each, in this order; a type without nets gets an empty panel that says so.
    """
    frame = frame.astype({"order_class": str})  # a CSV read back without a "5+" has integers
    layers = {model: list(nets["layer"].unique()) for model, nets in frame.groupby("model")}
    columns = min(4, len(models) + 1)
    rows = -(-(len(models) + 1) // columns)  # one place more, for the key
    figure = Figure(figsize=(COLUMN_WIDTH, 0.3 + 1.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lowest = panels[max(len(models) - columns, 0) : len(models)]  # the lowest panel of each column
    for panel, model in zip(panels, models, strict=False):
        nets = frame[frame["model"] == model]
        shares = nets.pivot_table("share", "layer", "order_class", "sum", fill_value=0)
        own = layers.get(model, [])
        shares = shares.reindex(index=own, columns=list(COLOURS), fill_value=0)
        bottom = np.zeros(len(own))
        for order_class, colour in COLOURS.items():
            share = shares[order_class].to_numpy()
            panel.bar(
                range(1, len(own) + 1), share, 0.86, bottom, color=colour, edgecolor="white", linewidth=0.4
            )
            bottom += share
        if nets.empty:
            panel.text(0.5, 0.5, "no nets", transform=panel.transAxes, ha="center", va="center", fontsize=7)
        n = int(nets["n"].max()) if len(nets) else 0
        panel.set_title(f"{names.get(model, model)}\n({n} net{'s' * (n != 1)})", fontsize=7, linespacing=1.1)
        panel.set_xticks(layer_ticks(max(map(len, layers.values()), default=0)))
        panel.set_ylim(0, 1)
        panel.tick_params(labelsize=7, length=2, pad=2, labelbottom=panel in lowest)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(models) :]:
        panel.set_axis_off()
    key = [Patch(facecolor=colour, label=LABELS[order_class]) for order_class, colour in COLOURS.items()][
        ::-1
    ]
    legend = panels[len(models)].legend(
        handles=key, title="Order of a channel", title_fontsize=7, fontsize=7, loc="center", frameon=False
    )
    legend.set_in_layout(False)  # it may overhang its place without pushing the panels apart
    channels = frame.groupby(["model", "layer"], sort=False)["channels"].sum()
    widths = {tuple(channels[model].round().astype(int)) for model in layers}
    text = f" ({', '.join(map(str, widths.pop()))} channels)" if len(widths) == 1 else ""
    figure.supxlabel(f"Conv layer{text}", fontsize=8)
    figure.supylabel("Share of the layer's channels", fontsize=8)
    return figure
