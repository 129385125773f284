import itertools
import math

import numpy as np
import pandas as pd
import pytest
from error_rates import CLAIMS, SHARED, UNTRUE, as_records, p_values, rates, simulate
from records import MODELS, NAMES, flip, pair, run_of, train
from scipy import stats

from relusym.findings import evidence, power
from relusym.findings.evidence import (
    HELD,
    NOT_HELD,
    OPEN,
    UNTESTED,
    flipped_against_other,
    is_higher,
    is_highest,
)
from relusym.findings.frames import Filters
from relusym.findings.tables import claims as tested
from relusym.paper_values import table

PAPER = table(2).set_index("model")
PAIRS = table(4).set_index(["model_1", "model_2"])["barrier_mean"]
SWAP, THREE_CYCLE = [1, 0, 3, 2], [1, 2, 0, 3]
NOT_ALL = "Not all GCNN channels found by matching have order at most 2"
TYPES = "Types with a lower invariance error have a lower GCNN barrier"
MOSTLY_SWAPS = [1, 2, 0, 3, 4, 5, 7, 6]  # one three-cycle


def run(n=4, *, reverse=False, spread=1.0, models=MODELS, permutation=SWAP):
    """Train, flip-merge and pair-merge records of `n` nets per type around the paper's means, or with mirrored means.

    spread: in the paper's standard deviations; the nets of a type lie evenly within one of them to either side.
    """
    sign = -1 if reverse else 1
    offsets = spread * (np.linspace(-1, 1, n) if n > 1 else np.zeros(1))
    records = {"train": [], "flip_merge": [], "pair_merge": []}
    for model, seed in itertools.product(models, range(n)):
        papers = PAPER.loc[model]
        accuracy, error, barrier = (
            sign * (papers[f"{quantity}_mean"] + offsets[seed] * papers[f"{quantity}_std"])
            for quantity in ("accuracy", "invariance_error", "gcnn_barrier")
        )
        records["train"].append(train(model, seed, accuracy))
        permutations = {"conv1": permutation}
        records["flip_merge"].append(flip(model, seed, barrier, error=error, permutations=permutations))
    for model, seed in itertools.product([model for model in models if (model, model) in PAIRS], range(n)):
        barrier = sign * (PAIRS[model, model] + 1e-3 * offsets[(seed * 3 + 1) % n])
        records["pair_merge"].append(pair(model, seed, model, (seed + 1) % n, barrier))
    return records


def zero_filters(gcnn, cnn):
    counts = {"gcnn": gcnn, "cnn": cnn}
    rows = [(model, seed, "conv1", n) for model in counts for seed, n in enumerate(counts[model])]
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "zero_filters"])


NONE = zero_filters([], [])


def claims(records, filters=NONE, names=NAMES, rows=None):
    return tested.claims(records, filters, names, rows or {}).set_index("claim")


@pytest.mark.slow(seconds=3)
def test_all_claims_hold_on_the_papers_numbers_and_its_nets_are_enough_to_settle_them():
    frame = claims(run(24, permutation=MOSTLY_SWAPS), zero_filters([30, 31, 35, 33], [1, 2, 3, 4]))
    assert len(frame) == 3 + 1 + 3 + 2 + 1 + 1 + 2
    assert set(frame["verdict"]) == {HELD}, frame["verdict"]
    assert frame["effect"].notna().all()
    tested = frame[frame["test"] != "count"]
    assert (tested["p_corrected"] >= tested["p_value"]).all()
    assert (frame["power"].dropna() > 0.95).all() and frame["power"].notna().any()


