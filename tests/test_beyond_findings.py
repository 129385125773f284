import itertools
import math

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refused
from records import NAMES, flip, invariant, measurement, pair, several, train
from scipy import stats

from relusym.findings.beyond import (
    by_layer,
    curves,
    during_training,
    exact_gcnn,
    invariance_errors,
    matchings,
    symmetries,
    universe,
)
from relusym.findings.beyond import claims as beyond_claims
from relusym.findings.evidence import HELD, NOT_HELD, OPEN, UNTESTED, Evidence, paired, shared_nets
from relusym.findings.frames import check_agreement
from relusym.findings.tables.claims import judged

MODELS = ("cnn", "cnn_inv", "cnn_late_inv")
SEEDS = range(4)
NOISE = np.array([-1.0, 1.0, -0.5, 0.5]) * 1e-3  # a number per net, with mean 0
SHAPES = {"horizontal_flip": "horizontal", "vertical_flip": "vertical", "quarter_turn": "turned"}


def exact(model, seed, gain=0.01, status="ok", **changes):
    """An exact GCNN that is better by `gain` at once, and by twice that after fine-tuning."""
    noise = NOISE[seed]
    accuracy = {"net": 0.8, "test_time": 0.82, "halfway": 0.79, "exact": 0.8 + gain + noise}
    accuracy |= {"fine_tuned": 0.81, "fine_tuned_test_time": 0.83 - noise}
    accuracy |= {"exact_fine_tuned": 0.81 + 2 * gain + noise}
    return measurement(
        *("exact_gcnn", [(model, seed)], status),
        accuracy=accuracy | changes,
        invariance_error={"net": 0.2, "halfway": 1e-3, "exact": 1e-7, "exact_fine_tuned": 1e-7},
        parameters={"net": 1000, "exact": 600},
        representations={"conv1": {"fixed": 2, "swapped": 6}, "conv2": {"fixed": 0, "swapped": 8}},
        kernel_constraint=0.0,
    )


def line(nets, excess=0.0, seed=0):
    """A curve with a barrier of 0.1 halfway, and `excess` more at the next point."""
    accuracy = 0.8 - 0.08 * np.array([0, 0.5, 1, 1 + excess / 0.1, 0])
    loss = 0.5 + np.array([0, 0.1, 0.3, 0.2, 0]) + 1e-3 * NOISE[seed]
    plain = {"accuracy": (accuracy - 0.1 * (accuracy < 0.8)).tolist(), "loss": loss.tolist()}
    repaired = {"accuracy": accuracy.tolist(), "loss": loss.tolist()}
    return measurement("curves", nets, curve={"plain": plain, "repaired": repaired})


def turned(model, seed, of):
    """A net measured under each symmetry in `of`, symmetry → barrier."""
    result = {
        name: {
            **{"order": 2, "invariance_error": 0.3, "accuracy": {"net": 0.8, "orbit": 0.75, "whole": 0.7},
             "similarity": {}},
            "barrier": {"pairwise": barrier / 2, "whole": barrier + NOISE[seed], "whole_no_repair": 0.5},
        }
        for name, barrier in of.items()
    }  # fmt: skip
    return measurement("symmetries", [(model, seed)], chosen={"symmetries": [*of]}, symmetries=result)


def trained(model, seed, barriers):
    layers = {f"conv{i}": 0.1 * i for i in range(1, 9)}
    epochs = [{
        **{"epoch": epoch, "accuracy": 0.5, "barrier": barrier + NOISE[seed], "invariance_error": 0.1},
        "equivariance_error": {name: error + NOISE[seed] * error for name, error in layers.items()},
    } for epoch, barrier in zip((0, 1, 10), barriers, strict=True)]  # fmt: skip
    return measurement("during_training", [(model, seed)], epochs=epochs)


def layered(model, seed):
    errors = {f"conv{i}": 0.1 * i * (1 + NOISE[seed]) for i in range(1, 9)}
    barriers = {f"features.conv{i}": 0.001 * i for i in range(1, 9)} | {"classifier": 0.1 + NOISE[seed]}
    return measurement("by_layer", [(model, seed)], equivariance_error=errors, barrier_up_to=barriers)


