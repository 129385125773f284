"""What a config can get wrong: one line that names the key and what is allowed, before anything is planned."""

import contextlib
import datetime
import re

import pytest
from conftest import ROOT, config_of, scale_of, settings_of, write_scale
from PIL import Image

from relusym import data
from relusym.config.image_checks import check_images
from relusym.config.reading import check_file, seed_list
from relusym.config.settings import Settings
from relusym.data.extent import extent_of
from relusym.errors import UserError

TYPES = "cnn, cnn_noaug, cnn_inv, cnn_late_inv, gcnn, pgcnn, pgcnn_late_inv, "
TYPES += "old, old_inv, old_odd, old_inv_odd, simsiam_odd"
DELETED = object()
NEEDS_A_NUMBER = "given; allowed is a whole number"


def set_keys(sections, changes):
    """Values by dotted key; `DELETED` removes one."""
    for key, value in changes.items():
        *path, last = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        if value is DELETED:
            del section[last]
        else:
            section[last] = value


def settings_in(folder, run, sections):
    """The settings of a run whose scale's file, in `folder`, has these sections."""
    write_scale(folder, run["scale"], sections)
    with contextlib.chdir(folder):
        return Settings.of(run, ["scales", ROOT / "scales"])


def endless():
    """A section that holds itself."""
    section = {}
    section["training"] = section
    return section


