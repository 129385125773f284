"""Lemma 2.2: ReLU(Ax) = B ReLU(x) for invertible A and B only if A = B is a scaled permutation."""

import numpy as np

from relusym.randomness import stream
from relusym.theory import random_matrices
from relusym.theory.random_matrices import invertible, positive_scales, scaled_permutations

SIZES = (2, 3, 4, 5, 6)
ENTRIES = range(-1, 3)  # of the 3 × 3 matrices, all of which are tested
ROUNDING = 1e-12
VIOLATION = 1e-6


def witnesses(A: np.ndarray) -> np.ndarray:
    """The points that the proof in B.1 inserts, for matrices A (draws, n, n): float64 (draws, n, points).

    They are ±e_k, and A_ik e_k′ − A_ik′ e_k for every row i and k < k′. The latter are divided by the larger
    coefficient, so that the defect is proportional to the error in A.
    """
    draws, size, _ = A.shape
    unit = np.eye(size)
    units = np.broadcast_to(np.concatenate([unit, -unit], axis=1), (draws, size, 2 * size))
    k, other = np.triu_indices(size, 1)
    pairs = A[:, :, k, None] * unit[other] - A[:, :, other, None] * unit[k]
    pairs = pairs.reshape(draws, -1, size).swapaxes(1, 2)
    largest = np.abs(pairs).max(1, keepdims=True)
    return np.concatenate([units, pairs / np.where(largest > 0, largest, 1)], axis=2)


def defect(A: np.ndarray, B: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The largest |ReLU(Ax) − B ReLU(x)| over points x (draws, n, points), float64 (draws,)."""
    return np.abs(np.maximum(A @ x, 0) - B @ np.maximum(x, 0)).max((1, 2))


def commuting(rng: np.random.Generator, draws: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (A, B) for which the equation holds by Lemma 2.2: A = B = PD."""
    A = scaled_permutations(rng, draws, size)
    return A, A


def not_commuting(
    rng: np.random.Generator, draws: int, size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Invertible A and B that Lemma 2.2 excludes; in half of the kinds, B is ReLU(A), the only candidate by x = e_k."""
    scaled, dense = scaled_permutations(rng, draws, size), invertible(rng, draws, size)
    signs = np.where(rng.random((draws, size)) < 0.5, -1.0, 1.0)
    signs[:, 0] = -1
    signed = scaled * signs[:, None]
    nearly = scaled + 0.01 * rng.uniform(0.5, 1, scaled.shape)
    return {
        "dense": (dense, np.maximum(dense, 0)),
        "dense_with_free_b": (dense, invertible(rng, draws, size)),
        "orthogonal": (orthogonal := np.linalg.qr(dense)[0], np.maximum(orthogonal, 0)),
        "signed_permutation": (signed, np.abs(signed)),
        "nearly_scaled_permutation": (nearly, nearly),
        "other_scales": (scaled, scaled * (1 + 0.01 * positive_scales(rng, draws, size)[:, None])),
    }


def exhaust() -> dict[str, int]:
    """Test every invertible 3 × 3 A with entries in ENTRIES, without rounding, at the proof's points; B = ReLU(A)."""
    A = random_matrices.all_invertible(3, ENTRIES)
    chunks = np.array_split(A, 32)  # the points for all matrices at once need too much memory
    commutes = np.concatenate([defect(part, np.maximum(part, 0), witnesses(part)) == 0 for part in chunks])
    scaled = random_matrices.distance_to_scaled_permutation(A) == 0
    return {
        "integer_matrices": len(A),
        "integer_matrices_that_commute": int(commutes.sum()),
        "integer_scaled_permutations": int(scaled.sum()),
        "integer_matrices_against_the_lemma": int((commutes != scaled).sum()),
    }


def demonstrate(seed: int = 0, draws: int = 2000) -> dict:
    """Test `draws` pairs of every kind and size at the proof's points, and those of the lemma also at random points."""
    rng = np.random.default_rng(stream(seed, "Lemma 2.2"))
    largest, smallest = 0.0, {}
    for size in SIZES:
        A, B = commuting(rng, draws, size)
        x = np.concatenate([witnesses(A), rng.standard_normal((draws, size, 32))], axis=2)
        largest = max(largest, float(defect(A, B, x).max()))
        for kind, (A, B) in not_commuting(rng, draws, size).items():
            smallest[kind] = min(float(defect(A, B, witnesses(A)).min()), smallest.get(kind, np.inf))
    counted = exhaust()
    against = counted["integer_matrices_against_the_lemma"]
    return {
        "statement": "Lemma 2.2",
        "claim": "Among invertible matrices exactly the scaled permutations A = B = PD satisfy ReLU(Ax) = B ReLU(x) "
        "for all x.",
        "holds": largest <= ROUNDING and min(smallest.values()) >= VIOLATION and against == 0,
        "draws": draws * len(SIZES),
        "tested": "ReLU(Ax) = B ReLU(x) for random A = B = PD, sizes "
        f"{SIZES[0]} to {SIZES[-1]}; every invertible 3 x 3 matrix with entries {ENTRIES[0]} to {ENTRIES[-1]}",
        "largest_violation": max(largest, float(against)),
        "counterfactual": "Other invertible A and B (dense, orthogonal, signed, nearly scaled permutations): the two "
        f"sides differ by at least {min(smallest.values()):.2g}",
        "measured": {
            "largest_defect_of_scaled_permutations": largest,
            **{f"smallest_defect_of_{kind}": value for kind, value in smallest.items()},
            **counted,
        },
    }