def everything(good=True):
    """All records, such that every claim holds, or none does."""
    sign = 1 if good else -1
    merged = {"activation": 0.04, "weight_identity": 0.04 + sign * 0.02, "identity": 0.8}
    merged["involution"] = 0.043 if good else 0.06
    inv = {"cnn": 0.0, "cnn_inv": -sign * 0.02}
    flips, pairs = [], []
    for (model, less), seed, (matching, barrier) in itertools.product(inv.items(), SEEDS, merged.items()):
        at = barrier + less + NOISE[seed] * (1 + (matching in ("weight_identity", "involution")))
        flips.append(flip(model, seed, at, matching=matching))
        if matching == "weight_identity":
            of_pair = barrier + less + sign * 0.03 + NOISE[seed] / 9
            pairs.append(pair(model, seed, model, (seed + 1) % 4, of_pair, matching="weight_identity"))
    gains = [exact(model, seed, sign * 0.015) for model in MODELS for seed in SEEDS]
    for of in gains[4:8]:
        of["accuracy"]["from_scratch"] = 0.8 + sign * 0.02 + NOISE[of["seed"]]
    low, high = (0.02, 0.3) if good else (0.3, 0.02)
    of_symmetry = []
    for (symmetry, place), seed in itertools.product(SHAPES.items(), SEEDS):
        barriers = {other: low if other == symmetry else high for other in SHAPES}
        of_symmetry.append(turned(f"shapes_{place}_noaug", seed, barriers))
    for seed in SEEDS:
        other = high + 2 * NOISE[seed]
        barriers = {"horizontal_flip": low, "vertical_flip": other, "quarter_turn": other}
        of_symmetry.append(turned("cnn_noaug", seed, barriers))
        for prefix, symmetry in (("vertical", "vertical_flip"), ("turned", "quarter_turn")):
            for kind, barrier in (("cnn", high), ("inv", low)):
                of_symmetry.append(turned(f"{prefix}_{kind}", seed, {symmetry: barrier}))
    lines = [
        line(nets, (0.0 if good else 0.03) + 1e-3 * NOISE[seed], seed=seed)
        for model in MODELS[:2]
        for seed in SEEDS
        for nets in ([(model, seed)], [(model, seed), (model, (seed + 1) % 4)])
    ]
    early = {"cnn": 0.2, "cnn_inv": 0.2 - sign * 0.05}
    at = [(model, barrier, seed) for model, barrier in early.items() for seed in SEEDS]
    during = [trained(model, seed, (0.5, b, b - sign * 0.04 + NOISE[seed])) for model, b, seed in at]
    layers = [layered(model, seed) for model in MODELS[:2] for seed in SEEDS]
    if not good:
        for of in during:
            for epoch in of["epochs"]:
                errors = epoch["equivariance_error"]
                epoch["equivariance_error"] = dict(zip(errors, [*errors.values()][::-1], strict=True))
        for of in layers:
            for measure in ("equivariance_error", "barrier_up_to"):
                values = np.array([*of[measure].values()])
                turned_round = values[::-1]
                if measure == "barrier_up_to":
                    turned_round = np.append(0.1 + 0 * values[1:], 0.1 + NOISE[of["seed"]])
                of[measure] = dict(zip(of[measure], turned_round.tolist(), strict=True))
    several_of = lambda seed: range(3 * seed, 3 * seed + 3)  # noqa: E731
    at = [(model, several_of(seed), 0.2 + less, NOISE[seed]) for model, less in inv.items() for seed in SEEDS]
    sets = [several(model, seeds, at + noise, sign * 0.03 + noise / 9) for model, seeds, at, noise in at]
    every = {"flip_merge": flips, "pair_merge": pairs, "exact_gcnn": gains, "symmetries": of_symmetry}
    return every | {"universe": sets, "curves": lines, "during_training": during, "by_layer": layers}


SELECTION = {"models": [*MODELS], "pairs": [["cnn", "cnn"]], "names": NAMES, "notes": []}
SELECTION["matchings"] = ["activation", "weight_identity"]
SELECTION["later"] = ["universe"]


def test_every_claim_holds_on_data_with_its_effect_and_none_on_data_with_the_opposite():
    for good, verdict in ((True, HELD), (False, NOT_HELD)):
        frame = beyond_claims.frame(everything(good), SELECTION)
        verdicts = frame.set_index("claim")["verdict"]
        assert set(verdicts) == {verdict}, verdicts[verdicts != verdict]
        assert (frame["p_corrected"] >= frame["p_value"]).all()
    assert frame["question"].nunique() == 7 and frame["claim"].is_unique


