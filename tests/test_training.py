import io
import math
import re
import signal
from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from conftest import refused
from slurm_cluster import wait_until
from small_nets import Images
from small_training import (
    CPU,
    RESNET,
    RESNET_RECIPE,
    VGG,
    VGG_RECIPE,
    assert_same,
    batches_of,
    saved,
    small_images,
    small_net,
    train_on,
)

from relusym import checkpoint, nets
from relusym.data.image_set import subset
from relusym.errors import WARNINGS, Interrupted, Interruption
from relusym.evaluation.invariance import invariance_error, relative_invariance_error
from relusym.nets.simsiam import SimSiam, simsiam_loss
from relusym.randomness import generator, stream
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN
from relusym.training.loop import Lars, Reporter, Sgd, autocast_to, train
from relusym.training.objectives import INVARIANCE_LOSSES
from relusym.training.recipe import Recipe


@pytest.fixture(scope="module")
def images():
    return small_images()


def test_the_step_schedule_divides_the_rate_by_ten_after_each_third():
    recipe = Recipe(epochs=90, batch_size=1024, learning_rate=0.4, schedule="step")
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 29.9, 30, 59.9, 60, 89.9)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_cosine_and_linear_schedules_end_at_zero_after_their_warm_up():
    for schedule, three_quarters in (("cosine", (1 - 0.5**0.5) / 2), ("linear", 0.25)):
        recipe = Recipe(epochs=12, batch_size=256, learning_rate=1.0, schedule=schedule, warmup_epochs=4)
        rates = [recipe.learning_rate_at(epoch) for epoch in (0, 2, 4, 8, 10, 12)]
        assert rates == pytest.approx([0, 0.5, 1, 0.5, three_quarters, 0])


def test_late_invariance_is_on_after_its_share_of_the_epochs():
    late = VGG_RECIPE.but(epochs=10, invariance_from=0.2)
    assert [late.invariance_at(epoch) for epoch in (0, 1, 2, 9)] == [False, False, True, True]
    assert not late.but(invariance_from=None).invariance_at(9)
    assert late.but(invariance_from=0.0).invariance_at(0)
    assert [
        epoch for epoch in range(25) if not late.but(epochs=25, invariance_from=0.28).invariance_at(epoch)
    ][-1] == 6


def test_the_latest_start_that_the_error_allows_is_allowed():
    line = refused(lambda: VGG_RECIPE.but(epochs=3, invariance_from=0.9))
    most = re.search("allowed is at most ([0-9.]+)", line)[1]
    assert VGG_RECIPE.but(epochs=3, invariance_from=float(most)).invariance_at(2)


def test_lars_scales_the_rate_by_the_norms_of_weights_and_gradients():
    weight = torch.nn.Parameter(torch.full((1, 4), 3.0))
    bias = torch.nn.Parameter(torch.zeros(4))
    optimizer = Lars([{"params": [weight, bias]}], lr=20.0, momentum=0.0, weight_decay=0.0)
    weight.grad, bias.grad = torch.full((1, 4), 5.0), torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((1, 4), 3 - 20 * 1e-3 * 3 / 5 * 5))
    torch.testing.assert_close(bias.detach(), torch.full((4,), -20.0))


@pytest.mark.parametrize("scaled", [False, True])
def test_sgd_takes_exactly_torchs_steps(scaled):
    ends = []
    for make in (Sgd, partial(torch.optim.SGD, fused=True)):
        torch.manual_seed(0)
        weight, bias, unused = (torch.nn.Parameter(torch.randn(n)) for n in (40, 4, 4))
        how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
        optimizer = make([{"params": [weight, unused]}, {"params": [bias], "weight_decay": 0.0}], **how)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**8)
        for step in range(4):
            overflow = math.inf if scaled and step == 2 else 1.0  # this step is skipped
            scaler.scale((weight**2).sum() * (bias**2).sum() * overflow).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 2)
            assert weight.grad is None
        ends.append((weight.detach(), bias.detach(), unused.detach(), scaler.state_dict()))
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(ends[0][:3], ends[1][:3], strict=True))
    assert ends[0][3] == ends[1][3]


def test_auto_precision_is_bfloat16_only_where_the_cpu_is_fast_in_it(monkeypatch):
    for able, dtype in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert autocast_to("auto", CPU) == dtype and autocast_to("float32", CPU) == torch.float32


