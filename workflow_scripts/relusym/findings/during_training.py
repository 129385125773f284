"""When a net becomes a GCNN: barrier, invariance error and the layers' equivariance errors during training.

about: models (ids, in order), names, notes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from relusym.findings import About, Inputs, Record
from relusym.findings.agreement import check_agreement
from relusym.findings.frames import summary, with_left_out
from relusym.findings.layout import Layout
from relusym.findings.print_style import (
    COLUMN_WIDTH,
    LINES,
    empty_figure,
    layer_ticks,
    legend_above,
    plain_axes,
)

SHOWN = {"barrier": "GCNN barrier", "invariance_error": "Invariance error", "accuracy": "Accuracy"}
OF_LAYERS = {"first": "Equivariance error, first layer", "last": "… last layer"}
LAYOUT = Layout("During training: when a net becomes a GCNN", {"epoch": "Epoch", **SHOWN, **OF_LAYERS})


def by_epoch(records: Sequence[Record]) -> pd.DataFrame:
    """One row a net, epoch and layer: model, seed, epoch, those of `SHOWN`, layer, equivariance_error."""
    rows = [
        {
            **{key: record[key] for key in ("model", "seed")},
            **{key: found[key] for key in ("epoch", *SHOWN)},
            **{"layer": layer, "equivariance_error": error},
        }
        for record in records
        if record["status"] == "ok"
        for found in record["epochs"]
        for layer, error in found["equivariance_error"].items()
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "epoch", *SHOWN, "layer", "equivariance_error"])


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a type and epoch, mean and standard deviation over nets, n, left_out."""
    check_agreement(inputs)
    records = inputs["during_training"]
    by_net = by_epoch(records).groupby(["model", "seed", "epoch"], sort=False)
    nets = by_net.agg(
        **{of: (of, "first") for of in SHOWN},
        **{of: ("equivariance_error", of) for of in OF_LAYERS},
    ).reset_index()
    rows = [
        (of, epoch) for of in about["models"] for epoch in sorted(set(nets.loc[nets["model"] == of, "epoch"]))
    ]
    return summary(with_left_out(nets, records, "epoch"), ["model", "epoch"], rows, [*SHOWN, *OF_LAYERS])


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """Above, quantities by epoch, a line a type (mean and range over nets); below, errors by layer, a panel a type."""
    check_agreement(inputs)
    found, models, names = by_epoch(inputs["during_training"]), about["models"], about["names"]
    if found.empty:
        return empty_figure("no nets"), found
    columns = max(3, len(models))
    drawn = Figure(figsize=(COLUMN_WIDTH * columns / 3, 3.6), layout="constrained")
    panels = drawn.subplots(2, columns, squeeze=False)
    nets = found.drop_duplicates(["model", "seed", "epoch"])
    for panel, (quantity, label) in zip(panels[0], SHOWN.items(), strict=False):
        for model, (colour, marker) in zip(models, LINES[::2], strict=False):
            own = nets[nets["model"] == model].groupby("epoch")[quantity].agg(["mean", "min", "max"])
            panel.plot(
                *(own.index, own["mean"]),
                color=colour,
                marker=marker,
                markersize=3,
                linewidth=1,
                label=names.get(model, model),
            )
            panel.fill_between(own.index, own["min"], own["max"], color=colour, alpha=0.2, linewidth=0)
        panel.set_title(label, fontsize=8)
        panel.set_xlabel("Epoch", fontsize=8)
    for panel in panels[0, len(SHOWN) :]:
        panel.set_axis_off()
    shades = colormaps["viridis"]
    epochs = sorted(found["epoch"].unique())
    for place, panel in enumerate(panels[1]):
        if place >= len(models):
            panel.set_axis_off()
            continue
        own = found[found["model"] == models[place]]
        layers = list(own["layer"].unique())
        for i, epoch in enumerate(epochs):
            errors = own[own["epoch"] == epoch].groupby("layer")["equivariance_error"].mean().reindex(layers)
            colour = shades(0.9 * i / max(len(epochs) - 1, 1))
            panel.plot(range(1, len(layers) + 1), errors, color=colour, linewidth=1.2, label=f"epoch {epoch}")
        panel.set_ylim(0, max(1.05 * np.nanmax(found["equivariance_error"]), 0.1))
        panel.set_xticks(layer_ticks(len(layers)))
        panel.set_xlabel(f"Layer, {names.get(models[place], models[place])}", fontsize=8)
    panels[1, 0].set_ylabel("Equivariance error", fontsize=8)
    plain_axes(*panels.flat)
    legend_above(drawn, panels[0, 0], 4)
    panels[1, 0].legend(fontsize=6, frameon=False)
    return drawn, found
