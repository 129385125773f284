"""Where the numbers of each table and figure come from: which records, images, settings, code and device."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import chain

from relusym.beyond import MEASUREMENTS
from relusym.findings import BEYOND, MERGES, Inputs, Record, Selection, Settings, Table, declared, pd
from relusym.findings.frames import chosen
from relusym.findings.layout import Layout
from relusym.findings.selection import (
    OF_ALL_MEASURED,
    OF_EVERY_JOB,
    measured_types,
    net_notes,
    types_in,
    vgg11s,
)
from relusym.records.fields import images_of

ORIGIN = ("relusym", "torch", "python", "device")
COLUMNS = ["made", "kind", "records", "left_out", "images", "settings", *ORIGIN, "precision", "hours"]
LAYOUT = Layout(
    "Provenance: what the tables and figures were made of",
    {"kind": "Kind of job", "relusym": "relusym", "torch": "torch", "hours": "Hours in all"},
    {"hours": "{:.3f}"},
)


def select(settings: Settings) -> Selection:
    """`made`: each table and figure → ids of the types whose records are in it (None: all records); notes."""
    made = {
        name: types_in(finding.select(settings))
        for name, finding in declared().items()
        if finding.exists(settings) and finding.reads and finding.section not in (TABLE.section, BEYOND)
    }
    return {"made": made, "notes": vgg11s(settings, merged=False)["notes"]}


def select_beyond(settings: Settings) -> Selection:
    """Like `select`, for what is beyond the paper; `models`: all types that are measured."""
    models = measured_types(settings)
    made = {
        name: types_in(finding.select(settings))
        for name, finding in declared().items()
        if finding.exists(settings) and finding.is_beyond and finding != BEYOND_TABLE
    }
    return {"models": models, "made": made, "notes": net_notes(settings, models, merged=False)}


TABLE = Table(__name__, LAYOUT, reads=(*MERGES, "flipped_training", "theory"), select=select, **OF_EVERY_JOB)
BEYOND_NAMED = {"name": "beyond_provenance", "order": len(MEASUREMENTS) + 1, **OF_ALL_MEASURED}
BEYOND_TABLE = Table(__name__, LAYOUT, reads=(*MERGES, *MEASUREMENTS), select=select_beyond, **BEYOND_NAMED)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row for each table or figure, kind and origin (several where pieces come from different machines).

    Columns: made, kind, records, left_out (records that aren't ok), images (their name), settings (the beginning of the
    SHA-256 of all their settings), relusym, torch, python, device, precision, hours (the total of their jobs).
    """
    sources = {
        record["inputs"]["data"]: images
        for record in chain(*inputs.values())
        if (images := images_of(record)) and record["inputs"].get("data")
    }
    origin = ["made", "kind", "images", *ORIGIN, "precision"]
    rows = []
    for name, models in selection["made"].items():
        finding = declared()[name]
        # arrays of filters are the other output of a flip merge
        kinds = dict.fromkeys("flip_merge" if kind == "filters" else kind for kind in finding.reads)
        of_models = chosen(inputs, {} if models is None else {"models": models})
        records = chain(*(of_models.get(kind, []) for kind in kinds))
        rows += [{"made": finding.label} | _described(record, sources) for record in records]
    described = pd.DataFrame(rows, columns=[*origin, "left_out", "settings", "hours"])
    table = described.groupby(origin, sort=False).agg(
        records=("left_out", "size"),
        left_out=("left_out", "sum"),
        settings=("settings", lambda texts: sha256("\n".join(sorted({*texts})).encode()).hexdigest()[:8]),
        hours=("hours", "sum"),
    )
    return table.reset_index()[COLUMNS]


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    return ["Settings: the beginning of the SHA-256 of all settings in the records", *selection["notes"]]


def _described(record: Record, sources: dict[str, str]) -> Record:
    """A record's origin; a merge of a net that is left out has no name of its images, but may have their digest."""
    data = record.get("inputs", {}).get("data")
    return {
        "kind": record["kind"],
        "left_out": record.get("status", "ok") != "ok",
        "images": images_of(record) or sources.get(data, ""),
        "settings": json.dumps(record["settings"], sort_keys=True),
        **{field: record.get("code", {}).get(field, "") for field in ORIGIN},
        "precision": record.get("precision") or "",
        "hours": record.get("cost", {}).get("seconds", 0.0) / 3600,
    }
