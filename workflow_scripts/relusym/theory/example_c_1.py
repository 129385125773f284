"""Example C.1: on s(x) = |x|, the best scalar net has half the error of the only equivariant net."""

from collections.abc import Callable

import numpy as np
from scipy.integrate import quad_vec

from relusym.randomness import stream


def normal(x: float) -> float:
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


# Densities that are symmetric about the origin and for which E|x| is finite
DENSITIES: dict[str, Callable[[float], float]] = {
    "normal": normal,
    "laplace": lambda x: np.exp(-abs(x)) / 2,
    "student_t_3": lambda x: 2 / (np.pi * np.sqrt(3) * (1 + x**2 / 3) ** 2),
    "two_normals": lambda x: (np.exp(-((x - 2) ** 2) / 2) + np.exp(-((x + 2) ** 2) / 2)) / np.sqrt(8 * np.pi),
    "logistic": lambda x: 1 / (4 * np.cosh(x / 2) ** 2) if abs(x) < 700 else 0.0,
}
QUADRATURE_TOLERANCE = 1e-6
TRAINING_TOLERANCE = 0.02
STEPS = 400
POINTS = 201


def network(W1: np.ndarray, W2: np.ndarray, x: float | np.ndarray) -> np.ndarray:
    """f(x) = W₂ ReLU(W₁ x) for scalar nets (nets,) at x, a number or (points, 1)."""
    return W2 * np.maximum(W1 * x, 0)


def expected_error(W1: np.ndarray, W2: np.ndarray, density: Callable[[float], float]) -> np.ndarray:
    """E|f(x) − |x|| of scalar nets (nets,), by quadrature on each half line."""

    def integrand(x: float) -> np.ndarray:
        return np.abs(network(W1, W2, x) - abs(x)) * density(x)

    halves = [quad_vec(integrand, *half, epsabs=1e-10, norm="max")[0] for half in ((-np.inf, 0), (0, np.inf))]
    return halves[0] + halves[1]


def train(rng: np.random.Generator, nets: int) -> tuple[np.ndarray, float]:
    """Errors E|f(x) − |x|| of scalar nets trained on symmetric data (nets,), and of the equivariant net, 0."""
    half = np.abs(rng.standard_normal(POINTS // 2))
    x = np.concatenate([-half, half])[:, None]
    W1, W2 = rng.standard_normal((2, nets))
    for step in range(STEPS):
        rate = 0.1 * (1 - step / STEPS)
        hidden = np.maximum(W1 * x, 0)
        slope = np.sign(W2 * hidden - np.abs(x))  # the derivative of the error with respect to f
        gradient1, gradient2 = (slope * W2 * (hidden > 0) * x).mean(0), (slope * hidden).mean(0)
        W1, W2 = W1 - rate * gradient1, W2 - rate * gradient2
    return np.abs(network(W1, W2, x) - np.abs(x)).mean(0), float(np.abs(x).mean())


def demonstrate(seed: int = 0, draws: int = 1000) -> dict:
    """Test the paper's net and `draws` random scalar nets by quadrature on every density, and `draws` trained nets."""
    rng = np.random.default_rng(stream(seed, "Example C.1"))
    measured, holds = {}, True
    for name, density in DENSITIES.items():
        W1, W2 = rng.standard_normal((2, draws + 2))
        W1[:2], W2[:2] = (1, 0), (1, 1)  # the paper's net f̃, and the equivariant net f, with W₁ = 0
        errors = expected_error(W1, W2, density)
        ratio, best = float(errors[0] / errors[1]), float(errors.min() / errors[1])
        # with two hidden units, W₁ = (1 −1)ᵀ and W₂ = (1 1), an equivariant net is exact
        both = quad_vec(lambda x, p=density: abs(max(x, 0) + max(-x, 0) - abs(x)) * p(x), -np.inf, np.inf)
        two_units = float(both[0])
        measured |= {
            f"equivariant_error_{name}": float(errors[1]),
            f"ratio_{name}": ratio,
            f"smallest_ratio_of_random_nets_{name}": float(errors[2:].min() / errors[1]),
            f"error_of_two_equivariant_units_{name}": two_units,
        }
        holds &= abs(ratio - 0.5) <= QUADRATURE_TOLERANCE and best >= 0.5 - QUADRATURE_TOLERANCE
        holds &= two_units <= QUADRATURE_TOLERANCE
    errors, equivariant = train(rng, draws)
    ratios = errors / equivariant
    shifted = expected_error(np.array([1.0, 0.0]), np.ones(2), lambda x: normal(x - 0.5))
    shifted_ratio = float(shifted[0] / shifted[1])
    off_half = [abs(measured[f"ratio_{name}"] - 0.5) for name in DENSITIES]
    holds &= abs(ratios.min() - 0.5) <= TRAINING_TOLERANCE
    return {
        "statement": "Example C.1",
        "claim": "For x symmetric about 0 and s(x) = |x|, the smallest expected error of a scalar net W₂ ReLU(W₁ x) is "
        "half that of the only equivariant one, f = 0.",
        "holds": bool(holds),
        "draws": draws,
        "tested": "Ratio of the errors of the best scalar net and of the equivariant one: by quadrature on "
        f"{len(DENSITIES)} densities with random nets beside, and by training as many nets",
        "largest_violation": max(*off_half, abs(float(ratios.min()) - 0.5)),
        "counterfactual": f"A normal density about 0.5: the ratio is {shifted_ratio:.2g}. Two hidden units: the "
        "equivariant net errs by "
        f"{max(measured[f'error_of_two_equivariant_units_{name}'] for name in DENSITIES):.2g}",
        "measured": {
            **measured,
            "ratio_shifted_normal": shifted_ratio,
            "smallest_ratio_of_trained_nets": float(ratios.min()),
            "share_of_trained_nets_at_half": float((np.abs(ratios - 0.5) <= TRAINING_TOLERANCE).mean()),
            "share_of_trained_nets_stuck_at_zero": float((np.abs(ratios - 1) <= TRAINING_TOLERANCE).mean()),
        },
    }
