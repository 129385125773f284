import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED, TINY, VGG11S, VGG11S_ALONE, Clone, refused, save_images, settings_of, write_scale
from PIL import Image
from small_nets import net_of
from torch import nn

from relusym import data
from relusym.data import DATA_SETS, image_set
from relusym.data.chiral_shapes import generate
from relusym.findings import Figure, declared, selection
from relusym.findings.figures import figure4, zero_filters
from relusym.findings.frames import read_filters
from relusym.matching import MATCHINGS
from relusym.matching.match import Matching, Pair
from relusym.measuring.merge import MergeJob, merge_record
from relusym.measuring.train import TrainJob, train_record
from relusym.nets import ARCHITECTURES
from relusym.records.fields import nets_of
from relusym.records.files import load_record, write_record
from relusym.records.results import Results
from relusym.schema import Count, Entry, Section
from relusym.training.objectives import Supervised
from relusym.training.recipe import OBJECTIVES

IMAGES = {"dataset": "generated", "train_images": 200, "test_images": 200, "seed": 0}
RESULTS = Path("results/tiny")


def run_with(clone: Clone, *targets: str, models, pairs=(), scale=None, **config) -> Clone:
    """The clone after a run with only these models, at the scale `tiny` with the changes `scale`."""
    sections = SHARED | {"data": IMAGES, "models": models, "pairs": [list(pair) for pair in pairs]}
    write_scale(clone.folder, "tiny", sections | (scale or {}))
    clone.configure(**config)
    clone.makes(*targets)
    return clone


def records(clone: Clone, kind: str, but=()) -> dict:
    """The records of a kind, by their nets, except those in these files."""
    loaded = map(load_record, {*(clone.folder / RESULTS / "records" / kind).glob("*/[0-9]*.json")} - {*but})
    by_nets = {"--".join(f"{model}-{seed}" for model, seed in nets_of(record)): record for record in loaded}
    return dict(sorted(by_nets.items()))


def table(clone: Clone, name: str) -> pd.DataFrame:
    return pd.read_csv(clone.folder / RESULTS / f"tables/{name}.csv")


def notes(clone: Clone, name: str) -> list[str]:
    text = (clone.folder / RESULTS / f"tables/{name}.md").read_text(encoding="utf-8")
    return [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]


@pytest.fixture
def sections() -> dict:
    return VGG11S_ALONE | {"data": IMAGES}


BN = {"name": "VGG11 with batch norm", "network": {"architecture": "vgg11_bn", "width": 0.0625}}
RESNET8 = {"name": "ResNet8", "network": {"architecture": "cifar_resnet", "blocks": 1, "width": 0.25}}
RESNET8["training"] = {"learning_rate": 0.05}
FAMILIES = {"models": {"bn": BN, "resnet8": RESNET8}, "pairs": [("bn", "bn"), ("resnet8", "resnet8")]}


@pytest.fixture(scope="module")
def families(tiny):
    return run_with(tiny(), "table1", "table2", "table4", "figure4", "zero_filters", **FAMILIES)


def test_nets_with_batch_norm_and_resnets_are_in_the_tables_as_means_over_their_seeds(families):
    table2, table4 = table(families, "table2").set_index("model"), table(families, "table4")
    flips, merges = records(families, "flip_merge"), records(families, "pair_merge")
    assert list(flips) == ["bn-0", "bn-1", "resnet8-0", "resnet8-1"]
    assert list(merges) == ["bn-0--bn-1", "resnet8-0--resnet8-1"]
    for model in FAMILIES["models"]:
        row, pair = table2.loc[model], table4[table4["model_1"] == model].iloc[0]
        barriers = [flips[f"{model}-{seed}"]["barrier"]["repaired"] for seed in (0, 1)]
        assert (row["n"], pair["n"]) == (2, 1)
        assert row["gcnn_barrier_mean"] == pytest.approx(np.mean(barriers))
        assert row["gcnn_barrier_std"] == pytest.approx(np.std(barriers, ddof=1))
        assert pair["barrier_mean"] == pytest.approx(merges[f"{model}-0--{model}-1"]["barrier"]["repaired"])
        assert row["accuracy_mean"] > 0.15


