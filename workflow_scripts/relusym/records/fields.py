"""The fields of each kind of record. Records are checked against them when they are written and read."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from relusym import cifar10
from relusym.beyond import MEASUREMENTS
from relusym.record_types import (
    ROUNDING,
    AbsoluteBarrier,
    Count,
    Fields,
    FlipMerged,
    Hash,
    Merged,
    NotNegative,
    Permutation,
    Point,
    Seed,
    Share,
    Shares,
    Similarity,
)
from relusym.schema import Text, dotted, remark


class Inputs(Fields):
    data: Hash | None = None
    source: Text | None = None
    checkpoints: list[Hash | None] = []
    files: dict[str, Hash] = {}

    def check(self, status: str | None, *others: str) -> None:
        """Refuse inputs of a record with status ok that lack the images, or one of `others`."""
        for name in ("data", "source", *others) if status == "ok" else ():
            if not getattr(self, name):
                raise remark(f"allowed are inputs with '{name}'")


class Made(Fields):
    """The fields of every record."""

    settings: dict[str, Any]
    cost: dict[str, NotNegative]  # see `measuring.loading.JobMeter`
    code: dict[str, Text] = {}


# ---- the paper's nets and merges


class Epoch(Fields):
    loss: float
    accuracy: Share


class Checkpoint(Fields):
    checkpoint: Hash
    snapshots: dict[str, Hash] = {}


class Train(Made):
    status: Literal["ok", "diverged", "degenerate", "absent"]
    reason: Text | None = None
    model: Text
    seed: Seed
    inputs: Inputs
    outputs: Checkpoint
    accuracy: Share | None
    history: list[Epoch]
    parameters: Count | None = None
    precision: Text | None = None
    data_wait_share: Share | None = None

    @field_validator("inputs")
    @classmethod
    def _are_named(cls, inputs: Inputs, info: ValidationInfo) -> Inputs:
        inputs.check(info.data.get("status"))
        return inputs


class Measured(Made):
    """The header of a merge, or of a measurement beyond the paper."""

    nets: ClassVar[int | None]
    status: Literal["ok", "left_out"]
    reason: Text | None = None
    inputs: Inputs
    outputs: dict[str, Hash]

    @field_validator("inputs")
    @classmethod
    def _has_each_net_once(cls, inputs: Inputs, info: ValidationInfo) -> Inputs:
        inputs.check(info.data.get("status"), "checkpoints")
        hashes = [each for each in inputs.checkpoints if each]
        if info.data.get("status") == "ok" and len(hashes) < len(inputs.checkpoints):
            raise remark("allowed is the checkpoint of every net")
        count = len(inputs.checkpoints)
        if (count and count != (cls.nets or count)) or len({*hashes}) < len(hashes):
            raise remark(f"allowed is one checkpoint per net, {cls.nets or count}, all different")
        return inputs


class OneNet(Measured):
    nets: ClassVar = 1
    model: Text
    seed: Seed


class Filters(Fields):
    filters: Hash


class FlipHeader(OneNet):
    outputs: Filters


class TwoNets(Measured):
    nets: ClassVar = 2
    model_1: Text
    seed_1: Seed
    model_2: Text
    seed_2: Seed

    @field_validator("seed_2")
    @classmethod
    def _differs_from_first(cls, seed: int, info: ValidationInfo) -> int:
        if (info.data.get("model_1"), info.data.get("seed_1")) == (info.data.get("model_2"), seed):
            raise remark("allowed are two different nets")
        return seed


class SeveralNets(Measured):
    """Several nets of one type, by seed."""

    nets: ClassVar = None
    model: Text
    seeds: Annotated[list[Seed], Field(min_length=2)]

    @field_validator("seeds")
    @classmethod
    def _are_of_the_checkpoints(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        checkpoints = info.data["inputs"].checkpoints if "inputs" in info.data else []
        if len({*seeds}) < len(seeds) or (checkpoints and len(checkpoints) != len(seeds)):
            raise remark("allowed is one seed per checkpoint, all different")
        return seeds


class Search(Fields):
    objective: float
    reached: Count
    starts: Annotated[dict[str, float], Field(min_length=1)]


class Merge(Merged):
    """The body of a merge that wasn't left out."""

    absolute_barrier: dict[str, AbsoluteBarrier]
    permutations: Annotated[dict[str, Permutation], Field(min_length=1)]
    checks: dict[str, float]
    similarity: dict[str, Similarity] = {}
    search: Search | None = None


