"""Exact GCNNs made from trained nets, beside the nets, test-time augmentation and the same fine-tuning of both."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Table, np, pd
from relusym.findings.evidence import is_higher, paired
from relusym.findings.frames import summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import label_rows, legend_above, lines, panels_of
from relusym.findings.selection import beyond

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
DECLARED = beyond("exact_gcnn", order=1, invariance=True)
TABLE = Table(__name__, LAYOUT, **DECLARED)
FIGURE = Figure(__name__, name="exact_gcnn_figure", csvs=(".csv",), **DECLARED)
# comparisons: heading → the accuracies that are subtracted
COMPARED = {
    "exact GCNN − net": ("exact", "net"),
    "exact GCNN − net, both fine-tuned": ("exact_fine_tuned", "fine_tuned"),
    "… − net over both orientations, both fine-tuned": ("exact_fine_tuned", "fine_tuned_test_time"),
    "mixture from scratch − net": ("from_scratch", "net"),
}


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row per net: model, seed, ok, the quantities of `ACCURACIES` and `MEASURED`; NaN where there are none."""
    rows = []
    for record in records:
        row = {"model": record["model"], "seed": record["seed"], "ok": record["status"] == "ok"}
        if row["ok"]:
            parameters, error = record["parameters"], record["invariance_error"]
            layers = pd.DataFrame(record["representations"].values())[["fixed", "swapped"]].sum()
            row = record["accuracy"] | row | {"error_net": error["net"], "error_exact": error["exact"]}
            row |= {"free": parameters["exact"] / parameters["net"], "fixed": layers["fixed"] / layers.sum()}
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=["model", "seed", "ok", *ACCURACIES, *MEASURED])


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type, mean and standard deviation over its nets, n, left_out."""
    return summary(by_net(inputs["exact_gcnn"]), ["model"], selection["models"], [*ACCURACIES, *MEASURED])


def gains(records: Sequence[Record], models: Sequence[str]) -> pd.DataFrame:
    """One row per type and comparison: model, comparison, gain (in accuracy), 95% interval (low, high), n."""
    nets, rows = by_net(records), []
    for model in models:
        nets_of_type = nets[(nets["model"] == model) & nets["ok"]]
        for comparison, (first, second) in COMPARED.items():
            differences = (nets_of_type[first] - nets_of_type[second]).dropna().to_numpy(float)
            if differences.size:
                evidence = paired(differences)
                if first == "from_scratch":
                    evidence = is_higher(trained_apart(nets_of_type, model), first, second)
                gain = differences.mean(), evidence.low, evidence.high, differences.size
                rows.append((model, comparison, *gain))
    return pd.DataFrame(rows, columns=["model", "comparison", "gain", "low", "high", "n"])


def trained_apart(nets: pd.DataFrame, model: str) -> dict[str, np.ndarray]:
    """A type's accuracies, and those of its mixtures trained from scratch, which share no randomness with its nets."""
    both = nets[nets["model"] == model].dropna(subset=["from_scratch", "net"])
    return {key: both[key].to_numpy(float) for key in ("from_scratch", "net")}


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """What an exact GCNN gains or loses, by type, with 95% intervals over nets; and the numbers."""
    models, gained = selection["models"], gains(inputs["exact_gcnn"], selection["models"])
    drawing, ((axes,),) = panels_of(1.1 + 0.5 * len(models))
    for place, (comparison, (colour, marker)) in enumerate(zip(COMPARED, lines(2), strict=False)):
        rows = gained[gained["comparison"] == comparison]
        x, y = rows["gain"], rows["model"].map(models.index).to_numpy(float) + 0.17 * (place - 1.5)
        off = np.nan_to_num(np.abs(rows[["low", "high"]].to_numpy(float).T - x.to_numpy(float)))
        axes.errorbar(x, y, xerr=off, fmt=marker, color=colour, markersize=4, linewidth=1, label=comparison)
    label_rows(axes, [selection["names"].get(model, model) for model in models])
    axes.set_xlabel("Difference in accuracy, mean and 95% interval over nets")
    legend_above(drawing, axes, 2)
    return drawing, gained
