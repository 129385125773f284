import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import refused
from small_training import RESNET, RESNET_RECIPE, VGG, VGG_RECIPE, assert_same, image_tree, saved, settings_of

from relusym import checkpoint
from relusym.data import image_set, prepare
from relusym.data.chiral_shapes import generate
from relusym.errors import Interrupted
from relusym.findings.frames import read_filters
from relusym.measuring import loading
from relusym.measuring.merge import MergeJob, merge_record
from relusym.measuring.train import TrainJob, train_record
from relusym.nets import build
from relusym.randomness import stream
from relusym.records.files import load_record, write_record
from relusym.records.fingerprint import fingerprint
from relusym.whole_files import sha256

CPU, LABEL = torch.device("cpu"), "generated shapes"
SETTINGS = {
    "cnn": settings_of(VGG, VGG_RECIPE.but(epochs=10, invariance_from=None, precision="float32")),
    "old": settings_of(RESNET, RESNET_RECIPE.but(epochs=10), size=33),
}
FAMILIES = pytest.mark.parametrize("model", SETTINGS)


def changed(settings, **training):
    return settings | {"training": settings["training"] | training}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.safetensors"
    image_set.save(path, *generate(200, 100, 0))
    return path


def made(results, data, unit, settings, seed=0, **how):
    """A training's record, written beside its checkpoint, and the two files."""
    folder = results / f"{unit}-{fingerprint(settings)}"
    to, record = (folder / f"{seed}.{ending}" for ending in ("safetensors", "json"))
    heard = {key: how.pop(key) for key in ("interrupted", "report") if key in how}
    trained = train_record(TrainJob(unit, seed, settings, data, LABEL, to, CPU, **how), **heard)
    write_record(record, trained)
    return trained, to, record


@pytest.fixture(scope="module")
def nets(tmp_path_factory, data):
    """Two nets of each family: model and seed → record, checkpoint, record's file."""
    folder = tmp_path_factory.mktemp("nets")
    names = [(model, seed) for model in SETTINGS for seed in (0, 1)]
    return {(model, seed): made(folder, data, model, SETTINGS[model], seed) for model, seed in names}


def merged(names, settings, files, data, filters=None):
    """The record of a merge of one net with its flipped self, or of two."""
    wanted = {"merging": {"images": 100, "matching": "activation"}, "trained": settings}
    if len(names) == 1:
        wanted |= {"symmetry": "horizontal_flip", "invariance_images": 50, "projection_seed": 0}
    checkpoints, records = zip(*files, strict=True)
    return merge_record(MergeJob(names, wanted, checkpoints, records, data, LABEL, 50, CPU, beside=filters))


@FAMILIES
def test_a_diverged_net_is_recorded_at_once_and_nothing_is_merged_from_it(tmp_path, data, nets, model):
    settings, seen = changed(SETTINGS[model], learning_rate=1000.0), []
    record, *files = made(tmp_path, data, model, settings, report=seen.append)
    assert record["status"] == "diverged" and record["accuracy"] is None and len(record["history"]) <= 2
    assert all(progress.epoch <= 3 and math.isfinite(progress.loss) for progress in seen)
    assert checkpoint.load(files[0])[1]["status"] == "diverged"
    json.dumps(record, allow_nan=False)
    filters = tmp_path / "filters.safetensors"
    flip = merged([(model, 0)], [settings], [files], data, filters=filters)
    assert (flip["status"], flip["reason"]) == ("left_out", f"{model}-0 is diverged")
    assert flip["outputs"]["filters"] == sha256(filters) and "barrier" not in flip
    kept = read_filters(filters)
    assert (kept.status, kept.reason, kept.drawn) == ("left_out", f"{model}-0 is diverged", {})
    _, *other = nets[model, 1]
    pair = merged([(model, 1), (model, 0)], [SETTINGS[model], settings], [other, files], data)
    assert (pair["status"], pair["reason"]) == ("left_out", f"{model}-0 is diverged")
    line = r"0\.safetensors was made with other settings"
    refused(lambda: merged([(model, 0)], [SETTINGS[model]], [files], data, filters=filters), match=line)


@pytest.mark.parametrize("frequent, least", [(10, 0.11), (50, 0.55), (95, 0.975), (100, 1)])
def test_more_accuracy_than_the_most_frequent_class_gives_can_be_reached(frequent, least):
    labels = torch.arange(100).sub(frequent - 1).clamp(min=0)  # class 0: `frequent` of 100
    assert loading.least_accuracy(labels) == pytest.approx(least)


