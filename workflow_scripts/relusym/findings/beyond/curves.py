"""The whole line between a net and its aligned flipped self, and between two nets."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Table, np, pd
from relusym.findings.frames import once, summary
from relusym.findings.layout import Layout
from relusym.findings.print_style import COLUMN_WIDTH, empty_drawing, legend_above, panels_of
from relusym.findings.selection import beyond, types_merged
from relusym.records.fields import nets_of

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
TABLE = Table(__name__, LAYOUT, **beyond("curves", order=3))
FIGURE = Figure(__name__, name="curves_figure", csvs=(".csv",), **beyond("curves", order=3))
KEY = ["model_1", "model_2", "way"]


def above_the_line(values: Sequence[float]) -> np.ndarray:
    """Each value minus the straight line from the first value to the last, (points,)."""
    values = np.asarray(values, float)
    return values - np.linspace(values[0], values[-1], len(values))


def _curve(record: Record) -> dict[str, object]:
    """The nets of a curve: model_1, model_2 (empty: its flipped self), seed, seed_2."""
    (model, seed), (other, seed_2) = [*nets_of(record), ("", None)][:2]
    return {"model_1": model, "model_2": other, "seed": seed, "seed_2": seed_2}


def by_curve(records: Sequence[Record]) -> pd.DataFrame:
    """One row per curve and way: model_1, model_2 (empty: its flipped self), way, seed, seed_2, ok, `QUANTITIES`.

    The barrier at a point is the accuracy's distance below the straight line between the endpoints, as a share of their
    mean, which in the middle is equation (4); a loss barrier is the loss's distance above its line.
    """
    rows = []
    for record in once(records):
        for way in WAYS:
            row = _curve(record) | {"way": way, "ok": record["status"] == "ok"}
            if row["ok"]:
                accuracy, loss = (np.array(record["curve"][way][metric]) for metric in ("accuracy", "loss"))
                barrier = -above_the_line(accuracy) / max((accuracy[0] + accuracy[-1]) / 2, 1e-12)
                loss_barrier, last, largest = above_the_line(loss), len(barrier) - 1, barrier.max()
                halfway, place = barrier[last // 2], barrier.argmax() / last if largest > 1e-9 else np.nan
                losses = loss_barrier[last // 2], loss_barrier.max()
                row |= zip(QUANTITIES, (halfway, largest, largest - halfway, place, *losses), strict=True)
            rows.append(row)
    return pd.DataFrame(rows, columns=[*KEY, "seed", "seed_2", "ok", *QUANTITIES])


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type or pair of types and way of merging, mean and standard deviation over curves, n, left_out."""
    rows = [(*pair, way) for pair in types_merged(selection) for way in WAYS]
    means = summary(by_curve(inputs["curves"]), KEY, rows, list(QUANTITIES))
    return means.assign(way=means["way"].map({way: label for way, (label, _) in WAYS.items()}))


def points(records: Sequence[Record]) -> pd.DataFrame:
    """One row per curve, way of merging and point: model_1, model_2, seed, way, share of the way, accuracy, loss."""
    columns = [*KEY, "seed", "share", "accuracy", "loss"]
    curves = [pd.DataFrame(columns=columns)]
    for record in once(records):
        for way in WAYS if record["status"] == "ok" else ():
            curve = pd.DataFrame(record["curve"][way]).assign(**_curve(record), way=way)
            curves.append(curve.assign(share=np.linspace(0, 1, len(curve)))[columns])
    return pd.concat(curves[1:] or curves)


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """Accuracy above loss, one column per type or pair; thin lines are curves, thick ones means; and the numbers."""
    curves, columns, names = points(inputs["curves"]), types_merged(selection), selection["names"]
    if curves.empty:
        return empty_drawing("no curves"), curves
    width = max(COLUMN_WIDTH, 1.3 * len(columns))
    drawing, panels = panels_of(2.9, 2, len(columns), width=width, sharex=True, sharey="row")
    for (first, second), column in zip(columns, panels.T, strict=True):
        shown = curves[(curves["model_1"] == first) & (curves["model_2"] == second)]
        for panel, metric in zip(column, ("accuracy", "loss"), strict=True):
            for way, (label, colour) in WAYS.items():
                lines = shown[shown["way"] == way].pivot_table(metric, "share", "seed")
                panel.plot(lines.index, lines, color=colour, linewidth=0.5, alpha=0.5)
                panel.plot(lines.index, lines.mean(axis=1), color=colour, linewidth=1.5, label=label)
            panel.axvline(0.5, color="0.85", linewidth=0.8, zorder=0)
        other = names.get(second, second) if second else "its flipped self"
        column[0].set_title(f"{names.get(first, first)},\n{other}", fontsize=7)
    for panel, label in zip(panels[:, 0], ("Accuracy", "Loss"), strict=True):
        panel.set_ylabel(label)
    drawing.supxlabel("Share of the way from one net to the other")
    legend_above(drawing, panels[0, 0], 2)
    return drawing, curves