def test_a_type_trained_for_fewer_epochs_is_compared_with_its_own_end():
    records = everything()
    for record in records["during_training"][:4]:
        record["epochs"][-1]["epoch"] = 5
    claims = beyond_claims.frame(records, SELECTION).set_index("claim")
    claim = "the GCNN barrier is lower at the end of training than after the first epoch"
    assert claims.loc[[f"CNN: {claim}", f"CNN + inv-loss: {claim}"], "verdict"].eq(HELD).all()


def test_docs_state_the_number_of_claims():
    text = (ROOT / "docs/beyond.md").read_text(encoding="utf-8")
    selections = [SELECTION | {"later": later} for later in ([], ["universe"])]
    first, every = (len(beyond_claims.frame(everything(), selection)) for selection in selections)
    assert f"among all {first} of sections 1 to 6" in " ".join(text.split()) and every == first + 3


def test_claims_of_a_later_section_count_only_at_scales_that_measure_it():
    frames = [beyond_claims.frame(everything(), SELECTION | {"later": later}) for later in ([], ["universe"])]
    before, after = (claims.set_index("claim")["p_corrected"] for claims in frames)
    later = frames[1][frames[1]["question"] == "universe"]
    assert {*after.index} - {*before.index} == {*later["claim"]}
    assert list(later["n"]) == ["4 sets", "4 sets", "4 and 4 sets"]
    assert (after[before.index] > before).any()


def test_without_records_or_with_one_net_no_claim_is_tested():
    nothing = {kind: [] for kind in everything()}
    seeds = {kind: [(r.get("seed", r.get("seed_1")), r) for r in all] for kind, all in everything().items()}
    single = {kind: [record for seed, record in several if seed == 0] for kind, several in seeds.items()}
    for inputs in (nothing, single):
        frame = beyond_claims.frame(inputs, SELECTION)
        of_more = frame["claim"].str.contains("where the images are invariant")  # others: two types
        assert set(frame.loc[~of_more, "verdict"]) == {UNTESTED} and frame["remark"].ne("").all()


def test_a_paired_test_is_students_and_its_margin_shifts_the_hypothesis_and_not_the_effect():
    differences = np.array([0.01, -0.002, 0.005, 0.004])
    plain, shifted = paired(differences), paired(differences, 0.02)
    assert plain.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert shifted.p_value == pytest.approx(stats.ttest_1samp(differences, -0.02).pvalue)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    for result in (plain, shifted):
        assert (result.effect, result.low, result.high) == pytest.approx((differences.mean(), *interval))
    assert shifted.direction == pytest.approx(differences.mean() + 0.02)
    equal = np.array([0.83, 0.82, 0.81, 0.8]) - np.array([0.82, 0.81, 0.8, 0.79])  # equal up to rounding
    assert paired(equal).p_value == paired(equal).p_rank == 0.125 and not paired(equal).settled
    assert [paired(effect * equal, 0.02).settled for effect in (1, -1, -3)] == [HELD, HELD, NOT_HELD]
    assert np.isnan(paired(differences[:1]).p_value)


def test_lines_between_pairs_are_tested_as_pairs_that_share_nets():
    frame = beyond_claims.frame(everything(), SELECTION)
    of_pairs = frame[frame["claim"].str.contains("to another, the largest barrier")]
    assert len(of_pairs) == 2 and of_pairs["test"].str.startswith("paired t, for shared nets, against").all()
    assert of_pairs["n"].str.fullmatch(r"\d+ pairs of \d+ nets").all()
    differences, seeds = np.array([0.01, -0.002, 0.005]), np.array([[9, 10], [10, 11], [11, 0]])
    alone, shared = paired(differences), paired(differences, seeds=seeds)
    factor, degrees = shared_nets(seeds)
    assert factor > 1 and degrees < 2 and (shared.n, shared.nets) == ("3 pairs of 4 nets", 4)
    t = differences.mean() / (differences.std(ddof=1) * np.sqrt(factor / 3))
    assert shared.p_value == pytest.approx(2 * stats.t.sf(t, degrees)) and shared.p_value > alone.p_value


def test_a_mixture_from_scratch_shares_nothing_with_its_net_and_is_tested_by_welchs_test():
    inputs = everything()
    frame = beyond_claims.frame(inputs, SELECTION).set_index("claim")
    (claim,) = frame.index[frame.index.str.startswith("The mixture of")]
    accuracies = [r["accuracy"] for r in inputs["exact_gcnn"] if r["model"] == "cnn_inv"]
    columns = ([of[key] for of in accuracies] for key in ("from_scratch", "net"))
    welch = stats.ttest_ind(*columns, equal_var=False)
    assert frame.loc[claim, "test"] == "Welch's t" and frame.loc[claim, "n"] == "4 and 4 nets"
    assert frame.loc[claim, "p_value"] == pytest.approx(welch.pvalue)
    gains = exact_gcnn.gains(inputs["exact_gcnn"], ["cnn_inv"]).set_index("comparison")
    shown = gains.loc["mixture from scratch − net", ["low", "high"]].tolist()
    assert shown == pytest.approx([*welch.confidence_interval(0.95)])


