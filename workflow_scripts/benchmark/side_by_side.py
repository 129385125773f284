"""The benchmark: both sides run alternately; medians, ratios, and whether their results agree."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmark import sides
from benchmark.sides import Side, Task, Weights
from relusym.config.models import Place
from relusym.config.reading import read_file
from relusym.config.settings import Settings
from relusym.data import chiral_shapes, image_set
from relusym.data.augmentation import normalise
from relusym.errors import UserError
from relusym.nets.vgg import VGG11
from relusym.records.files import load_record
from relusym.records.results import Results
from relusym.schema import Count, Flag, OrNull, Positive, Section
from relusym.training.recipe import Recipe

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
LEFT_OUT = {"data", "results", "tests", "docs"}  # not needed in a copy, or made by runs
START_UP = "start_up"  # the name of a scale with one small training


class Device(Section):
    nets: OrNull[Count]
    width: Positive
    train_images: Count
    test_images: Count
    epochs: Count
    batch_size: Count
    learning_rate: Positive
    matched_images: Count
    merge_batch_size: Count


class Bench(Section):
    repeats: Count
    demo: Flag
    cpu: Device
    cuda: Device


def read_settings() -> Bench:
    """The settings in bench.yaml, beside this file; UserError if they are invalid."""
    path = Path(__file__).with_name("bench.yaml")
    return Bench.read(read_file(path), Place(path.name, {}))


@dataclass(frozen=True)
class Row:
    """A measured quantity, `what`, in `unit`."""

    what: str
    unit: str
    here: float  # the median of this project's values
    plain: float | None = None  # the median of the plain procedure's values
    ratio: float | None = None  # how many times as fast this project is
    goal: float | None = None  # from `GOALS`
    reached: bool | None = None
    agreement: str = ""  # how well the two sides' results agree
    agrees: bool | None = None  # whether they agree well enough
    how: str = ""  # how each side ran


def row(what: str, unit: str, here: float, device: str, *, at_least: float | None = None, **columns) -> Row:
    """A row with its goal, which `at_least` has to reach; if that is None, `here` mustn't exceed the goal."""
    goal = GOALS.get(what, {}).get(torch.device(device).type)
    reached = None if goal is None else (at_least >= goal if at_least is not None else here <= goal)
    return Row(what, unit, here, goal=goal, reached=reached, **columns)


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

    here: Side
    plain: Side
    task: Task
    test_images: int
    cores: int
    repeats: int

    def run(
        self, ours: Callable, theirs: Callable, arguments: Callable[[int, int], list]
    ) -> tuple[str, dict[str, float], dict[str, list], dict[str, Any]]:
        """The fastest plain way; median seconds per net, and all results, by way; and a row's columns that compare this
        project with the fastest plain way.

        `ours`, `theirs`: functions of `sides`; `arguments`: their arguments for a number of nets and a repeat.
        """
        several = len(self.here.processes)
        share, whole = (replace(self.task, threads=max(1, self.cores // n)) for n in (several, 1))
        ways = {  # the side, its processes' function and task, and how many nets run at once
            "here": (self.here, ours, share, several),
            "plain": (self.plain, theirs, replace(whole, workers=whole.threads), 1),
            "plain, several": (self.plain, theirs, replace(share, workers=share.threads), several),
        }
        if several == 1:
            del ways["plain, several"]
        times, results = defaultdict(list), defaultdict(list)
        for repeat in range(self.repeats):
            for name, (side, function, task, nets) in ways.items():
                took, outcomes = side.run(function, task, arguments(nets, repeat))
                times[name].append(took / nets)
                results[name] += outcomes
        seconds = {name: statistics.median(values) for name, values in times.items()}
        best = min([*ways][1:], key=seconds.__getitem__)
        ratio = seconds[best] / seconds["here"]
        way, other = (
            f"{ways[name][3]} at once, each {ways[name][2].threads} threads" for name in ("here", best)
        )
        how = f"{way}; plain: {other} + {ways[best][2].workers} workers"
        return best, seconds, results, {"ratio": ratio, "at_least": ratio, "how": how}

    def training_rows(self, images: int) -> tuple[list[Row], list[Weights]]:
        """The rows of training on `images` images, and the weights of this project's nets, for the merges."""
        best, seconds, results, compared = self.run(
            sides.train_here,
            sides.train_plainly,
            lambda nets, repeat: [repeat * nets + i for i in range(nets)],
        )
        task, recipe = self.task, self.task.training
        seen = images // recipe.batch_size * recipe.batch_size * recipe.epochs
        here_speed, plain_speed = (seen / seconds[name] for name in ("here", best))
        ours = [score for score, _ in results["here"]]
        theirs = [score for name in results if name != "here" for score, _ in results[name]]
        chance, other = statistics.mean(ours), statistics.mean(theirs)
        errors = [statistics.variance(scores) / len(scores) for scores in (ours, theirs) if len(scores) > 1]
        error = (sum(errors) + 2 * chance * (1 - chance) / self.test_images) ** 0.5
        agreement = f"accuracy {chance:.3f} and {other:.3f} (standard error of the difference {error:.3f})"
        agrees = abs(chance - other) <= NOISE * error
        peak = self.here.rate(replace(task, threads=self.cores))
        floor, plain_floor = (speed * flop_an_image(task.width) / peak for speed in (here_speed, plain_speed))
        compared |= {"plain": plain_speed, "agreement": agreement, "agrees": agrees}
        how = f"matrix products reach {peak / 1e12:.2f} TFLOP/s"
        reached = {"plain": plain_floor, "at_least": floor, "how": how}
        speed = row("training", "images/s", here_speed, task.device, **compared)
        share = row("share of the arithmetic floor", "share", floor, task.device, **reached)
        return [speed, share], [weights for _, weights in results["here"]]

    def merge_row(self, what: str, nets: Sequence[Weights]) -> Row:
        """The row of a flip merge (the weights of one net) or of a pair merge (of two nets)."""
        best, seconds, results, compared = self.run(
            sides.merge_here, sides.merge_plainly, lambda count, repeat: [tuple(nets)] * count
        )
        (ours, accuracy), (theirs, plain_accuracy) = results["here"][0], results[best][0]
        alike = [a == b for name in ours for a, b in zip(ours[name], theirs[name], strict=True)]
        share = sum(alike) / len(alike)
        apart = {name: abs(score - plain_accuracy[name]) for name, score in accuracy.items()}
        allowed = {name: NOISE * (2 * p * (1 - p) / self.test_images) ** 0.5 for name, p in accuracy.items()}
        agreement = f"{share:.2%} of {len(alike)} channels, accuracies within {max(apart.values()):.4f}"
        agrees = share >= AGREE and all(apart[name] <= allowed[name] for name in apart)
        compared |= {"plain": seconds[best], "agreement": agreement, "agrees": agrees}
        return row(what, "s", seconds["here"], self.task.device, **compared)


class WorkflowCopy:
    """A copy of the workflow at `root` in another folder, like a fresh clone."""

    def __init__(self, root: Path, folder: Path):
        self.folder = folder
        made = shutil.ignore_patterns(".*", "__pycache__")

        def left_out(at: str, names: list[str]) -> set[str]:
            return made(at, names) | (LEFT_OUT if Path(at) == root else set())  # not relusym's package `data`

        shutil.copytree(root, folder, ignore=left_out, dirs_exist_ok=True)
        self.add_scale(START_UP, "demo", start_up_scale)

    def add_scale(self, name: str, like: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Add a scale: the sections of the scale `like`, as changed by `change`."""
        file, other = (self.folder / f"scales/{scale}.yaml" for scale in (name, like))
        sections = change(yaml.safe_load(other.read_text(encoding="utf-8")))
        file.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")

    def seconds(self, *arguments: str) -> float:
        """The seconds that Snakemake takes; UserError if it fails."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
        command = [sys.executable, "-m", "snakemake", *arguments]
        started = time.monotonic()
        run = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        if run.returncode:
            raise UserError(f"bench: {' '.join(arguments)} failed: {(run.stdout + run.stderr)[-2000:]}")
        return time.monotonic() - started

    def dry_run(self, scale: str, seeds: str | None = None) -> float:
        """Seconds to plan a scale's jobs from scratch; `seeds`, such as 0-239, replaces the scale's."""
        if seeds:
            self.add_scale(f"{scale}_more", scale, lambda sections: sections | {"seeds": seeds})
            scale = f"{scale}_more"
        return self.seconds("--dry-run", "--quiet", "--cores", "1", "--config", f"scale={scale}")

    def start_up(self, device: str) -> float:
        """Seconds from a training job's start to its first useful work: its total time minus that in its record."""
        results = Results(Settings.of({"scale": START_UP}, [self.folder / "scales"]))
        record = results.record(results.key("train", ("cnn", 0)))
        self.seconds("--cores", "1", "--force", record, "--config", f"scale={START_UP}", f"device={device}")
        cost = load_record(self.folder / record)["cost"]
        return cost["job_seconds"] - cost["seconds"]

    def run(self, scale: str, cores: int, device: str) -> tuple[float, float]:
        wall = self.seconds("--cores", str(cores), "--config", f"scale={scale}", f"device={device}")
        records = sorted(self.folder.glob(f"results/{scale}/records/*/*/[0-9]*.json"))
        return wall, sum(load_record(record)["cost"]["seconds"] for record in records)


def start_up_scale(demo: dict[str, Any]) -> dict[str, Any]:
    """The demo reduced to one seed of its VGG11s and a short training."""
    training = {**demo["training"], "epochs": 1, "warmup_epochs": 0}
    data = {**demo["data"], "train_images": 200, "test_images": 100}
    merging = {**demo["merging"], "images": 100, "invariance_images": 100}
    models = {id_: model for id_, model in demo["models"].items() if model.get("table") != "table5"}
    kept = {key: value for key, value in demo.items() if key not in ("figure9", "beyond")}
    return kept | {"seeds": "0", "data": data, "training": training, "merging": merging, "models": models}


def workflow_rows(root: Path, device: str, cores: int, repeats: int, demo: bool, seeds: int) -> list[Row]:
    """The cost of the workflow itself, measured in a copy; `seeds`: the number of seeds in the paper's grid."""
    with TemporaryDirectory() as folder:
        copy = WorkflowCopy(root, Path(folder))
        timed: dict[str, Callable[[], float]] = {
            "dry run of the paper's grid": lambda: copy.dry_run("paper"),
            "dry run of ten times the seeds": lambda: copy.dry_run("paper", f"0-{10 * seeds - 1}"),
            "start-up of a job": lambda: copy.start_up(device),
        }
        copy.start_up(device)  # warm-up: prepares the images and reads the files once
        rounds = [[run() for run in timed.values()] for _ in range(repeats)]
        medians = map(statistics.median, zip(*rounds, strict=True))
        rows = [row(what, "s", seconds, device) for what, seconds in zip(timed, medians, strict=True)]
        if demo:
            wall, useful = copy.run("demo", cores, device)
            rows.append(Row("the demo, from start to end", "s", wall, how=f"on {cores} cores"))
            rows.append(Row("useful seconds of the demo's jobs, together", "s", useful))
        return rows


def grid_row(paper: dict[str, Any], task: Task, rows: Sequence[Row]) -> list[Row]:
    """The hours of the paper's grid at the measured rates; no row if its nets are of another width than those measured.

    An epoch with the invariance loss sees every image twice; a merge's time is assumed to be proportional to the number
    of images it matches on.
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
    """Rows of training and merges on both sides. Arguments as in `benchmark`; `how`: the settings for the device."""
    at_once = how["nets"] or cores
    chosen = {key: how[key] for key in ("epochs", "batch_size", "learning_rate")}
    training = Recipe(**chosen, weight_decay=5e-4, warmup_epochs=how["epochs"] / 4, crop_padding=4)
    images, tests = how["train_images"], how["test_images"]
    with TemporaryDirectory() as folder:
        data = Path(folder) / "images.safetensors"
        image_set.save(data, *chiral_shapes.generate(images, tests, 0))
        merging = how["matched_images"], how["merge_batch_size"]
        task = Task(data, str(device), 1, 0, how["width"], training, *merging)
        with Side(at_once) as here, Side(at_once) as plain:
            race = Race(here, plain, task, tests, cores, repeats)
            rows, weights = race.training_rows(images)
            for what, count in (("flip merge", 1), ("pair merge", 2)):
                rows.append(race.merge_row(what, (weights * count)[:count]))
        return rows + grid_row(paper, task, rows)


def benchmark(
    settings: Bench, paper: dict[str, Any], root: Path, device: torch.device, cores: int
) -> pd.DataFrame:
    """All rows of the benchmark.

    `paper`: `width`, `epochs`, the numbers of `images`, `seeds` and `pairs`, and each model type's `invariance_from` at
    the scale paper; `root`: the workflow's folder; `device`, `cores`: the device and the number of CPU cores of both
    sides.
    """
    repeats, how = settings.repeats, getattr(settings, device.type).model_dump()
    rows = compared_rows(how, paper, device, cores, repeats)
    rows += workflow_rows(root, str(device), cores, repeats, settings.demo, paper["seeds"])
    return pd.DataFrame(rows)
