"""What a user can get wrong: told in one clear line, before any job where it can be, and nothing half-written."""

import copy
import errno
import json
import os
import pickle
import resource
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from relusym import checkpoint
from relusym.data import image_set
from relusym.errors import UserError
from relusym.experiments.config import seed_list
from relusym.experiments.nets_and_images import load_net
from relusym.experiments.settings import Settings
from relusym.findings.layout import Layout, write_table
from relusym.records import FIELDS, MEASURED, read_record, write_record, write_whole

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "config.yaml").read_text(encoding="utf-8"))
TYPES = "cnn, cnn_noaug, cnn_inv, cnn_late_inv, gcnn, pgcnn, pgcnn_late_inv, "
TYPES += "old, old_inv, old_odd, old_inv_odd, simsiam_odd"


def last_line(run):
    return run.stdout.strip().splitlines()[-1]


# ---- the config


@pytest.fixture(scope="module")
def fresh(clone):
    return clone()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("scale=papr", "config error: scale: 'papr' given; allowed is one of demo, laptop, paper"),
        (
            "scales={demo: {training: {batchsize: 40}}}",
            "config error: scales.demo.training: unknown key 'batchsize'; allowed are objective, epochs, batch_size, "
            "learning_rate, schedule, momentum, weight_decay, warmup_epochs, optimizer, crop_padding, augmentation, "
            "invariance_weight, invariance_from, precision, save_every, processes, restarts, workers, "
            "sync_batch_norm, dimensions, bottleneck",
        ),
        ("threads=many", "config error: threads: 'many' given; allowed is a value of type integer"),
        ("seeds=0,1,1", "config error: seeds: 1 is listed twice in 0,1,1; list each seed once"),
        (
            "pairs=[[cnn, resnet]]",
            "config error: pairs: [cnn, resnet] names 'resnet', which isn't trained; the types under `models` are "
            + TYPES,
        ),
        (
            "scales={demo: {families: {resnet: {network: {widht: 1}}}}}",
            "config error: scales.demo.families.resnet.network: unknown key 'widht'; allowed are width, group_convs, "
            "initialization, block, layers, blocks",
        ),
    ],
)
def test_the_last_line_of_snakemake_names_key_given_and_allowed(fresh, given, line):
    run = fresh.snakemake("--dry-run", "--config", given)
    assert run.returncode != 0
    assert last_line(run) == line
    assert "Traceback" not in run.stdout and "File " not in run.stdout


