"""The pictures of a report, as self-explanatory SVG."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from relusym.merging.layers import SHARES
from relusym.reporting.report import Report
from relusym.reporting.words import NETS
from relusym.symmetry import SYMMETRIES

WIDTH = 8.4  # inches: the page's column
INK, PALE, GRID = "#222222", "#9a9a9a", "#e4e4e4"
LIGHT_BLUE, LIGHT_GREY = "#56B4E9", "#d3d3d3"
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito's
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "relusym",  # the same bytes from the same report
}
WAYS = {  # ways to choose partners: colour, marker and label
    "random": (PALE, "x", "random partners"),
    "identity": (ORANGE, "s", "every channel its own partner"),
    "matched": (GREEN, "o", "matched partners"),
}
LABELLED = 45  # at most that many layer names fit below an axis
LONGEST = 30  # characters of a layer's name on an axis


def svg(figure: Figure) -> str:
    """A figure as SVG text, without dates."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return file.getvalue()


def pictures(report: Report) -> dict[str, str]:
    """SVG texts by the names in `DRAWN`, without those that would be empty."""
    with mpl.rc_context(STYLE):
        figures = {name: draw(report) for name, draw in DRAWN.items()}
        return {name: svg(figure) for name, figure in figures.items() if figure is not None}


def _layer_axis(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // LABELLED) or 1
    names = [_plain(name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}") for name in names]
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", color=GRID)
    axes.tick_params(axis="x", length=0)


def _plain(name: str) -> str:
    """A layer's name as plain text: no formula, and no character that SVG can't hold."""
    return "".join(letter if letter.isprintable() else "�" for letter in name).replace("$", r"\$")


def _nets(report: Report) -> Figure:
    scores = report.merged.accuracy | {name: scores["accuracy"] for name, scores in report.baselines.items()}
    figure = Figure(figsize=(WIDTH, 0.38 * len(scores) + 0.75), layout="constrained")
    axes = figure.subplots()
    ends = list(scores)[:2]
    mean = sum(scores[name] for name in ends) / 2
    for place, (name, score) in enumerate(scores.items()):
        colour = BLUE if name in ends else GREEN if name == "repaired" else "#5db89c"
        colour = PALE if name in report.baselines else colour
        axes.barh(place, score, height=0.62, color=colour)
        inside = score > 0.15
        how = {"color": "white" if inside else INK, "ha": "right" if inside else "left"}
        axes.text(score, place, f" {score:.4f} ", va="center", fontsize=8.5, **how)
    behind = {"zorder": 0.9}  # behind the bars and their numbers
    axes.axvline(mean, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), **behind)
    side = "right" if mean > 0.6 else "left"
    axes.text(mean, -0.62, " mean of both endpoints ", fontsize=8, va="bottom", ha=side)
    axes.set_yticks(range(len(scores)), [NETS.get(name, name) for name in scores])
    axes.set_ylim(len(scores) - 0.5, -1.0)
    best = max(scores.values())
    axes.set_xlim(0, 1.08 if best > 0.5 else 1.25 * best + 0.01)
    axes.set_xlabel(report.measure)
    axes.grid(axis="x", color=GRID)
    axes.tick_params(axis="y", length=0)
    return figure


def _equivariance(report: Report) -> Figure | None:
    layers = [layer for layer in report.layers if layer.equivariance["matched"] is not None]
    if not layers:
        return None
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x = np.arange(len(layers))
    errors = {way: np.array([layer.equivariance[way] for layer in layers]) for way in WAYS}
    axes.fill_between(x, errors["matched"], errors["random"], color=GREEN, alpha=0.10, linewidth=0)
    for way, (colour, marker, text) in WAYS.items():
        axes.plot(x, errors[way], color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=text)
    axes.axhline(np.sqrt(2), color=PALE, linewidth=0.8, linestyle=":")
    for height, text in ((np.sqrt(2), "√2: unrelated "), (0.01, "0: exactly equivariant ")):
        axes.text(len(layers) - 0.45, height, text, fontsize=8, color="#666666", ha="right", va="bottom")
    axes.set_ylim(0, max(1.53, 1.1 * max(values.max() for values in errors.values())))
    axes.set_ylabel("relative equivariance error")
    axes.legend(loc="lower left", ncols=3, bbox_to_anchor=(0, 1), borderaxespad=0, handlelength=1.6)
    axes.grid(axis="y", color=GRID)
    axes.tick_params(axis="x", length=0)
    below.bar(x, [layer.correlation for layer in layers], 0.5, color=GREEN)
    below.set_ylim(0, 1)
    below.set_ylabel("correlation\nof partners")
    _layer_axis(below, [layer.name for layer in layers])
    return figure


def _stacked(names: Sequence[str], shares: Mapping[str, tuple[str, np.ndarray]], label: str) -> Figure:
    """A stacked bar for each layer; `shares`: label → colour, and a share for each layer."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes, x, bottom = figure.subplots(), np.arange(len(names)), np.zeros(len(names))
    for text, (colour, share) in shares.items():
        axes.bar(x, share, 0.8, bottom, color=colour, label=text)
        bottom = bottom + share
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "all"])
    axes.set_ylabel(label)
    axes.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, 1.16), borderaxespad=0, handlelength=1)
    _layer_axis(axes, names)
    axes.grid(visible=False)
    return figure


def _orbits(report: Report) -> Figure:
    count = {field: np.array([getattr(layer, field) / layer.channels for layer in report.layers])
             for field in ("fixed", "swapped", "longer")}  # fmt: skip
    shares = {
        "its own partner": (LIGHT_BLUE, count["fixed"]),
        "swaps with its partner": (BLUE, count["swapped"]),
        "on a longer cycle": (LIGHT_GREY, count["longer"]),
    }
    names = [f"{layer.name}  ({layer.channels})" for layer in report.layers]
    return _stacked(names, shares, "share of channels")


def _sources(report: Report) -> Figure | None:
    layers = [layer for layer in report.layers if layer.shares["rest"] is not None]
    if not layers:
        return None
    part = {share: np.clip([layer.shares[share] for layer in layers], 0, 1) for share in SHARES}
    shares = {
        "removed by a permutation (swap)": (BLUE, part["swap"]),
        "only by another linear map (linear)": (LIGHT_BLUE, part["linear"]),
        "by none (rest)": (LIGHT_GREY, part["rest"]),
    }
    return _stacked([layer.name for layer in layers], shares, "share of the error")


def _kernels(report: Report) -> Figure | None:
    if not report.convs:
        return None
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes, x = figure.subplots(), np.arange(len(report.convs))
    zero = [conv.zero_filters / conv.filters for conv in report.convs]
    axes.bar(x, zero, 0.5, color=LIGHT_GREY, label="share of zero-filters")
    fails = [conv.kernel_constraint for conv in report.convs]
    axes.plot(x, fails, color=BLUE, marker="o", markersize=4, linewidth=1.4, label="‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖")
    axes.axhline(np.sqrt(2), color=PALE, linewidth=0.8, linestyle=":")
    axes.text(-0.5, np.sqrt(2), "√2: unrelated filters", fontsize=8, color="#666666", va="bottom")
    axes.set_ylim(0, 1.6)
    axes.legend(loc="lower left", ncols=2, bbox_to_anchor=(0, 1), borderaxespad=0, handlelength=1.4)
    _layer_axis(axes, [conv.name for conv in report.convs])
    return figure


def _fails(report: Report) -> Figure | None:
    if not report.partial:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    x = np.arange(len(report.partial))
    titles = {"accuracy": f"{report.measure} lost", "loss": "loss gained"}
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        if metric not in report.partial[0].prefix:
            axes.set_axis_off()
            continue
        for kind, colour, marker, width, text in (
            ("prefix", RED, "o", 1.6, "merged up to here"),
            ("leave_one_out", BLUE, "s", 1.2, "all merged but this one"),
        ):
            y = [getattr(part, kind)[metric] for part in report.partial]
            axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=width, label=text)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_title(title)
        _layer_axis(axes, [part.part for part in report.partial])
    panels[0].legend(loc="best")
    return figure


def _curve(report: Report) -> Figure | None:
    if not report.curve:
        return None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for (way, values), colour in zip(report.curve.items(), (ORANGE, GREEN), strict=True):
            x = np.linspace(0, 1, len(values[metric]))
            text = "with REPAIR" if way == "repaired" else "as they are"
            axes.plot(x, values[metric], color=colour, marker="o", markersize=4, linewidth=1.6, label=text)
        axes.set_title(report.measure if metric == "accuracy" else metric)
        axes.set_xlabel("share of the flipped net")
        axes.ticklabel_format(useOffset=False)
        axes.grid(axis="y", color=GRID)
    figure.axes[0].legend(loc="best")
    return figure


def _partners(report: Report) -> Figure | None:
    rows = len(report.partners)
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 1.85 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    moved = SYMMETRIES[report.symmetry].moved
    for panels, pair in zip(grid, report.partners, strict=True):
        colour = {"cmap": "gray", "vmin": 0, "vmax": 1} if pair.image.shape[2] == 1 else {}
        scale = {
            "cmap": "magma",
            "vmin": min(pair.here.min(), pair.there.min()),
            "vmax": max(pair.here.max(), pair.there.max()),
        }
        shown = (
            (pair.image, colour, "the image"),
            (pair.here, scale, f"channel {pair.channel} on it"),
            (pair.moved, colour, moved),
            (pair.there, scale, f"channel {pair.partner} on that"),
        )
        for axes, (picture, how, title) in zip(panels, shown, strict=True):
            axes.imshow(np.squeeze(picture), interpolation="nearest", **how)
            axes.set_title(title, fontweight="normal", fontsize=8.5)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(f"{_plain(pair.layer)}\ncorrelation {pair.correlation:.2f}", fontsize=8.5)
    return figure


DRAWN = {"nets": _nets, "equivariance": _equivariance, "sources": _sources, "orbits": _orbits, "kernels": _kernels,
         "partners": _partners, "curve": _curve, "fails": _fails}  # fmt: skip
