"""Training of one net: SGD on images that live on the device, resumable, the same bytes from the same seed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from relusym import checkpoint
from relusym.data.augmentation import RandomCropFlip
from relusym.errors import Interrupted
from relusym.merging.invariance import invariance_loss
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

FINITE_CHECK_STEPS = 50  # reading the loss makes a GPU wait, so there only so often


@dataclass(frozen=True)
class TrainingSettings:
    """How a net is trained; the config's `training` section and its model type.

    Attributes:
        epochs, batch_size: passes over the images; images a step.
        learning_rate: the peak of a linear warm-up over `warmup_epochs` and a linear decay to zero.
        momentum, weight_decay: of SGD.
        crop_padding: pixels of zero padding before the random crop.
        flip_augmentation: whether each image is flipped with probability 1/2.
        invariance_weight: factor on the invariance loss.
        invariance_from: share of the epochs after which the invariance loss is on; None leaves it out.
        save_every: epochs between saved training states.
        precision: of the forward and backward pass: "float32", "bfloat16" (autocast), or "auto", see `autocast_to`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    crop_padding: int
    flip_augmentation: bool
    invariance_weight: float = 1.0
    invariance_from: float | None = None
    save_every: int = 1
    precision: str = "auto"

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate at a point in training, in epochs from 0 to `epochs`."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        return self.learning_rate * (self.epochs - epoch) / (self.epochs - self.warmup_epochs)

    def invariance_at(self, epoch: int) -> bool:
        """Whether the invariance loss is on in this epoch (counted from 0)."""
        return self.invariance_from is not None and epoch >= self.invariance_from * self.epochs


@dataclass
class Progress:
    """Where a training is: `epoch` of `epochs`, mean loss and accuracy of the epoch so far, speed, time left."""

    epoch: float
    epochs: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float
    epoch_done: bool


@dataclass
class Training:
    """What came of a training: `history` has one row an epoch; `diverged` is set if the loss became non-finite."""

    history: list[dict[str, float]] = field(default_factory=list)
    diverged: bool = False


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    seed: int,
    stream: str,
    *,
    state: Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
    symmetry: Symmetry = HORIZONTAL_FLIP,
) -> Training:
    """Train `net` in place with cross-entropy, and the invariance loss where the settings have it (section 4).

    Args:
        net: on the device to train on, channels last for speed.
        images, labels: uint8 (N, H, W, 3) and int64 (N,), on the same device.
        seed, stream: every epoch draws its order, crops and flips from a stream of its own, named by both.
        state: where the training state is kept between epochs. If the file is there, training goes on from it; at the
            end it is removed. The caller names the file so that other settings never meet it.
        interrupted: asked after every step; at the first yes the state is saved and the training ends.
        report: is told of the progress, at least once an epoch.

    Raises:
        Interrupted: `interrupted` said yes. The next training with the same `state` goes on from that very step, and
            ends with the same weights as one that was never interrupted.
    """
    augmented = RandomCropFlip(images, settings.crop_padding, settings.flip_augmentation)
    device = images.device
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    dtype = autocast_to(settings.precision, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    result, resumed = Training(), None
    if state and state.exists():
        resumed = restore_state(state, net, optimizer, result)
    steps = len(images) // settings.batch_size
    check_every = FINITE_CHECK_STEPS if device.type == "cuda" else 1
    net.train()
    for epoch in range(len(result.history), settings.epochs):
        started = reported = time.perf_counter()
        invariance = settings.invariance_at(epoch)
        total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        skipped = 0
        if resumed:
            skipped, total, correct = resumed
            resumed = None
        batches = augmented.epoch(settings.batch_size, generator(seed, stream, "epoch", epoch))
        for step, (index, x) in enumerate(batches, start=1):
            if step <= skipped:  # done before the interruption; drawn again for the random numbers after it
                continue
            y = labels[index]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(epoch + (step - 1) / steps)
            with autocast:
                if invariance:
                    logits, moved = net(torch.cat([x, symmetry.act(x)])).float().chunk(2)
                    loss = nn.functional.cross_entropy(logits, y)
                    loss = loss + settings.invariance_weight * invariance_loss(logits, moved)
                else:
                    logits = net(x).float()
                    loss = nn.functional.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            correct += (logits.detach().argmax(1) == y).sum()
            if (step % check_every == 0 or step == steps) and not math.isfinite(total):
                result.diverged = True
                if state:
                    state.unlink(missing_ok=True)
                return result
            now = time.perf_counter()
            if step == steps or now - reported > 2:
                reported = now
                done = step * settings.batch_size
                rate = (done - skipped * settings.batch_size) / (now - started)
                left = (len(images) * (settings.epochs - epoch) - done) / rate
                progress = Progress(
                    epoch + step / steps,
                    settings.epochs,
                    float(total) / step,
                    float(correct) / done,
                    rate,
                    left,
                    step == steps,
                )
                report(progress)
            if step < steps and interrupted():
                _stop(state, net, optimizer, result, (step, total, correct), settings, step / steps)
        result.history.append(
            {
                "epoch": epoch + 1,
                "loss": progress.loss,
                "accuracy": progress.accuracy,
                "images_per_second": round(progress.images_per_second, 1),
            }
        )
        if epoch + 1 < settings.epochs:
            if interrupted():
                _stop(state, net, optimizer, result, None, settings)
            if state and (epoch + 1) % settings.save_every == 0:
                save_state(state, net, optimizer, result)
    return result


def autocast_to(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions and linear layers are computed in.

    "auto" is bfloat16 where the device computes in it faster than in float32: CUDA from Ampere on, CPUs with
    AVX512-BF16 or AMX. Weights, their updates and all measurements stay in float32.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


WithinEpoch = tuple[
    int, Tensor, Tensor
]  # steps done in an unfinished epoch, its sums of losses and of right answers


def _stop(
    state: Path | None,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: Training,
    within: WithinEpoch | None,
    settings: TrainingSettings,
    part: float = 0.0,
) -> NoReturn:
    if state:
        save_state(state, net, optimizer, result, within)
    raise Interrupted(
        f"told to end in epoch {len(result.history) + part:.2f} of {settings.epochs}; "
        + ("the training state is saved, and the next run goes on from it" if state else "no state is kept")
    )


def save_state(
    state: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: Training,
    within: WithinEpoch | None = None,
) -> None:
    """Write weights, momentum and history, from which a training goes on, and how far an unfinished epoch is."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        if parameter in optimizer.state:  # a frozen one has no momentum
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    about = {"history": result.history}
    if within:
        about["step"], tensors["sum.loss"], tensors["sum.correct"] = within
    checkpoint.save(state, tensors, about)


def restore_state(
    state: Path, net: nn.Module, optimizer: torch.optim.Optimizer, result: Training
) -> WithinEpoch | None:
    """Load what `save_state` wrote."""
    tensors, about = checkpoint.load(state, next(net.parameters()).device)
    net.load_state_dict(
        {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    )
    for name, parameter in net.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = tensors[f"momentum.{name}"]
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    result.history = about["history"]
    return (about["step"], tensors["sum.loss"], tensors["sum.correct"]) if "step" in about else None
