import math

import pandas as pd
import pytest
from conftest import refused
from records import MEASURED, MODELS, NAMES, PAIRS, SELECTION, flip, made, pair, train

from relusym import paper_values
from relusym.errors import UserError
from relusym.findings import agreement, declared
from relusym.findings.beyond import matchings
from relusym.findings.frames import chosen, tidy
from relusym.findings.layout import human_table, write_table
from relusym.findings.tables import resnets, table1, table2, table4
from relusym.findings.tables.costs import LAYOUT as COSTS
from relusym.findings.tables.costs import costs


def of_models(*models):
    return SELECTION | {"models": models}


@pytest.fixture
def three_types():
    """cnn: two good nets; gcnn: one good, one degenerate, one not merged; pgcnn: all diverged."""
    trains = [train("cnn", 0, 0.9), train("cnn", 1, 0.8), train("gcnn", 0, 0.7), train("gcnn", 2, 0.2)]
    trains += [train("gcnn", 1, 0.1, "degenerate")]
    trains = [net | ({"parameters": 289000} if net["model"] == "gcnn" else {}) for net in trains]
    trains += [train("pgcnn", seed, None, status="diverged", parameters=None) for seed in (0, 1)]
    flips = [flip("cnn", 0, 0.03, error=0.2), flip("cnn", 1, 0.01, error=0.4)]
    flips += [
        flip("gcnn", 0, -0.001, error=1e-6),
        *(flip("gcnn", seed, status="left_out") for seed in (1, 2)),
    ]
    return trains, [*flips, *(flip("pgcnn", seed, status="left_out") for seed in (0, 1))]


def test_tidy_has_a_row_a_record_and_no_lists():
    frame = tidy([train("cnn", 0), flip("cnn", 0)])
    assert len(frame) == 2 and frame.loc[0, "settings.network.width"] == 0.25
    assert frame.loc[1, "barrier.repaired"] == 0.04 and math.isnan(frame.loc[0, "barrier.repaired"])
    assert not [column for column in frame if column.startswith(("permutations", "history"))]


def table_2(trains_and_flips, selection=SELECTION):
    trains, flips = trains_and_flips
    return made(table2, selection, train=trains, flip_merge=flips)


@pytest.mark.parametrize("numbered", [1, 2, 4])
def test_columns_are_those_of_the_papers_csv_then_n_left_out_then_the_papers(numbered):
    columns = list(made(declared()[f"table{numbered}"].load()).columns)
    papers = list(paper_values.table(numbered).columns)
    assert columns[: len(papers) + 2] == [*papers, "n", "left_out"]
    ids = ("model", "model_1", "model_2", "name", "description")
    assert columns[len(papers) + 2 :] == [f"paper_{column}" for column in papers if column not in ids]


def test_table2_has_means_and_sample_stds_of_good_nets_and_a_row_for_a_type_without(three_types):
    frame = table_2(three_types).set_index("model")
    measured = [
        f"{name}_{of}" for of in ("mean", "std") for name in ("accuracy", "invariance_error", "gcnn_barrier")
    ]
    means, stds = [0.85, 0.3, 0.02], [0.1, 0.2, 0.02]  # of two nets: apart by √2 standard deviations, ddof 1
    assert [*frame.loc["cnn", measured]] == pytest.approx(means + [std / math.sqrt(2) for std in stds])
    # neither 0.1 (degenerate) nor 0.2 (merge left out); one net has no sample std
    gcnn = [0.7, 1e-6, -0.001, *[math.nan] * 3]
    assert [*frame.loc["gcnn", measured]] == pytest.approx(gcnn, nan_ok=True)
    assert frame.loc["pgcnn", measured].isna().all() and frame.loc["pgcnn", "paper_accuracy_mean"] == 0.902
    assert frame.loc["cnn", "paper_gcnn_barrier_std"] == 4.9e-3
    counts = frame.loc[["cnn", "gcnn", "pgcnn"], ["n", "left_out"]]
    assert counts.to_numpy().tolist() == [[2, 0], [1, 2], [0, 2]]


