"""Table 4: the barrier (equation (4), with REPAIR) between two nets that were trained in different manners."""

from __future__ import annotations

from relusym.findings import Inputs, Selection, Settings, Table, pd
from relusym.findings.frames import beside_paper, pairs, summary
from relusym.findings.layout import Layout
from relusym.findings.selection import net_notes, types_in

LAYOUT = Layout("Merging nets trained in different manners", {"barrier": "Barrier"})
KEY = ["model_1", "model_2"]


def select(settings: Settings) -> Selection:
    """Pairs of types, in order, and notes on these."""
    selection = {"pairs": [list(pair) for pair in settings.types_paired]}
    return {**selection, "notes": net_notes(settings, types_in(selection))}


TABLE = Table(__name__, LAYOUT, reads=("train", "pair_merge"), select=select, paper=4)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per pair of types, columns as in `table2.frame`; left_out counts pairs with a net that is left out."""
    return beside_paper(summary(pairs(inputs), KEY, selection["pairs"], ["barrier"]), 4, KEY)
