"""Whether a record is current, and if not, why: one decision for all kinds of jobs, from what the record says alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from relusym.training.recipe import Recipe

Record = dict[str, Any]

# What a key means that a record hasn't got, so that a new key outdates nothing.
DEFAULTS: Record = {
    "symmetry": "horizontal_flip",
    "merging": {"matching": "activation", "starts": 1},
    "network": {"architecture": "vgg11", "group_convs": 0, "shortcut": "conv"},
    "training": {key: field.default for key, field in Recipe.model_fields.items() if not field.is_required()},
    "data": {"size": None, "invariant_to": "horizontal_flip"},
}


def difference(made: Any, wanted: Any, default: Any = DEFAULTS, path: str = "") -> str | None:
    """Where two settings differ first, such as "training.epochs"; None if they are the same.

    A key that is absent from either counts as its default.
    """
    if not (isinstance(made, dict) and isinstance(wanted, dict)):
        if isinstance(made, list) and isinstance(wanted, list) and len(made) == len(wanted):
            pairs = enumerate(zip(made, wanted, strict=True))
            return next(
                (found for i, (a, b) in pairs if (found := difference(a, b, DEFAULTS, f"{path}{i}."))), None
            )
        return None if made == wanted else path.rstrip(".")
    for key in dict.fromkeys([*wanted, *made]):
        below = default.get(key) if isinstance(default, dict) else None
        if key == "start":  # the settings of an earlier stage
            below = DEFAULTS
        values = [settings.get(key, below) for settings in (made, wanted)]
        if found := difference(*values, below, f"{path}{key}."):
            return found
    return None


def stale(
    record: Record | None,
    wanted: Record,
    *,
    checkpoints: Sequence[str | None] = (),
    filters: str | None = None,
    weights: Mapping[str, str] | None = None,
) -> str | None:
    """Why a record isn't current; None if it is.

    Args:
        record: None if there is none.
        wanted: the settings that it has to be made with.
        checkpoints: of a merge, for each of its nets the hash that the net's train record gives (None: it has none).
        filters: the hash of the file of filters beside a flip merge's record; None if the file is missing.
        weights: the hashes of the local files, by name, that a net's weights are read from.
    """
    if record is None:
        return "missing"
    if where := difference(record["settings"], wanted):
        return f"made with another {where}"
    if record.get("status") == "absent":
        return "what it needs couldn't be had"
    for made, now in zip(
        record["inputs"].get("checkpoints", []) if checkpoints else [], checkpoints, strict=False
    ):
        if now is not None and made != now:
            return "made from another checkpoint than its net's record names"
    for name, now in (weights or {}).items():
        if record["inputs"].get("files", {}).get(name) != now:
            return f"its file of weights {name} has changed"
    if record["kind"] == "flip_merge" and record["outputs"]["filters"] != filters:
        return "its file of filters is missing or another merge's"
    return None
