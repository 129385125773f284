"""The table of the paper's statements, each demonstrated by a module of `relusym.theory`."""

from __future__ import annotations

from relusym.findings import Inputs, Selection, Table, pd
from relusym.findings.layout import Layout

COLUMNS = ["statement", "tested", "draws", "largest_violation", "counterfactual", "holds"]
LAYOUT = Layout(
    "The paper's statements, tested",
    {"tested": "What was tested", "counterfactual": "Where its assumptions fail"},
    {"largest_violation": "{:.2g}"},
    {"tested": 0.5, "counterfactual": 0.5},
)
TABLE = Table(
    __name__,
    LAYOUT,
    reads=("theory",),
    select=lambda settings: {"notes": [f"Random draws from seed {settings.sections.theory.seed}"]},
    section="Theory",
)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per statement; holds is "yes" or "no"."""
    statements = pd.DataFrame(inputs["theory"], columns=COLUMNS)
    return statements.assign(holds=statements["holds"].map({True: "yes", False: "no"}))


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    return list(selection["notes"])