def assert_one_line(config, key, given, told):
    """The config with `given` at `key` is refused by one line that holds `told`."""
    config = copy.deepcopy(config)
    *path, name = key.split(".")
    section = config
    for part in path:
        section = section[part]
    section[name] = given
    with pytest.raises(UserError) as error:
        Settings.of(config)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "given", "told"),
    [
        ("scael", "demo", "unknown key 'scael'; allowed are scale, seeds, device, threads"),
        (
            "models.cnn.network",
            {"group_conv": 8},
            "models.cnn.network: unknown key 'group_conv'; allowed are width, group_convs, init",
        ),
        (
            "scales.demo.training.epochs",
            1.5,
            "scales.demo.training.epochs: 1.5 given; allowed is a value of type int",
        ),
        ("scales.demo.training.epochs", 0, "scales.demo.training.epochs: 0 given; allowed is at least 1"),
        ("scales.demo.training.momentum", 1, "momentum: 1 given; allowed is less than 1"),
        (
            "scales.demo.training.learning_rate",
            float("nan"),
            "learning_rate: 'nan' given; allowed is a value of type",
        ),
        (
            "scales.demo.training.learning_rate",
            ".inf",
            "learning_rate: 'inf' given; allowed is a value of type",
        ),
        ("scales.demo.training.warmup_epochs", 100, "warmup_epochs: 100 isn't less than the"),
        (
            "scales.demo.network.width",
            0.001,
            "scales.demo.network.width: 0.001 given; allowed is a multiple of 1/32",
        ),
        ("scales.demo.network.initialization", "zeros", "'zeros' given; allowed is one of pytorch, he"),
        (
            "scales.demo.network.initialisation",
            "he",
            "scales.demo.network: unknown key 'initialisation'; allowed",
        ),
        (
            "defaults.network.groups",
            1,
            "defaults.network: unknown key 'groups'; allowed are width, group_convs",
        ),
        (
            "scales.demo.network.architecture",
            "vgg",
            "network.architecture: 'vgg' given; allowed is one of vgg11, ",
        ),
        (
            "scales.demo.models.old.network",
            {"layer": 1},
            "models.old.network: unknown key 'layer'; allowed are bl",
        ),
        ("scales.demo.models.old.family", "vgg", "models.old.family: 'vgg' given; allowed is one of resnet"),
        (
            "scales.demo.data.dataset",
            "images",
            "'images' given; allowed is one of generated, cifar10, imagenet",
        ),
        ("scales.demo.data.train_images", None, "scales.demo.data: generated images need numbers"),
        ("scales.laptop.data.test_images", 5, "scales.laptop.data.test_images: only for generated images"),
        ("scales.paper.seeds", "0-2,1", "seeds: 1 is listed twice in 0-2,1"),
        ("seeds", [0, 0], "seeds: 0 is listed twice in [0, 0]"),
        ("seeds", "2-0", "seeds: the range 2-0 runs backwards; write 0-2"),
        ("seeds", "first", "seeds: 'first' given; allowed are seeds such as 3, 0-3, or [0, 5]"),
        ("seeds", -1, "seeds: -1 given; allowed are seeds such as"),
        ("seeds", 99, "seeds: 99 is none of the scale demo's seeds"),
        ("device", "gpu", "device: 'gpu' given; allowed is text that matches ^(auto|cpu|cuda"),
        (
            "models.cnn.network",
            {"group_convs": 9},
            "models.cnn.network.group_convs: 9 given; allowed is at most 8",
        ),
        (
            "models.cnn.training",
            {"augmentation": "maybe"},
            "models.cnn.training.augmentation: 'maybe' given; allowed is a value of type bool",
        ),
        ("pairs", [["cnn"]], "pairs.0: ['cnn'] given; allowed is a list of at least 2"),
        ("pairs", [["cnn", "gcnn"], ["cnn", "gcnn"]], "pairs: [cnn, gcnn] is listed twice"),
        ("cifar10.source", "web", "cifar10.source: 'web' given; allowed is one of torchvision, folder"),
        ("cifar10.root", "", "cifar10.root: '' given; allowed is text of at least 1 character"),
        ("scale", None, "scale: None given; allowed is a value of type string"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(key, given, told):
    assert_one_line(CONFIG, key, given, told)


@pytest.mark.parametrize(
    ("key", "given", "told"),
    [
        (
            "models.dino.weights.urls",
            None,
            "models.dino.weights.urls: None given; allowed is a value of type arr",
        ),
        (
            "models.dino.recipe",
            ["supervised"],
            "recipe.0: 'supervised' given; allowed is one of training, pretr",
        ),
        ("models.byol.weights.layout", "mine", "'mine' given; allowed is one of auto, plain, module"),
        ("models.byol.paper", "boyl", "models.byol.paper: the paper's Table 5 has no row 'boyl'"),
        ("models.byol.sorce", "file", "models.byol: unknown key 'sorce'"),
        (
            "families.resnet.training.processes",
            3,
            "training.batch_size: 256 can't be shared evenly by 3 processes",
        ),
        ("families.resnet.data.resize", 200, "families.resnet.data.resize: 200 given; a crop of 224 pixels"),
        (
            "families.resnet.training.schedule",
            "steps",
            "'steps' given; allowed is one of linear, cosine, step",
        ),
        (
            "families.resnet.linear.objective",
            "layer",
            "'layer' given; allowed is one of supervised, simsiam, lin",
        ),
    ],
)
def test_a_bad_setting_of_the_papers_resnets_is_told_in_one_line(key, given, told):
    assert_one_line({**CONFIG, "scale": "paper"}, f"scales.paper.{key}", given, told)


def test_a_missing_setting_is_named():
    config = copy.deepcopy(CONFIG)
    del config["scales"]["demo"]["training"]["epochs"]
    with pytest.raises(UserError, match=r"^scales\.demo\.training: the key 'epochs' is missing$"):
        Settings.of(config)


def test_values_that_the_command_line_leaves_as_text_are_taken_for_what_they_are():
    config = copy.deepcopy(CONFIG)
    config["seeds"], config["threads"] = "0,2", "2"
    config["scales"]["demo"]["training"]["learning_rate"] = "1e-2"
    config["cifar10"]["root"] = "{odd folder"
    settings = Settings.of(config)
    assert settings.seeds == [0, 2] == seed_list([0, 2])
    assert settings.config["threads"] == 2
    assert settings.train("cnn")["training"]["learning_rate"] == 0.01
    assert settings.config["cifar10"]["root"] == "{odd folder"


# ---- the data folder (its other faults: test_image_set)


def test_a_job_that_fails_on_its_input_tells_the_line_and_leaves_no_output(fresh):
    source = "cifar10={source: folder, root: nowhere}"
    config = {
        **CONFIG,
        "scale": "laptop",
        "cifar10": {**CONFIG["cifar10"], "source": "folder", "root": "nowhere"},
    }
    prepared = f"data/{Settings.of(config).prepared()}.safetensors"
    run = fresh.snakemake(prepared, "--config", "scale=laptop", source)
    assert run.returncode != 0
    told = "data folder nowhere is missing: set cifar10.root to the folder that holds train/ and test/"
    assert f"\nerror in rule prepare_data: {told}\n" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (fresh.folder / prepared).exists()
    log = (fresh.folder / prepared).with_suffix(".log")
    assert log.read_text(encoding="utf-8") == f"error: {told}\n"


# ---- checkpoints (truncated ones and those of another net: test_training)


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '{"kind": "train", ',
            r"train/cnn-0\.json is not valid JSON \(.*\): delete it, and it is made again$",
        ),
        ('{"kind": "train", "status": "ok"}', r"train/cnn-0\.json lacks the field 'model': delete it"),
    ],
)
def test_snakemake_names_an_invalid_record_and_leaves_it(clone, text, told):
    made = clone()
    record = made.folder / "results" / "demo" / "records" / "train" / "cnn-0.json"
    record.parent.mkdir(parents=True)
    record.write_text(text, encoding="utf-8")
    run = made.snakemake("--dry-run")
    assert run.returncode != 0 and "Traceback" not in run.stdout
    with pytest.raises(UserError, match=told) as error:
        read_record(record)
    assert last_line(run) == f"error: {error.value}".replace(f"{made.folder}/", "")
    assert record.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("kind", FIELDS)
