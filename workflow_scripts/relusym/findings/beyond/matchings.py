"""Matchings compared: the barrier of nets with their flipped selves and with each other, by matching."""

from __future__ import annotations

from itertools import product

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Settings, Table, frames, np, pd
from relusym.findings.frames import PAIR_MERGE, matching_of, measured, once, summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import label_rows, legend_above, lines, panels_of
from relusym.findings.selection import beyond, of_every_matching, types_merged
from relusym.matching import OF_FLIPS

LAYOUT = Layout(
    "Merging by other matchings",
    {"matching": "Matching", "barrier_no_repair": "Barrier, no REPAIR", "barrier": "Barrier"},
)
KEY = ["model_1", "model_2", "matching"]
COMMON = beyond("matchings", order=0)


def select(settings: Settings) -> Selection:
    """Models and pairs, in order; matchings (names, in order), and flips_only: those by which no pair is merged."""
    matchings = {"matchings": settings.compared, "flips_only": sorted(OF_FLIPS)}
    return {**COMMON["select"](settings), **matchings}


OF_MATCHINGS = {"select": select, "exists": lambda settings: settings.compared, "keys": of_every_matching}
DECLARED = COMMON | {"reads": ("train", "flip_merge", "pair_merge")} | OF_MATCHINGS
TABLE = Table(__name__, LAYOUT, **DECLARED)
FIGURE = Figure(__name__, name="matchings_figure", csvs=(".csv",), **DECLARED)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """model_1, model_2 (empty: merged with its flipped self), matching, the barriers' mean and std, n, left_out."""
    flips_only = selection.get("flips_only", [])
    every = product(types_merged(selection), selection["matchings"])
    rows = [(*types, matching) for types, matching in every if not types[1] or matching not in flips_only]
    merges = summary(by_merge(inputs), KEY, rows, list(PAIR_MERGE))
    return merges.replace({"matching": headings(inputs)})


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    """The lines of `frames.notes`, and how many starts of weight matching reached the best objective."""
    searches = [search for record in _merges(inputs) if (search := record.get("search"))]
    reached = [search["reached"] for search in searches if len(search["starts"]) > 1]
    if not reached:
        return frames.notes(inputs, selection)
    starts = f"on average {np.mean(reached):.1f} of its starts (of a merge {min(reached)} to {max(reached)})"
    return [f"Weight matching: {starts} reached the best", *frames.notes(inputs, selection)]


def _merges(inputs: Inputs) -> list[Record]:
    return [record for kind in ("flip_merge", "pair_merge") for record in inputs[kind]]


def headings(inputs: Inputs) -> dict[str, str]:
    """The names of weight matchings in tables, with their start or number of starts."""
    merging = (record["settings"].get("merging", {}) for record in _merges(inputs))
    starts = " or ".join(map(str, sorted({how["starts"] for how in merging if "starts" in how})))
    weight = f"weight, best of {starts}" if starts else "weight"
    return {"weight": weight, "weight_identity": "weight, from the identity"}


def by_merge(inputs: Inputs) -> pd.DataFrame:
    """One row per merge: model_1, model_2 (empty: its flipped self), matching, seed or both seeds, barriers, ok."""
    flips, pairs = (
        [record | {"matching": matching_of(record)} for record in once(inputs[kind])]
        for kind in ("flip_merge", "pair_merge")
    )
    flips = measured(flips, ["model", "seed", "matching"], PAIR_MERGE)
    pairs = measured(pairs, [*KEY, "seed_1", "seed_2"], PAIR_MERGE)
    return pd.concat([flips.rename(columns={"model": "model_1"}).assign(model_2=""), pairs])


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """Each merge's barrier with REPAIR by its matching, one row per type or pair of types; and the numbers."""
    merges, names, labels = by_merge(inputs), selection["names"], headings(inputs)
    present = {*merges[["model_1", "model_2"]].itertuples(index=False, name=None)}
    types = [types for types in types_merged(selection) if types in present]
    drawing, ((axes,),) = panels_of(1.1 + 0.42 * max(len(types), 1))
    axes.set_xscale("symlog", linthresh=0.01)
    matchings = selection["matchings"]
    for place, (matching, (colour, marker)) in enumerate(zip(matchings, lines(), strict=False)):
        style = {"s": 14, "marker": marker, "color": colour}
        axes.scatter([], [], label=labels.get(matching, matching), **style)
        by_matching = merges[(merges["matching"] == matching) & merges["ok"]]
        for row, (first, second) in enumerate(types):
            is_row = (by_matching["model_1"] == first) & (by_matching["model_2"] == second)
            values = by_matching.loc[is_row, "barrier"].to_numpy(float)
            y = np.full(len(values), row + 0.7 * ((place + 0.5) / len(matchings) - 0.5))
            axes.scatter(values, y, alpha=0.6, linewidth=0, **style)
    names = {"": "flipped", **names}
    label_rows(axes, [" · ".join(names.get(model, model) for model in pair) for pair in types])
    axes.set_xlabel("Barrier with REPAIR (linear below 0.01, logarithmic above)")
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    legend_above(drawing, axes, 5)
    return drawing, merges
