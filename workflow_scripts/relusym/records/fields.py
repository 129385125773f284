"""What a record holds, by its kind: what jobs write and all others read is checked against this."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from relusym import cifar10

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Barrier = Annotated[float, Field(le=1)]  # equation (4); 1 if the net halfway is right on no image
AbsoluteBarrier = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]

ROUNDING = 1e-6  # by which numbers that follow from each other may differ


def _is_bijection(indices: list[int]) -> list[int]:
    if sorted(indices) != list(range(len(indices))):
        raise PydanticCustomError(
            "permutation", "allowed is each of 0 to {last} once", {"last": len(indices) - 1}
        )
    return indices


Permutation = Annotated[list[int], AfterValidator(_is_bijection)]


def _contradiction(why: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", why.replace("{", "{{").replace("}", "}}"))


def _check_barrier(name: str, value: float | None, mean: float, accuracy: float) -> None:
    """Refuse a barrier that isn't equation (4) of its accuracies.

    `evaluation.barrier` has the equation, too, and imports PyTorch.
    """
    expected = (mean - accuracy) / mean if mean else None
    if (value is None) != (expected is None) or (value is not None and abs(value - expected) > ROUNDING):
        of = "there is none" if expected is None else f"it is {expected:.6g}"
        raise _contradiction(f"by equation (4) of the accuracies, {of} for {name!r}")


class _Fields(BaseModel):
    """Nothing is converted, not-a-number isn't a number, and what isn't named here may stand beside."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


class _Shares(_Fields):
    """Accuracies; others than those named may stand beside."""

    __pydantic_extra__: dict[str, Share] = Field(init=False)


class Cost(_Fields):
    seconds: NotNegative = 0
    peak_memory_mb: NotNegative = 0
    job_seconds: NotNegative = 0
    job_memory_mb: NotNegative = 0


class Inputs(_Fields):
    data: Hash | None = None
    source: str | None = None
    checkpoints: list[Hash | None] = []
    files: dict[str, Hash] = {}


class Made(_Fields):
    """What every record has."""

    settings: dict[str, Any]
    cost: Cost
    code: dict[str, str] = {}


# ---- the paper's nets and merges


class Epoch(_Fields):
    loss: float
    accuracy: Share


class Checkpoint(_Fields):
    checkpoint: Hash
    snapshots: dict[str, Hash] = {}


class Train(Made):
    status: Literal["ok", "diverged", "degenerate", "absent"]
    reason: str | None = None
    model: Text
    seed: Seed
    inputs: Inputs
    outputs: Checkpoint
    accuracy: Share | None
    history: list[Epoch]
    parameters: Count | None = None
    precision: Text | None = None


class Measured(Made):
    """The header of a merge, or of a measurement beyond the paper."""

    nets: ClassVar[int]
    status: Literal["ok", "left_out"]
    reason: str | None = None
    inputs: Inputs
    outputs: dict[str, Hash]

    @field_validator("inputs")
    @classmethod
    def _from_its_nets(cls, inputs: Inputs) -> Inputs:
        hashes = [each for each in inputs.checkpoints if each]
        if (inputs.checkpoints and len(inputs.checkpoints) != cls.nets) or len({*hashes}) < len(hashes):
            raise _contradiction(f"allowed is one checkpoint a net, {cls.nets}, each another")
        return inputs


class OneNet(Measured):
    nets: ClassVar = 1
    model: Text
    seed: Seed


class Filters(_Fields):
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
    def _of_another_net(cls, seed: int, of: ValidationInfo) -> int:
        if (of.data.get("model_1"), of.data.get("seed_1")) == (of.data.get("model_2"), seed):
            raise _contradiction("allowed are two nets")
        return seed


class Search(_Fields):
    objective: float
    reached: Count
    starts: Annotated[dict[str, float], Field(min_length=1)]


class Merge(_Fields):
    """The body of a merge that wasn't left out."""

    ends: ClassVar[tuple[str, str]]
    accuracy: _Shares
    barrier: dict[str, Barrier | None]
    absolute_barrier: dict[str, AbsoluteBarrier]
    permutations: dict[str, Permutation]
    checks: dict[str, float]
    similarity: dict[str, float] = {}
    search: Search | None = None

    @field_validator("barrier", "absolute_barrier")
    @classmethod
    def _is_of_its_accuracies(cls, barriers: dict[str, Any], of: ValidationInfo) -> dict[str, Any]:
        if "accuracy" not in of.data:
            return barriers
        accuracy = of.data["accuracy"].model_dump()
        mean = sum(accuracy[end] for end in cls.ends) / 2
        for name, value in barriers.items():
            if name not in accuracy:
                raise _contradiction(f"there is no accuracy {name!r}")
            if of.field_name == "barrier":
                _check_barrier(name, value, mean, accuracy[name])
            elif abs(value - (mean - accuracy[name])) > ROUNDING:
                raise _contradiction(f"by the accuracies, it is {mean - accuracy[name]:.6g} for {name!r}")
        return barriers