def test_where_all_nets_are_equal_a_remark_explains_that_no_p_value_settles_it():
    result = paired(np.zeros(4), 0.01)
    assert result.settled == HELD and result.p_value > 0.05 and "whatever p is" in result.remark


def test_claims_that_are_not_tested_yet_count_in_the_correction():
    tested = [Evidence("", "", p_value=p, direction=1.0) for p in (0.01, math.nan, math.nan)]
    claims = pd.DataFrame([vars(evidence) for evidence in tested])
    assert judged(claims.copy())["p_corrected"].tolist()[0] == pytest.approx(0.01)
    assert judged(claims.copy(), count_untested=True)["p_corrected"].tolist()[0] == pytest.approx(0.03)


def test_noise_alone_is_inconclusive():
    random = np.random.default_rng(0)
    inputs = everything()
    for of in inputs["exact_gcnn"]:
        for name in of["accuracy"]:
            of["accuracy"][name] = 0.8 + 0.02 * random.standard_normal()
    frame = beyond_claims.frame(inputs, SELECTION)
    # the claim with a margin is a different one
    of_gains = frame[(frame["question"] == "exact_gcnn") & ~frame["claim"].str.contains("within")]
    assert set(of_gains["verdict"]) == {OPEN}


def test_exact_gcnn_rows_are_means_over_nets_and_gains_are_paired_by_net():
    records = [exact("cnn", seed, 0.01 * seed, net=0.7 + 0.01 * seed) for seed in SEEDS]
    records.append(exact("cnn_inv", 0, status="left_out"))
    frame = exact_gcnn.frame({"exact_gcnn": records}, SELECTION).set_index("model")
    assert frame.loc["cnn", "net_mean"] == pytest.approx(0.715)
    assert frame.loc["cnn", "free_mean"] == 0.6 and frame.loc["cnn", "fixed_mean"] == 2 / 16
    assert (frame.loc["cnn", "n"], frame.loc["cnn_inv", "n"], frame.loc["cnn_inv", "left_out"]) == (4, 0, 1)
    figure, gains = exact_gcnn.draw({"exact_gcnn": records}, SELECTION)
    at_once = gains.set_index(["model", "comparison"]).loc[("cnn", "exact GCNN − net")]
    differences = np.array([0.8 + NOISE[seed] - 0.7 for seed in SEEDS])
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    shown = at_once["gain"], at_once["low"], at_once["high"]
    assert shown == pytest.approx((differences.mean(), *interval))
    assert "mixture from scratch − net" not in set(gains["comparison"])  # there is no mixture from scratch
    assert len(figure.axes[0].containers) == 4


def test_a_curves_largest_barrier_has_its_position_and_its_excess_over_halfway():
    records = [line([("cnn", seed)], 0.02, seed=seed) for seed in SEEDS] + [line([("cnn", 0), ("cnn", 1)])]
    frame = curves.frame({"curves": records}, SELECTION | {"models": ["cnn"]}).set_index(["model_2", "way"])
    flipped, other = frame.loc[("", "REPAIR")], frame.loc[("cnn", "REPAIR")]
    assert [*flipped[["halfway_mean", "largest_mean", "place_mean"]]] == pytest.approx([0.1, 0.12, 0.75])
    assert [*other[["halfway_mean", "excess_mean", "place_mean"]]] == pytest.approx([0.1, 0, 0.5])
    assert (flipped["n"], other["n"]) == (4, 1) and flipped["loss_largest_mean"] == pytest.approx(0.3)
    assert frame.loc[("", "no REPAIR"), "halfway_mean"] == pytest.approx(0.225)
    figure, points = curves.draw({"curves": records}, SELECTION | {"models": ["cnn"]})
    assert len(points) == 5 * 2 * 5 and len(figure.axes) == 4
    assert "its flipped self" in figure.axes[0].get_title()


def test_unequal_ends_have_no_barrier_if_the_line_between_is_straight():
    straight = line([("cnn", 0)])
    straight["curve"]["repaired"]["accuracy"] = [0.9, 0.85, 0.8, 0.75, 0.7]
    straight_line = curves.by_curve([straight]).set_index("way").loc["repaired"]
    assert straight_line["largest"] == pytest.approx(0, abs=1e-12)