@pytest.mark.parametrize("lacking", ["train", "flip_merge"])
def test_table2_leaves_out_a_net_that_lacks_one_of_its_records(three_types, lacking):
    trains, flips = three_types
    (trains if lacking == "train" else flips).pop(1)  # cnn, seed 1
    cnn = table_2((trains, flips), of_models("cnn")).iloc[0]
    assert (cnn["n"], cnn["left_out"], cnn["accuracy_mean"]) == (1, 1, 0.9)


def test_rows_come_in_the_order_asked_for_and_types_the_paper_lacks_have_no_paper_values():
    frame = table_2(([train("mine", 0)], [flip("mine", 0)]), of_models("pgcnn", "mine", "cnn"))
    assert frame["model"].to_list() == ["pgcnn", "mine", "cnn"]
    mine = frame.iloc[1]
    assert (mine["n"], mine["accuracy_mean"]) == (1, 0.9) and mine.filter(like="paper_").isna().all()


def test_table1_counts_parameters_and_nets(three_types):
    frame = made(table1, of_models("gcnn", "cnn", "pgcnn"), train=three_types[0])
    assert frame["name"].to_list() == ["GCNN", "CNN", "PGCNN"]
    assert frame["parameters"].to_list() == [289000, 577000, pd.NA]
    assert frame["n"].to_list() == [2, 2, 0] and frame["left_out"].to_list() == [1, 0, 2]
    assert frame["paper_parameters"].to_list() == [4_610_000, 9_230_000, 9_190_000]


def test_table1_refuses_nets_of_different_size():
    nets = [train("cnn", seed, parameters=5 + 2 * seed) for seed in (0, 1)]
    refused(lambda: made(table1, train=nets), match=r"cnn count 5 to 7 parameters")


def test_table4_keeps_the_pairs_apart():
    records = [
        pair("cnn", 0, "cnn", 1, 0.1), pair("cnn", 1, "cnn", 2, 0.3), pair("cnn", 0, "gcnn", 0, 0.6),
        pair("cnn", 1, "gcnn", 1, status="left_out"), pair("gcnn", 0, "gcnn", 1, status="left_out"),
    ]  # fmt: skip
    frame = made(table4, pair_merge=records)
    assert list(zip(frame["model_1"], frame["model_2"], strict=True)) == PAIRS
    frame = frame.set_index(["model_1", "model_2"])
    assert frame.loc[("cnn", "cnn"), "barrier_mean"] == pytest.approx(0.2)
    assert frame.loc[("cnn", "cnn"), "barrier_std"] == pytest.approx(0.2 / math.sqrt(2))
    assert frame.loc[("cnn", "gcnn"), "barrier_mean"] == 0.6
    assert frame["n"].to_list() == [2, 0, 1, 0, 0, 0]
    assert frame["left_out"].to_list() == [0, 0, 1, 0, 0, 1]
    assert frame["paper_barrier_mean"].notna().all()


def test_a_record_without_its_number_is_named():
    broken = flip("cnn", 3)
    del broken["barrier"]["repaired"]
    line = r"flip_merge record of model cnn, seed 3 lacks .*'barrier\.repaired'"
    with pytest.raises(UserError, match=line):
        table_2(([train("cnn", 3)], [broken]))
    with pytest.raises(UserError, match=r"train record of model cnn, seed 4 lacks .*'accuracy'"):
        table_2(([train("cnn", 4, accuracy="high")], []))


def test_a_record_given_twice_is_refused():
    with pytest.raises(UserError, match=r"pair_merge record of .*seed_1 0.* given twice"):
        made(table4, pair_merge=[pair("cnn", 0, "cnn", 1)] * 2)


def test_the_papers_cell_stands_beside_ours(three_types):
    human = human_table(table_2(three_types), table2.LAYOUT, NAMES).set_index("Model")
    named = ["Accuracy", "Accuracy (paper)", "Invariance Error", "Invariance Error (paper)"]
    assert list(human.columns[:4]) == named and list(human.columns[-2:]) == ["n", "Left out"]
    assert human.loc["CNN", "Accuracy"] == "0.850 ± 7.1e-2"
    assert human.loc["CNN w/o aug", "Invariance Error (paper)"] == "0.410 ± 4.0e-2"
    assert human.loc["PGCNN", "GCNN Barrier"] == "" and human.loc["GCNN", "n"] == "1"


