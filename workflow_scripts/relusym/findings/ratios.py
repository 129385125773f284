"""Ratios that tell something at any settings: flip barrier to pair barrier, with invariance loss to without."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from relusym import paper_values
from relusym.findings import About, Inputs, frames, kinds_of

LOSS = (
    ("cnn_inv", "cnn"),
    ("cnn_late_inv", "cnn"),
    ("pgcnn_late_inv", "pgcnn"),
)  # with invariance loss, without
RESNET_LOSS = (
    ("torchvision_old_inv", "torchvision_old"),
    ("torchvision_old_inv_225", "torchvision_old_225"),
)
QUANTITIES = {"gcnn_barrier": "GCNN Barrier", "invariance_error": "Invariance Error"}
SAME, OPPOSITE, OPEN = "same direction", "opposite direction", "open"

Part = Sequence[tuple[float, set]]  # values, each with the nets that it is measured on


def ratios(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a ratio that there are nets for: table, row, quantity, value_mean, value_std, n, verdict, reason.

    paper_value_mean is the paper's ratio; value_std is the standard error, by jackknife over nets; n counts the nets of
    the type that has fewer. The verdict is "same direction" or "opposite direction" if the ratio's 95% interval is on
    the paper's side of 1 or on the other, else "open".

    Args:
        about: as of `comparison`.
    """
    names, rows = about["names"], []

    def say(table: int, row: str, quantity: str, top: Part, bottom: Part, paper: float) -> None:
        if top and bottom:
            value, error, n = ratio(top, bottom)
            of_what = {"table": table, "row": row, "quantity": quantity}
            made = {"value_mean": value, "value_std": error, "n": n, "paper_value_mean": paper}
            verdict, reason = direction(value, error, n, paper)
            rows.append(of_what | made | {"verdict": verdict, "reason": reason})

    tables = about["tables"]
    two, four, five = (paper_values.table(number) for number in (2, 4, 5))
    two, five = two.set_index("model"), five.set_index("method")
    if "table4" in tables:
        flips = _nets(inputs, "table2", tables)
        pairs = frames.pairs(
            frames.chosen({kind: inputs[kind] for kind in kinds_of("table4")}, tables["table4"])
        )
        pairs = pairs[pairs["ok"]]
        for model, paper in (
            four[four["model_1"] == four["model_2"]].set_index("model_1")["barrier_mean"].items()
        ):
            own = pairs[(pairs["model_1"] == model) & (pairs["model_2"] == model)]
            both = [
                (row.barrier, {(model, row.seed_1), (model, row.seed_2)})
                for row in own.itertuples(index=False)
            ]
            top = _part(flips, model, "gcnn_barrier")
            expected = two.loc[model, "gcnn_barrier_mean"] / paper
            say(4, names.get(model, model), "GCNN Barrier / Barrier of two", top, both, expected)
    for table, number, loss, papers, ending in (
        ("table2", 2, LOSS, two, "_mean"),
        ("table5", 5, RESNET_LOSS, five, ""),
    ):
        if table in tables:
            found, of = _nets(inputs, table, tables), _rows(tables[table]["models"])
            for (top, bottom), (quantity, heading) in (
                (pair, q) for pair in loss for q in QUANTITIES.items()
            ):
                if top in of and bottom in of:
                    ours = of[top], of[bottom]
                    expected = papers.loc[top, quantity + ending] / papers.loc[bottom, quantity + ending]
                    row = " / ".join(names.get(model, model) for model in ours)
                    say(number, row, heading, *(_part(found, model, quantity) for model in ours), expected)
    columns = [
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
    return pd.DataFrame(rows, columns=columns)


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


def _rows(models: Any) -> dict[str, str]:
    """Our model by the paper's row."""
    return {models[model]["paper"] if isinstance(models, dict) else model: model for model in models}


def _nets(inputs: Inputs, table: str, tables: About) -> pd.DataFrame:
    of_table = frames.chosen({kind: inputs[kind] for kind in kinds_of(table)}, tables[table])
    found = frames.nets(of_table, [], list(QUANTITIES))
    return found[found["ok"]]


def _part(nets: pd.DataFrame, model: str, quantity: str) -> Part:
    own = nets[nets["model"] == model]
    return [(value, {(model, seed)}) for seed, value in zip(own["seed"], own[quantity], strict=True)]