def test_symmetries_have_a_row_per_type_and_symmetry_in_the_configs_order():
    of = dict.fromkeys(SHAPES, 0.2)
    records = [turned("cnn", seed, {"quarter_turn": 0.1}) for seed in SEEDS] + [turned("cnn_inv", 0, of)]
    frame = symmetries.frame({"symmetries": records}, SELECTION | {"models": ["cnn_inv", "cnn"]})
    rows = [["cnn_inv", name.replace("_", " "), 1] for name in SHAPES]
    assert frame[["model", "symmetry", "n"]].to_numpy().tolist() == [*rows, ["cnn", "quarter turn", 4]]
    assert frame["whole_mean"].iloc[-1] == pytest.approx(0.1) and frame["pairwise_mean"].iloc[-1] == 0.05


def test_during_training_has_a_row_per_type_and_epoch_with_the_first_and_last_layers_errors():
    records = [trained("cnn", seed, (0.5, 0.2, 0.1)) for seed in SEEDS]
    records.append(measurement("during_training", [("cnn", 4)], status="left_out"))
    frame = during_training.frame({"during_training": records}, SELECTION).set_index(["model", "epoch"])
    assert frame.index.to_list() == [("cnn", epoch) for epoch in (0, 1, 10)]
    assert frame["barrier_mean"].to_list() == pytest.approx([0.5, 0.2, 0.1])
    assert frame.loc[("cnn", 1), "first_mean"] == pytest.approx(0.1)
    assert frame.loc[("cnn", 1), "last_std"] == pytest.approx(0.8 * NOISE.std(ddof=1))
    assert set(frame["n"]) == {4} and set(frame["left_out"]) == {1}


def test_invariance_errors_have_a_row_per_type_and_the_papers_error_and_accuracy():
    nets = ("cnn", 0, 0.9), ("cnn", 1, 0.8), ("cnn_inv", 0, 0.7)
    inputs = {"invariance_errors": [invariant(*net) for net in nets]}
    frame = invariance_errors.frame(inputs, SELECTION).set_index("model")
    assert frame.loc["cnn", "accuracy_mean"] == pytest.approx(0.85) and frame.loc["cnn", "n"] == 2
    assert frame.loc["cnn_inv", ["test_mean", "train_mean", "crops_mean"]].to_list() == [0.05, 0.04, 0.06]
    note, *_ = invariance_errors.notes(inputs, SELECTION)
    assert "invariance error 0.0628 ± 0.007, accuracy 0.892 ± 0.002" in note


def test_by_layer_has_a_row_per_type_and_layer_and_the_last_has_only_a_barrier():
    records = [layered(model, seed) for model in MODELS[:2] for seed in SEEDS]
    frame = by_layer.frame({"by_layer": records}, SELECTION).set_index(["model", "layer"])
    assert frame.index.to_list() == [(model, layer) for model in MODELS[:2] for layer in range(1, 10)]
    assert frame.loc[("cnn", 3), "barrier_up_to_mean"] == pytest.approx(0.003)
    assert frame.loc[("cnn", 9), "barrier_up_to_mean"] == pytest.approx(0.1)
    assert frame["equivariance_error_mean"].isna().sum() == 2 and set(frame["left_out"]) == {0}


def test_lie_derivatives_are_columns_of_records_that_have_them_and_change_no_others():
    records = [layered("cnn", seed) for seed in SEEDS]
    plain = by_layer.frame({"by_layer": records}, SELECTION)
    for of in records:
        for name in ("lie_translation", "lie_rotation"):
            of[name] = {layer: 0.01 * i for i, layer in enumerate(of["barrier_up_to"])}
    frame = by_layer.frame({"by_layer": records}, SELECTION)
    lie = [f"lie_{name}_{what}" for name in ("translation", "rotation") for what in ("mean", "std")]
    assert [column for column in frame if column not in plain] == lie
    pd.testing.assert_frame_equal(frame[[*plain]], plain)
    assert frame["lie_rotation_mean"].tolist() == pytest.approx([0.01 * i for i in range(9)])


