"""Config sections, each a pydantic model with its schema, defaults and documentation, and registries of choices."""

import difflib
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from relusym.errors import UserError

Where = Callable[..., str]  # from the parts of a key to its name in messages

WORDS = {"null": None, "~": None, "true": True, "false": False, "yes": True, "no": False}

MOST_SEEDS, LARGEST_SEED = 10_000, 2**32 - 1
SEEDS_ALLOWED = "allowed are seeds such as 3, 0-3, or [0, 5]"
PLAIN = re.compile(r"[-+.0-9eE]+|[-+]?\.?(inf|nan)", re.IGNORECASE)
SEEDS = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?(,[0-9]{1,20}(-[0-9]{1,20})?)*")


def plain(value: Any) -> Any:
    """Convert text that stands for a number, true, false or null: Snakemake's command line passes values as text."""
    if not isinstance(value, str):
        return value
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    if PLAIN.fullmatch(value):  # stricter than Python's own conversion of text to numbers
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
    return value


def _number(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    value = plain(value)
    handler(value)
    return value  # an int stays an int where a float is allowed: records hold it so


Number = WrapValidator(_number)
Count = Annotated[int, Field(ge=1, le=10_000_000), Number]
Few = Annotated[int, Field(ge=0, le=1024), Number]
Several = Annotated[int, Field(ge=1, le=1024), Number]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED), Number]
Share = Annotated[float, Field(ge=0, le=1), Number]
Positive = Annotated[float, Field(gt=0, le=1000), Number]
NotNegative = Annotated[float, Field(ge=0, le=1000), Number]
Flag = Annotated[bool, Number]


def _one_line(text: str) -> str:
    if not text.isprintable() or text.isspace():
        raise refusal("allowed is text of one line")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]

T = TypeVar("T")


def _or_null(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, str) and value in ("null", "~"):
        return None
    try:
        return handler(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] or not (allowed := _allowed(first)):
            raise
        raise refusal(f"{allowed}, or null") from None


OrNull = Annotated[T | None, WrapValidator(_or_null)]


def among(names: Iterable[str]) -> AfterValidator:
    """Validate that a value is among `names` at the time of the check, since a registry may have grown."""

    def check(name: str) -> str:
        if name not in names:
            raise refusal(allowed_names(name, names))
        return name

    return AfterValidator(check)


def refusal(allowed: str) -> PydanticCustomError:
    """The error for a value that isn't allowed."""
    return PydanticCustomError("refusal", "{allowed}", {"allowed": allowed})


def remark(text: str) -> PydanticCustomError:
    """The error with a text that names the value itself."""
    return PydanticCustomError("remark", "{text}", {"text": text})


def allowed_names(value: Any, names: Iterable[Any]) -> str:
    """Text that lists the allowed names and suggests the one closest to `value`."""
    names = [str(name) for name in names]
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"allowed is one of {', '.join(names)}" + "".join(f" (is it {name}?)" for name in near)


def seed_list(value: Any) -> list[int]:
    """Parse 3, "0-3", "0,2,5-7" or [0, 2] as a list of seeds.

    Raises:
        ValueError: any other form, a seed listed twice, a range that runs backwards, too many seeds or too large ones.
    """
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(type(part) in (int, str) and SEEDS.fullmatch(str(part)) for part in parts):
        raise refusal(SEEDS_ALLOWED)
    seeds: list[int] = []
    for part in ",".join(map(str, parts)).split(","):
        first, _, last = part.partition("-")
        some = range(int(first), int(last or first) + 1)
        if not some:
            raise remark(f"the range {part} runs backwards; write {last}-{first}")
        if some[-1] > LARGEST_SEED or len(seeds) + len(some) > MOST_SEEDS:
            raise refusal(f"allowed are at most {MOST_SEEDS:,} seeds, none above {LARGEST_SEED}")
        seeds += some
    if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise remark(f"{twice[0]} is listed twice in {value}; list each seed once")
    return seeds


def each_once(entries: list) -> list:
    """Return `entries`; an error if one of them is repeated."""
    if twice := [entry for entry, count in Counter(map(str, entries)).items() if count > 1]:
        raise remark(f"{twice[0]} is listed twice; list each once")
    return entries


Seeds = Annotated[list[int], BeforeValidator(seed_list)]


def dotted(*path: str | int, at: Any = None) -> str:
    """A key's name in messages that needn't name its file."""
    return ".".join(part if part.isprintable() else repr(part) for part in map(str, path))


def together(key: str, text: str) -> PydanticCustomError:
    """The error for a key whose value contradicts those of other keys."""
    return PydanticCustomError("together", "{text}", {"text": text, "key": key})


class Section(BaseModel):
    """Keys and values, strictly typed, except that text which stands for a number is read as one."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, values: Any) -> Any:
        closed = cls.model_config.get("extra") != "allow"
        for key in values if closed and isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                raise unknown_key(key, cls.model_fields)
        return values

    @classmethod
    def read(cls, values: Any, where: Where) -> Self:
        """Validate `values` as this section; UserError names each wrong key, its value and what is allowed."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = dict.fromkeys(in_lines(error.errors(include_url=False), where))
            raise UserError("\n".join(lines)) from None

    def but(self, **changes: Any) -> Self:
        """A copy with these changes; UserError as in `read`."""
        return self.read(self.model_dump() | changes, dotted)

    def explicit(self) -> dict[str, Any]:
        """The keys that were set explicitly, as plain values."""
        return self.model_dump(exclude_unset=True)


