"""Tables 1, 2 and 4 and the costs, on records whose means are worked by hand."""

import json
import math
import re

import pandas as pd
import pytest
from matplotlib.mathtext import MathTextParser
from relusym.findings.tables import (
    costs,
    human_table,
    mean_and_std,
    number,
    table1,
    table2,
    table4,
    tidy,
    write_table,
)

from relusym.errors import UserError
from relusym.findings import paper_values
from relusym.records import read_record

MODELS = ("cnn", "cnn_noaug", "cnn_inv", "cnn_late_inv", "gcnn", "pgcnn", "pgcnn_late_inv")
PAIRS = [("cnn", "cnn"), ("cnn", "cnn_inv"), ("cnn", "gcnn")]
PAIRS += [("cnn_inv", "cnn_inv"), ("cnn_inv", "gcnn"), ("gcnn", "gcnn")]


def train(model, seed, accuracy=0.9, error=0.2, status="ok", parameters=577000):
    return {
        "kind": "train",
        "status": status,
        "model": model,
        "seed": seed,
        "settings": {"epochs": 3, "width": 0.25},
        "inputs": {"data": "00"},
        "outputs": {"checkpoint": "00"},
        "cost": {"seconds": 12.5, "peak_memory_mb": 500.0},
        "parameters": parameters,
        "accuracy": accuracy,
        "invariance_error": error,
        "history": {"loss": [2.0, 1.0]},
    }


def flip(model, seed, barrier=0.04, status="ok"):
    record = {"kind": "flip_merge", "status": status, "reason": None, "model": model, "seed": seed}
    record |= {"settings": {}, "inputs": {}, "cost": {"seconds": 1.0}}
    if status == "ok":
        record |= {
            "accuracy": {"net": 0.9, "flipped": 0.9, "halfway": 0.5, "repaired": 0.8},
            "barrier": {"halfway": 0.4, "repaired": barrier},
            "absolute_barrier": {"halfway": 0.4, "repaired": 0.1},
            "permutations": {"conv1": [1, 0], "conv2": [0, 1, 2]},
            "checks": {},
        }
    return record


def pair(model_1, seed_1, model_2, seed_2, barrier=0.05, status="ok"):
    record = flip(model_1, seed_1, barrier, status) | {"kind": "pair_merge"}
    del record["model"], record["seed"]
    return record | {"model_1": model_1, "seed_1": seed_1, "model_2": model_2, "seed_2": seed_2}


@pytest.fixture
def three_types():
    """cnn: two good nets; gcnn: one good, one degenerate, one not merged; pgcnn: all diverged."""
    trains = [
        train("cnn", 0, accuracy=0.9, error=0.2),
        train("cnn", 1, accuracy=0.8, error=0.4),
        train("gcnn", 0, accuracy=0.7, error=1e-6, parameters=289000),
        train("gcnn", 1, accuracy=0.1, error=0.5, status="degenerate", parameters=289000),
        train("gcnn", 2, accuracy=0.2, error=0.5, parameters=289000),
        train("pgcnn", 0, None, None, status="diverged", parameters=None),
        train("pgcnn", 1, None, None, status="diverged", parameters=None),
    ]
    flips = [
        flip("cnn", 0, 0.03),
        flip("cnn", 1, 0.01),
        flip("gcnn", 0, -0.001),
        flip("gcnn", 1, status="left_out"),
        flip("gcnn", 2, status="left_out"),
        flip("pgcnn", 0, status="left_out"),
        flip("pgcnn", 1, status="left_out"),
    ]
    return trains, flips


def test_tidy_has_a_row_a_record_and_no_lists():
    frame = tidy([train("cnn", 0), flip("cnn", 0)])
    assert len(frame) == 2
    assert frame.loc[0, "settings.width"] == 0.25
    assert frame.loc[1, "barrier.repaired"] == 0.04
    assert math.isnan(frame.loc[0, "barrier.repaired"])
    assert not [column for column in frame if column.startswith(("permutations", "history"))]