@pytest.mark.slow(seconds=3)
def test_no_directed_claim_holds_on_the_mirrored_numbers():
    mirrored = run(24, reverse=True, permutation=THREE_CYCLE)
    by_claim = claims(mirrored, zero_filters([1, 2, 3, 4], [30, 31, 35, 33]))["verdict"].to_dict()
    kept = [claim for claim in by_claim if claim.startswith("Late invariance loss keeps accuracy: CNN")]
    assert by_claim.pop(TYPES) == HELD  # mirrored twice
    assert by_claim.pop(NOT_ALL) == HELD  # three-cycles make it hold
    assert by_claim.pop(kept[0]) == HELD  # a difference of 0.001 to either side is no loss of 0.009
    assert set(by_claim.values()) == {NOT_HELD}, by_claim


def test_nets_that_differ_more_than_types_are_inconclusive():
    by_claim = claims(run(4, spread=60.0))["verdict"]
    assert [*by_claim[by_claim.index.str.startswith("Invariance loss")]] == [OPEN] * 3
    assert by_claim["PGCNN + late inv-loss is the most accurate type"] == OPEN


@pytest.mark.parametrize(("n", "models"), [(1, MODELS), (4, ["pgcnn"]), (0, MODELS)])
def test_too_few_nets_are_reported(n, models):
    frame = claims(run(n, models=models))
    direct = frame[~frame.index.str.contains("matching|Types")]
    assert set(direct["verdict"]) == {UNTESTED} and direct["p_value"].isna().all()
    few = [f"two nets or more of {which} type are needed" for which in ("either", "every")]
    assert set(direct["remark"]) == {*few, "pairs of three nets or more are needed"}


def test_nets_without_any_spread_are_no_proof():
    frame = claims(run(4, spread=0.0, permutation=MOSTLY_SWAPS))
    assert frame["nets_needed"].isna().all()
    flips = frame[frame.index.str.startswith("Merging")]
    assert set(flips["verdict"]) == {OPEN} and set(flips["p_value"]) == {1 / 8}  # the minimum for four nets
    assert set(flips["remark"]) == {evidence.NO_SPREAD}
    late = frame.filter(like="Late", axis=0)
    assert set(late["verdict"]) == {HELD} and (late["p_value"] == late["p_rank"]).all()
    records = run(4)
    for record in records["flip_merge"]:
        record["barrier"]["repaired"] = 0.0
    types = claims(records).filter(like="Types", axis=0)
    assert list(types["verdict"]) == [UNTESTED] and list(types["remark"]) == ["all types are equal"]


def test_one_channel_of_order_three_settles_that_not_all_have_order_two_as_in_the_paper():
    frame = claims(run(4, permutation=MOSTLY_SWAPS))
    some = frame.loc[NOT_ALL]
    assert (some["verdict"], some["effect"]) == (HELD, 3 / 8)
    assert some["remark"] == "12 of 32 channels have a higher order"
    most = frame.loc["Most GCNN channels found by matching have order at most 2"]
    assert most["effect"] == 5 / 8
    # without spread between the nets, only the rank test applies
    assert most["p_value"] == most["p_rank"] == 0.125


def test_channels_that_all_have_order_two_settle_both_claims():
    frame = claims(run(2))
    both = frame[frame.index.str.contains("matching")]
    assert list(both["verdict"]) == [HELD, NOT_HELD]  # most have order two, and none has another order
    assert both["p_value"].isna().all()


def test_spearmans_p_value_is_that_over_all_permutations():
    frame = claims(run()).loc[TYPES]
    assert frame["effect"] == pytest.approx(1)
    assert frame["p_value"] == frame["p_rank_min"] == pytest.approx(2 / math.factorial(7))


def nets_of_types(random, n, correlation, errors, barriers):
    """Nets of one type per mean, with standard deviation 1."""
    inner, other = random.normal(size=(2, len(errors), n))
    other = correlation * inner + math.sqrt(1 - correlation**2) * other
    nets = itertools.product(range(len(errors)), range(n))
    rows = [(m, seed, errors[m] + inner[m, seed], barriers[m] + other[m, seed]) for m, seed in nets]
    return pd.DataFrame(rows, columns=["model", "seed", "error", "barrier"])