def test_invariance_measures_on_hand_worked_logits():
    logits, moved = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [13.0, 0.0]])
    assert relative_invariance_error(logits, moved).tolist() == pytest.approx([2.0, 12 / 7])
    assert relative_invariance_error(0 * logits, 0 * moved).sum() == 0  # as of a black image, without biases
    losses = {name: float(loss(logits, moved)) for name, loss in INVARIANCE_LOSSES.items()}
    assert losses == pytest.approx({"mean_norm": (5 + 12) / 2, "whole_batch": 13 / 2, "mean_square": 169 / 4})


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize(("symmetry", "loss", "weight"), [
    (HORIZONTAL_FLIP, "mean_norm", 3.0), (QUARTER_TURN, "mean_norm", 3.0),
    (HORIZONTAL_FLIP, "whole_batch", 12.0), (HORIZONTAL_FLIP, "mean_square", 30.0),
], ids=lambda value: getattr(value, "name", str(value)))  # fmt: skip
def test_the_invariance_loss_brings_the_logits_of_an_image_and_the_moved_image_together(
    images, symmetry, loss, weight
):
    errors = {}
    how = VGG_RECIPE.but(epochs=6, invariance_from=0.0, invariance_loss=loss, augmentation=False)
    for factor in (0.0, weight):
        recipe = how.but(invariance_weight=factor)
        net = small_net()
        train(net, batches_of(images, recipe), recipe, device=CPU, symmetry=symmetry)
        errors[factor] = invariance_error(net, Images(images.images), symmetry)
    assert errors[weight] < 0.7 * errors[0.0]


def test_batch_norm_sees_the_flipped_images_of_the_invariance_loss():
    some, losses = small_images(240, 33), {}
    for network, start in product((RESNET, VGG), (None, 0.0)):  # the VGG11 has no batch norm
        recipe = RESNET_RECIPE.but(epochs=1, invariance_from=start, invariance_weight=0.0)
        loss = train_on(some, small_net(network), recipe).history[0]["loss"]
        losses.setdefault(network["architecture"], []).append(loss)
    assert losses["resnet"][0] != pytest.approx(losses["resnet"][1], rel=1e-4)
    assert losses["vgg11"][0] == pytest.approx(losses["vgg11"][1], rel=1e-4)


def test_simsiams_loss_on_hand_worked_vectors():
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert simsiam_loss(right, right, right, right) == pytest.approx(-1)
    assert simsiam_loss(right, right, up, up) == pytest.approx(0)
    assert simsiam_loss(right, up, up, up) == pytest.approx(-0.5)


def test_no_gradient_flows_through_the_projection():
    net = SimSiam(small_net(RESNET), 16, 8)
    p_1, p_2, z_1, z_2 = net(torch.randn(4, 3, 33, 33), torch.randn(4, 3, 33, 33))
    assert p_1.requires_grad and p_2.requires_grad
    assert not z_1.requires_grad and not z_2.requires_grad


VGG_BN = {"architecture": "vgg11_bn", "width": 1 / 32}
NETWORKS = pytest.mark.parametrize("network", [VGG_BN, RESNET], ids=["vgg", "resnet"])


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("objective", ["supervised", "simsiam"])
@NETWORKS
def test_a_training_learns_and_reports_how_long_it_waited_for_images(network, objective):
    recipe = RESNET_RECIPE.but(objective=objective, epochs=6)
    training = train_on(small_images(240, 33), small_net(network), recipe)
    losses = [epoch["loss"] for epoch in training.history]
    assert not training.diverged and losses[-1] < losses[0] and 0 < training.data_wait_share < 1


@NETWORKS
def test_only_a_linear_layer_is_trained_on_simsiams_backbone(network):
    some = small_images(240, 33)
    simsiam = train_on(some, small_net(network), RESNET_RECIPE.but(objective="simsiam")).net.state_dict()
    net = small_net(network, seed=1)
    nets.load_backbone(net, simsiam)
    training = train_on(some, net, RESNET_RECIPE.but(objective="linear", epochs=1))
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained == [f"{net.head}.weight", f"{net.head}.bias"]
    for name, tensor in training.net.state_dict().items():
        assert name.startswith(net.head) or torch.equal(tensor, simsiam[f"encoder.{name}"]), name


def test_weights_of_another_architecture_are_refused():
    line = "of another architecture"
    refused(lambda: nets.load_backbone(small_net(RESNET), small_net().state_dict()), match=line)


def test_streams_of_types_seeds_and_purposes_differ():
    keys = [(0, "cnn"), (1, "cnn"), (0, "cnn_inv"), (0, "cnn", "epoch", 0), (0, "cnn", "epoch", 1)]
    assert len({stream(*key) for key in keys}) == len(keys)
    assert torch.equal(torch.rand(3, generator=generator(0, "a")), torch.rand(3, generator=generator(0, "a")))


def test_training_in_bfloat16_keeps_float32_weights_and_learns_like_float32(images):
    last = {}
    for precision in ("float32", "bfloat16"):
        net = small_net()
        last[precision] = train_on(images, net, VGG_RECIPE.but(epochs=10, precision=precision)).history
        assert all(tensor.dtype == torch.float32 for tensor in net.state_dict().values())
    first = [history[0]["loss"] for history in last.values()]
    final = [history[-1]["loss"] for history in last.values()]
    assert first[0] != first[1]  # so the arithmetic was different
    assert final == pytest.approx([final[0]] * 2, rel=0.1) and max(final) < first[0]


