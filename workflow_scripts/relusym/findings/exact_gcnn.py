"""Exact GCNNs made of trained nets, beside the nets, test-time augmentation and the same fine-tuning of either.

about: models (ids, in order), names, notes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from relusym.findings import About, Inputs, Record
from relusym.findings.agreement import check_agreement
from relusym.findings.evidence import is_higher
from relusym.findings.frames import summary, tidy
from relusym.findings.layout import Layout
from relusym.findings.paired import paired
from relusym.findings.print_style import COLUMN_WIDTH, LINES, label_rows, legend_above, plain_axes

ACCURACIES = {
    "net": "Net",
    "test_time": "Net, both orientations",
    "halfway": "Halfway, REPAIR",
    "exact": "Exact GCNN",
    "fine_tuned": "Net, fine-tuned",
    "fine_tuned_test_time": "Net, fine-tuned, both orientations",
    "exact_fine_tuned": "Exact GCNN, fine-tuned",
    "from_scratch": "Its mixture, from scratch",
}
MEASURED = {
    "free": "Free parameters, share",
    "fixed": "Fixed channels, share",
    "error_net": "Invariance error",
    "error_exact": "… of the exact GCNN",
}
LAYOUT = Layout("Exact GCNNs made of trained nets: accuracies", {**ACCURACIES, **MEASURED})
# what is compared: heading → the one, the other
COMPARED = {
    "exact GCNN − net": ("exact", "net"),
    "exact GCNN − net, both fine-tuned": ("exact_fine_tuned", "fine_tuned"),
    "… − net over both orientations, both fine-tuned": ("exact_fine_tuned", "fine_tuned_test_time"),
    "mixture from scratch − net": ("from_scratch", "net"),
}


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row a net: model, seed, ok, the quantities of `ACCURACIES` and `MEASURED`; NaN where there are none."""
    rows = []
    for record in records:
        row = {"model": record["model"], "seed": record["seed"], "ok": record["status"] == "ok"}
        if row["ok"]:
            counts = [(of["fixed"], of["fixed"] + of["swapped"]) for of in record["representations"].values()]
            fixed, channels = np.sum(counts, axis=0)
            row |= record["accuracy"]
            row |= {
                "free": record["parameters"]["exact"] / record["parameters"]["net"],
                "fixed": fixed / channels,
                "error_net": record["invariance_error"]["net"],
                "error_exact": record["invariance_error"]["exact"],
            }
        rows.append(row)
    return tidy(rows).reindex(columns=["model", "seed", "ok", *ACCURACIES, *MEASURED])


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a type, mean and standard deviation over its nets, n, left_out."""
    check_agreement(inputs)
    return summary(by_net(inputs["exact_gcnn"]), ["model"], about["models"], [*ACCURACIES, *MEASURED])


def gains(records: Sequence[Record], models: Sequence[str]) -> pd.DataFrame:
    """One row a type and comparison of `COMPARED`: model, comparison, gain in accuracy, 95% interval (low, high), n."""
    nets, rows = by_net(records), []
    for model in models:
        own = nets[(nets["model"] == model) & nets["ok"]]
        for comparison, (one, other) in COMPARED.items():
            differences = (own[one] - own[other]).dropna().to_numpy(float)
            if differences.size:
                apart = one == "from_scratch"
                found = is_higher(trained_apart(own, model), one, other) if apart else paired(differences)
                rows.append((model, comparison, differences.mean(), found.low, found.high, differences.size))
    return pd.DataFrame(rows, columns=["model", "comparison", "gain", "low", "high", "n"])


def trained_apart(nets: pd.DataFrame, model: str) -> dict[str, np.ndarray]:
    """A type's accuracies, and those of its mixtures trained from scratch, which share no randomness with its nets."""
    own = nets[nets["model"] == model].dropna(subset=["from_scratch", "net"])
    return {key: own[key].to_numpy(float) for key in ("from_scratch", "net")}


def draw(inputs: Inputs, about: About) -> tuple[Figure, pd.DataFrame]:
    """What an exact GCNN gains or loses, by type, with 95% intervals over nets; and the numbers."""
    check_agreement(inputs)
    models, found = about["models"], gains(inputs["exact_gcnn"], about["models"])
    drawn = Figure(figsize=(COLUMN_WIDTH, 1.1 + 0.5 * len(models)), layout="constrained")
    axes = drawn.subplots()
    for place, (comparison, (colour, marker)) in enumerate(zip(COMPARED, LINES[::2], strict=False)):
        own = found[found["comparison"] == comparison]
        y = own["model"].map(models.index).to_numpy(float) + 0.17 * (place - 1.5)
        off = np.nan_to_num(np.abs(own[["low", "high"]].to_numpy(float).T - own["gain"].to_numpy(float)))
        axes.errorbar(
            *(own["gain"], y), xerr=off, fmt=marker, color=colour, markersize=4, linewidth=1, label=comparison
        )
    label_rows(axes, [about["names"].get(model, model) for model in models])
    axes.set_xlabel("Difference in accuracy, mean and 95% interval over nets", fontsize=8)
    plain_axes(axes)
    legend_above(drawn, axes, 2)
    return drawn, found
