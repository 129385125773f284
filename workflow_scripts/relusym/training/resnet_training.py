"""Training ResNets: supervised, SimSiam, and a linear layer on a frozen net; in one process or in several."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from relusym.data.batches import Batches
from relusym.merging.invariance import invariance_loss
from relusym.nets.resnet import simsiam_loss
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry
from relusym.training.distributed import rank, world_size
from relusym.training.loop import Progress, Training, autocast_to, restore_state, save_state

RATE_BATCH = 256  # images a step that a recipe's learning rate is for
CHECK_STEPS = 50  # reading the loss makes a GPU wait, so only so often


@dataclass(frozen=True)
class Recipe:
    """How a ResNet is trained: a `supervised`, `pretraining` or `linear` section of the config.

    Attributes:
        epochs, batch_size: passes over the images; images a step, of all processes together.
        learning_rate: for 256 images a step; it grows linearly with the batch.
        schedule: "step" divides the rate by ten after each third of the epochs; "cosine" and "linear" end at zero.
        warmup_epochs: over which the rate grows linearly.
        optimizer: "sgd" or "lars".
        sync_batch_norm: whether batch norm sees the batches of all processes (GPUs only).
        save_every: epochs between saved training states.
        precision: "float32", "bfloat16", "float16" (autocast) or "auto", see `training.autocast_to`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: float = 0
    optimizer: str = "sgd"
    sync_batch_norm: bool = False
    save_every: int = 1
    precision: str = "auto"

    @property
    def peak_rate(self) -> float:
        """The learning rate for the recipe's batch."""
        return self.learning_rate * self.batch_size / RATE_BATCH

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate at a point in training, in epochs from 0 to `epochs`."""
        peak = self.peak_rate
        if epoch < self.warmup_epochs:
            return peak * epoch / self.warmup_epochs
        if self.schedule == "step":
            return peak / 10 ** math.floor(3 * epoch / self.epochs)
        share = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return peak * (1 - share if self.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2)


class Task(Protocol):
    """What is trained and on what loss.

    Attributes:
        net: the module with all parameters.
        two_views: whether it takes two views of each image.
        frozen: whether the net's layers stay in evaluation mode.
        fixed_rate: parts of the net whose learning rate stays at its peak.
    """

    net: nn.Module
    two_views: bool
    frozen: bool
    fixed_rate: tuple[nn.Module, ...]

    def loss(self, forward: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and how many images were right; `forward` is the net, wrapped for several processes."""
        ...


