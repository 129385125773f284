"""The benchmark: both sides run alternately; medians, ratios, and whether their results agree."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, variance
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmark.sides import IMAGES, Task, merge, train
from relusym.config.settings import Settings
from relusym.data import chiral_shapes, image_set
from relusym.data.augmentation import normalise
from relusym.errors import UserError
from relusym.nets.vgg import VGG11
from relusym.records.files import load_record
from relusym.records.results import Results
from relusym.training.loop import autocast_to

TASKS = {
    # matched: five per test image, as in CIFAR10
    "cpu": Task(width=0.25, train=4_000, test=500, batch_size=100, matched=2_500),
    # matched: fewer, since the plain side passes over them once per layer
    "cuda": Task(width=1.0, train=50_000, test=10_000, batch_size=500, matched=10_000),
}
NETS_ON_A_GPU = 4  # at once; on CPUs, one per core
REPEATS = 3  # of every measurement; the median counts
AGREE = 0.99  # the share of channels for which both sides must find the same match
NOISE = 3  # standard errors that accuracies may differ by
GOALS = {  # by row and device: a minimum (ratios, shares) or a maximum (seconds, hours)
    "training": {"cpu": 3.0, "cuda": 5.0},
    "share of the arithmetic floor": {"cuda": 0.35},
    "flip merge": {"cpu": 6.0, "cuda": 8.0},
    "pair merge": {"cpu": 6.0, "cuda": 8.0},
    "dry run of the paper's grid": {"cpu": 3.0, "cuda": 3.0},
    "dry run of ten times the seeds": {"cpu": 9.0, "cuda": 9.0},
    "start-up of a job": {"cpu": 3.0, "cuda": 6.0},
    "the paper's grid, extrapolated": {"cuda": 1.0},
}
COLUMNS = ["what", "unit", "here", "plain", "ratio", "goal", "reached", "agreement", "agrees", "how"]
SIDE = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices: enough to reach the device's peak rate
SHORT = {"scale": "demo", "training": {"epochs": 1, "warmup_epochs": 0}}
PAPERS_IMAGES = 50_000


Row = dict[str, Any]  # the columns of `benchmark` by name, except those that follow from `GOALS`


def matrix_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """The median FLOP/s of products of square matrices."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=threads)
    return 2 * side**3 / timer.blocked_autorange().median


