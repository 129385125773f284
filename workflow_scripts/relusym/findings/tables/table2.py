"""Table 2: accuracy, relative invariance error and GCNN barrier (equation (4), with REPAIR) of each type of VGG11."""

from __future__ import annotations

from relusym.findings import Inputs, Selection, Table, pd
from relusym.findings.frames import beside_paper, nets, summary
from relusym.findings.layout import Layout
from relusym.findings.selection import vgg11s

LAYOUT = Layout(
    "Statistics of VGG11 nets",
    {"accuracy": "Accuracy", "invariance_error": "Invariance Error", "gcnn_barrier": "GCNN Barrier"},
)
TABLE = Table(__name__, LAYOUT, reads=("train", "flip_merge"), select=vgg11s, paper=2)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type: the paper's columns, n (nets both of whose records are ok), left_out, `paper_…`."""
    measured = summary(nets(inputs), ["model"], selection["models"], list(LAYOUT.headings))
    return beside_paper(measured, 2, ["model"])
