"""The order of each channel under the permutation that matches a net to its flipped self, counted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from relusym.errors import UserError
from relusym.findings import Record
from relusym.permutations import channel_orders


def order_counts(flip_records: Sequence[Record]) -> pd.DataFrame:
    """How many channels have which order, mean over the nets of a type whose flip-merge record is ok.

    Returns:
        One row for each model, layer and order that occurs: model, layer, order, order_class ("1", "2", "3",
        "4", "5+"), channels (mean number a net), share (of the layer's channels), n (nets).

    Raises:
        UserError: a record lacks its permutations or holds one that isn't a bijection (named).
    """
    rows = []
    for record in flip_records:
        if record["status"] != "ok":
            continue
        net = f"{record['model']}-{record['seed']}"
        if not record.get("permutations"):
            raise UserError(f"flip_merge record {net} lacks 'permutations': delete it, and it is made again")
        for layer, permutation in record["permutations"].items():
            try:
                found = np.unique_counts(channel_orders(permutation))
            except ValueError as error:
                raise UserError(f"flip_merge record {net}, {layer}: {error}: delete the record") from error
            rows += [(record["model"], record["seed"], layer, *pair) for pair in zip(*found, strict=True)]
    found = pd.DataFrame(rows, columns=["model", "seed", "layer", "order", "channels"])
    for column in ("model", "layer"):  # in the order of the records, not of the alphabet
        found[column] = pd.Categorical(found[column], found[column].unique())
    n = found.groupby("model", observed=True)["seed"].nunique()
    frame = found.groupby(["model", "layer", "order"], observed=True)["channels"].sum().reset_index()
    frame["n"] = frame["model"].map(n).astype(int)
    frame["channels"] = frame["channels"] / frame["n"]
    widths = frame.groupby(["model", "layer"], observed=True)["channels"].transform("sum")
    frame["share"] = frame["channels"] / widths
    frame["order_class"] = frame["order"].astype(str).where(frame["order"] < 5, "5+")
    frame[["model", "layer"]] = frame[["model", "layer"]].astype(str)
    return frame[["model", "layer", "order", "order_class", "channels", "share", "n"]]
