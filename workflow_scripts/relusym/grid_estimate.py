"""What a scale will cost in GPU-hours, from the benchmarks of another scale that has run, on a CPU as it may be.

Arithmetic is what costs: a job's CPU time is taken to grow with the operations of its convolutions, and a GPU to do
`tflops`·10¹² of them a second, against what the benchmarked core did.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from relusym.run_status import type_of
from relusym.settings import Settings
from relusym.vgg import CHANNELS, POOL_AFTER

TRAINED = 3  # a training step costs a forward pass and a backward pass of twice that


def operations_per_image(width: float, size: int = 32) -> float:
    """Floating-point operations of the convs of a VGG11 in one forward pass: two a multiplication."""
    total, before = 0.0, 3.0
    for i, full in enumerate(CHANNELS, start=1):
        channels = full * width
        total += 2 * 9 * before * channels * size**2
        size = size // 2 if i in POOL_AFTER else size
        before = channels
    return total


def training_operations(settings: dict[str, Any], images: int) -> float:
    """Those of one training: epochs with the invariance loss see every image twice.

    Args:
        settings: as `Settings.train` gives them.
        images: of the whole training set.
    """
    training = settings["training"]
    start = training["invariance_from"]
    passes = training["epochs"] * (1 if start is None else 2 - start)
    used = settings["data"]["train_images"] or images
    return TRAINED * passes * used * operations_per_image(settings["network"]["width"])


def merging_operations(settings: dict[str, Any], images: int) -> float:
    """A measure of those of one merge: its passes go over the same number of images at every scale."""
    network = settings["trained"][0]["network"]
    return (settings["merging"]["images"] or images) * operations_per_image(network["width"])


def estimate(
    measured: Settings, wanted: Settings, benchmarks: str | Path, tflops: float, images: int = 50_000
) -> pd.DataFrame:
    """One row a kind of job: kind, jobs, core_hours (on the benchmarked core), gpu_hours.

    Args:
        measured: the scale of the benchmarks.
        wanted: the scale to estimate.
        benchmarks: folder of `measured`; its subfolders are kinds of jobs.
        tflops: what the GPU sustains in these nets, in 10¹² operations a second.
        images: of the whole training set, where a scale takes all.

    Kinds without any benchmark are left out.
    """
    seconds = {kind: _cpu_seconds(Path(benchmarks) / kind) for kind in ("train", "flip_merge", "pair_merge")}
    jobs = {
        "train": [model for model, _ in wanted.nets],
        "flip_merge": [model for model, _ in wanted.nets],
        "pair_merge": [f"{a}--{b}" for (a, _), (b, _) in wanted.pairs],
    }
    trained = [(type_, s) for type_, s in seconds["train"] if type_ in measured.models]
    operations = sum(training_operations(measured.train(type_), images) for type_, _ in trained)
    core = operations / sum(s for _, s in trained) if trained else None  # operations a second
    rows = []
    for kind, types in jobs.items():
        if not seconds[kind] or core is None:
            continue
        by_type = pd.DataFrame(seconds[kind], columns=["type", "seconds"]).groupby("type")["seconds"].mean()
        hours = sum(
            by_type.get(type_, mean(by_type)) * _ratio(kind, type_, measured, wanted, images)
            for type_ in types
        )
        hours /= 3600
        rows.append((kind, len(types), hours, hours * core / (tflops * 1e12)))
    return pd.DataFrame(rows, columns=["kind", "jobs", "core_hours", "gpu_hours"])


def _ratio(kind: str, type_: str, measured: Settings, wanted: Settings, images: int) -> float:
    """How many times more a job costs at the scale wanted."""
    models = type_.split("--")
    if kind == "train":
        costs = [training_operations(scale.train(type_), images) for scale in (wanted, measured)]
    else:
        costs = [merging_operations(scale.merge(models), images) for scale in (wanted, measured)]
    return costs[0] / costs[1]


def _cpu_seconds(folder: Path) -> list[tuple[str, float]]:
    """Type and CPU time of every benchmarked job: unlike the time on the clock, it doesn't grow on a busy machine."""
    return [
        (type_of(path.stem), float(row["cpu_time"]))
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
