"""From records to tables, figures and claims. Imports no PyTorch, and pandas only when a table is made.

A table or figure is declared by one module of `tables`, `figures` or `beyond`, as a `Table` or a `Figure`:
- `TABLE = Table(__name__, LAYOUT, reads=…, select=…)`, beside a function `frame(inputs, selection)`, which returns the
  table's rows. Ids of models are in `model`, `model_1`, `model_2`; a mean is followed by its `…_std`; the paper's value
  of a column is in `paper_…`. A function `notes(inputs, selection)` returns the lines below, if not `frames.notes`.
- `FIGURE = Figure(__name__, reads=…, select=…)`, beside a function `draw(inputs, selection)`, which returns the drawing
  and the frames of its CSV files.

Its target, files, place in the report and provenance follow from that; its caption is `report/<name>.rst`. A selection
is plain JSON from the config. Two of its keys are common to all: `models` (a list of ids, or a dict by id) or `pairs`
limit the inputs to nets of these types; `names` are the types' display names by id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Lazy(ModuleType):
    """A module that is imported on first access to one of its names."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure as Drawing
    from scipy import stats

    from relusym.config.settings import Settings
    from relusym.findings.layout import Layout
    from relusym.records.results import Results
else:
    np, pd, stats = map(Lazy, ("numpy", "pandas", "scipy.stats"))  # every start imports all findings
    Drawing = Settings = Results = Any  # a table's job does without them

__all__ = ["Drawing", "np", "pd", "stats"]

Record = dict[str, Any]
Inputs = Mapping[str, Sequence[Any]]  # what was read, by kind: records, or `frames.Filters`
Selection = Mapping[str, Any]

COMPARISON, BEYOND = "Comparison with the paper", "Beyond the paper"
SECTIONS = ("Tables", "Figures", "Theory", COMPARISON, "Costs and provenance", BEYOND)
MERGES = "train", "flip_merge", "pair_merge"  # kinds of records
ROOMS = "tables", "figures", "beyond"


@dataclass(frozen=True)
class Finding:
    """What the declarations of tables and figures have in common."""

    module: str  # the one that declares and makes it
    _: KW_ONLY
    # kinds of records that it is made of; "filters": the arrays beside flip-merge records
    reads: tuple[str, ...]
    select: Callable[[Settings], Selection]  # the part of the config that it shows
    exists: Callable[[Settings], Any] = lambda settings: True  # whether a scale has it
    # the keys of its jobs of one kind; None: those on the selected types
    keys: Callable[[Results, str, Selection], list[str]] | None = None
    name: str = ""  # of its target; by default the module's
    section: str = ""  # of the report
    order: int = 0  # within its section; then by name

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.module.rpartition(".")[2])

    def load(self) -> ModuleType:
        return import_module(self.module)

    @property
    def label(self) -> str:
        """table2: Table 2, figure10: Figure 10."""
        return re.sub(r"(?<=\D)(?=\d)", " ", self.name.capitalize()).replace("_", "-")

    @property
    def is_beyond(self) -> bool:
        """Whether it isn't in the paper: a part of the target `beyond`, not of `all`; see docs/beyond.md."""
        return self.section == BEYOND


@dataclass(frozen=True)
class Table(Finding):
    """A table, its layout, and the number of the paper's table with the same rows, if any."""

    layout: Layout
    _: KW_ONLY
    paper: int | None = None
    section: str = "Tables"


@dataclass(frozen=True)
class Figure(Finding):
    """A figure, and the endings of the CSV files with its numbers."""

    _: KW_ONLY
    csvs: tuple[str, ...] = ()
    section: str = "Figures"


@cache
def declared() -> dict[str, Table | Figure]:
    """Every table, then every figure, by name, grouped by section."""
    rooms = [import_module(f"{__name__}.{room}") for room in ROOMS]
    names = [module.name for room in rooms for module in iter_modules(room.__path__, f"{room.__name__}.")]
    values = [(name, value) for name in names for value in vars(import_module(name)).values()]
    findings = [value for name, value in values if isinstance(value, Finding) and value.module == name]
    return {finding.name: finding for finding in sorted(findings, key=_place)}


def _place(finding: Finding) -> tuple[Any, ...]:
    name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", finding.name)]
    return isinstance(finding, Figure), SECTIONS.index(finding.section), finding.order, name
