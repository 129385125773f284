"""What a user can get wrong: one line that names it and what is allowed, before any job if it can be; nothing is lost.

`CASES` and `RUNS` are the table: another case is a line there. A full disk: test_whole_files.py, test_run_status.py.
"""

import contextlib
import datetime
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import records
import torch
from conftest import ROOT, Clone, config_of, scale_of, set_to_tiny, settings_of, write_scale
from PIL import Image

from relusym import checkpoint, cifar10, data, nets, paper_values
from relusym.config.checks import check_images
from relusym.config.reading import check_file
from relusym.config.settings import Settings
from relusym.data import image_set
from relusym.data.extent import extent_of
from relusym.errors import UserError
from relusym.jobs.checklist import command_problems, in_the_way
from relusym.measuring.loading import load_net, trained_net
from relusym.nets.weights import to_torchvision
from relusym.records.fields import fields_of
from relusym.records.files import load_record, write_record
from relusym.records.results import Results
from relusym.schema import seed_list
from relusym.whole_files import sha256

TYPES = "cnn, cnn_noaug, cnn_inv, cnn_late_inv, gcnn, pgcnn, pgcnn_late_inv, "
TYPES += "old, old_inv, old_odd, old_inv_odd, simsiam_odd"


class Case(NamedTuple):
    """One thing that a user can get wrong.

    Attributes:
        where: what finds it (a function below, which returns what the user reads).
        given: what is wrong.
        told: a pattern in the one line.
    """

    where: Callable[[Any, Path], str]
    given: Any
    told: str


def refused(what: Callable[[], Any]) -> str:
    """The line with which something is refused."""
    with pytest.raises(UserError) as error:
        what()
    return str(error.value)


# ---- where it is found


def in_config(given: dict[str, Any], tmp_path: Path, scale: str = "demo") -> str:
    """Before anything is planned: `given` by key, of a scale's file (`scales.demo.…`), or of the run's config."""
    run, sections = config_of(ROOT) | {"scale": scale}, scale_of(ROOT, scale)
    for key, value in given.items():
        assert not key.startswith("scales.") or key.split(".")[1] == scale
        section, *path = (
            (sections, *key.split(".")[2:]) if key.startswith("scales.") else (run, *key.split("."))
        )
        for part in path[:-1]:
            section = section.setdefault(part, {})
        if value is DELETED:
            del section[path[-1]]
        else:
            section[path[-1]] = value
    for name in ("demo", "laptop", "paper"):
        write_scale(tmp_path, name, sections if name == scale else scale_of(ROOT, name))
    with contextlib.chdir(tmp_path):
        return refused(lambda: Settings.of(run))


DELETED = object()
in_laptop, in_paper = partial(in_config, scale="laptop"), partial(in_config, scale="paper")


def in_file(given: bytes, tmp_path: Path) -> str:
    """Before anything is planned, in a config file of these bytes."""
    (tmp_path / "config.yaml").write_bytes(given)
    return refused(lambda: check_file(tmp_path / "config.yaml"))


def in_records(given: dict[str, Any], tmp_path: Path) -> str:
    """At every start, before any job: of records by their files, text or fields; those files stay as they are."""
    results = Results(settings_of(seeds="0-1"), root=str(tmp_path / "results"))
    for name, content in given.items():
        path, settings = place(results, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            # those that its folder is of, unless it is they that can't be right
            settings = settings if isinstance(content.get("settings", {}), dict) else content["settings"]
            path.with_name("settings.json").write_text(json.dumps(settings), encoding="utf-8")
            body = {key: value for key, value in content.items() if key != "settings"}
            path.write_text(json.dumps(body), encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    try:
        there = {key: results.is_there(key) for key in results.jobs}
    except UserError as error:  # of a folder that can't be listed
        assert not results.broken
        line = str(error)
    else:
        line = next(iter(results.broken.values()))
        # they are left as they are, and the others go on
        assert [*there.values()].count(True) == len(results.broken)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    return line


def place(results: Results, name: str) -> tuple[Path, Any]:
    """Where the record of a job lies, named such as train/cnn-0.json or theory/lemma_e_1.json; and its settings."""
    kind, _, file = name.removesuffix(".json").partition("/")
    if not file:
        return Path(results.folder) / "records" / name, None
    nets = [
        (model, int(seed))
        for model, _, seed in (net.rpartition("-") for net in file.split("--") if "-" in net)
    ]
    key = results.key(kind, *nets) if nets else results.statement(file)
    return Path(f"{results.folder}/records/{key}.json"), results.jobs[key].settings


def in_images(given: Callable[[Path], Any], tmp_path: Path) -> str:
    """While a folder of images is prepared; nothing is written."""
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (i, 2 * i, 0)).save(tmp_path / split / name / f"{i}.png")
    root, to = given(tmp_path) or tmp_path, tmp_path / "prepared.safetensors"
    line = refused(lambda: data.prepare({"kind": "folder", "root": str(root)}, to))
    assert not to.exists()
    return line


def with_images(given: tuple[int, int, dict[str, Any]], tmp_path: Path) -> str:
    """Before the first job, of images in a folder that aren't prepared yet: number, sides, config as in `in_config`."""
    count, side, changes = given
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (side, side)).save(tmp_path / split / "cat" / f"{i}.png")
    sections = scale_of(ROOT, "laptop") | {"flipped_training": {"batch_size": 2}, "beyond": {}}
    run = {"scale": "laptop", "cifar10": {"source": "folder", "root": str(tmp_path), "label": "mine"}}
    for section in (sections, *sections["models"].values()):
        section["merging"] = {"images": None, "invariance_images": 2}
        section["training"] = section.get("training", {}) | {"batch_size": 2}
    for key, value in changes.items():
        *path, name = key.removeprefix("scales.laptop.").split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    write_scale(tmp_path, "laptop", sections)
    with contextlib.chdir(tmp_path):
        settings = Settings.of(run)
    spec, prepared = settings.preparation_for(None)[0], tmp_path / "mine.safetensors"

    def check():
        extent = extent_of(spec, prepared)
        for model in (None, *settings.models):
            check_images(settings, model, extent)

    line = refused(check)
    data.prepare(spec, prepared)
    assert refused(check) == line
    return line


def anywhere(given: Callable[[Path], Any], tmp_path: Path) -> str:
    """Where the function itself meets it."""
    return refused(lambda: given(tmp_path))


# ---- what is wrong: records

TRAIN, FLIP, PAIR = records.train("cnn", 0), records.flip("cnn", 0), records.pair("cnn", 0, "gcnn", 0)
THEORY = {
    "kind": "theory",
    "statement": "Lemma 2.2",
    "claim": "A.",
    "holds": True,
    "draws": 5,
    "tested": "B.",
    "largest_violation": 0.0,
    "counterfactual": "C.",
    "measured": {"defect": 0.0},
    "settings": {"seed": 0, "draws": 5},
    "cost": {"seconds": 1.0},
}
FIGURE3 = {
    "kind": "flipped_training",
    "settings": {},
    "inputs": {"data": records.DATA},
    "largest_difference": {"float64": 0.0, "float32": 0.0},
    "runs": {
        precision: {"loss": [1.0], "flipped_batches": [0.0, 0.0], "same_batches": [0.0, 0.1]}
        for precision in ("float64", "float32")
    },
    "paths": {name: [[0.0, 1.0], [0.5, 1.0]] for name in ("net", "flipped")},
    "cost": {},
}
WHOLE = {
    "train": TRAIN,
    "flip_merge": FLIP,
    "pair_merge": PAIR,
    "theory": THEORY,
    "flipped_training": FIGURE3,
}


