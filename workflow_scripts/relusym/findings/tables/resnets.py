"""Tables 3 and 5: everything measured on each ResNet, beside the paper's values."""

from __future__ import annotations

from collections.abc import Callable

from relusym import paper_values
from relusym.findings import Inputs, Selection, Settings, Table, frames, pd
from relusym.findings.frames import FLIP_MERGE, nets, summary
from relusym.findings.layout import Layout
from relusym.findings.selection import net_notes

LAYOUT = Layout(
    "ResNets merged with their flipped selves",
    {
        "method": "Training method",
        "trained_by_authors": "Trained by the authors",
        "self_supervised": "Self-supervised",
        "invariance_error": "Invariance Error",
        "flip_accuracy": "Flip-Accuracy",
        "halfway_accuracy_no_repair": "Halfway Accuracy, no REPAIR",
        "halfway_accuracy": "Halfway Accuracy",
        "gcnn_barrier_no_repair": "GCNN Barrier, no REPAIR",
        "gcnn_barrier": "GCNN Barrier",
    },
)


def select(settings: Settings, models: list[str]) -> Selection:
    """Models by id: name, image_size, flags, and `paper`, its row of Table 5 or None; `absent`: id → why; notes."""
    absent = {model: reason for model, reason in settings.absent.items() if model in models}
    shown = {model: settings.shown(model) for model in models}
    return {"models": shown, "absent": absent, "notes": net_notes(settings, models, invariance=True)}


def _table(paper: int, models_of: Callable[[Settings], list[str]]) -> Table:
    return Table(
        __name__,
        LAYOUT,
        name=f"table{paper}",
        paper=paper,
        reads=("train", "flip_merge"),
        exists=lambda settings: settings.table("table5"),
        select=lambda settings: select(settings, models_of(settings)),
    )


TABLE3 = _table(3, lambda settings: settings.in_table3)
TABLE5 = _table(5, lambda settings: settings.table("table5"))


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type that has a net: name, means with `…_std`, n, left_out, then the paper's."""
    models, quantities = selection["models"], list(FLIP_MERGE)
    measured = summary(nets(inputs, [], quantities), ["model"], [*models], quantities)
    measured = measured[measured["n"] > 0].reset_index(drop=True)
    measured.columns = measured.columns.str.removesuffix("_mean")
    rows = [models[model] for model in measured["model"]]
    facts = {"method": measured.pop("model"), "name": [row["name"] for row in rows]}
    for flag in ("trained_by_authors", "self_supervised"):
        facts[flag] = ["yes" if row[flag] else "no" for row in rows]
    facts["image_size"] = [row["image_size"] for row in rows]
    paper = paper_values.table(5).set_index("method")[quantities].add_prefix("paper_")
    paper = paper.reindex([row["paper"] for row in rows]).reset_index(drop=True)
    return pd.concat([pd.DataFrame(facts), measured, paper], axis=1)


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    """The lines of `frames.notes`, and how long trainings waited for images."""
    waits = [wait for record in inputs["train"] if (wait := record.get("data_wait_share")) is not None]
    line = [f"Trainings waited for images {max(waits):.1%} of the time at most"] if waits else []
    return frames.notes(inputs, selection, *line)
