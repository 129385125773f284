"""Matchings compared: the barrier of nets with their flipped selves and with each other, by how channels are matched.

about: models (ids, in order), pairs (of ids, in order), matchings (names, in order), names, notes.
"""

import pandas as pd

from relusym.findings import About, Inputs, measurements
from relusym.findings.frames import measured, summary
from relusym.findings.layout import Layout
from relusym.findings.origins import check_agreement, matching_of

LAYOUT = Layout(
    "Merging by other matchings",
    {"matching": "Matching", "barrier_no_repair": "Barrier, no REPAIR", "barrier": "Barrier"},
)
KEY = ["model_1", "model_2", "matching"]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """model_1, model_2 (empty: merged with its flipped self), matching, the barriers' mean and std, n, left_out.

    Raises:
        UserError: an ok record lacks its barrier (named), is given twice, or doesn't go with the others.
    """
    check_agreement(inputs)
    flips, pairs = (
        [record | {"matching": matching_of(record)} for record in inputs[kind]]
        for kind in ("flip_merge", "pair_merge")
    )
    own = measured(flips, ["model", "seed", "matching"], measurements.PAIR_MERGE)
    other = measured(pairs, [*KEY, "seed_1", "seed_2"], measurements.PAIR_MERGE)
    merged = pd.concat([own.rename(columns={"model": "model_1"}).assign(model_2=""), other])
    types = [*((model, "") for model in about["models"]), *about["pairs"]]
    rows = [(*pair, matching) for pair in types for matching in about["matchings"]]
    return summary(merged, KEY, rows, list(measurements.PAIR_MERGE))
