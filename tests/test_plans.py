import pytest
from conftest import MODELS

DATA = "prepare_data generated-400-200-0"
MEASURING = "train ", "flip_merge ", "pair_merge ", "prepare_data "
RESNETS = {"flip_merge old 0", "flip_merge simsiam_odd 0"}
FLIPS = {f"flip_merge {model} {seed}" for model in MODELS for seed in (0, 1)} | RESNETS
PAIRS = {"pair_merge cnn 0 gcnn 0", "pair_merge cnn 1 gcnn 1", "pair_merge gcnn 0 gcnn 1"}
LINEAR = {"flip_merge simsiam_odd 0", "train simsiam_odd 0"}
OLD_1 = {"flip_merge old 1", "pair_merge old 0 old 1", "train old 0", "train old 1"}
PLANNED = {  # records deleted, and targets or options typed → jobs that measure, other jobs
    (("flip_merge", "gcnn-1"),): ({"flip_merge gcnn 1", DATA, "train gcnn 1"}, set()),
    (("train", "cnn-0"),): ({DATA, "train cnn 0"}, set()),
    (("pair_merge", "gcnn-0", "gcnn-1"), "table4"): (
        {"pair_merge gcnn 0 gcnn 1", DATA, "train gcnn 0", "train gcnn 1"}, {"table4"}
    ),
    (("pair_merge", "gcnn-0", "gcnn-1"), "table2", "figure4"): (set(), set()),  # these read no pairs
    (("flip_merge", "simsiam_odd-0"), "table3", "table5"): (  # Table 3 has no such row
        {DATA, *LINEAR, "train simsiam_odd.pretraining 0"}, {"table5"}
    ),
    ((), "table4", "table5", "--config", "models={old: {seeds: 0-1}}", "pairs=[[old, old]]"): (
        {DATA, *OLD_1}, {"table4", "table5"}
    ),
    ((), "--config", "filters={zero_filter: 0.2}"): (set(), {"zero_filters", "claims"}),
    ((), "--config", "models={cnn: {name: Plain net}}"): (set(), {"table1", "table2", "table4", "figure4"}),
    ((), "--config", "models={cnn: {description: A net}}"): (set(), {"table1"}),
    ((), "--config", "figure9=simsiam_odd"): (set(), {"figure9"}),
    ((), "--config", "pairs=[[cnn, gcnn]]"): (set(), {"table4", "comparison"}),
    ((), "--config", "models={old: null}", "figure9=simsiam_odd"): (set(), {"table3", "table5", "figure9"}),
}  # fmt: skip
OTHERWISE = {  # options typed after a run → jobs that measure, other jobs
    ("--config", "training={save_every: 2}", "merging={batch_size: 40}"): (set(), set()),  # changes no result
    ("--config", "merging={invariance_images: 40}"): (FLIPS, {"table2"}),
    ("--config", "merging={images: 90}"): (FLIPS - RESNETS | PAIRS, {"table2", "table4"}),
    ("--config", "filters={projection_seed: 1, zero_filter: 0.1}"): (FLIPS, {"figure7"}),
    # the pretraining is kept
    ("table3", "table5", "--config", "models={simsiam_odd: {linear: {epochs: 5}}}"): (LINEAR, {"table5"}),
}


def check(clone, typed, measuring, others):
    """Check that exactly these jobs measure, and that the others are these (with targets), or include these."""
    jobs = {*clone.planned(*typed)}
    assert {job for job in jobs if job.startswith(MEASURING)} == measuring and others <= jobs
    if [*typed][:1] not in ([], ["--config"]) or not measuring | others:
        assert jobs == measuring | others


@pytest.mark.parametrize("case", PLANNED, ids=str)
def test_a_run_on_committed_records_makes_what_is_missing_and_shows_the_present_config(committed, case):
    deleted, *typed = case
    if deleted:
        committed.record(*deleted).unlink()
    check(committed, typed, *PLANNED[case])


@pytest.mark.parametrize("typed", OTHERWISE, ids=str)
def test_after_a_run_a_changed_setting_measures_only_what_depends_on_it(finished, typed):
    check(finished, typed, *OTHERWISE[typed])