def key(meaning: str, default: Any = ...) -> Any:
    """Declare a key of a section: its meaning and its default, without which the key is required."""
    return Field(default, description=meaning)


def unknown_key(key: Any, known: Iterable[str]) -> PydanticCustomError:
    """The error for a key that a section doesn't have."""
    near = "".join(f", is it {name!r}?" for name in difflib.get_close_matches(str(key), list(known), n=1))
    text = "unknown key {key!r}{near}; allowed are {known}"
    text = text.format(key=key, near=near, known=", ".join(known) or "none")
    return PydanticCustomError("unknown_key", "{text}", {"text": text, "key": key})


# What is allowed, by the type of pydantic's error; the fields are those of its context.
ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than_equal": "at most {le:.10g}",
    "greater_than": "more than {gt:.10g}",
    "less_than": "less than {lt:.10g}",
    "string_too_short": "text of at least {min_length} character",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
QUOTED = re.compile("'([^']*)'")
SECTIONS = "dict_type", "model_type", "model_attributes_type"


def raise_all(lines: Iterable[str | None]) -> None:
    """Raise a UserError with the distinct lines, if there are any."""
    if text := "\n".join(dict.fromkeys(filter(None, lines))):
        raise UserError(text) from None


def in_lines(errors: list[ErrorDetails], where: Where) -> Iterable[str]:
    """Pydantic's errors as lines for the author of the config: the key, its value, what is allowed."""
    missing: dict[tuple[int | str, ...], list[str]] = {}  # keys by their section
    for error in errors:
        if error["type"] == "missing":
            missing.setdefault(error["loc"][:-1], []).append(repr(error["loc"][-1]))
    invalid = {error["loc"][:-1] for error in errors if error["loc"][-1:] == ("[key]",)}
    for error in errors:
        at, above = error["loc"], error["loc"][:-1]
        if at[-1:] != ("[key]",) and any(at[:n] in invalid for n in range(len(at) + 1)):
            continue
        if error["type"] != "missing":
            yield _in_one_line(error, where)
        elif keys := missing.pop(above, []):
            are = "s {} are" if len(keys) > 1 else " {} is"
            yield f"{where(*above)}: the key{are.format(', '.join(keys))} missing"


def _in_one_line(error: ErrorDetails, where: Where) -> str:
    kind, path, context = error["type"], [*error["loc"]], error.get("ctx", {})
    value = path[-2] if path[-1:] == ["[key]"] else error["input"]
    path = path[:-2] if path[-1:] == ["[key]"] else path
    if kind == "unknown_key":
        return f"{where(*path, at=context['key'])}: {context['text']}"
    if kind == "together":
        return f"{where(*path, context['key'])}: {context['text']}"
    key = where(*path)
    if kind == "remark":
        return f"{key}: {context['text']}"
    if kind in SECTIONS and value is None:
        return f"{key}: nothing is below it; write its keys there, or remove it"
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
    return f"{key}: {shown} given; {_allowed(error) or error['msg'].replace('Input should be', 'allowed is')}"


def _allowed(error: ErrorDetails) -> str | None:
    """What is allowed in place of a value; None for other kinds of errors."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "refusal":
        return context["allowed"]
    if kind in SECTIONS and value is not None:
        return "allowed are keys and their values"
    if kind == "multiple_of":
        return f"allowed is a multiple of 1/{1 / context['multiple_of']:g}"
    if kind == "literal_error":
        return allowed_names(value, QUOTED.findall(context["expected"]))
    if kind in ALLOWED:
        quotes = (
            f", in quotes: YAML takes this for {taken}"
            if (taken := _kind(value)) and kind == "string_type"
            else ""
        )
        return f"allowed is {ALLOWED[kind].format(**context)}{quotes}"
    return None


def _kind(value: Any) -> str | None:
    """The type as which YAML read a value that was meant as text."""
    if isinstance(value, bool):
        return "true or false, as yes, no, on and off"
    if isinstance(value, int | float):
        return "a number"
    return "a date" if isinstance(value, date) else None


@dataclass(frozen=True)
class Entry:
    """A choice in a registry: "module:name" of a class or function, and the section of its keys in the config."""

    path: str
    options: type[Section] = Section

    def load(self) -> Callable[..., Any]:
        """The class or function."""
        return pkgutil.resolve_name(self.path)


def one_of(key: str, value: Any, allowed) -> str:
    """The line for a `value` that is none of `allowed`."""
    return f"{key}: {value!r} given; {allowed_names(value, allowed)}"


def choose(
    registry: dict[str, Entry], selector: str, values: dict[str, Any], key: str | Where
) -> tuple[Entry, Section]:
    """The entry that `values[selector]` names, and its options; imports nothing.

    `key`: the place of `values` in the config, for messages, or a function that names each of their keys there.
    UserError names the key, its value and what is allowed.
    """

    where = key if callable(key) else partial(dotted, key)
    name = values.get(selector)
    if name not in registry:
        raise UserError(one_of(where(selector), name, registry))
    entry = registry[name]
    try:
        options = entry.options.read({k: v for k, v in values.items() if k != selector}, where)
    except UserError as error:
        lines = str(error).split("\n")
        raise UserError("\n".join(f"{line} ({selector} {name})" for line in lines)) from None
    return entry, options
