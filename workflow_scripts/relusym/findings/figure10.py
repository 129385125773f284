"""Figure 10: two classes of images in which each shape cooccurs with its horizontal flip.

about: seed and images (how many of each class), for figure.py, which has the images drawn.
"""

import numpy as np
from matplotlib.figure import Figure

from relusym.findings import About, Inputs
from relusym.findings.print_style import COLUMN_WIDTH


def draw(inputs: Inputs, about: About) -> tuple[Figure]:
    """Figure 10 of `inputs["image_classes"]`."""
    return (figure10(inputs["image_classes"]),)


def figure10(classes: np.ndarray) -> Figure:
    """A row a class of Example C.2, shapes dark on white.

    Args:
        classes: images (classes, images, height, width) with 0 and 1.
    """
    images = classes.shape[1]
    figure = Figure(figsize=(COLUMN_WIDTH, 2 * COLUMN_WIDTH / images + 0.1), layout="constrained")
    rows = figure.subplots(len(classes), images, squeeze=False)
    for number, (row, drawn) in enumerate(zip(rows, classes, strict=True), start=1):
        row[0].set_ylabel(f"class {number}")
        for axes, image in zip(row, drawn, strict=True):
            axes.imshow(image, cmap="gray_r", interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    return figure
