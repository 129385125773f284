"""When a net becomes a GCNN: barrier, invariance error and the layers' equivariance errors during training."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Table, np, pd
from relusym.findings.frames import summary_along
from relusym.findings.layout import Layout
from relusym.findings.print_style import (
    COLUMN_WIDTH,
    empty_drawing,
    layer_ticks,
    legend_above,
    lines,
    panels_of,
)
from relusym.findings.selection import beyond

SHOWN = {"barrier": "GCNN barrier", "invariance_error": "Invariance error", "accuracy": "Accuracy"}
ERRORS = {"first": "Equivariance error, first layer", "last": "… last layer"}
LAYOUT = Layout("During training: when a net becomes a GCNN", {"epoch": "Epoch", **SHOWN, **ERRORS})
DECLARED = beyond("during_training", order=4, invariance=True)
TABLE = Table(__name__, LAYOUT, **DECLARED)
FIGURE = Figure(__name__, name="during_training_figure", csvs=(".csv",), **DECLARED)


def by_epoch(records: Sequence[Record]) -> pd.DataFrame:
    """One row per net, epoch and layer: model, seed, epoch, the quantities of `SHOWN`, layer, equivariance_error."""
    rows = [
        (record["model"], record["seed"], epoch["epoch"], *(epoch[key] for key in SHOWN), layer, error)
        for record in records
        if record["status"] == "ok"
        for epoch in record["epochs"]
        for layer, error in epoch["equivariance_error"].items()
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "epoch", *SHOWN, "layer", "equivariance_error"])


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type and epoch, mean and standard deviation over nets, n, left_out."""
    records = inputs["during_training"]
    by_net = by_epoch(records).groupby(["model", "seed", "epoch"], sort=False)
    nets = by_net.agg(
        **{quantity: (quantity, "first") for quantity in SHOWN},
        **{layer: ("equivariance_error", layer) for layer in ERRORS},
    ).reset_index()
    return summary_along(nets, records, "epoch", selection["models"], [*SHOWN, *ERRORS])


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """Above, quantities by epoch: a line per type (mean, range over nets); below, errors by layer: a panel per type."""
    by_layer, models, names = by_epoch(inputs["during_training"]), selection["models"], selection["names"]
    if by_layer.empty:
        return empty_drawing("no nets"), by_layer
    columns = max(3, len(models))
    drawing, panels = panels_of(3.6, 2, columns, width=COLUMN_WIDTH * columns / 3)
    nets = by_layer.drop_duplicates(["model", "seed", "epoch"])
    for panel, (quantity, label) in zip(panels[0], SHOWN.items(), strict=False):
        for model, (colour, marker) in zip(models, lines(2), strict=False):
            over = nets[nets["model"] == model].groupby("epoch")[quantity].agg(["mean", "min", "max"])
            style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1}
            panel.plot(over.index, over["mean"], label=names.get(model, model), **style)
            panel.fill_between(over.index, over["min"], over["max"], color=colour, alpha=0.2, linewidth=0)
        panel.set(title=label, xlabel="Epoch")
    for panel in (*panels[0, len(SHOWN) :], *panels[1, len(models) :]):
        panel.set_axis_off()
    epochs = sorted(by_layer["epoch"].unique())
    highest = max(1.05 * np.nanmax(by_layer["equivariance_error"]), 0.1)
    for panel, model in zip(panels[1], models, strict=False):
        _draw_errors(panel, by_layer[by_layer["model"] == model], epochs)
        panel.set(ylim=(0, highest), xlabel=f"Layer, {names.get(model, model)}")
    panels[1, 0].set_ylabel("Equivariance error")
    legend_above(drawing, panels[0, 0], 4)
    panels[1, 0].legend(fontsize=6)
    return drawing, by_layer


def _draw_errors(panel, nets: pd.DataFrame, epochs: Sequence[int]) -> None:
    from matplotlib import colormaps

    layers = list(nets["layer"].unique())
    for i, epoch in enumerate(epochs):
        errors = nets[nets["epoch"] == epoch].groupby("layer")["equivariance_error"].mean().reindex(layers)
        colour = colormaps["viridis"](0.9 * i / max(len(epochs) - 1, 1))
        panel.plot(range(1, len(layers) + 1), errors, color=colour, linewidth=1.2, label=f"epoch {epoch}")
    panel.set_xticks(layer_ticks(len(layers)))
