"""Where a table's numbers come from: which records, made from what, with which settings, code and device."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

Record = dict[str, Any]

CODE = ("relusym", "torch", "python", "device")
DESCRIBED = ["kind", "status", "data", "images", "settings", *CODE, "precision", "seconds"]


def provenance(records: Sequence[Record], made_of: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """What each table and figure was made of.

    Args:
        made_of: kinds of records by the name of what is made of them, {"Table 2": ["train", "flip_merge"]}.

    Returns:
        One row for each name, kind and origin (there are several where pieces come from different machines): made,
        kind, records, left_out (records that aren't ok), images (where the data come from), settings (the beginning of
        the SHA-256 of all their settings), relusym, torch, python, device, precision, hours (their jobs' in all).
    """
    described = pd.DataFrame([_described(record) for record in records], columns=DESCRIBED)
    known = described[described["images"] != ""].set_index("data")["images"]
    missing = described["images"] == ""  # merges of nets that are left out have looked at no image
    described.loc[missing, "images"] = described.loc[missing, "data"].map(known[~known.index.duplicated()])
    described["images"] = described["images"].fillna("")
    rows = []
    for made, kinds in made_of.items():
        for kind in kinds:
            origin = ["images", *CODE, "precision"]
            for values, group in described[described["kind"] == kind].groupby(origin, sort=False):
                settings = "\n".join(sorted(set(group["settings"])))
                rows.append(
                    {
                        "made": made,
                        "kind": kind,
                        "records": len(group),
                        "left_out": int((group["status"] != "ok").sum()),
                        **dict(zip(origin, values, strict=True)),
                        "settings": hashlib.sha256(settings.encode()).hexdigest()[:8],
                        "hours": group["seconds"].sum() / 3600,
                    }
                )
    columns = ["made", "kind", "records", "left_out", "images", "settings", *CODE, "precision", "hours"]
    return pd.DataFrame(rows, columns=columns)


def _described(record: Record) -> Record:
    inputs, code = record.get("inputs", {}), record.get("code", {})
    return {
        "kind": record["kind"],
        "status": record.get("status", "ok"),
        "data": inputs.get("data", ""),
        "images": inputs.get("source", ""),
        "settings": json.dumps(record["settings"], sort_keys=True),
        **{field: code.get(field, "") for field in CODE},
        "precision": record.get("precision", ""),
        "seconds": record.get("cost", {}).get("seconds", 0.0),
    }
