"""Images with cooccurrence of equivariant features: the two classes of Figure 10, for Example C.2."""

from itertools import product

import numpy as np

from relusym.randomness import stream


def shape(*rows: str) -> np.ndarray:
    """A shape drawn with #, as float32 of 0 and 1."""
    return np.array([[pixel == "#" for pixel in row] for row in rows], np.float32)


ANGLE = shape("...#.", "..#..", ".#...", "..#..", "...#.")
SLANTED_Y = shape("#...#", ".#.#.", "..#..", ".#...", "#....")
NARROW_K = shape(".#.#.", ".#.#.", ".##..", ".#.#.", ".#.#.")
SHAPES = (ANGLE, SLANTED_Y)  # of class 1, where s(x) = 1, and class 2, where s(x) = 0
CELL = 10  # pixels; an image has 2 × 2 cells with one shape each, so that no filter sees two shapes at once


def image_classes(
    seed: int,
    images: int,
    shapes: tuple[np.ndarray, ...] = SHAPES,
    orientations: tuple[int, ...] = (0, 0, 1, 1),
) -> np.ndarray:
    """Images of the classes of Figure 10, float32 (classes, images, 20, 20) of 0 and 1.

    Every image has four copies of its class's shape, two of them flipped, in random cells and randomly shifted by up to
    one pixel. Other `orientations` (1: flipped) give images outside the data distribution.
    """
    rng = np.random.default_rng(stream(seed, "Figure 10"))
    starts = (2, 3)  # a flip maps one to the other
    classes = []
    for drawn in shapes:
        tiles = np.zeros((2, 2, 2, CELL, CELL), np.float32)  # by orientation, first row and first column
        height, width = drawn.shape
        for (row, top), (column, left) in product(enumerate(starts), repeat=2):
            twins = np.stack([drawn, drawn[:, ::-1]])
            tiles[:, row, column, top : top + height, left : left + width] = twins
        turned = rng.permuted(np.tile(orientations, (images, 1)), axis=1)
        row, column = rng.integers(2, size=(2, images, 4))
        cells = tiles[turned, row, column].reshape(images, 2, 2, CELL, CELL)
        classes.append(cells.swapaxes(2, 3).reshape(images, 2 * CELL, 2 * CELL))
    return np.stack(classes)
