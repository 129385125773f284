"""Our tables beside the paper's, on cells whose differences are worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from records import MODELS, NAMES, PAIRS, flip, pair, train
from scipy import stats

from relusym import paper_values
from relusym.experiments.settings import Settings
from relusym.findings import comparison, table2
from relusym.findings.comparison import PAPER_NETS, compare, other_than_the_papers
from relusym.findings.layout import write_table


def as_the_paper(number):
    """The paper's table, laid out as ours are: what a run would print that got every number as the paper did."""
    paper = paper_values.table(number)
    keys = [column for column in paper if column in ("model", "model_1", "model_2")]
    return paper.assign(n=PAPER_NETS, left_out=0).merge(
        paper.rename(columns={column: f"paper_{column}" for column in paper if column not in keys}), on=keys
    )


def cell(**changes):
    """The accuracy of one type: 0.9 ± 0.02 (n 5) here, 0.8 ± 0.05 in the paper."""
    frame = {"model": ["cnn"], "accuracy_mean": [0.9], "accuracy_std": [0.02], "n": [5], "left_out": [0]}
    frame |= {"paper_accuracy_mean": [0.8], "paper_accuracy_std": [0.05]}
    return pd.DataFrame(frame | {name: [value] for name, value in changes.items()})


@pytest.mark.parametrize("number", [2, 4])
def test_every_cell_of_the_table_is_compared(number):
    found = compare(as_the_paper(number), number)
    cells = paper_values.table(number).filter(regex="_mean$")
    assert len(found) == cells.size
    assert sorted(found["value_mean"]) == sorted(cells.to_numpy().ravel())
    assert (found["difference"] == 0).all()
    assert set(found["verdict"]) == {"within 2σ"}
    assert found["p_value"].to_numpy() == pytest.approx(1)


def test_differences_are_in_the_papers_stds_and_in_welchs_standard_errors():
    (found,) = compare(cell(), 2).itertuples()
    assert found.difference == pytest.approx(0.1)
    assert found.in_paper_stds == pytest.approx(2)
    assert found.in_standard_errors == pytest.approx(0.1 / math.sqrt(0.02**2 / 5 + 0.05**2 / PAPER_NETS))
    ours, papers = (  # two samples with these means and standard deviations
        mean + std * stats.zscore(np.arange(n), ddof=1)
        for mean, std, n in ((0.9, 0.02, 5), (0.8, 0.05, PAPER_NETS))
    )
    welch = stats.ttest_ind(ours, papers, equal_var=False)
    assert (found.in_standard_errors, found.p_value) == pytest.approx((welch.statistic, welch.pvalue))


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [(0.8999, "within 2σ"), (0.7001, "within 2σ"), (0.9001, "higher"), (0.6999, "lower")],
)
def test_the_verdict_is_two_standard_deviations_of_the_paper(mean, verdict):
    (found,) = compare(cell(accuracy_mean=mean), 2).itertuples()
    assert (found.verdict, found.reason) == (verdict, "")


@pytest.mark.parametrize(("value", "verdict"), [(9225610, "equal"), (9.24e6, "higher"), (4612810, "lower")])
def test_without_a_std_of_the_paper_three_digits_decide(value, verdict):
    frame = pd.DataFrame({"model": ["cnn"], "parameters": [value], "n": [5], "paper_parameters": [9.23e6]})
    (found,) = compare(frame, 1).itertuples()
    assert found.verdict == verdict
    assert math.isnan(found.in_paper_stds) and math.isnan(found.in_standard_errors)


def test_one_net_has_no_standard_error_and_no_net_no_verdict():
    (one,) = compare(cell(accuracy_std=math.nan, n=1), 2).itertuples()
    assert (one.verdict, one.in_paper_stds) == ("within 2σ", pytest.approx(2))
    assert math.isnan(one.in_standard_errors) and math.isnan(one.p_value)
    (none,) = compare(cell(accuracy_mean=math.nan, accuracy_std=math.nan, n=0), 2).itertuples()
    assert (none.verdict, none.reason) == ("not comparable", "no net of ours")


def test_nothing_made_otherwise_is_called_comparable():
    found = compare(as_the_paper(2), 2, ["data", "width"])
    assert set(found["verdict"]) == {"not comparable"}
    assert set(found["reason"]) == {"other data, width"}
    assert found["in_paper_stds"].notna().all()


def test_a_table_of_single_nets_without_stds_is_compared_as_well():
    paper = paper_values.table(3).drop(
        columns=["trained_by_authors", "self_supervised", "image_size", "in_table3"]
    )
    frame = paper.merge(paper.rename(columns=lambda c: c if c == "method" else f"paper_{c}"), on="method")
    found = compare(frame.assign(name="a name"), 3)
    assert len(found) == 7 * 7
    assert set(found["row"]) == {"a name"}
    assert set(compare(frame, 3)["row"]) == set(paper["method"])
    assert len(compare(frame[:0], 3)) == 0  # no net of which is at hand
    assert set(found["verdict"]) == {"equal"}


