import math
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refused, scale_of, settings_of, write_scale
from records import MODELS, NAMES, PAIRS, flip, pair, run_of, train
from scipy import stats

from relusym import cifar10, paper_values
from relusym.config.settings import Settings
from relusym.findings.layout import write_table
from relusym.findings.selection import select
from relusym.findings.tables import comparison, table2
from relusym.findings.tables.comparison import PAPER_NETS, compare, other_than_the_papers, ratio

PAPER_2 = paper_values.table(2).set_index("model")
PAPER_4 = paper_values.table(4).set_index(["model_1", "model_2"])


def as_the_paper(number):
    """The paper's table in the layout of ours: the output of a run that reproduced every number exactly."""
    paper = paper_values.table(number)
    keys = [column for column in paper if column in ("model", "model_1", "model_2")]
    renamed = {column: f"paper_{column}" for column in paper if column not in keys}
    return paper.assign(n=PAPER_NETS, left_out=0).merge(paper.rename(columns=renamed), on=keys)


def cell(**changes):
    """The accuracy of one type: 0.9 ± 0.02 (n 5) here, 0.8 ± 0.05 in the paper."""
    frame = {"model": ["cnn"], "accuracy_mean": [0.9], "accuracy_std": [0.02], "n": [5], "left_out": [0]}
    frame |= {"paper_accuracy_mean": [0.8], "paper_accuracy_std": [0.05]}
    return pd.DataFrame(frame | {name: [value] for name, value in changes.items()})


@pytest.mark.parametrize("number", [2, 4])
def test_every_cell_of_the_table_is_compared(number):
    frame = compare(as_the_paper(number), number)
    cells = paper_values.table(number).filter(regex="_mean$")
    assert len(frame) == cells.size and sorted(frame["value_mean"]) == sorted(cells.to_numpy().ravel())
    assert (frame["difference"] == 0).all() and set(frame["verdict"]) == {"within 2σ"}
    assert frame["p_value"].to_numpy() == pytest.approx(1)


def test_differences_are_in_the_papers_stds_and_in_welchs_standard_errors():
    (row,) = compare(cell(), 2).itertuples()
    assert row.difference == pytest.approx(0.1) and row.in_paper_stds == pytest.approx(2)
    assert row.in_standard_errors == pytest.approx(0.1 / math.sqrt(0.02**2 / 5 + 0.05**2 / PAPER_NETS))
    ours, papers = (  # two samples with these means and standard deviations
        mean + std * stats.zscore(np.arange(n), ddof=1)
        for mean, std, n in ((0.9, 0.02, 5), (0.8, 0.05, PAPER_NETS))
    )
    welch = stats.ttest_ind(ours, papers, equal_var=False)
    assert (row.in_standard_errors, row.p_value) == pytest.approx((welch.statistic, welch.pvalue))


VERDICTS = {0.8999: "within 2σ", 0.7001: "within 2σ", 0.9001: "higher", 0.6999: "lower"}


@pytest.mark.parametrize(("mean", "verdict"), VERDICTS.items())
def test_the_verdict_is_two_standard_deviations_of_the_paper(mean, verdict):
    (row,) = compare(cell(accuracy_mean=mean), 2).itertuples()
    assert (row.verdict, row.reason) == (verdict, "")


@pytest.mark.parametrize(("value", "verdict"), [(9225610, "equal"), (9.24e6, "higher"), (4612810, "lower")])
def test_without_a_std_in_the_paper_three_digits_decide(value, verdict):
    frame = pd.DataFrame({"model": ["cnn"], "parameters": [value], "n": [5], "paper_parameters": [9.23e6]})
    (row,) = compare(frame, 1).itertuples()
    assert row.verdict == verdict
    assert math.isnan(row.in_paper_stds) and math.isnan(row.in_standard_errors)


def test_one_net_has_no_standard_error_and_no_net_no_verdict():
    (single,) = compare(cell(accuracy_std=math.nan, n=1), 2).itertuples()
    assert (single.verdict, single.in_paper_stds) == ("within 2σ", pytest.approx(2))
    assert math.isnan(single.in_standard_errors) and math.isnan(single.p_value)
    (none,) = compare(cell(accuracy_mean=math.nan, accuracy_std=math.nan, n=0), 2).itertuples()
    assert (none.verdict, none.reason) == ("not comparable", "no net of ours")


def test_a_table_of_single_nets_without_stds_is_compared_as_well():
    unlike = ["trained_by_authors", "self_supervised", "image_size", "in_table3"]
    paper = paper_values.table(3).drop(columns=unlike)
    frame = paper.merge(paper.rename(columns=lambda c: c if c == "method" else f"paper_{c}"), on="method")
    cells = compare(frame.assign(name="a name"), 3)
    assert len(cells) == 7 * 7 and set(cells["row"]) == {"a name"}
    assert set(compare(frame, 3)["row"]) == set(paper["method"])
    assert len(compare(frame[:0], 3)) == 0  # without any net
    assert set(cells["verdict"]) == {"equal"}


