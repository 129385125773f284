"""Readings of the paper's invariance loss: accuracy and invariance error of nets trained with each of them."""

from __future__ import annotations

from relusym import paper_values
from relusym.findings import Inputs, Selection, Table, frames, pd
from relusym.findings.layout import Layout
from relusym.findings.selection import beyond

HEADINGS = {
    "accuracy": "Accuracy",
    "test": "Invariance error, test images",
    "train": "Invariance error, training images",
    "crops": "Invariance error, training crops",
}
LAYOUT = Layout("Readings of the invariance loss", HEADINGS)
TABLE = Table(__name__, LAYOUT, **beyond("invariance_errors", order=10, merged=False))


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type: means and standard deviations over nets, n, left_out."""
    paths = {name: [f"invariance_error.{name}"] for name in HEADINGS} | {"accuracy": ["accuracy.net"]}
    nets = frames.measured(inputs["invariance_errors"], ["model", "seed"], paths)
    return frames.summary(nets, ["model"], selection["models"], [*HEADINGS])


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    paper = paper_values.table(2).set_index("model").loc["cnn_inv"]
    error, accuracy = (
        f"{paper[f'{name}_mean']:.3g} ± {paper[f'{name}_std']:.1g}"
        for name in ("invariance_error", "accuracy")
    )
    return [
        f"The paper's CNN + inv-loss: invariance error {error}, accuracy {accuracy}; over which images isn't said",
        *frames.notes(inputs, selection),
    ]
