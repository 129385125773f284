"""The training of one net: resumable, in one process or several, the same bytes from the same seed."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.sgd import sgd

from relusym import checkpoint
from relusym.data.batches import TrainingBatches
from relusym.errors import Interrupted, UserError
from relusym.precision import full_float32
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry
from relusym.training.distributed import any_process, mean_over_processes, rank, world_size
from relusym.training.objectives import Objective
from relusym.training.quick_steps import quick_steps
from relusym.training.recipe import OBJECTIVES, Recipe

TRUST = 1e-3  # of LARS
CHECK_STEPS = 50  # steps between readings of the loss on a GPU, which make it wait
REPORT_S = 2


class Sgd:
    """SGD with momentum and weight decay, by torch's fused kernel; torch's GradScaler accepts it as torch's.

    torch.optim.SGD takes the same steps, but loads torch's compiler first, which takes longer than a small training.
    `momentum_buffers`: parameter → tensor of its shape, from the first step on.
    """

    # asks GradScaler to set `grad_scale` and `found_inf`, and to leave the rest to the kernel
    _step_supports_amp_scaling = True

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, momentum: float, weight_decay: float):
        how = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups = [how | group for group in groups]
        self.momentum_buffers: dict[Tensor, Tensor] = {}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        usual = {"fused": True, "dampening": 0.0, "nesterov": False, "maximize": False}
        scaling = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in trained]
            buffers = [self.momentum_buffers.get(parameter) for parameter in trained]
            how = {key: group[key] for key in ("lr", "momentum", "weight_decay")}
            sgd(trained, gradients, buffers, **usual, **scaling, **how)
            if group["momentum"]:
                self.momentum_buffers.update(zip(trained, buffers, strict=True))


class Lars(Sgd):
    """SGD whose rate for each weight, not bias, is scaled by ‖weight‖ / ‖gradient‖ (You et al. 2017)."""

    _step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    size, change = parameter.norm(), update.norm()
                    scale = torch.where((size > 0) & (change > 0), TRUST * size / change, 1.0)
                    update = update * scale
                if parameter not in self.momentum_buffers:
                    self.momentum_buffers[parameter] = torch.zeros_like(parameter)
                momentum = self.momentum_buffers[parameter].mul_(group["momentum"]).add_(update)
                parameter.sub_(momentum, alpha=group["lr"])


def make_optimizer(objective: Objective, recipe: Recipe) -> Sgd:
    """The recipe's optimizer for all that an objective trains."""
    constant = {parameter for part in objective.fixed_rate for parameter in part.parameters()}
    trained = [parameter for parameter in objective.net.parameters() if parameter.requires_grad]
    groups = [
        {"params": params, "fixed": fixed}
        for fixed in (False, True)
        if (params := [parameter for parameter in trained if (parameter in constant) == fixed])
    ]
    kind = Lars if recipe.optimizer == "lars" else Sgd
    return kind(groups, recipe.learning_rate, recipe.momentum, recipe.weight_decay)


@dataclass
class Training:
    """A training's result."""

    net: nn.Module  # for SimSiam, with its heads
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch
    diverged: bool = False  # the loss became non-finite, and the training ended there
    earlier_seconds: float = 0.0  # of a resumed training: how long earlier processes trained

    @property
    def data_wait_share(self) -> float | None:
        """Share of the time that steps waited for images, mean over the epochs; None if there are none."""
        waits = [epoch["data_wait_share"] for epoch in self.history]
        return round(sum(waits) / len(waits), 4) if waits else None