SETTINGS = {scale: settings_of(scale=scale) for scale in ("demo", "laptop", "paper")}
OF_SCALE = {scale: select(settings, "comparison") for scale, settings in SETTINGS.items()}


def made(kind, *models, source="CIFAR10", digest=cifar10.DIGEST, scale="paper", **changes):
    """A record of nets with the scale's settings except `changes`, by path in a training's or a merge's settings."""
    settings = deepcopy(getattr(SETTINGS[scale], kind)(*models))
    for path, value in changes.items():
        *parents, last = path.split("__")
        of_a_net = "trained" in settings and parents and parents[0] != "merging"
        at = settings["trained"][0] if of_a_net else settings
        for name in parents:
            at = at[name]
        at[last] = value
    names = ("model",) if kind != "pair_merge" else ("model_1", "model_2")
    nets = dict(zip(names, models, strict=True))
    seeds = {name.replace("model", "seed"): seed for seed, name in enumerate(names)}
    return {"kind": kind, **nets, **seeds, "inputs": {"source": source, "data": digest}, "settings": settings}


OTHERWISE = {"epochs": 10, "batch_size": 100, "learning_rate": 0.1, "weight_decay": 2e-3, "momentum": 0.8}
OTHERWISE |= {"warmup_epochs": 1, "crop_padding": 2, "augmentation": False, "schedule": "cosine"}
OTHERWISE |= {"invariance_from": 0.1, "invariance_weight": 0.2, "precision": "float32"}
NETS = ("train", "cnn_inv"), ("flip_merge", "cnn_inv"), ("pair_merge", "cnn_inv", "gcnn")
MERGE, RESNET = [("flip_merge", "cnn")], [("train", "torchvision_old_225")]
IMAGENET = {"source": "ImageNet", "digest": "1" * 64}


@pytest.mark.parametrize("scale, records, change, word", [
    *(("laptop", NETS, change, None) for change in ({}, {"source": "my copy"}, {"data__seed": 7})),
    ("laptop", NETS, {"source": "CIFAR10 as JPEG", "digest": "0" * 64}, "data"),
    ("laptop", NETS, {"digest": "0" * 64}, "data"),
    ("laptop", NETS, {"data__train_images": 1000}, "data.train_images"),
    ("laptop", NETS, {"network__width": 0.25}, "network.width"),
    ("laptop", NETS, {"network__initialization": "he"}, "network.initialization"),
    ("laptop", NETS, {"network__group_convs": 3}, "network.group_convs"),
    *(("laptop", NETS, {f"training__{key}": value}, f"training.{key}") for key, value in OTHERWISE.items()),
    ("demo", MERGE, {"merging__images": 500}, "merging.images"),
    ("demo", MERGE, {"merging__matching": "identity"}, "merging.matching"),
    ("demo", MERGE, {"invariance_images": 500}, "invariance_images"),
    ("demo", MERGE, {"symmetry": "vertical_flip"}, "symmetry"), ("demo", MERGE, {"projection_seed": 3}, None),
    ("paper", RESNET, IMAGENET, None), ("paper", RESNET, IMAGENET | {"source": "generated shapes"}, "data"),
    ("paper", RESNET, IMAGENET | {"source": None}, None),  # a net that is left out
    ("paper", RESNET, IMAGENET | {"network__width": 0.25}, "network.width"),
    ("paper", RESNET, IMAGENET | {"training__epochs": 10}, "training.epochs"),
    ("paper", RESNET, IMAGENET | {"data__train_images": 1000}, "data.train_images"),
])  # fmt: skip
def test_every_setting_that_differs_from_the_papers_is_named(scale, records, change, word):
    for kind, *models in records:
        words = other_than_the_papers(made(kind, *models, **change), OF_SCALE[scale])
        assert words == ([word] if word else [])


def test_an_absent_setting_is_its_default():
    record = made("train", "cnn")
    for key in ("momentum", "augmentation", "invariance_from", "processes"):
        del record["settings"]["training"][key]
    assert other_than_the_papers(record, OF_SCALE["paper"]) == []
    del record["settings"]["training"]["weight_decay"]  # its default isn't the paper's value
    assert other_than_the_papers(record, OF_SCALE["paper"]) == ["training.weight_decay"]


def test_no_net_of_another_scale_is_called_the_papers():
    for scale in ("demo", "laptop"):
        for model in OF_SCALE[scale]["paper"]:
            words = other_than_the_papers(made("flip_merge", model, scale=scale), OF_SCALE[scale])
            assert {"network.width", "network.architecture"} & set(words), model
    assert "old_odd" in OF_SCALE["laptop"]["paper"]  # like torchvision_old_225


