"""Make, fine-tune, measure and time the exact GCNN of any net, and write it so that it doesn't need this library."""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from relusym import __version__, checkpoint
from relusym.channels.traced import TracedNet
from relusym.channels.tracing import Handlers, unwrapped
from relusym.data.batches import ImagesOnDevice
from relusym.errors import UserError, first_line
from relusym.evaluation.images import AnyImages, as_images, device_of
from relusym.evaluation.invariance import Averaged, invariance_error
from relusym.evaluation.logits import check_net, logits_of
from relusym.evaluation.metrics import check_metrics, evaluate
from relusym.merging.aligned import align
from relusym.merging.exact_gcnn import corrected_halfway, exact_gcnn, representations
from relusym.merging.folded import COMPILED_SHARE, WORTHWHILE, Folded, folded, fused, multiplications
from relusym.merging.identities import check_transformed
from relusym.merging.merge import fixed_notes, statistics_notes, unchecked_notes
from relusym.nets.tied import TiedNet
from relusym.pixels.grid import Grid, grid
from relusym.pixels.transform import transformed
from relusym.precision import full_float32
from relusym.reporting.words import finite, grid_warning
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry, as_symmetry
from relusym.training.loop import precision_name, train
from relusym.training.recipe import Recipe
from relusym.whole_files import check_writable, write_text, write_whole

FILES = ("exact.safetensors", "exact.pt2", "exact.json")
CPU = torch.device("cpu")
BATCHES = (1, 10, 100)  # batch sizes at which nets are timed
ROUNDS, LEAST_ROUNDS, MOST_SECONDS = 21, 3, 60.0
NETS = {
    "net": "the net",
    "test_time": "the net, both orientations averaged",
    "exact": "exact GCNN",
    "exact_fine_tuned": "exact GCNN, fine-tuned",
    "net_fused": "the net, batch norms fused",
}
NOT_INVARIANT = (
    "So the exact GCNN isn't invariant at this size, though its kernels satisfy the constraint: give images of the "
    "next size that is named (photos of a folder are resized: --size 256 225, say)."
)
Progress = Callable[[str, float], None]


@dataclass
class Exact:
    """An exact GCNN, how it was made, and its measurements.

    Attributes:
        name, symmetry: the net's name and the symmetry's.
        labelled: whether accuracies are measured against labels, not against the net's predictions.
        images, matched_images: numbers of images on which accuracies were measured, and channels matched.
        image_shape: (channels, height, width).
        accuracy, invariance_error: name in `NETS` → fraction of the images; mean relative error of the logits, which
            isn't measured for "test_time", the net averaged over both orientations.
        parameters: numbers of the net's parameters ("net") and of the GCNN's free ones ("exact").
        multiplications: per image, in the convolutions and linear layers of either.
        representations: channel group → "fixed" and "swapped", numbers of channels.
        permutations, similarity: as in `Merge`.
        grid: how the strides meet the images' size; if symmetrically, the GCNN is invariant up to rounding.
        fine_tuning: its settings, and loss and training accuracy by epoch; None: there was none.
        compiled: whether it is folded for `torch.compile`, and nets are timed compiled.
        seconds: if it was timed, batch size → net → median seconds per batch; on a CPU, CPU time of the process.
        plain: the GCNN as a net of the same class, each of whose kernels satisfies equation (3).
        folded: the same function in fewer multiplications, as `merging.folded` makes it.
    """

    name: str
    symmetry: str
    labelled: bool
    images: int
    matched_images: int
    image_shape: tuple[int, int, int]
    accuracy: dict[str, float]
    invariance_error: dict[str, float]
    parameters: dict[str, int]
    multiplications: dict[str, int]
    representations: dict[str, dict[str, int]]
    permutations: dict[str, list[int]]
    similarity: dict[str, float]
    grid: Grid
    plain: nn.Module = field(repr=False)
    folded: nn.Module = field(repr=False)
    fine_tuning: dict[str, Any] | None = None
    compiled: bool = False
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """Every number, for JSON."""
        left_out = ("grid", "plain", "folded")
        kept = {key: value for key, value in vars(self).items() if key not in left_out}
        return {
            "relusym": __version__,
            **kept,
            "grid": asdict(self.grid) | {"symmetric": self.grid.symmetric},
        }


