"""Matchings compared: the barrier of nets with their flipped selves and with each other, by how channels are matched.

about: models (ids, in order), pairs (of ids, in order), matchings (names, in order), of_flips (those of them that no
pair is merged by), names, notes.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from relusym.findings import About, Inputs, Record, agreement, measurements
from relusym.findings.agreement import check_agreement, matching_of
from relusym.findings.frames import measured, once, summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import COLUMN_WIDTH, LINES, label_rows, legend_above, plain_axes

LAYOUT = Layout(
    "Merging by other matchings",
    {"matching": "Matching", "barrier_no_repair": "Barrier, no REPAIR", "barrier": "Barrier"},
)
KEY = ["model_1", "model_2", "matching"]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """model_1, model_2 (empty: merged with its flipped self), matching, the barriers' mean and std, n, left_out.

    Raises:
        UserError: an ok record lacks its barrier (named), is given twice, or doesn't go with the others.
    """
    types = [*((model, "") for model in about["models"]), *about["pairs"]]
    own = about.get("of_flips", [])
    rows = [
        (*of, matching) for of in types for matching in about["matchings"] if not of[1] or matching not in own
    ]
    found = summary(by_merge(inputs), KEY, rows, list(measurements.PAIR_MERGE))
    return found.replace({"matching": headings(inputs)})


def notes(inputs: Inputs, about: About) -> list[str]:
    """As `agreement.notes`, and how many starts of a matching that searches came to its best."""
    searches = [record["search"] for record in _merges(inputs) if record.get("search")]
    reached = [of["reached"] for of in searches if len(of["starts"]) > 1]
    said = (
        f"{np.mean(reached):.1f} of its starts (of a merge {min(reached)} to {max(reached)})"
        if reached
        else ""
    )
    line = [f"Weight matching: on average {said} reached the best"] if reached else []
    return [*line, *agreement.notes(inputs, about)]


def _merges(inputs: Inputs) -> list[Record]:
    return [record for kind in ("flip_merge", "pair_merge") for record in inputs[kind]]


def headings(inputs: Inputs) -> dict[str, str]:
    """What tables call weight matchings: by where they start, or by how many starts there were."""
    starts = {
        of["starts"]
        for record in _merges(inputs)
        if "starts" in (of := record["settings"].get("merging", {}))
    }
    of = " or ".join(map(str, sorted(starts)))
    return {
        "weight": f"weight, best of {of}" if of else "weight",
        "weight_identity": "weight, from the identity",
    }


def by_merge(inputs: Inputs) -> pd.DataFrame:
    """One row a merge: model_1, model_2 (empty: its flipped self), matching, seed or both seeds, barriers, ok."""
    check_agreement(inputs)
    flips, pairs = (
        [record | {"matching": matching_of(record)} for record in once(inputs[kind])]
        for kind in ("flip_merge", "pair_merge")
    )
    own = measured(flips, ["model", "seed", "matching"], measurements.PAIR_MERGE)
    other = measured(pairs, [*KEY, "seed_1", "seed_2"], measurements.PAIR_MERGE)
    return pd.concat([own.rename(columns={"model": "model_1"}).assign(model_2=""), other])


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """Each merge's barrier with REPAIR, a row a type or pair of types, by its matching; and the numbers."""
    found, names, called = by_merge(inputs), about["names"], headings(inputs)
    types = [(model, "") for model in about["models"]] + [tuple(pair) for pair in about["pairs"]]
    present = {*found[["model_1", "model_2"]].itertuples(index=False, name=None)}
    types = [of for of in types if of in present]
    drawn = Figure(figsize=(COLUMN_WIDTH, 1.1 + 0.42 * max(len(types), 1)), layout="constrained")
    axes = drawn.subplots()
    axes.set_xscale("symlog", linthresh=0.01)
    matchings = about["matchings"]
    for place, (matching, (colour, marker)) in enumerate(zip(matchings, LINES, strict=False)):
        offset = 0.7 * ((place + 0.5) / len(matchings) - 0.5)
        axes.scatter([], [], s=14, marker=marker, color=colour, label=called.get(matching, matching))
        for row, (first, second) in enumerate(types):
            own = (found["model_1"] == first) & (found["model_2"] == second) & (found["matching"] == matching)
            values = found.loc[own & found["ok"], "barrier"].to_numpy(float)
            y = np.full(len(values), row + offset)
            axes.scatter(values, y, s=14, marker=marker, color=colour, alpha=0.6, linewidth=0)
    labels = [
        f"{names.get(first, first)} · {names.get(second, second) if second else 'flipped'}"
        for first, second in types
    ]
    label_rows(axes, labels)
    axes.set_xlabel("Barrier with REPAIR (linear below 0.01, logarithmic above)", fontsize=8)
    plain_axes(axes)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    legend_above(drawn, axes, 5)
    return drawn, found
