"""Errors in a config: one line that names the key and what is allowed, before anything is planned."""

import contextlib
import datetime
import os
import re

import pytest
from conftest import ROOT, config_of, refused, save_images, scale_of, set_keys, settings_of, write_scale
from PIL import Image

from relusym import data
from relusym.config.checks import check_images
from relusym.config.reading import check_file
from relusym.config.settings import Settings
from relusym.data import extent_of
from relusym.errors import UserError
from relusym.schema import seed_list

MINE = {"source": "folder", "root": "r", "train": "train", "label": "x"}
A_NUMBER = "a whole number"
DEVICES = "auto, cpu, cuda, or one GPU, such as cuda:1$"
SEEDS = r"seeds such as 3, 0-3, or \[0, 5\]"
SCALES = "demo", "laptop", "paper"


def refusal(folder, where, changes, run=()):
    """The line that refuses a config with these changes, to the run's config (`run`) or to a scale's file."""
    (line,) = refusals(folder, where, changes, run)
    return line


def refusals(folder, where, changes, run=()):
    """Like `refusal`, for several lines."""
    scale = where if where in SCALES else "demo"
    config, sections = config_of(ROOT) | {"scale": scale}, scale_of(ROOT, scale)
    set_keys(sections if where in SCALES else config, changes)
    set_keys(config, dict(run))
    write_scale(folder, scale, sections)
    with contextlib.chdir(folder), pytest.raises(UserError) as error:
        Settings.of(config, ["scales", ROOT / "scales"])
    return str(error.value).split("\n")


def file_of(where):
    """The beginning of a line about a scale's file."""
    return f"scales/{where}.yaml: " if where in SCALES else ""


def endless():
    """A section that contains itself."""
    section = {}
    section["training"] = section
    return section


