"""The paper's tables, as transcribed in `table*.csv`."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from relusym.errors import UserError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    import pandas as pd

_KEYS = {1: ("model",), 2: ("model",), 4: ("model_1", "model_2"), 5: ("method", "in_table3")}
TEXTS = ("model", "name", "description", "model_1", "model_2", "method")
TEXTS += ("trained_by_authors", "self_supervised", "in_table3")


def table(number: int) -> pd.DataFrame:
    """The paper's Table `number` (1 to 5; others are a ValueError), numbers as floats.

    Table 1 states the parameters once for each architecture, in the description; here they are a column, filled for all
    its types. Table 3 is the part of Table 5 with `in_table3`. UserError if the file has been changed to what is no
    table.
    """
    import pandas as pd  # here, since every start of Snakemake asks only for what follows

    if number not in range(1, 6):
        raise ValueError(f"the paper has no Table {number}, only 1 to 5")
    if number == 3:
        five = table(5)
        return five[five["in_table3"] == "yes"].reset_index(drop=True)
    frame = pd.DataFrame(_rows(number)).replace("", None)
    for column in frame.columns.difference(TEXTS):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        if len(wrong := frame[column][numbers.isna() & frame[column].notna()]):
            raise UserError(f"{_file(number)}: {wrong.iloc[0]!r} in {column} is no number; restore it")
        frame[column] = numbers
    return frame


@cache
def _rows(number: int) -> list[dict[str, str]]:
    file = _file(number)
    try:
        with file.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than there are columns")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: no table ({error}); restore it") from error
    for column in _KEYS[number]:
        if not rows or not all(row.get(column) for row in rows):
            raise UserError(f"{file}: the column {column} is missing, or empty in a row; restore it")
    return rows


def _file(number: int) -> Traversable:
    return files(__name__) / f"table{number}.csv"


def vgg11s() -> list[str]:
    """The model types of the paper's Table 2."""
    return [row["model"] for row in _rows(2)]


def resnets() -> dict[str, dict[str, str]]:
    """The rows of the paper's Table 5 by their methods, as text."""
    return {row["method"]: row for row in _rows(5)}
