"""Reports of several nets of one architecture side by side, and the barriers between the nets."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from relusym import __version__
from relusym.reporting.page import filled, table, write_numbers, write_text
from relusym.reporting.report import Report
from relusym.reporting.words import barrier_text, number


@dataclass(frozen=True)
class Comparison:
    """Reports of several nets, the first of them the reference.

    `pairs`: (row, column), of two reports' places, row > column → the net halfway between the two nets → barrier.
    """

    reports: list[Report]
    pairs: Mapping[tuple[int, int], Mapping[str, float | None]]

    def matrix(self, which: str = "repaired") -> list[list[float | None]]:
        """Barriers between all nets; on the diagonal, of each with its transformed self (the GCNN barrier)."""
        places = range(len(self.reports))
        return [
            [
                self.reports[i].merged.barrier[which] if i == j else self.pairs[max(i, j), min(i, j)][which]
                for j in places
            ]
            for i in places
        ]

    def numbers(self) -> dict[str, Any]:
        """Every number, for JSON."""
        return {
            "relusym": __version__,
            "nets": [report.name for report in self.reports],
            "barriers": {which: self.matrix(which) for which in self.reports[0].merged.barrier},
            "reports": {report.name: report.numbers() for report in self.reports},
        }

    def summary(self) -> list[list[Any]]:
        """A row a net, headings first."""
        rows = [["net", self.reports[0].measure, "of its flipped self", "invariance error", "GCNN barrier"]]
        for report in self.reports:
            accuracy, barrier = report.merged.accuracy, report.merged.barrier["repaired"]
            rows.append([report.name, accuracy["net"], accuracy["flipped"], report.invariance_error, barrier])
        return rows

    def in_words(self) -> tuple[list[list[str]], list[list[str]]]:
        """`summary` and `barriers` as they are shown."""
        nets, pairs = self.summary(), self.barriers()
        return (
            [nets[0], *([name, *map(number, row), barrier_text(last)] for name, *row, last in nets[1:])],
            [pairs[0], *([name, *map(barrier_text, row)] for name, *row in pairs[1:])],
        )

    def barriers(self) -> list[list[Any]]:
        """The matrix with the nets' names, headings first."""
        names = [report.name for report in self.reports]
        return [["net", *names], *([name, *row] for name, row in zip(names, self.matrix(), strict=True))]

    def by_layer(self) -> list[list[Any]]:
        """Of each layer, every net's relative equivariance error with matched channels, headings first."""
        names = [report.name for report in self.reports]
        errors = [[layer.equivariance["matched"] for layer in report.layers] for report in self.reports]
        layers = [layer.name for layer in self.reports[0].layers]
        return [["layer", *names], *([name, *row] for name, *row in zip(layers, *errors, strict=True))]


def write_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write `report.html`, `report.json`, and CSVs of barriers, nets and layers, each whole or not at all; the page's
    path.

    UserError if the folder can't be written.
    """
    folder = Path(folder)
    tables = {
        "barriers": comparison.barriers(),
        "nets": comparison.summary(),
        "layers": comparison.by_layer(),
    }
    write_numbers(folder, tables, comparison.numbers())
    links = ", ".join(
        f"<a href='{escape(report.name, quote=True)}/report.html'>{escape(report.name)}</a>"
        for report in comparison.reports
    )
    nets, matrix = comparison.in_words()
    page = filled(
        "compare.html",
        count=len(comparison.reports),
        links=links,
        measure=comparison.reports[0].measure,
        barriers=table(matrix),
        nets=table(nets),
        layers=table(tables["layers"]),
        version=__version__,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"
