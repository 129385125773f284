"""What a record holds, by its kind: what jobs write and all others read is checked against this."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from relusym import cifar10

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


def _is_bijection(indices: list[int]) -> list[int]:
    if sorted(indices) != list(range(len(indices))):
        raise PydanticCustomError(
            "permutation", "allowed is each of 0 to {last} once", {"last": len(indices) - 1}
        )
    return indices


Permutation = Annotated[list[int], AfterValidator(_is_bijection)]


class _Fields(BaseModel):
    """Nothing is converted, not-a-number isn't a number, and what isn't named here may stand beside."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


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


class Outputs(_Fields):
    checkpoint: Hash | None = None
    filters: Hash | None = None


class Made(_Fields):
    """What every record says."""

    settings: dict[str, Any]
    cost: Cost
    code: dict[str, str] = {}


class OfNets(Made):
    reason: str | None = None
    inputs: Inputs
    outputs: Outputs


class Epoch(_Fields):
    loss: float
    accuracy: Share


class Train(OfNets):
    status: Literal["ok", "diverged", "degenerate", "absent"]
    model: Text
    seed: Seed
    accuracy: Share | None
    history: list[Epoch]
    parameters: Annotated[int, Field(ge=1)] | None = None


class FlipMerge(OfNets):
    status: Literal["ok", "left_out"]
    model: Text
    seed: Seed


class PairMerge(OfNets):
    status: Literal["ok", "left_out"]
    model_1: Text
    seed_1: Seed
    model_2: Text
    seed_2: Seed


class _Measured(_Fields):
    accuracy: dict[str, Share]
    barrier: dict[str, float | None]
    absolute_barrier: dict[str, float]
    permutations: dict[str, Permutation]
    checks: dict[str, float]
    similarity: dict[str, float] = {}
    invariance_error: NotNegative | None = None


class MergedFlip(_Measured, FlipMerge):
    """Of a flip merge that wasn't left out."""


class MergedPair(_Measured, PairMerge):
    """Of a pair merge that wasn't left out."""


class Measurement(OfNets):
    """Beyond the paper; what is measured is the kind's own."""

    status: Literal["ok", "left_out"]


class FlippedTraining(Made):
    inputs: Inputs
    largest_difference: dict[str, float]
    runs: dict[str, dict[str, list[float]]]
    paths: dict[str, list[list[float]]]


class Theory(Made):
    statement: Text
    claim: Text
    holds: bool
    draws: Annotated[int, Field(ge=1)]
    tested: Text
    largest_violation: NotNegative
    counterfactual: Text
    measured: dict[str, Any]


KINDS: dict[str, type[Made]] = {
    "train": Train,
    "flip_merge": FlipMerge,
    "pair_merge": PairMerge,
    "flipped_training": FlippedTraining,
    "theory": Theory,
    **dict.fromkeys(("exact_gcnn", "symmetries", "curves", "during_training", "by_layer"), Measurement),
}
OK_MERGES: dict[str, type[Made]] = {"flip_merge": MergedFlip, "pair_merge": MergedPair}


def fields_of(record: dict[str, Any]) -> type[Made]:
    """The fields of a record, whose `kind` is one of `KINDS`."""
    kind = record["kind"]
    return OK_MERGES[kind] if kind in OK_MERGES and record.get("status") == "ok" else KINDS[kind]


def problem(record: Any) -> str | None:
    """What is wrong with a record, in a few words; None if nothing is."""
    if not isinstance(record, dict) or str(record.get("kind")) not in KINDS:
        return f"lacks the field 'kind' (one of {', '.join(KINDS)})"
    try:
        fields_of(record).model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            return f"lacks the field '{key}'"
        given = repr(first["input"])
        given = given if len(given) <= 60 else f"{given[:59]}…"
        allowed = first["msg"].replace("Input should be", "allowed is").replace("dictionary", "object")
        return f"can't be right ({key}: {given} given; {allowed})"
    return None


NETS = (("model", "seed"), ("model_1", "seed_1"), ("model_2", "seed_2"))


def nets_of(record: dict[str, Any]) -> list[tuple[str, int]]:
    """The nets that a record is of: one, two of a pair merge, or none."""
    return [(record[model], record[seed]) for model, seed in NETS if model in record]


def images_of(record: dict[str, Any]) -> str | None:
    """What tables call the images that a record was made from, by their content and their label; None without any."""
    given = record.get("inputs", {})
    return cifar10.name_of(given["source"], given.get("data")) if given.get("source") else None
