import numpy as np
import pytest
from error_rates import CLAIMS, SHARED, UNTRUE, as_records, p_values, rates, simulate
from records import NAMES
from scipy import stats

from relusym.findings.tables import claims


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("n", [4, 12])
def test_the_simulation_tests_what_the_claims_test(n):
    *simulated, _ = simulate(np.random.default_rng(0), 2, n, "flip loss", 0.5)
    p, direction = p_values(*simulated)
    one = [{m: x[1] for m, x in part.items()} if isinstance(part, dict) else part[1] for part in simulated]
    found = claims.claims(*as_records(*one), NAMES)
    found = found[found["p_value"].notna()]
    assert len(found) == CLAIMS and found["p_value"].to_numpy() == pytest.approx(p[1])
    margins = found["claim"].str.startswith("Late") * claims.lost_by_early_invariance_loss()
    assert ((found["effect"] + margins).to_numpy() > 0).tolist() == (direction[1] > 0).tolist()
    corrected = stats.false_discovery_control(found["p_value"], method="bh")
    assert found["p_corrected"].to_numpy() == pytest.approx(corrected)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("untrue", UNTRUE)
@pytest.mark.parametrize("n", [4, 12])
def test_of_the_claims_called_settled_no_more_than_one_in_twenty_is_wrong(n, untrue):
    for shared in SHARED.values():
        rate, _ = rates(2000, n, untrue, shared)["bh"]
        assert rate < 0.05 + 0.01
