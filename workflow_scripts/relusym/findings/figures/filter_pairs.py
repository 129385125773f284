"""Figures 1, 5, 6, 7 and 8: each filter of a layer beside the matching filter of the permuted flipped net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from relusym.errors import UserError
from relusym.findings import Drawing, Figure, Inputs, Selection, Settings, np
from relusym.findings.frames import Filters, are_zero, first_kept
from relusym.findings.print_style import COLUMN_WIDTH, panels_of
from relusym.findings.selection import reproduced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 0.995  # of all weights; the largest few are clipped, so that the others keep their contrast
WEIGHT = 8  # dots: the side of the square that each weight is drawn as
WITHIN, APART = 4, 12  # blank dots between the two filters of a pair, and between pairs
IN_A_ROW = (2, 4, 8, 16)  # pairs


def select(settings: Settings, layer: str, models: Sequence[str], flipped_back: bool = False) -> Selection:
    """What `draw` shows: models (a panel each, of its first net that isn't left out), and how.

    `layer`: "conv1" or "conv2". `flipped_back`: whether the right filter of a pair is flipped back to how it is in the
    net (Figure 1: columns 1 and 4 of Figure 2) or shown as it is in the permuted flipped net (Figures 5 to 8).
    `zero_filter`: as in `frames.are_zero`.
    """
    present = [model for model in models if model in reproduced(settings)]
    zero = settings.sections.filters.zero_filter
    return {"models": present, "layer": layer, "flipped_back": flipped_back, "zero_filter": zero}


def _figure(name: str, layer: str, models: Sequence[str], flipped_back: bool = False) -> Figure:
    return Figure(
        __name__,
        name=name,
        reads=("filters",),
        exists=lambda settings: not {*models}.isdisjoint(reproduced(settings)),
        select=lambda settings: select(settings, layer, models, flipped_back),
    )


FIGURE1 = _figure("figure1", "conv1", ["cnn_inv", "cnn"], flipped_back=True)
FIGURE5 = _figure("figure5", "conv2", ["cnn_inv"])
FIGURE6 = _figure("figure6", "conv2", ["cnn"])
FIGURE7 = _figure("figure7", "conv1", ["gcnn"])
FIGURE8 = _figure("figure8", "conv2", ["gcnn"])


def colours(filters: np.ndarray) -> np.ndarray:
    """RGB filters (…, 3, h, w) as colours in 0..1 (…, h, w, 3): a weight of 0 is mid-grey, one scale for all."""
    filters = filters.astype(np.float64)
    scale = np.quantile(np.abs(filters), SHOWN) or 1.0
    return np.moveaxis(np.clip(0.5 + filters / (2 * scale), 0, 1), -3, -1)


def pair_grid(pairs: np.ndarray, columns: int) -> np.ndarray:
    """Pairs of RGB filters (2, c, 3, k, k), `columns` per row, in one picture on white: colours (height, width, 3)."""
    left, right = colours(pairs).repeat(WEIGHT, 2).repeat(WEIGHT, 3)
    count, side = left.shape[:2]
    rows = -(-count // columns)
    cells = np.ones((rows * columns, side + APART, 2 * side + WITHIN + APART, 3))
    cells[:count, APART // 2 : -APART // 2, APART // 2 :][:, :, :side] = left
    cells[:count, APART // 2 : -APART // 2, : -APART // 2][:, :, -side:] = right
    height, width = cells.shape[1:3]
    return cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, -1, 3)


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing]:
    """One panel per type, side by side: all filters of a net's layer in pairs, or why it is left out.

    UserError if a type has no net, or no filters of the layer were kept.
    """
    nets = [first_kept(inputs["filters"], model) for model in selection["models"]]
    layer, flipped_back, names = (selection[key] for key in ("layer", "flipped_back", "names"))
    width = COLUMN_WIDTH / len(nets)
    grids = [_grid(net, layer, flipped_back, len(nets)) for net in nets]
    height = max(grid.shape[0] / grid.shape[1] for grid in grids) * (width - 0.4)
    drawing, (panels,) = panels_of(height + 0.75, 1, len(nets))
    drawing.get_layout_engine().set(h_pad=0.04, w_pad=0.03)
    for number, (net, grid, panel) in enumerate(zip(nets, grids, panels, strict=True)):
        name, in_numbers = names.get(net.model, net.model), f"left out: {net.reason}"
        panel.spines[:].set_visible(False)
        panel.set(xticks=[], yticks=[])
        panel.imshow(grid, interpolation="nearest", vmin=0, vmax=1)
        if net.status == "ok":
            zero = are_zero(net.norms[layer], selection["zero_filter"])
            zeros = f"{zero.sum()} of {len(zero)} zero-filters"
            in_numbers = f"relative difference {net.constraint[layer]:.2f}, {zeros}"
            _number_rows(panel, net, layer, grid.shape)
        title = f"Net {chr(ord('A') + number)}: {name}" if len(nets) > 1 else name
        panel.set_title(f"{title}, seed {net.seed}\n{in_numbers}", fontsize=7.5)
    match = "its match in the same net" if flipped_back else "its match in the permuted flipped net"
    drawing.supxlabel(f"Conv {layer[-1]}: pairs of a filter (left) and {match} (right)")
    return (drawing,)


def _grid(net: Filters, layer: str, flipped_back: bool, panels: int) -> np.ndarray:
    if net.status != "ok":
        return np.ones((WEIGHT, 8 * WEIGHT, 3))
    if layer not in net.drawn:
        raise UserError(
            f"no filters of {layer} are kept for {net.model}-{net.seed}, only {', '.join(net.drawn)}"
        )
    original, matched = net.drawn[layer]
    matched = matched[..., ::-1] if flipped_back else matched
    # the fewest per row with which a panel is wider than high, and its filters are small
    columns = next((c for c in IN_A_ROW if c * panels >= 8 and c * c >= len(original)), IN_A_ROW[-1])
    return pair_grid(np.stack([original, matched]), columns)


def _number_rows(panel: Axes, net: Filters, layer: str, size: tuple[int, ...]) -> None:
    count, side = net.drawn[layer].shape[1], WEIGHT * net.drawn[layer].shape[-1]
    columns = size[1] // (2 * side + WITHIN + APART)
    rows = np.arange(-(-count // columns))
    panel.set_yticks((rows + 0.5) * (side + APART), rows * columns)
    panel.set_ylabel("filter", fontsize=7, labelpad=1)
    panel.tick_params(labelsize=6, length=0, pad=1)
