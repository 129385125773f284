"""Where the numbers of each table and figure come from: records, made from what, with which settings, code and device.

about: made (the name of each table and figure → ids of the types whose records are in it, None: all records), notes.
"""

import hashlib
import json
import re
from itertools import chain

import pandas as pd

from relusym.findings import About, Inputs, Record, kinds_of
from relusym.findings.frames import chosen
from relusym.findings.layout import Layout
from relusym.records.fields import images_of

CODE = ("relusym", "torch", "python", "device")
LAYOUT = Layout(
    "Provenance: what the tables and figures were made of",
    {
        "made": "Made",
        "kind": "Kind of job",
        "records": "Records",
        "images": "Images",
        "settings": "Settings",
        "relusym": "relusym",
        "torch": "torch",
        "python": "Python",
        "device": "Device",
        "precision": "Precision",
        "hours": "Hours in all",
    },
    {"hours": "{:.3f}"},
)
COLUMNS = ["made", "kind", "records", "left_out", "images", "settings", *CODE, "precision", "hours"]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """What each table and figure was made of.

    Returns:
        One row for each name, kind and origin (there are several where pieces come from different machines): made,
        kind, records, left_out (records that aren't ok), images (where the data come from), settings (the beginning of
        the SHA-256 of all their settings), relusym, torch, python, device, precision, hours (their jobs' in all).
    """
    sources = {
        record["inputs"]["data"]: images
        for record in chain(*inputs.values())
        if (images := images_of(record)) and record["inputs"].get("data")
    }
    rows = []
    for name, models in about["made"].items():
        # arrays of filters are the other output of a flip merge
        kinds = dict.fromkeys("flip_merge" if kind == "filters" else kind for kind in kinds_of(name))
        of_models = chosen(inputs, {"models": models or []})
        for kind in kinds:
            described = pd.DataFrame([_described(record, sources) for record in of_models.get(kind, [])])
            if described.empty:
                continue
            origin = ["images", *CODE, "precision"]
            for values, group in described.groupby(origin, sort=False):
                settings = "\n".join(sorted(set(group["settings"])))
                rows.append(
                    {
                        "made": re.sub(r"\B(?=\d)", " ", name.capitalize()).replace("_", "-"),
                        "kind": kind,
                        "records": len(group),
                        "left_out": int((group["status"] != "ok").sum()),
                        **dict(zip(origin, values, strict=True)),
                        "settings": hashlib.sha256(settings.encode()).hexdigest()[:8],
                        "hours": group["seconds"].sum() / 3600,
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def notes(inputs: Inputs, about: About) -> list[str]:
    return ["Settings: the beginning of the SHA-256 of all settings in the records", *about["notes"]]


def _described(record: Record, sources: dict[str, str]) -> Record:
    """What tells a record's origin; a merge of a net that is left out has looked at no image, but names its data."""
    given, code = record.get("inputs", {}), record.get("code", {})
    return {
        "status": record.get("status", "ok"),
        "images": images_of(record) or sources.get(given.get("data"), ""),
        "settings": json.dumps(record["settings"], sort_keys=True),
        **{field: code.get(field, "") for field in CODE},
        "precision": record.get("precision") or "",
        "seconds": record.get("cost", {}).get("seconds", 0.0),
    }