@full_float32()
def exact(
    net: nn.Module,
    images: AnyImages,
    labels: Tensor | None = None,
    *,
    match_images: AnyImages | None = None,
    symmetry: Symmetry | str = HORIZONTAL_FLIP,
    training: tuple[ImagesOnDevice, Recipe] | None = None,
    compiled: bool = False,
    timing: bool = False,
    name: str | None = None,
    handlers: Handlers | None = None,
    progress: Progress = lambda stage, done: None,
) -> Exact:
    """Make the exact GCNN of a net: involution matching, the halfway net with REPAIR, projection, and any fine-tuning.
    UserError as in `flip_merge`, for a symmetry whose order isn't 2, or if the fine-tuning diverges.

    Args:
        net: isn't changed.
        images, labels: what nets are measured on, as in `report`.
        match_images: on which channels are matched and statistics measured; None: `images`.
        training: batches and recipe of the fine-tuning; None: no fine-tuning.
        compiled: whether the folded net is meant for `torch.compile`, which computes sums and differences of channels
            in one pass, so that more layers are worth folding.
        timing: whether nets are timed, at the batch sizes `BATCHES`; with `compiled`, after `torch.compile`.
        handlers: of layers that PyTorch doesn't have, as in `merge`.
        progress: called with each stage's name and the share of it that is done.
    """
    symmetry = as_flip(symmetry)
    test = as_images(images)
    match = test if match_images is None else as_images(match_images)
    net = unwrapped(net)
    logits = check_net("net", net, test)
    check_metrics(logits, labels, test, {})
    if logits.ndim != 2:
        raise UserError(f"the net's logits have {logits.ndim} dimensions; (B, classes) is needed")
    progress("matching", 0)
    traced = TracedNet(deepcopy(net).eval(), test.shape, handlers)
    with torch.no_grad():
        flipped = transformed(traced, symmetry)
        check_transformed(traced, flipped, symmetry, test)
        aligned = align(traced, traced.copied(flipped), match, matching="involution", order=2)
        del flipped
        halfway = traced.copied(corrected_halfway(aligned, match))
        groups, permutations = aligned.groups, aligned.permutations
        tied = exact_gcnn(halfway, symmetry, groups, permutations).eval()
    progress("measuring", 0)
    nets: dict[str, nn.Module] = {"net": traced.net, "exact": tied.to_plain().eval()}
    fine_tuning = None
    if training:
        fine_tuning = _fine_tuned(tied, *training, symmetry, progress)
        nets["exact_fine_tuned"] = tied.eval().to_plain().eval()
    plain = nets[list(nets)[-1]]
    fold = partial(folded, traced.copied(plain), symmetry, groups, permutations)
    fast = fold(compiled)
    progress("measuring", 0)
    accuracy, used = {}, labels  # without labels, the net's predictions are used
    for key, module in {"net": traced.net, "test_time": Averaged(traced.net, symmetry), **nets}.items():
        scores = evaluate(module, test, used)
        accuracy[key], used = scores.means()["accuracy"], scores.labels
    met = grid(traced, test.shape, symmetry)
    called = name or type(net).__name__
    result = Exact(
        name=called,
        symmetry=symmetry.name,
        labelled=labels is not None or next(iter(test.pairs(CPU)))[1] is not None,
        images=len(test),
        matched_images=len(match),
        image_shape=test.shape,
        accuracy=accuracy,
        invariance_error={key: invariance_error(module, test, symmetry) for key, module in nets.items()},
        parameters={
            "net": sum(parameter.numel() for parameter in traced.net.parameters()),
            "exact": tied.free_parameters,
        },
        multiplications={"net": multiplications(traced, traced.net), "exact": multiplications(traced, fast)},
        representations=representations(permutations),
        permutations={group: partner.tolist() for group, partner in permutations.items()},
        similarity=aligned.similarity,
        grid=met,
        plain=plain,
        folded=fast,
        fine_tuning=fine_tuning,
        compiled=compiled,
        notes=[
            *grid_warning(met, called),
            *([] if met.symmetric else [NOT_INVARIANT]),
            *([] if _is_folded(fast) else [_unfolded(_is_folded(fold(worthwhile=0)), compiled)]),
            *fixed_notes(traced),
            *aligned.notes,
            *unchecked_notes(traced, symmetry),
            *statistics_notes(traced, accuracy["net"], accuracy["exact"], match, test, used),
        ],
    )
    if timing:
        progress("timing", 0)
        timed = {"net": traced.net, "exact": fast}
        if traced.has_batch_norm:
            timed["net_fused"] = fused(traced)
        try:
            if compiled:
                timed = {key: torch.compile(module) for key, module in timed.items()}
            result.seconds = {count: seconds(timed, test.shape, count) for count in BATCHES}
        except torch._dynamo.exc.TorchDynamoException as error:
            # no C++ compiler, or a net that torch.compile doesn't support
            reason = first_line(getattr(error, "inner_exception", error))  # from its back end
            result.notes.append(f"nets aren't timed, since torch.compile fails: {reason}")
    return result


def _is_folded(net: nn.Module) -> bool:
    return any(isinstance(layer, Folded) for layer in net.modules())


