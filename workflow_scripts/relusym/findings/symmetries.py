"""Other symmetries: merging a net with its transformed selves, by data set, symmetry and training.

about: models (ids, in order), names, notes.
"""

from collections.abc import Sequence
from itertools import product
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from relusym.findings import About, Inputs, Record
from relusym.findings.agreement import check_agreement
from relusym.findings.frames import in_order, summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import COLUMN_WIDTH, LINES, empty_figure, label_rows, plain_axes
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
KEY = ["model", "symmetry"]


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row a net and symmetry: model, seed, symmetry, data, invariant (by construction), ok, `QUANTITIES`."""
    rows = []
    for record in records:
        (trained,) = record["settings"]["trained"]
        for symmetry in record["settings"]["symmetries"]:
            row = {
                **{key: record[key] for key in ("model", "seed")},
                **{"symmetry": symmetry, "data": images_of(record), "ok": record["status"] == "ok"},
                "invariant": _invariant_to(trained["data"]) == symmetry,
            }
            if row["ok"]:
                found = record["symmetries"][symmetry]
                barriers = {name: found["barrier"][name] for name in ("pairwise", "whole", "whole_no_repair")}
                row |= {"accuracy": found["accuracy"]["net"], "invariance_error": found["invariance_error"]}
                row |= barriers | {f"accuracy_{of}": found["accuracy"][of] for of in ("orbit", "whole")}
            rows.append(row)
    return pd.DataFrame(rows, columns=[*KEY, "seed", "data", "invariant", "ok", *QUANTITIES])


def _invariant_to(data: Record) -> str | None:
    """The symmetry that images are invariant to by construction; of generated ones, the horizontal flip by default."""
    return data.get("invariant_to", "horizontal_flip") if data["dataset"] == "generated" else None


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a type and symmetry: data, mean and standard deviation over nets, n, left_out."""
    check_agreement(inputs)
    nets = in_order(by_net(inputs["symmetries"]), about["models"])
    rows = nets.drop_duplicates(KEY)
    wanted = list(rows[KEY].itertuples(index=False, name=None))
    found = summary(nets, KEY, wanted, list(QUANTITIES))
    found.insert(2, "data", rows["data"].to_list())
    return found.assign(symmetry=found["symmetry"].str.replace("_", " "))


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """Each net's barrier, a panel a data set and symmetry (tinted: the images are invariant to it); and the numbers."""
    check_agreement(inputs)
    nets = in_order(by_net(inputs["symmetries"]), about["models"])
    found = nets[nets["ok"].astype(bool)].drop(columns="ok")
    if found.empty:
        return empty_figure("no nets"), found
    named = found.assign(type=found["model"].map(lambda model: about["names"].get(model, model)))
    sources, of, types = (list(dict.fromkeys(named[column])) for column in ("data", "symmetry", "type"))
    drawn = Figure(figsize=(COLUMN_WIDTH, 0.9 + 0.85 * len(sources)), layout="constrained")
    panels = drawn.subplots(len(sources), len(of), squeeze=False, sharex=True, sharey=True)
    for panel, (source, symmetry) in zip(panels.flat, product(sources, of), strict=True):
        own = named[(named["data"] == source) & (named["symmetry"] == symmetry)]
        if own["invariant"].any():
            panel.set_facecolor("#E3EEF8")
        for row, (name, (colour, marker)) in enumerate(zip(types, LINES[::2], strict=False)):
            barriers = own.loc[own["type"] == name, "whole"]
            panel.scatter(
                barriers, [row] * len(barriers), s=14, color=colour, marker=marker, alpha=0.7, linewidth=0
            )
        label_rows(panel, types)
    plain_axes(*panels.flat)
    for panel, symmetry in zip(panels[0], of, strict=True):
        panel.set_title(symmetry.replace("_", " "), fontsize=8)
    for row, source in zip(panels, sources, strict=True):
        label = fill(source, 24)
        row[-1].annotate(label, (1.03, 0.5), xycoords="axes fraction", fontsize=7, va="center")
    drawn.supxlabel("Barrier over the whole orbit", fontsize=8)
    return drawn, found
