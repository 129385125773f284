"""Our tables beside the paper's: how far apart each cell is, and what to make of it.

about: tables (name, such as "table2" → the `about` of that table), names, notes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from relusym.findings import About, Inputs, Record, kinds_of, module_of, origins
from relusym.findings.frames import chosen
from relusym.findings.layout import Layout, number, std_of

LAYOUT = Layout(
    "Our tables beside the paper's",
    {
        "table": "Table",
        "row": "Row",
        "quantity": "Quantity",
        "value": "Value",
        "difference": "Difference",
        "in_paper_stds": "In the paper's std",
        "in_standard_errors": "In standard errors (Welch)",
        "p_value": "p",
        "verdict": "Verdict",
        "reason": "Reason",
    },
    {
        "difference": "{:+.2g}",
        "in_paper_stds": "{:+.1f}",
        "in_standard_errors": "{:+.1f}",
        "p_value": "{:.2g}",
    },
)

# The paper keeps "18-24 good quality nets of each model type" (Section 4.1) and doesn't say how many of which. We
# reckon with the fewest: the standard errors are then at most 15% too large, never too small.
PAPER_NETS = 18
WITHIN = 2  # of the paper's standard deviations
DIGITS = 3  # of the values that the paper gives without a standard deviation

# What the paper's tables were measured with (docs/differences.md), by path in a record: the values that agree with it,
# and what to call it. None is "all" for images, and otherwise what a record has that didn't need any.
WIDTH = {"settings.network.width": ([1.0], "width")}
VGG11S = {
    "inputs.source": (["CIFAR10", None], "data"),
    "settings.data.train_images": ([None], "number of training images"),
    **WIDTH,
    "settings.training.epochs": ([100], "epochs"),
    "settings.network.initialization": (["pytorch"], "training settings"),
    "settings.training.batch_size": ([500], "training settings"),
    "settings.training.learning_rate": ([0.08], "training settings"),
    "settings.training.invariance_weight": ([1.0, None], "training settings"),
    "settings.merging.images": ([None], "images to match on"),
}
RESNETS = {  # 90 epochs: of the supervised recipe, and of SimSiam's linear layer
    "inputs.source": (["ImageNet", None], "data"),
    "settings.network.block": (["bottleneck"], "network"),
    "settings.network.width": ([1.0], "network"),
    "settings.data.train_images": ([None], "number of training images"),
    "settings.training.epochs": ([90], "epochs"),
    "settings.merging.images": ([5000], "images to match on"),
}
PAPER_SETTINGS: dict[int, dict[str, tuple[list[Any], str]]] = {  # Table 1 counts parameters
    1: WIDTH,
    2: VGG11S,
    3: RESNETS,
    4: VGG11S,
    5: RESNETS,
}


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """All cells of `about`'s tables, as `compare` gives them."""
    found = []
    for name, shown in about["tables"].items():
        table, paper_number = module_of(name), int(re.sub(r"\D", "", name))
        of_table = chosen({kind: inputs[kind] for kind in kinds_of(name)}, shown)
        other = other_than_the_papers(list(chain(*of_table.values())), paper_number)
        cells = table.frame(of_table, shown)
        found.append(compare(cells, paper_number, other, table.LAYOUT, about["names"]))
    return pd.concat(found, ignore_index=True)


def notes(inputs: Inputs, about: About) -> list[str]:
    return [
        "Difference: ours less the paper's. Standard errors are Welch's, with the "
        f"{PAPER_NETS} nets a type that the paper has at least",
        f"Verdict: within {WITHIN}σ, higher or lower, in the paper's standard deviations; equal, to three digits, "
        "where the paper gives none. Nothing is called comparable that was made with other data or settings",
        *origins.notes(inputs, about),
    ]


def other_than_the_papers(records: Sequence[Record], table: int) -> list[str]:
    """What any of `records` was made with that isn't the paper's for this table: ["data", "width", …]."""
    words = [
        word
        for path, (papers, word) in PAPER_SETTINGS[table].items()
        if any(value not in papers for record in records for value in _at(record, path.split(".")))
    ]
    return list(dict.fromkeys(words))


