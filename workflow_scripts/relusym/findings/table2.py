"""Table 2: accuracy, relative invariance error and GCNN barrier (equation (4), with REPAIR) of each type of VGG11.

about: models (ids, in order), names, notes; paper as in `frames.beside_paper`.
"""

import pandas as pd

from relusym.findings import About, Inputs
from relusym.findings.frames import beside_paper, nets, summary
from relusym.findings.layout import Layout

LAYOUT = Layout(
    "Statistics of VGG11 nets",
    {"accuracy": "Accuracy", "invariance_error": "Invariance Error", "gcnn_barrier": "GCNN Barrier"},
)


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """The columns of the paper's CSV, n, left_out, then the paper's as `paper_…`; one row for each of `models`.

    A net counts in n if both its train record and its flip-merge record are ok, in left_out otherwise.

    Raises:
        UserError: an ok record lacks a measurement (named), is given twice, or doesn't go with the others.
    """
    found = summary(nets(inputs), ["model"], about["models"], list(LAYOUT.headings))
    return beside_paper(found, 2, ["model"], about)