def test_notes_list_the_differences_between_the_nets_of_a_table(families):
    first, other, training, rate, *_ = notes(families, "table2")
    data = "Scale tiny: generated data, 200 training images"
    assert first == f"{data}; vgg11_bn, width 0.0625, initialization he; seeds 0-1"
    assert other == "Scale tiny, ResNet8: cifar_resnet, width 0.25, blocks 1"
    assert training.startswith("Training: 3 epochs, batch 10, learning rate 0.01, linear schedule")
    assert rate == "Training, ResNet8: learning rate 0.05"


def test_a_type_moves_to_table_5_by_one_key_and_nothing_is_trained_again(families, tmp_path):
    made = families.copy(tmp_path / "copy")
    models = {"bn": BN, "resnet8": RESNET8 | {"table": "table5"}}
    before = records(made, "train")
    run_with(made, "table2", "table5", models=models)
    assert records(made, "train") == before and table(made, "table2")["model"].tolist() == ["bn"]
    (row,) = table(made, "table5").itertuples()
    assert (row.method, row.name, row.n) == ("resnet8", "ResNet8", 2)
    flips = records(made, "flip_merge")
    resets = [flips[f"resnet8-{seed}"]["accuracy"]["reset"] for seed in (0, 1)]
    assert row.halfway_accuracy_no_repair == pytest.approx(np.mean(resets))
    assert row.halfway_accuracy_no_repair_std == pytest.approx(np.std(resets, ddof=1))


def test_figures_number_the_layers_of_each_architecture_from_one(families):
    about = {"models": ["bn", "resnet8"], "names": {}, "zero_filter": 0.1}
    figure, counts = figure4.draw({"flip_merge": [*records(families, "flip_merge").values()]}, about)
    # convs; the two inside each block but the last, and three residual streams
    layers = {"bn": 8, "resnet8": 6}
    for panel, model in zip(figure.axes, about["models"], strict=False):
        assert counts[counts["model"] == model]["layer"].nunique() == layers[model]
        bars = sorted({round(bar.get_x() + bar.get_width() / 2) for bar in panel.patches})
        assert bars == list(range(1, layers[model] + 1))
        assert [label.get_text() for label in panel.get_xticklabels()] == [str(i) for i in range(1, 9)]
    assert figure.get_supxlabel() == "Conv layer"  # the two architectures have different widths
    paths = sorted((families.folder / RESULTS / "filters").glob("*/*.safetensors"))
    figure, by_type, _ = zero_filters.draw({"filters": [read_filters(path) for path in paths]}, about)
    assert by_type["model"].value_counts().to_dict() == {"bn": 8, "resnet8": 9}  # all convs
    for panel in figure.axes:
        assert panel.get_xlim()[1] < 10 and len(panel.get_xticks()) == 9


def test_nets_without_a_halfway_net_are_no_pair(sections):
    def refusal(pair, **models):
        return refused(lambda: settings_of(sections | {"models": VGG11S | models, "pairs": [pair]}))

    line = "pairs: [cnn, bn] can't be merged, since they differ in network.architecture"
    assert refusal(["cnn", "bn"], bn=BN).partition(": ")[2].startswith(line)
    assert refusal(["cnn", "wide"], wide={"network": {"width": 0.125}}).endswith("differ in network.width")
    assert refusal(["cnn", "big"], big={"image_size": 48}).endswith("differ in image_size")
    same = {"same": {"network": {"group_convs": 8, "initialization": "pytorch"}}}
    assert settings_of(sections | {"models": VGG11S | same, "pairs": [["cnn", "same"]]}).pairs


def test_a_scale_of_resnets_only_has_the_tables_and_figures_that_need_no_others(sections):
    settings = settings_of(sections | {"models": {"resnet8": RESNET8 | {"table": "table5"}}, "pairs": []})
    assert [*selection.select(settings, "table5")["models"]] == ["resnet8"]
    assert selection.select(settings, "table2")["models"] == []
    names = selection.findings(settings)
    figures = [name for name in names if isinstance(declared()[name], Figure)]
    assert figures == ["figure3", "figure10", "matchings_figure"]
    for name in names:
        selection.keys(Results(settings), name)