@pytest.mark.slow(seconds=2)
@FAMILIES
def test_a_net_at_chance_is_recorded_as_degenerate_and_a_trained_one_is_not(tmp_path, data, nets, model):
    forgetting = {"learning_rate": 0.1, "weight_decay": 5.0, "momentum": 0.0}  # each step halves the weights
    settings = changed(SETTINGS[model], **forgetting)
    record, *files = made(tmp_path, data, model, settings)
    assert record["status"] == "degenerate" and record["accuracy"] == pytest.approx(0.1)
    flip = merged([(model, 0)], [settings], [files], data, filters=tmp_path / "filters.safetensors")
    assert (flip["status"], flip["reason"]) == ("left_out", f"{model}-0 is degenerate")
    for seed in (0, 1):
        record, *_ = nets[model, seed]
        assert record["status"] == "ok" and record["accuracy"] > 0.11


@pytest.mark.slow(seconds=1)
@FAMILIES
def test_the_net_of_each_seed_merges_with_itself_and_with_the_other(tmp_path, data, nets, model):
    settings, names, filters = SETTINGS[model], [(model, 0), (model, 1)], tmp_path / "filters.safetensors"
    (first, *files), (second, *others) = (nets[name] for name in names)
    hashes = [record["outputs"]["checkpoint"] for record in (first, second)]
    assert hashes[0] != hashes[1] and first["parameters"] == second["parameters"] > 0
    assert 0 < first["data_wait_share"] < 1 and checkpoint.load(files[0])[1]["settings"] == settings
    flip = merged(names[:1], [settings], [files], data, filters=filters)
    pair = merged(names, [settings, settings], [files, others], data)
    inner = ["halfway", "repaired"] if model == "cnn" else ["halfway", "reset", "repaired"]
    for merge, ends in ((flip, ["net", "flipped"]), (pair, ["net_1", "net_2"])):
        path = tmp_path / merge["kind"] / "record.json"
        write_record(path, merge)
        assert load_record(path)["status"] == "ok"
        assert list(merge["accuracy"]) == ends + inner and list(merge["barrier"]) == inner
    assert (flip["model"], flip["seed"]) == names[0]
    assert flip["inputs"]["checkpoints"] == hashes[:1] and pair["inputs"]["checkpoints"] == hashes
    assert [pair[key] for key in ("model_1", "seed_1", "model_2", "seed_2")] == [model, 0, model, 1]
    assert flip["accuracy"]["net"] == pair["accuracy"]["net_1"] == first["accuracy"]
    assert pair["accuracy"]["net_2"] == second["accuracy"] and flip["invariance_error"] > 0
    kept = read_filters(filters)
    assert (kept.model, kept.seed, kept.status) == (model, 0, "ok") and "conv1" in kept.drawn


