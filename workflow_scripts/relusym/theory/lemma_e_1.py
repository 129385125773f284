"""Lemma E.1: ReLU(Ax + a) = B ReLU(x) + b for invertible A and B only if a = b = 0."""

import numpy as np

from relusym.randomness import stream
from relusym.theory.random_matrices import all_invertible, invertible, scaled_permutations

SIZES = (1, 2, 3, 4, 5)
MULTIPLES = np.array([0.0, 1.0, -1.0, -2.0])  # the proof inserts these multiples of A⁻¹a
ROUNDING = 1e-12
VIOLATION = 1e-6


def defect(A: np.ndarray, B: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest |ReLU(Ax + a) − B ReLU(x) − b| at the proof's four points; A, B (draws, n, n), a, b (draws, n)."""
    x = np.linalg.solve(A, a[..., None]) * MULTIPLES
    return np.abs(np.maximum(A @ x + a[..., None], 0) - B @ np.maximum(x, 0) - b[..., None]).max((1, 2))


def affine_pairs(rng: np.random.Generator, draws: int, size: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Random (A, B, a, b) with A and B invertible, a or b not 0, and |a|, |b| at most 1, from easy to hard cases: by
    x = 0 the only candidate is b = ReLU(a), and Lemma 2.2 suggests A = B = PD."""
    A, B = invertible(rng, draws, size), invertible(rng, draws, size)
    scaled = scaled_permutations(rng, draws, size)
    a, b = rng.standard_normal((2, draws, size))
    a, b = a / np.abs(a).max(1, keepdims=True), b / np.abs(b).max(1, keepdims=True)
    zero = np.zeros_like(a)
    return {
        "free_a_and_b": (A, B, a, b),
        "b_forced": (A, B, a, np.maximum(a, 0)),
        "only_b": (A, B, zero, b),
        "scaled_permutation_and_b_forced": (scaled, scaled, a, np.maximum(a, 0)),
        "scaled_permutation_and_negative_a": (scaled, scaled, -np.abs(a), zero),
    }


def largest_linear_defect(rng: np.random.Generator, draws: int) -> float:
    """The largest |ReLU(Ax) − A ReLU(x)| of scaled permutations, the case a = b = 0, at random points."""
    largest = []
    for size in SIZES:
        A, x = scaled_permutations(rng, draws, size), rng.standard_normal((draws, size, 32))
        largest.append(float(np.abs(np.maximum(A @ x, 0) - A @ np.maximum(x, 0)).max()))
    return max(largest)


def exhaust() -> dict[str, int]:
    """Test all invertible 2 × 2 A and B and all a and b with entries −1, 0, 1, without rounding (|det| is 1 or 2)."""
    matrices = all_invertible(2, range(-1, 2))
    vectors = np.stack(np.meshgrid(*[np.arange(-1.0, 2)] * 4, indexing="ij"), -1).reshape(-1, 4)
    i, j, k = np.indices((len(matrices), len(matrices), len(vectors))).reshape(3, -1)
    satisfied = defect(matrices[i], matrices[j], vectors[k, :2], vectors[k, 2:]) <= ROUNDING
    affine = vectors[k].any(1)
    return {
        "integer_cases_with_a_or_b": int(affine.sum()),
        "of_them_satisfied_at_the_four_points": int((satisfied & affine).sum()),
    }


def demonstrate(seed: int = 0, draws: int = 2000) -> dict:
    """Test `draws` cases of every kind and size at the proof's four points, and every small integer case."""
    rng = np.random.default_rng(stream(seed, "Lemma E.1"))
    smallest, satisfied = {}, 0
    for size in SIZES:
        for kind, case in affine_pairs(rng, draws, size).items():
            defects = defect(*case)
            satisfied += int((defects <= ROUNDING).sum())
            smallest[kind] = min(float(defects.min()), smallest.get(kind, np.inf))
    counted = exhaust()
    linear = largest_linear_defect(rng, draws)
    return {
        "statement": "Lemma E.1",
        "claim": "For invertible A and B, ReLU(Ax + a) = B ReLU(x) + b for all x implies a = b = 0.",
        "holds": min(smallest.values()) >= VIOLATION and counted["of_them_satisfied_at_the_four_points"] == 0,
        "draws": draws * len(SIZES),
        "tested": "Random cases, and all 2 x 2 ones with entries -1 to 1, in which a or b isn't 0: those that satisfy "
        "the equation at the proof's four points",
        "largest_violation": float(satisfied + counted["of_them_satisfied_at_the_four_points"]),
        "counterfactual": "a = b = 0 and A = B = PD satisfy it at random points, up to "
        f"{linear:.2g}; the others miss it by at least {min(smallest.values()):.2g}",
        "measured": {
            **{f"smallest_defect_with_{kind}": value for kind, value in smallest.items()},
            "largest_defect_with_a_and_b_zero": linear,
            **counted,
        },
    }
