"""From records to tables, figures and claims. Imports the ground alone: no PyTorch, so that each starts in an instant.

To add a table:
1. A module here with
   - `KINDS`: the kinds of records it reads, which are the names of its rule's inputs; "filters" for arrays of filters;
   - `LAYOUT`: its title, headings and formats (`layout.Layout`);
   - `frame(inputs, about)`: one row of the table a row. Ids of models stand in `model`, `model_1`, `model_2`; a mean
     is followed by its `…_std`; the paper's value of a column is in `paper_…`;
   - `notes(inputs, about)`, if other lines than those of `origins.notes` stand below it.
2. A line in `TABLES`: the name of its rule, and the module.
3. A caption, `report/<name>.rst`; and in `experiments/shown.py`, which models it shows, if not those of Table 2.

A figure likewise, in `FIGURES`, by `figure.py`: its module has `KINDS` and `draw(inputs, about)`, which returns the
figure and the frames of the CSV files among the rule's outputs, in their order.

Of `about`, which is plain JSON, each module says which keys it reads. Two are for all: `models` (a list of ids, or a
dict by id) or `pairs` limit the inputs to nets of these types; `names` are the types' display names by id.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

Record = dict[str, Any]
Inputs = Mapping[str, Sequence[Any]]  # what was read, by kind: records, or `filters.Filters`
About = Mapping[str, Any]

TABLES = {
    "table1": "table1",
    "table2": "table2",
    "table3": "table5",
    "table4": "table4",
    "table5": "table5",
    "matchings": "matchings",
    "theory": "theory",
    "comparison": "comparison",
    "claims": "claims",
    "costs": "costs",
    "provenance": "provenance",
}
FIGURES = {
    "figure1": "filter_pairs",
    "figure2": "figure2",
    "figure3": "figure3",
    "figure4": "figure4",
    "figure5": "filter_pairs",
    "figure6": "filter_pairs",
    "figure7": "filter_pairs",
    "figure8": "filter_pairs",
    "figure9": "figure9",
    "figure10": "figure10",
    "zero_filters": "zero_filters",
    "filter_pairs": "filter_pairs",
}


def module_of(name: str) -> ModuleType:
    """The module behind a table or figure, by the name of its rule."""
    return import_module(f"{__name__}.{(TABLES | FIGURES)[name]}")