@pytest.mark.parametrize("numbered", [1, 2, 4])
def test_columns_are_those_of_the_papers_csv_then_n_left_out_then_the_papers(numbered):
    build = {1: lambda: table1([], MODELS), 2: lambda: table2([], [], MODELS), 4: lambda: table4([], PAIRS)}
    columns = list(build[numbered]().columns)
    papers = list(paper_values.table(numbered).columns)
    assert columns[: len(papers) + 2] == [*papers, "n", "left_out"]
    ids = ("model", "model_1", "model_2", "name", "description")
    assert columns[len(papers) + 2 :] == [f"paper_{column}" for column in papers if column not in ids]


def test_table2_means_and_sample_stds(three_types):
    frame = table2(*three_types, MODELS).set_index("model")
    cnn = frame.loc["cnn"]
    assert cnn["accuracy_mean"] == pytest.approx(0.85)
    assert cnn["accuracy_std"] == pytest.approx(0.1 / math.sqrt(2))  # ddof 1
    assert cnn["invariance_error_mean"] == pytest.approx(0.3)
    assert cnn["invariance_error_std"] == pytest.approx(0.2 / math.sqrt(2))
    assert cnn["gcnn_barrier_mean"] == pytest.approx(0.02)
    assert cnn["gcnn_barrier_std"] == pytest.approx(0.02 / math.sqrt(2))
    assert (cnn["n"], cnn["left_out"]) == (2, 0)
    assert cnn["paper_gcnn_barrier_std"] == 4.9e-3


def test_table2_leaves_out_degenerate_and_unmerged_nets(three_types):
    gcnn = table2(*three_types, MODELS).set_index("model").loc["gcnn"]
    assert gcnn["accuracy_mean"] == 0.7  # neither 0.1 (degenerate) nor 0.2 (merge left out)
    assert gcnn["gcnn_barrier_mean"] == -0.001
    assert math.isnan(gcnn["accuracy_std"])  # one net has no sample std
    assert (gcnn["n"], gcnn["left_out"]) == (1, 2)


def test_table2_keeps_the_row_of_a_type_without_nets(three_types):
    pgcnn = table2(*three_types, MODELS).set_index("model").loc["pgcnn"]
    assert (pgcnn["n"], pgcnn["left_out"]) == (0, 2)
    assert pgcnn[[column for column in pgcnn.index if column.startswith(("acc", "inv", "gcnn"))]].isna().all()
    assert pgcnn["paper_accuracy_mean"] == 0.902


@pytest.mark.parametrize("lacking", ["train", "flip_merge"])
def test_table2_leaves_out_a_net_that_lacks_one_of_its_records(three_types, lacking):
    trains, flips = three_types
    (trains if lacking == "train" else flips).pop(1)  # cnn, seed 1
    cnn = table2(trains, flips, ["cnn"]).iloc[0]
    assert (cnn["n"], cnn["left_out"], cnn["accuracy_mean"]) == (1, 1, 0.9)


def test_rows_come_in_the_order_asked_for_and_types_the_paper_lacks_have_no_paper_values():
    frame = table2([train("mine", 0)], [flip("mine", 0)], ["pgcnn", "mine", "cnn"])
    assert frame["model"].to_list() == ["pgcnn", "mine", "cnn"]
    mine = frame.iloc[1]
    assert (mine["n"], mine["accuracy_mean"]) == (1, 0.9)
    assert mine.filter(like="paper_").isna().all()


def test_table1_counts_parameters_and_nets(three_types):
    frame = table1(three_types[0], ["gcnn", "cnn", "pgcnn"])
    assert frame["name"].to_list() == ["GCNN", "CNN", "PGCNN"]
    assert frame["parameters"].to_list() == [289000, 577000, pd.NA]
    assert frame["n"].to_list() == [2, 2, 0]
    assert frame["left_out"].to_list() == [1, 0, 2]
    assert frame["paper_parameters"].to_list() == [4_610_000, 9_230_000, 9_190_000]


def test_table1_refuses_nets_of_different_size():
    with pytest.raises(UserError, match=r"cnn count 5 to 7 parameters"):
        table1([train("cnn", 0, parameters=5), train("cnn", 1, parameters=7)], MODELS)


