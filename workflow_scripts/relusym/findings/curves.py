"""The whole line between a net and its aligned flipped self, and between two nets.

about: models (ids, in order), pairs (of ids, in order), names, notes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from relusym.findings import About, Inputs, Record
from relusym.findings.agreement import check_agreement
from relusym.findings.frames import once, summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import COLUMN_WIDTH, empty_figure, legend_above, plain_axes

WAYS = {"plain": ("no REPAIR", "#D55E00"), "repaired": ("REPAIR", "#0072B2")}
QUANTITIES = {
    "halfway": "Barrier halfway",
    "largest": "Largest barrier",
    "excess": "By how much above halfway",
    "place": "Where",
    "loss_halfway": "Loss barrier halfway",
    "loss_largest": "Largest loss barrier",
}
LAYOUT = Layout("Where on the line the barrier is largest", {"way": "Merged", **QUANTITIES})
KEY = ["model_1", "model_2", "way"]


def above_the_line(values: Sequence[float]) -> np.ndarray:
    """By how much each value is above the straight line from the first to the last, (points,)."""
    values = np.asarray(values, float)
    return values - np.linspace(values[0], values[-1], len(values))


def by_curve(records: Sequence[Record]) -> pd.DataFrame:
    """One row a curve and way of merging.

    Columns: model_1, model_2 (empty: its flipped self), way, seed, seed_2, ok, `QUANTITIES`.

    The barrier at a point is what the accuracy lacks of the straight line between the endpoints' as a share of their
    mean, which is equation (4) in the middle; of losses, what is above the line.
    """
    rows = []
    for record in once(records):
        for way in WAYS:
            row = dict(zip(KEY, (*_models(record), way), strict=True)) | {
                "seed": _seed(record),
                "seed_2": record.get("seed_2"),
                "ok": record["status"] == "ok",
            }
            if row["ok"]:
                accuracy, loss = (np.array(record["curve"][way][metric]) for metric in ("accuracy", "loss"))
                barrier = -above_the_line(accuracy) / max((accuracy[0] + accuracy[-1]) / 2, 1e-12)
                middle, of_loss = (len(barrier) - 1) // 2, above_the_line(loss)
                row |= {
                    "halfway": barrier[middle],
                    "largest": barrier.max(),
                    "excess": barrier.max() - barrier[middle],
                    "place": barrier.argmax() / (len(barrier) - 1) if barrier.max() > 1e-9 else np.nan,
                    "loss_halfway": of_loss[middle],
                    "loss_largest": of_loss.max(),
                }
            rows.append(row)
    return pd.DataFrame(rows, columns=[*KEY, "seed", "seed_2", "ok", *QUANTITIES])


def types(about: About) -> list[tuple[str, str]]:
    """Who is merged with whom; empty: with its flipped self."""
    return [*((model, "") for model in about["models"]), *map(tuple, about["pairs"])]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a type or pair of types and way of merging, mean and standard deviation over curves, n, left_out."""
    check_agreement(inputs)
    rows = [(*of, way) for of in types(about) for way in WAYS]
    found = summary(by_curve(inputs["curves"]), KEY, rows, list(QUANTITIES))
    return found.assign(way=found["way"].map({way: label for way, (label, _) in WAYS.items()}))


def points(records: Sequence[Record]) -> pd.DataFrame:
    """One row a curve, way of merging and point: model_1, model_2, seed, way, share of the way, accuracy, loss."""
    found = [
        pd.DataFrame(record["curve"][way]).assign(
            **dict(zip(KEY, (*_models(record), way), strict=True)),
            seed=_seed(record),
            share=np.linspace(0, 1, len(record["curve"][way]["accuracy"])),
        )
        for record in once(records)
        if record["status"] == "ok"
        for way in WAYS
    ]
    columns = [*KEY, "seed", "share", "accuracy", "loss"]
    return pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """Accuracy above loss, a column a type or pair: thin lines are single curves, thick ones means; and the numbers."""
    check_agreement(inputs)
    found, columns, names = points(inputs["curves"]), types(about), about["names"]
    if found.empty:
        return empty_figure("no curves"), found
    drawn = Figure(figsize=(max(COLUMN_WIDTH, 1.3 * len(columns)), 2.9), layout="constrained")
    panels = drawn.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for (first, second), column in zip(columns, panels.T, strict=True):
        own = found[(found["model_1"] == first) & (found["model_2"] == second)]
        for panel, metric in zip(column, ("accuracy", "loss"), strict=True):
            for way, (label, colour) in WAYS.items():
                lines = own[own["way"] == way].pivot_table(metric, "share", "seed")
                panel.plot(lines.index, lines, color=colour, linewidth=0.5, alpha=0.5)
                panel.plot(lines.index, lines.mean(axis=1), color=colour, linewidth=1.5, label=label)
            panel.axvline(0.5, color="0.85", linewidth=0.8, zorder=0)
        other = names.get(second, second) if second else "its flipped self"
        column[0].set_title(f"{names.get(first, first)},\n{other}", fontsize=7)
    for panel, label in zip(panels[:, 0], ("Accuracy", "Loss"), strict=True):
        panel.set_ylabel(label, fontsize=8)
    drawn.supxlabel("Share of the way from one net to the other", fontsize=8)
    plain_axes(*panels.flat)
    legend_above(drawn, panels[0, 0], 2)
    return drawn, found


def _models(record: Record) -> tuple[str, str]:
    return (record["model"], "") if "model" in record else (record["model_1"], record["model_2"])


def _seed(record: Record) -> int:
    return record.get("seed", record.get("seed_1"))
