"""Figure 9: a ResNet's first-layer filters, each beside its match among the flipped and permuted ones."""

import numpy as np
from matplotlib.figure import Figure

from relusym.findings.filter_pairs import pair_grid
from relusym.findings.print_style import COLUMN_WIDTH, empty_figure

IN_A_ROW = 8  # pairs


def figure9(pairs: np.ndarray | None, name: str, reason: str | None = None) -> Figure:
    """All filters of the first layer, in the order of the net's channels, row by row.

    Args:
        pairs: RGB filters (2, c, 3, k, k) of the net and, at the same places, of its permuted flipped net; None if the
            net was left out.
        name: of the net.
        reason: why it was left out.
    """
    if pairs is None:
        return empty_figure(f"{name} is left out: {reason}")
    grid = pair_grid(pairs, IN_A_ROW)
    height, width = grid.shape[:2]
    figure = Figure(figsize=(COLUMN_WIDTH, COLUMN_WIDTH * height / width + 0.5), layout="constrained")
    panel = figure.subplots()
    panel.set_title(name, fontsize=8)
    panel.imshow(grid, interpolation="nearest", vmin=0, vmax=1)
    panel.set_axis_off()
    figure.supxlabel("Pairs of a filter (left) and its match in the permuted flipped net (right)", fontsize=8)
    return figure