CASES = {  # keys `scales.demo.…` are of a scale's file, the others of the run's config
    # a key or a choice that there isn't
    "scale": (
        {"scale": "papr"},
        "^scale: 'papr' given; allowed is one of demo, laptop, paper .is it paper..",
    ),
    "no scale": ({"scale": None}, "^scale: None given; allowed is text$"),
    "key": (
        {"scael": "demo"},
        "^config: unknown key 'scael', is it 'scale'\\?; allowed are scale, seeds, device, threads",
    ),
    "key of a stage": (
        {"scales.demo.training.batchsize": 40},
        r"^scales/demo\.yaml: training: unknown key 'batchsize', is it 'batch_size'\?; allowed are epochs, batch_size, "
        r".*restarts, workers$",
    ),
    "key of a network": (
        {"models.cnn.network": {"group_conv": 8}},
        r"^models\.cnn\.network: unknown key 'group_conv', is it 'group_convs'\?; allowed are width, init",
    ),
    "key of a scale's network": (
        {"scales.demo.network.initialisation": "he"},
        r"^scales/demo\.yaml: network: unknown key 'initialisation', is it 'initialization'\?; allowed",
    ),
    "key of a model's network": (
        {"scales.demo.models.old.network": {"widht": 1}},
        (
            r"^scales/demo\.yaml: models\.old\.network: unknown key 'widht', is it 'width'\?; allowed are width, "
            "initialization, group_convs, block, layers, blocks, shortcut$"
        ),
    ),
    "section that there isn't": (
        {"defaults.network.groups": 1},
        "^config: unknown key 'defaults'; allowed are scale, .*, training, pretraining, ",
    ),
    "section of a scale that there isn't": (
        {"scales.demo.modles": {}},
        r"^scales/demo\.yaml: unknown key 'modles', is it 'models'\?; allowed are",
    ),
    "scales as they once were": (
        {"scales": {"demo": {}}},
        "^config: unknown key 'scales', is it 'scale'\\?; allowed are",
    ),
    "key of a ResNet": (
        {"scales.demo.models.old.network": {"architecture": "cifar_resnet", "layer": 1}},
        r"models\.old\.network: unknown key 'layer'; allowed are blocks, width, shortcut$",
    ),
    "key of a model": ({"scales.paper.models.byol.sorce": "file"}, "models.byol: unknown key 'sorce'"),
    "missing key": (
        {"scales.demo.training.epochs": DELETED},
        r"^scales/demo\.yaml: training: the key 'epochs' is missing$",
    ),
    "architecture": (
        {"scales.demo.network.architecture": "vgg"},
        "network.architecture: 'vgg' given; allowed is one of vgg11, ",
    ),
    "initialization": (
        {"scales.demo.network.initialization": "zeros"},
        "'zeros' given; allowed is one of pytorch, he",
    ),
    "family": (
        {"scales.demo.models.old.family": "vgg"},
        r"models\.old: unknown key 'family'; allowed are data",
    ),
    "data set": (
        {"scales.demo.data.dataset": "images"},
        "'images' given; allowed is one of generated, cifar10, imagenet",
    ),
    "no number of generated images": (
        {"scales.demo.data.train_images": None},
        r"^scales/demo\.yaml: data: generated images need numbers",
    ),
    "number of real test images": (
        {"scales.laptop.data.test_images": 5},
        r"laptop\.yaml: data\.test_images: only for generated images",
    ),
    "source": (
        {"cifar10.source": "web"},
        "'web' given; allowed is one of torchvision, binary, python, folder",
    ),
    "no root": ({"cifar10.root": ""}, "'' given; allowed is text of at least 1 character"),
    "device": (
        {"device": "gpu"},
        r"device: 'gpu' given; allowed is auto, cpu, cuda, or one GPU, such as cuda:1$",
    ),
    "device and a line break": ({"device": "cpu\n"}, r"^device: 'cpu\\n' given; allowed is auto, cpu"),
    "not true or false": (
        {"models.cnn.training": {"augmentation": "maybe"}},
        "models.cnn.training.augmentation: 'maybe' given; allowed is true or false$",
    ),
    "threads": ({"threads": "many"}, f"^threads: 'many' {NEEDS_A_NUMBER}$"),
    "no urls": (
        {"scales.paper.models.dino.weights.urls": None},
        "models.dino.weights.urls: None given; allowed is a list$",
    ),
    "stage": (
        {"scales.paper.models.dino.recipe": ["supervised"]},
        "recipe.0: 'supervised' given; allowed is one of training, pretr",
    ),
    "layout": (
        {"scales.paper.models.byol.weights.layout": "mine"},
        "'mine' given; allowed is one of auto, plain, module",
    ),
    "row of the paper": (
        {"scales.paper.models.byol.paper": "boyl"},
        r"models\.byol\.paper: 'boyl' given; allowed is one of torchvision_new, .* \(is it byol\?\), or null$",
    ),
    "schedule": (
        {"scales.paper.models.simsiam_225.training.schedule": "steps"},
        "'steps' given; allowed is one of linear, cosine, step",
    ),
    "objective": (
        {"scales.paper.models.simsiam_225.linear.objective": "layer"},
        "'layer' given; allowed is one of supervised, simsiam, lin",
    ),
    "figure 9": (
        {"scales.demo.figure9": "odl"},
        r"^scales/demo\.yaml: figure9: 'odl' given; allowed is one of .*old",
    ),
    "pair of no model": (
        {"pairs": [["cnn", "resnet"]]},
        r"^pairs: \[cnn, resnet\] names 'resnet', which isn't trained; the types under `models` are " + TYPES,
    ),
    "pair of one": ({"pairs": [["cnn"]]}, r"pairs\.0: \['cnn'\] given; allowed is a list of at least 2"),
    "pair twice": (
        {"pairs": [["cnn", "gcnn"]] * 2},
        r"pairs: \[cnn, gcnn\] is listed twice; list each pair once",
    ),
    "tests on the training images": (
        {
            "scale": "laptop",
            "cifar10": {"source": "folder", "root": "r", "train": "train", "test": "./train", "label": "x"},
        },
        r"^cifar10\.test: './train' given, the folder of cifar10\.train",
    ),
    "validates on the training images": (
        {"scale": "paper", "imagenet.val": "train"},
        r"^imagenet\.val: 'train' given, the folder of imagenet\.train",
    ),
    "data set that is there already": (
        {"datasets": {"cifar10": {"source": "folder", "root": "r", "label": "x"}}},
        r"^datasets\.cifar10: this data set is there already",
    ),
    # values that go with no others
    "recipe without a classifier": (
        {"models.simsiam_odd.recipe": ["pretraining"]},
        r"^models\.simsiam_odd\.recipe: \[pretraining\] given; the last stage has to make a classifier, as",
    ),
    "recipe that begins with a linear layer": (
        {"models.simsiam_odd.recipe": ["linear"]},
        r"^models\.simsiam_odd\.recipe: \[linear\] given; a linear layer needs a stage before it",
    ),
    "stage twice": (
        {"scales.demo.models.old.recipe": ["training", "training"]},
        r"^scales/demo\.yaml: models\.old\.recipe: training is listed twice; list each once$",
    ),
    "an objective in place of another": (
        {"models.cnn.training.objective": "simsiam"},
        r"^scales/demo\.yaml: recipe: \[training\] given; the last stage has to make a classifier",
    ),
    "more images for a curve than there are": (
        {"beyond.curves.repair_images": 3000},
        r"^beyond\.curves\.repair_images: 3000 given; allowed is at most 2000, the training images of generated",
    ),
    "more images to measure on than there are": (
        {"scales.laptop.beyond.by_layer.images": 60_000},
        r"^scales/laptop\.yaml: beyond\.by_layer\.images: 60000 given; allowed is at most 50000, .* CIFAR10$",
    ),
    "points of a curve": (
        {"beyond.curves.points": 100_001},
        r"^beyond\.curves\.points: 100001 given; allowed is at most 1001$",
    ),
    "involution of pairs": (
        {"merging.matching": "involution"},
        r"^merging\.matching: 'involution' given, which matches no pair of two nets, such as \[cnn, cnn\] of `pairs`$",
    ),
    "involution of quarter turns": (
        {"models.cnn_noaug": {"symmetry": "quarter_turn", "merging": {"matching": "involution"}}},
        r"^models\.cnn_noaug\.merging\.matching: 'involution' given; the symmetry of cnn_noaug isn't of order 2$",
    ),
    "quarter turns of two channels": (
        {"network.width": 1 / 32, "models.gcnn.symmetry": "quarter_turn", "pairs": [], "beyond": {}},
        r"^network\.width: 0\.03125 given; the 2 channels of gcnn's first group conv don't split into 4 orientations",
    ),
    "seed of no net beyond the paper": (
        {"beyond.curves.seeds": [0, 7]},
        r"^beyond\.curves\.seeds: 7 is none of the seeds of cnn, cnn_inv",
    ),
    "seed of no net beyond the paper, of all types": (
        {"beyond.matchings": {"models": None, "seeds": 7}},
        r"^beyond\.matchings\.seeds: 7 is none of",
    ),
    "two models of one name": (
        {"models.cnn_inv.name": "CNN"},
        r"^models\.cnn_inv\.name: 'CNN' given, the name of cnn; give each model a name of its own$",
    ),
    "a key of the file where its section is overridden": (
        {"scales.demo.training.epochs": 0, "training.batch_size": 40},
        r"^scales/demo\.yaml: training\.epochs: 0 given; allowed is at least 1$",
    ),
    "a key on the command line where the file has the section": (
        {"training.epochs": 0},
        r"^training\.epochs: 0 given; allowed is at least 1$",
    ),
    "a scale's key that a model's overrides": (
        {"training.warmup_epochs": 20, "scales.demo.models.cnn.training": {"epochs": 10}},
        r"^training\.warmup_epochs: 20 isn't less than the 10 epochs$",
    ),
    # what YAML makes of it
    "name that is a number": (
        {"models.cnn.name": 12},
        r"^models\.cnn\.name: 12 given; allowed is text, in quotes: YAML takes this for a number$",
    ),
    "label that is false": (
        {"cifar10.label": False},
        r"^cifar10\.label: False given; allowed is text, in quotes: YAML takes this for true or false, as yes, no, on",
    ),
    "name that is a date": (
        {"models.cnn.name": datetime.date(2023, 12, 10)},
        "is text, in quotes: YAML takes this for a date$",
    ),
    "section left empty": (
        {"scales.demo.training": None},
        r"^scales/demo\.yaml: training: nothing stands below it; write its keys there, or remove it$",
    ),
    "models left empty": (
        {"scales.demo.models": None},
        r"^scales/demo\.yaml: models: nothing stands below it",
    ),
    "section that is a number": (
        {"scales.demo.merging": 500},
        r"merging: 500 given; allowed are keys and their values$",
    ),
    "section inside of itself, from elsewhere": (
        {"training": endless()},
        "^training: unknown key 'training'; allowed are epochs",
    ),
    "model of 200 letters": (
        {"models": {"a" * 200: {}}},
        "^models: 'aaa.* given; allowed is text of at most 64 characters$",
    ),
    "key that is a number": ({"training": {1: 2}}, "^training: unknown key 1; allowed are epochs"),
    # seeds
    "seed twice": ({"seeds": "0,1,1"}, "^seeds: 1 is listed twice in 0,1,1; list each seed once$"),
    "seed twice in a scale": ({"scales.paper.seeds": "0-2,1"}, "seeds: 1 is listed twice in 0-2,1"),
    "seed twice in a list": ({"seeds": [0, 0]}, r"seeds: 0 is listed twice in \[0, 0\]"),
    "seeds backwards": ({"seeds": "2-0"}, "seeds: the range 2-0 runs backwards; write 0-2"),
    "seeds in words": ({"seeds": "first"}, r"'first' given; allowed are seeds such as 3, 0-3, or \[0, 5\]"),
    "seed below 0": ({"seeds": -1}, "seeds: -1 given; allowed are seeds such as"),
    "seed with a fraction": ({"seeds": 1.0}, "seeds: 1.0 given; allowed are seeds such as"),
    "no seeds": ({"seeds": ""}, "seeds: '' given; allowed are seeds such as"),
    "seed of no net": ({"seeds": 99}, "seeds: 99 is none of the scale demo's seeds"),
    "a billion seeds": ({"seeds": "0-1000000000"}, "seeds: '0-1000000000' given; allowed are at most 10,000"),
    "a billion seeds of a scale": ({"scales.demo.seeds": "0-1000000000"}, "allowed are at most 10,000 s"),
    "huge seed": (
        {"scales.demo.seeds": f"0,{2**64}"},
        f"seeds: '0,{2**64}' given; allowed are .* none above 4",
    ),
    "huge seed of the data": ({"scales.demo.data.seed": 2**64}, "seed: 18446744073709551616 given; allowed"),
    # numbers that can't be
    "epochs 1.5": (
        {"scales.demo.training.epochs": 1.5},
        rf"^scales/demo\.yaml: training\.epochs: 1.5 {NEEDS_A_NUMBER}",
    ),
    "epochs 2.0": ({"scales.demo.training.epochs": 2.0}, rf"epochs: 2.0 {NEEDS_A_NUMBER}"),
    "batch 10.0": ({"scales.demo.training.batch_size": 10.0}, rf"batch_size: 10.0 {NEEDS_A_NUMBER}"),
    "images 50.0": (
        {"scales.demo.merging.images": 50.0},
        r"images: 50.0 given; allowed is a whole number, or null",
    ),
    "images 50.0 from the command line": (
        {"scales.demo.merging.images": "50.0"},
        r"images: '50.0' given; allowed is a whole",
    ),
    "epochs 0": ({"scales.demo.training.epochs": 0}, "epochs: 0 given; allowed is at least 1$"),
    "epochs true": ({"scales.demo.training.epochs": True}, f"epochs: True {NEEDS_A_NUMBER}"),
    "momentum": ({"scales.demo.training.momentum": 1}, "momentum: 1 given; allowed is less than 1"),
    "learning rate nan": (
        {"scales.demo.training.learning_rate": float("nan")},
        "learning_rate: nan given; allowed is a finite number$",
    ),
    "learning rate inf": (
        {"scales.demo.training.learning_rate": ".inf"},
        "learning_rate: '.inf' given; allowed is a number$",
    ),
    "learning rate 1e300": (
        {"scales.demo.training.learning_rate": 1e300},
        r"learning_rate: 1e\+300 given; allowed is at most 1000$",
    ),
    "width 0.001": (
        {"scales.demo.network.width": 0.001},
        r"^scales/demo\.yaml: network\.width: 0.001 given; allowed is a multiple of 1/32 \(architecture vgg11\)$",
    ),
    "width 0.001 of a ResNet": (
        {"scales.demo.models.old.network.width": 0.001},
        r"models\.old\.network\.width: 0.001 given; allowed is at least 0.015625",
    ),
    "width 1000": ({"scales.demo.network.width": 1000}, r"width: 1000 given; allowed is at most 16 "),
    "width 1e30": ({"scales.demo.network.width": 1e30}, r"width: 1e\+30 given; allowed is at most 16 "),
    "group convs": (
        {"models.cnn.network": {"group_convs": 9}},
        r"models\.cnn\.network\.group_convs: 9 given; allowed is at most 8",
    ),
    "images 10^12": (
        {"scales.demo.data.train_images": 10**12},
        "images: 1000000000000 given; allowed is at most 10000000",
    ),
    "draws 10^12": (
        {"theory.draws.lemma_2_2": 10**12},
        "lemma_2_2: 1000000000000 given; allowed is at most 10000000",
    ),
    "warm-up": (
        {"scales.demo.training.warmup_epochs": 100},
        "warmup_epochs: 100 isn't less than the 14 epochs",
    ),
    "warm-up of a ResNet": (
        {"scales.demo.models.old.training.warmup_epochs": 9},
        r"^scales/demo\.yaml: models\.old\.training\.warmup_epochs: 9 isn't less than the 4 epochs",
    ),
    "invariance never on": (
        {"models.cnn_inv.training": {"invariance_from": 1.0}},
        r"invariance_from: 1.0 given; allowed is less than 1, or null$",
    ),
    "invariance on after the last epoch": (
        {"models.cnn_inv.training": {"invariance_from": 0.9, "epochs": 4, "warmup_epochs": 1}},
        r"^models\.cnn_inv\.training\.invariance_from: 0.9 given; .* never be on in 4 epochs; allowed is at most 0.75",
    ),
    "padding": (
        {"scales.demo.training.crop_padding": 1000},
        r"crop_padding: 1000 given; allowed is less than the images' 32 pixels",
    ),
    "padding of the image": ({"scales.demo.training.crop_padding": 32}, "padding: 32 given; allowed is less"),
    "batch": (
        {"scales.demo.training.batch_size": 4001},
        r"training\.batch_size: 4001 given; allowed is at most 2000, the training images of generated",
    ),
    "batch of a ResNet": (
        {"scales.demo.models.old.training.batch_size": 4001},
        r"models\.old\.training\.batch_size: 4001 given; allowed is at most 2000",
    ),
    "batch of Figure 3": (
        {"flipped_training.batch_size": 4001},
        r"^flipped_training\.batch_size: 4001 given; allowed is at most 2000",
    ),
    "batch and processes": (
        {"scales.paper.models.torchvision_old_inv.training.processes": 3},
        r"training\.batch_size: 256 can't be shared evenly by 3 processes",
    ),
    "matched images": (
        {"scales.laptop.merging.images": 50_001},
        r"^scales/laptop\.yaml: merging\.images: 50001 given; .* at most 50000, .*CIFAR10",
    ),
    "images for the invariance error": (
        {"scales.demo.merging.invariance_images": 4001},
        r"^scales/demo\.yaml: merging\.invariance_images: 4001 given; allowed is at most 2000",
    ),
    "images for the invariance error of a choice": (
        {"scales.laptop.data.train_images": 1000},
        r"^scales/laptop\.yaml: merging\.images: 10000 given; allowed is at most 1000, ",
    ),
    "training images": (
        {"scales.laptop.data.train_images": 60_000},
        r"data\.train_images: 60000 given; allowed is at most 50000",
    ),
    "all of ImageNet to match on": (
        {"scales.paper.models.dino.merging.images": None},
        r"merging\.images: None given; allowed is a number",
    ),
    "image size of a VGG11": (
        {"models.cnn.image_size": 16},
        r"^models\.cnn\.image_size: 16 given; vgg11 takes 32 to 63 pixels$",
    ),
    "crop beyond the image": (
        {"scales.paper.models.dino.data.resize": 200},
        r"data\.resize: 200 given; a crop of 224 pixels",
    ),
    # names that break file names, pages or pictures
    "model named all": ({"models.all": {}}, "^models: 'all' given; allowed are small letters and digits"),
    "model a__b": ({"models.a__b": {}}, "^models: 'a__b' given; allowed are small letters and digits"),
    "model and a line break": ({"models.a\n": {}}, r"^models: 'a\\n' given; allowed are small letters"),
    "markup": ({"models.cnn.name": "<b>CNN</b>"}, r"^models\.cnn\.name: '<b>CNN</b>' given; allowed is text"),
    "formula": ({"models.cnn.name": r"$\bad$"}, r"^models\.cnn\.name: '\$.* given; allowed is text of one"),
    "label of two lines": ({"cifar10.label": "a\n| b"}, r"^cifar10\.label: 'a\\n\| b' given; allowed is"),
}