def test_every_missing_field_of_a_record_is_named(tmp_path, kind):
    whole = {
        "kind": kind,
        **dict.fromkeys(FIELDS[kind] + (MEASURED if kind.endswith("_merge") else ()), "ok"),
    }
    path = tmp_path / "record.json"
    write_record(path, whole)
    assert read_record(path) == whole
    for field in whole:
        write_record(path, {key: value for key, value in whole.items() if key != field})
        with pytest.raises(UserError, match=rf"record\.json lacks the field '{field}'"):
            read_record(path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", '{"kind": "letter"}', "\x00\x01"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"record\.json (is not valid JSON|lacks the field 'kind')") as error:
        read_record(path)
    assert "\n" not in str(error.value)


def test_a_record_never_holds_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError):
        write_record(tmp_path / "record.json", {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


# ---- no space left


@contextmanager
def little_space(size):
    """Files can grow to `size` bytes; what is written beyond fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def a_record(path):
    write_record(path, {"permutation": list(range(5000))})


def a_checkpoint(path):
    checkpoint.save(path, {"weight": torch.zeros(5000)}, {})


def prepared_images(path):
    train, test = (
        image_set.ImageSet(
            torch.zeros(9, 32, 32, 3, dtype=torch.uint8), torch.zeros(9).long(), ("a",), "nothing"
        )
        for _ in range(2)
    )
    image_set.save(path, train, test)


def a_table(path):
    write_table(pd.DataFrame({"n": range(5000)}), path.with_suffix(""), Layout("Title"))


def a_figure(path):
    figure = Figure()
    figure.subplots().plot(range(100))
    with write_whole(path) as part:
        figure.savefig(part)


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (a_record, "cnn-0.json"),
        (a_checkpoint, "cnn-0.safetensors"),
        (prepared_images, "images.safetensors"),
        (a_table, "table2.csv"),
        (a_figure, "figure4.png"),
    ],
)
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(tmp_path, write, name, older):
    path = tmp_path / name
    if older:
        path.write_bytes(b"older")
    with little_space(2048), pytest.raises(UserError) as error:
        write(path)
    told = str(error.value)
    assert told.startswith(f"{path} can't be written (") and "\n" not in told and "File too large" in told
    assert [p.name for p in tmp_path.iterdir()] == ([name] if older else [])
    assert not older or path.read_bytes() == b"older"


def test_a_disk_that_is_full_only_when_the_bytes_are_flushed_is_told_too(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "cnn-0.json"
    with pytest.raises(UserError, match=r"cnn-0\.json can't be written \(No space left on device\)"):
        write_record(path, json.loads("{}"))
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_interrupted_leaves_the_older_file(tmp_path):
    path = tmp_path / "cnn-0.json"
    write_record(path, {"kind": "older"})
    with pytest.raises(KeyboardInterrupt), write_whole(path) as part:
        part.write_text("{", encoding="utf-8")
        raise KeyboardInterrupt
    assert json.loads(path.read_text(encoding="utf-8")) == {"kind": "older"}
    assert [p.name for p in tmp_path.iterdir()] == ["cnn-0.json"]
