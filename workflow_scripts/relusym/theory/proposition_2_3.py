"""Proposition 2.3: a two-layer net with invertible layers is equivariant only through scaled permutations."""

import numpy as np

from relusym.randomness import stream
from relusym.theory import random_matrices
from relusym.theory.random_matrices import invertible
from relusym.theory.symmetric_group import PRODUCT, action, representation

# The sizes of the orbits of S₃ on the 6 hidden units; S₃ moves unit 0 in each
ORBITS = ((6,), (3, 3), (3, 2, 1), (2, 2, 2), (3, 1, 1, 1), (2, 2, 1, 1))
SIZE = 6
POINTS = 32
ROUNDING = 1e-10
VIOLATION = 1e-6


def hidden_representation(P: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """ρ₁(g) = T P(g) T⁻¹ for permutation matrices P (6, n, n) and bases T (draws, n, n): (draws, 6, n, n).

    With T = diag(positive) Π for any permutation Π, it has the form P(g)D(g); every scaled permutation representation
    of a finite group can be written this way.
    """
    return basis[:, None] @ P @ np.linalg.inv(basis)[:, None]


def surrounding_representations(
    W1: np.ndarray, W2: np.ndarray, before: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ρ₀(g) = W₁⁻¹ `before`(g) W₁ and ρ₂(g) = W₂ `after`(g) W₂⁻¹, all (draws, 6, n, n)."""
    W1, W2 = W1[:, None], W2[:, None]
    return np.linalg.inv(W1) @ before @ W1, W2 @ after @ np.linalg.inv(W2)


def equivariance_error(
    W1: np.ndarray, W2: np.ndarray, rho0: np.ndarray, rho2: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The largest |f(ρ₀(g)x) − ρ₂(g)f(x)| over g and points x (draws, n, points), divided by the largest |f(x)|:
    (draws,)."""
    W1, W2, x = W1[:, None], W2[:, None], x[:, None]
    outputs = W2 @ np.maximum(W1 @ x, 0)
    moved = W2 @ np.maximum(W1 @ rho0 @ x, 0)
    return np.abs(moved - rho2 @ outputs).max((1, 2, 3)) / np.abs(outputs).max((1, 2, 3))


def condition_defect(W1: np.ndarray, W2: np.ndarray, rho0: np.ndarray, rho2: np.ndarray) -> np.ndarray:
    """The largest violation of W₁ρ₀(g)W₁⁻¹ = W₂⁻¹ρ₂(g)W₂ = P(g)D(g) over all g: (draws,)."""
    before = W1[:, None] @ rho0 @ np.linalg.inv(W1)[:, None]
    after = np.linalg.inv(W2)[:, None] @ rho2 @ W2[:, None]
    distance = random_matrices.distance_to_scaled_permutation(before).max(1)
    return np.maximum(distance, np.abs(before - after).max((1, 2, 3)))


def representation_error(rho: np.ndarray) -> float:
    """The largest |ρ(hg) − ρ(h)ρ(g)| of ρ (draws, 6, n, n)."""
    return float(np.abs(rho[:, PRODUCT] - rho[:, :, None] @ rho[:, None]).max())


def layer_defect(
    W1: np.ndarray, W2: np.ndarray, rho0: np.ndarray, rho1: np.ndarray, rho2: np.ndarray
) -> float:
    """The largest absolute entry of ρ₁(g)W₁ − W₁ρ₀(g) and ρ₂(g)W₂ − W₂ρ₁(g)."""
    first = rho1 @ W1[:, None] - W1[:, None] @ rho0
    second = rho2 @ W2[:, None] - W2[:, None] @ rho1
    return float(max(np.abs(first).max(), np.abs(second).max()))


def bases(rng: np.random.Generator, draws: int) -> np.ndarray:
    """Bases T that make a permutation representation a scaled one, with the units in random order."""
    scales = random_matrices.positive_scales(rng, draws, SIZE)[:, :, None]
    return scales * random_matrices.permutations(rng, draws, SIZE)


def perturbed(
    rng: np.random.Generator, W1: np.ndarray, W2: np.ndarray, P: np.ndarray, T: np.ndarray
) -> dict[str, tuple[np.ndarray, ...]]:
    """Nets and representations (W₁, W₂, ρ₀, ρ₂), each of which violates one condition of the proposition."""
    draws = len(W1)
    rho1 = hidden_representation(P, T)
    rho0, rho2 = surrounding_representations(W1, W2, rho1, rho1)
    dense = hidden_representation(P, T + 0.1 * invertible(rng, draws, SIZE))
    moved = np.arange(SIZE) == 0  # unit 0, which the group moves
    signed, other = (hidden_representation(P, T * np.where(moved, by, 1.0)) for by in (-1.0, 1.1))
    return {
        "dense_hidden_representation": (W1, W2, *surrounding_representations(W1, W2, dense, dense)),
        "signed_permutations": (W1, W2, *surrounding_representations(W1, W2, signed, signed)),
        "different_scales_after_relu": (W1, W2, *surrounding_representations(W1, W2, rho1, other)),
        "first_layer_moved": (W1 + 0.1 * invertible(rng, draws, SIZE), W2, rho0, rho2),
    }


def demonstrate(seed: int = 0, draws: int = 200) -> dict:
    """Test `draws` nets for every kind of scaled permutation representation of S₃, as built and perturbed."""
    rng = np.random.default_rng(stream(seed, "Proposition 2.3"))
    built = {"equivariance_error": 0.0, "representation_error": 0.0, "layer_defect": 0.0}
    broken, agreed, compared = {}, 0, 0
    for orbits in ORBITS:
        P = representation(action(orbits))
        W1, W2, T = invertible(rng, draws, SIZE), invertible(rng, draws, SIZE), bases(rng, draws)
        x = rng.standard_normal((draws, SIZE, POINTS))
        rho1 = hidden_representation(P, T)
        rho0, rho2 = surrounding_representations(W1, W2, rho1, rho1)
        errors = {
            "equivariance_error": float(equivariance_error(W1, W2, rho0, rho2, x).max()),
            "representation_error": max(representation_error(rho0), representation_error(rho2)),
            "layer_defect": layer_defect(W1, W2, rho0, rho1, rho2),
        }
        built = {name: max(value, errors[name]) for name, value in built.items()}
        cases = {"as_built": (W1, W2, rho0, rho2), **perturbed(rng, W1, W2, P, T)}
        for kind, (first, second, before, after) in cases.items():
            error = equivariance_error(first, second, before, after, x)
            condition = condition_defect(first, second, before, after)
            agreed += int(((error <= ROUNDING) == (condition <= ROUNDING)).sum())
            compared += draws
            if kind != "as_built":
                broken[kind] = min(float(error.min()), broken.get(kind, np.inf))
    return {
        "statement": "Proposition 2.3",
        "claim": "A two-layer net with invertible layers is equivariant if and only if ρ₀ and ρ₂ are conjugate, by its "
        "layers, to one scaled permutation representation, and is then layerwise equivariant.",
        "holds": max(built.values()) <= ROUNDING and min(broken.values()) >= VIOLATION and agreed == compared,
        "draws": draws * len(ORBITS),
        "tested": "Nets built from random layers and scaled permutation representations of S3: equivariance of the net "
        "and of either layer",
        "largest_violation": max(built.values()),
        "counterfactual": "Dense or signed representations, other scales after ReLU, a layer moved: the relative "
        f"equivariance error is at least {min(broken.values()):.2g}",
        "measured": {
            **{f"largest_{name}": value for name, value in built.items()},
            **{f"smallest_equivariance_error_with_{kind}": value for kind, value in broken.items()},
            "nets_compared_with_the_condition": compared,
            "nets_that_agree_with_the_condition": agreed,
        },
    }
