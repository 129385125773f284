"""Which layers carry the barrier: equivariance errors by layer, and barriers if only the first layers are merged.

about: models (ids, in order), names, notes.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from relusym.findings import About, Inputs, Record
from relusym.findings.agreement import check_agreement
from relusym.findings.frames import summary, with_left_out
from relusym.findings.layout import Layout
from relusym.findings.print_style import COLUMN_WIDTH, LINES, layer_ticks, legend_above, plain_axes

MEASURED = {
    "equivariance_error": "Equivariance error of the layer",
    "barrier_up_to": "Barrier if merged up to the layer",
}
LAYOUT = Layout("By layer: where the barrier comes from", {"layer": "Layer", **MEASURED})


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row a net, measure (of `MEASURED`) and layer (numbered from 1, and its name): its value."""
    rows = [
        (record["model"], record["seed"], measure, number, name, value)
        for record in records
        if record["status"] == "ok"
        for measure in MEASURED
        for number, (name, value) in enumerate(record[measure].items(), start=1)
    ]
    frame = pd.DataFrame(rows, columns=["model", "seed", "measure", "layer", "name", "value"])
    return frame.astype({"value": float})


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a type and layer (the last has no error), mean and standard deviation over nets, n, left_out."""
    check_agreement(inputs)
    records = inputs["by_layer"]
    nets = by_net(records).pivot(index=["model", "seed", "layer"], columns="measure", values="value")
    nets = nets.reindex(columns=[*MEASURED]).reset_index()
    rows = [
        (of, layer) for of in about["models"] for layer in sorted(set(nets.loc[nets["model"] == of, "layer"]))
    ]
    return summary(with_left_out(nets, records, "layer"), ["model", "layer"], rows, [*MEASURED])


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """A panel a measure, a line a type (mean over nets, bars of one standard deviation); and the numbers."""
    check_agreement(inputs)
    found = by_net(inputs["by_layer"])
    drawn = Figure(figsize=(COLUMN_WIDTH, 2.7), layout="constrained")
    panels = drawn.subplots(1, 2)
    for panel, (measure, label) in zip(panels, MEASURED.items(), strict=True):
        shown = found[found["measure"] == measure]
        for model, (colour, marker) in zip(about["models"], LINES, strict=False):
            own = shown[shown["model"] == model].groupby("layer")["value"].agg(["mean", "std"])
            panel.errorbar(
                *(own.index, own["mean"], own["std"].fillna(0)),
                color=colour,
                marker=marker,
                markersize=3,
                linewidth=1,
                elinewidth=0.6,
                label=about["names"].get(model, model),
            )
        panel.set_xticks(layer_ticks(int(shown["layer"].max()) if len(shown) else 0))
        panel.set_xlabel("Layer", fontsize=8)
        panel.set_title(label, fontsize=8)
    plain_axes(*panels)
    legend_above(drawn, panels[0], 4)
    return drawn, found
