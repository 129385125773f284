"""Figure 9: a ResNet's first-layer filters, each beside its match among the flipped and permuted ones."""

from __future__ import annotations

from relusym.findings import Drawing, Figure, Inputs, Selection
from relusym.findings.figures.filter_pairs import pair_grid
from relusym.findings.frames import first_kept
from relusym.findings.print_style import COLUMN_WIDTH, empty_drawing, panels_of

IN_A_ROW = 8  # pairs
FIGURE = Figure(
    __name__,
    reads=("filters",),
    exists=lambda settings: settings.figure9 is not None,
    # the type, whose first net that isn't left out is shown; id → why there is no net of a type
    select=lambda settings: {"model": settings.figure9, "absent": settings.absent},
)


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing]:
    """All filters of one net's first layer, in the order of its channels, row by row, or why there are none; UserError
    if there is no reason either."""
    model, nets = selection["model"], inputs["filters"]
    name = selection["names"].get(model, model)
    if not nets and (reason := selection.get("absent", {}).get(model)):
        return (empty_drawing(f"{name} is left out: {reason}"),)
    net = first_kept(nets, model)
    if net.status != "ok":
        return (empty_drawing(f"{name} is left out: {net.reason}"),)
    grid = pair_grid(net.drawn["conv1"], IN_A_ROW)
    drawing, ((panel,),) = panels_of(COLUMN_WIDTH * grid.shape[0] / grid.shape[1] + 0.5)
    panel.set_title(name)
    panel.imshow(grid, interpolation="nearest", vmin=0, vmax=1)
    panel.set_axis_off()
    drawing.supxlabel("Pairs of a filter (left) and its match in the permuted flipped net (right)")
    return (drawing,)
