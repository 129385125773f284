import itertools
import math

import numpy as np
import pandas as pd
import pytest
from records import NAMES, flip, pair, train
from scipy import stats
from test_claims import cycle, nets_of_types, run, zero_filters

from relusym.findings import evidence, power
from relusym.findings.evidence import HELD, OPEN, UNTESTED, flipped_against_other, is_higher
from relusym.findings.tables import claims as tested

DRAWS = 20000
LEVEL = 0.05


def within(found, expected, draws=DRAWS):
    """Equal up to three standard errors of a share of so many draws."""
    return abs(found - expected) < 3 * math.sqrt(max(expected * (1 - expected), 1e-3) / draws)


@pytest.mark.parametrize("n", [3, 6, 12])
def test_welchs_power_is_the_share_of_simulated_tests_that_find_the_effect(n):
    random = np.random.default_rng(n)
    high, low = random.normal(0.9, 0.02, (DRAWS, n)), random.normal(0.88, 0.01, (DRAWS, n))
    found = stats.ttest_ind(high, low, axis=1, equal_var=False)
    share = ((found.pvalue < LEVEL) & (found.statistic > 0)).mean()
    # Welch's degrees of freedom are estimated in the test and known in the formula
    assert abs(power.welch((0.9, 0.02), (0.88, 0.01))(n, LEVEL) - share) < (0.06 if n == 3 else 0.02)


def test_the_power_of_a_t_test_on_nets_is_the_share_of_simulated_ones_that_find_the_effect():
    values = np.random.default_rng(0).normal(0.7, 0.2, (DRAWS, 5))
    share = (stats.ttest_1samp(values, 0.5, axis=1, alternative="greater").pvalue < LEVEL / 2).mean()
    assert within(power.one_sample(0.2, 0.2)(5, LEVEL), share)


@pytest.mark.parametrize("n", [3, 4, 7, 12, 24])
def test_a_cycle_of_pairs_has_the_error_and_degrees_of_freedom_of_its_test(n):
    factor, degrees = evidence.shared_nets(np.array(cycle(n)))
    expected = power.t_power(1.0, 2.0 * math.sqrt(factor / n), degrees, LEVEL)
    assert power.cycle_of_pairs(1.0, 2.0)(n, LEVEL) == pytest.approx(expected)


@pytest.mark.slow(seconds=9)
def test_the_power_of_the_rank_correlation_is_the_share_of_simulated_nets_in_which_it_is_found(monkeypatch):
    monkeypatch.setattr(evidence, "RESAMPLES", 9)  # of the interval, which isn't looked at
    means = 0.6 * np.arange(7)
    spread = {model: (mean, 1.0) for model, mean in enumerate(means)}
    random, draws = np.random.default_rng(0), 200
    drawn = [nets_of_types(random, 6, 0.0, means, means) for _ in range(draws)]
    found = [evidence.rank_correlation_of_types(nets, "error", "barrier").p_value < LEVEL for nets in drawn]
    assert within(power.rank_correlation(spread, spread)(6, LEVEL), np.mean(found), draws)


def test_the_nets_needed_are_the_fewest_that_give_the_power():
    of = power.welch((0.9, 0.02), (0.89, 0.02))
    needed = int(power.nets_needed(of, LEVEL))
    assert of(needed, LEVEL) >= power.SETTLES > of(needed - 1, LEVEL)
    assert power.nets_needed(power.welch((0.9, 0.02), (0.9, 0.02)), LEVEL) == math.inf


def test_all_of_several_tests_are_settled_no_less_often_than_the_bound_says():
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
        found = is_higher({"a": random.normal(1.0, 0.3, n), "b": random.normal(0.5, 0.1, n)}, "a", "b", 0.2)
        welch += found.low < 0.5 < found.high
        own, others = random.normal(0.04, 0.01, n), random.normal(0.05, 0.01, n)
        nets = pd.DataFrame({"model": "cnn", "seed": range(n), "gcnn_barrier": own})
        merged = pd.DataFrame(cycle(n), columns=["seed_1", "seed_2"]).assign(model_1="cnn", model_2="cnn")
        merged["barrier"] = (others + np.roll(others, -1)) / 2
        found = flipped_against_other(nets, merged, "cnn")
        pairs += found.low < 0.01 < found.high
    assert within(welch / draws, 0.95, draws)
    assert within(pairs / draws, 0.95, draws)  # with all of a pair's barrier its nets': the worst case


def test_a_claim_of_equal_nets_has_an_interval_of_nothing_and_needs_no_power():
    found = tested.claims(run(4, spread=0.0), zero_filters([], []), NAMES).set_index("claim")
    assert found["nets_needed"].isna().all()


def test_a_table_says_the_power_of_every_tested_claim_and_how_many_nets_settle_an_open_one():
    filters = zero_filters([3, 4, 5, 4], [1, 6, 2, 3])
    found = tested.claims(run(4, spread=8.0), filters, NAMES).set_index("claim")
    by_t = found[found["test"] != "count"]
    assert by_t[["low", "high"]].notna().all(axis=None)
    assert ((by_t["low"] <= by_t["effect"]) & (by_t["effect"] <= by_t["high"])).all()
    numbers = by_t.index.str.contains("matching|zero-filters")  # of which the paper has none
    assert by_t["power"].notna().tolist() == (~numbers).tolist()
    assert by_t["power"].dropna().between(0, 1).all()
    still_open = found["verdict"] == OPEN
    assert still_open.any() and found["nets_needed"].notna().tolist() == still_open.tolist()
    assert (found.loc[still_open, "nets_needed"] > 4).all()


def resnets(old=0.05, inv=0.02, pairs=0.2, n=4):
    found = {"train": [], "flip_merge": [], "pair_merge": []}
    for (model, barrier), seed in itertools.product({"old": old, "old_inv": inv}.items(), range(n)):
        found["train"].append(train(model, seed, 0.9 + 0.001 * seed))
        found["flip_merge"].append(flip(model, seed, barrier + 0.001 * (seed % 3)))
        found["pair_merge"].append(pair(model, seed, model, (seed + 1) % n, pairs + 0.001 * (3 * seed % 4)))
    return found


def test_claims_about_resnets_are_tested_where_there_are_rows_of_table_5():
    rows = {"torchvision_old": "old", "torchvision_old_inv": "old_inv"}
    names = NAMES | {"old": "Old ResNet", "old_inv": "Old ResNet + inv-loss"}
    both = {kind: run(4)[kind] + several for kind, several in resnets().items()}
    found = tested.claims(both, zero_filters([], []), names, rows).set_index("claim")
    assert "torchvision_old_225" not in rows and len(found) == 13 + 3
    about_resnets = found[found["source"].str.contains("Section 4.2")]
    assert set(about_resnets["verdict"]) == {HELD}, about_resnets["verdict"]
    claim = "Merging a Old ResNet with its flipped self has a lower barrier than merging two of them"
    assert about_resnets.loc[claim]["effect"] == pytest.approx(0.15, abs=0.002)
    assert about_resnets["power"].notna().tolist() == [False, False, True]  # it has no pairs of ResNets
    assert about_resnets["power"].iloc[-1] > 0.9  # 0.038 against 0.005, and a spread of 0.001
    none = tested.claims(run(4), zero_filters([], []), names, rows).set_index("claim")
    assert set(none.loc[about_resnets.index, "verdict"]) == {UNTESTED}
    assert len(tested.claims(both, zero_filters([], []), names)) == 13