@pytest.mark.parametrize("differ", [0, 0.3])
@pytest.mark.slow(seconds=8)
def test_types_that_are_unrelated_are_no_more_often_found_correlated_than_they_should_be(differ, monkeypatch):
    """Two quantities correlated within a type, while the types' means are equal, or differ at random in each."""
    monkeypatch.setattr(evidence, "RESAMPLES", 9)  # of the interval, which isn't looked at
    random, draws, means = np.random.default_rng(0), 200, differ * np.arange(7)
    result = naive = 0
    for _ in range(draws):
        nets = nets_of_types(random, 4, 0.7, means, random.permutation(means))
        result += evidence.rank_correlation_of_types(nets, "error", "barrier").p_value < 0.05
        of_means = stats.spearmanr(nets.groupby("model")[["error", "barrier"]].mean())
        naive += of_means.pvalue < 0.05
    assert result / draws < 0.1  # 0.05, and three standard errors
    assert differ or naive / draws > 0.25  # hence the use of halves


def test_types_that_are_correlated_are_found_to_be():
    random, means = np.random.default_rng(0), 3.0 * np.arange(7)
    for correlation in (-0.7, 0, 0.7):
        nets = nets_of_types(random, 4, correlation, means, means)
        result = evidence.rank_correlation_of_types(nets, "error", "barrier")
        assert result.direction > 0 and result.p_value < 0.01


def test_types_of_one_net_each_settle_nothing_about_types():
    nets = nets_of_types(np.random.default_rng(0), 1, 0, np.arange(7), np.arange(7))
    result = evidence.rank_correlation_of_types(nets, "error", "barrier")
    assert math.isnan(result.p_value) and "two nets" in result.remark


def test_a_rank_test_of_four_and_four_nets_has_a_p_value_no_less_than_its_minimum():
    result = is_higher({"a": np.array([5.0, 6, 7, 8]), "b": np.array([1.0, 2, 3, 4])}, "a", "b")
    assert result.p_rank == result.p_rank_min == pytest.approx(2 / 70)
    welch = stats.ttest_ind([5, 6, 7, 8], [1, 2, 3, 4], equal_var=False)
    assert result.p_value == pytest.approx(welch.pvalue, rel=1e-13)


def test_rank_tests_with_ties_count_permutations():
    assert evidence.rank_sum_p(np.array([3.0, 3, 3]), np.array([1.0, 1, 2])) == pytest.approx(2 / 20)
    assert evidence.rank_sum_p(np.array([3.0, 3, 1]), np.array([1.0, 1, 1])) == pytest.approx(8 / 20)
    assert evidence.signed_rank_p(np.array([0.2, 0.2, 0.3])) == pytest.approx(2 / 8)
    assert evidence.signed_rank_p(np.array([0.2, 0.4, 0.0])) == pytest.approx(2 / 4)  # zeros don't count