def _at(found: Any, path: list[str]) -> Iterator[Any]:
    """What stands at a path of a record; nothing if there is no such path."""
    if not path:
        yield found
    elif isinstance(found, dict) and path[0] in found:
        yield from _at(found[path[0]], path[1:])


def compare(
    table: pd.DataFrame,
    paper_number: int,
    other: Iterable[str] = (),
    layout: Layout | None = None,
    names: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Every cell of one of our tables for which the paper has a number, beside the paper's.

    Args:
        table: as `table2.frame` gives it: means with their `…_std`, or plain numbers, each with its `paper_…`;
            `n` counts our nets.
        paper_number: its number in the paper.
        other: what ours was made with that isn't the paper's; if there is anything, no cell is comparable.
        layout: of the table, for what its quantities are called.
        names: of its models.

    Returns:
        One row a cell: table, row, quantity, value_mean, value_std, n, paper_value_mean, paper_value_std, paper_n;
        difference (ours − the paper's), in_paper_stds and in_standard_errors (Welch), p_value (two-sided Welch test);
        verdict and reason. The verdict is "within 2σ", "higher" or "lower", in σ of the paper; where the paper gives no
        σ, "equal" to three digits, "higher" or "lower"; "not comparable" with its reason. What can't be computed,
        such as Welch's test on one net, is NaN.
    """
    keys = [column for column in ("model", "model_1", "model_2", "method") if column in table]
    columns = [
        column
        for column in table
        if f"paper_{column}" in table and column not in keys and not column.endswith("_std")
    ]
    ids = table[keys].itertuples(index=False)
    named = [" with ".join((names or {}).get(model, model) for model in row) for row in ids]
    rows = table.get("name", pd.Series(named, table.index, dtype=object))
    layout = layout or Layout("")
    found = pd.concat([_cells(table, rows, column, layout) for column in columns], ignore_index=True)
    found.insert(0, "table", paper_number)
    found = found[found["paper_value_mean"].notna()].reset_index(drop=True)
    found["difference"] = found["value_mean"] - found["paper_value_mean"]
    found["in_paper_stds"] = found["difference"] / found["paper_value_std"]
    ours, papers = (
        found[[f"{side}value_mean", f"{side}value_std", f"{side}n"]].to_numpy(float, na_value=np.nan).T
        for side in ("", "paper_")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        welch = stats.ttest_ind_from_stats(*ours, *papers, equal_var=False)
    found["in_standard_errors"], found["p_value"] = welch.statistic, welch.pvalue
    verdicts = [_verdict(cell, list(other)) for _, cell in found.iterrows()]
    found[["verdict", "reason"]] = pd.DataFrame(verdicts, columns=["verdict", "reason"], dtype=object)
    return found


def _cells(table: pd.DataFrame, rows: pd.Series, column: str, layout: Layout) -> pd.DataFrame:
    """The cells of one column of a table, ours and the paper's."""
    nothing = pd.Series(np.nan, table.index)
    std, paper_std = (std_of(table, name) for name in (column, f"paper_{column}"))
    std, paper_std = (nothing if found is None else found.astype(float) for found in (std, paper_std))
    return pd.DataFrame(
        {
            "row": rows,
            "quantity": layout.heading(column.removesuffix("_mean")),
            "value_mean": table[column].astype(float),
            "value_std": std,
            "n": table.get("n", pd.Series(1, table.index)),
            "paper_value_mean": table[f"paper_{column}"].astype(float),
            "paper_value_std": paper_std,
            "paper_n": pd.Series(PAPER_NETS, table.index, "Int64").where(paper_std.notna()),
        }
    )


def _verdict(cell: pd.Series, other: list[str]) -> tuple[str, str]:
    if pd.isna(cell["difference"]):
        return "not comparable", "no net of ours"
    if other:
        return "not comparable", "other " + ", ".join(other)
    if pd.isna(cell["paper_value_std"]):
        equal = number(cell["value_mean"], DIGITS) == number(cell["paper_value_mean"], DIGITS)
        verdict = "equal" if equal else None
    else:
        verdict = f"within {WITHIN}σ" if abs(cell["in_paper_stds"]) <= WITHIN else None
    return verdict or ("higher" if cell["difference"] > 0 else "lower"), ""
