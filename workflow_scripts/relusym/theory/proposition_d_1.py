"""Proposition D.1: an invariant two-layer net with two inputs and two units equals a layerwise equivariant net.

All nets here have integer weights, and all tests are in integer arithmetic: nothing is rounded.
"""

import numpy as np

from relusym.randomness import stream

SWAP = np.array([[0, 1], [1, 0]])
FIRST_ENTRIES, SECOND_ENTRIES = range(-3, 4), range(-2, 3)  # of the small nets, all of which are tested
# the cases of the proof; "none" never occurs for an invariant net
CASES = ("full_rank", "symmetric_rows", "cancelling_units", "mirrored_units", "none")
LARGEST = 1000  # absolute value of the random weights


def outputs(W1: np.ndarray, W2: np.ndarray, x: np.ndarray) -> np.ndarray:
    """f(x) = W₂ ReLU(W₁ x) of nets W₁ (nets, 2, 2), W₂ (nets, 2) at points x (nets, 2, points): (nets, points)."""
    hidden = np.maximum((W1[..., None] * x[:, None]).sum(2), 0)
    return (W2[..., None] * hidden).sum(1)


def deciding_points(W1: np.ndarray) -> np.ndarray:
    """Points (nets, 2, 12) at which nets that kink only where W₁x or W₁Jx is 0 have to agree to agree everywhere.

    Such nets are positively homogeneous, and linear on each cone between neighbouring kinks and half axes, so that
    their values on the rays that bound the cones suffice; the half axes keep each cone narrower than a half plane.
    """
    kinks = W1[..., ::-1].swapaxes(1, 2) * np.array([1, -1])[:, None]  # columns orthogonal to the rows of W₁
    rays = np.concatenate([kinks, SWAP @ kinks, np.broadcast_to(np.eye(2, dtype=W1.dtype), W1.shape)], axis=2)
    return np.concatenate([rays, -rays], axis=2)


def is_invariant(W1: np.ndarray, W2: np.ndarray) -> np.ndarray:
    """Whether f(Jx) = f(x) for all x, exactly, for every net: bool (nets,)."""
    x = deciding_points(W1)
    return (outputs(W1, W2, SWAP @ x) == outputs(W1, W2, x)).all(1)