@pytest.mark.parametrize(("changes", "line"), CASES.values(), ids=CASES)
def test_a_config_that_can_not_be_is_refused_in_one_line(changes, line, tmp_path):
    files = [key.split(".")[1] for key in changes if key.startswith("scales.")]
    scale = files[0] if files else changes.get("scale", "demo")
    file = scale if scale in ("laptop", "paper") else "demo"
    run, sections = config_of(ROOT) | {"scale": scale}, scale_of(ROOT, file)
    set_keys(run, {key: value for key, value in changes.items() if not key.startswith("scales.")})
    prefix = f"scales.{file}."
    set_keys(
        sections,
        {key.removeprefix(prefix): value for key, value in changes.items() if key.startswith(prefix)},
    )
    write_scale(tmp_path, file, sections)
    with contextlib.chdir(tmp_path), pytest.raises(UserError) as error:
        Settings.of(run, ["scales", ROOT / "scales"])
    assert "\n" not in str(error.value) and re.search(line, str(error.value)), error.value


FILES = {
    "section inside of itself": (
        b"a: 1\nb: &b\n  c: [1, *b]\n",
        r"config\.yaml, line 3: \*b stands inside of &b, so it has no end$",
    ),
    "sections without end": (
        b"a: " + b"[" * 100_000,
        r"config\.yaml, line 1: more than 100 sections inside of each other$",
    ),
    # config files
    "key twice": (
        b"scale: demo\nseeds: 0\nscale: paper\n",
        r"yaml, line 3: the key 'scale' stands in line 1 already",
    ),
    "key twice below": (b"a:\n  b: [{c: 1, c: 2}]\n", r"config\.yaml, line 2: the key 'c' stands in line 2"),
    "Latin-1": ("scale: demo\nlabel: Bökman\n".encode("latin-1"), r"yaml, line 2: the byte 0xf6 isn't UTF-8"),
    "open bracket": (
        b"scale: demo\npairs: [[a, b]\n\nseeds: 0\n",
        r"config\.yaml, line \d: no YAML \(did not find",
    ),
    "tab": (b"scale: demo\na:\n\tb: 1\n", r"config\.yaml, line 3: no YAML \("),
    "control character": (b"scale: \x07\n", r"config\.yaml.*: no YAML \("),
    "no keys": (b"demo\n", r"config\.yaml: no keys in it"),
    "empty file": (b"", r"config\.yaml: no keys in it"),
    "seeds in octal": (b"scale: demo\nseeds: 0_1\n", r"config\.yaml, line 2: seeds: 0_1 given; allowed are"),
}


