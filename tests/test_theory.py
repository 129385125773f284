"""Each statement of the paper holds as demonstrated, and a broken variant of it is found out."""

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

KEYS = {
    *("statement", "claim", "holds", "draws", "tested"),
    *("largest_violation", "counterfactual", "measured"),
}


@pytest.fixture
def few_integer_matrices(monkeypatch):
    """Spare the tests that turn on random matrices most of the integer ones."""
    monkeypatch.setattr(lemma_2_2, "ENTRIES", range(-1, 2))


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_holds(name):
    record = demonstrate(name)
    assert record.keys() == KEYS
    assert record["holds"] is True
    assert record["draws"] > 0
    assert {type(value) for value in record["measured"].values()} <= {int, float}
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("name", STATEMENTS)
def test_same_seed_gives_the_same_record(name, monkeypatch, few_integer_matrices):
    monkeypatch.setattr(example_c_2, "STEPS", 20)
    assert demonstrate(name, seed=3, draws=20) == demonstrate(name, seed=3, draws=20)


def test_s3_is_a_group_and_acts():
    identity = np.arange(symmetric_group.ORDER)
    assert (symmetric_group.PRODUCT[0] == identity).all() and (
        symmetric_group.PRODUCT[:, 0] == identity
    ).all()
    assert (np.sort(symmetric_group.PRODUCT) == identity).all()
    assert (symmetric_group.PRODUCT != symmetric_group.PRODUCT.T).any()  # not abelian
    P = symmetric_group.representation(symmetric_group.action((6, 3, 2, 1)))
    assert (P[symmetric_group.PRODUCT] == P[:, None] @ P).all()


def test_distance_to_scaled_permutation():
    A = np.array([[0, 2.0], [0.5, 0]])
    distances = random_matrices.distance_to_scaled_permutation(
        np.stack([A, A - 0.1 * np.eye(2), A + 0.3 * np.eye(2)])
    )
    assert distances == pytest.approx([0, 0.1, 0.3])


# Counterfactuals: one thing is broken, and the record says that the statement doesn't hold.