@dataclass
class State:
    """All that a training resumes from (net, optimizer, scaler, a row per epoch), kept in a file if there is a path.

    `depends_on`: what else the training depends on, by name, such as the images' hash.
    """

    path: Path | None
    training: Training
    optimizer: Sgd
    scaler: torch.amp.GradScaler
    depends_on: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def save(self, step: int = 0, sums: Tensor | None = None) -> None:
        """Write weights, momentum, float16's scale, history; in an unfinished epoch, also steps done and sums, (2,)."""
        if self.path is None:
            return
        tensors = {f"net.{name}": tensor for name, tensor in self.training.net.state_dict().items()}
        for name, parameter in self.training.net.named_parameters():
            if parameter in self.optimizer.momentum_buffers:  # frozen ones have none
                tensors[f"momentum.{name}"] = self.optimizer.momentum_buffers[parameter]
        if sums is not None:
            tensors["sums"] = sums
        seconds = self.training.earlier_seconds + time.perf_counter() - self.started
        about = {
            "history": self.training.history,
            "step": step,
            "scaler": self.scaler.state_dict(),
            "seconds": seconds,
            "of": self.depends_on,  # its name in states that are kept
        }
        checkpoint.save(self.path, tensors, about)

    def restore(self) -> tuple[int, Tensor | None]:
        """Load what `save` wrote, if it exists; returns its step and sums. UserError if it is another net's."""
        if self.path is None or not self.path.exists():
            return 0, None
        tensors, about = checkpoint.load(self.path, next(self.training.net.parameters()).device)
        weights = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        its = about.get("of", self.depends_on)  # older states lack it
        if others := [name for name, ours in self.depends_on.items() if its.get(name) != ours]:
            raise UserError(
                f"{self.path} is the state of a training of other {others[0]}: delete it, and this one starts over"
            )
        try:
            self.training.net.load_state_dict(weights)
            for name, parameter in self.training.net.named_parameters():
                if f"momentum.{name}" in tensors:
                    buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                    self.optimizer.momentum_buffers[parameter] = buffer
            if about["scaler"]:
                self.scaler.load_state_dict(about["scaler"])
            self.training.history += about["history"]
            self.training.earlier_seconds = about.get("seconds", 0.0)  # older states lack it
            return about["step"], tensors.get("sums")
        except (KeyError, RuntimeError) as error:
            message = f"{self.path} isn't the state of this training: delete it, and it starts over"
            raise UserError(message) from error


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


class Reporter:
    """Print a log line every half minute and after each epoch; Snakemake's line shows the last of them."""

    def __init__(self, name: str, stream: TextIO | None = None, every_s: float = 30):
        self.name, self.stream, self.every_s = name, stream, every_s
        self.last = time.monotonic()

    def __call__(self, at: Progress) -> None:
        now = time.monotonic()
        if at.epoch_done or now - self.last >= self.every_s:
            self.last = now
            minutes, seconds = divmod(round(at.seconds_left), 60)
            line = (
                f"{self.name}: epoch {at.epoch:6.2f}/{at.epochs}  loss {at.loss:.3f}  accuracy {at.accuracy:.3f}  "
                f"{at.images_per_second:6.0f} images/s  {minutes}:{seconds:02d} left"
            )
            print(line, file=self.stream, flush=True)


