"""Figure 3: the flipped net's training mirrors the net's, step by step."""

from __future__ import annotations

from relusym.findings import Drawing, Figure, Inputs, Selection, np
from relusym.findings.print_style import LINES, panels_of

CURVES = {  # precision and twin: label, line of `LINES`, dashes
    ("float64", "flipped_batches"): ("flipped batches, float64", 0, "-"),
    ("float32", "flipped_batches"): ("flipped batches, float32", 1, "--"),
    ("float64", "same_batches"): ("batches not flipped", 2, "-."),
}
FIGURE = Figure(__name__, reads=("flipped_training",), select=lambda settings: {})


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing]:
    """Left: the difference between the twin and the flipped net during training; right: both paths."""
    (record,) = inputs["flipped_training"]
    drawing, ((left, right),) = panels_of(2.6, 1, 2)
    smallest = np.finfo(np.float64).eps / 2
    for (precision, twin), (label, line, dashes) in CURVES.items():
        differences = np.maximum(record["runs"][precision][twin], smallest)  # a logarithmic axis has no 0
        left.plot(differences, dashes, color=LINES[line][0], linewidth=1.2, label=label)
    left.set(yscale="log", ylim=(smallest / 10, 10), xlabel="Step of SGD")
    left.set_ylabel("Largest difference to the flipped net,\nrelative to the largest weight")
    left.legend(fontsize=6.5, loc="center right")
    for name, label, line in (("net", r"net $\Phi$", 0), ("flipped", r"twin $\hat\Phi$", 2)):
        x, y = np.transpose(record["paths"][name])
        colour, marker = LINES[line]
        right.plot(x, y, color=colour, linewidth=1.2, label=label)
        right.plot(x[:1], y[:1], marker=marker, color=colour, markerfacecolor="white", markersize=4)
        right.plot(x[-1:], y[-1:], marker=marker, color=colour, markersize=4)
    right.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
    right.set(xlabel="Antisymmetric part of the filters", ylabel="Change of the symmetric part")
    right.legend(fontsize=6.5, loc="upper center")
    return (drawing,)
