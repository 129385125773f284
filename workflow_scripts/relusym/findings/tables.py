"""Tables 1, 2 and 4 from records, beside the paper's values, and the table of costs."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from relusym.errors import UserError
from relusym.findings import paper_values
from relusym.records import write_whole

Record = dict[str, Any]

RESNET_FACTS = ("trained_by_authors", "self_supervised", "image_size")
HEADINGS = {
    "method": "Training method",
    "trained_by_authors": "Trained by the authors",
    "self_supervised": "Self-supervised",
    "image_size": "Image size",
    "flip_accuracy": "Flip-Accuracy",
    "halfway_accuracy_no_repair": "Halfway Accuracy, no REPAIR",
    "halfway_accuracy": "Halfway Accuracy",
    "gcnn_barrier_no_repair": "GCNN Barrier, no REPAIR",
    "model": "Model",
    "model_1": "Model 1",
    "model_2": "Model 2",
    "name": "Name",
    "description": "Description",
    "parameters": "Parameters",
    "accuracy": "Accuracy",
    "invariance_error": "Invariance Error",
    "gcnn_barrier": "GCNN Barrier",
    "barrier": "Barrier",
    "n": "n",
    "left_out": "Left out",
    "kind": "Kind of job",
    "jobs": "Jobs",
    "hours": "Hours in all",
    "median_s": "Median (s)",
    "max_s": "Longest (s)",
    "max_memory_mb": "Most memory (MB)",
    "table": "Table",
    "row": "Row",
    "quantity": "Quantity",
    "value": "Value",
    "difference": "Difference",
    "in_paper_stds": "In the paper's std",
    "in_standard_errors": "In standard errors (Welch)",
    "p_value": "p",
    "verdict": "Verdict",
    "reason": "Reason",
    "claim": "Claim",
    "source": "Where in the paper",
    "effect": "Effect",
    "effect_size": "Effect size",
    "measure": "Measure",
    "test": "Test",
    "p_corrected": "p, corrected",
    "p_rank": "p of a rank test",
    "p_rank_min": "Least p of a rank test",
    "remark": "Remark",
    "made": "Made",
    "records": "Records",
    "images": "Images",
    "settings": "Settings",
    "relusym": "relusym",
    "torch": "torch",
    "python": "Python",
    "device": "Device",
    "precision": "Precision",
    "statement": "Statement",
    "tested": "What was tested",
    "draws": "Draws",
    "largest_violation": "Largest violation",
    "counterfactual": "Where its assumptions fail",
    "holds": "Holds",
}
FORMATS = {
    "hours": "{:.3f}",
    "median_s": "{:.1f}",
    "max_s": "{:.1f}",
    "max_memory_mb": "{:.0f}",
    "difference": "{:+.2g}",
    "in_paper_stds": "{:+.1f}",
    "in_standard_errors": "{:+.1f}",
    "effect": "{:+.3g}",
    "effect_size": "{:+.2f}",
    "largest_violation": "{:.2g}",
    **dict.fromkeys(("p_value", "p_corrected", "p_rank", "p_rank_min"), "{:.2g}"),
}
STYLE = """body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222 }
h1 { font-size: 1.2em }
table { border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222 }
thead { border-bottom: 1px solid #222 }
th, td { padding: 0.25em 0.6em; vertical-align: top; font-variant-numeric: tabular-nums }
tbody tr:nth-child(even) { background: #f3f5f7 }
ul { color: #555; padding-left: 1.2em }
"""
WIDE = {"description": 0.45, "tested": 0.5, "counterfactual": 0.5}  # share of a line in LaTeX
LATEX_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"σ": r"$\sigma$", "ρ": r"$\rho$", "−": "$-$", "½": r"$\frac{1}{2}$"}
)


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record, one column a scalar, named by its path: `accuracy.net`, `settings.epochs`.

    Lists (permutations, histories) are left out; what a record hasn't got is NaN.
    """
    frame = pd.json_normalize(list(records))
    return frame.loc[
        :, [not frame[column].map(lambda value: isinstance(value, list)).any() for column in frame]
    ]


def table1(train_records: Sequence[Record], models: Sequence[str]) -> pd.DataFrame:
    """Table 1: model, name, description, parameters (counted in our nets), n, left_out, paper_parameters.

    One row for each of `models`, in their order. n counts the nets that trained well, left_out those that
    diverged or are degenerate.

    Raises:
        UserError: a record lacks its parameter count or is given twice, or nets of one type differ in size.
    """
    nets = _nets(train_records, ["model", "seed"], ["parameters"])
    for model, counts in nets.groupby("model")["parameters"]:
        if counts.nunique() > 1:
            raise UserError(
                f"the train records of {model} count {counts.min():.0f} to {counts.max():.0f} parameters: "
                "they come from different settings; delete those of the other setting"
            )
    sizes = nets.groupby("model")["parameters"].first().reindex(models)
    paper = paper_values.table(1).set_index("model").reindex(models)
    counted = _summary(nets, ["model"], list(models), [])
    return pd.DataFrame(
        {
            "model": list(models),
            "name": paper["name"].fillna(pd.Series(list(models), index=models)).to_list(),
            "description": paper["description"].fillna("").to_list(),
            "parameters": sizes.astype("Int64").array,
            "n": counted["n"],
            "left_out": counted["left_out"],
            "paper_parameters": paper["parameters"].astype("Int64").array,
        }
    )


def table2(
    train_records: Sequence[Record], flip_records: Sequence[Record], models: Sequence[str]
) -> pd.DataFrame:
    """Table 2: accuracy, relative invariance error and GCNN barrier (equation (4), with REPAIR) of each type.

    One row for each of `models`, in their order; columns are those of the paper's CSV (`…_mean` and the
    sample standard deviation `…_std`, NaN for n < 2), then n, left_out, then the paper's as `paper_…`. A net
    counts in n if both its train record and its flip-merge record are ok, in left_out otherwise.

    Raises:
        UserError: an ok record lacks a measurement (named), or a record is given twice.
    """
    nets = nets_measured(train_records, flip_records)
    summary = _summary(nets, ["model"], list(models), ["accuracy", "invariance_error", "gcnn_barrier"])
    return _beside_paper(summary, paper_values.table(2), ["model"])


def nets_measured(train_records: Sequence[Record], flip_records: Sequence[Record]) -> pd.DataFrame:
    """One row a net: model, seed, accuracy, invariance_error, gcnn_barrier, ok (both its records are).

    Raises:
        UserError: an ok record lacks a measurement (named), or a record is given twice.
    """
    key = ["model", "seed"]
    nets = pd.merge(
        _nets(train_records, key, ["accuracy", "invariance_error"]),
        _nets(flip_records, key, ["barrier.repaired"]).rename(columns={"barrier.repaired": "gcnn_barrier"}),
        on=key,
        how="outer",
        suffixes=("", "_flip"),
    )
    nets["ok"] = nets["ok"].eq(True) & nets.pop("ok_flip").eq(True)
    return nets


def table4(pair_records: Sequence[Record], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Table 4: barrier (equation (4), with REPAIR) between two different nets, one row for each of `pairs`.

    Columns as in `table2`; left_out counts the pairs of nets of which one is left out.

    Raises:
        UserError: an ok record lacks its barrier (named), or a record is given twice.
    """
    key = ["model_1", "model_2"]
    merged = pairs_measured(pair_records)
    return _beside_paper(
        _summary(merged, key, [tuple(pair) for pair in pairs], ["barrier"]), paper_values.table(4), key
    )


def pairs_measured(pair_records: Sequence[Record]) -> pd.DataFrame:
    """One row a pair of nets: model_1, model_2, seed_1, seed_2, barrier, ok.

    Raises:
        UserError: an ok record lacks its barrier (named), or a record is given twice.
    """
    merged = _nets(pair_records, ["model_1", "model_2", "seed_1", "seed_2"], ["barrier.repaired"])
    return merged.rename(columns={"barrier.repaired": "barrier"})


MEASURED_OF_RESNETS = {
    "invariance_error": "invariance_error",
    "accuracy": "accuracy.net",
    "flip_accuracy": "accuracy.flipped",
    "halfway_accuracy_no_repair": "accuracy.reset",
    "halfway_accuracy": "accuracy.repaired",
    "gcnn_barrier_no_repair": "barrier.reset",
    "gcnn_barrier": "barrier.repaired",
}


def table5(records: Sequence[Record], rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Tables 3 and 5: one row for each ResNet whose record is ok, in the order of `rows`, and the paper's beside it.

    Columns are those of the paper's CSV, `in_table3` aside, with the net's name, then the paper's as `paper_…`.

    Args:
        rows: row → what `ResNetSettings.shown` says of it.

    Raises:
        UserError: an ok record lacks a measurement (named), or a record is given twice.
    """
    nets = _nets(records, ["row"], list(MEASURED_OF_RESNETS.values())).set_index("row")
    shown = [row for row in rows if row in nets.index and nets.loc[row, "ok"]]
    about = pd.DataFrame(
        [{"method": row, **rows[row]} for row in shown], columns=["method", "name", *RESNET_FACTS, "paper"]
    )
    measured = nets.loc[shown, list(MEASURED_OF_RESNETS.values())].reset_index(drop=True)
    measured.columns = list(MEASURED_OF_RESNETS)
    paper = paper_values.table(5).set_index("method")[list(MEASURED_OF_RESNETS)]
    paper = paper.reindex(about["paper"]).reset_index(drop=True).add_prefix("paper_")
    for flag in ("trained_by_authors", "self_supervised"):
        about[flag] = about[flag].map({True: "yes", False: "no"})
    return pd.concat([about.drop(columns="paper"), measured, paper], axis=1)


def costs(benchmark_files: Iterable[str | Path]) -> pd.DataFrame:
    """What each kind of job cost: kind, jobs, hours (wall clock, in all), median_s, max_s, max_memory_mb.

    Args:
        benchmark_files: snakemake's `…/benchmarks/{kind}/*.tsv`; the folder's name is the kind. Missing and
            empty files are passed over, as are values that snakemake couldn't measure ("NA", "-").

    The memory is the largest resident set of one job, in MB as snakemake counts them (2²⁰ bytes).
    """
    rows = [
        (path.parent.name, row.get("s"), row.get("max_rss"))
        for path in map(Path, benchmark_files)
        if path.is_file()
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    ]
    runs = pd.DataFrame(rows, columns=["kind", "s", "max_rss"])
    runs[["s", "max_rss"]] = runs[["s", "max_rss"]].apply(pd.to_numeric, errors="coerce")
    table = (
        runs.dropna(subset=["s"])
        .groupby("kind", sort=False)
        .agg(
            jobs=("s", "size"),
            hours=("s", "sum"),
            median_s=("s", "median"),
            max_s=("s", "max"),
            max_memory_mb=("max_rss", "max"),
        )
    )
    table["hours"] /= 3600
    return table.reset_index()


def theory(theory_records: Sequence[Record]) -> pd.DataFrame:
    """One row a statement: statement, tested, draws, largest_violation, counterfactual, holds ("yes" or "no")."""
    columns = ["statement", "tested", "draws", "largest_violation", "counterfactual", "holds"]
    frame = tidy(theory_records)[columns]
    return frame.assign(holds=frame["holds"].map({True: "yes", False: "no"}))


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


def human_table(frame: pd.DataFrame, latex: bool = False) -> pd.DataFrame:
    """`frame` as strings to read: mean ± std in one cell, the paper's beside it, types by their names."""
    cells = {_text(heading, latex): _cells(frame, column, latex) for heading, column in _shown(frame)}
    return pd.DataFrame(cells, dtype=object)


def write_table(frame: pd.DataFrame, stem_path: str | Path, title: str, notes: Sequence[str]) -> None:
    """Write `frame` to `stem_path`.csv (full precision), .md, .tex (booktabs) and .html, each whole or not at all.

    Args:
        title: one line, the heading in Markdown and HTML, and the caption in LaTeX.
        notes: one line each, below the table: where the data come from, width, epochs, seeds.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    stem_path = Path(stem_path)
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n"),
        "md": _markdown(frame, title, notes),
        "tex": _latex(frame, stem_path.name, title, notes),
        "html": _html(frame, title, notes),
    }
    for ending, text in texts.items():
        with write_whole(stem_path.with_name(f"{stem_path.name}.{ending}")) as part:
            part.write_text(text, encoding="utf-8", newline="\n")


def _nets(records: Sequence[Record], key: list[str], measured: list[str]) -> pd.DataFrame:
    """Columns `key`, `measured` (floats) and `ok`, one row a record."""
    frame = tidy(records).reindex(columns=["kind", *key, "status", *measured])
    frame[measured] = frame[measured].apply(pd.to_numeric, errors="coerce")
    frame["ok"] = frame["status"].eq("ok")
    for field in measured:
        for _, record in frame[frame["ok"] & frame[field].isna()].iterrows():
            raise UserError(
                f"{_named(record, key)} lacks a number in '{field}': delete it, and it is made again"
            )
    for _, record in frame[frame.duplicated(key)].iterrows():
        raise UserError(f"{_named(record, key)} is given twice: keep one")
    return frame[[*key, *measured, "ok"]]


def _named(record: pd.Series, key: list[str]) -> str:
    return f"the {record['kind']} record of " + ", ".join(f"{field} {record[field]}" for field in key)


def _summary(nets: pd.DataFrame, key: list[str], wanted: list, quantities: list[str]) -> pd.DataFrame:
    """Columns `key`, `…_mean` and `…_std` of each quantity, n and left_out; one row for each of `wanted`."""
    index = pd.MultiIndex.from_tuples(wanted, names=key) if len(key) > 1 else pd.Index(wanted, name=key[0])
    ok = nets[nets["ok"]].groupby(key)
    columns = {}
    for quantity in quantities:
        columns[f"{quantity}_mean"] = ok[quantity].mean().reindex(index)
        columns[f"{quantity}_std"] = ok[quantity].std(ddof=1).reindex(index)
    n = ok.size().reindex(index, fill_value=0)
    columns["n"] = n
    columns["left_out"] = nets.groupby(key).size().reindex(index, fill_value=0) - n
    return pd.DataFrame(columns, index=index).reset_index()


def _beside_paper(summary: pd.DataFrame, paper: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    paper = paper.rename(columns={column: f"paper_{column}" for column in paper.columns if column not in key})
    return summary.merge(paper, on=key, how="left")


def _shown(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(heading, column) of each column to read: `…_std` goes into its mean's cell, `paper_…` beside ours."""
    for column in frame.columns:
        if not column.startswith("paper_") and not column.endswith("_std"):
            quantity = column.removesuffix("_mean")
            heading = HEADINGS.get(quantity, quantity)
            yield heading, column
            if f"paper_{column}" in frame:
                yield f"{heading} (paper)", f"paper_{column}"


def _cells(frame: pd.DataFrame, column: str, latex: bool) -> list[str]:
    values = frame[column]
    if column.endswith("_mean"):
        stds = frame[column.removesuffix("_mean") + "_std"]
        return [mean_and_std(mean, std, latex) for mean, std in zip(values, stds, strict=True)]
    if column in ("model", "model_1", "model_2") and "name" not in frame:
        names = paper_values.names()
        return [_text(names.get(value, value), latex) for value in values]
    if column == "paper_parameters":  # known to three digits only
        return ["" if pd.isna(value) else f"{value / 1e6:#.3g}M" for value in values]
    if column.removeprefix("paper_") in MEASURED_OF_RESNETS:  # of one net
        return [mean_and_std(value, math.nan, latex) for value in values]
    form = FORMATS.get(column, "{:,}" if pd.api.types.is_numeric_dtype(values) else "{}")
    return ["" if pd.isna(value) else _text(form.format(value), latex) for value in values]


def _text(text: str, latex: bool) -> str:
    return text.translate(LATEX_SPECIAL) if latex else text.replace("|", r"\|")


def _markdown(frame: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    body = human_table(frame).to_markdown(index=False, disable_numparse=True, colalign=_alignment(frame))
    return "\n".join([f"# {title}", "", body, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _latex(frame: pd.DataFrame, label: str, title: str, notes: Sequence[str]) -> str:
    align = {"left": "l", "right": "r"}
    form = "".join(
        rf"p{{{WIDE[column]}\linewidth}}" if column in WIDE else align[side]
        for (_, column), side in zip(_shown(frame), _alignment(frame), strict=True)
    )
    lines = [
        r"% needs \usepackage{booktabs,adjustbox}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_text(title, latex=True)}}}",
        rf"\label{{tab:{label}}}",
        r"\begin{adjustbox}{max width=\linewidth}",
        human_table(frame, latex=True).to_latex(index=False, escape=False, column_format=form).rstrip(),
        r"\end{adjustbox}",
        *(rf"\par{{\footnotesize {_text(note, latex=True)}\par}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _html(frame: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """A page of its own, for the report: it needs no file beside it and no script."""
    cells = human_table(frame)
    widths = [cells[name].str.len().max() if len(cells) else 0 for name in cells]
    rules = [
        f"th:nth-child({i}), td:nth-child({i}) {{ text-align: {side} }}\n"
        f"td:nth-child({i}) {{ {'white-space: nowrap' if width < 32 else 'min-width: 24em'} }}\n"
        for i, (width, side) in enumerate(zip(widths, _alignment(frame), strict=True), start=1)
    ]
    body = cells.to_html(index=False, border=0).replace(r"\|", "|")
    about = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}{''.join(rules)}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n"
        f"<ul>\n{about}</ul>\n</body>\n</html>\n"
    )


def _alignment(frame: pd.DataFrame) -> list[str]:
    numeric = pd.api.types.is_numeric_dtype
    return ["right" if numeric(frame[column]) else "left" for _, column in _shown(frame)]
