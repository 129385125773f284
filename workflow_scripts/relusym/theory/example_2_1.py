"""Example 2.1: an invariant net need not be layerwise equivariant, but a net of the same function is."""

import numpy as np

from relusym.randomness import stream

# W₁ is printed as 2 × 2, but the text calls ρ₁(h) a scalar, which fits W₁ = (1 0): both are tested.
FIRST_LAYERS = {"2x2": np.array([[1.0, 0.0], [0.0, 0.0]]), "1x2": np.array([[1.0, 0.0]])}
SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])
TOLERANCE = 1e-12


def network(first: np.ndarray, second: np.ndarray, x: np.ndarray) -> np.ndarray:
    """W₂ ReLU(W₁ x) for points x (2, points)."""
    return second @ np.maximum(first @ x, 0)


def least_equivariance_defect(first: np.ndarray) -> float:
    """The least ‖ρ W₁ − W₁ ρ₀(h)‖ (Frobenius) over all matrices ρ: 0 if and only if some ρ makes W₁ equivariant."""
    rho = np.linalg.lstsq(first.T, (first @ SWAP).T, rcond=None)[0].T
    return float(np.linalg.norm(rho @ first - first @ SWAP))


def demonstrate(seed: int = 0, draws: int = 1000) -> dict:
    """Test f = W₂ ReLU(W₁ x) with W₂ = 0 on `draws` points, the defect of W₁ over all ρ₁(h), and f̃ with W̃₁ = 0."""
    x = np.random.default_rng(stream(seed, "Example 2.1")).standard_normal((2, draws))
    holds, measured, largest = True, {}, 0.0
    for shape, first in FIRST_LAYERS.items():
        second, zero = np.zeros((1, len(first))), np.zeros_like(first)
        outputs = network(first, second, x)
        errors = {
            "invariance_error": float(np.abs(network(first, second, SWAP @ x) - outputs).max()),
            "least_defect_of_first_layer": least_equivariance_defect(first),
            "difference_to_rewritten_net": float(np.abs(network(zero, second, x) - outputs).max()),
            "defect_of_rewritten_first_layer": float(np.linalg.norm(zero - zero @ SWAP)),  # with ρ₁(h) = I
        }
        measured |= {f"{name}_{shape}": value for name, value in errors.items()}
        defect = errors.pop("least_defect_of_first_layer")
        largest = max(largest, *errors.values())
        holds &= defect > TOLERANCE and max(errors.values()) <= TOLERANCE
    return {
        "statement": "Example 2.1",
        "claim": "A two-layer net with a dead output is invariant although no representation makes its first layer "
        "equivariant, and an equal net is layerwise equivariant.",
        "holds": bool(holds),
        "draws": draws,
        "tested": "f and the rewritten net agree and are invariant at random points; so is the rewritten layer",
        "largest_violation": largest,
        "counterfactual": "The first layer as it is, 2 x 2 or 1 x 2: the best of all matrices misses equivariance by "
        f"{min(measured[f'least_defect_of_first_layer_{shape}'] for shape in FIRST_LAYERS):.2g}",
        "measured": measured,
    }
