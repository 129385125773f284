"""What a result depends on, as a few letters of its path: other settings give another path, so none are compared.

Keys with the value in `DEFAULTS` are left out of the fingerprint, so that a new key at its default changes no path.
`DEFAULTS` has the values of keys that a record lacks. It is frozen, and independent of the config's defaults: if one of
those changes, records with the old value keep their paths, and the new value becomes part of the fingerprint. A new key
is entered here with the value that describes what was done before the key existed.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

LENGTH = 8  # of a fingerprint, in hexadecimal digits
DEFAULTS: dict[str, Any] = {
    "symmetry": "horizontal_flip",
    "merging": {"matching": "activation", "starts": 1},
    "network": {
        "architecture": "vgg11",
        "group_convs": 0,
        "shortcut": "conv",
        "activation": "relu",
        "pooling": "max",
    },
    "training": {
        "objective": "supervised",
        "schedule": "linear",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "warmup_epochs": 0,
        "optimizer": "sgd",
        "crop_padding": 0,
        "augmentation": True,
        "invariance_loss": "mean_norm",
        "invariance_weight": 1.0,
        "invariance_from": None,
        "precision": "auto",
        "sync_batch_norm": False,
        "processes": 1,
        "dimensions": 2048,
        "bottleneck": 512,
    },
    "data": {"size": None, "invariant_to": "horizontal_flip", "normalisation": None},
}


def non_default(settings: Any, defaults: Any = DEFAULTS) -> Any:
    """Settings without the keys at their defaults; a whole number is an int, however it was written."""
    if isinstance(settings, dict):
        below = defaults if isinstance(defaults, dict) else {}
        kept = {}
        for key, value in settings.items():
            whole = key == "start"  # the settings of an earlier stage
            short = non_default(value, DEFAULTS if whole else below.get(key))
            at_default = key in below and short == ({} if isinstance(value, dict) else below[key])
            if not at_default:
                kept[key] = short
        return kept
    if isinstance(settings, list | tuple):
        return [non_default(each) for each in settings]
    return int(settings) if isinstance(settings, float) and settings.is_integer() else settings


def fingerprint(settings: dict[str, Any]) -> str:
    """The fingerprint of a job's settings, including those of the nets that it reads."""
    text = json.dumps(non_default(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def differences(
    settings: Any,
    others: Any,
    *,
    without: frozenset[str] = frozenset(),
    defaults: Any = DEFAULTS,
    path: str = "",
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key in which two settings differ, such as "training.epochs", and both values. An absent key has its
    default (None if there is none); keys in `without` are ignored."""
    if not (isinstance(settings, dict) and isinstance(others, dict)):
        if settings != others:
            yield path, settings, others
        return
    for key in dict.fromkeys([*others, *settings]):
        if key not in without:
            below = DEFAULTS if key == "start" else defaults.get(key) if isinstance(defaults, dict) else None
            values = (each.get(key, below) for each in (settings, others))
            yield from differences(*values, without=without, defaults=below, path=f"{path}.{key}".lstrip("."))
