"""Other symmetries: merging a net with its transformed selves, by data set, symmetry and training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from textwrap import fill

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Table, pd
from relusym.findings.frames import in_order, ok, summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import empty_drawing, label_rows, lines, panels_of
from relusym.findings.selection import beyond
from relusym.records.fields import images_of

QUANTITIES = {
    "accuracy": "Accuracy",
    "invariance_error": "Invariance error",
    "pairwise": "Barrier, pairwise",
    "whole": "Barrier, whole orbit",
    "whole_no_repair": "Whole orbit, no REPAIR",
    "accuracy_orbit": "Accuracy, mean over the orbit",
    "accuracy_whole": "Accuracy, whole orbit merged",
}
LAYOUT = Layout(
    "Other symmetries: barriers of nets with their transformed selves",
    {"symmetry": "Symmetry", "data": "Data", **QUANTITIES},
)
DECLARED = beyond("symmetries", order=2, invariance=True)
TABLE = Table(__name__, LAYOUT, **DECLARED)
FIGURE = Figure(__name__, name="symmetries_figure", csvs=(".csv",), **DECLARED)
KEY = ["model", "symmetry"]


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row per net and symmetry: model, seed, symmetry, data, invariant (by construction), ok, `QUANTITIES`."""
    rows = []
    for record in records:
        data, is_ok = record["settings"]["trained"][0]["data"], record["status"] == "ok"
        # by construction; of generated images, the horizontal flip by default
        invariant = data.get("invariant_to", "horizontal_flip") if data["dataset"] == "generated" else None
        about = {"model": record["model"], "seed": record["seed"], "data": images_of(record), "ok": is_ok}
        for symmetry in record["settings"]["symmetries"]:
            row = about | {"symmetry": symmetry, "invariant": invariant == symmetry}
            if is_ok:
                merged = record["symmetries"][symmetry]
                accuracies = {f"accuracy_{name}": value for name, value in merged["accuracy"].items()}
                row = merged["barrier"] | accuracies | row | {"accuracy": merged["accuracy"]["net"]}
                row["invariance_error"] = merged["invariance_error"]
            rows.append(row)
    return pd.DataFrame(rows, columns=[*KEY, "seed", "data", "invariant", "ok", *QUANTITIES])


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type and symmetry: data, mean and standard deviation over nets, n, left_out."""
    nets = in_order(by_net(inputs["symmetries"]), selection["models"])
    rows = nets.drop_duplicates(KEY)
    means = summary(nets, KEY, rows[KEY], list(QUANTITIES))
    means.insert(2, "data", rows["data"].to_list())
    return means.assign(symmetry=means["symmetry"].str.replace("_", " "))


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """Each net's barrier, a panel per data set and symmetry (tinted if images are invariant to it); and the numbers."""
    nets = in_order(by_net(inputs["symmetries"]), selection["models"])
    nets = ok(nets).drop(columns="ok")
    if nets.empty:
        return empty_drawing("no nets"), nets
    named = nets.assign(type=nets["model"].map(lambda model: selection["names"].get(model, model)))
    sources, symmetries, types = (list(dict.fromkeys(named[key])) for key in ("data", "symmetry", "type"))
    drawing, panels = panels_of(
        0.9 + 0.85 * len(sources), len(sources), len(symmetries), sharex=True, sharey=True
    )
    for panel, (source, symmetry) in zip(panels.flat, product(sources, symmetries), strict=True):
        shown = named[(named["data"] == source) & (named["symmetry"] == symmetry)]
        if shown["invariant"].any():
            panel.set_facecolor("#E3EEF8")
        for row, (name, (colour, marker)) in enumerate(zip(types, lines(2), strict=False)):
            x = shown.loc[shown["type"] == name, "whole"]
            panel.scatter(x, [row] * len(x), s=14, color=colour, marker=marker, alpha=0.7, linewidth=0)
        label_rows(panel, types)
    for panel, symmetry in zip(panels[0], symmetries, strict=True):
        panel.set_title(symmetry.replace("_", " "))
    for row, source in zip(panels, sources, strict=True):
        label = fill(source, 24)
        row[-1].annotate(label, (1.03, 0.5), xycoords="axes fraction", fontsize=7, va="center")
    drawing.supxlabel("Barrier over the whole orbit")
    return drawing, nets