@pytest.mark.parametrize(("content", "line"), FILES.values(), ids=FILES)
def test_a_config_file_that_can_not_be_read_is_refused_in_one_line(content, line, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        check_file(tmp_path / "config.yaml")
    assert "\n" not in str(error.value) and re.search(line, str(error.value)), error.value


# ---- images of a folder that don't go with the config


IMAGES = {  # number, sides, changes of the scale
    # images that a folder holds, before they are prepared
    "16 pixels": (
        (3, 16, {}),
        r"^scales/laptop\.yaml: image_size: mine has images of 16×16 pixels; vgg11 takes 32 to 63",
    ),
    "28 pixels": ((3, 28, {}), "mine has images of 28×28 pixels"),
    "64 pixels": ((3, 64, {}), "mine has images of 64×64 pixels"),
    "64 pixels of one model": (
        (
            *(3, 64),
            {
                "pairs": [],
                "beyond": {},
                "image_size": 32,
                "models.cnn.image_size": 64,
            },
        ),
        r"^scales/laptop\.yaml: models\.cnn\.image_size: 64 given; vgg11 takes",
    ),
    "batch of a folder": (
        (3, 32, {"models.cnn.training.batch_size": 5}),
        r"^scales/laptop\.yaml: models\.cnn\.training\.batch_size: 5 given; allowed is at most 3, .*mine",
    ),
    "matched images of a folder": (
        (3, 32, {"models.cnn.merging.images": 4}),
        r"^scales/laptop\.yaml: models\.cnn\.merging\.images: 4 given; allowed is at most 3",
    ),
    "padding of a folder": (
        (3, 32, {"models.cnn.training.crop_padding": 32}),
        r"^scales/laptop\.yaml: models\.cnn\.training\.crop_padding: 32 given; allowed is less",
    ),
}


@pytest.mark.parametrize(("given", "line"), IMAGES.values(), ids=IMAGES)
def test_images_that_the_config_does_not_fit_are_refused_before_they_are_prepared_and_after(
    given, line, tmp_path
):
    count, side, changes = given
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (side, side)).save(tmp_path / split / "cat" / f"{i}.png")
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
    lines = []
    for _ in range(2):
        with pytest.raises(UserError) as error:
            for model in (None, *settings.models):
                check_images(settings, model, extent_of(spec, prepared))
        lines.append(str(error.value))
        data.prepare(spec, prepared)
    assert lines[0] == lines[1] and "\n" not in lines[0] and re.search(line, lines[0]), lines


# ---- values that are taken all the same


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