def test_the_settings_of_the_scale_paper_are_the_papers():
    merge = OF_SCALE["paper"]["paper"]["cnn_late_inv"]
    train = merge["trained"][0]
    assert train["data"] == {"dataset": "cifar10", "train_images": None, "seed": 0, "size": None}
    assert train["network"]["width"] == 1 and train["network"]["initialization"] == "pytorch"
    how = {"epochs": 100, "batch_size": 500, "learning_rate": 0.08, "momentum": 0.9, "weight_decay": 5e-4}
    how |= {"warmup_epochs": 5, "schedule": "linear", "crop_padding": 4, "augmentation": True}
    how |= {"optimizer": "sgd", "invariance_weight": 1, "invariance_from": 0.2}
    assert {key: train["training"][key] for key in how} == how
    assert merge["merging"] == {"matching": "activation", "images": None}


def test_a_config_without_a_valid_scale_paper_calls_nothing_the_papers(tmp_path):
    write_scale(tmp_path, "demo", scale_of(ROOT, "demo"))
    selection = select(Settings.of({"scale": "demo"}, [tmp_path / "scales"]), "comparison")
    assert selection["paper"] == {}
    assert other_than_the_papers(made("train", "cnn"), selection) == ["type of net"]


SHOWN = {"name": "Old", "image_size": 33, "trained_by_authors": False, "self_supervised": False}


def compared(scale, inputs):
    vgg11s, resnets = {"models": MODELS}, {"models": {"old": SHOWN | {"paper": "torchvision_old"}}}
    tables = {"table1": vgg11s | {"names": NAMES, "descriptions": {}}, "table2": vgg11s}
    tables |= {"table4": {"pairs": PAIRS}, "table5": resnets}
    selection = {**OF_SCALE["laptop"]} | {"tables": tables, "names": NAMES, "scale": scale}
    return comparison.frame(inputs, selection), comparison.notes(inputs, selection)


def test_the_comparison_is_made_from_the_records_of_each_table():
    scores = {"net": 0.8, "flipped": 0.7, "halfway": 0.5, "repaired": 0.6}
    inputs = {
        "train": [train("cnn", 0, 0.91), train("old", 0, 0.8, inputs={"source": "other"})],
        "flip_merge": [flip("cnn", 0, 0.1), flip("old", 0, 0.3, scores=scores)],
        "pair_merge": [pair("cnn", 0, "gcnn", 0, 0.2)],
    }
    frame, _ = compared("paper", inputs)
    assert frame.groupby("table").size().to_dict() == {1: 7, 2: 21, 4: 6, 5: 7}
    cells = frame.set_index(["table", "row", "quantity"])["value_mean"]
    assert cells[2, "CNN", "Accuracy"] == 0.91 and cells[2, "CNN", "GCNN Barrier"] == 0.1
    assert cells[4, "CNN with GCNN", "Barrier"] == 0.2
    assert cells[5, "Old", "Accuracy"] == 0.8 and cells[1, "CNN", "Parameters"] == 577000
    reasons = frame.set_index(["table", "row", "quantity"])["reason"]
    assert reasons[5, "Old", "Accuracy"].startswith("other data")
    assert "no net" in reasons[2, "GCNN", "Accuracy"]
    assert reasons[1, "CNN", "Parameters"] == "other network.width"


def test_a_row_is_comparable_if_its_nets_have_the_papers_settings_whatever_others_have():
    frame = compare(as_the_paper(2), 2, {("cnn",): ["data", "network.width"]})
    assert frame["in_paper_stds"].notna().all()
    assert {*frame.loc[frame["row"] == "cnn", "reason"]} == {"other data, network.width"}
    verdicts = frame.groupby("row")["verdict"].unique().map(list).to_dict()
    assert verdicts.pop("cnn") == ["not comparable"]
    assert set(map(tuple, verdicts.values())) == {("within 2σ",)}


