"""From a training to its record: diverged and degenerate nets, checkpoints that don't fit, stages, image files."""

import json
from pathlib import Path

import pytest
import torch
from relusym.experiments.measuring import device_of, load_net, measure_merge, train_net
from relusym.experiments.resnet_measuring import train_row
from small_training import small_net as a_net

from relusym import checkpoint
from relusym.data import image_set
from relusym.data.chiral_shapes import generate
from relusym.errors import UserError

RECORD_SETTINGS = {
    "data": {"dataset": "generated", "train_images": 200, "test_images": 100, "seed": 0},
    "network": {"width": 1 / 32, "initialization": "he", "group_convs": 0},
    "training": {
        "epochs": 20,
        "batch_size": 20,
        "learning_rate": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "warmup_epochs": 1,
        "crop_padding": 2,
        "invariance_weight": 0.3,
        "save_every": 1,
        "precision": "float32",
        "flip_augmentation": True,
        "invariance_from": None,
    },
    "invariance_images": 100,
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.safetensors"
    image_set.save(path, *generate(200, 100, 0))
    return path


def test_a_diverged_net_is_recorded_at_once_and_nothing_is_merged_from_it(tmp_path, data):
    settings = {**RECORD_SETTINGS, "training": {**RECORD_SETTINGS["training"], "learning_rate": 1e6}}
    seen = []
    record = train_net(
        "cnn", 0, settings, data, tmp_path / "net", device=torch.device("cpu"), report=seen.append
    )
    assert record["status"] == "diverged" and record["accuracy"] is None
    assert all(progress.epoch <= 3 for progress in seen)
    json.dumps(record, allow_nan=False)
    merge_settings = {"merging": {"images": 50, "batch_size": 50}, "trained": [settings]}
    merged = measure_merge([tmp_path / "net"], merge_settings, data, device=torch.device("cpu"))
    assert (merged["status"], merged["reason"]) == ("left_out", "cnn-0 is diverged")
    merge_settings["trained"] = [RECORD_SETTINGS]
    with pytest.raises(UserError, match="net was trained with other settings"):
        measure_merge([tmp_path / "net"], merge_settings, data, device=torch.device("cpu"))


def test_a_net_at_chance_is_recorded_as_degenerate_and_a_trained_one_is_not(tmp_path, data):
    chance = {**RECORD_SETTINGS["training"], "epochs": 2, "learning_rate": 1e-9}
    settings = {
        **RECORD_SETTINGS,
        "network": {"width": 1 / 32, "initialization": "pytorch", "group_convs": 0},
    }
    record = train_net(
        "cnn", 0, {**settings, "training": chance}, data, tmp_path / "net", device=torch.device("cpu")
    )
    assert record["status"] == "degenerate" and record["accuracy"] == pytest.approx(0.1)


def test_checkpoints_that_are_truncated_foreign_or_of_another_net_are_named(tmp_path):
    device = torch.device("cpu")
    path = tmp_path / "net.safetensors"
    for tensors, about in (
        ({"a": torch.zeros(1)}, {}),
        (
            a_net().state_dict(),
            {"settings": {"network": {"width": 1 / 16, "group_convs": 0}}, "status": "ok"},
        ),
    ):
        checkpoint.save(path, tensors, about)
        with pytest.raises(Exception, match=r"net\.safetensors doesn't hold a VGG11"):
            load_net(path, device)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Exception, match=r"net\.safetensors is truncated"):
        load_net(path, device)


RECIPE = {
    "epochs": 2,
    "batch_size": 40,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "optimizer": "sgd",
    "sync_batch_norm": False,
    "save_every": 1,
    "precision": "float32",
}


def small_job(images, folder, *, to="net", stage="supervised", epochs=2):
    """What the rule resnet_train gives a worker."""
    return {
        "row": "old",
        "stage": stage,
        "settings": {
            "seed": 0,
            "images": {"dataset": "generated", "train_images": None, "seed": 0, "size": 33},
            "network": {"block": "basic", "layers": [1, 1, 1, 1], "width": 0.125},
            "processes": 1,
            "crop_padding": 2,
            "recipe": RECIPE | {"epochs": epochs},
            "heads": {"dimensions": 32, "bottleneck": 8} if stage == "pretraining" else {},
            "invariance_weight": None,
            "pretrained": None,
        },
        "images": str(images),
        "to": str(Path(folder) / f"{to}.safetensors"),
        "pretrained": None,
        "workers": 0,
        "state": None,
        "device": "cpu",
    }


PATHS = ("images", "to", "pretrained", "state")


def run(job, report=lambda progress: None):
    """The training that a job, as plain JSON, tells of; `train_row`'s record."""
    given = {key: Path(value) if key in PATHS and value else value for key, value in job.items()}
    return train_row(**{**given, "device": device_of(job["device"])}, report=report)


@pytest.mark.parametrize("stage", ["supervised", "pretraining"])
def test_a_training_learns_and_its_record_says_how_long_it_waited_for_images(data, tmp_path, stage):
    job = small_job(data, tmp_path, stage=stage, epochs=6)
    record = run(job)
    losses = [epoch["loss"] for epoch in record["history"]]
    assert record["status"] == "ok" and losses[-1] < losses[0]
    assert 0 < record["data_wait_share"] < 1
    assert checkpoint.load(job["to"])[1]["settings"] == job["settings"]


def test_a_diverged_training_is_a_result(data, tmp_path):
    job = small_job(data, tmp_path, epochs=3)
    job["settings"]["recipe"] |= {"learning_rate": 1e30}
    record = run(job)
    assert record["status"] == "diverged"
    assert checkpoint.load(job["to"])[1]["status"] == "diverged"


def test_a_linear_layer_of_other_pretraining_is_refused(data, tmp_path):
    before = small_job(data, tmp_path, to="before", stage="pretraining", epochs=1)
    run(before)
    job = small_job(data, tmp_path, stage="linear", epochs=1) | {"pretrained": before["to"]}
    job["settings"]["pretrained"] = before["settings"] | {"seed": 5}
    with pytest.raises(UserError, match="was trained with other settings"):
        run(job)
    job["settings"]["pretrained"] = before["settings"]
    assert run(job)["status"] == "ok"
    encoder, net = checkpoint.load(before["to"])[0], checkpoint.load(job["to"])[0]
    for name, tensor in net.items():
        assert name.startswith("fc.") or torch.equal(tensor, encoder[f"encoder.{name}"]), name


@pytest.mark.parametrize(("stage", "workers"), [("supervised", 0), ("pretraining", 1)])
def test_a_net_trains_on_image_files(tree, tmp_path, stage, workers):
    job = small_job(tree / "train", tmp_path, stage=stage, epochs=2) | {"workers": workers}
    job["settings"]["images"] = {"dataset": "ImageNet", "size": 33}
    job["settings"]["recipe"]["batch_size"] = 8
    record = run(job)
    assert record["status"] == "ok" and record["inputs"]["source"] == "ImageNet"
    assert checkpoint.load(job["to"])[1]["classes"] == 3
