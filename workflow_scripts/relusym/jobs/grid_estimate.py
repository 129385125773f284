"""What a scale will cost in GPU-hours, from the benchmarks of another scale that has run, on a CPU as it may be.

Arithmetic is what costs: a job's CPU time is taken to grow with the operations of its nets, and a GPU to do
`tflops`·10¹² of them a second, against what the benchmarked core did in jobs of that family of nets.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from relusym.experiments.resnet_settings import ResNetSettings
from relusym.experiments.settings import Settings
from relusym.jobs.status import type_of
from relusym.nets import build
from relusym.nets.vgg import VGG11

TRAINED = 3  # a training step costs a forward pass and a backward pass of twice that
SMALL, IMAGENET = (
    (50_000, 10_000),
    (1_281_167, 50_000),
)  # images for training and testing, where a scale takes all


@dataclass(frozen=True)
class Work:
    """The operations of one job, its kind, and its type: a net's without its seed, a ResNet's row and stage."""

    kind: str
    type: str
    operations: float


@cache
def vgg_operations(width: float) -> int:
    """Floating-point operations of one forward pass of a VGG11 on an image of CIFAR10: two a multiplication."""
    with torch.device("meta"):
        return _operations(VGG11(width), 32)


@cache
def resnet_operations(block: str, layers: tuple[int, ...], width: float, size: int) -> int:
    """The same of a ResNet on an image of `size` × `size` pixels."""
    network = {"block": block, "layers": list(layers), "width": width}
    with torch.device("meta"):
        return _operations(build({"architecture": "resnet", **network}, 1000), size)


def _operations(net: nn.Module, size: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops()


def works(settings: Settings) -> list[Work]:
    """Every job of a scale that may be submitted: trainings, and merges of the VGG11s and the ResNets."""
    resnets = ResNetSettings.of(settings)
    found = [Work("train", model, _vgg_training(settings.train(model))) for model, _ in settings.nets]
    found += [Work("flip_merge", model, _vgg_merging(settings.merge([model]))) for model, _ in settings.nets]
    for (a, _), (b, _) in settings.pairs:
        found.append(Work("pair_merge", f"{a}--{b}", _vgg_merging(settings.merge([a, b]))))
    images = IMAGENET if resnets.on_imagenet else SMALL
    for row in resnets.rows:
        for stage in resnets.stages(row):
            name = f"{row}-{stage}"
            found.append(
                Work("resnet_train", name, _resnet_training(resnets.train(row, stage), stage, images[0]))
            )
        found.append(Work("resnet_merge", row, _resnet_merging(resnets.merge(row), resnets, images)))
    return found


def _vgg_training(settings: dict[str, Any]) -> float:
    """Epochs with the invariance loss see every image twice."""
    training = settings["training"]
    start = training["invariance_from"]
    passes = training["epochs"] * (1 if start is None else 2 - start)
    used = settings["data"]["train_images"] or SMALL[0]
    return TRAINED * passes * used * vgg_operations(settings["network"]["width"])


def _vgg_merging(settings: dict[str, Any]) -> float:
    """A measure of it: the passes over the images are as many at every scale."""
    images = (settings["merging"]["images"] or SMALL[0]) + SMALL[1]
    return images * vgg_operations(settings["trained"][0]["network"]["width"])


def _resnet_operations(network: dict[str, Any], size: int) -> int:
    return resnet_operations(network["block"], tuple(network["layers"]), network["width"], size)


def _resnet_training(settings: dict[str, Any], stage: str, images: int) -> float:
    """The invariance loss and SimSiam see every image twice; under a linear layer alone, nothing is trained."""
    twice = settings["invariance_weight"] is not None or stage == "pretraining"
    passes = settings["recipe"]["epochs"] * (2 if twice else 1) * (1 if stage == "linear" else TRAINED)
    used = settings["images"].get("train_images") or images
    return passes * used * _resnet_operations(settings["network"], settings["images"]["size"])


def _resnet_merging(settings: dict[str, Any], resnets: ResNetSettings, images: tuple[int, int]) -> float:
    network = settings["weights"]["network"]
    return (settings["evaluation"]["images"] + images[1]) * _resnet_operations(
        network, settings["images"]["size"]
    )


def estimate(measured: Settings, wanted: Settings, benchmarks: str | Path, tflops: float) -> pd.DataFrame:
    """One row a kind of job: kind, jobs, core_hours (on the benchmarked core), gpu_hours.

    Args:
        measured: the scale of the benchmarks.
        wanted: the scale to estimate.
        benchmarks: folder of `measured`; its subfolders are kinds of jobs.
        tflops: what the GPU sustains in these nets, in 10¹² operations a second.

    Kinds without any benchmark are left out. A type has the rate of its own benchmarks (seconds an operation), or the
    mean of its kind's.
    """
    done = {(work.kind, work.type): work.operations for work in works(measured)}
    benchmarked = pd.DataFrame(
        [
            (kind, type_, seconds, done[kind, type_])
            for kind in dict.fromkeys(kind for kind, _ in done)
            for type_, seconds in _cpu_seconds(Path(benchmarks) / kind)
            if (kind, type_) in done
        ],
        columns=["kind", "type", "seconds", "operations"],
    )
    kinds: dict[str, list[Work]] = defaultdict(list)
    for work in works(wanted):
        kinds[work.kind].append(work)
    rows = []
    for kind, jobs in kinds.items():
        family = benchmarked[benchmarked["kind"] == ("resnet_train" if "resnet" in kind else "train")]
        of_kind = benchmarked[benchmarked["kind"] == kind]
        if of_kind.empty or family.empty:
            continue
        sums = of_kind.groupby("type")[["seconds", "operations"]].sum()
        rates = (sums["seconds"] / sums["operations"]).to_dict()
        hours = sum(job.operations * rates.get(job.type, mean(rates.values())) for job in jobs) / 3600
        core = family["operations"].sum() / family["seconds"].sum()  # operations a second, in training
        rows.append((kind, len(jobs), hours, hours * core / (tflops * 1e12)))
    return pd.DataFrame(rows, columns=["kind", "jobs", "core_hours", "gpu_hours"])


def _cpu_seconds(folder: Path) -> list[tuple[str, float]]:
    """Type and CPU time of every benchmarked job: unlike the time on the clock, it doesn't grow on a busy machine."""
    resnet = folder.name.startswith("resnet")  # one job a type, which isn't followed by a seed
    return [
        (path.stem if resnet else type_of(path.stem), float(row["cpu_time"]))
        for path in sorted(folder.glob("*.tsv"))
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
        if _is_number(row.get("cpu_time"))
    ]


def _is_number(text: str | None) -> bool:
    return text is not None and text.replace(".", "", 1).isdigit()


def as_text(frame: pd.DataFrame, title: str, notes: Iterable[str]) -> str:
    """The estimate as a table to read, with its sums."""
    sums = pd.DataFrame([["all", *frame[["jobs", "core_hours", "gpu_hours"]].sum()]], columns=frame.columns)
    table = pd.concat([frame, sums]).astype({"jobs": int}).round({"core_hours": 0, "gpu_hours": 1})
    return "\n".join([title, table.to_string(index=False), *notes])