CLASSES = 20


def write_tree(root: Path) -> Path:
    """Small PNGs of 20 classes, each of its own colour, in ImageFolder layout."""
    draw = np.random.default_rng(0)
    colours = draw.integers(40, 216, (CLASSES, 1, 1, 3))
    for split, count in (("train", 10), ("test", 5)):
        for label in range(CLASSES):
            pixels = np.clip(colours[label] + draw.integers(-40, 40, (count, 32, 32, 3)), 0, 255)
            save_images(root / split / f"class_{label:02}", pixels.astype(np.uint8))
    return root


def coarse(root: Path) -> dict:
    """The config for such a tree: the data set, a model trained on it, and a model trained on the scale's images."""
    source = {"source": "folder", "root": str(root), "train": "train", "test": "test", "label": "20 colours"}
    on_it = BN | {"name": "On colours", "data": {"dataset": "colours", "train_images": None}}
    models = {"bn": BN, "bn_colours": on_it}
    return {"datasets": {"colours": source}, "models": models, "scale": {"seeds": "0"}}


def test_a_model_can_have_its_own_folder_of_images_and_another_folder_is_a_different_data_set(tiny, tmp_path):
    first, second = write_tree(tmp_path / "a"), tmp_path / "b"
    made = run_with(tiny(), "table2", **coarse(first))
    trained, flips = records(made, "train"), records(made, "flip_merge")
    digests = {model: trained[f"{model}-0"]["inputs"]["data"] for model in ("bn", "bn_colours")}
    assert digests["bn"] != digests["bn_colours"] == flips["bn_colours-0"]["inputs"]["data"]
    assert trained["bn_colours-0"]["inputs"]["source"] == "20 colours"
    heads = CLASSES - 10  # more logits than with generated images, with a weight per channel and a bias each
    assert trained["bn_colours-0"]["parameters"] == trained["bn-0"]["parameters"] + heads * (32 + 1)
    frame = table(made, "table2").set_index("model")
    assert frame["n"].to_dict() == {"bn": 1, "bn_colours": 1}
    for model in frame.index:
        assert frame.loc[model, "accuracy_mean"] == trained[f"{model}-0"]["accuracy"] > 2 / CLASSES
    assert "Scale tiny, On colours: colours data, all training images" in notes(made, "table2")
    assert {"Data: 20 colours", "Data: generated chiral shapes, seed 0"} <= {*notes(made, "table2")}
    shutil.copytree(first, second)
    Image.new("RGB", (32, 32)).save(second / "train" / "class_00" / "0.png")
    made.configure(datasets=coarse(second)["datasets"])
    assert made.planned("table2") == []  # the images aren't needed again
    made.record("flip_merge", "bn_colours-0").unlink()
    jobs = made.planned("table2")
    assert [job.split()[0] for job in jobs] == ["flip_merge", "prepare_data", "table2"]
    prepared = f"data/{jobs[1].split()[1]}.safetensors"
    assert not (made.folder / prepared).exists() and made.snakemake(prepared).returncode == 0
    assert "were made from other images (20 colours)" in made.fails("table2")


@pytest.mark.parametrize("change, start", [
    ({"source": "web"}, ".source: 'web' given; allowed is one of torchvision, binary, python, folder"),
    ({"source": "torchvision"}, ".source: torchvision gives CIFAR10, which is the data set cifar10"),
    ({"source": "binary"}, ".source: binary gives CIFAR10, which is the data set cifar10"),
    ({"source": "python"}, ".source: python gives CIFAR10, which is the data set cifar10"),
])  # fmt: skip
def test_a_bad_data_set_is_named_before_any_job(change, start):
    colours = coarse(Path("a"))["datasets"]["colours"] | change
    line = refused(lambda: settings_of(datasets={"colours": colours}))
    assert line.startswith(f"datasets.colours{start}")


