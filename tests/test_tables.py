import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from conftest import refused, settings_of
from matplotlib.mathtext import MathTextParser
from records import CODE, MEASURED, MODELS, NAMES, PAIRS, SELECTION, flip, made, pair, settings, train

from relusym import cifar10, paper_values, permutations
from relusym.beyond import identifiability
from relusym.findings import declared, fingerprint, frames, layout
from relusym.findings.beyond import matchings
from relusym.findings.frames import chosen, notes, read, tidy
from relusym.findings.layout import human_table, mean_and_std, number, page, write_table
from relusym.findings.tables import costs, provenance, resnets, table1, table2, table4
from relusym.records import fields
from relusym.records import fingerprint as records_fingerprint
from relusym.records.files import write_record
from relusym.theory import cooccurrence
from relusym.whole_files import sha256


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
    left_out = [("gcnn", 1), ("gcnn", 2), ("pgcnn", 0), ("pgcnn", 1)]
    flips += [flip("gcnn", 0, -0.001, error=1e-6), *(flip(*net, status="left_out") for net in left_out)]
    return trains, flips


def test_tidy_has_a_row_per_record_and_no_lists():
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


def test_table2_has_means_and_sample_stds_of_good_nets_and_a_row_for_a_type_without_any(three_types):
    frame = table_2(three_types).set_index("model")
    quantities = "accuracy", "invariance_error", "gcnn_barrier"
    measured = [f"{quantity}_{of}" for of in ("mean", "std") for quantity in quantities]
    means, stds = [0.85, 0.3, 0.02], [0.1, 0.2, 0.02]  # two nets differ by √2 sample standard deviations
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


def test_rows_have_the_requested_order_and_types_missing_in_the_paper_have_no_paper_values():
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
    refused(lambda: table_2(([train("cnn", 3)], [broken])), match=line)
    line = r"train record of model cnn, seed 4 lacks .*'accuracy'"
    refused(lambda: table_2(([train("cnn", 4, accuracy="high")], [])), match=line)


def test_a_record_given_twice_is_refused():
    line = r"pair_merge record of .*seed_1 0.* occurs twice"
    refused(lambda: made(table4, pair_merge=[pair("cnn", 0, "cnn", 1)] * 2), match=line)


def test_the_papers_cell_is_beside_ours(three_types):
    human = human_table(table_2(three_types), table2.LAYOUT, NAMES).set_index("Model")
    named = ["Accuracy", "Accuracy (paper)", "Invariance Error", "Invariance Error (paper)"]
    assert list(human.columns[:4]) == named and list(human.columns[-2:]) == ["n", "Left out"]
    assert human.loc["CNN", "Accuracy"] == "0.850 ± 7.1e-2"
    assert human.loc["CNN w/o aug", "Invariance Error (paper)"] == "0.410 ± 4.0e-2"
    assert human.loc["PGCNN", "GCNN Barrier"] == "" and human.loc["GCNN", "n"] == "1"


def test_csv_has_numbers_to_ten_digits_and_empty_cells_where_there_is_none(tmp_path):
    trains = [train("cnn", seed, accuracy=1 / (seed + 3)) for seed in range(3)]
    frame = table_2((trains, [flip("cnn", seed, 1 / (seed + 7)) for seed in range(3)]))
    write_table(frame, tmp_path / "tables" / "table2", table2.LAYOUT)
    header, cnn, noaug, *_ = (tmp_path / "tables" / "table2.csv").read_text().splitlines()
    assert header.split(",") == list(frame.columns)
    numbers = [float(cell) for cell in cnn.split(",")[1:]]
    assert numbers == pytest.approx(frame.iloc[0, 1:].to_list(), rel=1e-9)
    assert cnn.split(",")[1] == f"{(1 / 3 + 1 / 4 + 1 / 5) / 3:.10f}"
    assert noaug.startswith("cnn_noaug,,,,,,,0,0,0.879,")


def of_cost(**cost):
    return {"cost": cost}


COSTS_OF_JOBS = {
    "train": [
        of_cost(seconds=1.0, job_seconds=1800.0, job_memory_mb=600.5),
        of_cost(seconds=1.0, job_seconds=5400.0), of_cost(),
        of_cost(seconds=1.0, job_seconds=3600.0, job_memory_mb=600.25),
        of_cost(seconds=1.0, job_memory_mb=9000.0),  # without its time
    ],
    "pair_merge": [of_cost(job_seconds=0.5)],
}  # fmt: skip