@full_float32()
def train(
    net: nn.Module,
    batches: TrainingBatches,
    recipe: Recipe,
    *,
    device: torch.device,
    symmetry: Symmetry = HORIZONTAL_FLIP,
    state: Path | None = None,
    depends_on: dict[str, Any] | None = None,
    save_every: int = 1,
    interrupted: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
    snapshot: Callable[[int, nn.Module], None] = lambda epoch, net: None,
) -> Training:
    """Train `net` in place; in each of several processes, if they were started together.

    Interrupted if `interrupted` returned true: the next training with the same `state` resumes at that very step, and
    ends with the same weights as an uninterrupted one.

    Args:
        net: layers that the objective adds are drawn from torch's global random stream, then all is moved to `device`.
        symmetry: of the invariance loss.
        state: where the first process saves the training state, every `save_every` epochs; if the file exists, the
            training resumes from it. The caller gives other settings another file, and removes it in the end.
        depends_on: see `State`; if the file's is another, that is a UserError.
        interrupted: called after every step; once it returns true in any process, the state is saved and the training
            ends.
        report, snapshot: called in the first process with the progress, at least once an epoch, and with the net,
            before the first epoch (0) and after each one (1, 2, …).
    """
    objective = OBJECTIVES[recipe.objective].load()(net, recipe, symmetry)
    if recipe.sync_batch_norm and world_size() > 1 and device.type == "cuda":
        objective.net = nn.SyncBatchNorm.convert_sync_batchnorm(objective.net)
    net = objective.net.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(objective, recipe)
    dtype = autocast_to(recipe.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    result = Training(net)
    kept = State(state, result, optimizer, scaler, depends_on or {})
    done, sums = kept.restore()
    gpus = [device.index] if device.type == "cuda" else None
    forward = DistributedDataParallel(net, gpus) if world_size() > 1 else net
    quick = quick_steps(net, device, dtype)
    steps, check_every = batches.steps, CHECK_STEPS if device.type == "cuda" else 1
    net.train(not objective.frozen)
    if rank() == 0 and not result.history and not done:
        snapshot(0, net)
    for epoch in range(len(result.history), recipe.epochs):
        started = reported = asked = time.perf_counter()
        waited, skipped = 0.0, done
        sums = torch.zeros(2, device=device) if sums is None else sums  # losses and correct predictions
        for step, (views, labels) in enumerate(batches.epoch(epoch, skipped), start=skipped + 1):
            waited += time.perf_counter() - asked
            rate = recipe.learning_rate_at(epoch + (step - 1) / steps)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate if group["fixed"] else rate
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), quick:
                loss, right = objective.loss(forward, views, labels, epoch)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            sums[0] += loss.detach()
            sums[1] += right
            ending = any_process(interrupted())
            if ending or step == steps or step % check_every == 0:
                means = mean_over_processes(sums)
                total, correct = means.tolist()
                if not math.isfinite(total):
                    result.diverged = True
                    return result
                now = time.perf_counter()
                speed = (step - skipped) * batches.batch_size / (now - started)
                accuracy = correct * world_size() / (step * batches.batch_size)
                left = ((recipe.epochs - epoch) * steps - step) * batches.batch_size / speed
                at, is_done = epoch + step / steps, step == steps
                progress = Progress(at, recipe.epochs, total / step, accuracy, speed, left, is_done)
                if rank() == 0 and (is_done or now - reported > REPORT_S):
                    reported = now
                    report(progress)
            if ending and step < steps:
                _interrupt(kept, progress, step, means)
            asked = time.perf_counter()
        share = round(waited / (time.perf_counter() - started), 4)
        rate = {"images_per_second": round(progress.images_per_second, 1), "data_wait_share": share}
        row = {"epoch": epoch + 1, "loss": progress.loss, "accuracy": progress.accuracy, **rate}
        result.history.append(row)
        done, sums = 0, None
        if rank() == 0:
            snapshot(epoch + 1, net)
        if epoch + 1 < recipe.epochs:
            if ending:
                _interrupt(kept, progress)
            if rank() == 0 and (epoch + 1) % save_every == 0:
                kept.save()
    return result


def _interrupt(kept: State, progress: Progress, step: int = 0, sums: torch.Tensor | None = None) -> None:
    if rank() == 0:
        kept.save(step, sums)
    saved = "the training state is saved, and the next run goes on from it"
    what = saved if kept.path else "no state is kept"
    raise Interrupted(f"interrupted in epoch {progress.epoch:.2f} of {progress.epochs}; {what}")


def precision_name(precision: str, device: torch.device) -> str:
    """The name in records of the dtype that `autocast_to` returns."""
    return str(autocast_to(precision, device)).removeprefix("torch.")


def autocast_to(precision: str, device: torch.device) -> torch.dtype:
    """The dtype in which convolutions and linear layers are computed.

    "auto" is bfloat16 where the device computes in it faster than in float32: CUDA from Ampere on, CPUs with
    AVX512-BF16 or AMX. Weights, their updates and all measurements stay in float32, which is never TF32.
    """
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
