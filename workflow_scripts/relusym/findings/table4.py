"""Table 4: the barrier (equation (4), with REPAIR) between two nets that were trained in different manners.

about: pairs (of ids, in order), names, notes; paper as in `frames.beside_paper`.
"""

import pandas as pd

from relusym.findings import About, Inputs
from relusym.findings.frames import beside_paper, pairs, summary
from relusym.findings.layout import Layout

LAYOUT = Layout("Merging nets trained in different manners", {"barrier": "Barrier"})
KEY = ["model_1", "model_2"]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """Columns as in `table2.frame`, one row for each of `pairs`; left_out counts pairs of which a net is left out.

    Raises:
        UserError: an ok record lacks its barrier (named), is given twice, or doesn't go with the others.
    """
    return beside_paper(summary(pairs(inputs), KEY, about["pairs"], ["barrier"]), 4, KEY, about)
