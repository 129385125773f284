"""Figure 2: how flipped filters are permuted to align with the originals, in four steps, for filters of one net."""

from __future__ import annotations

from relusym.findings import Drawing, Figure, Inputs, Selection, Settings, np
from relusym.findings.figures.filter_pairs import colours
from relusym.findings.frames import first_kept
from relusym.findings.print_style import empty_drawing, panels_of
from relusym.findings.selection import has_vgg11s

STEPS = ("1. original", "2. flipped", "3. permuted", "4. flipped back")
SHOWN = 3  # filters


def select(settings: Settings) -> Selection:
    models = settings.table("table2")
    return {"model": "cnn_inv" if "cnn_inv" in models else models[0]}


FIGURE = Figure(__name__, reads=("filters",), exists=has_vgg11s, select=select)


def exemplary_filters(filters: np.ndarray, permutation: np.ndarray) -> list[int]:
    """Up to three channels that the permutation (c,) maps to each other: a swapped pair around a fixed channel.

    The pair is the one whose filters (conv 1's, (c, 3, h, w)) are the most alike once one is flipped, relative to their
    asymmetry; the fixed channel is the most symmetric. Without swapped channels, up to three fixed ones; without fixed
    ones, the pair alone; without both, a cycle of three, or none.
    """
    from relusym.permutations import channel_orders

    permutation = np.asarray(permutation, int)
    orders = channel_orders(permutation)
    flipped = filters[..., ::-1]
    differences = filters - flipped, filters - flipped[permutation]
    asymmetry, mismatch = (np.sqrt(np.square(each).sum((1, 2, 3))) for each in differences)
    strength = np.sqrt(np.square(filters).sum((1, 2, 3)))
    least = 0.1 * strength.max()  # so that the weakest filters aren't chosen
    swapped = [c for c in np.argsort(mismatch / (asymmetry + least)) if orders[c] == 2]
    fixed = [int(c) for c in np.argsort(mismatch / (strength + least)) if orders[c] == 1]
    if swapped:
        first = int(swapped[0])
        return [first, *fixed[: SHOWN - 2], int(permutation[first])]
    if fixed:
        return fixed[:SHOWN]
    cycle = [int(c) for c in np.flatnonzero(orders == SHOWN)[:1]]
    return cycle and [cycle[0], int(permutation[cycle[0]]), int(permutation[permutation[cycle[0]]])]


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing]:
    """Figure 2 of one net, or why it has none; UserError if there is no net of the type."""
    from matplotlib.patches import ConnectionPatch

    net = first_kept(inputs["filters"], selection["model"])
    name = f"{selection['names'].get(net.model, net.model)}, seed {net.seed}"
    if net.status != "ok":
        return (empty_drawing(f"{name} is left out: {net.reason}"),)
    filters, permutation = net.drawn["conv1"][0].astype(np.float64), net.permutations["conv1"].astype(int)
    chosen = exemplary_filters(filters, permutation)
    if not chosen:
        return (empty_drawing(f"{name}: no channel of conv 1 has an order of at most {SHOWN}"),)
    matched = permutation[chosen]
    drawn = colours(filters)  # on the scale of Figure 1
    steps = [drawn[chosen], drawn[chosen][:, :, ::-1], drawn[matched][:, :, ::-1], drawn[matched]]
    channels = [chosen, chosen, matched, matched]
    drawing, panels = panels_of(0.55 + 0.95 * len(chosen), len(chosen), len(STEPS))
    for column, (step, title) in enumerate(zip(steps, STEPS, strict=True)):
        panels[0, column].set_title(title)
        for panel, image, channel in zip(panels[:, column], step, channels[column], strict=True):
            panel.imshow(image, interpolation="nearest", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
            panel.set_xlabel(f"channel {channel}", fontsize=7, labelpad=2)
    for row, channel in enumerate(matched):  # from its place in step 2 to its place in step 3
        ends = {"axesA": panels[chosen.index(channel), 1], "axesB": panels[row, 2]}
        style = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 1}
        places = (1.06, 0.5), (-0.06, 0.5), "axes fraction", "axes fraction"
        drawing.add_artist(ConnectionPatch(*places, **ends, **style))
    drawing.supylabel(f"Filters of conv 1, {name}")
    return (drawing,)