def test_costs_by_kind_of_job():
    frame = costs.frame(COSTS_OF_JOBS, {}).set_index("kind")
    assert frame.index.to_list() == ["train", "pair_merge"]
    assert frame.loc["train"].to_list() == [3, 3.0, 3600.0, 5400.0, 600.5]
    assert frame.loc["pair_merge", "jobs"] == 1 and math.isnan(frame.loc["pair_merge", "max_memory_mb"])


def test_costs_count_the_resumed_trainings_whose_earlier_cost_is_unknown():
    told = of_cost(seconds=1.0, job_seconds=1.0, earlier_seconds=0.0)
    (note,) = costs.notes({"train": [told, *COSTS_OF_JOBS["train"][:2]]}, {})
    assert note.startswith("Of 2 trainings, those that were resumed")
    assert costs.notes({"train": [told]}, {}) == []


def test_costs_are_written_with_and_without_jobs(tmp_path):
    write_table(costs.frame(COSTS_OF_JOBS, {}), tmp_path / "costs", costs.LAYOUT)
    assert "| train " in (tmp_path / "costs.md").read_text()
    write_table(costs.frame({}, {}), tmp_path / "none", costs.LAYOUT)
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
SHOWN = {"name": "A", "image_size": 225, "paper": "simsiam"}
SHOWN |= {"trained_by_authors": False, "self_supervised": True}


def merged(model, seed=0, status="ok", scores=SCORES):
    record = flip(model, seed, status=status, error=0.25, scores=scores)
    return record | ({"barrier": BARRIERS} if status == "ok" else {})


def table_5(models, records):
    selection = {"models": dict.fromkeys(models, SHOWN) | {"mine": SHOWN | {"paper": None}}, "notes": []}
    trains = [train(record["model"], record["seed"]) for record in records]
    return made(resnets, selection, train=trains, flip_merge=records)


def test_table5_shows_measured_values_beside_the_papers(tmp_path):
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


def test_nets_left_out_of_table5_are_listed_once_with_the_reason():
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


def test_notes_explain_why_nets_are_left_out_and_barriers_are_far_below_zero():
    trains = [train("gcnn", seed, status="degenerate", reason=None) for seed in range(3)]
    trains += [train("cnn", 0, status="diverged", reason=None), train("cnn", 1, 0.12), train("cnn", 2)]
    flips = [flip("gcnn", i, status="left_out") | {"reason": f"gcnn-{i} is degenerate"} for i in range(3)]
    scores = {"net": 0.12, "flipped": 0.12, "halfway": 0.1, "repaired": 0.18}
    flips += [flip("cnn", 1, -0.486, scores=scores), flip("cnn", 2, 0.03)]
    *_, negative, gcnn, cnn = frames.notes({"train": trains, "flip_merge": flips}, {"names": NAMES})
    assert negative.startswith("Barriers are negative, down to -0.486 (CNN-1)")
    assert "accuracy 0.120" in negative
    assert gcnn == "GCNN (all 3 nets) are left out: accuracy no better than chance"
    assert cnn == "CNN-0 is left out: training diverged"
    names = {"names": NAMES | {"shapes_gcnn": "GCNN"}}
    *_, gcnn, _ = frames.notes({"train": [*trains, train("shapes_gcnn", 0)]}, names)
    assert gcnn.startswith("gcnn (all 3 nets) are left out: ")
    (merges_alone,) = (line for line in frames.notes({"flip_merge": flips}, {}) if "left out" in line)
    assert merges_alone.startswith("gcnn (all 3 nets)")
    hardly = frames.notes({"flip_merge": [flip("cnn", 0, -0.01)]}, {})
    assert not any("negative" in line for line in hardly)


def test_weight_matchings_are_named_by_their_start_and_how_many_starts_reached_the_best():
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


