"""Figure 4: the order of each channel under the permutation that matches a net to its flipped self."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from relusym.errors import UserError
from relusym.findings import paper_values
from relusym.findings.print_style import COLUMN_WIDTH

# after ColorBrewer's RdYlBu: safe for colour-blind readers; neighbours differ in lightness too (grey print)
COLOURS = {"1": "#2c7bb6", "2": "#abd9e9", "3": "#fee090", "4": "#f98e52", "5+": "#b2182b"}
LABELS = {"1": "1 (fixed)", "2": "2 (swapped)", "3": "3", "4": "4", "5+": "5 or more"}


def channel_orders(permutation: ArrayLike) -> np.ndarray:
    """Order of each channel c: the smallest k ≥ 1 with Pᵏ(c) = c, the length of the cycle that c is on.

    Args:
        permutation: integers (channels,), P(c) = permutation[c]; the inverse has the same orders.

    Returns:
        int64 (channels,).

    Raises:
        ValueError: not a permutation of 0 … channels − 1, or empty.
    """
    permutation = np.asarray(permutation)
    channels = np.arange(permutation.size)
    if permutation.dtype.kind not in "iu" or not np.array_equal(np.sort(permutation), channels):
        raise ValueError(f"not a permutation of {permutation.size} channels")
    # the cycles are the connected components of the graph with an edge from c to permutation[c]
    graph = csr_array((np.ones(permutation.size, bool), (channels, permutation)))
    cycle = connected_components(graph)[1]
    return np.bincount(cycle)[cycle]


def order_counts(flip_records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """How many channels have which order, mean over the nets of a type whose flip-merge record is ok.

    Returns:
        One row for each model, layer and order that occurs: model, layer, order, order_class ("1", "2", "3",
        "4", "5+"), channels (mean number a net), share (of the layer's channels), n (nets).

    Raises:
        UserError: a record lacks its permutations or holds one that isn't a bijection (named).
    """
    rows = []
    for record in flip_records:
        if record["status"] != "ok":
            continue
        net = f"{record['model']}-{record['seed']}"
        if not record.get("permutations"):
            raise UserError(f"flip_merge record {net} lacks 'permutations': delete it, and it is made again")
        for layer, permutation in record["permutations"].items():
            try:
                found = np.unique_counts(channel_orders(permutation))
            except ValueError as error:
                raise UserError(f"flip_merge record {net}, {layer}: {error}: delete the record") from error
            rows += [(record["model"], record["seed"], layer, *pair) for pair in zip(*found, strict=True)]
    found = pd.DataFrame(rows, columns=["model", "seed", "layer", "order", "channels"])
    for column in ("model", "layer"):  # in the order of the records, not of the alphabet
        found[column] = pd.Categorical(found[column], found[column].unique())
    n = found.groupby("model", observed=True)["seed"].nunique()
    frame = found.groupby(["model", "layer", "order"], observed=True)["channels"].sum().reset_index()
    frame["n"] = frame["model"].map(n).astype(int)
    frame["channels"] = frame["channels"] / frame["n"]
    widths = frame.groupby(["model", "layer"], observed=True)["channels"].transform("sum")
    frame["share"] = frame["channels"] / widths
    frame["order_class"] = frame["order"].astype(str).where(frame["order"] < 5, "5+")
    frame[["model", "layer"]] = frame[["model", "layer"]].astype(str)
    return frame[["model", "layer", "order", "order_class", "channels", "share", "n"]]


def figure4(frame: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Figure 4: a panel a type, a bar a layer, parted by the order of its channels.

    Bars show shares, since layers differ eightfold in width; the widths stand below, the numbers in `frame`.

    Args:
        frame: from `order_counts`.
        models: ids, one panel each, in this order; a type without nets gets an empty panel that says so.
    """
    names = paper_values.names()
    frame = frame.astype({"order_class": str})  # a CSV read back without a "5+" has integers
    layers = list(frame["layer"].unique())
    columns = min(4, len(models) + 1)
    rows = -(-(len(models) + 1) // columns)  # one place more, for the key
    figure = Figure(figsize=(COLUMN_WIDTH, 0.3 + 1.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lowest = panels[max(len(models) - columns, 0) : len(models)]  # the lowest panel of each column
    for panel, model in zip(panels, models, strict=False):
        nets = frame[frame["model"] == model]
        shares = nets.pivot_table("share", "layer", "order_class", "sum", fill_value=0)
        shares = shares.reindex(index=layers, columns=list(COLOURS), fill_value=0)
        bottom = np.zeros(len(layers))
        for order_class, colour in COLOURS.items():
            share = shares[order_class].to_numpy()
            panel.bar(range(len(layers)), share, 0.86, bottom, color=colour, edgecolor="white", linewidth=0.4)
            bottom += share
        if nets.empty:
            panel.text(0.5, 0.5, "no nets", transform=panel.transAxes, ha="center", va="center", fontsize=7)
        n = int(nets["n"].max()) if len(nets) else 0
        panel.set_title(f"{names.get(model, model)}\n({n} net{'s' * (n != 1)})", fontsize=7, linespacing=1.1)
        panel.set_xticks(range(len(layers)), [layer.removeprefix("conv") for layer in layers])
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
    widths = frame[frame["model"] == frame["model"].min()].groupby("layer", sort=False)["channels"].sum()
    text = f" ({', '.join(f'{width:.0f}' for width in widths)} channels)" if len(widths) else ""
    figure.supxlabel(f"Conv layer{text}", fontsize=8)
    figure.supylabel("Share of the layer's channels", fontsize=8)
    return figure