def train(**changes):
    return {"train/cnn-0.json": TRAIN | changes}


def flip(**changes):
    return {"flip_merge/cnn-0.json": FLIP | changes}


def a_link_to_itself(path):
    path.symlink_to(path.name)


# ---- what is wrong: images


def image_at(where, image):
    return lambda root: image.save(root / where)


def bytes_at(where, content):
    def spoil(root):
        (root / where).write_bytes(content)

    return spoil


def no_split(root):
    shutil.rmtree(root / "test")


def a_bomb(root):
    Image.fromarray(np.zeros((20_000, 20_000), bool)).save(root / "train" / "dog" / "2.png")


def label_beyond_the_classes(root):
    images, labels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 7])
    split = image_set.ImageSet(images, labels, ("cat",), "my images")
    image_set.save(root / "set.safetensors", split, split)


# ---- what is wrong: checkpoints and other files


def net_of(value=0.0, about=None, text=None):
    """A checkpoint that its train record names, read for a merge."""

    def read(root):
        path, record = root / "cnn-0.safetensors", root / "cnn-0.json"
        settings = {"network": {"architecture": "vgg11", "width": 1 / 32}, "symmetry": "horizontal_flip"}
        checkpoint.save(
            path, {"conv1.weight": torch.full((2,), value)}, {"settings": settings, "classes": 10}
        )
        if text is not None:
            path.write_bytes(text)
        write_record(record, TRAIN | {"settings": settings, "outputs": {"checkpoint": sha256(path)}})
        before = path.read_bytes(), record.read_bytes()
        try:
            trained_net(path, record, settings, torch.device("cpu"))
        finally:
            assert (path.read_bytes(), record.read_bytes()) == before

    return read


