"""What all figures share: the paper's column width, colours safe for colour-blind readers, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relusym.findings import Drawing, np
from relusym.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN_WIDTH = 5.5  # inches: the paper's
DOTS_PER_INCH = 200
STYLE = {  # small fonts, and no frame
    **dict.fromkeys(("axes.titlesize", "axes.labelsize", "figure.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
}

# Okabe and Ito's palette with a marker each, so that lines differ in greyscale too
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#000000")
LINES = tuple(zip(COLOURS, "os^vDPX", strict=True))


def lines(step: int = 1) -> Iterator[tuple[str, str]]:
    """A colour and a marker for each of any number of types; they repeat after the last."""
    return cycle(LINES[::step])


def style() -> AbstractContextManager:
    """A context in which figures are drawn and written in `STYLE`."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def panels_of(
    height: float, rows: int = 1, columns: int = 1, width: float = COLUMN_WIDTH, **how: Any
) -> tuple[Drawing, np.ndarray]:
    """A drawing of this size in inches, and its panels: an array of axes (rows, columns), empty without rows."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False, **how) if rows else np.array([])


def write_figure(drawing: Drawing, paths: Iterable[str | Path]) -> None:
    """Write a figure as PNG or PDF, by the suffix of each path; the same figure gives the same bytes on any day."""
    for path in map(Path, paths):
        fields = ("Creator", "Producer", "CreationDate") if path.suffix == ".pdf" else ("Software",)
        image, ending = BytesIO(), path.suffix.removeprefix(".")
        # no dates, no versions; not to a file, since the error on a full disk isn't an OSError
        drawing.savefig(image, dpi=DOTS_PER_INCH, metadata=dict.fromkeys(fields), format=ending)
        with write_whole(path) as part:
            part.write_bytes(image.getvalue())


def empty_drawing(text: str) -> Drawing:
    """A figure with only a text: why there is nothing to see."""
    drawing, _ = panels_of(1, rows=0)
    drawing.text(0.5, 0.5, text, ha="center", va="center", fontsize=8)
    return drawing


def layer_ticks(layers: int) -> range:
    """Numbers of layers, from 1, that an axis labels: all of a VGG11's, some of a deeper net's."""
    return range(1, layers + 1, -(-layers // 12) or 1)


def label_rows(panel: Axes, labels: Sequence[str]) -> None:
    """Label the rows of a panel, at 0, 1, … from the top, and draw a vertical line at zero."""
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    panel.axvline(0, color="0.75", linewidth=0.8, zorder=0)


def legend_above(drawing: Drawing, panel: Axes, columns: int, **how: Any) -> None:
    """Draw one panel's legend above all panels."""
    drawing.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=columns, **how)