def records(**changes):
    """A train and a flip-merge record, made as the paper's nets were but for `changes`, by their path."""
    train = {
        "kind": "train",
        "inputs": {"source": "CIFAR10"},
        "settings": {
            "data": {"dataset": "cifar10", "train_images": None},
            "network": {"width": 1.0, "initialization": "pytorch"},
            "training": {"epochs": 100, "batch_size": 500, "learning_rate": 0.08, "invariance_weight": 1.0},
        },
    }
    flip = {
        "kind": "flip_merge",
        "inputs": {},
        "settings": {"merging": {"images": None, "batch_size": 10}, "trained": [{}]},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = flip if "merging" in parents else train
        for name in parents:
            at = at[name]
        at[last] = value
    return [train, flip]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"inputs__source": "CIFAR10 as JPEG"}, "data"),
        ({"settings__data__train_images": 1000}, "number of training images"),
        ({"settings__network__width": 0.25}, "width"),
        ({"settings__network__initialization": "he"}, "training settings"),
        ({"settings__training__epochs": 10}, "epochs"),
        (
            {"settings__training__batch_size": 100, "settings__training__learning_rate": 0.1},
            "training settings",
        ),
        ({"settings__merging__images": 500}, "images to match on"),
    ],
)
def test_what_is_other_than_the_papers_is_named(change, word):
    for table in (2, 4):
        assert other_than_the_papers(records(**change), table) == ([word] if word else [])
    assert other_than_the_papers(records(**change), 1) == (["width"] if word == "width" else [])


def test_every_setting_of_the_scale_paper_is_the_papers():
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")) | {"scale": "paper"}
    settings = Settings.of(config)
    made = [
        {"inputs": {"source": "CIFAR10"}, "settings": settings.train("cnn")},
        {"inputs": {"source": "CIFAR10"}, "settings": settings.flip_merge("cnn")},
    ]
    for table in (1, 2, 4):
        assert other_than_the_papers(made, table) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "word"),
    [
        ("train", "settings.network.width", 0.25, "network"),
        ("train", "settings.training.epochs", 10, "epochs"),
        ("train", "settings.data.train_images", 1000, "number of training images"),
        ("train", "inputs.source", "generated shapes", "data"),
        ("flip_merge", "settings.merging.images", None, "images to match on"),
        ("flip_merge", "inputs.source", None, None),  # of a net that is left out
    ],
)
def test_what_is_other_than_the_papers_resnets_is_named(kind, path, value, word):
    made = {
        "train": {
            "inputs": {"source": "ImageNet"},
            "settings": {
                "data": {"dataset": "imagenet", "train_images": None},
                "network": {"width": 1.0},
                "training": {"epochs": 90},
            },
        },
        "flip_merge": {"inputs": {"source": "ImageNet"}, "settings": {"merging": {"images": 5000}}},
    }
    assert other_than_the_papers(list(made.values()), 5) == []
    *parents, last = path.split(".")
    at = made[kind]
    for name in parents:
        at = at[name]
    at[last] = value
    assert other_than_the_papers(list(made.values()), 3) == ([word] if word else [])


SHOWN = {"name": "Old", "image_size": 33, "trained_by_authors": False, "self_supervised": False}


def test_the_comparison_is_made_from_the_records_of_each_table():
    vgg11s, resnets = {"models": MODELS}, {"models": {"old": SHOWN | {"paper": "torchvision_old"}}}
    about = {"table1": vgg11s | {"names": NAMES, "descriptions": {}}, "table2": vgg11s}
    about |= {"table4": {"pairs": PAIRS}, "table5": resnets}
    scores = {"net": 0.8, "flipped": 0.7, "halfway": 0.5, "repaired": 0.6}
    inputs = {
        "train": [train("cnn", 0, 0.91), train("old", 0, 0.8, inputs={"source": "other"})],
        "flip_merge": [flip("cnn", 0, 0.1), flip("old", 0, 0.3, scores=scores)],
        "pair_merge": [pair("cnn", 0, "gcnn", 0, 0.2)],
    }
    found = comparison.frame(inputs, {"tables": about, "names": NAMES})
    assert found.groupby("table").size().to_dict() == {1: 7, 2: 21, 4: 6, 5: 7}
    cells = found.set_index(["table", "row", "quantity"])["value_mean"]
    assert cells[2, "CNN", "Accuracy"] == 0.91 and cells[2, "CNN", "GCNN Barrier"] == 0.1
    assert cells[4, "CNN with GCNN", "Barrier"] == 0.2
    assert cells[5, "Old", "Accuracy"] == 0.8 and cells[1, "CNN", "Parameters"] == 577000
    reasons = found.set_index(["table", "row", "quantity"])["reason"]
    assert (
        reasons[5, "Old", "Accuracy"].startswith("other data") and "no net" in reasons[2, "GCNN", "Accuracy"]
    )


def test_the_comparison_is_written_with_the_papers_values_beside_ours(tmp_path):
    frame = table2.frame({"train": [], "flip_merge": []}, {"models": ["cnn", "gcnn"]})
    cells = compare(frame, 2, (), table2.LAYOUT, NAMES)
    write_table(cells, tmp_path / "comparison", comparison.LAYOUT, ["a < b"])
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "0.901 ± 2.1e-3" in markdown and "no net of ours" in markdown
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<tr") == 1 + len(frame) * 3
    assert "a &lt; b" in page