def test_vertical_flips_and_quarter_turns_are_symmetries_of_a_training_and_of_its_merge(tiny):
    group = {"group_convs": 8}
    models = {
        "flipped": {"symmetry": "vertical_flip", "network": group},
        "turned": {"symmetry": "quarter_turn", "network": group},
        "invariant": {"symmetry": "vertical_flip", "network": {"architecture": "vgg11_bn"},
         "training": {"augmentation": True, "invariance_from": 0.0}},
    }  # fmt: skip
    scale = {
        "seeds": "0", "data": IMAGES | {"train_images": 400},
        "network": {"width": 0.125, "initialization": "he"}, "training": TINY["training"] | {"epochs": 8},
    }  # fmt: skip
    made = run_with(tiny(), "table2", models=models, scale=scale)
    trained, flips = records(made, "train"), records(made, "flip_merge")
    for model, wanted in models.items():
        merged = flips[f"{model}-0"]
        assert merged["status"] == "ok" and trained[f"{model}-0"]["accuracy"] > 0.15
        settings = trained[f"{model}-0"]["settings"], merged["settings"]
        assert [of["symmetry"] for of in settings] == [wanted["symmetry"]] * 2
        assert merged["checks"]["flipped_net_on_flipped_images"] < 1e-4
        assert merged["checks"]["flipped_to_identity"] == 0
    for model in ("flipped", "turned"):
        assert flips[f"{model}-0"]["invariance_error"] < 1e-5
        assert flips[f"{model}-0"]["barrier"]["repaired"] == 0
        assert flips[f"{model}-0"]["checks"]["kernel_constraint"] == 0
    assert 1e-3 < flips["invariant-0"]["invariance_error"] < 1
    assert trained["invariant-0"]["settings"]["training"]["invariance_from"] == 0
    assert notes(made, "table2")[0].endswith("vertical flip; seed 0")
    assert notes(made, "table2")[1] == "Scale tiny, turned: quarter turn"


def test_another_matching_has_its_own_records_and_table_and_nothing_else_is_made_again(families, tmp_path):
    made = families.copy(tmp_path / "copy")
    made.configure(models={"bn": BN}, pairs=[["bn", "bn"]], matchings=["activation", "identity"])
    folder = made.folder / RESULTS / "records"
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    jobs = ["flip_merge bn 0", "flip_merge bn 1", "pair_merge bn 0 bn 1"]
    assert made.planned("matchings") == sorted([*jobs, "matchings"])
    made.makes("matchings")
    assert {path: path.read_bytes() for path in before} == before
    for kind, names in (("flip_merge", ["bn-0", "bn-1"]), ("pair_merge", ["bn-0--bn-1"])):
        merges = records(made, kind, but=before)
        assert list(merges) == names
        for merged in merges.values():
            assert merged["settings"]["merging"]["matching"] == "identity"
            assert all(p == sorted(p) for p in merged["permutations"].values())
    shown = table(made, "matchings").fillna({"model_2": ""}).set_index(["model_2", "matching"])
    assert shown.index.tolist() == [(w, m) for w in ("", "bn") for m in ("activation", "identity")]
    assert shown["n"].tolist() == [2, 2, 1, 1]
    flips = [merged["barrier"]["repaired"] for merged in records(made, "flip_merge", but=before).values()]
    assert shown.loc[("", "identity"), "barrier_mean"] == pytest.approx(np.mean(flips))


MINE = '''
"""The accuracy of each net."""

from relusym.findings import Table
from relusym.findings.frames import tidy
from relusym.findings.layout import Layout
from relusym.findings.selection import vgg11s

LAYOUT = Layout("Nets", {"accuracy": "Accuracy"})
TABLE = Table(__name__, LAYOUT, reads=("train",), select=vgg11s)


def frame(inputs, selection):
    return tidy(inputs["train"])[["model", "seed", "accuracy"]]
'''


