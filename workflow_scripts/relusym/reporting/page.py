"""A report as files: one HTML page that needs neither network nor scripts, tables, numbers, and the nets; and the
comparison of several reports."""

import base64
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from relusym import __version__, checkpoint
from relusym.merging.identities import LIMITS
from relusym.merging.layers import SHARES, WAYS
from relusym.merging.merge import Merge
from relusym.reporting.pictures import pictures
from relusym.reporting.report import Report
from relusym.reporting.words import (
    NETS,
    barrier_text,
    curve_rows,
    finite,
    grid_text,
    number,
    verdict,
    warnings,
)
from relusym.symmetry import SYMMETRIES
from relusym.whole_files import write_text

TABLES = ("nets", "layers", "convs", "where_it_fails", "grid", "classes", "curve", "lie_derivative")
SAVED = ("permuted", "halfway", "reset", "repaired")
FILES = (  # of reports on one net or on several
    "report.html",
    "report.json",
    *(f"{name}.csv" for name in (*TABLES, "barriers")),
    *(f"{name}.safetensors" for name in SAVED),
)
PICTURES = {  # alternative texts
    "nets": "Bars: scores of the net, of its flipped self and of the nets halfway between",
    "equivariance": "Lines: relative equivariance error by layer, with matched, unpermuted and random channels",
    "sources": "Stacked bars: shares of each layer's error that a permutation, another linear map, or none removes",
    "partners": "Feature maps of channels on an image, and of their partners on the transformed image",
    "orbits": "Stacked bars: shares of channels that are their own partner, swap, or lie on longer cycles",
    "kernels": "Line: violation of the kernel constraint by convolution",
    "fails": "Lines: barriers of partial merges by layer",
    "curve": "Lines: accuracy and loss on the way from the net to its flipped self",
}
DETAILS = {
    "layers": "Channel groups",
    "convs": "Convolutions",
    "where_it_fails": "Partial merges",
    "classes": "Accuracy by class",
    "curve": "The line between the net and its flipped self",
    "lie_derivative": "Small translations and rotations: the Lie derivative by layer, per pixel, and barrier up to it",
}


def write_report(report: Report, folder: str | Path) -> Path:
    """Write the page, `report.json`, CSVs and nets, each whole or not at all; returns the page's path, or UserError."""
    folder = Path(folder)
    remove_older(folder)
    write_numbers(folder, tables(report), report.numbers())
    for name in SAVED:
        if name in report.merged.nets:
            about = card(report.merged, report.name, name) | {"symmetry": report.symmetry}
            checkpoint.save(folder / f"{name}.safetensors", report.merged.nets[name].state_dict(), about)
    write_text(folder / "report.html", page(report))
    return folder / "report.html"


def card(merged: Merge, net: str, which: str) -> dict[str, Any]:
    """The header of a saved net's file: the net's name, which of its merges this is, and all scores and barriers."""
    return {
        "relusym": __version__,
        "net": net,
        "which": which,
        "scores": merged.scores,
        "barrier": merged.barrier,
        "checks": merged.checks,
        "notes": [merged.note] if merged.note else [],
    }


def remove_older(folder: Path) -> None:
    """Remove an older report's files from the folder, so that none is taken for the new report's."""
    try:
        older = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(older, dict) and "relusym" in older:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


def filled(template: str, **words: Any) -> str:
    """A template of this folder, filled with its words and the stylesheet that all pages share."""
    text, style = (
        files("relusym.reporting").joinpath(name).read_text(encoding="utf-8")
        for name in (template, "page.css")
    )
    return Template(text).substitute(words, style=style)


def write_numbers(
    folder: Path, tables: Mapping[str, Iterable[Iterable[Any]]], numbers: Mapping[str, Any]
) -> None:
    """Write each table as a CSV, and all numbers as `report.json`."""
    for name, rows in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(folder / f"{name}.csv", text.getvalue())
    write_text(folder / "report.json", json.dumps(finite(numbers), indent=1, allow_nan=False) + "\n")


