"""Figure 10: two classes of images in which each shape cooccurs with its horizontal flip."""

from __future__ import annotations

from relusym.findings import Drawing, Figure, Inputs, Selection
from relusym.findings.print_style import COLUMN_WIDTH, panels_of

FIGURE = Figure(
    __name__,
    reads=(),
    select=lambda settings: {"seed": settings.sections.theory.seed, "images": 4},  # of each class
)


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing]:
    """One row per class of Example C.2, dark shapes on white."""
    from relusym.theory.cooccurrence import image_classes

    images = selection["images"]
    classes = image_classes(selection["seed"], images)
    drawing, rows = panels_of(2 * COLUMN_WIDTH / images + 0.1, len(classes), images)
    for number, (row, drawn) in enumerate(zip(rows, classes, strict=True), start=1):
        row[0].set_ylabel(f"class {number}", fontsize=10)
        for axes, image in zip(row, drawn, strict=True):
            axes.imshow(image, cmap="gray_r", interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
    return (drawing,)