OTHER = {"data": "0b" * 32, "source": "my copy"}
COMPLAINTS = {
    "data of a net": (
        {"train": [train("cnn", 0), train("gcnn", 1, inputs=OTHER)]},
        r"train record cnn-0 was made from generated shapes \(da7ada7a\), the train record gcnn-1 from my copy "
        r"\(0b0b0b0b\): delete .*run again",
    ),
    "data of a merge": (
        {"train": [train("cnn", 0)], "flip_merge": [flip("cnn", 0) | {"inputs": OTHER}]},
        "the flip_merge record cnn-0 from my copy",
    ),
    "training": (
        {"train": [train("cnn", 0), train("cnn", 1, settings=settings(epochs=4))]},
        r"cnn-0 and the train record cnn-1 were made with other settings \(training.epochs 3 and 4\): run again",
    ),
    "training of a merged net": (
        {"train": [train("cnn", 0, settings=settings(width=0.5))], "flip_merge": [flip("cnn", 1)]},
        "network.width 0.5 and 0.25",
    ),
    "training, one of which has the default": (
        {"train": [train("cnn", 0), train("cnn", 1, settings=settings() | {"symmetry": "vertical_flip"})]},
        r"train record cnn-1 were made with other settings \(symmetry horizontal_flip and vertical_flip\)",
    ),
    "merging": (
        {"flip_merge": [flip("cnn", 0), flip("cnn", 1) | {
            "settings": {"merging": {"images": 7}, "trained": [settings()]}}]},
        "merging.images 500 and 7",
    ),
    "checkpoint": (
        {"train": [train("cnn", 0, outputs={"checkpoint": "c" * 64})], "flip_merge": [flip("cnn", 0)]},
        r"flip_merge record cnn-0 was made from another checkpoint \(636e6e2d\) than the one in the train record "
        r"cnn-0 \(cccccccc\): run again, and it is made again",
    ),
    "checkpoint of a pair": (
        {"train": [train("cnn", 1, outputs={"checkpoint": "c" * 64})],
         "pair_merge": [pair("cnn", 0, "cnn", 1)]},
        "pair_merge record cnn-0--cnn-1 was made from another checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", COMPLAINTS)
def test_inconsistent_records_are_refused_in_one_line(what):
    records, complaint = COMPLAINTS[what]
    refused(lambda: frames.check_agreement(records), match=complaint)


def test_consistent_records_are_not_refused():
    as_by_default, absent = {"symmetry": "horizontal_flip"}, {"inputs": {"data": None}, "outputs": {}}
    unlike = [
        train("cnn", 0), train("cnn", 1, settings=settings() | as_by_default),
        train("gcnn", 0, settings=settings(epochs=4)),  # another type
        train("pgcnn", 0, settings=settings(size=33), inputs=OTHER),  # prepared at another size
        train("pgcnn", 1, None, "absent", settings=settings(size=33), **absent),
    ]  # fmt: skip
    frames.check_agreement({"train": unlike})
    assert made(table1, train=unlike)["n"].sum() == 4


def test_a_table_uses_only_the_records_of_its_types(tmp_path):
    paths = []
    for record in (train("cnn", 0), train("old", 0), train("gcnn", 0)):
        paths.append(str(tmp_path / f"{record['model']}.json"))
        write_record(paths[-1], record)
    files = {"train": paths, "flip_merge": []}
    for about in ({"models": ["cnn"]}, {"models": {"cnn": {}}}, {"pairs": [("cnn", "cnn")]}):
        taken = read(("train", "flip_merge"), files, about)
        assert [record["model"] for record in taken["train"]] == ["cnn"] and taken["flip_merge"] == []
    assert len(read(("train",), {"train": paths}, {"notes": []})["train"]) == 3


def test_a_table_of_nets_trained_in_several_precisions_has_a_note():
    precisions = "float32", "bfloat16", "bfloat16", None
    nets = [train("cnn", seed, precision=precision) for seed, precision in enumerate(precisions)]
    (line,) = [note for note in notes({"train": nets}, SELECTION) if "float" in note]
    assert line == "Trained: 2 nets in bfloat16 and 1 net in float32"
    assert not [note for note in notes({"train": nets[1:]}, SELECTION) if "float" in note]


def record(kind="train", status="ok", source="CIFAR10", device="cpu x86_64", epochs=1, seconds=1800):
    inputs = {"data": cifar10.DIGEST} | ({"source": source} if source else {})
    made = {"kind": kind, "status": status, "inputs": inputs, "settings": {"epochs": epochs}}
    return made | {"code": CODE | {"device": device}, "cost": {"seconds": seconds}, "precision": "float32"}


def by_kind(records):
    kinds = {kind: [] for kind in declared()["provenance"].reads}
    for each in records:
        kinds[each["kind"]].append(each)
    return kinds


def made_of(records, *names, models=None):
    return provenance.frame(by_kind(records), {"made": dict.fromkeys(names, models)})


def test_a_table_has_a_row_for_each_kind_and_origin_of_its_records():
    records = [record(), record(), record(device="cuda T4"), record("flip_merge")]
    frame = made_of(records, "table1", "table2")
    counted = frame[["made", "kind", "device", "records", "hours"]].to_numpy().tolist()
    assert counted == [
        ["Table 1", "train", "cpu x86_64", 2, 1.0], ["Table 1", "train", "cuda T4", 1, 0.5],
        ["Table 2", "train", "cpu x86_64", 2, 1.0], ["Table 2", "train", "cuda T4", 1, 0.5],
        ["Table 2", "flip_merge", "cpu x86_64", 1, 0.5],
    ]  # fmt: skip
    assert len(made_of([], "table1")) == 0


def test_settings_have_the_same_fingerprint_in_any_order_and_other_settings_another():
    def fingerprint(*epochs):
        (row,) = made_of([record(epochs=n) for n in epochs], "table1").itertuples()
        return row.settings

    assert fingerprint(1, 2) == fingerprint(2, 1, 1) != fingerprint(1)


def test_nets_left_out_are_counted_with_the_images_of_their_data():
    left_out = record("flip_merge", status="left_out", source=None)
    (row,) = made_of([record("flip_merge"), left_out], "table2").itertuples()
    assert (row.records, row.left_out, row.images) == (2, 1, "CIFAR10")


def test_a_record_without_images_and_status_has_a_row_all_the_same():
    theory = {"kind": "theory", "settings": {}, "code": CODE, "cost": {"seconds": 3600}}
    (row,) = made_of([theory, record()], "theory").itertuples()
    assert (row.records, row.left_out, row.images, row.hours) == (1, 0, "", 1.0)


def test_the_notes_of_a_table_name_data_records_and_code():
    records = by_kind([record(), record(), record("flip_merge", device="cuda T4")])
    first, *notes = frames.notes(records, {"notes": ["of the config"]})
    assert first == "of the config"
    assert notes[:2] == ["Data: CIFAR10", "From 2 train and 1 flip_merge records"]
    code = "Made with relusym 0.1.0, torch 2.14.1, python 3.11, device"
    assert notes[2:] == [f"{code} cpu x86_64", f"{code} cuda T4"]
    assert frames.notes({}, {}) == []


def test_tables_name_cifar10_by_its_content_and_doubt_a_mere_label():
    copies = [record(source="my copy"), record(), record("flip_merge", status="left_out", source=None)]
    assert frames.notes(by_kind(copies), {})[:1] == ["Data: CIFAR10"]
    assert set(made_of(copies, "table2")["images"]) == {"CIFAR10"}
    others = [made | {"inputs": made["inputs"] | {"data": "ab" * 32}} for made in copies[1:]]
    doubted = frames.notes(by_kind(others), {})
    doubt = "CIFAR10?: these aren't CIFAR10's images, or not in its order (their SHA-256 begins with abababab, that "
    doubt += "of CIFAR10's with cfd62e0d)"
    assert doubted[:3] == ["Data: CIFAR10?", doubt, "From 1 train and 1 flip_merge records"]
    assert set(made_of(others, "table2")["images"]) == {"CIFAR10?"}


def test_a_table_or_figure_has_the_records_of_its_types_alone():
    records = [flip("cnn", 0), flip("gcnn", 0), flip("gcnn", 1), train("gcnn", 0), pair("cnn", 0, "gcnn", 0)]
    frame = made_of(records, "figure8", "zero_filters", models=["gcnn"])
    counted = frame[["made", "kind", "records"]].to_numpy().tolist()
    assert counted == [["Figure 8", "flip_merge", 2], ["Zero-filters", "flip_merge", 2]]
    made = provenance.select(settings_of(scale="laptop"))["made"]
    ids = {"cnn", "cnn_inv", "gcnn", "old", "old_inv", "old_odd", "old_inv_odd"}
    assert (made["figure2"], made["figure9"], {*made["table4"]}) == (["cnn_inv"], ["old_odd"], ids)
    (claims,) = made_of(records, "claims", models=["cnn"]).itertuples()
    assert (claims.made, claims.kind, claims.records) == ("Claims", "flip_merge", 1)


def test_every_kind_that_a_table_or_figure_reads_is_accounted_for():
    for table, is_beyond in (("provenance", False), ("beyond_provenance", True)):
        findings = [finding for finding in declared().values() if finding.is_beyond == is_beyond]
        read = {kind for finding in findings for kind in finding.reads}
        assert read - {"filters"} == set(declared()[table].reads)


def test_the_fingerprint_of_tables_and_figures_covers_the_code_that_they_are_computed_with():
    modules = layout, permutations, fields, records_fingerprint, identifiability, cooccurrence
    assert all(sha256(module.__file__) in fingerprint._code() for module in modules)


@pytest.mark.parametrize("value, digits, plain, latex", [
    (0.901, 3, "0.901", "0.901"), (0.9, 3, "0.900", "0.900"), (0.9996, 3, "1.00", "1.00"),
    (0.09996, 3, "0.100", "0.100"), (0.04, 3, "4.00e-2", r"4.00 \cdot 10^{-2}"),
    (-0.00123, 2, "-1.2e-3", r"-1.2 \cdot 10^{-3}"), (1.34e-6, 3, "1.34e-6", r"1.34 \cdot 10^{-6}"),
    (12.34, 3, "12.3", "12.3"), (99.6, 2, "1.0e2", r"1.0 \cdot 10^{2}"), (0.0, 3, "0", "0"),
])  # fmt: skip
def test_numbers_are_written_as_in_the_paper(value, digits, plain, latex):
    assert number(value, digits) == plain and number(value, digits, latex=True) == latex


def test_cells_of_many_one_and_no_net():
    assert mean_and_std(0.901, 2.1e-3) == "0.901 ± 2.1e-3"
    assert mean_and_std(0.04, 4.9e-3, latex=True) == r"$4.00 \cdot 10^{-2} \pm 4.9 \cdot 10^{-3}$"
    assert mean_and_std(0.901, math.nan) == "0.901" and mean_and_std(math.nan, math.nan) == ""


@pytest.mark.parametrize("numbered", [1, 2, 4])
def test_markdown_and_latex_are_whole_tables(tmp_path, numbered):
    trains = [train("cnn", 0), train("cnn", 1, 0.8), train("pgcnn", 0, None, status="diverged")]
    flips = [flip("cnn", 0), flip("cnn", 1, 0.1), flip("pgcnn", 0, status="left_out")]
    table = declared()[f"table{numbered}"].load()
    frame = made(table, train=trains, flip_merge=flips, pair_merge=[pair("cnn", 0, "cnn", 1)])
    layout = replace(table.LAYOUT, title=f"Table {numbered}: 50% of cnn_inv")
    notes = ["data: a|b_c, 3 & 4", "width 0.25"]
    write_table(frame, tmp_path / "table", layout, notes, NAMES, ["md", "tex"])
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert markdown.startswith(f"# Table {numbered}: 50% of cnn_inv\n\n|")
    assert markdown.endswith("\n\n- data: a|b_c, 3 & 4\n- width 0.25\n")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(frame) and len({line.count("|") for line in lines}) == 1
    assert "nan" not in markdown.lower() and "<NA>" not in markdown
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    unescaped = re.sub(r"\\.", "", latex)
    assert unescaped.count("{") == unescaped.count("}") and unescaped.count("$") % 2 == 0
    assert sorted(re.findall(r"\\begin{(\w+)}", latex)) == sorted(re.findall(r"\\end{(\w+)}", latex))
    assert rf"\caption{{Table {numbered}: 50\% of cnn\_inv}}" in latex
    assert r"data: a|b\_c, 3 \& 4" in latex
    # no unescaped special character, except in the comment and between cells
    assert not re.search(r"[_#%&]", re.sub(r"^%.*|\s&\s", " ", unescaped))
    assert "nan" not in latex.lower()
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(frame)
    columns = len(human_table(frame, layout, NAMES).columns)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}
    formulas = re.findall(r"(?<!\\)\$[^$]*\$", latex)
    if numbered == 2:
        assert r"$0.901 \pm 2.1 \cdot 10^{-3}$" in formulas
    for formula in formulas:
        MathTextParser("path").parse(formula)  # raises where LaTeX's math mode would


def test_the_page_of_a_table_has_the_cells_and_notes_of_its_markdown():
    html = page("# A < B\n\n| x   |   y |\n|:----|----:|\n| a\\|b |   1 |\n\n- 3 & 4\n")
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", html)
    assert cells == ["x", "y", "a|b", "1"] and html.count("<tr>") == 2
    assert "<h1>A &lt; B</h1>" in html and "<li>3 &amp; 4</li>" in html
    assert "nth-child(2) { text-align: right }" in html