def tables(report: Report) -> dict[str, list[list[Any]]]:
    """The tables by name, headings first: those of `TABLES`, the last three only if they were measured."""
    merged, metrics = report.merged, list(report.merged.scores)
    nets = [["net", *metrics, "barrier", *(f"absolute_barrier_{metric}" for metric in metrics)]]
    for net in merged.accuracy:
        absolute = [merged.barriers[metric].get(net) for metric in metrics]
        nets.append(
            [net, *(merged.scores[metric][net] for metric in metrics), merged.barrier.get(net), *absolute]
        )
    for net, scores in report.baselines.items():
        nets.append([net, *(scores[metric] for metric in metrics), *[None] * (1 + len(metrics))])
    errors = *(f"equivariance_{way}" for way in WAYS), *(f"share_{share}" for share in SHARES)
    partial = [f"{way}_{metric}" for way in ("up_to", "all_but") for metric in metrics]
    rows = {
        "nets": nets,
        "layers": _rows(
            report.layers, "layer", "channels", "correlation", *errors, "fixed", "swapped", "longer"
        ),
        "convs": _rows(report.convs, "conv", "group", "filters", "zero_filters", "kernel_constraint"),
        "where_it_fails": _rows(report.partial, "part", *partial),
        "grid": _rows(report.grid.misfits, "layer", "stride", "meets", "left_over", "image_pixels"),
    }
    for row in rows["grid"][1:]:
        row[-1] = int(row[-1]) if row[-1].is_integer() else row[-1]
    if report.labelled:
        measured = [net for net in ("net", "flipped", "halfway", "repaired") if net in merged.by_class]
        count = len(merged.by_class["net"])
        names = [*report.classes, *range(len(report.classes), count)][:count]
        shares = zip(names, *(merged.by_class[net] for net in measured), strict=True)
        rows["classes"] = [["class", *measured], *(list(row) for row in shares if row[1] is not None)]
    if report.curve:
        headings = [f"{way}_{metric}" for way, values in report.curve.items() for metric in values]
        rows["curve"] = [["share", *headings], *curve_rows(report.curve)]
    if report.lie:
        barriers = {partial.part: partial.prefix["accuracy"] for partial in report.partial}
        headings = ["layer", *(f"lie_{name}" for name in report.lie.total), "up_to_accuracy"]
        layers = report.lie.layers | {"whole net": report.lie.total}
        rows["lie_derivative"] = [headings, *([name, *of_layer.values(), barriers.get(name)]
                                              for name, of_layer in layers.items())]  # fmt: skip
    return rows


def _rows(measured: Iterable[Any], *headings: str) -> list[list[Any]]:
    """Headings, and a row for each dataclass: its fields, and the entries of its dicts, side by side."""
    fields = [
        [value if isinstance(value, dict) else {"": value} for value in vars(part).values()]
        for part in measured
    ]
    return [[*headings], *([cell for field in row for cell in field.values()] for row in fields)]


def page(report: Report) -> str:
    """The HTML page."""
    merged, drawn, rows = report.merged, pictures(report), tables(report)
    steps = f" Measured on {report.partial_images} images."
    steps = steps if report.partial else " They were left out of this report."
    agreement = (
        " Without labels, accuracy is agreement: the share of images on which a net and the net itself agree."
    )
    held = {name: value for name, value in merged.checks.items() if value <= LIMITS[name][0]}
    nets = [f"<code>{name}.safetensors</code>" for name in SAVED if name in merged.nets]
    details = [
        f"<details><summary>{title}</summary><div class='wide'>{table(rows[name])}</div></details>"
        for name, title in DETAILS.items()
        if len(rows.get(name, ())) > 1
    ]
    words = {
        "name": report.name,
        "verdict": verdict(report),
        "moved": SYMMETRIES[report.symmetry].moved,
        "against": "" if report.labelled else agreement,
        "partial": steps,
        "grid": grid_text(report.grid),
        "images": f"{report.images:,}",
        "size": f"{report.image_shape[2]}×{report.image_shape[1]}",
        "matched": f"{report.matched_images:,}",
        "symmetry": report.symmetry,
        "checks": ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in held.items()),
        "version": __version__,
    }
    return filled(
        "page.html",
        **{key: escape(text) for key, text in words.items()},
        **{name: _picture(name, drawn.get(name)) for name in PICTURES},
        tiles=_tiles(report),
        warnings=_warnings(warnings(report)),
        scores=table(rows["nets"], names=True),
        misfits=table(rows["grid"]) if len(rows["grid"]) > 1 else "",
        details="".join(details),
        files=", ".join(nets),
    )


def _warnings(lines: Iterable[str]) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<div class='warning'>{text}</div>" if text else ""


def _tiles(report: Report) -> str:
    accuracy, barrier, measure = report.merged.accuracy, report.merged.barrier, report.measure
    tiles = {
        measure: f"{accuracy['net']:.4f}",
        f"flip-{measure}: of its flipped self, on the same images": f"{accuracy['flipped']:.4f}",
        "relative invariance error of the logits": number(report.invariance_error),
        "GCNN barrier, with REPAIR": barrier_text(None if report.merged.alike else barrier["repaired"]),
        "GCNN barrier, without REPAIR": barrier_text(None if report.merged.alike else barrier["halfway"]),
    }
    return "".join(
        f"<div class='tile'><b>{escape(value)}</b><span>{escape(text)}</span></div>"
        for text, value in tiles.items()
    )


