"""The table of the paper's statements, each demonstrated by a module of `relusym.theory`."""

from __future__ import annotations

from relusym.findings import Inputs, Selection, Table, pd
from relusym.findings.layout import Layout

LAYOUT = Layout(
    "The paper's statements, tested",
    {
        "statement": "Statement",
        "tested": "What was tested",
        "draws": "Draws",
        "largest_violation": "Largest violation",
        "counterfactual": "Where its assumptions fail",
        "holds": "Holds",
    },
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
    """One row a statement; holds is "yes" or "no"."""
    statements = pd.DataFrame(inputs["theory"], columns=list(LAYOUT.headings))
    return statements.assign(holds=statements["holds"].map({True: "yes", False: "no"}))


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    return list(selection["notes"])