SHORT = {"epochs": 3, "batch_size": 4}  # ten steps per epoch on the few images
LARS = {"precision": "float16", "optimizer": "lars", "learning_rate": 10.0}
KINDS = {
    "vgg": (VGG_RECIPE.but(**SHORT), VGG),
    "resnet": (RESNET_RECIPE.but(**SHORT), RESNET),
    "simsiam": (RESNET_RECIPE.but(**SHORT, objective="simsiam"), RESNET),
    "float16 and lars": (VGG_RECIPE.but(**SHORT, **LARS), VGG),
}


@pytest.fixture(scope="module")
def few(images):
    return subset(images, 40, 0)


@pytest.fixture(scope="module")
def whole(few):
    """The result of an uninterrupted training of this kind."""
    return cache(lambda kind: train_on(few, small_net(KINDS[kind][1]), KINDS[kind][0]))


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 13, 20], ids=["first step", "mid-epoch", "end of an epoch"])
def test_an_interrupted_training_saves_its_state_at_that_step_and_resumes(few, whole, tmp_path, kind, steps):
    recipe, network = KINDS[kind]
    state = tmp_path / "state.safetensors"
    for seed in range(1 if steps == 20 else 2):  # the second seed resumes from a state within an epoch
        asked = []
        with pytest.raises(Interrupted, match="the next run goes on from it"):
            interrupted = lambda: asked.append(1) or len(asked) >= steps  # noqa: B023, E731
            train_on(few, small_net(network, seed), recipe, state=state, interrupted=interrupted)
    scale = checkpoint.load(state)[1]["scaler"].get("scale")
    assert (scale is not None) == (recipe.precision == "float16")
    training = train_on(few, small_net(network, 99), recipe, state=state)
    assert_same(whole(kind).net.state_dict(), training.net.state_dict())
    for row, expected in zip(training.history, whole(kind).history, strict=True):
        for key in ("epoch", "loss", "accuracy"):
            assert row[key] == expected[key]


JOB = """
import sys, time, torch
from pathlib import Path
from small_training import VGG_RECIPE, small_images, small_net, train_on
from relusym import checkpoint
from relusym.errors import Interruption
from relusym.training.loop import Reporter
torch.set_num_threads(1)
to, state = map(Path, sys.argv[1:])
goes_on = state.exists()
with Interruption() as warned:
    def interrupted():
        while state.exists() and not (goes_on or warned()):
            time.sleep(0.01)
        return warned()
    training = train_on(small_images(), small_net(), VGG_RECIPE.but(epochs=20, precision="float32"), state=state,
                        interrupted=interrupted, report=Reporter("cnn-0"))
checkpoint.save(to, training.net.state_dict(), {})
"""


@pytest.fixture(scope="module")
def uninterrupted(images):
    """The result of the job's training without interruption."""
    recipe = VGG_RECIPE.but(epochs=20, precision="float32")
    return train_on(images, small_net(), recipe).net.state_dict()


@pytest.mark.parametrize("number", WARNINGS, ids=lambda s: s.name)
def test_any_warning_is_noted_and_ends_nothing(number):
    with Interruption() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_a_training_stopped_by_a_signal_and_restarted_gives_the_same_bytes(
    tmp_path, child, uninterrupted, number
):
    to, state = tmp_path / "ended", tmp_path / "ended.state"
    ended = child(JOB, to, state)
    wait_until(lambda: state.exists() or ended.poll() is not None, 1500, "a state is saved", poll=0.01)
    ended.send_signal(number)
    output = ended.communicate(timeout=1500)[1]
    assert ended.returncode != 0 and ("the training state is saved" in output) == (number != signal.SIGKILL)
    assert state.exists() and not to.exists()
    lines = child(JOB, to, state).communicate(timeout=1500)[0].splitlines()
    assert 0 < len(lines) < 20  # it resumed and didn't start over
    assert_same(saved(to), uninterrupted)
    assert not list(tmp_path.glob("*.part*"))


def test_a_log_has_a_line_of_progress_per_epoch_and_more_if_epochs_are_long(images):
    by_epoch, often = io.StringIO(), io.StringIO()
    in_between, seen = Reporter("cnn-0", often, every_s=0), []

    def report(progress):  # as if each epoch were also reported in its middle, as a slow one is
        seen.append(progress), in_between(replace(progress, epoch_done=False)), in_between(progress)

    train_on(images, small_net(), VGG_RECIPE, report=Reporter("cnn-0", by_epoch))
    train_on(images, small_net(), VGG_RECIPE, report=report)
    lines = by_epoch.getvalue().splitlines()
    assert len(lines) == VGG_RECIPE.epochs and "\r" not in by_epoch.getvalue()
    for word in ("cnn-0", "epoch", "loss", "accuracy", "images/s", "left"):
        assert word in lines[0]
    assert math.isfinite(float(lines[-1].split("loss")[1].split()[0]))
    assert len(often.getvalue().splitlines()) == 2 * len(seen) >= 2 * VGG_RECIPE.epochs