def _picture(name: str, svg: str | None) -> str:
    if svg is None:
        return "" if name == "curve" else "<p class='soft'>There is nothing to show.</p>"
    data = base64.b64encode(svg.encode()).decode()
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(PICTURES[name])}"></figure>'


def table(rows: list[list[Any]], *, names: bool = False) -> str:
    """Rows as an HTML table, headings first; with `names`, the nets in the first column are spelled out."""
    head = "".join(f"<th>{escape(str(cell).replace('_', ' '))}</th>" for cell in rows[0])
    lines = []
    for first, *rest in rows[1:]:
        cells = [
            NETS.get(first, first) if names else first,
            *(str(cell) if isinstance(cell, int | str) else number(cell) for cell in rest),
        ]
        lines.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


# ---- several nets side by side


@dataclass(frozen=True)
class Comparison:
    """Reports on several nets. `pairs`: (i, j), indices of two reports, i > j → merged net's name → barrier."""

    reports: list[Report]
    pairs: Mapping[tuple[int, int], Mapping[str, float | None]]

    @property
    def names(self) -> list[str]:
        return [report.name for report in self.reports]

    def matrix(self, which: str = "repaired") -> list[list[float | None]]:
        """Barriers between each two nets; on the diagonal, between each and its transformed self (the GCNN barrier)."""
        flips = {(i, i): report.merged.barrier for i, report in enumerate(self.reports)}
        barriers, places = flips | {**self.pairs}, range(len(self.reports))
        return [[barriers[max(i, j), min(i, j)][which] for j in places] for i in places]

    def numbers(self) -> dict[str, Any]:
        """Every number, for JSON."""
        return {
            "relusym": __version__,
            "nets": self.names,
            "barriers": {which: self.matrix(which) for which in self.reports[0].merged.barrier},
            "reports": {report.name: report.numbers() for report in self.reports},
        }

    def tables(self) -> dict[str, list[list[Any]]]:
        """By name, headings first: the barrier matrix; a row per net; layers' equivariance errors, channels matched."""
        first, names = self.reports[0], self.names
        nets = [["net", first.measure, "of its flipped self", "invariance error", "GCNN barrier"]]
        for report in self.reports:
            accuracy, barrier = report.merged.accuracy, report.merged.barrier["repaired"]
            nets.append([report.name, accuracy["net"], accuracy["flipped"], report.invariance_error, barrier])
        errors = [[layer.equivariance["matched"] for layer in report.layers] for report in self.reports]
        matrix = ([name, *row] for name, row in zip(names, self.matrix(), strict=True))
        layers = ([layer.name, *row] for layer, *row in zip(first.layers, *errors, strict=True))
        return {"barriers": [["net", *names], *matrix], "nets": nets, "layers": [["layer", *names], *layers]}

    def in_words(self) -> tuple[list[list[str]], list[list[str]]]:
        """The tables of nets and barriers as text, without barriers of nets that don't tell images apart."""
        nets, pairs = (self.tables()[name] for name in ("nets", "barriers"))
        alike = [bool(report.merged.alike) for report in self.reports]
        return (
            [nets[0], *([name, *map(number, row), barrier_text(None if means_nothing else last)]
                        for (name, *row, last), means_nothing in zip(nets[1:], alike, strict=True))],
            [pairs[0], *([name, *(barrier_text(None if alike[i] or alike[j] else value) for j, value in enumerate(row))]
                         for i, (name, *row) in enumerate(pairs[1:]))],
        )  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """Notes that all nets share, once; then the others, each after its net's name."""
        first = self.reports[0]
        common = [line for line in first.notes if all(line in report.notes for report in self.reports)]
        return common + [
            f"{report.name}: {line}" for report in self.reports for line in report.notes if line not in common
        ]


def write_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write the page, `report.json` and CSVs of several nets, each whole or not at all; returns the page's path."""
    folder, tables = Path(folder), comparison.tables()
    remove_older(folder)
    write_numbers(folder, tables, comparison.numbers())
    links = (
        f"<a href='{quote(os.fsencode(name))}/report.html'>{escape(name)}</a>" for name in comparison.names
    )
    nets, matrix = comparison.in_words()
    page = filled(
        "compare.html",
        count=len(comparison.reports),
        links=", ".join(links),
        warnings=_warnings(comparison.notes),
        measure=comparison.reports[0].measure,
        barriers=table(matrix),
        nets=table(nets),
        layers=table(tables["layers"]),
        version=__version__,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"