def test_at_another_scale_directions_and_ratios_are_compared_with_a_line_about_it():
    barriers = {"cnn": [0.1, 0.11, 0.12], "cnn_inv": [0.05, 0.06, 0.04], "cnn_late_inv": [0.2, 0.21, 0.19]}
    barriers["gcnn"] = [-0.001, 0.0, 0.0]
    frame, notes = compared("laptop", run_of(barriers, {"cnn": [0.2, 0.22, 0.24], "gcnn": [0.1, 0.11, 0.12]}))
    rows = frame.set_index(["row", "quantity"])
    flip_to_pair = rows.xs("GCNN Barrier / Barrier of two", level=1)
    assert flip_to_pair.loc["CNN", "value_mean"] == pytest.approx(0.5)
    paper = PAPER_2.loc["cnn", "gcnn_barrier_mean"] / PAPER_4.loc[("cnn", "cnn"), "barrier_mean"]
    assert flip_to_pair.loc["CNN", "paper_value_mean"] == pytest.approx(paper)
    assert flip_to_pair["verdict"].to_dict() == {"CNN": "same direction", "GCNN": "same direction"}
    loss = rows.xs("GCNN Barrier", level=1)
    assert loss.loc["CNN + inv-loss / CNN", "value_mean"] == pytest.approx(5 / 11)
    assert loss.loc["CNN + inv-loss / CNN", "verdict"] == "same direction"
    assert loss.loc["CNN + late inv-loss / CNN", "verdict"] == "opposite direction"
    assert len(frame) == 2 + 2 * 2 and "not comparable" not in set(frame["verdict"])
    lines = [note for note in notes if "otherwise than the paper's" in note]
    assert len(lines) == 1 and "network.width" in lines[0] and "training.epochs" in lines[0]


def test_rows_with_the_papers_settings_stay_comparable_at_another_scale():
    inputs = run_of({"cnn": [0.1, 0.11]}, {})
    for record in inputs["train"] + inputs["flip_merge"]:
        like = made(record["kind"], "cnn")
        record |= {"settings": like["settings"], "inputs": record["inputs"] | like["inputs"]}
    frame, notes = compared("mine", inputs)
    assert set(frame["table"]) == {1, 2} and len(frame) == 1 + 3
    assert not [note for note in notes if "otherwise than the paper's" in note]


@pytest.mark.parametrize("values, pair, reason", [
    ([0.1, 0.3, 0.2], [0.2, 0.19, 0.21], "interval includes 1"), ([0.1, 0.2], [0.2, 0.2], "three nets"),
    ([0.1, 0.2, 0.3], [-0.2, -0.3, 0.1], "isn't above zero"),
])  # fmt: skip
def test_a_direction_that_the_nets_dont_settle_is_open(values, pair, reason):
    frame, _ = compared("demo", run_of({"cnn": values}, {"cnn": pair}))
    (row,) = frame.itertuples()
    assert row.verdict == "open" and reason in row.reason


def test_the_error_of_a_ratio_is_the_leave_one_out_error():
    flips = [(0.1, {("cnn", 0)}), (0.2, {("cnn", 1)}), (0.3, {("cnn", 2)})]
    both = zip((0.4, 0.5, 0.6), ((0, 1), (1, 2), (2, 0)), strict=True)
    pairs = [(value, {("cnn", a), ("cnn", b)}) for value, (a, b) in both]
    left_out = np.array([0.25 / 0.5, 0.2 / 0.6, 0.15 / 0.4])
    expected = 0.2 / 0.5, math.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum()), 3
    assert ratio(flips, pairs) == pytest.approx(expected)
    lower = [(1.0, {("gcnn", 0)}), (1.2, {("gcnn", 1)}), (1.4, {("gcnn", 2)})]  # other nets: errors add up
    _, error, _ = ratio(flips, lower)
    apart = (0.1 / math.sqrt(3) / 1.2) ** 2 + (0.2 * 0.2 / math.sqrt(3) / 1.2**2) ** 2  # to first order
    assert error == pytest.approx(math.sqrt(apart), rel=0.02)


def test_the_comparison_is_written_with_the_papers_values_beside_ours(tmp_path):
    frame = table2.frame({"train": [], "flip_merge": []}, {"models": ["cnn", "gcnn"]})
    cells = compare(frame, 2, {}, table2.LAYOUT, NAMES)
    write_table(cells, tmp_path / "comparison", comparison.LAYOUT, ["a < b"], endings=["md", "html"])
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "0.901 ± 2.1e-3" in markdown and "no net of ours" in markdown
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<tr") == 1 + len(frame) * 3 and "a &lt; b" in page


@pytest.mark.parametrize("number, text, line", [
    (2, b"model,accuracy_mean\ncnn,high\n", r"table2\.csv: 'high' in accuracy_mean is no number"),
    (2, b"net,accuracy_mean\ncnn,0.9\n", r"table2\.csv: the column model is missing, or empty in a row"),
    (4, b"\xff\x00,\n", r"table4\.csv: no table \("),
], ids=["no number", "no key", "bytes"])  # fmt: skip
def test_an_unreadable_table_of_the_paper_is_one_line(number, text, line, tmp_path, monkeypatch):
    (tmp_path / f"table{number}.csv").write_bytes(text)
    monkeypatch.setattr(paper_values, "files", lambda package: tmp_path)
    paper_values._rows.cache_clear()
    try:
        refused(lambda: paper_values.table(number), match=line)
    finally:
        paper_values._rows.cache_clear()
