"""What the command shows on the terminal: progress, and one screen of results."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from relusym.merging.layers import WAYS
from relusym.merging.merge import Merge
from relusym.reporting.exact import NETS as EXACT_NETS
from relusym.reporting.exact import Exact
from relusym.reporting.page import Comparison
from relusym.reporting.report import Report
from relusym.reporting.words import MANY, NETS, barrier_text, curve_rows, number, verdict, warnings

MOST_LAYERS = 24  # rows of a table that still fit one screen
Baselines = Mapping[str, Mapping[str, float]]
Curve = Mapping[str, Mapping[str, list[float]]]
HEADINGS = ("layer", "chan.", "corr.", "matched", "own", "random", "fixed", "swaps", "longer")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Show each stage, its progress and the time left on the error stream, if that is a terminal."""
    console = Console(stderr=True, quiet=quiet)
    left = TimeRemainingColumn(elapsed_when_finished=True)
    columns = TextColumn("{task.description:<22}", markup=False), BarColumn(), TimeElapsedColumn(), left
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, done: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage, total=1 if done else None)
            bars.update(tasks[stage], total=1 if done else None, completed=done)

        yield show


def _console() -> Console:
    """A console that prints names of nets, layers and files verbatim, brackets and colons included."""
    return Console(markup=False, emoji=False)


def _end(console: Console, notes: Iterable[str], *written: Path) -> None:
    for line in notes:
        console.print(f"\n{line}", style="yellow")
    console.print("\n" + "\n".join(map(str, written)), soft_wrap=True)


def _table(rows: Iterable[Iterable[str]], *, no_wrap: bool = False) -> Table:
    """A table of rows, headings first; all columns but the first are right-aligned."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    headings, *rows = rows
    for i, heading in enumerate(headings):
        side = "right" if i else "left"
        table.add_column(
            heading, justify=side, no_wrap=no_wrap and i > 0, overflow="ellipsis" if i else "fold"
        )
    for row in rows:
        table.add_row(*row)
    return table


def _scores(merged: Merge, measure: str, baselines: Baselines) -> Table:
    rows = [["net", *(measure if metric == "accuracy" else metric for metric in merged.scores), "barrier"]]
    words = _words(merged)
    for name in merged.accuracy:
        barrier = barrier_text(merged.barrier[name]) if name in merged.barrier else ""
        rows.append(
            [words.get(name, name), *(number(nets[name]) for nets in merged.scores.values()), barrier]
        )
    for name, values in baselines.items():
        rows.append([words.get(name, name), *(number(values[metric]) for metric in merged.scores), ""])
    return _table(rows)


def _words(merged: Merge) -> dict[str, str]:
    return MANY if "pairwise" in merged.barrier else NETS


def _line(curve: Curve) -> Table:
    headings = ["share", *(f"{metric}, {way}" for way, metrics in curve.items() for metric in metrics)]
    return _table([headings, *(map(number, row) for row in curve_rows(curve))])


def show_report(report: Report, page: Path) -> None:
    """Print one screen: the verdict, all nets' scores, the layers, the warnings, and the page's path."""
    console = _console()
    console.print(f"{verdict(report)}\n", style="bold")
    console.print(_scores(report.merged, report.measure, report.baselines))
    console.print(f"invariance error {number(report.invariance_error)}\n")
    if report.curve:
        console.print(_line(report.curve))
        console.print()
    console.print(
        "By layer: correlation of matched channels; relative equivariance error with matched partners, each channel "
        "as its own, and random partners (0: equivariant, 1.41: unrelated); numbers of channels that are their own "
        "partner, swap, or do neither."
    )
    step = -(-len(report.layers) // MOST_LAYERS)
    rows = [
        [
            *(layer.name, str(layer.channels), number(layer.correlation)),
            *(number(layer.equivariance[way]) for way in WAYS),
            *map(str, (layer.fixed, layer.swapped, layer.longer)),
        ]
        for layer in report.layers[::step]
    ]
    console.print(_table([HEADINGS, *rows], no_wrap=True))
    if step > 1:
        console.print(f"one in {step} of the {len(report.layers)} layers is shown; all are in layers.csv")
    _end(console, warnings(report), page)


def show_merge(
    merged: Merge,
    which: str,
    path: str,
    *,
    labelled: bool,
    baselines: Baselines,
    curve: Curve,
    notes: Iterable[str],
) -> None:
    """Print all nets' scores, and which net was written to which file."""
    console = _console()
    console.print(_scores(merged, "accuracy" if labelled else "agreement", baselines))
    if curve:
        console.print(_line(curve))
    show_written(_words(merged)[which], path, notes)


def show_comparison(comparison: Comparison, page: Path) -> None:
    """Print several nets side by side, the barriers between them, and the page's path."""
    console = _console()
    for rows in comparison.in_words():
        console.print(_table(rows))
        console.print()
    console.print(
        "Above: barriers with REPAIR between two nets and, on the diagonal, between a net and its flipped self"
    )
    _end(console, comparison.notes, page)


def show_written(which: str, path: str, notes: Iterable[str]) -> None:
    """Print notes on a merge, and which net was written to which file."""
    console = _console()
    for note in notes:
        console.print(note, style="yellow")
    console.print(f"written to {path}: {which}", soft_wrap=True)


def show_exact(result: Exact, written: Iterable[Path]) -> None:
    """Print one screen: accuracies, savings, timings, and the files written."""
    console = _console()
    rows = [["net", "accuracy" if result.labelled else "agreement", "invariance error"]]
    for name, value in result.accuracy.items():
        error = result.invariance_error.get(name)
        rows.append([EXACT_NETS[name], number(value), "" if error is None else number(error)])
    console.print(_table(rows))
    console.print()
    counts = {"free parameters": result.parameters, "multiplications per image": result.multiplications}
    for what, by_net in counts.items():
        exact, net = by_net["exact"], by_net["net"]
        console.print(f"{what}: {exact:,} of the net's {net:,}, {exact / net:.3f}")
    fixed, swapped = (sum(each[k] for each in result.representations.values()) for k in ("fixed", "swapped"))
    console.print(f"channels that are their own partner: {fixed} of {fixed + swapped}")
    for count, taken in result.seconds.items():
        for name in (name for name in taken if name != "exact"):
            console.print(
                f"batch of {count}: exact GCNN {1000 * taken['exact']:.2f} ms, {EXACT_NETS[name]} "
                f"{1000 * taken[name]:.2f} ms, a speed-up of {taken[name] / taken['exact']:.2f}",
                soft_wrap=True,
            )
    _end(console, result.notes, *written)