class PairAccuracy(Shares):
    net_1: Share
    net_2: Share
    halfway: Share
    repaired: Share


class FlipMerge(FlipMerged, Merge):
    invariance_error: NotNegative | None = None


class PairMerge(Merge):
    ends: ClassVar = ("net_1", "net_2")
    accuracy: PairAccuracy


# ---- records of no net


class Run(Fields):
    loss: Annotated[list[float], Field(min_length=1)]
    flipped_batches: list[NotNegative]
    same_batches: list[NotNegative]


class Runs(Fields):
    float64: Run
    float32: Run


class Paths(Fields):
    net: list[Point]
    flipped: list[Point]


class FlippedTraining(Made):
    inputs: Inputs
    runs: Runs
    largest_difference: dict[str, NotNegative]
    paths: Paths

    @field_validator("largest_difference")
    @classmethod
    def _are_the_largest(cls, largest: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if runs := info.data.get("runs"):
            for name, run in (("float64", runs.float64), ("float32", runs.float32)):
                if abs(largest.get(name, -1) - max(run.flipped_batches, default=0)) > ROUNDING:
                    raise remark(f"another of 'runs.{name}.flipped_batches' is the largest")
        return largest

    @field_validator("paths")
    @classmethod
    def _are_as_long(cls, paths: Paths, info: ValidationInfo) -> Paths:
        if runs := info.data.get("runs"):
            both = runs.float64, runs.float32
            points = [paths.net, paths.flipped, *(run.flipped_batches for run in both)]
            points += [run.same_batches for run in both]
            if len({len(run.loss) for run in both} | {len(each) - 1 for each in points}) > 1:
                raise remark("allowed are as many points as there are steps, and the start")
        return paths


class Theory(Made):
    statement: Text
    claim: Text
    holds: bool
    draws: Count
    tested: Text
    largest_violation: NotNegative
    counterfactual: Text
    measured: Annotated[dict[str, float], Field(min_length=1)]


# For each kind, the fields of all its records, and further ones of those that weren't left out.
KINDS: dict[str, tuple[type[Made], type[Fields] | None]] = {
    "train": (Train, None),
    "flip_merge": (FlipHeader, FlipMerge),
    "pair_merge": (TwoNets, PairMerge),
    **{name: (SeveralNets if each.several else OneNet, each.body) for name, each in MEASUREMENTS.items()},
    "flipped_training": (FlippedTraining, None),
    "theory": (Theory, None),
}


def fields_of(record: dict[str, Any]) -> list[type[Fields]]:
    """The models that a record, whose `kind` is one of `KINDS`, has to match."""
    header, body = KINDS[record["kind"]]
    measurement = MEASUREMENTS.get(record["kind"])
    if measurement and "pairs" in measurement.options.model_fields and "model_1" in record:
        header = TwoNets
    return [header, *([body] if body and record.get("status") == "ok" else [])]


def problem(record: Any) -> str | None:
    """What is wrong with a record, in a few words; None if nothing is."""
    if not isinstance(record, dict) or str(record.get("kind")) not in KINDS:
        return f"lacks the field 'kind' (one of {', '.join(KINDS)})"
    try:
        for fields in fields_of(record):
            fields.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = dotted(*first["loc"])
        if first["type"] == "missing":
            return f"lacks the field '{key}'"
        value = repr(first["input"])
        value = value if len(value) <= 60 else f"{value[:59]}…"
        allowed = first["msg"].replace("Input should be", "allowed is").replace("dictionary", "object")
        allowed = re.sub(r" or instance of \w+", "", allowed)
        return f"can't be right ({key}: {value} given; {allowed})"
    return None


NETS = (("model", "seed"), ("model_1", "seed_1"), ("model_2", "seed_2"))


def nets_of(record: dict[str, Any]) -> list[tuple[str, int]]:
    """The nets of a record: one, two of a pair merge, several of a type, or none."""
    named = fields_of(record)[0].model_fields
    if "seeds" in named:
        return [(record["model"], seed) for seed in record["seeds"]]
    return [(record[model], record[seed]) for model, seed in NETS if model in named and model in record]


def images_of(record: dict[str, Any]) -> str | None:
    """The name in tables of the images that a record was made from, by content and label; None if there are none."""
    inputs = record.get("inputs", {})
    return cifar10.name_of(inputs["source"], inputs.get("data")) if inputs.get("source") else None
