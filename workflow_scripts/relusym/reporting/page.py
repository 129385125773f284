"""A report as files: one HTML page that needs no network and no scripts, tables, numbers, and the nets."""

import base64
import csv
import io
import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from relusym import __version__, checkpoint
from relusym.merging.identities import LIMITS
from relusym.reporting.pictures import pictures
from relusym.reporting.report import Report
from relusym.reporting.words import (
    MOVED,
    NETS,
    barrier_text,
    grid_text,
    grid_warning,
    number,
    verdict,
)
from relusym.whole_files import write_whole

SAVED = ("permuted", "halfway", "reset", "repaired")
PICTURES = {  # what is read out, or shown where the picture isn't
    "nets": "Bars: scores of the net, of its flipped self and of the nets halfway between",
    "equivariance": "Lines: relative equivariance error by layer, with matched, own and random partners",
    "partners": "Maps of channels on an image, and of their partners on the transformed image",
    "orbits": "Stacked bars: shares of channels that are their own partner, swap, or lie on longer cycles",
    "kernels": "Line: violation of the kernel constraint by convolution",
    "fails": "Lines: barriers of partial merges by layer",
}
DETAILS = {"layers": "Channel groups", "convs": "Convolutions", "where_it_fails": "Partial merges"}


def write_report(report: Report, folder: str | Path) -> Path:
    """Write `report.html`, `report.json`, CSVs, and the nets as safetensors; each whole or not at all.

    Returns:
        the page's path.

    Raises:
        UserError: the folder can't be written.
    """
    folder = Path(folder)
    for name, rows in tables(report).items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        _write(folder / f"{name}.csv", text.getvalue())
    for name in SAVED:
        if name in report.merged.nets:
            about = {"relusym": __version__, "net": report.name, "symmetry": report.symmetry, "which": name}
            checkpoint.save(folder / f"{name}.safetensors", report.merged.nets[name].state_dict(), about)
    _write(folder / "report.json", json.dumps(report.numbers(), indent=1, allow_nan=False) + "\n")
    _write(folder / "report.html", page(report))
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def tables(report: Report) -> dict[str, list[list[Any]]]:
    """The tables by name, headings first: nets, layers, convs, where_it_fails, grid."""
    merged, metrics, ways = report.merged, list(report.merged.scores), ("matched", "identity", "random")
    found: dict[str, list[list[Any]]] = {
        "nets": [["net", *metrics, "barrier", *(f"absolute_barrier_{metric}" for metric in metrics)]],
        "layers": [
            [
                *("layer", "channels", "correlation"),
                *(f"equivariance_{way}" for way in ways),
                *("fixed", "swapped", "longer"),
            ]
        ],
        "convs": [["conv", "group", "filters", "zero_filters", "kernel_constraint"]],
        "where_it_fails": [
            ["part", *(f"{way}_{metric}" for way in ("up_to", "all_but") for metric in metrics)]
        ],
        "grid": [["layer", "stride", "meets", "left_over", "image_pixels"]],
    }
    for net in merged.accuracy:
        scores = [merged.scores[metric][net] for metric in metrics]
        absolute = [merged.barriers[metric].get(net) for metric in metrics]
        found["nets"].append([net, *scores, merged.barrier.get(net), *absolute])
    for layer in report.layers:
        errors = [layer.equivariance[way] for way in ways]
        orbits = layer.fixed, layer.swapped, layer.longer
        found["layers"].append([layer.name, layer.channels, layer.correlation, *errors, *orbits])
    for conv in report.convs:
        counts = conv.filters, conv.zero_filters
        found["convs"].append([conv.name, conv.group, *counts, conv.kernel_constraint])
    for part in report.partial:
        found["where_it_fails"].append([part.part, *part.up_to.values(), *part.all_but.values()])
    for misfit in report.grid.misfits:
        found["grid"].append(
            [misfit.layer, misfit.stride, misfit.size, misfit.left_over, _whole(misfit.pixels)]
        )
    return found


def page(report: Report) -> str:
    """The HTML page."""
    merged, drawn, rows = report.merged, pictures(report), tables(report)
    steps = (
        f" On {report.partial_images} images." if report.partial else " They were left out of this report."
    )
    agreement = (
        " There are no labels: accuracies are the shares of images on which a net agrees with the net itself."
    )
    held = {name: value for name, value in merged.checks.items() if value <= LIMITS[name][0]}
    nets = [f"<code>{name}.safetensors</code>" for name in SAVED if name in merged.nets]
    details = [
        f"<details><summary>{title}</summary><div class='wide'>{_table(rows[name])}</div></details>"
        for name, title in DETAILS.items()
        if len(rows[name]) > 1
    ]
    words = {
        "name": report.name,
        "verdict": verdict(report),
        "moved": MOVED.get(report.symmetry, report.symmetry),
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
    return Template(files("relusym.reporting").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        {key: escape(text) for key, text in words.items()},
        **{name: _picture(drawn.get(name), says) for name, says in PICTURES.items()},
        tiles=_tiles(report),
        warnings=_warnings([*grid_warning(report.grid, report.name), *report.notes]),
        scores=_table(rows["nets"], names=True),
        misfits=_table(rows["grid"]) if len(rows["grid"]) > 1 else "",
        details="".join(details),
        files=", ".join(nets),
    )


def _tiles(report: Report) -> str:
    of, barrier, measure = report.merged.accuracy, report.merged.barrier, report.measure
    tiles = {
        measure: f"{of['net']:.4f}",
        f"flip-{measure}: its flipped self's, on the same images": f"{of['flipped']:.4f}",
        "relative invariance error of the logits": number(report.invariance_error),
        "GCNN barrier, with REPAIR": barrier_text(barrier["repaired"]),
        "GCNN barrier, without": barrier_text(barrier["halfway"]),
    }
    return "".join(
        f"<div class='tile'><b>{escape(value)}</b><span>{escape(says)}</span></div>"
        for says, value in tiles.items()
    )


def _warnings(lines: Iterable[str]) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<div class='warning'>{text}</div>" if text else ""


def _picture(svg: str | None, says: str) -> str:
    if svg is None:
        return "<p class='soft'>There is nothing to show.</p>"
    data = base64.b64encode(svg.encode()).decode()
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(says)}"></figure>'


def _table(rows: list[list[Any]], *, names: bool = False) -> str:
    """Rows as HTML, headings first; with `names`, the first column is nets, and comes out in words."""
    head = "".join(f"<th>{escape(str(cell).replace('_', ' '))}</th>" for cell in rows[0])
    lines = []
    for first, *rest in rows[1:]:
        cells = [NETS.get(first, first) if names else first, *map(_cell, rest)]
        lines.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, int | str) else number(value)