def test_a_table_is_a_module_and_a_caption(committed):
    library = committed.folder / "workflow_scripts"
    (library / "relusym/findings/tables/mine.py").write_text(MINE, encoding="utf-8")
    by = "env", f"PYTHONPATH={library}"
    assert "mine has no caption in the report: write it as report/mine.rst" in committed.fails("mine", by=by)
    (committed.folder / "report/mine.rst").write_text("Each net.\n", encoding="utf-8")
    output = committed.makes("mine", "provenance", by=by)
    made = table(committed, "mine")
    assert made["model"].tolist() == ["cnn", "cnn", "gcnn", "gcnn"] and made["accuracy"].notna().all()
    assert notes(committed, "mine")[0].startswith("Scale tiny")
    assert "Mine" in table(committed, "provenance")["made"].to_list()
    assert "results/tiny/tables/mine.md" in output


class Channels(Section):
    channels: Count


class Shapes(Section):
    count: Count


@net_of(lambda channels, classes, symmetry=None: {
    "conv": nn.Conv2d(3, channels, 5, 2), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1),
    "flatten": nn.Flatten(), "classifier": nn.Linear(channels, classes), "head": "classifier",
})  # fmt: skip
def Shallow(self, x):
    return self.classifier(self.flatten(self.pool(self.relu(self.conv(x)))))


def prepare_shapes(to, *, count, workers, key):
    """`count` generated images to train on, and as many to test on."""
    image_set.save(to, *generate(count, count, 0))


class Smoothed(Supervised):
    def loss(self, forward, views, labels, epoch):
        logits = forward(*views).float()
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=1.0)
        return loss, (logits.detach().argmax(1) == labels).sum()


def backwards(pair: Pair) -> Matching:
    """Match the first channel to the last."""
    return pair.matched_by({group.name: torch.arange(group.size).flip(0) for group in pair.groups})


def test_an_entry_added_to_a_registry_is_used_by_its_name_in_the_config(sections, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "shallow", Entry(f"{__name__}:Shallow", Channels))
    monkeypatch.setitem(DATA_SETS, "shapes", Entry(f"{__name__}:prepare_shapes", Shapes))
    monkeypatch.setitem(OBJECTIVES, "smoothed", Entry(f"{__name__}:Smoothed"))
    monkeypatch.setitem(MATCHINGS, "backwards", Entry(f"{__name__}:backwards"))
    source = {"source": "shapes", "count": 200, "label": "My shapes"}
    mine = {
        "data": {"dataset": "my_shapes", "train_images": None},
        "network": {"architecture": "shallow", "channels": 12},
        "training": {"objective": "smoothed", "weight_decay": 0.0},
        "merging": {"matching": "backwards"},
    }
    alone = sections | {"models": {"mine": mine}, "pairs": [["mine", "mine"]]}
    settings = settings_of(alone, "tiny", datasets={"my_shapes": source})
    images, cpu = tmp_path / "images.safetensors", torch.device("cpu")
    spec, key = settings.preparation(settings.prepared("mine"))
    data.prepare(spec, images, key=key)
    label = settings.label("mine")
    nets = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    trained = [net.with_suffix(".json") for net in nets]
    for seed in (0, 1):
        record = train_record(TrainJob("mine", seed, settings.train("mine"), images, label, nets[seed], cpu))
        assert record["inputs"]["source"] == "My shapes"
        assert record["parameters"] == 12 * (3 * 25 + 1) + 10 * (12 + 1)
        losses = [epoch["loss"] for epoch in record["history"]]
        # with labels smoothed away entirely, the best a net can learn is equal logits, with loss log 10
        assert losses[-1] == pytest.approx(np.log(10), abs=0.02) and len(losses) == TINY["training"]["epochs"]
        write_record(trained[seed], record | {"status": "ok"})
    how = images, label, 50, cpu
    flip, names = settings.flip_merge("mine"), [("mine", 0), ("mine", 1)]
    flip = merge_record(MergeJob(names[:1], flip, nets[:1], trained[:1], *how))
    pair = settings.pair_merge("mine", "mine")
    pair = merge_record(MergeJob(names, pair, nets, trained, *how))
    for merged in (flip, pair):
        assert merged["permutations"] == {"conv": [*reversed(range(12))]}
        assert merged["settings"]["merging"]["matching"] == "backwards"
