"""Training: augmentation, determinism, resuming, and the argument of the paper's Figure 3."""

import io
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from relusym import checkpoint
from relusym.data import image_set
from relusym.data.augmentation import MEAN, STD, RandomCropFlip, normalise
from relusym.data.chiral_shapes import generate
from relusym.errors import Interrupted, UserError
from relusym.experiments.measuring import load_net, measure_merge, train_net
from relusym.merging.images import Images
from relusym.merging.invariance import invariance_error, invariance_loss, relative_invariance_error
from relusym.nets.vgg import VGG11
from relusym.randomness import generator, stream
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.loop import TrainingSettings, autocast_to, train
from relusym.training.progress import Reporter

SETTINGS = TrainingSettings(
    epochs=3,
    batch_size=20,
    learning_rate=0.02,
    momentum=0.9,
    weight_decay=5e-4,
    warmup_epochs=1,
    crop_padding=2,
    flip_augmentation=True,
    invariance_weight=0.3,
    invariance_from=0.4,
)


@pytest.fixture(scope="module")
def images():
    return generate(200, 100, 0)[0]


def a_net(seed=0, group_convs=0):
    torch.manual_seed(seed)
    return VGG11(1 / 32, group_convs, initialization="he")


def test_crops_and_flips_are_those_of_a_plain_loop():
    images = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8)
    augmented, index = RandomCropFlip(images, 2, True), torch.tensor([3, 0, 11, 3])
    got = augmented.batch(index, torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(0)
    top, left = torch.randint(5, (2, 4, 1), generator=random)
    mirrored = torch.rand((4, 1), generator=random) < 0.5
    assert mirrored.any() and not mirrored.all()
    for i, k in enumerate(index.tolist()):
        padded = nn.functional.pad(images[k], (0, 0, 2, 2, 2, 2))
        crop = padded[top[i] : top[i] + 8, left[i] : left[i] + 8]
        crop = crop.flip(1) if mirrored[i] else crop
        assert torch.equal(got[i], normalise(crop[None])[0])
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_by_cifar10s_mean_and_std():
    images = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    expected = (255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(normalise(images)[0, :, 0, 0], expected)


def test_the_learning_rate_rises_linearly_and_falls_to_zero():
    settings = replace(SETTINGS, epochs=10, warmup_epochs=2, learning_rate=0.08)
    rates = [settings.learning_rate_at(epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.04, 0.08, 0.04, 0])


def test_late_invariance_is_on_after_its_share_of_the_epochs():
    late = replace(SETTINGS, epochs=10, invariance_from=0.2)
    assert [late.invariance_at(epoch) for epoch in (0, 1, 2, 9)] == [False, False, True, True]
    assert not replace(late, invariance_from=None).invariance_at(9)
    assert replace(late, invariance_from=0.0).invariance_at(0)


def test_invariance_measures_on_hand_worked_logits():
    logits, moved = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert invariance_loss(logits, moved) == pytest.approx(2.5)
    assert relative_invariance_error(logits, moved).tolist() == pytest.approx([2.0, 0.0])


def test_the_invariance_error_of_a_gcnn_is_zero_and_of_a_cnn_is_not(images):
    assert invariance_error(a_net(group_convs=8), Images(images.images)) < 1e-5
    assert invariance_error(a_net(), Images(images.images)) > 1e-2


def test_streams_of_types_seeds_and_purposes_differ():
    keys = [(0, "cnn"), (1, "cnn"), (0, "cnn_inv"), (0, "cnn", "epoch", 0), (0, "cnn", "epoch", 1)]
    assert len({stream(*key) for key in keys}) == len(keys)
    assert torch.equal(torch.rand(3, generator=generator(0, "a")), torch.rand(3, generator=generator(0, "a")))


def test_the_same_seed_gives_the_same_bytes(images):
    states = []
    for _ in range(2):
        net = a_net()
        train(net, images.images, images.labels, SETTINGS, 0, "cnn")
        states.append(net.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_auto_precision_is_bfloat16_only_where_the_cpu_is_fast_in_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, dtype in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert autocast_to("auto", cpu) == dtype
        assert autocast_to("float32", cpu) == torch.float32


def test_training_in_bfloat16_keeps_float32_weights_and_learns_like_float32(images):
    last = {}
    for precision in ("float32", "bfloat16"):
        net = a_net()
        settings = replace(SETTINGS, epochs=10, precision=precision)
        last[precision] = train(net, images.images, images.labels, settings, 0, "cnn").history
        assert all(tensor.dtype == torch.float32 for tensor in net.state_dict().values())
    first = [history[0]["loss"] for history in last.values()]
    final = [history[-1]["loss"] for history in last.values()]
    assert first[0] != first[1]  # it was another arithmetic
    assert final == pytest.approx([final[0]] * 2, rel=0.1) and max(final) < first[0]


def test_a_training_cut_off_between_epochs_ends_with_the_same_bytes(images, tmp_path):
    whole, cut = a_net(), a_net()
    train(whole, images.images, images.labels, SETTINGS, 0, "cnn")
    state = tmp_path / "state.safetensors"

    class CutOff(Exception):
        pass

    def cut_off(progress):
        if progress.epoch > 2:
            raise CutOff

    with pytest.raises(CutOff):
        train(cut, images.images, images.labels, SETTINGS, 0, "cnn", state=state, report=cut_off)
    resumed = a_net(seed=99)  # nothing of a fresh start may matter
    seen = []
    train(resumed, images.images, images.labels, SETTINGS, 0, "cnn", state=state, report=seen.append)
    assert seen[0].epoch > 2
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("steps", [1, 13, 20], ids=["first step", "mid-epoch", "end of an epoch"])
def test_an_interrupted_training_saves_its_state_at_that_step_and_ends_with_the_same_bytes(
    images, tmp_path, steps
):
    whole, net = a_net(), a_net()
    wanted = train(whole, images.images, images.labels, SETTINGS, 0, "cnn").history
    state = tmp_path / "state.safetensors"
    asked = []
    for _ in range(2):  # the second time, it goes on from a state within an epoch
        net, asked = a_net(seed=99 if asked else 0), []
        with pytest.raises(Interrupted, match="the next run goes on from it"):
            train(
                *(net, images.images, images.labels, SETTINGS, 0, "cnn"),
                state=state,
                interrupted=lambda: asked.append(1) or len(asked) >= steps,  # noqa: B023
            )
        if steps == 20:
            break
    net = a_net(seed=99)
    history = train(net, images.images, images.labels, SETTINGS, 0, "cnn", state=state).history
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in whole.state_dict().items())
    for row, expected in zip(history, wanted, strict=True):
        assert (row["epoch"], row["loss"], row["accuracy"]) == (
            expected["epoch"],
            expected["loss"],
            expected["accuracy"],
        )


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
JOB = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from relusym.jobs.interruption import Interruption
from relusym.experiments.measuring import train_net
from relusym.training.progress import Reporter
with Interruption() as interrupted:
    train_net("cnn", 0, json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), device=torch.device("cpu"),
              state=Path(sys.argv[4]), interrupted=interrupted, report=Reporter("cnn-0", sys.stdout))
"""


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.safetensors"
    image_set.save(path, *generate(200, 100, 0))
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_training_ended_by_a_signal_and_started_again_ends_with_the_same_bytes(
    tmp_path, data, pytestconfig, number
):
    def start(name):
        arguments = [
            json.dumps(RECORD_SETTINGS),
            data,
            tmp_path / name,
            tmp_path / f"{name}.state.safetensors",
        ]
        command = [sys.executable, "-c", JOB, *map(str, arguments)]
        environment = {"PYTHONPATH": str(pytestconfig.rootpath / "workflow_scripts")}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    whole = start("whole")
    ended = start("ended")
    state = tmp_path / "ended.state.safetensors"
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    ended.send_signal(number)
    told = ended.communicate(timeout=60)[1]
    assert ended.returncode != 0 and ("the training state is saved" in told) == (number != signal.SIGKILL)
    assert state.exists() and not (tmp_path / "ended").exists()
    again = start("ended")
    lines = again.communicate(timeout=120)[0].splitlines()
    whole.communicate(timeout=120)
    assert 0 < len(lines) < RECORD_SETTINGS["training"]["epochs"]  # it went on, it didn't start over
    assert (tmp_path / "ended").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not state.exists() and not list(tmp_path.glob("*.part*"))


def test_flipped_initial_filters_and_flipped_batches_train_the_flipped_net(images):
    """The argument of Figure 3: Φ̂, trained on the mirrored path, stays Φ with flipped filters."""
    net = a_net().double()
    twin = HORIZONTAL_FLIP.transform(net)
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, momentum=0.9, weight_decay=5e-4) for n in (net, twin)]
    augmented = RandomCropFlip(images.images, 2, True)
    start = net.features.conv4.weight.detach().clone()
    for index, x in augmented.epoch(20, generator(0, "figure 3")):
        for n, optimizer, batch in zip((net, twin), optimizers, (x, x.flip(-1)), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(n(batch.double()), images.labels[index]).backward()
            optimizer.step()
    assert (net.features.conv4.weight - start).abs().max() > 1e-3
    flipped = HORIZONTAL_FLIP.transform(net).state_dict()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(tensor, flipped[name], rtol=1e-8, atol=1e-10)


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


def test_progress_is_one_changing_line_on_a_terminal_and_a_line_an_epoch_in_a_log(images):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    log, terminal = io.StringIO(), Terminal()
    for stream_ in (log, terminal):
        train(a_net(), images.images, images.labels, SETTINGS, 0, "cnn", report=Reporter("cnn-0", stream_))
    lines = log.getvalue().splitlines()
    assert len(lines) == SETTINGS.epochs and "\r" not in log.getvalue()
    for word in ("cnn-0", "epoch", "loss", "accuracy", "images/s", "left"):
        assert word in lines[0]
    assert terminal.getvalue().count("\r") >= SETTINGS.epochs and terminal.getvalue().count("\n") == 1
    assert math.isfinite(float(lines[-1].split("loss")[1].split()[0]))
