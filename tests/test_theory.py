import json

import numpy as np
import pytest

from relusym.theory import (
    STATEMENTS,
    cooccurrence,
    demonstrate,
    example_2_1,
    example_c_1,
    example_c_2,
    lemma_2_2,
    lemma_e_1,
    proposition_2_3,
    proposition_b_1,
    proposition_d_1,
    proposition_d_4,
    random_matrices,
    symmetric_group,
)

KEYS = {"statement", "claim", "holds", "draws", "tested"}
KEYS |= {"largest_violation", "counterfactual", "measured"}


@pytest.fixture
def few_integer_matrices(monkeypatch):
    """Leave out most integer matrices, for tests that depend on the random ones."""
    monkeypatch.setattr(lemma_2_2, "ENTRIES", range(-1, 2))


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_holds(name):
    record = demonstrate(name)
    assert record.keys() == KEYS and record["holds"] is True and record["draws"] > 0
    assert {type(value) for value in record["measured"].values()} <= {int, float}
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("name", STATEMENTS)
def test_same_seed_gives_the_same_record(name, monkeypatch, few_integer_matrices):
    monkeypatch.setattr(example_c_2, "STEPS", 20)
    assert demonstrate(name, seed=3, draws=20) == demonstrate(name, seed=3, draws=20)


def test_s3_is_a_group_and_acts():
    identity = np.arange(symmetric_group.ORDER)
    product = symmetric_group.PRODUCT
    assert (product[0] == identity).all() and (product[:, 0] == identity).all()
    assert (np.sort(symmetric_group.PRODUCT) == identity).all()
    assert (symmetric_group.PRODUCT != symmetric_group.PRODUCT.T).any()  # not abelian
    P = symmetric_group.representation(symmetric_group.action((6, 3, 2, 1)))
    assert (P[symmetric_group.PRODUCT] == P[:, None] @ P).all()


def test_distance_to_scaled_permutation():
    A = np.array([[0, 2.0], [0.5, 0]])
    matrices = np.stack([A, A - 0.1 * np.eye(2), A + 0.3 * np.eye(2)])
    assert random_matrices.distance_to_scaled_permutation(matrices) == pytest.approx([0, 0.1, 0.3])


# Counterfactuals: if one part is broken, the record's `holds` is false.


@pytest.fixture
def fails(monkeypatch):
    """A function that checks that a statement fails with parts of its module replaced, and returns `measured`."""

    def demonstrate(module, draws=None, **parts):
        for name, part in parts.items():
            monkeypatch.setattr(module, name, part)
        record = module.demonstrate() if draws is None else module.demonstrate(draws=draws)
        assert record["holds"] is False
        return record["measured"]

    return demonstrate


def unperturbed(rng, W1, W2, P, T):
    rho1 = proposition_2_3.hidden_representation(P, T)
    return {"nothing": (W1, W2, *proposition_2_3.surrounding_representations(W1, W2, rho1, rho1))}


COMMUTING, BLOCKS = lemma_2_2.commuting, proposition_b_1.block_permutations
NO_GROUP = proposition_d_4.ACTION.copy()
NO_GROUP[1, [0, 1]] = NO_GROUP[1, [1, 0]]


@pytest.mark.parametrize("module, draws, parts", [
    (lemma_2_2, 50, {"not_commuting": lambda *draw: {"in_disguise": COMMUTING(*draw)}}),
    (proposition_2_3, 20, {"perturbed": unperturbed}),
    (proposition_b_1, 50, {"other_matrices": lambda *draw: {"blocks": BLOCKS(*draw)}}),
    (example_c_1, 5, {"STEPS": 0}), (example_c_2, 8, {"STEPS": 1}),
    (proposition_d_1, 50, {"is_invariant": lambda W1, W2: np.ones(len(W1), bool)}),
    (proposition_d_1, 50, {"random_invariant_nets": lambda rng, draws: {
     "any": (rng.integers(-9, 10, (draws, 2, 2)), rng.integers(-9, 10, (draws, 2)))}}),
    (proposition_d_4, 20, {"ACTION": NO_GROUP}),
], ids=["scaled permutations among the others", "unperturbed nets among the perturbed", "blocks among the others",
        "no training", "a step of training", "all nets for invariant", "any nets", "no group"])  # fmt: skip
def test_a_statement_with_a_broken_part_fails(fails, few_integer_matrices, module, draws, parts):
    fails(module, draws, **parts)


