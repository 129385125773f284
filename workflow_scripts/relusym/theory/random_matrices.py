"""Random matrices for testing the statements: permutations, scaled permutations, well-conditioned matrices."""

import numpy as np


def permutations(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """Uniformly drawn permutation matrices, float64 (draws, size, size)."""
    order = rng.permuted(np.tile(np.arange(size), (draws, 1)), axis=1)
    return np.eye(size)[order]


def positive_scales(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """Positive numbers between e^-1 and e, uniform in the logarithm, float64 (draws, size)."""
    return np.exp(rng.uniform(-1, 1, (draws, size)))


def scaled_permutations(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """PD as in Lemma 2.2: P a permutation, D diagonal with positive entries, float64 (draws, size, size)."""
    return permutations(rng, draws, size) * positive_scales(rng, draws, size)[:, None]


def invertible(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """Dense matrices with singular values in [e^-1, e], so that rounding stays small, float64 (draws, size, size)."""
    left, right = np.linalg.qr(rng.standard_normal((2, draws, size, size)))[0]
    return left * positive_scales(rng, draws, size)[:, None] @ right


def distance_to_scaled_permutation(matrices: np.ndarray) -> np.ndarray:
    """Distance of invertible (..., n, n) from scaled permutations, (...): negative parts, second largest entries."""
    negative = np.maximum(-matrices, 0).max((-2, -1))
    second = np.sort(np.abs(matrices), -1)[..., -2].max(-1)
    return np.maximum(negative, second)


def all_invertible(size: int, entries: range) -> np.ndarray:
    """All invertible matrices with these integer entries, float64 (…, size, size)."""
    grid = np.meshgrid(*[np.array(entries, float)] * size**2, indexing="ij")
    matrices = np.stack(grid, -1).reshape(-1, size, size)
    return matrices[np.abs(np.linalg.det(matrices)) > 0.5]
