"""Proposition D.4: if ψ∘φ is equivariant, then G acts on the space between φ and ψ; here with S₃ on finite sets."""

import numpy as np

from relusym.randomness import stream
from relusym.theory.symmetric_group import ORDER, PRODUCT, action

ORBITS = (6, 3, 2, 1)  # of S₃ on X and on Z
ACTION = action(ORBITS)  # (6, 12): both α_X and α_Z
POINTS = ACTION.shape[1]
COPIES = 3  # in the second part, Y has this many times the points of Z


def equivariant_maps(rng: np.random.Generator, draws: int) -> np.ndarray:
    """Random equivariant maps X → Z, int (draws, 12): an orbit's first point maps to one that its stabiliser fixes."""
    maps = np.empty((draws, POINTS), int)
    for start in np.cumsum((0, *ORBITS[:-1])):
        stabiliser = ACTION[:, start] == start
        allowed = np.flatnonzero((ACTION[stabiliser] == np.arange(POINTS)).all(0))
        image = rng.choice(allowed, draws)
        maps[:, ACTION[:, start]] = ACTION[:, image].T  # the same where two elements agree there
    return maps


def factor(rng: np.random.Generator, composition: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Random φ: X → Y and ψ: Y → Z with ψ∘φ = `composition` (draws, 12); Y has 12 × copies points.

    ψ takes every value of Z once and further values at random, so that it is a bijection for one copy. Returns φ
    (draws, 12) and ψ (draws, 12 × copies).
    """
    draws = len(composition)
    rest = rng.integers(POINTS, size=(draws, POINTS * (copies - 1)))
    psi = rng.permuted(np.concatenate([np.tile(np.arange(POINTS), (draws, 1)), rest], axis=1), axis=1)
    fits = psi[:, None] == composition[:, :, None]
    phi = np.where(fits, rng.random(fits.shape), -1).argmax(2)
    return phi, psi


def is_action(acts: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Whether maps (draws, 6, n), restricted to the points `present` (draws, n), are a group action: bool (draws,).
    They must preserve `present` and satisfy (8), α(i, y) = y, and (9), α(hg, y) = α(h, α(g, y))."""
    draws = np.arange(len(acts))[:, None, None]
    inside = present[draws, acts]
    identity = acts[:, 0] == np.arange(acts.shape[2])
    elements = np.arange(ORDER)[None, :, None, None]
    twice = acts[draws[..., None], elements, acts[:, None]]  # [h, g, y]: first g, then h
    ok = inside.all(1) & identity & (acts[:, PRODUCT] == twice).all((1, 2))
    return (ok | ~present).all(1)


def act_through_inverse(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Part 1, ψ invertible: whether α_Y(g, y) = ψ⁻¹(α_Z(g, ψ(y))) is an action, and φ and ψ equivariant: (draws,)."""
    inverse = psi.argsort(1)
    rows = np.arange(len(psi))[:, None, None]
    moved = ACTION[:, psi].swapaxes(0, 1)
    acts = inverse[rows, moved]
    phi_equivariant = (phi[:, ACTION] == acts[rows, np.arange(ORDER)[:, None], phi[:, None]]).all((1, 2))
    psi_equivariant = (psi[rows, acts] == moved).all((1, 2))
    return is_action(acts, np.ones_like(psi, bool)) & phi_equivariant & psi_equivariant


def act_on_classes(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Part 2: whether G acts on Y′ = φ(X)/~, g mapping the class of φ(x) to that of φ(gx), so that φ and ψ are
    equivariant: bool (draws,).

    A class is represented by its value under ψ. The action is built from φ, which makes φ equivariant; that it is well
    defined, a group action, and agrees with α_Z (ψ is equivariant) is then checked.
    """
    rows = np.arange(len(phi))[:, None]
    classes = psi[rows, phi]
    moved = classes[:, ACTION]  # the class of φ(gx), (draws, 6, 12)
    acts = np.tile(np.arange(POINTS), (len(phi), ORDER, 1))
    acts[rows[..., None], np.arange(ORDER)[:, None], classes[:, None]] = moved
    present = np.zeros((len(phi), POINTS), bool)
    present[rows, classes] = True
    psi_equivariant = ((acts == ACTION) | ~present[:, None]).all((1, 2))
    return acts_on_image(classes) & is_action(acts, present) & psi_equivariant


def acts_on_image(phi: np.ndarray) -> np.ndarray:
    """Whether some action on φ(X) itself makes φ equivariant, i.e. φ(x) = φ(x′) implies φ(gx) = φ(gx′): (draws,)."""
    moved = phi[:, ACTION]
    together = phi[:, :, None] == phi[:, None]
    return ((moved[..., None] == moved[:, :, None]) | ~together[:, None]).all((1, 2, 3))


def demonstrate(seed: int = 0, draws: int = 2000) -> dict:
    """Test `draws` random factorisations of random equivariant maps for each part of the proposition."""
    rng = np.random.default_rng(stream(seed, "Proposition D.4"))
    acting = is_action(ACTION[None], np.ones((1, POINTS), bool))
    phi, psi = factor(rng, equivariant_maps(rng, draws), copies=1)
    invertible = act_through_inverse(phi, psi)
    phi, psi = factor(rng, equivariant_maps(rng, draws), copies=COPIES)
    classes = act_on_classes(phi, psi)
    without_classes = acts_on_image(phi)
    return {
        "statement": "Proposition D.4",
        "claim": "If ψ∘φ is equivariant, then G acts on Y if ψ is invertible, and else on φ(X) with points of equal ψ "
        "identified, so that φ and ψ are equivariant.",
        "holds": bool(acting.all() and invertible.all() and classes.all()),
        "draws": draws,
        "tested": "Random factorisations of random equivariant maps between finite sets on which S3 acts: those "
        "without an action in between",
        "largest_violation": float(2 * draws - invertible.sum() - classes.sum()),
        "counterfactual": "Without identifying points of equal value, "
        f"{int((~without_classes).sum()):,} of {draws:,} have no action in between",
        "measured": {
            "factorisations_with_invertible_psi": draws,
            "of_them_with_an_action_on_y": int(invertible.sum()),
            "factorisations_with_psi_not_invertible": draws,
            "of_them_with_an_action_on_classes": int(classes.sum()),
            "of_them_with_an_action_on_the_image_of_phi_itself": int(without_classes.sum()),
        },
    }