@pytest.mark.parametrize("first", [np.array([[1.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])])
def test_example_2_1_needs_a_first_layer_without_representation(fails, first):
    measured = fails(example_2_1, FIRST_LAYERS={"equivariant": first})
    assert measured["least_defect_of_first_layer_equivariant"] < 1e-12


def test_lemma_2_2_finds_a_dense_matrix_among_the_commuting(fails, few_integer_matrices):
    def commuting(rng, draws, size):
        A = random_matrices.scaled_permutations(rng, draws, size)
        A[-1, 0] += 1e-4  # only one matrix is slightly off
        return A, A

    measured = fails(lemma_2_2, 50, commuting=commuting)
    assert 1e-5 < measured["largest_defect_of_scaled_permutations"] < 1e-3


def test_lemma_2_2_needs_invertible_matrices():
    A = np.array([[[1.0, 0], [1, 0]]])  # singular, commutes, and is no scaled permutation
    assert lemma_2_2.defect(A, A, lemma_2_2.witnesses(A)) == 0
    assert random_matrices.distance_to_scaled_permutation(A) == 0  # only the determinant shows it
    assert np.linalg.det(A) == 0


@pytest.mark.parametrize("spoiled", ["negative", "mixed"])
def test_proposition_2_3_finds_a_basis_that_is_no_scaled_permutation(fails, spoiled):
    def bases(rng, draws):
        if spoiled == "mixed":
            return random_matrices.invertible(rng, draws, proposition_2_3.SIZE)
        scales = random_matrices.positive_scales(rng, draws, proposition_2_3.SIZE)
        return (scales * np.array([-1, 1, 1, 1, 1, 1]))[:, :, None] * np.eye(proposition_2_3.SIZE)

    measured = fails(proposition_2_3, 20, bases=bases)
    assert measured["largest_equivariance_error"] > 0.01
    assert measured["largest_representation_error"] < 1e-10  # it is still a representation


def test_proposition_b_1_finds_units_of_other_sign_permuted(fails):
    def any_permutation(rng, draws, positive, negative):
        return random_matrices.permutations(rng, draws, positive + negative)

    measured = fails(proposition_b_1, 50, block_permutations=any_permutation)
    assert measured["largest_invariance_error_of_block_permutations"] > 0.1


def test_example_c_1_needs_a_symmetric_distribution(fails):
    def shifted(x):
        return np.exp(-((x - 0.1) ** 2) / 2) / np.sqrt(2 * np.pi)

    densities = example_c_1.DENSITIES | {"shifted": shifted}
    assert fails(example_c_1, 50, DENSITIES=densities)["ratio_shifted"] < 0.49


@pytest.mark.parametrize("other, free, symmetric", [
    (example_c_2.NARROW_K, 0, 0), (example_c_2.ANGLE, 0.5, 0.5),
], ids=["a_symmetric_filter_does_as_well", "no_filter_does_better_than_chance"])  # fmt: skip
def test_example_c_2_depends_on_the_shapes(fails, other, free, symmetric):
    draw = example_c_2.image_classes

    def shapes(seed, images, *_, **how):
        return draw(seed, images, (example_c_2.ANGLE, other), **how)

    measured = fails(example_c_2, 32, STEPS=20, image_classes=shapes)  # the bounds decide
    assert measured["error_bound_of_all_free_filters"] == pytest.approx(free)
    assert measured["error_bound_of_all_symmetric_filters"] == pytest.approx(symmetric)


def test_example_c_2_needs_cooccurrence(fails):
    draw = example_c_2.image_classes

    def three_to_one(seed, images, shapes=cooccurrence.SHAPES, orientations=(0, 0, 0, 1)):
        return draw(seed, images, shapes, orientations)

    measured = fails(example_c_2, 128, image_classes=three_to_one)
    assert measured["best_error_of_free_filter"] <= example_c_2.SOLVED  # it fails only in invariance
    assert measured["invariance_error_of_free_filter_on_the_data"] > 0.1


def test_proposition_d_1_needs_the_rewriting(fails):
    def untouched(W1, W2):
        return W1, W2, np.broadcast_to(np.eye(2, dtype=int), W1.shape), np.full(len(W1), "none")

    measured = fails(proposition_d_1, 50, layerwise_equivariant=untouched)
    assert measured["of_them_equal_to_the_rewritten_net"] == measured["nets_rewritten"]
    assert measured["of_them_rewritten_layerwise_equivariant"] < measured["nets_rewritten"]


def test_proposition_d_4_needs_an_equivariant_composition(fails):
    built = proposition_d_4.equivariant_maps

    def spoiled(rng, draws):
        maps = built(rng, draws)
        maps[0, 0] = (maps[0, 0] + 1) % proposition_d_4.POINTS  # one value of one map
        return maps

    measured = fails(proposition_d_4, 50, equivariant_maps=spoiled)
    assert measured["of_them_with_an_action_on_y"] == 49
    assert measured["of_them_with_an_action_on_classes"] == 49


def test_lemma_e_1_finds_zero_a_and_b(fails):
    def linear(rng, draws, size):
        A = random_matrices.scaled_permutations(rng, draws, size)
        zero = np.zeros((draws, size))
        return {"linear": (A, A, zero, zero)}

    assert fails(lemma_e_1, 20, affine_pairs=linear)["smallest_defect_with_linear"] == 0


def test_proposition_d_4_needs_the_classes():
    measured = proposition_d_4.demonstrate()["measured"]
    without = measured["of_them_with_an_action_on_the_image_of_phi_itself"]
    assert 0 < without < measured["factorisations_with_psi_not_invertible"]


def test_example_c_2_bound_against_a_wide_k():
    wide_k = cooccurrence.shape("#..#.", "#.#..", "##...", "#.#..", "#..#.")
    kinds, shares = example_c_2.windows(example_c_2.image_classes(0, 1, (example_c_2.ANGLE, wide_k)))
    assert example_c_2.error_bound(kinds, shares[:, 0]) == 0
    assert example_c_2.error_bound(example_c_2.symmetrised(kinds), shares[:, 0]) == pytest.approx(1 / 3)


def test_windows_with_pooling_are_the_convolution():
    images = example_c_2.image_classes(0, 3)
    nets = example_c_2.train(0, 4, images, symmetric=False)
    kinds, shares = example_c_2.windows(images)
    psi, t, W2 = (weights.numpy() for weights in nets)
    expected = W2 * (shares @ np.maximum(kinds @ psi.reshape(4, 9).T + t, 0))
    assert example_c_2.network(nets, images) == pytest.approx(expected, abs=1e-5)


def test_proposition_d_1_decides_invariance_exactly():
    W1 = [[[3, 2], [2, 3]], [[3, 2], [2, 3]], [[1, -1], [-1, 1]], [[5, 1], [5, 1]], [[5, 1], [5, 2]]]
    W2 = np.array([[1, 1], [1, -1], [2, 2], [1, -1], [1, -1]])
    assert proposition_d_1.is_invariant(np.array(W1), W2).tolist() == [True, False, True, True, False]


def test_figure_10_shows_every_shape_in_both_orientations():
    images = example_c_2.image_classes(0, 50)
    assert images.shape == (2, 50, 20, 20) and set(np.unique(images)) == {0, 1}
    first, two = (4 * shape.sum() for shape in cooccurrence.SHAPES)
    assert (images[0].sum((1, 2)) == first).all() and (images[1].sum((1, 2)) == two).all()
    _, shares = example_c_2.windows(np.concatenate([images, images[..., ::-1]]))
    assert (shares[:2] == shares[2:]).all()  # a flipped image has the same windows
    alone = example_c_2.image_classes(0, 50, orientations=(0,) * 4)
    _, apart = example_c_2.windows(np.concatenate([alone, alone[..., ::-1]]))
    assert (apart[:2] != apart[2:]).any()


def test_proposition_b_1_terms_of_one_pair_can_cancel_without_equal_rows():
    """A step of the paper's proof claims that terms cancel for one pair (k, k′) only if two rows are identical."""
    A = np.array([[-1.0, -1, 0], [-1, -1, 1], [1, 0, 0]])
    y = np.stack([[1, -scale, 0] for scale in (0.5, 2, 100)], 1)  # e_k − λe_k′
    terms = np.maximum(A @ y, 0)
    assert (terms[0] == terms[1]).all() and terms[0].any() and abs(np.linalg.det(A)) > 0.5
    W2 = proposition_b_1.output_layer(1, 2)
    assert (W2 @ np.maximum(A @ proposition_b_1.GRID, 0) != W2 @ np.maximum(proposition_b_1.GRID, 0)).any()
