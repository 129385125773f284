"""The benchmark: both sides by turns, medians, ratios, and whether their results agree."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark import sides
from benchmark.settings import Bench
from benchmark.sides import Side, Task, Weights
from benchmark.workflow_timing import WorkflowCopy
from relusym.data import chiral_shapes, image_set
from relusym.data.augmentation import normalise
from relusym.nets.vgg import VGG11
from relusym.training.recipe import Recipe

AGREE = 0.99  # share of channels that both sides must match alike
NOISE = 3  # standard errors that accuracies may differ by
GOALS = {  # of one row on CPU and GPU: at least (ratios, shares), or at most (seconds, hours)
    "training": {"cpu": 3.0, "cuda": 5.0},
    "share of the arithmetic floor": {"cuda": 0.35},
    "flip merge": {"cpu": 6.0, "cuda": 8.0},
    "pair merge": {"cpu": 6.0, "cuda": 8.0},
    "dry run of the paper's grid": {"cpu": 3.0, "cuda": 3.0},
    "dry run of ten times the seeds": {"cpu": 9.0, "cuda": 9.0},
    "start-up of a job": {"cpu": 3.0, "cuda": 6.0},
    "the paper's grid, extrapolated": {"cuda": 1.0},
}


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        what, unit: the quantity.
        here, plain: medians of this project's and of the plain way's values.
        ratio: how many times as fast this project is.
        goal, reached: see `GOALS`.
        agreement: how far the two sides' results agree, and `agrees`: whether that is enough.
        how: how each side ran.
    """

    what: str
    unit: str
    here: float
    plain: float | None = None
    ratio: float | None = None
    goal: float | None = None
    reached: bool | None = None
    agreement: str = ""
    agrees: bool | None = None
    how: str = ""


def row(what: str, unit: str, here: float, device: str, *, at_least: float | None = None, **columns) -> Row:
    """A row with its goal: `at_least` is the value that has to reach it, by default `here` mustn't exceed it."""
    goal = GOALS.get(what, {}).get(torch.device(device).type)
    reached = None if goal is None else (at_least >= goal if at_least is not None else here <= goal)
    return Row(what, unit, here, goal=goal, reached=reached, **columns)


@dataclass(frozen=True)
class Contender:
    """One way to use the machine: a function of `sides`, what its processes get, and how many nets at once."""

    name: str
    side: Side
    function: Callable[..., sides.Outcome]
    task: Task
    nets: int

    @property
    def how(self) -> str:
        """In words."""
        workers = f" + {self.task.workers} workers" if self.task.workers else ""
        return f"{self.nets} at once, each {self.task.threads} threads{workers}"