def test_csv_holds_the_numbers_to_ten_digits_and_nothing_where_there_is_none(tmp_path):
    trains = [train("cnn", seed, accuracy=1 / (seed + 3)) for seed in range(3)]
    frame = table_2((trains, [flip("cnn", seed, 1 / (seed + 7)) for seed in range(3)]))
    write_table(frame, tmp_path / "tables" / "table2", table2.LAYOUT)
    header, cnn, noaug, *_ = (tmp_path / "tables" / "table2.csv").read_text().splitlines()
    assert header.split(",") == list(frame.columns)
    numbers = [float(cell) for cell in cnn.split(",")[1:]]
    assert numbers == pytest.approx(frame.iloc[0, 1:].to_list(), rel=1e-9)
    assert cnn.split(",")[1] == f"{(1 / 3 + 1 / 4 + 1 / 5) / 3:.10f}"
    assert noaug.startswith("cnn_noaug,,,,,,,0,0,0.879,")


def of_cost(kind, **cost):
    return {"kind": kind, "cost": {name: value for name, value in cost.items() if value is not None}}


COSTS_OF_JOBS = [
    of_cost("train", seconds=1.0, job_seconds=1800.0, job_memory_mb=600.5),
    of_cost("train", seconds=1.0, job_seconds=5400.0),
    of_cost("train", seconds=1.0, job_seconds=3600.0, job_memory_mb=600.25),
    of_cost("train", seconds=1.0, job_memory_mb=9000.0),  # it doesn't say how long it took
    of_cost("train"),
    of_cost("pair_merge", job_seconds=0.5),
]


def test_costs_by_kind_of_job():
    frame = costs(COSTS_OF_JOBS).set_index("kind")
    assert frame.index.to_list() == ["train", "pair_merge"]
    assert frame.loc["train"].to_list() == [3, 3.0, 3600.0, 5400.0, 600.5]
    assert frame.loc["pair_merge", "jobs"] == 1 and math.isnan(frame.loc["pair_merge", "max_memory_mb"])


def test_costs_are_written_with_and_without_jobs(tmp_path):
    write_table(costs(COSTS_OF_JOBS), tmp_path / "costs", COSTS)
    assert "| train " in (tmp_path / "costs.md").read_text()
    write_table(costs([]), tmp_path / "none", COSTS)
    assert (tmp_path / "none.csv").read_text() == "kind,jobs,hours,median_s,max_s,max_memory_mb\n"
    assert "Kind of job" in (tmp_path / "none.md").read_text()


def test_the_papers_tables_are_whole():
    assert [len(paper_values.table(i)) for i in (1, 2, 3, 4, 5)] == [7, 7, 7, 6, 10]
    assert tuple(paper_values.table(1)["model"]) == MODELS == tuple(paper_values.table(2)["model"])
    parameters = paper_values.table(1).set_index("model")["parameters"]
    assert [*parameters.loc[["cnn", "gcnn", "pgcnn"]]] == [9.23e6, 4.61e6, 9.19e6]
    with pytest.raises(ValueError, match="no Table 6"):
        paper_values.table(6)


SCORES = {"net": 0.8, "flipped": 0.6, "halfway": 0.1, "reset": 0.5, "repaired": 0.56}
BARRIERS = {"halfway": 0.9, "reset": 2 / 7, "repaired": 0.2}
SHOWN = {
    "name": "A", "image_size": 225, "paper": "simsiam", "trained_by_authors": False, "self_supervised": True,
}  # fmt: skip


def merged(model, seed=0, status="ok", scores=SCORES):
    record = flip(model, seed, status=status, error=0.25, scores=scores)
    return record | ({"barrier": BARRIERS} if status == "ok" else {})


