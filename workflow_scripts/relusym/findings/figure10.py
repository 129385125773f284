"""Figure 10: two classes of images in which each shape cooccurs with its horizontal flip."""

from matplotlib.figure import Figure

from relusym.findings.print_style import COLUMN_WIDTH
from relusym.theory.cooccurrence import image_classes


def figure10(seed: int = 0, images: int = 4) -> Figure:
    """Figure 10: `images` images of each class of Example C.2, a row a class, shapes dark on white."""
    classes = image_classes(seed, images)
    figure = Figure(figsize=(COLUMN_WIDTH, 2 * COLUMN_WIDTH / images + 0.1), layout="constrained")
    rows = figure.subplots(2, images, squeeze=False)
    for number, (row, drawn) in enumerate(zip(rows, classes, strict=True), start=1):
        row[0].set_ylabel(f"class {number}")
        for axes, image in zip(row, drawn, strict=True):
            axes.imshow(image, cmap="gray_r", interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    return figure