def layerwise_equivariant(W1: np.ndarray, W2: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rewrite invariant nets W₁ (nets, 2, 2), W₂ (nets, 2), int64, by the case analysis of the paper's proof.

    Returns V₁ (nets, 2, 2), V₂ (nets, 2) with entries ±1, ρ₁(h) (nets, 2, 2), and the case of the proof for each net.
    For nets that aren't invariant, the result is undefined.
    """
    V1, V2 = np.abs(W2)[..., None] * W1, np.where(W2 < 0, -1, 1)  # ReLU commutes with non-negative factors
    upper, lower = V1[:, 0], V1[:, 1]
    full_rank = upper[:, 0] * lower[:, 1] != upper[:, 1] * lower[:, 0]
    symmetric = ~full_rank & (V1[..., 0] == V1[..., 1]).all(1)  # v₁ = v₂, a zero in u, or rank 0
    aligned = (upper * lower).sum(1)  # u₁u₂‖v‖², for W₁ = uvᵀ
    cancelling = ~full_rank & ~symmetric & (aligned > 0)  # rank 1, case I: the two units cancel
    mirrored = ~full_rank & ~symmetric & (aligned < 0)  # rank 1, case II: f = |v₁ (x₁ − x₂)|, up to scale
    V1 = np.where(cancelling[:, None, None], 0, V1)
    rho1 = np.where((full_rank | mirrored)[:, None, None], SWAP, np.eye(2, dtype=W1.dtype))
    case = np.select([full_rank, symmetric, cancelling, mirrored], list(CASES[:-1]), CASES[-1])
    return V1, V2, rho1, case


def equivariant_layers(V1: np.ndarray, V2: np.ndarray, rho1: np.ndarray) -> np.ndarray:
    """Whether ρ₁(h) is a permutation representation of S₂ with ρ₁V₁ = V₁J and V₂ρ₁ = V₂, exactly: bool (nets,)."""
    involutory = (rho1 @ rho1 == np.eye(2)).all((1, 2)) & (rho1 >= 0).all((1, 2))
    first = (rho1 @ V1 == V1 @ SWAP).all((1, 2))
    return involutory & first & ((V2[:, None] @ rho1)[:, 0] == V2).all(1)


def every_small_net() -> tuple[np.ndarray, np.ndarray]:
    """All W₁ and W₂ with entries in FIRST_ENTRIES and SECOND_ENTRIES, int64 (60025, 2, 2) and (60025, 2)."""
    entries = [np.array(FIRST_ENTRIES)] * 4 + [np.array(SECOND_ENTRIES)] * 2
    return layers(np.stack(np.meshgrid(*entries, indexing="ij"), -1).reshape(-1, 6))


def random_invariant_nets(rng: np.random.Generator, draws: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Invariant nets with large random integer weights, `draws` of each kind."""
    p, q, r, s = rng.integers(-LARGEST, LARGEST + 1, (4, draws))
    a, b = rng.integers(1, LARGEST + 1, (2, draws))
    sign = rng.choice([-1, 1], draws)
    zero = np.zeros(draws, int)
    weights = {
        "twin_units": (b * p, b * q, a * q, a * p, sign * a, sign * b),
        "symmetric_units": (p, p, q, q, r, s),
        "cancelling_units": (b * p, b * q, a * p, a * q, sign * a, -sign * b),
        "mirrored_units": (b * p, -b * p, -a * p, a * p, sign * a, sign * b),
        "dead_unit": (p, p, r, s, q, zero),
        "dead_net": (p, q, r, s, zero, zero),
    }
    return {kind: layers(np.stack(numbers, -1)) for kind, numbers in weights.items()}


def layers(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W₁ (nets, 2, 2) and W₂ (nets, 2) of weights (nets, 6)."""
    return weights[:, :4].reshape(-1, 2, 2), weights[:, 4:]


def demonstrate(seed: int = 0, draws: int = 5000) -> dict:
    """Rewrite every small integer net that is invariant, and `draws` random nets of each kind, and compare."""
    rng = np.random.default_rng(stream(seed, "Proposition D.1"))
    small = every_small_net()
    mask = is_invariant(*small)
    kinds = {"small": tuple(layer[mask] for layer in small), **random_invariant_nets(rng, draws)}
    counts = dict.fromkeys(CASES, 0)
    invariant = layerwise = equal = total = already = 0
    for W1, W2 in kinds.values():
        V1, V2, rho1, case = layerwise_equivariant(W1, W2)
        x = np.concatenate([deciding_points(W1), rng.integers(-LARGEST, LARGEST, (len(W1), 2, 32))], axis=2)
        total += len(W1)
        invariant += int(is_invariant(W1, W2).sum())
        layerwise += int(equivariant_layers(V1, V2, rho1).sum())
        equal += int((outputs(V1, V2, x) == outputs(W1, W2, x)).all(1).sum())
        already += int(((np.abs(W2)[..., None] * W1 == V1).all((1, 2)) & (W2 != 0).all(1)).sum())
        for name, count in zip(*np.unique(case, return_counts=True), strict=True):
            counts[str(name)] += int(count)
    others = tuple(layer[~mask] for layer in small)
    V1, V2, rho1, _ = layerwise_equivariant(*others)
    x = deciding_points(others[0])
    rewritten = equivariant_layers(V1, V2, rho1) & (outputs(V1, V2, x) == outputs(*others, x)).all(1)
    return {
        "statement": "Proposition D.1",
        "claim": "Every net W₂ ReLU(W₁ x) with two inputs, two hidden units and one output that is invariant to "
        "swapping its inputs equals a layerwise equivariant net of the same size.",
        "holds": invariant == layerwise == equal == total > 0,
        "draws": draws * (len(kinds) - 1),
        "tested": "Invariant nets with integer weights, random ones and all small ones, rewritten as in the proof, "
        "without rounding: nets that don't come out equal and layerwise equivariant",
        "largest_violation": float(total - min(invariant, layerwise, equal)),
        "counterfactual": f"The {len(rewritten):,} small nets that aren't invariant, rewritten likewise: "
        f"{int(rewritten.sum())} come out equal and layerwise equivariant",
        "measured": {
            "small_nets": len(mask),
            "small_nets_that_are_invariant": int(mask.sum()),
            "nets_rewritten": total,
            "of_them_invariant": invariant,
            "of_them_rewritten_layerwise_equivariant": layerwise,
            "of_them_equal_to_the_rewritten_net": equal,
            "of_them_only_rescaled": already,
            "not_invariant_nets_rewritten_all_the_same": int(rewritten.sum()),
            **{f"case_{name}": count for name, count in counts.items()},
        },
    }