@dataclass
class Supervised:
    """Cross-entropy, and the invariance loss if it has a weight (section 4)."""

    net: nn.Module
    invariance_weight: float | None = None
    frozen: bool = False
    symmetry: Symmetry = HORIZONTAL_FLIP
    two_views: bool = False
    fixed_rate: tuple[nn.Module, ...] = ()

    def loss(self, forward: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = views
        if self.invariance_weight is None:
            logits = forward(x).float()
            loss = nn.functional.cross_entropy(logits, labels)
        else:
            logits, moved = forward(torch.cat([x, self.symmetry.act(x)])).float().chunk(2)
            loss = nn.functional.cross_entropy(logits, labels)
            loss = loss + self.invariance_weight * invariance_loss(logits, moved)
        return loss, (logits.detach().argmax(1) == labels).sum()


@dataclass
class SelfSupervised:
    """SimSiam's loss; its predictor's learning rate stays as it is."""

    net: nn.Module
    frozen: bool = False
    two_views: bool = True

    @property
    def fixed_rate(self) -> tuple[nn.Module, ...]:
        return (self.net.predictor,)

    def loss(self, forward: nn.Module, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        outputs = forward(*views)
        return simsiam_loss(*(output.float() for output in outputs)), labels.new_zeros(())


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose rate for each weight is scaled by ‖weight‖ / ‖gradient‖ (You et al. 2017).

    torch has none; as in SimSiam's linear evaluation, biases are not scaled.
    """

    def __init__(self, groups, lr: float, momentum: float, weight_decay: float, trust: float = 1e-3):
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    size, change = parameter.norm(), update.norm()
                    scale = torch.where((size > 0) & (change > 0), group["trust"] * size / change, 1.0)
                    update = update * scale
                buffers = self.state[parameter]
                if "momentum_buffer" not in buffers:
                    buffers["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = buffers["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.sub_(momentum, alpha=group["lr"])


def train(
    task: Task,
    batches: Batches,
    recipe: Recipe,
    device: torch.device,
    *,
    state: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Training:
    """Train a task's net in place; in each of several processes, if they were started together.

    Args:
        task: with its net on `device`.
        state: where the first process keeps the training state between epochs. If the file is there, all processes go
            on from it. The caller removes it once what came of the training is written.
        report: is told of the progress by the first process, at least once an epoch.

    Returns:
        in each epoch's row of the history also `data_wait_share`, the share of the time that steps waited for images.
    """
    net, world = task.net, world_size()
    if recipe.sync_batch_norm and world > 1 and device.type == "cuda":
        net = task.net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net.to(memory_format=torch.channels_last)
    optimizer = _optimizer(task, recipe)
    result = Training()
    if state and state.exists():
        restore_state(state, net, optimizer, result)
    ids = [device.index] if device.type == "cuda" else None
    forward = DistributedDataParallel(net, ids) if world > 1 else net
    dtype = autocast_to(recipe.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    net.train(not task.frozen)
    for epoch in range(len(result.history), recipe.epochs):
        started = reported = asked = time.perf_counter()
        waited, done = 0.0, 0
        total, correct = torch.zeros(2, device=device)
        for step, (views, labels) in enumerate(batches.epoch(epoch), start=1):
            waited += time.perf_counter() - asked
            rate = recipe.learning_rate_at(epoch + (step - 1) / batches.steps)
            for group in optimizer.param_groups:
                group["lr"] = recipe.peak_rate if group["fixed"] else rate
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss, right = task.loss(forward, views, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            correct += right
            done += len(labels) * world
            if step % CHECK_STEPS == 0 or step == batches.steps:
                mean_loss, accuracy = _over_processes(total / step, correct * world / done)
                if not math.isfinite(mean_loss):
                    result.diverged = True
                    return result
            now = asked = time.perf_counter()
            if rank() == 0 and (step == batches.steps or (now - reported > 2 and step >= CHECK_STEPS)):
                reported, speed = now, done / (now - started)
                left = (recipe.epochs - epoch) * batches.steps - step
                report(
                    Progress(
                        epoch + step / batches.steps,
                        recipe.epochs,
                        mean_loss,
                        accuracy,
                        speed,
                        left * (done / step) / speed,
                        step == batches.steps,
                    )
                )
        spent = time.perf_counter() - started
        result.history.append(
            {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "accuracy": accuracy,
                "images_per_second": round(done / spent, 1),
                "data_wait_share": round(waited / spent, 4),
            }
        )
        if state and rank() == 0 and (epoch + 1) % recipe.save_every == 0 and epoch + 1 < recipe.epochs:
            save_state(state, net, optimizer, result)
    return result


def _optimizer(task: Task, recipe: Recipe) -> torch.optim.Optimizer:
    fixed = {parameter for part in task.fixed_rate for parameter in part.parameters()}
    trained = [parameter for parameter in task.net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p not in fixed], "fixed": False},
        {"params": [p for p in trained if p in fixed], "fixed": True},
    ]
    how = {
        "lr": recipe.peak_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    groups = [group for group in groups if group["params"]]
    return Lars(groups, **how) if recipe.optimizer == "lars" else torch.optim.SGD(groups, **how, fused=True)


def _over_processes(*values: Tensor) -> list[float]:
    """Means over all processes."""
    together = torch.stack(values)
    if world_size() > 1:
        distributed.all_reduce(together)
    return (together / world_size()).tolist()
