import numpy as np
import pytest
from records import run_of

from relusym.findings.beyond import regime
from relusym.findings.evidence import HELD, NOT_HELD, OPEN, UNTESTED, higher_by_pairs

SEEDS = range(20, 28)
NOISE = dict(zip(SEEDS, np.linspace(-1e-3, 1e-3, 8), strict=True))
SELECTION = {"models": regime.MODELS, "names": {}, "notes": []}


def inputs(gaps, seeds=SEEDS):
    pairs = {model: [0.1 + gaps.get(model, 0) + NOISE[seed] for seed in seeds] for model in regime.MODELS}
    return run_of(dict.fromkeys(regime.MODELS, [0.1] * len(seeds)), pairs, seeds[0])


def verdicts(gaps, **how):
    return regime.frame(inputs(gaps, **how), SELECTION)["verdict"].tolist()[:4]


def test_claims_hold_on_data_with_their_effect_and_not_on_data_with_the_opposite():
    assert verdicts({"cnn_100": 0.02, "noaug_100": -0.02}) == [HELD] * 4
    assert verdicts({"cnn_100": -0.02, "noaug_100": 0.02}) == [NOT_HELD] * 4
    assert verdicts({}) == [OPEN] * 4
    assert verdicts({"cnn_100": 0.02}, seeds=range(20, 22)) == [UNTESTED] * 4  # one pair per type


def test_each_type_and_length_has_its_gap_and_no_verdict():
    described = regime.frame(inputs({"cnn_30": 0.03}), SELECTION).set_index("claim").iloc[4:]
    assert len(described) == 6 and described["p_value"].isna().all() and described["verdict"].isna().all()
    assert described.loc["D: cnn_30", "effect"] == pytest.approx(0.03)
    assert described.loc["D: cnn_10", "effect"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["pairs alone", "nets alone"])
def test_the_test_between_two_types_keeps_its_level_where_pairs_share_nets(share):
    draws, nets = 1000, 8
    random = np.random.default_rng(0)
    seeds = np.stack([np.arange(nets), (np.arange(nets) + 1) % nets], axis=1)

    def type_of_nets():
        by_net = random.normal(size=(draws, nets))
        return share * by_net[:, seeds].sum(2) + (1 - share) * random.normal(size=(draws, nets))

    types = zip(type_of_nets(), type_of_nets(), strict=True)
    p = [higher_by_pairs((a, seeds), (b, seeds)).p_value for a, b in types]
    assert np.mean(np.array(p) < 0.05) < 0.07
