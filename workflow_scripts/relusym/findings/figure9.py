"""Figure 9: a ResNet's first-layer filters, each beside its match among the flipped and permuted ones.

about: model (id, of whose first net that isn't left out), absent (id → why there is no net of a type), names.
"""

from matplotlib.figure import Figure

from relusym.findings import About, Inputs
from relusym.findings.filter_pairs import pair_grid
from relusym.findings.filters import Filters, first_kept
from relusym.findings.print_style import COLUMN_WIDTH, empty_figure

IN_A_ROW = 8  # pairs


def draw(inputs: Inputs, about: About) -> tuple[Figure]:
    """Figure 9 of one net, or why there is none.

    Raises:
        UserError: there is no net of the type, and no reason.
    """
    model, nets = about["model"], inputs["filters"]
    name = about["names"].get(model, model)
    if not nets and (reason := about.get("absent", {}).get(model)):
        return (empty_figure(f"{name} is left out: {reason}"),)
    return (figure9(first_kept(nets, model), name),)


def figure9(net: Filters, name: str) -> Figure:
    """All filters of the first layer, in the order of the net's channels, row by row."""
    if net.status != "ok":
        return empty_figure(f"{name} is left out: {net.reason}")
    grid = pair_grid(net.drawn["conv1"], IN_A_ROW)
    height, width = grid.shape[:2]
    figure = Figure(figsize=(COLUMN_WIDTH, COLUMN_WIDTH * height / width + 0.5), layout="constrained")
    panel = figure.subplots()
    panel.set_title(name, fontsize=8)
    panel.imshow(grid, interpolation="nearest", vmin=0, vmax=1)
    panel.set_axis_off()
    figure.supxlabel("Pairs of a filter (left) and its match in the permuted flipped net (right)", fontsize=8)
    return figure
