"""How a table is laid out, written as CSV, Markdown, LaTeX and HTML, and shown at the end of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from relusym.findings import Table, declared, pd
from relusym.record_types import FAR_BELOW_ZERO
from relusym.whole_files import write_text

COMMON = {"model": "Model", "model_1": "Model 1", "model_2": "Model 2", "n": "n", "left_out": "Left out"}
STYLE = """body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222 }
h1 { font-size: 1.2em }
table { border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222 }
thead { border-bottom: 1px solid #222 }
th, td { padding: 0.25em 0.6em; vertical-align: top; font-variant-numeric: tabular-nums }
tbody tr:nth-child(even) { background: #f3f5f7 }
ul { color: #555; padding-left: 1.2em }
"""
LATEX_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"σ": r"$\sigma$", "ρ": r"$\rho$", "−": "$-$", "½": r"$\frac{1}{2}$"}
)


@dataclass(frozen=True)
class Layout:
    """What a table looks like; columns are named without `_mean`."""

    title: str  # one line: the heading in Markdown and HTML, the caption in LaTeX
    headings: Mapping[str, str] = field(default_factory=dict)  # of columns that aren't in `COMMON`
    formats: Mapping[str, str | Callable[[float], str]] = field(default_factory=dict)  # as for `str.format`
    wide: Mapping[str, float] = field(default_factory=dict)  # of columns of text: share of a line in LaTeX

    def heading(self, column: str) -> str:
        return {**COMMON, **self.headings}.get(column, column.replace("_", " ").capitalize())


def number(value: float, digits: int, latex: bool = False) -> str:
    """`value` to `digits` significant digits, as in the paper: 0.901 but 4.00e-2 (in LaTeX with a \\cdot)."""
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if -1 <= exponent < digits:
        return f"{value:.{digits - 1 - exponent}f}"
    return rf"{mantissa} \cdot 10^{{{exponent}}}" if latex else f"{mantissa}e{exponent}"


def mean_and_std(mean: float, std: float, latex: bool = False) -> str:
    """`0.901 ± 2.1e-3`; the mean alone where there is no std (one net), nothing where there is no mean."""
    if pd.isna(mean):
        return ""
    text = number(mean, 3, latex)
    if not pd.isna(std):
        text += (r" \pm " if latex else " ± ") + number(std, 2, latex)
    return f"${text}$" if latex else text


def std_of(frame: pd.DataFrame, column: str) -> pd.Series | None:
    """The standard deviations of a column of means (NaN for the paper's where only ours are); None if it isn't one."""
    std = f"{column.removesuffix('_mean')}_std"
    if std in frame:
        return frame[std]
    return pd.Series(math.nan, frame.index) if std.removeprefix("paper_") in frame else None


def human_table(
    frame: pd.DataFrame, layout: Layout, names: Mapping[str, str], latex: bool = False
) -> pd.DataFrame:
    """`frame` as text: mean ± std in one cell, the paper's value beside it, types by their `names`."""
    cells = {
        _text(heading, latex): _cells(frame, column, layout, names, latex)
        for heading, column in _shown(frame, layout)
    }
    return pd.DataFrame(cells, dtype=object)


def write_table(
    frame: pd.DataFrame,
    stem: str | Path,
    layout: Layout,
    notes: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    endings: Sequence[str] = ("csv", "md"),
) -> None:
    """Write `frame` to files `stem`.csv, .md, .tex (booktabs) and .html, each whole or not at all; UserError if one
    can't be. `notes` are below the table; `names` are display names of ids in `model`, `model_1` and `model_2`."""
    names = names or {}
    writers = {
        "csv": lambda: csv(frame),
        "md": lambda: _markdown(frame, layout, names, notes),
        "tex": lambda: _latex(frame, layout, names, notes, Path(stem).name),
        "html": lambda: page(writers["md"]()),
    }
    for ending in endings:
        write_text(f"{stem}.{ending}", writers[ending]())


def csv(frame: pd.DataFrame) -> str:
    """`frame` as CSV, to ten digits: later ones may differ between machines."""
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.10g")


def _shown(frame: pd.DataFrame, layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield (heading, column) of each column shown: `…_std` is in its mean's cell, `paper_…` beside ours."""
    for column in frame.columns:
        if not column.startswith("paper_") and not column.endswith("_std"):
            heading = layout.heading(column.removesuffix("_mean"))
            yield heading, column
            if f"paper_{column}" in frame:
                yield f"{heading} (paper)", f"paper_{column}"


def _cells(
    frame: pd.DataFrame, column: str, layout: Layout, names: Mapping[str, str], latex: bool
) -> list[str]:
    values = frame[column]
    if (stds := std_of(frame, column)) is not None:
        return [mean_and_std(mean, std, latex) for mean, std in zip(values, stds, strict=True)]
    if column in ("model", "model_1", "model_2") and "name" not in frame:
        values = values.replace(names)
    form = layout.formats.get(column, "{:,}" if pd.api.types.is_numeric_dtype(values) else "{}")
    write = form if callable(form) else form.format
    return ["" if pd.isna(value) else _text(write(value), latex) for value in values]


def _text(text: str, latex: bool) -> str:
    return text.translate(LATEX_SPECIAL) if latex else text.replace("|", r"\|")


def _markdown(frame: pd.DataFrame, layout: Layout, names: Mapping[str, str], notes: Sequence[str]) -> str:
    how = {"index": False, "disable_numparse": True, "colalign": _alignment(frame, layout)}
    body = human_table(frame, layout, names).to_markdown(**how)
    return "\n".join([f"# {layout.title}", "", body, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _latex(
    frame: pd.DataFrame, layout: Layout, names: Mapping[str, str], notes: Sequence[str], label: str
) -> str:
    form = "".join(
        rf"p{{{layout.wide[column]}\linewidth}}" if column in layout.wide else side[0]
        for (_, column), side in zip(_shown(frame, layout), _alignment(frame, layout), strict=True)
    )
    cells = human_table(frame, layout, names, latex=True)
    lines = [
        r"% needs \usepackage{booktabs,adjustbox}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_text(layout.title, latex=True)}}}",
        rf"\label{{tab:{label}}}",
        r"\begin{adjustbox}{max width=\linewidth}",
        cells.to_latex(index=False, escape=False, column_format=form).rstrip(),
        r"\end{adjustbox}",
        *(rf"\par{{\footnotesize {_text(note, latex=True)}\par}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def page(markdown: str) -> str:
    """The Markdown of a table as a page of HTML for the report, which needs no other files and no scripts."""
    lines = markdown.splitlines()
    head, sides, *rows = [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]
    rules = ""
    for i, side in enumerate(sides, start=1):
        is_short = max((len(row[i - 1]) for row in rows), default=0) < 32
        rules += f"th:nth-child({i}), td:nth-child({i}) {{ text-align: {'right' if side[-1] == ':' else 'left'} }}\n"
        rules += f"td:nth-child({i}) {{ {'white-space: nowrap' if is_short else 'min-width: 24em'} }}\n"

    def row(cells: list[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>\n"

    title = escape(lines[0].removeprefix("# "))
    notes = "".join(f"<li>{escape(line[2:])}</li>\n" for line in lines if line.startswith("- "))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n{STYLE}{rules}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<table>\n<thead>\n{row(head, 'th')}</thead>\n<tbody>\n{''.join(row(cells, 'td') for cells in rows)}"
        f"</tbody>\n</table>\n<ul>\n{notes}</ul>\n</body>\n</html>\n"
    )


def _alignment(frame: pd.DataFrame, layout: Layout) -> list[str]:
    numeric = pd.api.types.is_numeric_dtype
    return ["right" if numeric(frame[column]) else "left" for _, column in _shown(frame, layout)]


def at_end(names: Sequence[str], folder: Path, models: Mapping[str, str], columns: int = 120) -> str:
    """The tables and figures in `names` as text; only the path of a table that is wider than `columns`.

    "all" stands for Table 2, the figure of all barriers, and the paths of the others. `folder` is that of the scale's
    results, `models` the names of types in tables.
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
    # nullable, so that a column of counts with a gap isn't read as floats
    frame = pd.read_csv(stem.with_suffix(".csv"), dtype_backend="numpy_nullable")
    ours = frame[[column for column in frame if not column.startswith("paper_")]]
    shown = human_table(ours, table.layout, models)
    text = tabulate(shown, "keys", "simple", showindex=False, disable_numparse=True)
    files = f"{stem}.md (with notes) and .csv"
    notes = stem.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    left_out = [note.removeprefix("- ") for note in notes if note.startswith("- ") and " left out: " in note]
    if max(map(len, text.splitlines())) > columns:
        return f"{table.layout.title}: {files}"
    words = [in_words(frame, models)] if table.name == "table2" else []
    return "\n".join(["", table.layout.title, text, *filter(None, words), *left_out, files])


def in_words(table2: pd.DataFrame, models: Mapping[str, str]) -> str:
    """The GCNN barriers of Table 2 in a sentence; empty if one of the compared types is missing, or if one is so far
    below zero that barriers mean little."""
    means = table2.set_index("model")["gcnn_barrier_mean"].dropna()
    if not {"cnn", "cnn_inv", "gcnn"} <= {*means.index} or means.min() < FAR_BELOW_ZERO:
        return ""
    without, with_loss = means["cnn"], means["cnn_inv"]
    beside = "below" if with_loss < without else "not below"
    beside = "less than half of" if with_loss < without / 2 else beside
    return (
        f"GCNN barrier, zero in a net that is equivariant in every layer: {models['cnn_inv']} {number(with_loss, 2)}, "
        f"{beside} the {models['cnn']}'s {number(without, 2)}; {models['gcnn']} {number(means['gcnn'], 2)}."
    )