VALUES = [  # where, key, value, and a pattern of what is allowed
    ("run", "scale", "papr",
     rf"one of {', '.join(sorted(path.stem for path in ROOT.glob('scales/*.yaml')))} \(is it paper\?\)$"),
    ("run", "scale", None, "text$"),
    ("run", "device", "gpu", DEVICES),
    ("run", "device", "cpu\n", DEVICES),
    *(("run", "device", device, DEVICES)
     for device in ("mps", "CPU", "cuda:", "cuda:-1", "cuda:٣", "cuda:0,1", " cuda")),
    ("run", "device", ["cuda"], "text$"),
    ("run", "device", 0, "text, in quotes: YAML takes this for a number$"),
    ("run", "device", True, "text, in quotes: YAML takes this for true or false, as yes, no, on and off$"),
    ("run", "threads", "many", f"{A_NUMBER}$"),
    *(("run", "threads", number, "at least 1$") for number in (0, -1)),
    *(("run", key, 10**9, "at most 1024$") for key in ("threads", "jobs_per_gpu")),
    ("run", "cifar10.source", "web", "one of torchvision, binary, python, folder"),
    ("run", "cifar10.root", "", "text of at least 1 character"),
    ("demo", "network.architecture", "vgg", "one of vgg11, "),
    ("demo", "network.architecture", ["vgg11"], "one of vgg11, "),
    ("demo", "network.initialization", "zeros", "one of pytorch, he"),
    ("demo", "data.dataset", "images", "one of generated, cifar10, imagenet"),
    ("run", "models.cnn.training.augmentation", "maybe", "true or false$"),
    ("paper", "models.dino.weights.urls", None, "a list$"),
    ("paper", "models.dino.recipe.0", ["supervised"], "one of training, pretr"),
    *(("paper", "models.dino.weights.urls.0", [f"https://h/{path}"], "a URL in ASCII") for path in (
     "a.pth#sha256=12", "a.pth#", "../a.pth", "a/./b", "a/..", "a b", "ä.pth", "\0.pth", "a\n")),
    *(("paper", "models.dino.weights.urls.0", [url], "a URL in ASCII")
     for url in ("ftp://h/a", "file:///", "https:///", "file://..", "/a.pth", "h/a.pth", "")),
    ("paper", "models.byol.weights.layout", "mine", "one of auto, plain, module"),
    ("paper", "models.byol.paper", "boyl", r"one of torchvision_new, .* \(is it byol\?\), or null$"),
    ("paper", "models.simsiam_225.training.schedule", "steps", "one of linear, cosine, step"),
    ("paper", "models.simsiam_225.linear.objective", "layer", "one of supervised, simsiam, lin"),
    ("demo", "figure9", "odl", "one of .*old"),
    ("run", "pairs.0", [["cnn"]], "a list of at least 2"),
    # impossible numbers
    ("demo", "training.epochs", 1.5, A_NUMBER),
    ("demo", "training.epochs", 2.0, A_NUMBER),
    ("demo", "training.epochs", 0, "at least 1$"),
    ("run", "training.epochs", 0, "at least 1$"),  # overrides the section of the file
    ("demo", "training.epochs", True, A_NUMBER),
    ("demo", "merging.images", 50.0, f"{A_NUMBER}, or null"),
    ("demo", "merging.images", "50.0", A_NUMBER),  # as from the command line
    ("demo", "training.momentum", 1, "less than 1"),
    ("demo", "training.learning_rate", float("nan"), "a finite number$"),
    ("demo", "training.learning_rate", ".inf", "a number$"),
    ("demo", "training.learning_rate", 1e300, "at most 1000$"),
    ("demo", "network.width", 0.001, r"a multiple of 1/32 \(architecture vgg11\)$"),
    ("demo", "models.old.network.width", 0.001, "at least 0.015625"),
    ("demo", "network.width", 1000, "at most 16 "),
    ("demo", "network.width", 1e30, "at most 16 "),
    ("run", "models.cnn.network.group_convs", 9, "at most 8"),
    ("demo", "data.train_images", 10**12, "at most 10000000"),
    ("demo", "data.seed", 2**64, "at most 4294967295$"),
    ("run", "theory.draws.lemma_2_2", 10**12, "at most 10000000"),
    ("run", "beyond.curves.points", 100_001, "at most 1001$"),
    ("run", "models.cnn_inv.training.invariance_from", 1.0, "less than 1, or null$"),
    *(("run", "device", device, DEVICES) for device in ("cuda:00", "cuda:01")),
    *(("run", "threads", text, A_NUMBER) for text in ("1_0", "٣", " 2", "0x2", "1 0")),
    # more than there are
    ("laptop", "beyond.by_layer.lie_images", 10_001, "at most 10000, the test images of CIFAR10"),
    ("run", "training.snapshots", [0, 99], "at most 14, the epochs of the training$"),
    ("demo", "models.old.training.snapshots", [5], "at most 4, the epochs of the training$"),
    ("demo", "training.crop_padding", 32, "less than the images' 32 pixels"),
    ("demo", "training.batch_size", 4001, "at most 2000, the training images of generated"),
    ("demo", "models.old.training.batch_size", 4001, "at most 2000"),
    ("run", "flipped_training.batch_size", 4001, "at most 2000"),
    ("run", "beyond.curves.repair_images", 3000, "at most 2000, the training images of generated"),
    ("laptop", "beyond.by_layer.images", 60_000, "at most 50000, .* CIFAR10$"),
    ("laptop", "merging.images", 50_001, "at most 50000, .*CIFAR10"),
    ("demo", "merging.invariance_images", 4001, "at most 2000"),
    ("laptop", "data.train_images", 60_000, "at most 50000"),
    ("paper", "models.dino.merging.images", None, "a number"),
    # what YAML makes of it
    ("run", "models.cnn.name", 12, "text, in quotes: YAML takes this for a number$"),
    ("run", "cifar10.label", False, "text, in quotes: YAML takes this for true or false, as yes, no, on"),
    ("run", "models.cnn.name", datetime.date(2023, 12, 10), "text, in quotes: YAML takes this for a date$"),
    # names that break file names, pages or pictures
    ("run", "models.cnn.name", "<b>CNN</b>", "text of one line without <, > and [$]$"),
    *(("run", "models.cnn.name", name, "text of one line$")
     for name in (" ", "CNN\u200b", "C\u00a0NN", "a\u2028b", "a\x85b", "a\nb", "\0")),
    *(("run", key, "a\nb", "text of one line$") for key in ("cifar10.root", "cifar10.train", "imagenet.root")
     ),
    ("run", "models.cnn.name", r"$\bad$", "text of one line without <, > and [$]$"),
    ("run", "cifar10.label", "a\n| b", "text of one line$"),
    # seeds
    ("run", "seeds", "first", SEEDS),
    ("run", "seeds", -1, SEEDS),
    *(("run", "seeds", seeds, SEEDS)
     for seeds in (1.0, True, [], [[0]], [0, True], {"a": 1}, "٣", "0, 1", "1e0")),
    ("run", "seeds", "", SEEDS),
    ("run", "seeds", "0-1000000000", "at most 10,000"),
    ("demo", "seeds", "0-1000000000", "at most 10,000 s"),
    ("demo", "seeds", f"0,{2**64}", ".* none above 4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "key", "value", "allowed"),
    VALUES,
    ids=[f"{where}-{key}-{str(value)[:20]!a}" for where, key, value, _ in VALUES],
)
def test_an_invalid_value_is_refused_with_its_key_and_what_is_allowed(where, key, value, allowed, tmp_path):
    line = refusal(tmp_path, where, {key.removesuffix(".0"): value})
    shown = value[0] if key.endswith(".0") else max(value) if key.endswith(".snapshots") else value
    start = f"{file_of(where)}{key}: {shown!r} given; allowed "
    assert re.match(f"{re.escape(start)}(is|are) {allowed}", line), line


LINES = [  # where, changes, and how the line begins; a leading colon stands for the first key
    # unknown keys and sections
    ("run", {"scael": "demo"}, "config: unknown key 'scael', is it 'scale'?; allowed are scale, seeds"),
    ("run", {"scales": {"demo": {}}}, "config: unknown key 'scales', is it 'scale'?; allowed are"),
    ("run", {"defaults.network.groups": 1}, "config: unknown key 'defaults'; allowed are scale, "),
    ("demo", {"modles": {}}, "unknown key 'modles', is it 'models'?; allowed are"),
    ("demo", {"training.batchsize": 40},
     "training: unknown key 'batchsize', is it 'batch_size'?; allowed are"),
    ("run", {"models.cnn.network": {"group_conv": 8}},
     ": unknown key 'group_conv', is it 'group_convs'?; allowed are width, init"),
    ("demo", {"network.initialisation": "he"},
     "network: unknown key 'initialisation', is it 'initialization'?"),
    ("demo", {"models.old.network": {"widht": 1}},
     "models.old.network: unknown key 'widht', is it 'width'?; allowed are width, "
     "initialization, activation, pooling, group_convs, block, layers, blocks, shortcut"),
    ("demo", {"models.old.network": {"architecture": "cifar_resnet", "layer": 1}},
     ": unknown key 'layer'; allowed are blocks, width, shortcut"),
    ("paper", {"models.byol.sorce": "file"}, "models.byol: unknown key 'sorce'"),
    ("demo", {"models.old.family": "vgg"}, "models.old: unknown key 'family'; allowed are data"),
    ("run", {"training": {1: 2}}, ": unknown key 1; allowed are epochs"),
    ("demo", {"data.train_images": None}, "data: generated images need numbers"),
    ("laptop", {"data.test_images": 5}, ": only for generated images"),
    ("laptop", {"models.cnn.data": {"invariant_to": "vertical_flip"}},
     "models.cnn.data.invariant_to: only for generated images"),
    # what YAML makes of it
    ("demo", {"training": None}, ": nothing is below it; write its keys there, or remove it"),
    ("demo", {"models": None}, ": nothing is below it"),
    ("demo", {"merging": 500}, ": 500 given; allowed are keys and their values"),
    ("run", {"training": endless()}, ": unknown key 'training'; allowed are epochs"),
    # names
    ("run", {"models": {"a" * 200: {}}}, f"models: '{'a' * 64}.* given; allowed is text of at most 64"),
    ("run", {"models.all": {}}, "models: 'all' given; allowed are small letters and digits"),
    ("run", {"models.a__b": {}}, "models: 'a__b' given; allowed are small letters and digits"),
    ("run", {"models.a\n": {}}, r"models: 'a\n' given; allowed are small letters"),
    ("run", {"models.cn": None},
     ": null given, which removes a type of the scale; allowed is one of cnn, .*(is it cnn?)"),
    ("run", {"models.cnn_inv.name": "CNN"},
     ": 'CNN' given, the name of cnn; give each model a name of its own"),
    ("run", {"models.cnn_inv.name": "ｃnn "},
     ": 'ｃnn ' given, the name of cnn; give each model a name of its own"),
    # values that conflict with others
    ("run", {"pairs": [["cnn", "resnet"]]},
     ": [cnn, resnet] names 'resnet', which isn't trained; the types under `models` are cnn, cnn_noaug, "),
    ("run", {"pairs": [["cnn", "cnn"], ["resnet", "cnn"]], "beyond.curves.seeds": "0-1",
     "beyond.curves.pairs": [["cnn", "cnn"]]},
     ": [resnet, cnn] names 'resnet', which isn't trained"),
    ("run", {"pairs": [["cnn", "gcnn"]] * 2}, ": [cnn, gcnn] is listed twice; list each pair once"),
    ("run", {"pairs": [["cnn", "gcnn"]], "models.gcnn.seeds": "1-9"},
     ": [cnn, gcnn] have different seeds: only one of them has 0, 3, 4, 5, 6 and 3 more"),
    ("run", {"cifar10": MINE | {"test": "./train"}},
     "cifar10.test: './train' given, the folder of cifar10.train"),
    ("run", {"imagenet.val": "train"}, ": 'train' given, the folder of imagenet.train"),
    ("run", {"datasets": {"cifar10": MINE}}, "datasets.cifar10: this data set exists already"),
    ("run", {"models.simsiam_odd.recipe": ["pretraining"]},
     ": [pretraining] given; the last stage has to make a classifier, as"),
    ("run", {"models.simsiam_odd.recipe": ["linear"]},
     ": [linear] given; a linear layer needs a stage before it"),
    ("run", {"models.cnn.linear": {"epochs": 2}},
     "models.cnn.linear: no stage of its recipe, [training]; add it there, or remove the key"),
    ("run", {"models.simsiam_odd.recipe": ["training"]},
     "scales/demo.yaml: models.simsiam_odd.pretraining: no stage of its recipe, [training]; add"),
    ("demo", {"models.old.recipe": ["training"] * 2}, ": training is listed twice; list each once"),
    ("run", {"matchings": ["weight"] * 2}, ": weight is listed twice; list each once"),
    ("run", {"beyond.matchings.matchings": ["weight"] * 2}, ": weight is listed twice"),
    ("run", {"beyond.curves.models": ["cnn"] * 2}, ": cnn is listed twice"),
    ("run", {"beyond.exact_gcnn.from_scratch": ["cnn_inv"] * 2}, ": cnn_inv is listed twice"),
    *(("paper", {f"models.dino.weights.{key}": [first, second]},
     ": h/a.pth is listed twice".replace("h/", start)) for key, start, first, second in (
     ("file", "h/", "h/a.pth", "h/A.pth"),
     ("urls", "https://h/", "https://h/a.pth", "https://h/A.pth#sha256=" + "0" * 64))),
    ("run", {"beyond.curves": {"models": [], "pairs": [["gcnn", "gcnn"]], "seeds": 0}},
     "beyond.curves.seeds: no two nets of [gcnn, gcnn] that are merged have these seeds"),
    ("run", {"beyond.by_layer": {"models": ["cnn"], "lie_images": 1001}},
     "beyond.by_layer.lie_images: 1001 given; allowed is at most 1000, the test images of generated"),
    ("run", {"figure9": "old_inv", "models.old_inv.table": None},
     ": 'old_inv' given; allowed is one of cnn, "),
    ("run", {"data.resize": 64}, ": only for ImageNet; remove the key"),
    ("demo", {"models.cnn.data": {"resize": 64}}, "models.cnn.data.resize: only for ImageNet"),
    ("run", {"beyond.curves.pairs": [["cnn", "gcnn"]] * 2}, ": ['cnn', 'gcnn'] is listed twice"),
    ("run", {"models.cnn.training.objective": "simsiam"},
     "scales/demo.yaml: recipe: [training] given; the last stage has to make a classifier"),
    ("run", {"merging.matching": "involution"},
     ": 'involution' given, which matches no pair of two nets, such as [cnn, cnn] of `pairs`"),
    ("run", {"models.cnn_noaug": {"symmetry": "quarter_turn", "merging": {"matching": "involution"}}},
     "models.cnn_noaug.merging.matching: 'involution' given; the symmetry of cnn_noaug isn't of order 2"),
    ("run", {"network.width": 1 / 32, "models.gcnn.symmetry": "quarter_turn", "pairs": [], "beyond": {}},
     ": 0.03125 given; the 2 channels of gcnn's first group conv don't split into 4 orientations"),
    ("run", {"beyond.curves.seeds": [0, 7]}, ": 7 is none of the seeds of cnn, cnn_inv"),
    ("run", {"beyond.matchings": {"models": None, "seeds": 7}}, "beyond.matchings.seeds: 7 is none of"),
    ("demo", {"training.warmup_epochs": 100}, ": 100 isn't less than the 14 epochs"),
    ("demo", {"models.old.training.warmup_epochs": 9}, ": 9 isn't less than the 4 epochs"),
    ("run", {"models.cnn_inv.training": {"invariance_from": 0.9, "epochs": 4, "warmup_epochs": 1}},
     "models.cnn_inv.training.invariance_from: 0.9 given; .* never be on in 4 epochs; allowed is at most 0.75"),
    ("paper", {"models.torchvision_old_inv.training.processes": 3},
     "models.torchvision_old_inv.training.batch_size: 256 can't be split evenly among 3 processes"),
    ("run", {"models.cnn.image_size": 16}, ": 16 given; vgg11 takes 32 to 63 pixels"),
    ("paper", {"models.dino.data.resize": 200}, ": 200 given; a crop of 224 pixels"),
    # seeds
    ("run", {"seeds": "0,1,1"}, ": 1 is listed twice in 0,1,1; list each seed once"),
    ("paper", {"seeds": "0-2,1"}, ": 1 is listed twice in 0-2,1"),
    ("run", {"seeds": [0, 0]}, ": 0 is listed twice in [0, 0]"),
    ("run", {"seeds": "2-0"}, ": the range 2-0 runs backwards; write 0-2"),
    ("run", {"models.cnn.weights": {"file": "net.pth"}},
     "scales/demo.yaml: models.cnn.seeds: 3 seeds given; its weights aren't trained, so its nets would all be the"),
    ("run", {"models.old": {"seeds": [0, 1], "weights": {"torchvision": "IMAGENET1K_V1"}}},
     "models.old.seeds: 2 seeds given"),
    ("run", {"seeds": 99}, ": 99 is none of the scale demo's seeds"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "changes", "start"), LINES, ids=[f"{where} {start[:60]}" for where, _, start in LINES]
)
def test_an_invalid_config_is_refused_in_one_line(where, changes, start, tmp_path):
    line = refusal(tmp_path, where, changes)
    start = next(iter(changes)) + start if start.startswith(":") else start
    pattern = re.escape(file_of(where) + start).replace(r"\.\*", ".*")
    assert re.match(pattern, line), line


SEVERAL = [  # where, changes, and how all lines begin
    ("run", {"training": {"epochs": 0, "batch_size": 0, "momentum": 2}, "merging.images": 0},
     [f"{key}: {given} given" for key, given in (
         ("training.epochs", 0), ("training.batch_size", 0), ("training.momentum", 2), ("merging.images", 0))]),
    ("run", {"cifar10": {}, "threads": 0}, ["threads: 0 given", "cifar10: the keys 'source', 'label' are"]),
    ("run", {"network": {"width": -1, "group_convs": 9}}, ["network.width: -1", "network.group_convs: 9"]),
    ("run", {"models": {"A": {}, "B": {}}}, ["models: 'A' given", "models: 'B' given"]),
    ("demo", {"data.train_images": 100},  # the errors if only the number of images is reduced
     [*(f"merging.{key}: 500 given; allowed is at most 100" for key in ("images", "invariance_images")),
      "beyond.curves.repair_images: 200 given; allowed is at most 100",
      *(f"models.{id_}.merging.images: 1000 given; allowed is at most 100"
        for id_ in ("old", "old_inv", "old_odd", "old_inv_odd", "simsiam_odd"))]),
    ("run", {"figure9": "odl", "models.cnn_inv.name": "CNN", "image_size": 16},
     ["models.cnn_inv.name: 'CNN' given", "figure9: 'odl' given", "image_size: 16 given"]),
    ("run", {"seeds": 99, "pairs": [["cnn", "none"]], "beyond.curves.seeds": 7},
     ["pairs: [cnn, none] names", "beyond.curves.seeds: 7", "seeds: 99"]),
    ("run", {"pairs": [["resnet", "cnn"]], "beyond.curves.pairs": [["resnet", "cnn"]]},  # measured, too
     ["pairs: [resnet, cnn] names", "beyond.curves.pairs: 'resnet' given; allowed is one of cnn, "]),
    ("laptop", {"seeds": "0-1"},  # symmetries: its types name their seeds
     [f"beyond.{name}.seeds: " for name in scale_of(ROOT, "laptop")["beyond"] if name != "symmetries"]),
]  # fmt: skip


@pytest.mark.parametrize(("where", "changes", "starts"), SEVERAL, ids=[str(c)[:40] for _, c, _ in SEVERAL])
def test_each_of_several_errors_has_its_line(where, changes, starts, tmp_path):
    lines = refusals(tmp_path, where, changes)
    assert len(lines) == len(starts), lines
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(file_of(where) + start), line


def test_a_key_is_named_by_its_file_even_if_another_overrides_it(tmp_path):
    line = refusal(tmp_path, "demo", {"training.epochs": 0}, run={"training.batch_size": 40})
    assert line == "scales/demo.yaml: training.epochs: 0 given; allowed is at least 1"
    run = {"training.warmup_epochs": 20}
    line = refusal(tmp_path, "demo", {"models.cnn.training": {"epochs": 10}}, run)
    assert line == "training.warmup_epochs: 20 isn't less than the 10 epochs"


FILES = [
    (b"a: 1\nb: &b\n  c: [1, *b]\n", r", line 3: \*b is inside &b, so it has no end$"),
    (b"a: " + b"[" * 100_000, ", line 1: more than 100 sections inside each other$"),
    (b"scale: demo\nseeds: 0\nscale: paper\n", ", line 3: the key 'scale' is in line 1 already"),
    (b"a:\n  b: [{c: 1, c: 2}]\n", ", line 2: the key 'c' is in line 2"),
    ("scale: demo\nlabel: Bökman\n".encode("latin-1"), ", line 2: the byte 0xf6 isn't UTF-8"),
    (b"scale: demo\npairs: [[a, b]\n\nseeds: 0\n", r", line 4: not valid YAML \(did not find"),
    (b"scale: demo\na:\n\tb: 1\n", r", line 3: not valid YAML \(found character that cannot start"),
    (b"scale: \x07\n", r": not valid YAML \(unacceptable character #x0007"),
    (b"demo\n", ": no keys in it"),
    (b"", ": no keys in it"),
    (b"scale: demo\nseeds: 0_1\n", ", line 2: seeds: 0_1 given; allowed are"),
    (b"scale: demo\nseeds: [0, 1_0]\n", ", line 2: seeds: 1_0 given; allowed are"),
    (b"a: 1\nthreads: 010\n", ", line 2: threads: YAML takes 010 for 8; write it as a decimal number$"),
    (b"seeds: 1:30\n", ", line 1: seeds: YAML takes 1:30 for 90; write it"),
    (b"pairs: [[cnn, 1:30.5]]\nb: [1, 0o17, 0b1]\n", ", line 2: b: YAML takes 0b1 for 1; write it"),
    (b"a: 2023-02-30\n", r": a value isn't valid YAML \(day is out of range.*\); put it in quotes$"),
    (b"a: " + b"9" * 5000, r": a value isn't valid YAML \(Exceeds the limit"),
    (b"a: !!int x\n", r": a value isn't valid YAML \(invalid literal"),
    (b"a: !!bool x\n", r": a value isn't valid YAML \('x'\)"),
    (b"b: 1\na: !!python/object:os.system x\n", r", line 2: not valid YAML \(could not determine a constructor"),
    (b"a: =\n", r", line 1: not valid YAML \(could not determine a constructor"),
    (b"? [a, b]\n: c\n", r", line 1: not valid YAML \(found unhashable key"),
    (b"<<: 3\n", r", line 1: not valid YAML \(expected a mapping"),
    ("scale: demo\n".encode("utf-16"), ", line 1: the byte 0xff isn't UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "line"), FILES, ids=[line for _, line in FILES])
def test_an_unreadable_config_file_is_refused_in_one_line(content, line, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    refused(lambda: check_file(path), match=rf"config\.yaml{line}")


def test_a_config_file_that_is_a_pipe_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    refused(lambda: check_file(tmp_path / "config.yaml"), match=r"config\.yaml can't be read \(Not a file\)$")


# ---- images of a folder that conflict with the config

IMAGES = [  # sides of three images, changes of the scale, and how the line begins
    (16, {}, "image_size: mine has images of 16×16 pixels; vgg11 takes 32 to 63"),
    (64, {}, "image_size: mine has images of 64×64 pixels"),
    (64, {"models.cnn.image_size": 64, "image_size": 32, "pairs": []}, ": 64 given; vgg11 takes"),
    (32, {"models.cnn.training.batch_size": 5},
     ": 5 given; allowed is at most 3, the training images of mine"),
    (32, {"models.cnn.merging.images": 4}, ": 4 given; allowed is at most 3"),
    (32, {"models.cnn.training.crop_padding": 32}, ": 32 given; allowed is less"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("side", "changes", "start"), IMAGES, ids=[f"{side} {start}" for side, _, start in IMAGES]
)
def test_images_that_the_config_does_not_fit_are_refused_before_they_are_prepared_and_after(
    side, changes, start, tmp_path
):
    for split in ("train", "test"):
        save_images(tmp_path / split / "cat", [Image.new("RGB", (side, side))] * 3)
    sections = scale_of(ROOT, "laptop") | {"flipped_training": {"batch_size": 2}, "beyond": {}}
    for section in (sections, *sections["models"].values()):
        section["merging"] = {"images": None, "invariance_images": 2}
        section["training"] = section.get("training", {}) | {"batch_size": 2}
    set_keys(sections, changes)
    write_scale(tmp_path, "laptop", sections)
    run = {"scale": "laptop", "cifar10": {"source": "folder", "root": str(tmp_path), "label": "mine"}}
    with contextlib.chdir(tmp_path):
        settings = Settings.of(run)
    spec, prepared = settings.preparation_for(None)[0], tmp_path / "mine.safetensors"

    def check():
        for model in (None, *settings.models):
            check_images(settings, model, extent_of(spec, prepared))

    start = next(iter(changes)) + start if start.startswith(":") else start
    lines = [refused(check, f"scales/laptop.yaml: {start}")]
    data.prepare(spec, prepared)
    assert [refused(check)] == lines


# ---- values that are accepted although they are text


def test_values_that_the_command_line_leaves_as_text_are_converted():
    given = {"training": {"learning_rate": "1e-2"}, "models": {"cnn": {"name": "12"}, "old": "null"}}
    run = {"seeds": "0,2", "threads": "2", "cifar10": config_of(ROOT)["cifar10"] | {"root": "{odd folder"}}
    settings = settings_of(**given, **run, filters={"zero_filter": "0.2"}, image_size="null")
    assert settings.run.seeds == [0, 2] == seed_list([0, 2])
    assert settings.run.threads == 2
    assert settings.train("cnn")["training"]["learning_rate"] == 0.01
    assert settings.run.cifar10.root == "{odd folder"
    assert settings.sections.filters.zero_filter == 0.2
    assert settings.models["cnn"].name == "12" and settings.models["cnn"].image_size is None
    assert "old" not in settings.models
