"""Tables 3 and 5: all that was measured of each ResNet, beside the paper's values.

about:
    models: id → {name, image_size, trained_by_authors, self_supervised, paper}, in order; `paper` is the row of the
        paper's Table 5 that it stands beside, or None.
    absent: id → why there is no net of a type.
    notes
"""

from collections.abc import Iterator
from itertools import chain

import pandas as pd

from relusym import paper_values
from relusym.findings import About, Inputs, Record, agreement, measurements
from relusym.findings.frames import nets, summary
from relusym.findings.layout import Layout

LAYOUT = Layout(
    "ResNets merged with their flipped selves",
    {
        "method": "Training method",
        "name": "Name",
        "trained_by_authors": "Trained by the authors",
        "self_supervised": "Self-supervised",
        "image_size": "Image size",
        "invariance_error": "Invariance Error",
        "accuracy": "Accuracy",
        "flip_accuracy": "Flip-Accuracy",
        "halfway_accuracy_no_repair": "Halfway Accuracy, no REPAIR",
        "halfway_accuracy": "Halfway Accuracy",
        "gcnn_barrier_no_repair": "GCNN Barrier, no REPAIR",
        "gcnn_barrier": "GCNN Barrier",
    },
)


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """The columns of the paper's CSV with the type's name and each mean's `…_std`, n, left_out, then the paper's.

    One row for each of `models` of which a net is measured.

    Raises:
        UserError: an ok record lacks a measurement (named), is given twice, or doesn't go with the others.
    """
    models, quantities = about["models"], list(measurements.FLIP_MERGE)
    found = summary(nets(inputs, [], quantities), ["model"], models, quantities)
    found = found[found["n"] > 0].reset_index(drop=True)
    found.columns = found.columns.str.removesuffix("_mean")
    shown = [models[model] for model in found["model"]]
    facts = {"method": found.pop("model"), "name": [one["name"] for one in shown]}
    for flag in ("trained_by_authors", "self_supervised"):
        facts[flag] = ["yes" if one[flag] else "no" for one in shown]
    facts["image_size"] = [one["image_size"] for one in shown]
    paper = paper_values.table(5).set_index("method")[quantities].add_prefix("paper_")
    paper = paper.reindex([one["paper"] for one in shown]).reset_index(drop=True)
    return pd.concat([pd.DataFrame(facts), found, paper], axis=1)


def notes(inputs: Inputs, about: About) -> list[str]:
    """The usual lines, how long trainings waited for images, and what is left out, why."""
    waits = [record.get("data_wait_share") for record in inputs["train"]]
    waits = [wait for wait in waits if wait is not None]
    return [
        *agreement.notes(inputs, about),
        *([f"Trainings waited for images {max(waits):.1%} of the time at most"] if waits else []),
        *(f"{what} is left out: {reason}" for what, reason in left_out(inputs, about)),
    ]


def left_out(inputs: Inputs, about: About) -> Iterator[tuple[str, str]]:
    """(a type, or one net of several, why it is left out), each once."""
    yield from about.get("absent", {}).items()
    seen = set()
    for record in chain(inputs["train"], inputs["flip_merge"]):
        model, seed = net = record["model"], record["seed"]
        if record["status"] != "ok" and model not in about.get("absent", {}) and net not in seen:
            seen.add(net)
            yield (model if _is_only_one(inputs, model) else f"{model}-{seed}"), _reason(record)


def _is_only_one(inputs: Inputs, model: str) -> bool:
    return len({record["seed"] for record in chain(*inputs.values()) if record["model"] == model}) == 1


def _reason(record: Record) -> str:
    return record.get("reason") or f"it is {record['status']}"