@pytest.mark.parametrize(("n", "tied"), [(3, True), (4, True), (10, True), (10, False)])
def test_no_rank_test_has_a_p_value_below_its_minimum(n, tied):
    high = np.full(n, 2.0) if tied else 100.0 + np.arange(n)
    result = is_higher({"a": high, "b": np.arange(n) // (2 if tied else 1) * 1.0 - n}, "a", "b")
    assert result.p_rank >= result.p_rank_min * (1 - 1e-9)
    assert result.p_rank <= max(result.p_rank_min, 2e-4) * (1 + 1e-9)
    assert evidence.signed_rank_p(high) >= 0.5 ** (n - 1) * (1 - 1e-9)


def test_a_margin_separates_no_worse_from_worse():
    nets = {"late": [0.899, 0.901, 0.9], "plain": [0.902, 0.903, 0.904], "bad": [0.7, 0.702, 0.704]}
    nets = {name: np.array(accuracies) for name, accuracies in nets.items()}
    assert is_higher(nets, "late", "plain").direction < 0
    assert is_higher(nets, "late", "plain", 0.009).direction > 0
    assert is_higher(nets, "bad", "plain", 0.009).direction < 0


def test_the_most_accurate_type_has_to_beat_the_second_best():
    nets = {"best": [0.95, 0.94, 0.96], "second": [0.93, 0.92, 0.91], "last": [0.1, 0.2, 0.3]}
    nets = {name: np.array(accuracies) for name, accuracies in nets.items()}
    result = is_highest(nets, "best", {"best": "the best"})
    assert result.effect == pytest.approx(0.03) and result.measure == "Hedges' g to second"
    assert result.p_value == is_higher(nets, "best", "second").p_value
    beaten = is_highest(nets, "second", {"best": "the best"})
    assert beaten.direction < 0 and beaten.measure == "Hedges' g to the best"
    assert beaten.p_value == 2 * is_higher(nets, "second", "best").p_value
    assert result.remark == beaten.remark == ""


@pytest.mark.parametrize("highest, counts", [("best", True), ("second", False), ("last", True)])
def test_a_remark_on_the_most_accurate_type_names_a_rank_test(highest, counts):
    nets = {"best": [0.95] * 3, "second": [0.93, 0.92, 0.91], "last": [0.2] * 3}
    nets = {name: np.array(accuracies) for name, accuracies in nets.items()}
    assert is_highest(nets, highest, {}).remark == (evidence.NO_SPREAD if counts else "")


def cycle(n):
    return [(i, (i + 1) % n) for i in range(n)]


@pytest.mark.parametrize("pairs, factor, degrees", [
    ([(0, 1), (2, 3), (4, 5)], 1, 2), (cycle(3), 4, 2), (cycle(4), 3, 2),
    (cycle(24), 2 * 23 / 22, 44**2 / (6 * 24 - 16)), (cycle(2), math.inf, 0), ([(0, 1)], math.inf, 0),
    ([], math.inf, 0),
])  # fmt: skip
def test_shared_nets_widen_a_t_test(pairs, factor, degrees):
    assert evidence.shared_nets(np.array(pairs, int).reshape(-1, 2)) == pytest.approx((factor, degrees))


@pytest.mark.parametrize("n", [3, 4, 8])
def test_pairs_that_share_nets_are_no_more_often_significant_than_they_should_be(n):
    """Values of a cycle of nets without effect in the worst case: a value's variance comes entirely from its nets."""
    by_net = np.random.default_rng(0).normal(size=(20000, n))
    values = by_net + np.roll(by_net, -1, axis=1)
    factor, degrees = evidence.shared_nets(np.array(cycle(n)))
    t = values.mean(1) / np.sqrt(factor * values.var(1, ddof=1) / n)
    assert abs((2 * stats.t.sf(abs(t), degrees) < 0.05).mean() - 0.05) < 0.01
    as_if_apart = (stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean()
    assert as_if_apart > 0.1  # hence the correction


def test_a_lower_barrier_of_the_flipped_self_is_detected_from_pairs_and_their_nets():
    nets = pd.DataFrame({"model": "cnn", "seed": range(3), "gcnn_barrier": [0.01, 0.02, 0.03]})
    pairs = pd.DataFrame({"seed_1": [0, 1, 2], "seed_2": [1, 2, 0], "barrier": [0.115, 0.126, 0.119]})
    result = evidence.flipped_against_other(nets, pairs.assign(model_1="cnn", model_2="cnn"), "cnn")
    differences = np.array([0.115 - 0.015, 0.126 - 0.025, 0.119 - 0.02])
    assert result.effect == pytest.approx(differences.mean())
    t = stats.ttest_1samp(differences, 0)
    assert result.p_value == pytest.approx(2 * stats.t.sf(t.statistic / 2, 2))
    assert result.n == "3 pairs of 3 nets"


def test_hedges_g_by_hand():
    by_hand = 2 / math.sqrt(2) * (1 - 3 / 7)
    assert evidence.hedges_g(np.array([3.0, 5.0]), np.array([1.0, 3.0])) == pytest.approx(by_hand)


def test_zero_filters_are_counted_in_the_filters_themselves():
    def net(model, seed, zeros):
        norms = np.ones(10)
        norms[:zeros] = 0.05
        return Filters(model, seed, "ok", None, {}, {}, {"conv1": norms, "conv2": np.ones(3)}, {})

    counts = {"gcnn": [5, 6, 7, 6], "cnn": [1, 2, 1, 0]}
    filters = [net(model, seed, n) for model, several in counts.items() for seed, n in enumerate(several)]
    about = {"models": MODELS, "names": NAMES, "notes": []}
    claim = "A GCNN has more zero-filters than a CNN"
    inputs = run() | {"filters": filters}
    frame = tested.frame(inputs, about | {"zero_filter": 0.1}).set_index("claim").loc[claim]
    assert frame["effect"] == 5 and frame["n"] == "4 and 4 nets"
    none = tested.frame(inputs, about | {"zero_filter": 0.01}).set_index("claim").loc[claim]
    assert none["effect"] == 0


@pytest.mark.parametrize(("nets", "count"), [(3, 1), (24, 0)])
def test_with_few_nets_a_note_says_that_inconclusive_claims_are_expected(nets, count):
    notes = tested.notes(run(nets), {"notes": []})
    assert sum("bound to be inconclusive" in note for note in notes) == count
    assert count == 0 or any(f"({nets} of a type" in note for note in notes)


DRAWS, LEVEL = 20000, 0.05


def within(share, expected, draws=DRAWS):
    """Equal up to three standard errors of a share of `draws` draws."""
    return abs(share - expected) < 3 * math.sqrt(max(expected * (1 - expected), 1e-3) / draws)


@pytest.mark.parametrize("n", [3, 6, 12])
def test_welchs_power_is_the_share_of_simulated_tests_that_detect_the_effect(n):
    random = np.random.default_rng(n)
    high, low = random.normal(0.9, 0.02, (DRAWS, n)), random.normal(0.88, 0.01, (DRAWS, n))
    tests = stats.ttest_ind(high, low, axis=1, equal_var=False)
    share = ((tests.pvalue < LEVEL) & (tests.statistic > 0)).mean()
    # Welch's degrees of freedom are estimated in the test, but known in the formula
    assert abs(power.welch((0.9, 0.02), (0.88, 0.01))(n, LEVEL) - share) < (0.06 if n == 3 else 0.02)


def test_the_power_of_a_t_test_on_nets_is_the_share_of_simulated_tests_that_detect_the_effect():
    values = np.random.default_rng(0).normal(0.7, 0.2, (DRAWS, 5))
    share = (stats.ttest_1samp(values, 0.5, axis=1, alternative="greater").pvalue < LEVEL / 2).mean()
    assert within(power.one_sample(0.2, 0.2)(5, LEVEL), share)


@pytest.mark.parametrize("n", [3, 4, 7, 12, 24])
def test_the_power_for_a_cycle_of_pairs_is_the_share_of_simulated_tests_that_detect_the_effect(n):
    """In the worst case: a pair's difference, of standard deviation 2, comes entirely from its nets."""
    by_net = np.random.default_rng(n).normal(0, math.sqrt(2), (DRAWS, n))
    values = 2.0 + by_net + np.roll(by_net, -1, axis=1)
    factor, degrees = evidence.shared_nets(np.array(cycle(n)))
    t = values.mean(1) / np.sqrt(factor * values.var(1, ddof=1) / n)
    share = (stats.t.sf(t, degrees) < LEVEL / 2).mean()
    computed = power.cycle_of_pairs(2.0, 2.0)(n, LEVEL)
    assert within(computed, share)
    assert computed == pytest.approx(power.t_power(2.0, 2.0 * math.sqrt(2 / n), degrees, LEVEL))


@pytest.mark.parametrize("pairs", [[(0, 1), (2, 3), (4, 5)], cycle(4)[:3], cycle(3), cycle(12)])
def test_the_spread_of_pairs_is_estimated_without_bias(pairs):
    """In the worst case again; the power for the observed effect and spread is that for this estimate."""
    seeds = np.array(pairs)
    values = np.random.default_rng(0).normal(0, math.sqrt(0.5), (DRAWS, 12))[:, seeds].sum(2)
    squared = [evidence.std_of_pairs(std, seeds) ** 2 for std in values.std(1, ddof=1)]
    assert np.mean(squared) == pytest.approx(1.0, abs=0.03)
    observed = evidence.paired(values[0], seeds=seeds).power_observed
    expected = power.cycle_of_pairs(values[0].mean(), math.sqrt(squared[0]))
    assert observed(8, LEVEL) == pytest.approx(expected(8, LEVEL))


@pytest.mark.slow(seconds=9)
def test_the_power_of_the_rank_correlation_is_the_share_of_simulations_that_detect_it(monkeypatch):
    monkeypatch.setattr(evidence, "RESAMPLES", 9)  # of the interval, which isn't looked at
    means = 0.6 * np.arange(7)
    spread = {model: (mean, 1.0) for model, mean in enumerate(means)}
    random, draws = np.random.default_rng(0), 200
    drawn = [nets_of_types(random, 6, 0.0, means, means) for _ in range(draws)]
    result = [evidence.rank_correlation_of_types(nets, "error", "barrier").p_value < LEVEL for nets in drawn]
    assert within(power.rank_correlation(spread, spread)(6, LEVEL), np.mean(result), draws)


def test_the_nets_needed_are_the_fewest_that_give_the_power():
    of = power.welch((0.9, 0.02), (0.89, 0.02))
    needed = int(power.nets_needed(of, LEVEL))
    assert of(needed, LEVEL) >= power.SETTLES > of(needed - 1, LEVEL)
    assert power.nets_needed(power.welch((0.9, 0.02), (0.9, 0.02)), LEVEL) == math.inf


def test_several_tests_are_all_settled_at_least_as_often_as_the_bound():
    random, n = np.random.default_rng(0), 6
    best, *others = (random.normal(mean, 1.0, (DRAWS, n)) for mean in (2.0, 0.3, 0.0, -0.5))
    p_values = [stats.ttest_ind(best, other, axis=1, equal_var=False).pvalue for other in others]
    both = (np.array(p_values) < LEVEL).all(0)
    bound = power.all_of([power.welch((2.0, 1.0), (mean, 1.0)) for mean in (0.3, 0.0, -0.5)])
    assert bound(n, LEVEL) <= both.mean() + 0.02 and bound(n, LEVEL) > both.mean() - 0.15


def test_a_certain_effect_has_power_one_and_too_few_nets_have_none():
    assert power.welch((1.0, 0.0), (0.0, 0.0))(3, LEVEL) == 1.0
    assert power.welch((1.0, 0.1), (0.0, 0.1))(1, LEVEL) == 0.0
    assert power.cycle_of_pairs(1.0, 0.1)(2, LEVEL) == 0.0


@pytest.mark.slow(seconds=5)
def test_intervals_hold_the_true_effect_in_95_percent_of_cases():
    random, draws, n = np.random.default_rng(0), 400, 6
    welch = pairs = 0
    for _ in range(draws):
        result = is_higher({"a": random.normal(1.0, 0.3, n), "b": random.normal(0.5, 0.1, n)}, "a", "b", 0.2)
        welch += result.low < 0.5 < result.high
        flips, others = random.normal(0.04, 0.01, n), random.normal(0.05, 0.01, n)
        nets = pd.DataFrame({"model": "cnn", "seed": range(n), "gcnn_barrier": flips})
        merged = pd.DataFrame(cycle(n), columns=["seed_1", "seed_2"]).assign(model_1="cnn", model_2="cnn")
        merged["barrier"] = (others + np.roll(others, -1)) / 2
        result = flipped_against_other(nets, merged, "cnn")
        pairs += result.low < 0.01 < result.high
    assert within(welch / draws, 0.95, draws)
    assert within(pairs / draws, 0.95, draws)  # the worst case: a pair's barrier is determined by its nets


def test_a_table_has_the_power_of_every_tested_claim_and_how_many_nets_settle_an_open_one():
    filters = zero_filters([3, 4, 5, 4], [1, 6, 2, 3])
    frame = claims(run(4, spread=8.0), filters)
    by_t = frame[frame["test"] != "count"]
    assert by_t[["low", "high"]].notna().all(axis=None)
    assert ((by_t["low"] <= by_t["effect"]) & (by_t["effect"] <= by_t["high"])).all()
    numbers = by_t.index.str.contains("matching|zero-filters")  # which the paper doesn't report
    assert by_t["power"].notna().tolist() == (~numbers).tolist()
    assert by_t["power"].dropna().between(0, 1).all()
    still_open = frame["verdict"] == OPEN
    assert still_open.any() and frame["nets_needed"].notna().tolist() == still_open.tolist()
    assert (frame.loc[still_open, "nets_needed"] > 4).all()


def test_claims_about_resnets_are_tested_where_there_are_rows_of_table_5():
    rows = {"torchvision_old": "old", "torchvision_old_inv": "old_inv"}
    names = NAMES | {"old": "Old ResNet", "old_inv": "Old ResNet + inv-loss"}
    barriers = {"old": [0.05, 0.051, 0.052, 0.05], "old_inv": [0.02, 0.021, 0.022, 0.02]}
    resnets = run_of(barriers, {model: [0.2, 0.203, 0.202, 0.201] for model in barriers})
    both = {kind: run(4)[kind] + several for kind, several in resnets.items()}
    frame = claims(both, NONE, names, rows)
    assert "torchvision_old_225" not in rows and len(frame) == 13 + 3
    about_resnets = frame[frame["source"].str.contains("Section 4.2")]
    assert set(about_resnets["verdict"]) == {HELD}, about_resnets["verdict"]
    claim = "Merging a Old ResNet with its flipped self has a lower barrier than merging two of them"
    assert about_resnets.loc[claim]["effect"] == pytest.approx(0.15, abs=0.002)
    assert about_resnets["power"].notna().tolist() == [False, False, True]  # no pairs in the paper
    assert about_resnets["power"].iloc[-1] > 0.9  # 0.038 against 0.005, and a spread of 0.001
    none = claims(run(4), NONE, names, rows)
    assert set(none.loc[about_resnets.index, "verdict"]) == {UNTESTED}
    assert len(claims(both, NONE, names)) == 13


@pytest.mark.parametrize("n", [4, 12])
def test_the_simulation_computes_the_claims_tests(n):
    *simulated, _ = simulate(np.random.default_rng(0), 2, n, "flip loss", 0.5)
    p, direction = p_values(*simulated)
    draw = [{m: x[1] for m, x in part.items()} if isinstance(part, dict) else part[1] for part in simulated]
    frame = tested.claims(*as_records(*draw), NAMES)
    frame = frame[frame["p_value"].notna()]
    assert len(frame) == CLAIMS and frame["p_value"].to_numpy() == pytest.approx(p[1])
    margins = frame["claim"].str.startswith("Late") * tested.lost_by_early_invariance_loss()
    assert ((frame["effect"] + margins).to_numpy() > 0).tolist() == (direction[1] > 0).tolist()
    corrected = stats.false_discovery_control(frame["p_value"], method="bh")
    assert frame["p_corrected"].to_numpy() == pytest.approx(corrected)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("untrue", UNTRUE)
@pytest.mark.parametrize("n", [4, 12])
def test_no_more_than_one_in_twenty_settled_claims_is_wrong(n, untrue):
    for shared in SHARED.values():
        rate, _ = rates(2000, n, untrue, shared)["bh"]
        assert rate < 0.05 + 0.01