def contenders(
    here: Side, plain: Side, ours: Callable, theirs: Callable, task: Task, cores: int
) -> list[Contender]:
    """This project with as many nets at once as it has processes; the plain way with one net, and with as many."""
    nets = len(here.processes)
    share = max(1, cores // nets)
    contending = [
        Contender("here", here, ours, replace(task, threads=share), nets),
        Contender("plain", plain, theirs, replace(task, threads=cores, workers=cores), 1),
    ]
    if nets > 1:
        contending.append(
            Contender("plain, several", plain, theirs, replace(task, threads=share, workers=share), nets)
        )
    return contending


def by_turns(
    contending: Sequence[Contender], arguments: Callable[[Contender, int], list], repeats: int
) -> tuple[dict[str, float], dict[str, list]]:
    """Each contender once, then each again, …: median seconds a net, and all results, by name."""
    seconds, results = defaultdict(list), defaultdict(list)
    for repeat in range(repeats):
        for each in contending:
            took, outcomes = each.side.run(each.function, each.task, arguments(each, repeat))
            seconds[each.name].append(took / each.nets)
            results[each.name] += outcomes
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def against_plain(
    contending: Sequence[Contender], seconds: dict[str, float]
) -> tuple[Contender, dict[str, Any]]:
    """The fastest plain contender, and a row's columns on this project against it."""
    best = min(contending[1:], key=lambda each: seconds[each.name])
    ratio = seconds[best.name] / seconds["here"]
    return best, {"ratio": ratio, "at_least": ratio, "how": f"{contending[0].how}; plain: {best.how}"}


def flop_an_image(width: float) -> int:
    """Floating-point operations of one image's forward and backward pass through the plain VGG11."""
    net = VGG11(width)
    x = normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    return counter.get_total_flops()


def training_rows(
    here: Side, plain: Side, task: Task, images: int, test_images: int, cores: int, repeats: int
) -> tuple[list[Row], list[Weights]]:
    """Training on both sides; also the weights of this project's nets, for the merges."""
    contending = contenders(here, plain, sides.train_here, sides.train_plainly, task, cores)
    seconds, results = by_turns(
        contending, lambda each, repeat: [repeat * each.nets + i for i in range(each.nets)], repeats
    )
    seen = images // task.training.batch_size * task.training.batch_size * task.training.epochs
    speed = {name: seen / value for name, value in seconds.items()}
    best, compared = against_plain(contending, seconds)
    ours = [score for score, _ in results["here"]]
    theirs = [score for each in contending[1:] for score, _ in results[each.name]]
    difference = statistics.mean(ours) - statistics.mean(theirs)
    errors = [statistics.variance(scores) / len(scores) for scores in (ours, theirs) if len(scores) > 1]
    chance = statistics.mean(ours)
    error = (sum(errors) + 2 * chance * (1 - chance) / test_images) ** 0.5
    peak = here.rate(replace(task, threads=cores))
    floor = {name: value * flop_an_image(task.width) / peak for name, value in speed.items()}
    return [
        row(
            "training",
            "images/s",
            speed["here"],
            task.device,
            plain=speed[best.name],
            agreement=f"accuracy {statistics.mean(ours):.3f} and {statistics.mean(theirs):.3f} "
            f"(standard error of the difference {error:.3f})",
            agrees=abs(difference) <= NOISE * error,
            **compared,
        ),
        row(
            "share of the arithmetic floor",
            "share",
            floor["here"],
            task.device,
            plain=floor[best.name],
            at_least=floor["here"],
            how=f"matrix products reach {peak / 1e12:.2f} TFLOP/s",
        ),
    ], [weights for _, weights in results["here"]]


def merge_row(
    what: str,
    here: Side,
    plain: Side,
    task: Task,
    nets: Sequence[Weights],
    test_images: int,
    cores: int,
    repeats: int,
) -> Row:
    """A flip merge (one net's weights) or a pair merge (two nets') on both sides."""
    contending = contenders(here, plain, sides.merge_here, sides.merge_plainly, task, cores)
    seconds, results = by_turns(contending, lambda each, repeat: [tuple(nets)] * each.nets, repeats)
    best, compared = against_plain(contending, seconds)
    (ours, accuracy), (theirs, plain_accuracy) = results["here"][0], results[best.name][0]
    alike = [
        a == b for name, permutation in ours.items() for a, b in zip(permutation, theirs[name], strict=True)
    ]
    share = sum(alike) / len(alike)
    apart = {name: abs(score - plain_accuracy[name]) for name, score in accuracy.items()}
    allowed = {name: NOISE * (2 * p * (1 - p) / test_images) ** 0.5 for name, p in accuracy.items()}
    return row(
        what,
        "s",
        seconds["here"],
        task.device,
        plain=seconds[best.name],
        agreement=f"{share:.2%} of {len(alike)} channels, accuracies within {max(apart.values()):.4f}",
        agrees=share >= AGREE and all(apart[name] <= allowed[name] for name in apart),
        **compared,
    )


def workflow_rows(root: Path, device: str, cores: int, repeats: int, demo: bool, seeds: int) -> list[Row]:
    """What the workflow itself costs, in a copy of it; `seeds` is how many the paper's grid has."""
    with TemporaryDirectory() as folder:
        copy = WorkflowCopy(root, Path(folder))
        timed: dict[str, Callable[[], float]] = {
            "dry run of the paper's grid": lambda: copy.dry_run("paper"),
            "dry run of ten times the seeds": lambda: copy.dry_run("paper", f"0-{10 * seeds - 1}"),
            "start-up of a job": lambda: copy.start_up(device),
        }
        copy.start_up(device)  # images are prepared, files read once
        seconds = defaultdict(list)
        for _ in range(repeats):
            for what, run in timed.items():
                seconds[what].append(run())
        rows = [row(what, "s", statistics.median(values), device) for what, values in seconds.items()]
        if demo:
            wall, useful = copy.run("demo", cores, device)
            rows.append(Row("the demo, from start to end", "s", wall, how=f"on {cores} cores"))
            rows.append(Row("useful seconds of the demo's jobs, together", "s", useful))
        return rows


def grid_row(paper: dict[str, Any], task: Task, rows: Sequence[Row]) -> list[Row]:
    """How long the paper's grid would take at the measured rates, if its nets are as wide as those measured.

    An epoch with the invariance loss sees every image twice, and merges are taken to grow with the images they match.
    """
    if paper["width"] != task.width:
        return []
    measured = {each.what: each.here for each in rows}
    passes = [1 if share is None else 2 - share for share in paper["invariance_from"]]
    trainings = sum(passes) * paper["epochs"] * paper["images"] / measured["training"]
    merges = len(passes) * measured["flip merge"] + paper["pairs"] * measured["pair merge"]
    hours = paper["seeds"] * (trainings + merges * paper["images"] / task.matched) / 3600
    return [row("the paper's grid, extrapolated", "h", hours, task.device)]


def compared_rows(
    how: dict[str, Any], paper: dict[str, Any], device: torch.device, cores: int, repeats: int
) -> list[Row]:
    """Training and merges, on both sides; arguments as of `benchmark`, `how` is the settings' part for the device."""
    at_once = how["nets"] or cores
    training = Recipe(
        epochs=how["epochs"],
        batch_size=how["batch_size"],
        learning_rate=how["learning_rate"],
        momentum=0.9,
        weight_decay=5e-4,
        warmup_epochs=how["epochs"] / 4,
        crop_padding=4,
    )
    images, tests = how["train_images"], how["test_images"]
    with TemporaryDirectory() as folder:
        data = Path(folder) / "images.safetensors"
        image_set.save(data, *chiral_shapes.generate(images, tests, 0))
        task = Task(
            data, str(device), 1, 0, how["width"], training, how["matched_images"], how["merge_batch_size"]
        )
        here, plain = Side(at_once), Side(at_once)
        try:
            rows, weights = training_rows(here, plain, task, images, tests, cores, repeats)
            for what, count in (("flip merge", 1), ("pair merge", 2)):
                nets = weights[:count] if len(weights) >= count else weights * count
                rows.append(merge_row(what, here, plain, task, nets, tests, cores, repeats))
        finally:
            here.close(), plain.close()
        return rows + grid_row(paper, task, rows)


def benchmark(
    settings: Bench, paper: dict[str, Any], root: Path, device: torch.device, cores: int
) -> pd.DataFrame:
    """All rows.

    Args:
        settings: of bench.yaml.
        paper: the scale paper's `width`, `epochs`, number of `images`, `seeds` and `pairs`, and `invariance_from` of
            each of its model types.
        root: the workflow's folder.
        device: both sides compute on it.
        cores: CPU cores that both sides may use.
    """
    repeats, how = settings.repeats, getattr(settings, device.type).model_dump()
    rows = compared_rows(how, paper, device, cores, repeats)
    rows += workflow_rows(root, str(device), cores, repeats, settings.demo, paper["seeds"])
    return pd.DataFrame(rows)
