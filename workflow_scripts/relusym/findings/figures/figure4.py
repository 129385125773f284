"""Figure 4: the order of each channel under the permutation that matches a net to its flipped self."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, np, pd
from relusym.findings.print_style import layer_ticks, panels_of
from relusym.findings.selection import OF_VGG11S

# after ColorBrewer's RdYlBu: safe for colour-blind readers; neighbours differ in lightness too (grey print)
COLOURS = {"1": "#2c7bb6", "2": "#abd9e9", "3": "#fee090", "4": "#f98e52", "5+": "#b2182b"}
LABELS = {"1": "1 (fixed)", "2": "2 (swapped)", "3": "3", "4": "4", "5+": "5 or more"}

FIGURE = Figure(__name__, reads=("flip_merge",), csvs=(".csv",), **OF_VGG11S)


def order_counts(flip_records: Sequence[Record]) -> pd.DataFrame:
    """The number of channels of each order, mean over the nets of a type whose flip-merge record is ok.

    One row for each model, layer and order that occurs: model, layer, order, order_class ("1" to "4", "5+"), channels
    (mean number a net), share (of the layer's channels), n (nets).
    """
    from relusym.permutations import channel_orders

    rows = []
    for record in (record for record in flip_records if record["status"] == "ok"):
        for layer, permutation in record["permutations"].items():
            orders = np.unique_counts(channel_orders(permutation))
            rows += [(record["model"], record["seed"], layer, *pair) for pair in zip(*orders, strict=True)]
    nets = pd.DataFrame(rows, columns=["model", "seed", "layer", "order", "channels"])
    for column in ("model", "layer"):  # in the order of the records, not alphabetically
        nets[column] = pd.Categorical(nets[column], nets[column].unique())
    n = nets.groupby("model", observed=True)["seed"].nunique()
    frame = nets.groupby(["model", "layer", "order"], observed=True)["channels"].sum().reset_index()
    frame["n"] = frame["model"].map(n).astype(int)
    frame["channels"] = frame["channels"] / frame["n"]
    widths = frame.groupby(["model", "layer"], observed=True)["channels"].transform("sum")
    frame["share"] = frame["channels"] / widths
    frame["order_class"] = frame["order"].astype(str).where(frame["order"] < 5, "5+")
    frame[["model", "layer"]] = frame[["model", "layer"]].astype(str)
    return frame[["model", "layer", "order", "order_class", "channels", "share", "n"]]


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """One panel per type (empty without nets), one bar per layer, divided by its channels' order (`order_counts`).

    Bars show shares, since layers differ eightfold in width; the widths are below if they are the same for all types.
    Layers are numbered in each net's order, since architectures differ in their names.
    """
    from matplotlib.patches import Patch

    frame, models, names = order_counts(inputs["flip_merge"]), selection["models"], selection["names"]
    layers = {model: list(nets["layer"].unique()) for model, nets in frame.groupby("model")}
    columns = min(4, len(models) + 1)
    rows = -(-(len(models) + 1) // columns)  # one more place, for the legend
    drawing, panels = panels_of(0.3 + 1.4 * rows, rows, columns, sharex=True, sharey=True)
    panels = panels.ravel()
    lowest = panels[max(len(models) - columns, 0) : len(models)]  # the lowest panel of each column
    for panel, model in zip(panels, models, strict=False):
        nets, numbers = frame[frame["model"] == model], range(1, len(layers.get(model, [])) + 1)
        shares = nets.pivot_table("share", "layer", "order_class", "sum", fill_value=0)
        shares = shares.reindex(index=layers.get(model, []), columns=list(COLOURS), fill_value=0)
        below = shares.cumsum(axis=1).shift(axis=1, fill_value=0)
        for order, colour in COLOURS.items():
            style = {"color": colour, "edgecolor": "white", "linewidth": 0.4}
            panel.bar(numbers, shares[order], 0.86, below[order], **style)
        if nets.empty:
            panel.text(0.5, 0.5, "no nets", transform=panel.transAxes, ha="center", va="center", fontsize=7)
        n = int(nets["n"].max()) if len(nets) else 0
        panel.set_title(f"{names.get(model, model)}\n({n} net{'s' * (n != 1)})", fontsize=7, linespacing=1.1)
        panel.set(xticks=layer_ticks(max(map(len, layers.values()), default=0)), ylim=(0, 1))
        panel.tick_params(pad=2, labelbottom=panel in lowest)
    for panel in panels[len(models) :]:
        panel.set_axis_off()
    key = [Patch(facecolor=colour, label=LABELS[order_class]) for order_class, colour in COLOURS.items()]
    title = {"title": "Order of a channel", "title_fontsize": 7}
    legend = panels[len(models)].legend(handles=key[::-1], loc="center", **title)
    legend.set_in_layout(False)  # it may overhang its place without pushing the panels apart
    channels = frame.groupby(["model", "layer"], sort=False)["channels"].sum()
    widths = {tuple(channels[model].round().astype(int)) for model in layers}
    text = f" ({', '.join(map(str, widths.pop()))} channels)" if len(widths) == 1 else ""
    drawing.supxlabel(f"Conv layer{text}")
    drawing.supylabel("Share of the layer's channels")
    return drawing, frame