def table_5(models, records):
    selection = {"models": dict.fromkeys(models, SHOWN) | {"mine": SHOWN | {"paper": None}}, "notes": []}
    trains = [train(record["model"], record["seed"]) for record in records]
    return made(resnets, selection, train=trains, flip_merge=records)


def test_table5_lays_out_what_was_measured_beside_the_papers(tmp_path):
    frame = table_5(["a", "b"], [merged("b", status="left_out"), merged("mine"), merged("a")])
    assert frame["method"].tolist() == ["a", "mine"]
    first = frame.iloc[0]
    assert first[MEASURED].tolist() == pytest.approx([0.25, 0.8, 0.6, 0.5, 0.56, 2 / 7, 0.2])
    assert first["paper_gcnn_barrier"] == 0.121 and pd.isna(frame.iloc[1]["paper_gcnn_barrier"])
    assert (first["trained_by_authors"], first["self_supervised"], first["image_size"]) == ("no", "yes", 225)
    write_table(frame, tmp_path / "table5", resnets.LAYOUT, ["a note"], endings=["md", "tex"])
    text = (tmp_path / "table5.md").read_text(encoding="utf-8")
    assert "0.286" in text and "0.121" in text and "Flip-Accuracy (paper)" in text
    assert "±" not in text and "| A " in text
    assert r"\bottomrule" in (tmp_path / "table5.tex").read_text(encoding="utf-8")


def test_table5_has_the_papers_columns_then_the_counts_then_the_papers_values():
    columns = [column for column in table_5([], []) if not column.endswith("_std")]
    papers = [column for column in paper_values.table(5) if column != "in_table3"]
    counts = ["n", "left_out"]
    assert columns == ["method", "name", *papers[1:], *counts, *(f"paper_{name}" for name in MEASURED)]


def test_table5_has_means_and_stds_over_the_nets_of_a_type():
    records = [merged("a", 0), merged("a", 1, scores=SCORES | {"net": 0.6}), merged("a", 2, "left_out")]
    (row,) = table_5(["a"], records).to_dict("records")
    assert (row["accuracy"], row["accuracy_std"]) == pytest.approx((0.7, 0.2 / math.sqrt(2)))
    assert (row["n"], row["left_out"], row["gcnn_barrier_std"]) == (2, 1, 0)
    human = human_table(pd.DataFrame([row]), resnets.LAYOUT, {})
    assert human.loc[0, "Accuracy"] == "0.700 ± 0.14" and human.loc[0, "Accuracy (paper)"] == "0.683"


def test_a_row_without_its_measurement_is_named():
    scores = {"net": 0.5, "flipped": 0.5, "repaired": 0.4}
    line = r"flip_merge record of model a, .*lacks a number in 'accuracy\.reset'"
    with pytest.raises(UserError, match=line):
        table_5(["a"], [merged("a", scores=scores)])


def test_what_table5_leaves_out_is_told_once_with_its_reason():
    trains = [
        train("a", 0, status="absent", reason="ImageNet is not at x"), train("b", 0, status="diverged"),
        train("b", 1, data_wait_share=0.25), train("mine", 0),
    ]  # fmt: skip
    flips = [merged("a", 0, "left_out"), merged("b", 0, "left_out"), merged("b", 1)]
    selection = {"models": dict.fromkeys("ab", SHOWN), "notes": ["first"], "absent": {"c": "no file"}}
    notes = resnets.notes(chosen({"train": trains, "flip_merge": flips}, selection), selection)
    assert notes[0] == "first" and "Trainings waited for images 25.0% of the time at most" in notes
    reasons = {"c": "no file", "a": "ImageNet is not at x", "b-0": "training is diverged"}
    assert notes[-3:] == [f"{net} is left out: {reason}" for net, reason in reasons.items()]