class FlipAccuracy(_Shares):
    net: Share
    flipped: Share
    halfway: Share
    repaired: Share


class PairAccuracy(_Shares):
    net_1: Share
    net_2: Share
    halfway: Share
    repaired: Share


class FlipMerge(Merge):
    ends: ClassVar = ("net", "flipped")
    accuracy: FlipAccuracy
    invariance_error: NotNegative | None = None


class PairMerge(Merge):
    ends: ClassVar = ("net_1", "net_2")
    accuracy: PairAccuracy


# ---- beyond the paper: the bodies of what wasn't left out


class ExactAccuracy(_Shares):
    net: Share
    test_time: Share
    halfway: Share
    exact: Share
    fine_tuned: Share
    fine_tuned_test_time: Share
    exact_fine_tuned: Share
    from_scratch: Share | None = None


class ExactErrors(_Fields):
    __pydantic_extra__: dict[str, NotNegative] = Field(init=False)
    net: NotNegative
    exact: NotNegative


class Parameters(_Fields):
    net: Count
    exact: Count


class Representation(_Fields):
    fixed: Annotated[int, Field(ge=0)]
    swapped: Annotated[int, Field(ge=0)]

    @field_validator("swapped")
    @classmethod
    def _has_channels(cls, swapped: int, of: ValidationInfo) -> int:
        if swapped % 2 or not swapped + of.data.get("fixed", 1):
            raise _contradiction("allowed are pairs of channels, and some channel in all")
        return swapped


class ExactGcnn(_Fields):
    accuracy: ExactAccuracy
    invariance_error: ExactErrors
    kernel_constraint: NotNegative
    parameters: Parameters
    representations: Annotated[dict[str, Representation], Field(min_length=1)]


class OrbitAccuracy(_Shares):
    net: Share
    orbit: Share
    pairwise: Share
    pairwise_no_repair: Share
    whole: Share
    whole_no_repair: Share


class OrbitBarrier(_Fields):
    pairwise: Barrier | None
    pairwise_no_repair: Barrier | None
    whole: Barrier | None
    whole_no_repair: Barrier | None


class OrbitMerge(_Fields):
    order: Annotated[int, Field(ge=2)]
    invariance_error: NotNegative
    accuracy: OrbitAccuracy
    barrier: OrbitBarrier
    similarity: dict[str, float]

    @field_validator("barrier")
    @classmethod
    def _is_of_its_accuracies(cls, barrier: OrbitBarrier, of: ValidationInfo) -> OrbitBarrier:
        if "accuracy" in of.data and "order" in of.data:
            accuracy = of.data["accuracy"]
            for name, value in barrier:
                # a larger orbit's record doesn't have the accuracy of the once transformed net by itself
                if name in OrbitBarrier.model_fields and (name.startswith("whole") or of.data["order"] == 2):
                    _check_barrier(name, value, accuracy.orbit, getattr(accuracy, name))
        return barrier


class Symmetries(_Fields):
    settings: dict[str, Any]
    symmetries: dict[str, OrbitMerge]

    @field_validator("symmetries")
    @classmethod
    def _are_all_there(cls, symmetries: dict[str, OrbitMerge], of: ValidationInfo) -> dict[str, OrbitMerge]:
        wanted = of.data.get("settings", {}).get("symmetries")
        if not isinstance(wanted, list) or [*map(str, wanted)] != [*symmetries]:
            raise _contradiction(f"allowed are those of the settings, {wanted!r}")
        return symmetries


class Line(_Fields):
    accuracy: list[Share]
    loss: list[NotNegative]


class Ways(_Fields):
    plain: Line
    repaired: Line


class Curves(_Fields):
    settings: dict[str, Any]
    curve: Ways

    @field_validator("curve")
    @classmethod
    def _has_its_points(cls, curve: Ways, of: ValidationInfo) -> Ways:
        wanted, lines = of.data.get("settings", {}).get("points"), (curve.plain, curve.repaired)
        numbers = {len(values) for line in lines for values in (line.accuracy, line.loss)}
        if [*numbers] != [wanted] or not wanted % 2 or wanted < 3:
            points = " and ".join(map(str, sorted(numbers)))
            raise _contradiction(
                f"{points} points; allowed are those of the settings, {wanted!r}, an odd number from 3 on"
            )
        first, second = ([(line.accuracy[end], line.loss[end]) for end in (0, -1)] for line in lines)
        if first != second:
            raise _contradiction("allowed are lines with the same endpoints, which are the nets themselves")
        return curve


class MeasuredEpoch(_Fields):
    epoch: Annotated[int, Field(ge=0)]
    accuracy: Share
    barrier: Barrier | None
    absolute_barrier: AbsoluteBarrier
    invariance_error: NotNegative
    equivariance_error: dict[str, NotNegative]
    similarity: dict[str, float] = {}

    @field_validator("absolute_barrier")
    @classmethod
    def _is_of_its_barrier(cls, absolute: float, of: ValidationInfo) -> float:
        if isinstance(barrier := of.data.get("barrier"), float) and "accuracy" in of.data:
            # the mean of the net's accuracy and its flipped self's, which may be anything
            means = of.data["accuracy"] / 2, (1 + of.data["accuracy"]) / 2
            low, high = sorted(barrier * mean for mean in means)
            if not low - ROUNDING <= absolute <= high + ROUNDING:
                raise _contradiction(f"by the barrier and the accuracy, it is from {low:.6g} to {high:.6g}")
        return absolute