def test_several_nets_have_a_row_per_type_and_number_of_nets():
    records = [several("cnn", range(i, i + 5), 0.1 * i, counts=(3, 5)) for i in (1, 2)]
    records.append(several("cnn", range(8, 13), status="left_out", counts=(3, 5)))
    frame = universe.frame({"universe": records}, SELECTION).set_index(["model", "count"])
    assert frame.index.to_list() == [("cnn", 3), ("cnn", 5)] and frame["n"].tolist() == [2, 2]
    assert frame["left_out"].tolist() == [1, 1]
    assert frame.loc[("cnn", 3), "universe_mean"] == pytest.approx(0.15)
    assert frame.loc[("cnn", 5), "pairwise_mean"] == pytest.approx(0.17)


def test_panels_of_symmetries_are_tinted_where_the_images_are_invariant():
    inputs = everything()
    for of in inputs["symmetries"]:
        data = of["settings"]["trained"][0]["data"]
        if not of["model"].startswith("shapes"):
            data["dataset"] = "cifar10"
        for symmetry, place in SHAPES.items():
            if of["model"] == f"shapes_{place}_noaug":
                data |= {"invariant_to": symmetry} if place != "horizontal" else {}  # the default
                of["inputs"]["source"] = f"shapes, {symmetry}"
    models = sorted({of["model"] for of in inputs["symmetries"]})
    figure, points = symmetries.draw(inputs, SELECTION | {"models": models})
    assert len(points) == len(symmetries.by_net(inputs["symmetries"]))
    shown = points.loc[points["invariant"], ["model", "symmetry"]].itertuples(index=False, name=None)
    assert {*shown} == {(f"shapes_{place}_noaug", symmetry) for symmetry, place in SHAPES.items()}
    columns = [panel.get_title() for panel in figure.axes[: len(SHAPES)]]
    tinted = {(
        columns[place % len(SHAPES)],
        figure.axes[place - place % len(SHAPES) + len(SHAPES) - 1].texts[0].get_text().replace("\n", " "),
    ) for place, panel in enumerate(figure.axes) if panel.get_facecolor()[:3] != (1, 1, 1)}  # fmt: skip
    assert tinted == {(symmetry.replace("_", " "), f"shapes, {symmetry}") for symmetry in SHAPES}
    assert "no nets" in symmetries.draw({"symmetries": []}, SELECTION)[0].texts[0].get_text()


def test_figures_show_every_type_and_a_note_where_there_is_none():
    inputs = everything()
    figure, points = during_training.draw(inputs, SELECTION)
    assert len(figure.axes) == 6 and len(points) == 8 * 3 * 8
    assert "no nets" in during_training.draw({"during_training": []}, SELECTION)[0].texts[0].get_text()
    figure, points = by_layer.draw(inputs, SELECTION)
    assert set(points["measure"]) == {*by_layer.MEASURED} and points["layer"].max() == 9
    figure, points = matchings.draw({"train": [], **inputs}, SELECTION)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["CNN · flipped", "CNN + inv-loss · flipped", "CNN · CNN"]
    assert len(points) == 2 * 4 * 4 + 2 * 4


@pytest.mark.parametrize("draw", [by_layer.draw, during_training.draw])
def test_more_types_than_there_are_colours_are_all_drawn(draw):
    models = [f"cnn_{i}" for i in range(9)]
    nets = {"by_layer": [layered(model, 0) for model in models],
            "during_training": [trained(model, 0, [0.3, 0.2, 0.1]) for model in models]}  # fmt: skip
    figure, _ = draw(nets, SELECTION | {"models": models})
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == models


def test_records_of_other_checkpoints_or_settings_are_refused():
    first, other = exact("cnn", 0), exact("cnn", 1)
    other["settings"]["fine_tuning"] = {"epochs": 3}
    first["settings"]["fine_tuning"] = {"epochs": 2}
    both = {"exact_gcnn": [first, other]}
    refused(lambda: check_agreement(both), match=r"fine_tuning\.epochs")
    stranger = exact("cnn", 0)
    stranger["inputs"]["checkpoints"] = ["0" * 64]
    records = {"train": [train("cnn", 0)], "flip_merge": [stranger], "pair_merge": []}
    line = r"exact_gcnn record cnn-0 was made from another checkpoint \(0{8}\)"
    refused(lambda: check_agreement(records), match=line)


@pytest.mark.parametrize(
    "table", [by_layer, curves, during_training, exact_gcnn, invariance_errors, symmetries, universe]
)
def test_a_table_without_any_record_is_empty(table):
    kind = table.__name__.rpartition(".")[2]
    frame = table.frame({kind: []}, {"models": ["cnn"], "pairs": [], "names": NAMES})
    assert frame["n"].sum() == 0 and frame.filter(like="_mean").isna().all(axis=None)
