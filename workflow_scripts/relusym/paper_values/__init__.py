"""The paper's own tables, as transcribed in `table*.csv`."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def table(number: int) -> pd.DataFrame:
    """The paper's Table `number` (1 to 5), numbers as floats.

    Table 1 has the columns model, name, description, parameters. The paper states the parameters
    once for each architecture, in the description; here they are a column, filled for all its types.
    Table 3 is the part of Table 5 with `in_table3`.

    Raises:
        ValueError: the paper has no such table.
    """
    import pandas as pd  # here, since every start of Snakemake asks only for what follows

    if number not in range(1, 6):
        raise ValueError(f"the paper has no Table {number}, only 1 to 5")
    if number == 3:
        five = table(5)
        return five[five["in_table3"] == "yes"].reset_index(drop=True)
    with (files(__name__) / f"table{number}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


@cache
def _rows(number: int) -> list[dict[str, str]]:
    with (files(__name__) / f"table{number}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def vgg11s() -> list[str]:
    """The model types of the paper's Table 2."""
    return [row["model"] for row in _rows(2)]


def resnets() -> dict[str, dict[str, str]]:
    """The rows of the paper's Table 5 by their methods, as text."""
    return {row["method"]: row for row in _rows(5)}
