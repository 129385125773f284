"""The table of the paper's statements, each demonstrated by a module of `relusym.theory`.

about: notes.
"""

import pandas as pd

from relusym.findings import About, Inputs
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


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a statement: statement, tested, draws, largest_violation, counterfactual, holds ("yes" or "no")."""
    found = pd.DataFrame(inputs["theory"], columns=list(LAYOUT.headings))
    return found.assign(holds=found["holds"].map({True: "yes", False: "no"}))


def notes(inputs: Inputs, about: About) -> list[str]:
    return list(about["notes"])