def test_notes_say_why_nets_are_left_out_and_barriers_are_far_below_zero():
    trains = [train("gcnn", seed, status="degenerate", reason=None) for seed in range(3)]
    trains += [train("cnn", 0, status="diverged", reason=None), train("cnn", 1, 0.12), train("cnn", 2)]
    flips = [flip("gcnn", i, status="left_out") | {"reason": f"gcnn-{i} is degenerate"} for i in range(3)]
    scores = {"net": 0.12, "flipped": 0.12, "halfway": 0.1, "repaired": 0.18}
    flips += [flip("cnn", 1, -0.486, scores=scores), flip("cnn", 2, 0.03)]
    *_, negative, gcnn, cnn = agreement.notes({"train": trains, "flip_merge": flips}, {"names": NAMES})
    assert negative.startswith("Barriers are negative, down to -0.486 (CNN-1)")
    assert "accuracy 0.120" in negative
    assert gcnn == "GCNN (all 3 nets) is left out: its accuracy is no better than chance"
    assert cnn == "CNN-0 is left out: its training diverged"
    (merges_alone,) = (line for line in agreement.notes({"flip_merge": flips}, {}) if "left out" in line)
    assert merges_alone.startswith("gcnn (all 3 nets)")
    hardly = agreement.notes({"flip_merge": [flip("cnn", 0, -0.01)]}, {})
    assert not any("negative" in line for line in hardly)


def test_weight_matchings_are_called_by_where_they_start_and_how_many_starts_reached_the_best():
    def searched(seed, reached):
        merged = flip("cnn", seed, 0.1, matching="weight")
        merged["settings"]["merging"]["starts"] = 4
        starts = {f"start {i}": 0.5 if i < reached else 0.4 for i in range(4)}
        return merged | {"search": {"objective": 0.5, "reached": reached, "starts": starts}}

    alone = flip("cnn", 0, 0.2, matching="weight_identity")
    alone |= {"search": {"objective": 0.4, "reached": 1, "starts": {"identity": 0.4}}}
    selection = of_models("cnn") | {"pairs": [], "matchings": ["weight", "weight_identity"]}
    records = {"flip_merge": [searched(0, 1), searched(1, 4), alone], "pair_merge": []}
    called = made(matchings, selection, **records)[["matching", "n"]].to_numpy().tolist()
    assert called == [["weight, best of 4", 2], ["weight, from the identity", 1]]
    first, *_ = matchings.notes({"train": [], **records}, selection)
    assert first == "Weight matching: on average 2.5 of its starts (of a merge 1 to 4) reached the best"
    of_one = matchings.notes({"flip_merge": [alone], "pair_merge": []}, selection)
    assert not any("starts" in line for line in of_one)


def test_matchings_are_compared_by_type_and_kind_of_merge():
    flips = [flip("cnn", 0, 0.1), flip("cnn", 1, 0.3), flip("cnn", 0, 0.9, matching="identity")]
    flips += [flip("gcnn", 0, 0.2), flip("gcnn", 1, status="left_out")]
    pairs = [pair("cnn", 0, "cnn", 1, 0.5, matching="identity")]
    selection = of_models("cnn", "gcnn") | {"pairs": [("cnn", "cnn")]}
    selection["matchings"] = ["activation", "identity"]
    frame = made(matchings, selection, flip_merge=flips, pair_merge=pairs)
    rows = frame[["model_1", "model_2", "matching", "n", "left_out"]].to_numpy().tolist()
    assert rows == [
        ["cnn", "", "activation", 2, 0], ["cnn", "", "identity", 1, 0], ["gcnn", "", "activation", 1, 1],
        ["gcnn", "", "identity", 0, 0], ["cnn", "cnn", "activation", 0, 0], ["cnn", "cnn", "identity", 1, 0],
    ]  # fmt: skip
    first = frame.iloc[0]
    assert (first["barrier_mean"], first["barrier_std"]) == pytest.approx((0.2, 0.2 / math.sqrt(2)))
    assert first["barrier_no_repair_mean"] == pytest.approx(0.4)
    assert frame["barrier_mean"].tolist()[1:4] == pytest.approx([0.9, 0.2, math.nan], nan_ok=True)


def test_without_repair_counts_the_net_whose_batch_norm_is_reset():
    selection = of_models("a") | {"pairs": [], "matchings": ["activation"]}
    frame = made(matchings, selection, flip_merge=[merged("a")])
    assert frame["barrier_no_repair_mean"].tolist() == [2 / 7]