@pytest.mark.parametrize("first", [np.array([[1.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])])
def test_example_2_1_needs_a_first_layer_without_representation(monkeypatch, first):
    monkeypatch.setattr(example_2_1, "FIRST_LAYERS", {"equivariant": first})
    record = example_2_1.demonstrate()
    assert record["holds"] is False
    assert record["measured"]["least_defect_of_first_layer_equivariant"] < 1e-12


def test_lemma_2_2_finds_a_dense_matrix_among_the_commuting(monkeypatch, few_integer_matrices):
    def commuting(rng, draws, size):
        A = random_matrices.scaled_permutations(rng, draws, size)
        A[-1, 0] += 1e-4  # a single matrix of all is a little off
        return A, A

    monkeypatch.setattr(lemma_2_2, "commuting", commuting)
    record = lemma_2_2.demonstrate(draws=50)
    assert record["holds"] is False
    assert 1e-5 < record["measured"]["largest_defect_of_scaled_permutations"] < 1e-3


def test_lemma_2_2_finds_a_scaled_permutation_among_the_others(monkeypatch, few_integer_matrices):
    monkeypatch.setattr(lemma_2_2, "not_commuting", lambda *draw: {"in_disguise": lemma_2_2.commuting(*draw)})
    assert lemma_2_2.demonstrate(draws=50)["holds"] is False


def test_lemma_2_2_needs_invertible_matrices():
    A = np.array([[[1.0, 0], [1, 0]]])  # singular, commutes, and is no scaled permutation
    assert lemma_2_2.defect(A, A, lemma_2_2.witnesses(A)) == 0
    assert random_matrices.distance_to_scaled_permutation(A) == 0  # each row has one entry: only det tells
    assert np.linalg.det(A) == 0


@pytest.mark.parametrize("spoiled", ["negative", "mixed"])
def test_proposition_2_3_finds_a_basis_that_is_no_scaled_permutation(monkeypatch, spoiled):
    def bases(rng, draws):
        if spoiled == "mixed":
            return random_matrices.invertible(rng, draws, proposition_2_3.SIZE)
        scales = random_matrices.positive_scales(rng, draws, proposition_2_3.SIZE)
        return (scales * np.array([-1, 1, 1, 1, 1, 1]))[:, :, None] * np.eye(proposition_2_3.SIZE)

    monkeypatch.setattr(proposition_2_3, "bases", bases)
    record = proposition_2_3.demonstrate(draws=20)
    assert record["holds"] is False
    assert record["measured"]["largest_equivariance_error"] > 0.01
    assert record["measured"]["largest_representation_error"] < 1e-10  # a representation all the same


def test_proposition_2_3_finds_an_unperturbed_net_among_the_perturbed(monkeypatch):
    def unperturbed(rng, W1, W2, P, T):
        rho1 = proposition_2_3.hidden_representation(P, T)
        return {"nothing": (W1, W2, *proposition_2_3.surrounding_representations(W1, W2, rho1, rho1))}

    monkeypatch.setattr(proposition_2_3, "perturbed", unperturbed)
    assert proposition_2_3.demonstrate(draws=20)["holds"] is False


def test_proposition_b_1_finds_units_of_other_sign_permuted(monkeypatch):
    def any_permutation(rng, draws, positive, negative):
        return random_matrices.permutations(rng, draws, positive + negative)

    monkeypatch.setattr(proposition_b_1, "block_permutations", any_permutation)
    record = proposition_b_1.demonstrate(draws=50)
    assert record["holds"] is False
    assert record["measured"]["largest_invariance_error_of_block_permutations"] > 0.1


def test_proposition_b_1_finds_block_permutations_among_the_others(monkeypatch):
    monkeypatch.setattr(
        proposition_b_1, "other_matrices", lambda *draw: {"blocks": proposition_b_1.block_permutations(*draw)}
    )
    assert proposition_b_1.demonstrate(draws=50)["holds"] is False


def test_example_c_1_needs_a_symmetric_distribution(monkeypatch):
    def shifted(x):
        return np.exp(-((x - 0.1) ** 2) / 2) / np.sqrt(2 * np.pi)

    monkeypatch.setattr(example_c_1, "DENSITIES", {"shifted": shifted})
    record = example_c_1.demonstrate(draws=50)
    assert record["holds"] is False
    assert record["measured"]["ratio_shifted"] < 0.49


def test_example_c_1_needs_training_that_works(monkeypatch):
    monkeypatch.setattr(example_c_1, "STEPS", 0)
    assert example_c_1.demonstrate(draws=5)["holds"] is False


@pytest.mark.parametrize(
    ("other", "free", "symmetric"),
    [(example_c_2.NARROW_K, 0, 0), (example_c_2.ANGLE, 0.5, 0.5)],
    ids=["a_symmetric_filter_does_as_well", "no_filter_does_better_than_chance"],
)
def test_example_c_2_depends_on_the_shapes(monkeypatch, other, free, symmetric):
    draw = example_c_2.image_classes
    monkeypatch.setattr(example_c_2, "STEPS", 20)  # it is the bounds that tell
    monkeypatch.setattr(
        example_c_2, "image_classes", lambda *a, **k: draw(a[0], a[1], (example_c_2.ANGLE, other), **k)
    )
    record = example_c_2.demonstrate(draws=32)
    assert record["holds"] is False
    assert record["measured"]["error_bound_of_all_free_filters"] == pytest.approx(free)
    assert record["measured"]["error_bound_of_all_symmetric_filters"] == pytest.approx(symmetric)


def test_example_c_2_needs_training(monkeypatch):
    monkeypatch.setattr(example_c_2, "STEPS", 1)
    assert example_c_2.demonstrate(draws=8)["holds"] is False


def test_example_c_2_needs_cooccurrence(monkeypatch):
    draw = example_c_2.image_classes

    def three_to_one(seed, images, shapes=cooccurrence.SHAPES, orientations=(0, 0, 0, 1)):
        return draw(seed, images, shapes, orientations)

    monkeypatch.setattr(example_c_2, "image_classes", three_to_one)
    record = example_c_2.demonstrate(draws=128)
    assert record["holds"] is False
    assert (
        record["measured"]["best_error_of_free_filter"] <= example_c_2.SOLVED
    )  # it fails by invariance alone
    assert record["measured"]["invariance_error_of_free_filter_on_the_data"] > 0.1


def test_example_c_2_bound_against_a_wide_k():
    wide_k = cooccurrence.shape("#..#.", "#.#..", "##...", "#.#..", "#..#.")
    images = example_c_2.image_classes(0, 1, (example_c_2.ANGLE, wide_k))
    kinds, shares = example_c_2.windows(images)
    assert example_c_2.error_bound(kinds, shares[:, 0]) == 0
    assert example_c_2.error_bound(example_c_2.symmetrised(kinds), shares[:, 0]) == pytest.approx(1 / 3)


def test_windows_with_pooling_are_the_convolution():
    images = example_c_2.image_classes(0, 3)
    nets = example_c_2.train(0, 4, images, symmetric=False)
    kinds, shares = example_c_2.windows(images)
    psi, t, W2 = (weights.numpy() for weights in nets)
    expected = W2 * (shares @ np.maximum(kinds @ psi.reshape(4, 9).T + t, 0))
    assert example_c_2.network(nets, images) == pytest.approx(expected, abs=1e-5)


def test_proposition_d_1_needs_the_rewriting(monkeypatch):
    def untouched(W1, W2):
        rho1 = np.broadcast_to(np.eye(2, dtype=int), W1.shape)
        return W1, W2, rho1, np.full(len(W1), "none")

    monkeypatch.setattr(proposition_d_1, "layerwise_equivariant", untouched)
    record = proposition_d_1.demonstrate(draws=50)
    assert record["holds"] is False
    measured = record["measured"]
    assert measured["of_them_equal_to_the_rewritten_net"] == measured["nets_rewritten"]
    assert measured["of_them_rewritten_layerwise_equivariant"] < measured["nets_rewritten"]


def test_proposition_d_1_finds_nets_that_are_not_invariant(monkeypatch):
    decide = proposition_d_1.is_invariant
    monkeypatch.setattr(proposition_d_1, "is_invariant", lambda W1, W2: np.ones(len(W1), bool))
    assert proposition_d_1.demonstrate(draws=50)["holds"] is False
    monkeypatch.setattr(proposition_d_1, "is_invariant", decide)
    monkeypatch.setattr(
        proposition_d_1,
        "random_invariant_nets",
        lambda rng, draws: {"any": (rng.integers(-9, 10, (draws, 2, 2)), rng.integers(-9, 10, (draws, 2)))},
    )
    assert proposition_d_1.demonstrate(draws=50)["holds"] is False


def test_proposition_d_1_decides_invariance_exactly():
    W1 = np.array(
        [[[3, 2], [2, 3]], [[3, 2], [2, 3]], [[1, -1], [-1, 1]], [[5, 1], [5, 1]], [[5, 1], [5, 2]]]
    )
    W2 = np.array([[1, 1], [1, -1], [2, 2], [1, -1], [1, -1]])
    assert proposition_d_1.is_invariant(W1, W2).tolist() == [True, False, True, True, False]


def test_proposition_d_4_needs_an_equivariant_composition(monkeypatch):
    built = proposition_d_4.equivariant_maps

    def spoiled(rng, draws):
        maps = built(rng, draws)
        maps[0, 0] = (maps[0, 0] + 1) % proposition_d_4.POINTS  # one value of one map
        return maps

    monkeypatch.setattr(proposition_d_4, "equivariant_maps", spoiled)
    record = proposition_d_4.demonstrate(draws=50)
    assert record["holds"] is False
    assert record["measured"]["of_them_with_an_action_on_y"] == 49
    assert record["measured"]["of_them_with_an_action_on_classes"] == 49


def test_proposition_d_4_needs_the_classes():
    measured = proposition_d_4.demonstrate()["measured"]
    without = measured["of_them_with_an_action_on_the_image_of_phi_itself"]
    assert 0 < without < measured["factorisations_with_psi_not_invertible"]


def test_proposition_d_4_needs_a_group(monkeypatch):
    broken = proposition_d_4.ACTION.copy()
    broken[1, [0, 1]] = broken[1, [1, 0]]
    monkeypatch.setattr(proposition_d_4, "ACTION", broken)
    assert proposition_d_4.demonstrate(draws=20)["holds"] is False


def test_lemma_e_1_finds_zero_a_and_b(monkeypatch):
    def linear(rng, draws, size):
        A = random_matrices.scaled_permutations(rng, draws, size)
        zero = np.zeros((draws, size))
        return {"linear": (A, A, zero, zero)}

    monkeypatch.setattr(lemma_e_1, "affine_pairs", linear)
    record = lemma_e_1.demonstrate(draws=20)
    assert record["holds"] is False
    assert record["measured"]["smallest_defect_with_linear"] == 0


def test_figure_10_shows_every_shape_in_both_orientations():
    images = example_c_2.image_classes(0, 50)
    assert images.shape == (2, 50, 20, 20)
    assert set(np.unique(images)) == {0, 1}
    one, two = (4 * shape.sum() for shape in cooccurrence.SHAPES)
    assert (images[0].sum((1, 2)) == one).all() and (images[1].sum((1, 2)) == two).all()
    _, shares = example_c_2.windows(np.concatenate([images, images[..., ::-1]]))
    assert (shares[:2] == shares[2:]).all()  # a flipped image shows a filter the same windows
    _, apart = example_c_2.windows(
        np.concatenate([alone := example_c_2.image_classes(0, 50, orientations=(0,) * 4), alone[..., ::-1]])
    )
    assert (apart[:2] != apart[2:]).any()


def test_proposition_b_1_terms_of_one_pair_can_cancel_without_equal_rows():
    """A step of the paper's proof: terms that cancel for one pair (k, k′) are said to need two identical rows."""
    A = np.array([[-1.0, -1, 0], [-1, -1, 1], [1, 0, 0]])
    y = np.stack([[1, -scale, 0] for scale in (0.5, 2, 100)], 1)  # e_k − λe_k′
    terms = np.maximum(A @ y, 0)
    assert (terms[0] == terms[1]).all() and terms[0].any()
    assert abs(np.linalg.det(A)) > 0.5
    W2 = proposition_b_1.output_layer(1, 2)
    assert (W2 @ np.maximum(A @ proposition_b_1.GRID, 0) != W2 @ np.maximum(proposition_b_1.GRID, 0)).any()