def header(metadata):
    """A safetensors file without tensors, its header's text as given."""
    text = json.dumps({"__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


def weights_without_numbers(root):
    network = {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1], "width": 1 / 64}
    state = nets.build(network, 10).state_dict()
    state["fc.bias"][0] = float("nan")
    to_torchvision([("mine.pth", state)], network)


def a_folder_for_a_checkpoint(root):
    (root / "net.safetensors").mkdir()
    checkpoint.load(root / "net.safetensors")


def a_looping_checkpoint(root):
    a_link_to_itself(root / "net.safetensors")
    checkpoint.load_arrays(root / "net.safetensors")


def papers(number, text):
    def read(root):
        (root / f"table{number}.csv").write_bytes(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paper_values, "files", lambda package: root)
            paper_values._rows.cache_clear()
            try:
                paper_values.table(number)
                paper_values._rows(number)
            finally:
                paper_values._rows.cache_clear()

    return read


def in_the_way_of(folder):
    """A file where a folder of a run belongs."""

    def look(root):
        results = Results(settings_of(), root=str(root / "results"), data=str(root / "data"))
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (root / folder).touch()
        if line := in_the_way(results.folders):
            raise UserError(line)

    return look


def no_such_scheduler(root):
    (line,) = command_problems("mkdir -p logs && qsub-of-nowhere -N {rule}")
    raise UserError(line)


def endless():
    """A section that holds itself."""
    section = {}
    section["training"] = section
    return section


NEEDS_A_NUMBER = "given; allowed is a whole number"
CASES = {
    # a key or a choice that there isn't
    "scale": Case(
        in_config,
        {"scale": "papr"},
        "^scale: 'papr' given; allowed is one of demo, laptop, paper .is it paper..",
    ),
    "no scale": Case(in_config, {"scale": None}, "^scale: None given; allowed is text$"),
    "key": Case(
        in_config,
        {"scael": "demo"},
        "^config: unknown key 'scael', is it 'scale'\\?; allowed are scale, seeds, device, threads",
    ),
    "key of a stage": Case(
        in_config,
        {"scales.demo.training.batchsize": 40},
        r"^scales/demo\.yaml: training: unknown key 'batchsize', is it 'batch_size'\?; allowed are epochs, batch_size, "
        "learning_rate, objective, schedule, momentum, weight_decay, warmup_epochs, optimizer, crop_padding, "
        "augmentation, invariance_weight, invariance_from, precision, sync_batch_norm, processes, dimensions, "
        "bottleneck, save_every, snapshots, restarts, workers$",
    ),
    "key of a network": Case(
        in_config,
        {"models.cnn.network": {"group_conv": 8}},
        r"^models\.cnn\.network: unknown key 'group_conv', is it 'group_convs'\?; allowed are width, init",
    ),
    "key of a scale's network": Case(
        in_config,
        {"scales.demo.network.initialisation": "he"},
        r"^scales/demo\.yaml: network: unknown key 'initialisation', is it 'initialization'\?; allowed",
    ),
    "key of a model's network": Case(
        in_config,
        {"scales.demo.models.old.network": {"widht": 1}},
        r"^scales/demo\.yaml: models\.old\.network: unknown key 'widht', is it 'width'\?; allowed are width, "
        "initialization, group_convs, block, layers, blocks, shortcut$",
    ),
    "section that there isn't": Case(
        in_config,
        {"defaults.network.groups": 1},
        "^config: unknown key 'defaults'; allowed are scale, .*, training, pretraining, ",
    ),
    "section of a scale that there isn't": Case(
        in_config,
        {"scales.demo.modles": {}},
        r"^scales/demo\.yaml: unknown key 'modles', is it 'models'\?; allowed are",
    ),
    "scales as they once were": Case(
        in_config, {"scales": {"demo": {}}}, "^config: unknown key 'scales', is it 'scale'\\?; allowed are"
    ),
    "key of a ResNet": Case(
        in_config,
        {"scales.demo.models.old.network": {"architecture": "cifar_resnet", "layer": 1}},
        r"models\.old\.network: unknown key 'layer'; allowed are blocks, width, shortcut$",
    ),
    "key of a model": Case(
        in_paper, {"scales.paper.models.byol.sorce": "file"}, "models.byol: unknown key 'sorce'"
    ),
    "missing key": Case(
        in_config,
        {"scales.demo.training.epochs": DELETED},
        r"^scales/demo\.yaml: training: the key 'epochs' is missing$",
    ),
    "architecture": Case(
        in_config,
        {"scales.demo.network.architecture": "vgg"},
        "network.architecture: 'vgg' given; allowed is one of vgg11, ",
    ),
    "initialization": Case(
        in_config,
        {"scales.demo.network.initialization": "zeros"},
        "'zeros' given; allowed is one of pytorch, he",
    ),
    "family": Case(
        in_config,
        {"scales.demo.models.old.family": "vgg"},
        r"models\.old: unknown key 'family'; allowed are data",
    ),
    "data set": Case(
        in_config,
        {"scales.demo.data.dataset": "images"},
        "'images' given; allowed is one of generated, cifar10, imagenet",
    ),
    "no number of generated images": Case(
        in_config,
        {"scales.demo.data.train_images": None},
        r"^scales/demo\.yaml: data: generated images need numbers",
    ),
    "number of real test images": Case(
        in_laptop,
        {"scales.laptop.data.test_images": 5},
        r"laptop\.yaml: data\.test_images: only for generated images",
    ),
    "source": Case(
        in_config,
        {"cifar10.source": "web"},
        "'web' given; allowed is one of torchvision, binary, python, folder",
    ),
    "no root": Case(in_config, {"cifar10.root": ""}, "'' given; allowed is text of at least 1 character"),
    "device": Case(
        in_config,
        {"device": "gpu"},
        r"device: 'gpu' given; allowed is auto, cpu, cuda, or one GPU, such as cuda:1$",
    ),
    "device and a line break": Case(
        in_config, {"device": "cpu\n"}, r"^device: 'cpu\\n' given; allowed is auto, cpu"
    ),
    "not true or false": Case(
        in_config,
        {"models.cnn.training": {"augmentation": "maybe"}},
        "models.cnn.training.augmentation: 'maybe' given; allowed is true or false$",
    ),
    "threads": Case(in_config, {"threads": "many"}, f"^threads: 'many' {NEEDS_A_NUMBER}$"),
    "no urls": Case(
        in_paper,
        {"scales.paper.models.dino.weights.urls": None},
        "models.dino.weights.urls: None given; allowed is a list$",
    ),
    "stage": Case(
        in_paper,
        {"scales.paper.models.dino.recipe": ["supervised"]},
        "recipe.0: 'supervised' given; allowed is one of training, pretr",
    ),
    "layout": Case(
        in_paper,
        {"scales.paper.models.byol.weights.layout": "mine"},
        "'mine' given; allowed is one of auto, plain, module",
    ),
    "row of the paper": Case(
        in_paper,
        {"scales.paper.models.byol.paper": "boyl"},
        r"models\.byol\.paper: 'boyl' given; allowed is one of torchvision_new, .* \(is it byol\?\), or null$",
    ),
    "schedule": Case(
        in_paper,
        {"scales.paper.models.simsiam_225.training.schedule": "steps"},
        "'steps' given; allowed is one of linear, cosine, step",
    ),
    "objective": Case(
        in_paper,
        {"scales.paper.models.simsiam_225.linear.objective": "layer"},
        "'layer' given; allowed is one of supervised, simsiam, lin",
    ),
    "figure 9": Case(
        in_config,
        {"scales.demo.figure9": "odl"},
        r"^scales/demo\.yaml: figure9: 'odl' given; allowed is one of .*old",
    ),
    "pair of no model": Case(
        in_config,
        {"pairs": [["cnn", "resnet"]]},
        r"^pairs: \[cnn, resnet\] names 'resnet', which isn't trained; the types under `models` are " + TYPES,
    ),
    "pair of one": Case(
        in_config, {"pairs": [["cnn"]]}, r"pairs\.0: \['cnn'\] given; allowed is a list of at least 2"
    ),
    "pair twice": Case(
        in_config,
        {"pairs": [["cnn", "gcnn"]] * 2},
        r"pairs: \[cnn, gcnn\] is listed twice; list each pair once",
    ),
    "tests on the training images": Case(
        in_laptop,
        {"cifar10": {"source": "folder", "root": "r", "train": "train", "test": "./train", "label": "x"}},
        r"^cifar10\.test: './train' given, the folder of cifar10\.train",
    ),
    "validates on the training images": Case(
        in_paper, {"imagenet.val": "train"}, r"^imagenet\.val: 'train' given, the folder of imagenet\.train"
    ),
    "data set that is there already": Case(
        in_config,
        {"datasets": {"cifar10": {"source": "folder", "root": "r", "label": "x"}}},
        r"^datasets\.cifar10: this data set is there already",
    ),
    # values that go with no others
    "recipe without a classifier": Case(
        in_config,
        {"models.simsiam_odd.recipe": ["pretraining"]},
        r"^models\.simsiam_odd\.recipe: \[pretraining\] given; the last stage has to make a classifier, as",
    ),
    "recipe that begins with a linear layer": Case(
        in_config,
        {"models.simsiam_odd.recipe": ["linear"]},
        r"^models\.simsiam_odd\.recipe: \[linear\] given; a linear layer needs a stage before it",
    ),
    "stage twice": Case(
        in_config,
        {"scales.demo.models.old.recipe": ["training", "training"]},
        r"^scales/demo\.yaml: models\.old\.recipe: training is listed twice; list each once$",
    ),
    "an objective in place of another": Case(
        in_config,
        {"models.cnn.training.objective": "simsiam"},
        r"^scales/demo\.yaml: recipe: \[training\] given; the last stage has to make a classifier",
    ),
    "more images for a curve than there are": Case(
        in_config,
        {"beyond.curves.repair_images": 3000},
        r"^beyond\.curves\.repair_images: 3000 given; allowed is at most 2000, the training images of generated",
    ),
    "more images to measure on than there are": Case(
        in_laptop,
        {"scales.laptop.beyond.by_layer.images": 60_000},
        r"^scales/laptop\.yaml: beyond\.by_layer\.images: 60000 given; allowed is at most 50000, .* CIFAR10$",
    ),
    "points of a curve": Case(
        in_config,
        {"beyond.curves.points": 100_001},
        r"^beyond\.curves\.points: 100001 given; allowed is at most 1001$",
    ),
    "involution of pairs": Case(
        in_config,
        {"merging.matching": "involution"},
        r"^merging\.matching: 'involution' given, which matches no pair of two nets, such as \[cnn, cnn\] of `pairs`$",
    ),
    "involution of quarter turns": Case(
        in_config,
        {"models.cnn_noaug": {"symmetry": "quarter_turn", "merging": {"matching": "involution"}}},
        r"^models\.cnn_noaug\.merging\.matching: 'involution' given; the symmetry of cnn_noaug isn't of order 2$",
    ),
    "quarter turns of two channels": Case(
        in_config,
        {"network.width": 1 / 32, "models.gcnn.symmetry": "quarter_turn", "pairs": [], "beyond": {}},
        r"^network\.width: 0\.03125 given; the 2 channels of gcnn's first group conv don't split into 4 orientations",
    ),
    "seed of no net beyond the paper": Case(
        in_config,
        {"beyond.curves.seeds": [0, 7]},
        r"^beyond\.curves\.seeds: 7 is none of the seeds of cnn, cnn_inv",
    ),
    "seed of no net beyond the paper, of all types": Case(
        in_config,
        {"beyond.matchings": {"models": None, "seeds": 7}},
        r"^beyond\.matchings\.seeds: 7 is none of",
    ),
    "two models of one name": Case(
        in_config,
        {"models.cnn_inv.name": "CNN"},
        r"^models\.cnn_inv\.name: 'CNN' given, the name of cnn; give each model a name of its own$",
    ),
    "a key of the file where its section is overridden": Case(
        in_config,
        {"scales.demo.training.epochs": 0, "training.batch_size": 40},
        r"^scales/demo\.yaml: training\.epochs: 0 given; allowed is at least 1$",
    ),
    "a key on the command line where the file has the section": Case(
        in_config, {"training.epochs": 0}, r"^training\.epochs: 0 given; allowed is at least 1$"
    ),
    "a scale's key that a model's overrides": Case(
        in_config,
        {"training.warmup_epochs": 20, "scales.demo.models.cnn.training": {"epochs": 10}},
        r"^training\.warmup_epochs: 20 isn't less than the 10 epochs$",
    ),
    # what YAML makes of it
    "name that is a number": Case(
        in_config,
        {"models.cnn.name": 12},
        r"^models\.cnn\.name: 12 given; allowed is text, in quotes: YAML takes this for a number$",
    ),
    "label that is false": Case(
        in_config,
        {"cifar10.label": False},
        r"^cifar10\.label: False given; allowed is text, in quotes: YAML takes this for true or false, as yes, no, on",
    ),
    "name that is a date": Case(
        in_config,
        {"models.cnn.name": datetime.date(2023, 12, 10)},
        "is text, in quotes: YAML takes this for a date$",
    ),
    "section left empty": Case(
        in_config,
        {"scales.demo.training": None},
        r"^scales/demo\.yaml: training: nothing stands below it; write its keys there, or remove it$",
    ),
    "models left empty": Case(
        in_config, {"scales.demo.models": None}, r"^scales/demo\.yaml: models: nothing stands below it"
    ),
    "section that is a number": Case(
        in_config, {"scales.demo.merging": 500}, r"merging: 500 given; allowed are keys and their values$"
    ),
    "section inside of itself": Case(
        in_file,
        b"a: 1\nb: &b\n  c: [1, *b]\n",
        r"config\.yaml, line 3: \*b stands inside of &b, so it has no end$",
    ),
    "section inside of itself, from elsewhere": Case(
        in_config,
        {"training": endless()},
        "^training: unknown key 'training'; allowed are epochs",
    ),
    "sections without end": Case(
        in_file,
        b"a: " + b"[" * 100_000,
        r"config\.yaml, line 1: more than 100 sections inside of each other$",
    ),
    "model of 200 letters": Case(
        in_config,
        {"models": {"a" * 200: {}}},
        "^models: 'aaa.* given; allowed is text of at most 64 characters$",
    ),
    "key that is a number": Case(
        in_config, {"training": {1: 2}}, "^training: unknown key 1; allowed are epochs"
    ),
    # seeds
    "seed twice": Case(
        in_config, {"seeds": "0,1,1"}, "^seeds: 1 is listed twice in 0,1,1; list each seed once$"
    ),
    "seed twice in a scale": Case(
        in_paper, {"scales.paper.seeds": "0-2,1"}, "seeds: 1 is listed twice in 0-2,1"
    ),
    "seed twice in a list": Case(in_config, {"seeds": [0, 0]}, r"seeds: 0 is listed twice in \[0, 0\]"),
    "seeds backwards": Case(in_config, {"seeds": "2-0"}, "seeds: the range 2-0 runs backwards; write 0-2"),
    "seeds in words": Case(
        in_config, {"seeds": "first"}, r"'first' given; allowed are seeds such as 3, 0-3, or \[0, 5\]"
    ),
    "seed below 0": Case(in_config, {"seeds": -1}, "seeds: -1 given; allowed are seeds such as"),
    "seed with a fraction": Case(in_config, {"seeds": 1.0}, "seeds: 1.0 given; allowed are seeds such as"),
    "no seeds": Case(in_config, {"seeds": ""}, "seeds: '' given; allowed are seeds such as"),
    "seed of no net": Case(in_config, {"seeds": 99}, "seeds: 99 is none of the scale demo's seeds"),
    "a billion seeds": Case(
        in_config, {"seeds": "0-1000000000"}, "seeds: '0-1000000000' given; allowed are at most 10,000"
    ),
    "a billion seeds of a scale": Case(
        in_config, {"scales.demo.seeds": "0-1000000000"}, "allowed are at most 10,000 s"
    ),
    "huge seed": Case(
        in_config,
        {"scales.demo.seeds": f"0,{2**64}"},
        f"seeds: '0,{2**64}' given; allowed are .* none above 4",
    ),
    "huge seed of the data": Case(
        in_config, {"scales.demo.data.seed": 2**64}, "seed: 18446744073709551616 given; allowed"
    ),
    # numbers that can't be
    "epochs 1.5": Case(
        in_config,
        {"scales.demo.training.epochs": 1.5},
        rf"^scales/demo\.yaml: training\.epochs: 1.5 {NEEDS_A_NUMBER}",
    ),
    "epochs 2.0": Case(in_config, {"scales.demo.training.epochs": 2.0}, rf"epochs: 2.0 {NEEDS_A_NUMBER}"),
    "batch 10.0": Case(
        in_config, {"scales.demo.training.batch_size": 10.0}, rf"batch_size: 10.0 {NEEDS_A_NUMBER}"
    ),
    "images 50.0": Case(
        in_config,
        {"scales.demo.merging.images": 50.0},
        r"images: 50.0 given; allowed is a whole number, or null",
    ),
    "images 50.0 from the command line": Case(
        in_config, {"scales.demo.merging.images": "50.0"}, r"images: '50.0' given; allowed is a whole"
    ),
    "epochs 0": Case(
        in_config, {"scales.demo.training.epochs": 0}, "epochs: 0 given; allowed is at least 1$"
    ),
    "epochs true": Case(in_config, {"scales.demo.training.epochs": True}, f"epochs: True {NEEDS_A_NUMBER}"),
    "momentum": Case(
        in_config, {"scales.demo.training.momentum": 1}, "momentum: 1 given; allowed is less than 1"
    ),
    "learning rate nan": Case(
        in_config,
        {"scales.demo.training.learning_rate": float("nan")},
        "learning_rate: nan given; allowed is a finite number$",
    ),
    "learning rate inf": Case(
        in_config,
        {"scales.demo.training.learning_rate": ".inf"},
        "learning_rate: '.inf' given; allowed is a number$",
    ),
    "learning rate 1e300": Case(
        in_config,
        {"scales.demo.training.learning_rate": 1e300},
        r"learning_rate: 1e\+300 given; allowed is at most 1000$",
    ),
    "width 0.001": Case(
        in_config,
        {"scales.demo.network.width": 0.001},
        r"^scales/demo\.yaml: network\.width: 0.001 given; allowed is a multiple of 1/32 \(architecture vgg11\)$",
    ),
    "width 0.001 of a ResNet": Case(
        in_config,
        {"scales.demo.models.old.network.width": 0.001},
        r"models\.old\.network\.width: 0.001 given; allowed is at least 0.015625",
    ),
    "width 1000": Case(
        in_config, {"scales.demo.network.width": 1000}, r"width: 1000 given; allowed is at most 16 "
    ),
    "width 1e30": Case(
        in_config, {"scales.demo.network.width": 1e30}, r"width: 1e\+30 given; allowed is at most 16 "
    ),
    "group convs": Case(
        in_config,
        {"models.cnn.network": {"group_convs": 9}},
        r"models\.cnn\.network\.group_convs: 9 given; allowed is at most 8",
    ),
    "images 10^12": Case(
        in_config,
        {"scales.demo.data.train_images": 10**12},
        "images: 1000000000000 given; allowed is at most 10000000",
    ),
    "draws 10^12": Case(
        in_config,
        {"theory.draws.lemma_2_2": 10**12},
        "lemma_2_2: 1000000000000 given; allowed is at most 10000000",
    ),
    "warm-up": Case(
        in_config,
        {"scales.demo.training.warmup_epochs": 100},
        "warmup_epochs: 100 isn't less than the 14 epochs",
    ),
    "warm-up of a ResNet": Case(
        in_config,
        {"scales.demo.models.old.training.warmup_epochs": 9},
        r"^scales/demo\.yaml: models\.old\.training\.warmup_epochs: 9 isn't less than the 4 epochs",
    ),
    "invariance never on": Case(
        in_config,
        {"models.cnn_inv.training": {"invariance_from": 1.0}},
        r"invariance_from: 1.0 given; allowed is less than 1, or null$",
    ),
    "invariance on after the last epoch": Case(
        in_config,
        {"models.cnn_inv.training": {"invariance_from": 0.9, "epochs": 4, "warmup_epochs": 1}},
        r"^models\.cnn_inv\.training\.invariance_from: 0.9 given; .* never be on in 4 epochs; allowed is at most 0.75",
    ),
    "padding": Case(
        in_config,
        {"scales.demo.training.crop_padding": 1000},
        r"crop_padding: 1000 given; allowed is less than the images' 32 pixels",
    ),
    "padding of the image": Case(
        in_config, {"scales.demo.training.crop_padding": 32}, "padding: 32 given; allowed is less"
    ),
    "batch": Case(
        in_config,
        {"scales.demo.training.batch_size": 4001},
        r"training\.batch_size: 4001 given; allowed is at most 2000, the training images of generated",
    ),
    "batch of a ResNet": Case(
        in_config,
        {"scales.demo.models.old.training.batch_size": 4001},
        r"models\.old\.training\.batch_size: 4001 given; allowed is at most 2000",
    ),
    "batch of Figure 3": Case(
        in_config,
        {"flipped_training.batch_size": 4001},
        r"^flipped_training\.batch_size: 4001 given; allowed is at most 2000",
    ),
    "batch and processes": Case(
        in_paper,
        {"scales.paper.models.torchvision_old_inv.training.processes": 3},
        r"training\.batch_size: 256 can't be shared evenly by 3 processes",
    ),
    "matched images": Case(
        in_laptop,
        {"scales.laptop.merging.images": 50_001},
        r"^scales/laptop\.yaml: merging\.images: 50001 given; .* at most 50000, .*CIFAR10",
    ),
    "images for the invariance error": Case(
        in_config,
        {"scales.demo.merging.invariance_images": 4001},
        r"^scales/demo\.yaml: merging\.invariance_images: 4001 given; allowed is at most 2000",
    ),
    "images for the invariance error of a choice": Case(
        in_laptop,
        {"scales.laptop.data.train_images": 1000},
        r"^scales/laptop\.yaml: merging\.images: 10000 given; allowed is at most 1000, ",
    ),
    "training images": Case(
        in_laptop,
        {"scales.laptop.data.train_images": 60_000},
        r"data\.train_images: 60000 given; allowed is at most 50000",
    ),
    "all of ImageNet to match on": Case(
        in_paper,
        {"scales.paper.models.dino.merging.images": None},
        r"merging\.images: None given; allowed is a number",
    ),
    "image size of a VGG11": Case(
        in_config,
        {"models.cnn.image_size": 16},
        r"^models\.cnn\.image_size: 16 given; vgg11 takes 32 to 63 pixels$",
    ),
    "crop beyond the image": Case(
        in_paper,
        {"scales.paper.models.dino.data.resize": 200},
        r"data\.resize: 200 given; a crop of 224 pixels",
    ),
    # names that break file names, pages or pictures
    "model named all": Case(
        in_config, {"models.all": {}}, "^models: 'all' given; allowed are small letters and digits"
    ),
    "model a__b": Case(
        in_config, {"models.a__b": {}}, "^models: 'a__b' given; allowed are small letters and digits"
    ),
    "model and a line break": Case(
        in_config, {"models.a\n": {}}, r"^models: 'a\\n' given; allowed are small letters"
    ),
    "markup": Case(
        in_config,
        {"models.cnn.name": "<b>CNN</b>"},
        r"^models\.cnn\.name: '<b>CNN</b>' given; allowed is text",
    ),
    "formula": Case(
        in_config, {"models.cnn.name": r"$\bad$"}, r"^models\.cnn\.name: '\$.* given; allowed is text of one"
    ),
    "label of two lines": Case(
        in_config, {"cifar10.label": "a\n| b"}, r"^cifar10\.label: 'a\\n\| b' given; allowed is"
    ),
    # config files
    "key twice": Case(
        in_file,
        b"scale: demo\nseeds: 0\nscale: paper\n",
        r"yaml, line 3: the key 'scale' stands in line 1 already",
    ),
    "key twice below": Case(
        in_file, b"a:\n  b: [{c: 1, c: 2}]\n", r"config\.yaml, line 2: the key 'c' stands in line 2"
    ),
    "Latin-1": Case(
        in_file, "scale: demo\nlabel: Bökman\n".encode("latin-1"), r"yaml, line 2: the byte 0xf6 isn't UTF-8"
    ),
    "open bracket": Case(
        in_file,
        b"scale: demo\npairs: [[a, b]\n\nseeds: 0\n",
        r"config\.yaml, line \d: no YAML \(did not find",
    ),
    "tab": Case(in_file, b"scale: demo\na:\n\tb: 1\n", r"config\.yaml, line 3: no YAML \("),
    "control character": Case(in_file, b"scale: \x07\n", r"config\.yaml.*: no YAML \("),
    "no keys": Case(in_file, b"demo\n", r"config\.yaml: no keys in it"),
    "empty file": Case(in_file, b"", r"config\.yaml: no keys in it"),
    "seeds in octal": Case(
        in_file, b"scale: demo\nseeds: 0_1\n", r"config\.yaml, line 2: seeds: 0_1 given; allowed are"
    ),
    # records
    "accuracy 17": Case(
        in_records,
        train(accuracy=17),
        r"train/cnn-\w{8}/0\.json can't be right \(accuracy: 17 given; allowed is less than or equal to 1\): "
        "delete it, and it is made again$",
    ),
    "accuracy -1": Case(
        in_records, train(accuracy=-1), r"\(accuracy: -1 given; allowed is greater than or equal to 0\)"
    ),
    "accuracy true": Case(
        in_records, train(accuracy=True), r"\(accuracy: True given; allowed is a valid number\)"
    ),
    "accuracy in quotes": Case(
        in_records, train(accuracy="0.5"), r"\(accuracy: '0.5' given; allowed is a valid number\)"
    ),
    "status": Case(
        in_records,
        train(status="fine"),
        r"\(status: 'fine' given; allowed is 'ok', 'diverged', 'degenerate' or 'absent'\)",
    ),
    "null for an object": Case(
        in_records, train(settings=None), r"\(settings: None given; allowed is a valid object\)"
    ),
    "null for a merge's accuracy": Case(
        in_records, flip(accuracy=None), r"\(accuracy: None given; allowed is a valid object\)"
    ),
    "hash": Case(in_records, train(outputs={"checkpoint": "0x1"}), r"\(outputs\.checkpoint: '0x1' given; "),
    "other model": Case(
        in_records,
        train(model="gcnn"),
        r"train/cnn-\w{8}/0\.json is of train/gcnn-\w{8}/0, not of train/cnn-\w{8}/0: give each",
    ),
    "other seed": Case(
        in_records,
        train(seed=1),
        r"train/cnn-\w{8}/0\.json is of train/cnn-\w{8}/1, not of train/cnn-\w{8}/0",
    ),
    "swapped": Case(
        in_records,
        {"train/cnn-0.json": records.train("cnn", 1), "train/cnn-1.json": records.train("cnn", 0)},
        r"train/cnn-\w{8}/0\.json is of train/cnn-\w{8}/1, not of train/cnn-\w{8}/0: give each record its name back",
    ),
    "pair the wrong way round": Case(
        in_records,
        {"pair_merge/cnn-0--gcnn-0.json": records.pair("gcnn", 0, "cnn", 0)},
        r"is of pair_merge/gcnn--cnn-\w{8}/0--0, not",
    ),
    "other kind": Case(
        in_records, {"train/cnn-0.json": FLIP}, r"is of flip_merge/cnn-\w{8}/0, not of train/cnn-\w{8}/0"
    ),
    "other statement": Case(
        in_records,
        {"theory/lemma_e_1.json": THEORY},
        r"is of theory/lemma_2_2-\w{8}/0, not of theory/lemma_e_1-\w{8}/0",
    ),
    "no permutation": Case(
        in_records,
        flip(permutations={"conv1": [0, 0]}),
        r"\(permutations\.conv1: \[0, 0\] given; allowed is each of 0 to 1 once\)",
    ),
    "permutation from 1": Case(
        in_records, flip(permutations={"conv1": [1, 2]}), r"permutations\.conv1: \[1, 2\] given; allowed"
    ),
    "no JSON": Case(
        in_records,
        {"train/cnn-0.json": '{"kind": "train", '},
        r"train/cnn-\w{8}/0\.json is not valid JSON \(.*\): delete it, and it is made again$",
    ),
    "empty": Case(in_records, {"train/cnn-0.json": ""}, r"cnn-\w{8}/0\.json is not valid JSON"),
    "no record": Case(
        in_records, {"train/cnn-0.json": "[1, 2]"}, r"cnn-\w{8}/0\.json lacks the field 'kind'"
    ),
    "null": Case(in_records, {"train/cnn-0.json": "null"}, r"cnn-\w{8}/0\.json lacks the field 'kind'"),
    "no kind of record": Case(
        in_records, {"train/cnn-0.json": {"kind": "letter"}}, r"cnn-\w{8}/0\.json lacks the field 'kind'"
    ),
    "kind that is a list": Case(
        in_records, {"train/cnn-0.json": {"kind": []}}, r"cnn-\w{8}/0\.json lacks the field 'kind'"
    ),
    "bytes": Case(in_records, {"train/cnn-0.json": "\x00\x01"}, r"cnn-\w{8}/0\.json is not valid JSON"),
    "not UTF-8": Case(
        in_records,
        {"train/cnn-0.json": lambda path: path.write_bytes(b'"\xe9"')},
        r"cnn-\w{8}/0\.json is not valid JSON",
    ),
    "deeply nested": Case(
        in_records,
        {"train/cnn-0.json": "[" * 100_000},
        r"cnn-\w{8}/0\.json is not valid JSON \(recursion",
    ),
    "nan": Case(
        in_records,
        train(accuracy=float("nan")),
        r"\(accuracy: nan given; allowed is a finite number\)",
    ),
    "folder for a record": Case(
        in_records, {"train/cnn-0.json": Path.mkdir}, r"cnn-\w{8}/0\.json can't be read \(Is a directory\): "
    ),
    "link to itself": Case(
        in_records,
        {"train/cnn-0.json": a_link_to_itself},
        r"cnn-\w{8}/0\.json can't be read \(Too many levels",
    ),
    "file for the records' folder": Case(
        in_records, {"train": ""}, r"cnn-\w{8}/0\.json can't be read \(Not a directory\)"
    ),
    # checkpoints and other files
    "weights that are no numbers": Case(
        anywhere,
        net_of(float("nan")),
        r"cnn-0\.safetensors has weights that are no numbers, in conv1\.weight",
    ),
    "infinite weights": Case(
        anywhere, net_of(float("inf")), r"cnn-0\.safetensors has weights that are no numbers"
    ),
    "header that is no JSON": Case(
        anywhere, net_of(text=header({"relusym": "{"})), r"was not written by this project: delete it, and"
    ),
    "header of another project": Case(
        anywhere, net_of(text=header({"relusym": "[1]"})), "was not written by this project"
    ),
    "broken header": Case(
        anywhere,
        net_of(text=b'\x10\0\0\0\0\0\0\0{"broken": \n\n'),
        r"is truncated or no safetensors file \(.*\): delete it",
    ),
    "empty checkpoint": Case(anywhere, net_of(text=b""), "is truncated or no safetensors file"),
    "another net's checkpoint": Case(
        anywhere, net_of(1.0), "doesn't hold a net of this project: delete it, and it is made"
    ),
    "folder for a checkpoint": Case(
        anywhere, a_folder_for_a_checkpoint, r"net\.safetensors can't be read \(Is a directory\)"
    ),
    "unreadable filters": Case(
        anywhere, a_looping_checkpoint, r"net\.safetensors can't be read \(Too many levels"
    ),
    "weights from elsewhere that are no numbers": Case(
        anywhere, weights_without_numbers, r"mine\.pth doesn't fit the net: not all numbers: fc\.bias"
    ),
    "cost in words": Case(
        in_records,
        train(cost={"job_seconds": "long"}),
        r"\(cost\.job_seconds: 'long' given; allowed is a valid number\)",
    ),
    "cost below 0": Case(
        in_records, train(cost={"job_seconds": -4.0}), r"\(cost\.job_seconds: -4\.0 given; allowed"
    ),
    "records without their settings": Case(
        in_records,
        {"train/cnn-0.json": lambda path: path.write_text(json.dumps(TRAIN), encoding="utf-8")},
        r"cnn-\w{8}/0\.json has no settings\.json beside it: give its folder the file back",
    ),
    "garbage in the paper's table": Case(
        anywhere,
        papers(2, b"model,accuracy_mean\ncnn,high\n"),
        r"table2\.csv: 'high' in accuracy_mean is no number",
    ),
    "the paper's table without its key": Case(
        anywhere, papers(2, b"net,accuracy_mean\ncnn,0.9\n"), r"table2\.csv: .*is"
    ),
    "bytes in the paper's table": Case(anywhere, papers(4, b"\xff\x00,\n"), r"table4\.csv: no table \("),
    "file for all results": Case(
        anywhere, in_the_way_of("results"), "results isn't a folder, and one belongs there: move it"
    ),
    "file for the scale": Case(anywhere, in_the_way_of("results/demo"), "results/demo isn't a folder"),
    "file for the tables": Case(
        anywhere, in_the_way_of("results/demo/tables"), "results/demo/tables isn't a folder"
    ),
    "file for the logs": Case(
        anywhere, in_the_way_of("results/demo/logs"), "results/demo/logs isn't a folder"
    ),
    "file for prepared images": Case(anywhere, in_the_way_of("data"), "data isn't a folder"),
    "no qsub": Case(
        anywhere, no_such_scheduler, "^qsub-of-nowhere: not found; run snakemake on a node that may submit"
    ),
    # images
    "no folder": Case(in_images, lambda root: root / "nowhere", "nowhere is missing: set data.root"),
    "no split": Case(in_images, no_split, "test is missing: set data.train and data.test"),
    "no image": Case(
        in_images,
        bytes_at("train/dog/2.png", b"no picture"),
        r"dog/2\.png can't be read \(.*\): replace or remove",
    ),
    "16 bits": Case(
        in_images,
        image_at("train/dog/2.png", Image.new("I;16", (32, 32), 40_000)),
        r"dog/2\.png has more than 8 bits a channel \(mode I;16",
    ),
    "32 bits": Case(
        in_images,
        image_at("train/dog/2.tif", Image.new("F", (32, 32), 0.5)),
        r"dog/2\.tif has more than 8 bits a channel \(mode F",
    ),
    "bomb": Case(
        in_images, a_bomb, r"dog/2\.png can't be read \(.*decompression bomb.*\): replace or remove it"
    ),
    "other size": Case(
        in_images,
        image_at("test/cat/1.png", Image.new("RGB", (9, 8))),
        r"cat/1\.png is 9×8 pixels, not 32×32 as",
    ),
    "label of no class": Case(
        anywhere, label_beyond_the_classes, r"^the train images of my images have the label 7 and 1 classes"
    ),
    # images that a folder holds, before they are prepared
    "16 pixels": Case(
        with_images,
        (3, 16, {}),
        r"^scales/laptop\.yaml: image_size: mine has images of 16×16 pixels; vgg11 takes 32 to 63",
    ),
    "28 pixels": Case(with_images, (3, 28, {}), "mine has images of 28×28 pixels"),
    "64 pixels": Case(with_images, (3, 64, {}), "mine has images of 64×64 pixels"),
    "64 pixels of one model": Case(
        with_images,
        (
            *(3, 64),
            {
                "pairs": [],
                "scales.laptop.beyond": {},
                "scales.laptop.image_size": 32,
                "models.cnn.image_size": 64,
            },
        ),
        r"^scales/laptop\.yaml: models\.cnn\.image_size: 64 given; vgg11 takes",
    ),
    "batch of a folder": Case(
        with_images,
        (3, 32, {"models.cnn.training.batch_size": 5}),
        r"^scales/laptop\.yaml: models\.cnn\.training\.batch_size: 5 given; allowed is at most 3, .*mine",
    ),
    "matched images of a folder": Case(
        with_images,
        (3, 32, {"models.cnn.merging.images": 4}),
        r"^scales/laptop\.yaml: models\.cnn\.merging\.images: 4 given; allowed is at most 3",
    ),
    "padding of a folder": Case(
        with_images,
        (3, 32, {"models.cnn.training.crop_padding": 32}),
        r"^scales/laptop\.yaml: models\.cnn\.training\.crop_padding: 32 given; allowed is less",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_one_line(case, tmp_path):
    line = case.where(case.given, tmp_path)
    assert "\n" not in line and re.search(case.told, line), line


# ---- what Snakemake is given: the last line of a run that ends before its first job


class Run(NamedTuple):
    """A run that can't be.

    Attributes:
        spoil: what is wrong with the checkout; a function of it, which returns how to mend it.
        given: on the command line.
        told: a pattern in the last line.
        by: what runs it; None: as the user is.
    """

    spoil: Callable[[Clone], Callable[[], Any]]
    given: list[str]
    told: str
    by: list[str] | None = None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A tiny clone; each case spoils it and mends it again."""
    return set_to_tiny(Clone(tmp_path_factory.mktemp("bad") / "clone"))


def nothing(clone):
    return lambda: None


def config(change):
    """Other bytes of config.yaml."""

    def spoil(clone):
        path = clone.folder / "config.yaml"
        before = path.read_bytes()
        path.write_bytes(change(before))
        return lambda: path.write_bytes(before)

    return spoil


def mine(content):
    """A config file of the user's own."""

    def spoil(clone):
        path = clone.folder / "mine.yaml"
        path.write_bytes(content)
        return path.unlink

    return spoil


def no_notes(clone):
    """A file where Snakemake keeps its notes."""
    path, aside = clone.folder / ".snakemake", clone.folder / "aside"
    if path.exists():
        path.rename(aside)
    path.touch()

    def mend():
        path.unlink()
        if aside.exists():
            aside.rename(path)

    return mend


def rights(where, mode):
    """A file that is there, or a folder, with other rights."""

    def spoil(clone):
        path = clone.folder / (where(clone) if callable(where) else where)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(TRAIN), encoding="utf-8")
        else:
            path.mkdir(exist_ok=True)
        before = path.stat().st_mode
        path.chmod(mode)

        def mend():
            path.chmod(before)
            shutil.rmtree(clone.folder / "results", ignore_errors=True)

        return mend

    return spoil


def tree(side):
    """A folder of images with these sides."""

    def spoil(clone):
        for split in ("train", "test"):
            (clone.folder / "images" / split / "cat").mkdir(parents=True)
            for i in range(400):
                Image.new("RGB", (side, side)).save(clone.folder / "images" / split / "cat" / f"{i}.png")
        return lambda: shutil.rmtree(clone.folder / "images")

    return spoil


DRY = ["--dry-run"]
MINE = {"source": "folder", "root": "images", "label": "mine"}
# root may read and write everything; without these capabilities it obeys files' rights as others do
AS_OTHERS = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]
RUNS = {
    "empty variable": Run(
        nothing, [*DRY, "--config", "seeds="], r"^config error: seeds: nothing given \(is a variable"
    ),
    "seeds 0_1": Run(
        nothing, [*DRY, "--config", "seeds=0_1"], "^config error: seeds: 0_1 given; allowed are seeds such as"
    ),
    "setting": Run(
        nothing, [*DRY, "--config", "threads=2.0"], rf"^config error: threads: 2.0 {NEEDS_A_NUMBER}$"
    ),
    "target": Run(
        nothing,
        [*DRY, "tabel2"],
        r"^error: nothing makes 'tabel2' at scale tiny; is it table2\? Targets are .*table2, .*claims",
    ),
    "forced rule": Run(
        nothing, [*DRY, "-R", "trian"], r"^error: nothing makes 'trian' at scale tiny; is it train\?"
    ),
    "net of no seed": Run(
        nothing,
        [*DRY, "results/tiny/figures/filters/conv1-cnn-7.png"],
        r"^error: nothing makes 'results/tiny/figures/filters/conv1-cnn-7\.png' at scale tiny\. Targets are",
    ),
    "pair that isn't asked for": Run(
        nothing,
        [*DRY, "results/tiny/records/pair_merge/cnn--cnn-01234567/0--1.json"],
        "^error: nothing makes 'results/tiny/rec",
    ),
    "key twice": Run(
        config(lambda text: b"scale: demo\n" + text),
        DRY,
        r"^config error: config\.yaml, line \d+: the key 'scale' stands in line 1 already; keep one$",
    ),
    "Latin-1": Run(
        config(lambda text: text + "# Bökman".encode("latin-1")),
        DRY,
        r"^config error: config\.yaml, line \d+: the byte 0xf6 isn't UTF-8; save the file as UTF-8$",
    ),
    "no YAML": Run(
        config(lambda text: b"a: [\n" + text), DRY, r"^config error: config\.yaml, line \d+: no YAML \("
    ),
    "config file that isn't there": Run(
        nothing,
        [*DRY, "--configfile", "mine.yaml"],
        r"^config error: mine\.yaml can't be read \(No such file or directory\)$",
    ),
    "config file in Latin-1": Run(
        mine("scale: tiny # Bökman".encode("latin-1")),
        [*DRY, "--configfile", "mine.yaml"],
        r"^config error: mine\.yaml, line 1: the byte 0xf6 isn't UTF-8; save the file as UTF-8$",
    ),
    "config file that is no YAML": Run(
        mine(b"scale: tiny\nseeds: [0\n"),
        [*DRY, "--configfile", "mine.yaml"],
        r"^config error: mine\.yaml, line \d: no YAML \(",
    ),
    "notes of Snakemake": Run(
        no_notes, DRY, r"^error: \.snakemake isn't a folder, and one belongs there: move it away$"
    ),
    "checkout that can't be written": Run(
        rights(".snakemake", 0o555),
        [*DRY, "figure10"],
        r"^error: \.snakemake can't be written \(Permission denied\)",
        AS_OTHERS,
    ),
    "GPU that isn't there": Run(
        nothing, ["table1", "--config", "device=cuda:99"], "^error: device: cuda:99 "
    ),
    "images of a folder": Run(
        tree(16),
        [
            "table1",
            "--config",
            f"cifar10={MINE}",
            "models={cnn: {data: {dataset: cifar10, train_images: 300}}}",
            "pairs=[]",
        ],
        r"^error: scales/tiny\.yaml: models\.cnn\.image_size: mine has images of 16×16 pixels; vgg11 takes 32 to 63",
    ),
    "no qsub": Run(
        nothing, ["table1", "--profile", "profiles/pbs"], "^  q(sub|del): not found; run snakemake on a node"
    ),
}


def by_others():
    if os.geteuid():
        return []
    if shutil.which(AS_OTHERS[0]) is None:
        pytest.skip(f"root may read everything, and there is no {AS_OTHERS[0]} to take that from it")
    return AS_OTHERS


@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
def test_snakemake_ends_with_one_line_before_any_job(checkout, case):
    by = by_others() if case.by else []
    if "profiles/pbs" in case.given and shutil.which("qsub"):
        pytest.skip("there is a qsub here")
    mend = case.spoil(checkout)
    try:
        run = checkout.snakemake(*case.given, by=by)
        made = [
            path for path in checkout.folder.glob("results/tiny/*/*/*") if path.suffix in (".json", ".log")
        ]
    finally:
        mend()
    assert run.returncode != 0 and re.search(case.told, last_line(run)), run.stdout
    assert not any(word in run.stdout for word in ("Traceback", "File ", "Exception", "Error in")), run.stdout
    assert [path.name for path in made] in ([], ["cnn-0.json"])  # no job began


def a_folder_for_a_record(clone):
    path = clone.record("train", "cnn-0")
    path.mkdir(parents=True)
    return lambda: shutil.rmtree(clone.folder / "results")


UNREADABLE = {
    "Permission denied": rights(lambda clone: clone.path("records", "train", "cnn-0"), 0),
    "Is a directory": a_folder_for_a_record,
}


@pytest.mark.parametrize("why", UNREADABLE)
def test_a_record_that_can_not_be_read_is_named_and_all_that_does_not_need_it_goes_on(checkout, why):
    by = by_others() if why == "Permission denied" else []
    name = checkout.path("records", "train", "cnn-0")
    line = f"record {name} can't be read ({why}): make it readable, or delete it"
    mend = UNREADABLE[why](checkout)
    try:
        planned = checkout.snakemake(*DRY, "table1", by=by)
        run = checkout.snakemake("figure10", by=by)
    finally:
        mend()
    assert planned.returncode == 0 and planned.stdout.count(f"notice: {line}\n") == 1
    assert "3 train: cnn-1, gcnn-0, gcnn-1\n" in planned.stdout
    assert run.returncode == 0 and f"notice: {line}\n" in run.stdout and "Traceback" not in run.stdout


def last_line(run):
    return run.stdout.strip().splitlines()[-1]


def test_a_job_that_fails_on_its_input_tells_the_line_and_leaves_no_output(checkout):
    source = {**MINE, "root": "nowhere"}
    given = [
        "--config",
        f"cifar10={source}",
        "models={cnn: {data: {dataset: cifar10, train_images: 300}}}",
        "pairs=[]",
    ]
    config = config_of(checkout.folder)
    config["cifar10"] |= source
    config |= {"pairs": [], "models": {"cnn": {"data": {"dataset": "cifar10", "train_images": 300}}}}
    settings = Settings.of(config, [checkout.folder / "scales"])
    prepared = f"data/{settings.prepared('cnn')}.safetensors"
    run = checkout.snakemake(prepared, *given)
    assert run.returncode != 0
    told = "data folder nowhere is missing: set cifar10.root to the folder that holds train/ and test/"
    assert f"\nerror in rule prepare_data: {told}\n" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (checkout.folder / prepared).exists()
    log = (checkout.folder / prepared).with_suffix(".log")
    assert log.read_text(encoding="utf-8") == f"error: {told}\n"


# ---- what is taken all the same


def test_images_that_only_their_label_calls_cifar10_are_doubted_when_they_are_prepared(checkout):
    mend = tree(32)(checkout)
    source = MINE | {"label": "CIFAR10"}
    config = config_of(checkout.folder)
    config["cifar10"] |= source
    config |= {"pairs": [], "models": {"cnn": {"data": {"dataset": "cifar10", "train_images": 300}}}}
    folders = [checkout.folder / "scales"]
    to = checkout.folder / f"data/{Settings.of(config, folders).prepared('cnn')}.safetensors"
    models = "models={cnn: {data: {dataset: cifar10, train_images: 300}}}"
    given = "--config", f"cifar10={source}", models, "pairs=[]"
    try:
        run = checkout.snakemake(str(to.relative_to(checkout.folder)), *given)
    finally:
        mend()
    assert run.returncode == 0, run.stdout
    line = cifar10.doubt(data.digest(to))
    assert run.stdout.count(f"notice: {line}\n") == 1
    assert to.with_suffix(".log").read_text(encoding="utf-8").startswith(f"{line}\n")


def test_values_that_the_command_line_leaves_as_text_are_taken_for_what_they_are():
    given = {"training": {"learning_rate": "1e-2"}, "models": {"cnn": {"name": "12"}, "old": "null"}}
    run = {"seeds": "0,2", "threads": "2", "cifar10": config_of(ROOT)["cifar10"] | {"root": "{odd folder"}}
    settings = settings_of(**given, **run, filters={"zero_filter": "0.2"}, image_size="null")
    assert settings.seeds == [0, 2] == seed_list([0, 2])
    assert settings.run.threads == 2
    assert settings.train("cnn")["training"]["learning_rate"] == 0.01
    assert settings.run.cifar10.root == "{odd folder"
    assert settings.sections.filters.zero_filter == 0.2
    assert settings.models["cnn"].name == "12" and settings.models["cnn"].image_size is None
    assert "old" not in settings.models


def test_what_is_passed_over_or_converted_in_a_folder_of_images_is_listed(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("L", (40, 40), 7).save(tmp_path / split / "cat" / "0.png")
        Image.new("RGBA", (40, 40), (1, 2, 3, 4)).save(tmp_path / split / "cat" / "1.png")
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    (tmp_path / "train" / "Thumbs.db").touch()
    lines = data.prepare({"kind": "folder", "root": str(tmp_path)}, tmp_path / "set.safetensors")
    train, test = tmp_path / "train", tmp_path / "test"
    assert lines == [
        f"passed over, since they are no images: {train / 'Thumbs.db'}, {train / 'cat' / 'notes.txt'}",
        *(
            f"{split}: 1 images of mode {mode} were converted to RGB"
            for split in (train, test)
            for mode in ("L", "RGBA")
        ),
        f"{tmp_path}: images of 40×40 pixels are kept as they are; image_size scales them",
    ]
    pixels = image_set.load(tmp_path / "set.safetensors", "train").images[:, 0, 0].tolist()
    assert pixels == [[7, 7, 7], [1, 2, 3]]


class Trap:
    """Unpickled, it makes the folder `sprung`."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def test_a_pickled_checkpoint_is_refused_without_running_what_it_holds(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match=r"net\.safetensors is truncated or no safetensors file"):
        load_net(path, torch.device("cpu"))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "sprung").exists()  # the trap works


# ---- records


@pytest.mark.parametrize("kind", WHOLE)
def test_every_missing_field_of_a_record_is_named(tmp_path, kind):
    path = tmp_path / "record.json"
    write_record(path, WHOLE[kind])
    assert load_record(path) == WHOLE[kind]
    fields = [field for each in fields_of(WHOLE[kind]) for field in each.model_fields.items()]
    needed = dict.fromkeys(["kind", *(name for name, field in fields if field.is_required())])
    assert {"settings", "cost"} < {*needed}
    for field in needed:
        damaged = {key: value for key, value in WHOLE[kind].items() if key != field}
        with pytest.raises(ValueError, match=rf"lacks the field '{field}'"):
            write_record(path, damaged)
        path.write_text(json.dumps(damaged), encoding="utf-8")
        complaint = rf"record\.json lacks the field '{field}'"
        if field == "settings":
            complaint = r"record\.json has no settings\.json beside it"
            path.with_name("settings.json").unlink()
        with pytest.raises(UserError, match=complaint):
            load_record(path)
        write_record(path, WHOLE[kind])


def test_a_merge_that_is_left_out_needs_no_measurements(tmp_path):
    for record in (
        records.flip("cnn", 0, status="left_out"),
        records.pair("cnn", 0, "gcnn", 0, status="left_out"),
    ):
        path = tmp_path / record["kind"] / "record.json"
        write_record(path, record)
        assert load_record(path) == record


def test_a_record_never_holds_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError):
        write_record(tmp_path / "record.json", TRAIN | {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_every_committed_record_is_as_records_have_to_be():
    """What was written before there was a schema."""
    paths = [*(Path(__file__).parents[1] / "results").glob("*/records/*/*/[0-9]*.json")]
    assert paths
    for path in paths:
        load_record(path)
