"""Which layers carry the barrier: equivariance errors by layer, and barriers if only the first layers are merged."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Table, pd
from relusym.findings.frames import summary_along
from relusym.findings.layout import Layout
from relusym.findings.print_style import layer_ticks, legend_above, lines, panels_of
from relusym.findings.selection import beyond

MEASURED = {
    "equivariance_error": "Equivariance error of the layer",
    "barrier_up_to": "Barrier if merged up to the layer",
}
LIE = {  # for records that have them
    "lie_translation": "Lie derivative, moved by a pixel",
    "lie_rotation": "Lie derivative, turned by a pixel",
}
LAYOUT = Layout("By layer: where the barrier comes from", {"layer": "Layer", **MEASURED, **LIE})
TABLE = Table(__name__, LAYOUT, **beyond("by_layer", order=5))
FIGURE = Figure(__name__, name="by_layer_figure", csvs=(".csv",), **beyond("by_layer", order=5))


def measures(records: Sequence[Record]) -> dict[str, str]:
    """The measures that the records have, and their headings."""
    return MEASURED | {key: text for key, text in LIE.items() if any(record.get(key) for record in records)}


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row per net, measure (of `measures`) and layer (number from 1, and name): its value."""
    rows = [
        (record["model"], record["seed"], measure, number, name, value)
        for record in records
        if record["status"] == "ok"
        for measure in measures(records)
        for number, (name, value) in enumerate((record.get(measure) or {}).items(), start=1)
    ]
    frame = pd.DataFrame(rows, columns=["model", "seed", "measure", "layer", "name", "value"])
    return frame.astype({"value": float})


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type and layer (the last has no error), mean and standard deviation over nets, n, left_out."""
    records, quantities = inputs["by_layer"], [*measures(inputs["by_layer"])]
    nets = by_net(records).pivot(index=["model", "seed", "layer"], columns="measure", values="value")
    nets = nets.reindex(columns=quantities).reset_index()
    return summary_along(nets, records, "layer", selection["models"], quantities)


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """One panel per measure, one line per type (mean over nets, bars of one standard deviation); and the numbers."""
    nets = by_net(inputs["by_layer"])
    drawing, (panels,) = panels_of(2.7, 1, 2)
    for panel, (measure, label) in zip(panels, MEASURED.items(), strict=True):
        shown = nets[nets["measure"] == measure]
        for model, (colour, marker) in zip(selection["models"], lines(), strict=False):
            means = shown[shown["model"] == model].groupby("layer")["value"].agg(["mean", "std"])
            style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1, "elinewidth": 0.6}
            name = selection["names"].get(model, model)
            panel.errorbar(means.index, means["mean"], means["std"].fillna(0), label=name, **style)
        ticks = layer_ticks(int(shown["layer"].max()) if len(shown) else 0)
        panel.set(xticks=ticks, xlabel="Layer", title=label)
    legend_above(drawing, panels[0], 4)
    return drawing, nets