class DuringTraining(_Fields):
    settings: dict[str, Any]
    epochs: Annotated[list[MeasuredEpoch], Field(min_length=1)]

    @field_validator("epochs")
    @classmethod
    def _are_all_there(cls, epochs: list[MeasuredEpoch], of: ValidationInfo) -> list[MeasuredEpoch]:
        wanted = of.data.get("settings", {}).get("epochs")
        if wanted != [each.epoch for each in epochs]:
            raise _contradiction(f"allowed are those of the settings, {wanted!r}")
        return epochs


class ByLayer(_Fields):
    equivariance_error: Annotated[dict[str, NotNegative], Field(min_length=1)]
    barrier_up_to: Annotated[dict[str, Barrier | None], Field(min_length=1)]
    similarity: dict[str, float]


# ---- records of no net


class Run(_Fields):
    loss: Annotated[list[float], Field(min_length=1)]
    flipped_batches: list[NotNegative]
    same_batches: list[NotNegative]


class Runs(_Fields):
    float64: Run
    float32: Run


class Paths(_Fields):
    net: list[Point]
    flipped: list[Point]


class FlippedTraining(Made):
    inputs: Inputs
    runs: Runs
    largest_difference: dict[str, NotNegative]
    paths: Paths

    @field_validator("largest_difference")
    @classmethod
    def _are_the_largest(cls, largest: dict[str, float], of: ValidationInfo) -> dict[str, float]:
        if runs := of.data.get("runs"):
            for name, run in (("float64", runs.float64), ("float32", runs.float32)):
                if abs(largest.get(name, -1) - max(run.flipped_batches, default=0)) > ROUNDING:
                    raise _contradiction(f"of 'runs.{name}.flipped_batches' another is the largest")
        return largest

    @field_validator("paths")
    @classmethod
    def _are_as_long(cls, paths: Paths, of: ValidationInfo) -> Paths:
        if runs := of.data.get("runs"):
            steps = {len(run.loss) for run in (runs.float64, runs.float32)}
            points = [paths.net, paths.flipped]
            points += [
                of for run in (runs.float64, runs.float32) for of in (run.flipped_batches, run.same_batches)
            ]
            if steps | {len(each) - 1 for each in points} != {len(runs.float64.loss)}:
                raise _contradiction("allowed are as many points as there are steps, and the start")
        return paths


class Theory(Made):
    statement: Text
    claim: Text
    holds: bool
    draws: Count
    tested: Text
    largest_violation: NotNegative
    counterfactual: Text
    measured: dict[str, float]


# Of each kind, what all its records have, and what those have that weren't left out.
KINDS: dict[str, tuple[type[Made], type[_Fields] | None]] = {
    "train": (Train, None),
    "flip_merge": (FlipHeader, FlipMerge),
    "pair_merge": (TwoNets, PairMerge),
    "exact_gcnn": (OneNet, ExactGcnn),
    "symmetries": (OneNet, Symmetries),
    "curves": (OneNet, Curves),
    "during_training": (OneNet, DuringTraining),
    "by_layer": (OneNet, ByLayer),
    "flipped_training": (FlippedTraining, None),
    "theory": (Theory, None),
}


def fields_of(record: dict[str, Any]) -> list[type[_Fields]]:
    """What a record, whose `kind` is one of `KINDS`, has to have."""
    header, body = KINDS[record["kind"]]
    if record["kind"] == "curves" and "model_1" in record:
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
        parts = map(str, first["loc"])
        key = ".".join(part if part.isprintable() else repr(part) for part in parts)
        if first["type"] == "missing":
            return f"lacks the field '{key}'"
        given = repr(first["input"])
        given = given if len(given) <= 60 else f"{given[:59]}…"
        allowed = first["msg"].replace("Input should be", "allowed is").replace("dictionary", "object")
        allowed = re.sub(r" or instance of \w+", "", allowed)
        return f"can't be right ({key}: {given} given; {allowed})"
    return None


NETS = (("model", "seed"), ("model_1", "seed_1"), ("model_2", "seed_2"))


def nets_of(record: dict[str, Any]) -> list[tuple[str, int]]:
    """The nets that a record is of: one, two of a pair merge, or none."""
    named = fields_of(record)[0].model_fields
    return [(record[model], record[seed]) for model, seed in NETS if model in named and model in record]


def images_of(record: dict[str, Any]) -> str | None:
    """What tables call the images that a record was made from, by their content and their label; None without any."""
    given = record.get("inputs", {})
    return cifar10.name_of(given["source"], given.get("data")) if given.get("source") else None