def test_table4_keeps_the_pairs_apart():
    records = [
        pair("cnn", 0, "cnn", 1, 0.1),
        pair("cnn", 1, "cnn", 0, 0.3),
        pair("cnn", 0, "gcnn", 0, 0.6),
        pair("cnn", 1, "gcnn", 1, status="left_out"),
        pair("gcnn", 0, "gcnn", 1, status="left_out"),
    ]
    frame = table4(records, PAIRS)
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
    with pytest.raises(
        UserError, match=r"flip_merge record of model cnn, seed 3 lacks .*'barrier\.repaired'"
    ):
        table2([train("cnn", 3)], [broken], MODELS)
    with pytest.raises(UserError, match=r"train record of model cnn, seed 4 lacks .*'accuracy'"):
        table2([train("cnn", 4, accuracy="high")], [], MODELS)


def test_a_record_given_twice_is_refused():
    with pytest.raises(UserError, match=r"pair_merge record of .*seed_1 0.* given twice"):
        table4([pair("cnn", 0, "cnn", 1), pair("cnn", 0, "cnn", 1)], PAIRS)


@pytest.mark.parametrize(
    ("record", "field"),
    [(train("cnn", 0), "accuracy"), (flip("cnn", 0), "permutations"), (pair("cnn", 0, "gcnn", 0), "barrier")],
)
def test_a_record_file_without_a_field_is_named(tmp_path, record, field):
    del record[field]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"record\.json lacks the field '{field}'"):
        read_record(path)


@pytest.mark.parametrize(
    ("value", "digits", "plain", "latex"),
    [
        (0.901, 3, "0.901", "0.901"),
        (0.9, 3, "0.900", "0.900"),
        (0.9996, 3, "1.00", "1.00"),
        (0.09996, 3, "0.100", "0.100"),
        (0.04, 3, "4.00e-2", r"4.00 \cdot 10^{-2}"),
        (-0.00123, 2, "-1.2e-3", r"-1.2 \cdot 10^{-3}"),
        (1.34e-6, 3, "1.34e-6", r"1.34 \cdot 10^{-6}"),
        (12.34, 3, "12.3", "12.3"),
        (99.6, 2, "1.0e2", r"1.0 \cdot 10^{2}"),
        (0.0, 3, "0", "0"),
    ],
)
def test_numbers_are_written_as_in_the_paper(value, digits, plain, latex):
    assert number(value, digits) == plain
    assert number(value, digits, latex=True) == latex


def test_cells_of_many_one_and_no_net():
    assert mean_and_std(0.901, 2.1e-3) == "0.901 ± 2.1e-3"
    assert mean_and_std(0.04, 4.9e-3, latex=True) == r"$4.00 \cdot 10^{-2} \pm 4.9 \cdot 10^{-3}$"
    assert mean_and_std(0.901, math.nan) == "0.901"
    assert mean_and_std(math.nan, math.nan) == ""


def test_the_papers_cell_stands_beside_ours(three_types):
    human = human_table(table2(*three_types, MODELS)).set_index("Model")
    assert list(human.columns[:4]) == [
        "Accuracy",
        "Accuracy (paper)",
        "Invariance Error",
        "Invariance Error (paper)",
    ]
    assert list(human.columns[-2:]) == ["n", "Left out"]
    assert human.loc["CNN", "Accuracy"] == "0.850 ± 7.1e-2"
    assert human.loc["CNN w/o aug", "Invariance Error (paper)"] == "0.410 ± 4.0e-2"
    assert human.loc["PGCNN", "GCNN Barrier"] == ""
    assert human.loc["GCNN", "n"] == "1"


def test_csv_holds_the_numbers_to_the_last_bit_and_nothing_where_there_is_none(tmp_path):
    trains = [train("cnn", seed, accuracy=1 / (seed + 3)) for seed in range(3)]
    frame = table2(trains, [flip("cnn", seed, 1 / (seed + 7)) for seed in range(3)], MODELS)
    write_table(frame, tmp_path / "tables" / "table2", "Table 2", [])
    header, cnn, noaug, *_ = (tmp_path / "tables" / "table2.csv").read_text().splitlines()
    assert header.split(",") == list(frame.columns)
    assert [float(cell) for cell in cnn.split(",")[1:]] == frame.iloc[0, 1:].to_list()
    assert noaug.startswith("cnn_noaug,,,,,,,0,0,0.879,")


