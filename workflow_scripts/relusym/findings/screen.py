"""What a run ends with on the screen: the tables that were asked for, Table 2 in words, and where the rest lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from relusym.findings import Table, declared, pd
from relusym.findings.layout import human_table, number

HALF = 0.5


def at_end(names: Sequence[str], folder: Path, models: Mapping[str, str], columns: int = 120) -> str:
    """The tables and figures named, as text; a table that is wider than `columns` by its path alone.

    "all" names Table 2 and the figure of all barriers, and where the others are. `folder` is of the scale's results,
    `models` what tables call each type of net.
    """
    every = "all" in names
    parts = []
    for name in ["table2", "barriers"] if every else names:
        finding = declared().get(name)
        if isinstance(finding, Table):
            parts.append(_table(finding, folder, models, columns))
        elif finding:
            parts.append(f"Picture: {folder / 'figures' / name}.png")
    if every:
        parts.append(f"Everything: {folder}/tables and {folder}/figures")
    return "\n".join(parts)


def _table(table: Table, folder: Path, models: Mapping[str, str], columns: int) -> str:
    from tabulate import tabulate

    stem = folder / "tables" / table.name
    frame = pd.read_csv(stem.with_suffix(".csv"))
    ours = frame[[column for column in frame if not column.startswith("paper_")]]
    text = tabulate(
        human_table(ours, table.layout, models), "keys", "simple", showindex=False, disable_numparse=True
    )
    files = f"{stem}.md and .csv"
    if max(map(len, text.splitlines())) > columns:
        return f"{table.layout.title}: {files}"
    words = [in_words(frame, models)] if table.name == "table2" else []
    return "\n".join(["", table.layout.title, text, *filter(None, words), files])


def in_words(table2: pd.DataFrame, models: Mapping[str, str]) -> str:
    """The GCNN barriers of Table 2 in a sentence; empty if it lacks one of the types that are compared."""
    means = table2.set_index("model")["gcnn_barrier_mean"].dropna()
    if not {"cnn", "cnn_inv", "gcnn"} <= {*means.index}:
        return ""
    without, with_loss = means["cnn"], means["cnn_inv"]
    beside = (
        "less than half of" if with_loss < HALF * without else "below" if with_loss < without else "not below"
    )
    return (
        f"GCNN barrier, zero in a net that is equivariant in every layer: {models['cnn_inv']} {number(with_loss, 2)}, "
        f"{beside} the {models['cnn']}'s {number(without, 2)}; {models['gcnn']} {number(means['gcnn'], 2)}."
    )
