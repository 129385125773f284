"""The symmetric group S₃, a small non-abelian group: its multiplication table and its transitive actions."""

from itertools import permutations

import numpy as np

ELEMENTS = np.array(list(permutations(range(3))))  # g maps i to ELEMENTS[g, i]; the identity is first
ORDER = len(ELEMENTS)
# PRODUCT[h, g] is hg: first g, then h
PRODUCT = (ELEMENTS[:, ELEMENTS][..., None, :] == ELEMENTS).all(-1).argmax(-1)
_EVEN = np.linalg.det(np.eye(3)[ELEMENTS]) > 0

# All transitive actions of S₃ up to isomorphism, by the number n of points: g maps point x to ACTIONS[n][g, x]
ACTIONS = {6: PRODUCT, 3: ELEMENTS, 2: np.where(_EVEN[:, None], [0, 1], [1, 0]), 1: np.zeros((ORDER, 1), int)}


def action(orbits: tuple[int, ...]) -> np.ndarray:
    """The action on a disjoint union of orbits of these sizes (each 1, 2, 3 or 6), int (6, sum of sizes)."""
    starts = np.cumsum((0, *orbits[:-1]))
    return np.concatenate([ACTIONS[size] + start for size, start in zip(orbits, starts, strict=True)], axis=1)


def representation(act: np.ndarray) -> np.ndarray:
    """Permutation matrices of an action (6, n): P(g) maps basis vector x to act[g, x], float64 (6, n, n)."""
    return np.eye(act.shape[1])[act].swapaxes(1, 2)
