"""Types of the values in records, strict and finite; for the fields of each kind see records/fields.py and beyond/."""

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from relusym.schema import remark

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Barrier = Annotated[float, Field(le=1)]  # equation (4); 1 if the halfway net is wrong on every image
FAR_BELOW_ZERO = -0.05  # a barrier that means little: the halfway net is better than what it is made of
AbsoluteBarrier = Annotated[float, Field(ge=-1, le=1)]
Similarity = Annotated[float, Field(ge=-1.001, le=1.001)]  # a mean correlation, rounded
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


Point = Annotated[list[float], Field(min_length=2, max_length=2)]

ROUNDING = 1e-6  # tolerance for numbers that follow from others


def _is_bijection(indices: list[int]) -> list[int]:
    if not indices or sorted(indices) != list(range(len(indices))):
        raise remark(f"allowed is each of 0 to {max(len(indices) - 1, 0)} once")
    return indices


Permutation = Annotated[list[int], AfterValidator(_is_bijection)]


def check_barrier(name: str, value: float | None, mean: float, accuracy: float) -> None:
    """Refuse a barrier that doesn't follow from the accuracies by equation (4)."""
    expected = (mean - accuracy) / mean if mean else None
    if (value is None) != (expected is None) or (value is not None and abs(value - expected) > ROUNDING):
        is_ = "there is none" if expected is None else f"it is {expected:.6g}"
        raise remark(f"by equation (4) of the accuracies, {is_} for {name!r}")


class Fields(BaseModel):
    """Values aren't converted, NaN and infinity are refused, and undeclared fields are allowed."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


class Shares(Fields):
    """Accuracies by name; undeclared ones are allowed."""

    __pydantic_extra__: dict[str, Share] = Field(init=False)


class FlipAccuracy(Shares):
    net: Share
    flipped: Share
    halfway: Share
    repaired: Share


class Merged(Fields):
    """A merge: the accuracies of its `ends` and of the nets between, which all have barriers, by equation (4)."""

    ends: ClassVar[tuple[str, str]]
    accuracy: Shares
    barrier: dict[str, Barrier | None]

    @field_validator("barrier", "absolute_barrier", check_fields=False)
    @classmethod
    def _follows_from_accuracies(cls, barriers: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "accuracy" not in info.data:
            return barriers
        accuracy = info.data["accuracy"].model_dump()
        mean = sum(accuracy[end] for end in cls.ends) / 2
        for name, value in barriers.items():
            if name not in accuracy:
                raise remark(f"there is no accuracy {name!r}")
            if info.field_name == "barrier":
                check_barrier(name, value, mean, accuracy[name])
            elif abs(value - (mean - accuracy[name])) > ROUNDING:
                raise remark(f"by the accuracies, it is {mean - accuracy[name]:.6g} for {name!r}")
        if lacking := [name for name in accuracy if name not in (*barriers, *cls.ends)]:
            raise remark(f"the accuracy {lacking[0]!r} has none")
        return barriers


class FlipMerged(Merged):
    """A merge of a net with its flipped self."""

    ends: ClassVar = ("net", "flipped")
    accuracy: FlipAccuracy