@pytest.mark.parametrize("numbered", [1, 2, 4])
def test_markdown_and_latex_are_whole_tables(tmp_path, three_types, numbered):
    frame = {
        1: lambda: table1(three_types[0], MODELS),
        2: lambda: table2(*three_types, MODELS),
        4: lambda: table4([pair("cnn", 0, "cnn", 1)], PAIRS),
    }[numbered]()
    write_table(
        frame, tmp_path / "table", f"Table {numbered}: 50% of cnn_inv", ["data: a|b_c, 3 & 4", "width 0.25"]
    )

    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert markdown.startswith(f"# Table {numbered}: 50% of cnn_inv\n\n|")
    assert markdown.endswith("\n\n- data: a|b_c, 3 & 4\n- width 0.25\n")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(frame)
    assert len({line.count("|") for line in lines}) == 1
    assert "nan" not in markdown.lower()
    assert "<NA>" not in markdown

    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    unescaped = re.sub(r"\\.", "", latex)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") % 2 == 0
    assert sorted(re.findall(r"\\begin{(\w+)}", latex)) == sorted(re.findall(r"\\end{(\w+)}", latex))
    assert rf"\caption{{Table {numbered}: 50\% of cnn\_inv}}" in latex
    assert r"data: a|b\_c, 3 \& 4" in latex
    assert not re.search(
        r"[_#%&]", re.sub(r"^%.*|\s&\s", " ", unescaped)
    )  # none but the comment and cell marks
    assert "nan" not in latex.lower()
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(frame)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(human_table(frame).columns) - 1}
    formulas = re.findall(r"(?<!\\)\$[^$]*\$", latex)
    if numbered == 2:
        assert r"$0.901 \pm 2.1 \cdot 10^{-3}$" in formulas
    for formula in formulas:
        MathTextParser("path").parse(formula)  # raises where LaTeX's mathematics would


def test_a_table_that_cannot_be_written_is_told_and_leaves_no_part(tmp_path):
    (tmp_path / "table4.md").mkdir()  # stands in the way
    with pytest.raises(UserError, match=r"table4\.md can't be written"):
        write_table(table4([], PAIRS), tmp_path / "table4", "Table 4", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table4.csv", "table4.md"]


HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


@pytest.fixture
def benchmarks(tmp_path):
    texts = {
        "train/cnn-0.tsv": HEADER + "1800.0\t0:30:00\t600.5\t1\t1\t1\t1\t1\t90\t1\n",
        "train/cnn-1.tsv": HEADER + "5400.0\t1:30:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n",
        "train/cnn-2.tsv": HEADER + "3600.0\t1:00:00\t600.25\t-\t-\t-\t-\t-\t-\t-\n",
        "train/cnn-3.tsv": HEADER + "NA\t-\t9000.0\t-\t-\t-\t-\t-\t-\t-\n",
        "train/cnn-4.tsv": "",
        "train/cnn-5.tsv": HEADER,
        "table/table2.tsv": HEADER + "0.5\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in texts] + [tmp_path / "train" / "missing.tsv"]


def test_costs_by_kind_of_job(benchmarks):
    frame = costs(benchmarks).set_index("kind")
    assert frame.index.to_list() == ["train", "table"]
    assert frame.loc["train"].to_list() == [3, 3.0, 3600.0, 5400.0, 600.5]
    assert frame.loc["table", "jobs"] == 1
    assert math.isnan(frame.loc["table", "max_memory_mb"])


def test_costs_are_written_with_and_without_jobs(tmp_path, benchmarks):
    write_table(costs(benchmarks), tmp_path / "costs", "Costs", [])
    assert "| train " in (tmp_path / "costs.md").read_text()
    write_table(costs([]), tmp_path / "none", "Costs", [])
    assert (tmp_path / "none.csv").read_text() == "kind,jobs,hours,median_s,max_s,max_memory_mb\n"
    assert "Kind of job" in (tmp_path / "none.md").read_text()


def test_the_papers_tables_are_whole():
    assert [len(paper_values.table(i)) for i in (1, 2, 3, 4, 5)] == [7, 7, 7, 6, 10]
    assert tuple(paper_values.names()) == MODELS == tuple(paper_values.table(2)["model"])
    assert dict(paper_values.table(1).set_index("model")["parameters"].loc[["cnn", "gcnn", "pgcnn"]]) == {
        "cnn": 9.23e6,
        "gcnn": 4.61e6,
        "pgcnn": 9.19e6,
    }
    with pytest.raises(ValueError, match="no Table 6"):
        paper_values.table(6)
