"""What the command shows on the terminal: progress, and one screen of results."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from relusym.merging.merge import Merge
from relusym.reporting.report import Report
from relusym.reporting.words import NETS, barrier_text, number, verdict, warnings

MOST_LAYERS = 24  # rows of a table that still fit one screen
HEADINGS = ("chan.", "corr.", "matched", "own", "random", "fixed", "swaps", "longer")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Stages and how much of each is done, on the error stream while it is a terminal."""
    console = Console(stderr=True, quiet=quiet)
    columns = TextColumn("{task.description:<22}"), BarColumn(), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bars:
        tasks: dict[str, int] = {}

        def told(stage: str, done: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage, total=1 if done else None)
            bars.update(tasks[stage], total=1 if done else None, completed=done)

        yield told


def _scores(merged: Merge, measure: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("net")
    for metric in merged.scores:
        table.add_column(measure if metric == "accuracy" else metric, justify="right")
    table.add_column("barrier", justify="right")
    for name in merged.accuracy:
        values = [number(of[name]) for of in merged.scores.values()]
        table.add_row(
            NETS.get(name, name),
            *values,
            barrier_text(merged.barrier.get(name)) if name in merged.barrier else "",
        )
    return table


def show_report(report: Report, page: Path) -> None:
    """One screen: the verdict, all nets' scores, the layers, what stands in the way, and where the page is."""
    console = Console()
    console.print(f"[bold]{verdict(report)}[/bold]\n")
    console.print(_scores(report.merged, report.measure))
    console.print(f"invariance error {number(report.invariance_error)}\n")
    console.print(
        "By layer: correlation of matched channels; relative equivariance error with matched, own and random"
    )
    console.print(
        "partners (0 equivariant, 1.41 unrelated); channels that are their own partner, swap, or do neither."
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    step = -(-len(report.layers) // MOST_LAYERS)
    for layer in report.layers[::step]:
        errors = [number(layer.equivariance[way]) for way in ("matched", "identity", "random")]
        orbits = [str(count) for count in (layer.fixed, layer.swapped, layer.longer)]
        table.add_row(layer.name, str(layer.channels), number(layer.correlation), *errors, *orbits)
    console.print(table)
    if step > 1:
        console.print(f"one layer in {step} of {len(report.layers)} is shown; all are in layers.csv")
    for line in warnings(report):
        console.print(f"\n[yellow]{line}[/yellow]")
    console.print(f"\n{page}", soft_wrap=True)


def show_merge(merged: Merge, which: str, path: str, *, labelled: bool, notes: Iterable[str]) -> None:
    """All nets' scores, and what was written where."""
    console = Console()
    console.print(_scores(merged, "accuracy" if labelled else "agreement"))
    for note in notes:
        console.print(f"[yellow]{note}[/yellow]")
    console.print(f"\n{NETS.get(which, which)} is written to {path}", soft_wrap=True)
