"""From records to tables, figures and claims. Imports the ground alone: no PyTorch, so that each starts in an instant.

To add a table:
1. A module here with
   - `LAYOUT`: its title, headings and formats (`layout.Layout`);
   - `frame(inputs, about)`: one row of the table a row. Ids of models stand in `model`, `model_1`, `model_2`; a mean
     is followed by its `…_std`; the paper's value of a column is in `paper_…`;
   - `notes(inputs, about)`, if other lines than those of `agreement.notes` stand below it.
2. A line in `TABLES`: the name of its rule, the module, and the kinds of records it reads, which are the names of the
   rule's inputs ("filters" for the arrays beside flip-merge records).
3. A caption, `report/<name>.rst`; and in `findings/selection.py`, which models it shows, if not those of Table 2.

A figure likewise, in `FIGURES`, by `figure.py`: its module has `draw(inputs, about)`, which returns the figure
and the frames of the CSV files among the rule's outputs, in their order.

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

# Each with its module and the kinds of records that it reads, told without importing it.
TABLES = {
    "table1": ("table1", ("train",)),
    "table2": ("table2", ("train", "flip_merge")),
    "table3": ("table5", ("train", "flip_merge")),
    "table4": ("table4", ("train", "pair_merge")),
    "table5": ("table5", ("train", "flip_merge")),
    "matchings": ("matchings", ("train", "flip_merge", "pair_merge")),
    "exact_gcnn": ("exact_gcnn", ("exact_gcnn",)),
    "symmetries": ("symmetries", ("symmetries",)),
    "curves": ("curves", ("curves",)),
    "during_training": ("during_training", ("during_training",)),
    "by_layer": ("by_layer", ("by_layer",)),
    "beyond_claims": (
        "beyond_claims",
        ("flip_merge", "pair_merge", "exact_gcnn", "symmetries", "curves", "during_training", "by_layer"),
    ),
    "beyond_provenance": (
        "provenance",
        (
            "train",
            "flip_merge",
            "pair_merge",
            "exact_gcnn",
            "symmetries",
            "curves",
            "during_training",
            "by_layer",
        ),
    ),
    "theory": ("theory", ("theory",)),
    "comparison": ("comparison", ("train", "flip_merge", "pair_merge")),
    "claims": ("claims", ("train", "flip_merge", "pair_merge", "filters")),
    "costs": ("costs", ("train", "flip_merge", "pair_merge")),
    "provenance": ("provenance", ("train", "flip_merge", "pair_merge", "flipped_training", "theory")),
}
FIGURES = {
    "barriers": ("barriers", ("train", "flip_merge", "pair_merge")),
    "matchings_figure": ("matchings", ("train", "flip_merge", "pair_merge")),
    "exact_gcnn_figure": ("exact_gcnn", ("exact_gcnn",)),
    "symmetries_figure": ("symmetries", ("symmetries",)),
    "curves_figure": ("curves", ("curves",)),
    "during_training_figure": ("during_training", ("during_training",)),
    "by_layer_figure": ("by_layer", ("by_layer",)),
    "figure1": ("filter_pairs", ("filters",)),
    "figure2": ("figure2", ("filters",)),
    "figure3": ("figure3", ("flipped_training",)),
    "figure4": ("figure4", ("flip_merge",)),
    "figure5": ("filter_pairs", ("filters",)),
    "figure6": ("filter_pairs", ("filters",)),
    "figure7": ("filter_pairs", ("filters",)),
    "figure8": ("filter_pairs", ("filters",)),
    "figure9": ("figure9", ("filters",)),
    "figure10": ("figure10", ()),
    "zero_filters": ("zero_filters", ("filters",)),
    "filter_pairs": ("filter_pairs", ("filters",)),
}
# Of these, what isn't in the paper, and no part of `all`: the target `beyond`, see docs/beyond.md.
BEYOND = {"matchings", "exact_gcnn", "symmetries", "curves", "during_training", "by_layer"}
BEYOND |= {f"{name}_figure" for name in BEYOND} | {"beyond_claims", "beyond_provenance"}


def module_of(name: str) -> ModuleType:
    """The module behind a table or figure, by the name of its rule."""
    return import_module(f"{__name__}.{(TABLES | FIGURES)[name][0]}")


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of records that a table or figure reads; "filters" for the arrays beside flip-merge records."""
    return (TABLES | FIGURES)[name][1]