def _unfolded(could: bool, compiled: bool) -> str:
    """Why no layer is folded; `could`: whether folding would save any multiplications."""
    if not could:
        why = (
            "none is an ungrouped, zero-padded convolution or a linear layer of PyTorch's whose channels swap, or "
            "whose kernel is wider than a pixel"
        )
    elif compiled:
        why = f"each would keep more than {COMPILED_SHARE:.0%} of its multiplications"
    else:
        why = f"none would save {WORTHWHILE} multiplications per position and channel, to make up for the additions"
    return f"no layer is folded, so the exported net has no fewer multiplications than the net: {why}"


def as_flip(symmetry: Symmetry | str) -> Symmetry:
    """As `as_symmetry`, and UserError if the order isn't 2."""
    symmetry = as_symmetry(symmetry)
    if symmetry.order != 2:
        raise UserError(
            f"symmetry {symmetry.name}: an exact GCNN needs a flip, horizontal_flip or vertical_flip"
        )
    return symmetry


@torch.enable_grad()
def _fine_tuned(
    tied: TiedNet, batches: ImagesOnDevice, recipe: Recipe, symmetry: Symmetry, progress: Progress
) -> dict[str, Any]:
    """Train the net further, in place; returns the settings, and loss and accuracy by epoch."""
    hook = tied.register_forward_hook(lambda net, inputs, output: logits_of(output))
    done = train(
        tied,
        batches,
        recipe,
        device=device_of(tied),
        symmetry=symmetry,
        report=lambda now: progress("fine-tuning", now.epoch / now.epochs),
    )
    hook.remove()
    if done.diverged:
        raise UserError(
            f"the fine-tuning diverges at a learning rate of {recipe.learning_rate:g}: give a smaller --learning-rate"
        )
    how = ("epochs", "batch_size", "learning_rate", "schedule", "momentum", "crop_padding", "augmentation")
    return {
        **{key: getattr(recipe, key) for key in how},
        "images": len(batches.images),
        "precision": precision_name(recipe.precision, device_of(tied)),
        "history": [{key: epoch[key] for key in ("epoch", "loss", "accuracy")} for epoch in done.history],
    }


@torch.no_grad()
def seconds(nets: Mapping[str, nn.Module], shape: tuple[int, ...], count: int) -> dict[str, float]:
    """Median seconds per batch of `count` images, the nets taking turns; on a CPU, CPU time of the process."""
    device = device_of(next(iter(nets.values())))
    x = torch.randn(count, *shape, device=device).contiguous(memory_format=torch.channels_last)
    taken = by_turns([partial(net.eval(), x) for net in nets.values()], ROUNDS, MOST_SECONDS, device)
    return {name: median(times) for name, times in zip(nets, taken, strict=True)}


def by_turns(
    calls: Sequence[Callable[[], Any]], rounds: int, most: float = math.inf, device: torch.device = CPU
) -> list[list[float]]:
    """Seconds that each call took in each round, after a warm-up; on a CPU, CPU time of the process.

    After `most` seconds, there are no more rounds than `LEAST_ROUNDS`.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for call in calls:
        call()
    taken, end = [[] for _ in calls], time.perf_counter() + most
    while (done := len(taken[-1])) < rounds and (done < LEAST_ROUNDS or time.perf_counter() < end):
        for call, times in zip(calls, taken, strict=True):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - start)
    return taken


def write_exact(result: Exact, folder: str | Path, net: str) -> list[Path]:
    """Write `exact.safetensors`, `exact.pt2` and `exact.json`, each whole or not at all; returns the paths written.

    The first is a state dict for the net's class, with the name `net` in its header; the second is the folded net as
    exported by `torch.export`, with its weights, for any number of images. Neither needs this library. If
    `torch.export` doesn't support the net, a note replaces the second. UserError if the folder can't be written.
    """
    weights, program, numbers = written = [Path(folder) / name for name in FILES]
    for path in written:
        check_writable(path)
        path.unlink(missing_ok=True)  # no file of an earlier run remains
    which = "exact_fine_tuned" if result.fine_tuning else "exact"
    about = {key: getattr(result, key) for key in ("symmetry", "accuracy", "invariance_error")}
    about = {"relusym": __version__, "net": net, "which": which} | about
    checkpoint.save(weights, result.plain.state_dict(), about)
    try:
        made = exported(result.folded, result.image_shape)
    except Exception as error:  # torch.export raises all kinds
        result.notes.append(
            f"{program.name} isn't written, since torch.export doesn't support the net: {first_line(error)}"
        )
        written.remove(program)
    else:
        with write_whole(program) as part, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about channels-last kernels, which are stored as they are
            torch.export.save(made, part)
    write_text(numbers, json.dumps(finite(result.numbers()), allow_nan=False) + "\n")
    return written


@torch.no_grad()
def exported(net: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """A net as an exported program on the CPU, for any number of images of this shape."""
    net = deepcopy(net).cpu().eval().requires_grad_(False)
    batch = ({0: torch.export.Dim("batch")},)
    return torch.export.export(net, (torch.zeros(2, *shape),), dynamic_shapes=batch)
