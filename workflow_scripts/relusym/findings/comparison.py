"""Our tables beside the paper's: how far apart each cell is, and what to make of it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from relusym.findings import paper_values
from relusym.findings.tables import HEADINGS, Record, number, tidy

# The paper keeps "18-24 good quality nets of each model type" (Section 4.1) and doesn't say how many of which. We
# reckon with the fewest: the standard errors are then at most 15% too large, never too small.
PAPER_NETS = 18
WITHIN = 2  # of the paper's standard deviations
DIGITS = 3  # of the values that the paper gives without a standard deviation

# What the paper's tables were measured with (docs/differences.md), by path in a record, and what to call it.
WIDTH = {"settings.network.width": (1.0, "width")}
TRAINING = {
    "inputs.source": ("CIFAR10", "data"),
    "settings.data.train_images": (None, "number of training images"),
    **WIDTH,
    "settings.training.epochs": (100, "epochs"),
    "settings.network.initialization": ("pytorch", "training settings"),
    "settings.training.batch_size": (500, "training settings"),
    "settings.training.learning_rate": (0.08, "training settings"),
    "settings.training.invariance_weight": (1.0, "training settings"),
}
MERGING = {"settings.merging.images": (None, "images to match on")}
RESNETS = {  # 90 epochs: of the supervised recipe, and of SimSiam's linear layer
    "inputs.source": ("ImageNet", "data"),
    "settings.weights.network.block": ("bottleneck", "network"),
    "settings.weights.network.width": (1.0, "network"),
    "settings.weights.recipe.epochs": (90, "epochs"),
    "settings.evaluation.images": (5000, "images to match on"),
}
PAPER_SETTINGS: dict[int, dict[str, tuple[Any, str]]] = {  # Table 1 counts parameters
    1: WIDTH,
    2: TRAINING | MERGING,
    3: RESNETS,
    4: TRAINING | MERGING,
    5: RESNETS,
}


def other_than_the_papers(records: Sequence[Record], table: int) -> list[str]:
    """What any of `records` was made with that isn't the paper's for this table: ["data", "width", …]."""
    found = tidy(records)
    words = [
        word
        for path, (value, word) in PAPER_SETTINGS[table].items()
        if path in found and not _all_equal(found.loc[_holding(found, path), path], value)
    ]
    return list(dict.fromkeys(words))


def _holding(found: pd.DataFrame, path: str) -> pd.Series:
    """Which records have `path` at all: a train record has no settings.merging, a left-out merge no source."""
    if not path.startswith("settings."):
        return found[path].notna()
    siblings = [column for column in found if column.startswith(path.rpartition(".")[0] + ".")]
    return found[siblings].notna().any(axis=1)


def _all_equal(values: pd.Series, wanted: Any) -> bool:
    return bool((values.isna() if wanted is None else values.eq(wanted)).all())


def compare(frame: pd.DataFrame, table: int, other: Iterable[str] = ()) -> pd.DataFrame:
    """Every cell of one of our tables for which the paper has a number, beside the paper's.

    Args:
        frame: a table as `tables.table2` gives it: `…_mean` with `…_std`, or plain numbers, each with its `paper_…`;
            `n` counts our nets.
        table: its number in the paper.
        other: what ours was made with that isn't the paper's; if there is anything, no cell is comparable.

    Returns:
        One row a cell: table, row, quantity, value_mean, value_std, n, paper_value_mean, paper_value_std, paper_n;
        difference (ours − the paper's), in_paper_stds and in_standard_errors (Welch), p_value (two-sided Welch test);
        verdict and reason. The verdict is "within 2σ", "higher" or "lower", in σ of the paper; where the paper gives no
        σ, "equal" to three digits, "higher" or "lower"; "not comparable" with its reason. What can't be computed,
        such as Welch's test on one net, is NaN.
    """
    keys = [column for column in ("model", "model_1", "model_2", "method") if column in frame]
    columns = [
        column
        for column in frame
        if f"paper_{column}" in frame and column not in keys and not column.endswith("_std")
    ]
    found = pd.concat([_cells(frame, keys, column) for column in columns], ignore_index=True)
    found.insert(0, "table", table)
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


def _cells(frame: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """The cells of one column of a table, ours and the paper's."""
    names = paper_values.names()
    rows = [
        " with ".join(names.get(key, key) for key in keys_of_row)
        for keys_of_row in frame[keys].itertuples(index=False)
    ]
    nothing = pd.Series(np.nan, frame.index)
    quantity = column.removesuffix("_mean")
    std = f"{quantity}_std"
    paper_std = frame.get(f"paper_{std}", nothing).astype(float)
    return pd.DataFrame(
        {
            "row": frame.get("name", rows),
            "quantity": HEADINGS.get(quantity, quantity),
            "value_mean": frame[column].astype(float),
            "value_std": frame.get(std, nothing).astype(float),
            "n": frame.get("n", pd.Series(1, frame.index)),
            "paper_value_mean": frame[f"paper_{column}"].astype(float),
            "paper_value_std": paper_std,
            "paper_n": pd.Series(PAPER_NETS, frame.index, "Int64").where(paper_std.notna()),
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
