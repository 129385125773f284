"""Ratios that mean something at any settings: flip barrier to pair barrier, with invariance loss to without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from relusym import paper_values
from relusym.findings import Inputs, Selection, declared, frames, np, pd, stats

# with invariance loss, without
LOSS = (("cnn_inv", "cnn"), ("cnn_late_inv", "cnn"), ("pgcnn_late_inv", "pgcnn"))
RESNET_LOSS = (("torchvision_old_inv", "torchvision_old"), ("torchvision_old_inv_225", "torchvision_old_225"))
QUANTITIES = {"gcnn_barrier": "GCNN Barrier", "invariance_error": "Invariance Error"}
SAME, OPPOSITE, OPEN = "same direction", "opposite direction", "open"

COLUMNS = [
    "table",
    "row",
    "quantity",
    "value_mean",
    "value_std",
    "n",
    "paper_value_mean",
    "verdict",
    "reason",
]

Part = Sequence[tuple[float, set]]  # values, each with the nets that it is measured on


def ratios(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row a ratio that there are nets for, as `COLUMNS`; `selection` as of `comparison`.

    paper_value_mean is the paper's ratio; value_std is the standard error, by jackknife over nets; n counts the nets of
    the type that has fewer. The verdict is "same direction" or "opposite direction" if the ratio's 95% interval is on
    the paper's side of 1 or on the other, else "open".
    """
    names, tables, rows = selection["names"], selection["tables"], []

    def add(table: int, row: str, quantity: str, top: Part, bottom: Part, paper: float) -> None:
        if top and bottom:
            value, error, n = ratio(top, bottom)
            rows.append((table, row, quantity, value, error, n, paper, *direction(value, error, n, paper)))

    two, four, five = (paper_values.table(number) for number in (2, 4, 5))
    two, five = two.set_index("model"), five.set_index("method")
    if "table4" in tables:
        flips = _nets(inputs, "table2", tables)
        pairs = frames.pairs(_of_table(inputs, "table4", tables))
        pairs = pairs[pairs["ok"] & (pairs["model_1"] == pairs["model_2"])]
        same = four[four["model_1"] == four["model_2"]].set_index("model_1")["barrier_mean"]
        for model, paper in same.items():
            merges = pairs[pairs["model_1"] == model].itertuples(index=False)
            both = [(row.barrier, {(model, row.seed_1), (model, row.seed_2)}) for row in merges]
            flip, expected = _part(flips, model, "gcnn_barrier"), two.loc[model, "gcnn_barrier_mean"] / paper
            add(4, names.get(model, model), "GCNN Barrier / Barrier of two", flip, both, expected)
    papers = {"table2": (2, LOSS, two, "_mean"), "table5": (5, RESNET_LOSS, five, "")}
    for table, (number, loss, paper, ending) in papers.items():
        if table not in tables:
            continue
        nets, models = _nets(inputs, table, tables), tables[table]["models"]
        is_by_row = isinstance(models, dict)
        ours = {models[model]["paper"] if is_by_row else model: model for model in models}  # by paper's row
        for top, bottom in (pair for pair in loss if {*pair} <= {*ours}):
            row = " / ".join(names.get(ours[model], ours[model]) for model in (top, bottom))
            for quantity, heading in QUANTITIES.items():
                expected = paper.loc[top, quantity + ending] / paper.loc[bottom, quantity + ending]
                parts = (_part(nets, ours[model], quantity) for model in (top, bottom))
                add(number, row, heading, *parts, expected)
    return pd.DataFrame(rows, columns=COLUMNS)


def ratio(top: Part, bottom: Part) -> tuple[float, float, int]:
    """The ratio of two means, its standard error, and how many nets there are of the type that has fewer.

    The error is the jackknife's, over the nets of each type: with a net, all that is measured on it is left out. NaN
    for fewer than three nets; the ratio is NaN if what it is divided by isn't above zero.
    """

    def without(net: Any = None) -> float:
        means = [np.mean([value for value, nets in part if net not in nets]) for part in (top, bottom)]
        return float(means[0] / means[1]) if means[1] > 0 else math.nan

    nets = sorted(set().union(*(nets for _, nets in (*top, *bottom))))
    types = [[net for net in nets if net[0] == model] for model in dict.fromkeys(model for model, _ in nets)]
    fewest = min(map(len, types))
    if fewest < 3:
        return without(), math.nan, fewest
    left_out = [np.array([without(net) for net in of_type]) for of_type in types]
    variance = sum((len(values) - 1) * values.var() for values in left_out)
    return without(), math.sqrt(variance), fewest


def direction(value: float, error: float, n: int, paper: float) -> tuple[str, str]:
    """The verdict on a ratio beside the paper's, and why it is open."""
    if n < 3:
        return OPEN, "three nets or more of a type are needed"
    if math.isnan(error):
        return OPEN, "what it is divided by isn't above zero"
    if abs(value - 1) <= stats.t.ppf(0.975, n - 1) * error:
        return OPEN, "the 95% interval includes 1"
    return (SAME if (value < 1) == (paper < 1) else OPPOSITE), ""


def _of_table(inputs: Inputs, table: str, tables: Selection) -> Inputs:
    return frames.chosen({kind: inputs[kind] for kind in declared()[table].reads}, tables[table])


def _nets(inputs: Inputs, table: str, tables: Selection) -> pd.DataFrame:
    nets = frames.nets(_of_table(inputs, table, tables), [], list(QUANTITIES))
    return nets[nets["ok"]]


def _part(nets: pd.DataFrame, model: str, quantity: str) -> Part:
    of_type = nets[nets["model"] == model]
    return [(value, {(model, seed)}) for seed, value in zip(of_type["seed"], of_type[quantity], strict=True)]