@pytest.mark.slow(seconds=1)
def test_an_interrupted_training_resumes_at_that_step_and_ends_with_the_same_net(tmp_path, data, nets):
    whole, net, _ = nets["cnn", 0]
    settings, state, steps = SETTINGS["cnn"], tmp_path / "state.safetensors", []

    def asked():
        steps.append(None)
        return len(steps) == 7  # within an epoch

    with pytest.raises(Interrupted, match="the training state is saved"):
        made(tmp_path, data, "cnn", settings, state=state, interrupted=asked)
    assert [path.name for path in tmp_path.iterdir()] == [state.name]
    tensors, about = checkpoint.load(state)
    assert 0 < about["seconds"] < 60
    checkpoint.save(state, tensors, about | {"seconds": 3600.0})
    record, to, _ = made(tmp_path, data, "cnn", settings, state=state, interrupted=asked)
    assert len(steps) == settings["training"]["epochs"] * (200 // settings["training"]["batch_size"])
    assert_same(saved(to), saved(net))
    assert record["accuracy"] == whole["accuracy"]
    losses = [[epoch["loss"] for epoch in each["history"]] for each in (record, whole)]
    assert losses[0] == pytest.approx(losses[1])
    assert record["cost"]["earlier_seconds"] == 3600 and whole["cost"]["earlier_seconds"] == 0
    assert 3600 < record["cost"]["seconds"] <= record["cost"]["job_seconds"]


def test_the_state_of_a_training_on_other_images_or_of_another_net_is_refused(tmp_path, data):
    state, others = tmp_path / "state.safetensors", tmp_path / "data.safetensors"
    image_set.save(others, *generate(200, 100, 1))
    how = {"settings": SETTINGS["cnn"], "state": state, "interrupted": lambda: True}
    with pytest.raises(Interrupted):
        made(tmp_path, data, "cnn", **how)
    for images, seed, what in ((others, 0, "images"), (data, 1, "net")):
        line = rf"state\.safetensors is the state of a training of other {what}: delete it, and this one starts over$"
        refused(lambda images=images, seed=seed: made(tmp_path, images, "cnn", seed=seed, **how), match=line)
    with pytest.raises(Interrupted):
        made(tmp_path, data, "cnn", **how)


PRETRAINING = changed(SETTINGS["old"], objective="simsiam", epochs=6, learning_rate=0.1)


def test_a_linear_layer_on_another_pretraining_is_refused(data, tmp_path):
    before = changed(PRETRAINING, epochs=1)
    _, start, started = made(tmp_path, data, "old.pretraining", before)
    files = {"start": start, "started": started}
    linear = changed(SETTINGS["old"], objective="linear", epochs=1)
    other = linear | {"start": changed(before, epochs=2)}
    line = r"0\.safetensors was made with other settings"
    refused(lambda: made(tmp_path, data, "old", other, **files), match=line)
    settings = linear | {"start": before}
    record, to, _ = made(tmp_path, data, "old", settings, **files)
    assert record["inputs"]["start"] == sha256(start)
    encoder, net = saved(start), saved(to)
    for name, tensor in net.items():
        assert name.startswith("fc.") or torch.equal(tensor, encoder[f"encoder.{name}"]), name
    made(tmp_path, data, "old.pretraining", before, seed=1)
    files["start"] = start.with_name("1.safetensors")
    line = r"1\.safetensors isn't the one that .*0\.json names"
    refused(lambda: made(tmp_path, data, "old", settings, **files), match=line)


@pytest.mark.parametrize(("objective", "workers"), [("supervised", 0), ("simsiam", 1)])
def test_a_net_trains_on_image_files(tmp_path, objective, workers):
    tree, images = image_tree(tmp_path / "imagenet"), tmp_path / "images.safetensors"
    how = {"root": str(tree), "resize": 36, "size": 33, "train_images": 10, "seed": 0}
    prepare({"kind": "imagenet", **how}, images)
    recipe = RESNET_RECIPE.but(objective=objective, batch_size=8)
    settings = settings_of(RESNET, recipe, size=33, dataset="imagenet")
    record, to, _ = made(tmp_path, images, "old", settings, folder=tree / "train", workers=workers)
    assert len(record["history"]) == 2 and record["inputs"]["source"] == LABEL
    assert (record["accuracy"] is None) == (objective == "simsiam")
    assert checkpoint.load(to)[1]["classes"] == 3


def test_images_that_are_not_square_are_refused_for_quarter_turns_before_the_training(tmp_path):
    split, images = generate(20, 1, 0)[0], tmp_path / "images.safetensors"
    wide = replace(split, images=split.images.repeat(1, 1, 2, 1))
    image_set.save(images, wide, wide)
    settings = changed(SETTINGS["cnn"], augmentation=False, invariance_from=0.0) | {
        "symmetry": "quarter_turn"
    }
    refused(lambda: made(tmp_path, images, "cnn", settings), "images of 64×32 pixels have to be square")


def test_nets_are_stored_at_the_configured_epochs_even_if_the_training_was_interrupted(tmp_path, data):
    settings, epochs = changed(SETTINGS["cnn"], epochs=3), [0, 1, 3]
    plain, to, _ = made(tmp_path / "plain", data, "cnn", settings)
    steps = 200 // settings["training"]["batch_size"]
    asked, how = iter([False] * (2 * steps) + [True]), {"snapshots": epochs, "state": tmp_path / "state"}
    with pytest.raises(Interrupted):  # in the third epoch
        made(tmp_path, data, "cnn", settings, interrupted=lambda: next(asked), **how)
    trained, kept_to, _ = made(tmp_path, data, "cnn", settings, **how)
    assert_same(saved(to), saved(kept_to))
    folder = kept_to.parent / "during_training"
    paths = {epoch: folder / f"0-{epoch}.safetensors" for epoch in epochs}
    assert sorted(folder.iterdir()) == sorted(paths.values())
    assert trained["outputs"].pop("snapshots") == {str(epoch): sha256(path) for epoch, path in paths.items()}
    assert trained["outputs"] == plain["outputs"] | {"checkpoint": sha256(kept_to)}
    assert_same(saved(paths[3]), saved(kept_to))
    assert checkpoint.load(paths[1])[1]["epoch"] == 1
    torch.manual_seed(stream(0, "cnn", "weights"))
    assert_same(saved(paths[0]), build(settings["network"], 10).state_dict())


def test_a_clock_that_was_set_back_loses_no_record(monkeypatch):
    meter = loading.JobMeter(torch.device("cpu"))
    monkeypatch.setattr(loading.time, "time", lambda: 0.0)
    cost = meter.fields()["cost"]
    assert cost["job_seconds"] == cost["seconds"] >= 0