def flop_an_image(width: float) -> int:
    """Floating-point operations of a forward and backward pass of one image through the plain VGG11."""
    net = VGG11(width)
    x = normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Race:
    """Both sides at one task, alternately: this project with one net per process at once; the plain procedure with one
    net on all cores, and with as many nets at once as this project."""

    here: Sequence[ProcessPoolExecutor]
    plain: Sequence[ProcessPoolExecutor]
    task: Task
    cores: int

    def run(
        self, what: str, unit: str, function: Callable, arguments: Callable[[int, int], Sequence]
    ) -> tuple[Row, list, list]:
        """A row of the median seconds per net, here and in the fastest plain way, and all results, here and plain.

        `function`: of `sides`; `arguments`: its arguments for a number of nets and a repeat.
        """
        sides = [("here", self.here), *(("plain", self.plain[:nets]) for nets in sorted({1, len(self.here)}))]
        ways = [(side, on, replace(self.task, threads=max(1, self.cores // len(on)))) for side, on in sides]
        times, results = [[] for _ in ways], {"here": [], "plain": []}
        for repeat in range(REPEATS):
            for (side, on, task), taken in zip(ways, times, strict=True):
                calls = zip(on, arguments(len(on), repeat), strict=True)
                futures = [process.submit(function, task, side, x) for process, x in calls]
                started, ended, outcomes = zip(*(future.result() for future in futures), strict=True)
                taken.append((max(ended) - min(started)) / len(on))
                results[side] += outcomes
        here, *plain = map(median, times)
        fastest = ways[1 + plain.index(min(plain))]
        how = "; plain: ".join(
            f"{len(on)} at once, each {task.threads} threads" for _, on, task in (ways[0], fastest)
        )
        row = {"what": what, "unit": unit, "here": here, "plain": min(plain), "ratio": min(plain) / here}
        return row | {"how": f"{how} + {fastest[2].threads} workers"}, results["here"], results["plain"]

    def training_rows(self) -> list[Row]:
        """The speed of training, and its share of the speed at which this machine multiplies matrices."""
        task, recipe = self.task, self.task.recipe
        row, *scores = self.run(
            "training", "images/s", train, lambda nets, repeat: range(repeat * nets, (repeat + 1) * nets)
        )
        seen = task.train // recipe.batch_size * recipe.batch_size * recipe.epochs
        row |= {side: seen / row[side] for side in ("here", "plain")}
        ours, theirs = map(mean, scores)
        chance = 2 * ours * (1 - ours) / task.test
        error = (sum(variance(some) / len(some) for some in scores) + chance) ** 0.5
        agreement = f"accuracy {ours:.3f} and {theirs:.3f} (standard error of the difference {error:.3f})"
        row |= {"agreement": agreement, "agrees": abs(ours - theirs) <= NOISE * error}
        peak = matrix_rate(task.device, autocast_to(recipe.precision, task.device), self.cores)
        floor = {side: row[side] * flop_an_image(task.width) / peak for side in ("here", "plain")}
        floor |= {"what": "share of the arithmetic floor", "unit": "share"}
        return [row, floor | {"how": f"matrix products reach {peak / 1e12:.2f} TFLOP/s"}]

    def merge_row(self, what: str, seeds: Sequence[int]) -> Row:
        """The time of a flip merge (of one trained net) or of a pair merge (of two)."""
        row, *results = self.run(what, "s", merge, lambda nets, _: [seeds] * nets)
        (ours, accuracy), (theirs, plain_accuracy) = (some[0] for some in results)
        alike = [a == b for name in ours for a, b in zip(ours[name], theirs[name], strict=True)]
        apart = {name: abs(score - plain_accuracy[name]) for name, score in accuracy.items()}
        allowed = {name: NOISE * (2 * p * (1 - p) / self.task.test) ** 0.5 for name, p in accuracy.items()}
        agreement = f"{mean(alike):.2%} of {len(alike)} channels, accuracies within {max(apart.values()):.4f}"
        agrees = mean(alike) >= AGREE and all(apart[name] <= allowed[name] for name in apart)
        return row | {"agreement": agreement, "agrees": agrees}


def compared_rows(task: Task, nets: int, cores: int) -> list[Row]:
    """Rows of training and merges on both sides; `nets`: how many this project trains or merges at once."""
    image_set.save(task.folder / IMAGES, *chiral_shapes.generate(task.train, task.test, 0))
    spawn = get_context("spawn")  # a forked process can't use a GPU
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(2 * nets)]
        race = Race(pools[:nets], pools[nets:], task, cores)
        merges = {"flip merge": (0,), "pair merge": (0, 1)}
        return [*race.training_rows(), *(race.merge_row(*merge) for merge in merges.items())]


def grid_row(paper: Settings, task: Task, rows: Sequence[Row]) -> list[Row]:
    """The hours of the paper's grid at the measured rates; no row if its nets are of another width than those measured.

    An epoch with the invariance loss sees every image twice; a merge's time is assumed to be proportional to the number
    of images it matches on.
    """
    models = [paper.models[model] for model in paper.table("table2")]
    if models[0].network["width"] != task.width:
        return []
    measured = {row["what"]: row["here"] for row in rows}
    starts = [model.stages["training"].invariance_from for model in models]
    passes = paper.sections.training.epochs * sum(1 if start is None else 2 - start for start in starts)
    merges = len(models) * measured["flip merge"] + len(paper.types_paired) * measured["pair merge"]
    seconds = PAPERS_IMAGES * (passes / measured["training"] + merges / task.matched)
    hours = len(paper.sections.seeds) * seconds / 3600
    return [{"what": "the paper's grid, extrapolated", "unit": "h", "here": hours}]


def clone(root: Path, folder: Path) -> None:
    """The workflow at `root` as in a fresh clone: in another folder, without results."""
    for path in root.iterdir():
        if path.name not in ("data", "results") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)


def snakemake(folder: Path, *arguments: str, **config: Any) -> float:
    """The seconds that Snakemake takes; UserError if it fails."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
    given = [f"{key}={json.dumps(value)}" for key, value in config.items()]
    command = [sys.executable, "-m", "snakemake", *arguments, "--config", *given]
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"bench: {' '.join(command[2:])} failed: {(done.stdout + done.stderr)[-2000:]}")
    return time.monotonic() - started


def start_up(folder: Path, device: str) -> float:
    """Seconds from a training job's start to its first useful work: its total time minus that in its record."""
    results = Results(Settings.of(SHORT, [folder / "scales"]))
    record = results.record(results.key("train", ("cnn", 0)))
    snakemake(folder, "--cores", "1", "--force", record, **SHORT, device=device)
    cost = load_record(folder / record)["cost"]
    return cost["job_seconds"] - cost["seconds"]


def workflow_rows(folder: Path, device: str, cores: int, paper: Settings) -> list[Row]:
    """The cost of the workflow itself, a clone in `folder`."""
    # first the demo, which prepares the images, and reads the files once
    demo = {
        "the demo, from start to end": snakemake(folder, "--cores", str(cores), scale="demo", device=device)
    }
    costs = [load_record(path)["cost"] for path in folder.glob("results/demo/records/*/*/[0-9]*.json")]
    demo["useful seconds of the demo's jobs, together"] = sum(cost["seconds"] for cost in costs)
    plan = partial(snakemake, folder, "--dry-run", "--quiet", "--cores", "1", scale="paper")
    ten_times = {"seeds": f"0-{10 * len(paper.sections.seeds) - 1}"}
    timed = {
        "dry run of the paper's grid": plan,
        "dry run of ten times the seeds": partial(
            plan, models=dict.fromkeys(paper.table("table2"), ten_times)
        ),
        "start-up of a job": partial(start_up, folder, device),
    }
    seconds = {what: median(run() for _ in range(REPEATS)) for what, run in timed.items()} | demo
    return [{"what": what, "unit": "s", "here": here} for what, here in seconds.items()]


def benchmark(root: Path, device: torch.device, cores: int) -> pd.DataFrame:
    """A row for each quantity, `what`, in `unit`; `root`: the workflow's folder; `device`, `cores`: of both sides.

    `here`, `plain`: the medians of this project and of the plain procedure; `ratio`: how many times as fast this
    project is; `goal`, from `GOALS`, and whether it is `reached` by the ratio or, without one, by `here`; `agreement`:
    how well both sides' results agree, and `agrees`: whether well enough; `how`: how each side ran.
    """
    paper = Settings.of({"scale": "paper"}, [root / "scales"])
    with TemporaryDirectory() as folder:
        task = replace(TASKS[device.type], device=device, folder=Path(folder))
        rows = compared_rows(task, NETS_ON_A_GPU if device.type == "cuda" else cores, cores)
    rows += grid_row(paper, task, rows)
    with TemporaryDirectory() as folder:
        clone(root, Path(folder))
        rows += workflow_rows(Path(folder), str(device), cores, paper)
    return judged(rows, device.type)


def judged(rows: Sequence[Row], device: str) -> pd.DataFrame:
    """The rows with their goals, and all columns in their order."""
    for row in rows:
        if goal := GOALS.get(row["what"], {}).get(device):
            value, at_most = row.get("ratio", row["here"]), "ratio" not in row and row["unit"] in ("s", "h")
            row |= {"goal": goal, "reached": value <= goal if at_most else value >= goal}
    return pd.DataFrame(rows, columns=COLUMNS)
