"""What a name in the config stands for: a class or function that is imported when it is used, and its options."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from relusym.errors import UserError

if TYPE_CHECKING:
    import jsonschema


@dataclass(frozen=True)
class Entry:
    """One choice of a registry.

    Attributes:
        path: "module:name" of a class or function.
        options: its keys in the config → their JSON schema, with a `default` unless the key is required.
    """

    path: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The class or function."""
        return pkgutil.resolve_name(self.path)


def one_of(key: str, given: Any, allowed: Iterable[str]) -> str:
    """What is wrong, if `given` is none of `allowed`."""
    return f"{key}: {given!r} given; allowed is one of {', '.join(allowed)}"


SEEDS_ALLOWED = "allowed are seeds such as 3, 0-3, or [0, 5]"
RULES = {
    "type": "a value of type {}",
    "enum": "one of {}",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "pattern": "text that matches {}",
    "minLength": "text of at least {} character",
    "minItems": "a list of at least {}",
    "maxItems": "a list of at most {}",
    "minProperties": "at least {} entry",
}


def check_schema(schema: dict[str, Any], given: Any, section: str = "", remark: str = "") -> None:
    """Check plain values against a JSON schema.

    Args:
        section: where `given` stands in the config; empty if it is the whole config.
        remark: what to say beside an error.

    Raises:
        UserError: names the key, what was given and what is allowed.
    """
    from jsonschema.exceptions import best_match  # here, since the library needs it for configs alone

    error = best_match(_validator()(schema).iter_errors(given))
    if error is not None:
        raise UserError(_one_line(error, section) + remark)


@cache
def _validator() -> type[jsonschema.protocols.Validator]:
    """What checks as JSON Schema does, but for 2.0, which is no integer: as a number of things it would fail later."""
    from jsonschema import Draft202012Validator as Draft
    from jsonschema.validators import extend

    whole = Draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return extend(Draft, type_checker=whole)


def _one_line(error: jsonschema.ValidationError, section: str) -> str:
    key = ".".join([*filter(None, [section]), *map(str, error.absolute_path)]) or "config"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = next(name for name in error.instance if name not in known)
        return f"{key}: unknown key {unknown!r}; allowed are {', '.join(known)}"
    if error.validator == "not" and error.validator_value == {"multipleOf": 2}:
        return f"{key}: {error.instance!r} given; allowed is an odd number"
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"{key}: the key {missing!r} is missing"
    if "propertyNames" in error.absolute_schema_path:
        return f"{key}: {error.instance!r} given; allowed are small letters and digits, with single _ between them"
    if "seeds" in error.absolute_path:  # written in several ways
        return f"{key}: {error.instance!r} given; {SEEDS_ALLOWED}"
    if error.validator not in RULES:
        return f"{key}: {error.message}"
    value = error.validator_value
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    elif error.validator == "multipleOf" and value < 1:
        value = f"1/{1 / value:g}"
    return f"{key}: {error.instance!r} given; allowed is {RULES[error.validator].format(value)}"


def choose(
    registry: dict[str, Entry], selector: str, given: dict[str, Any], key: str
) -> tuple[Entry, dict[str, Any]]:
    """The entry that `given[selector]` names, and its options with defaults filled in; imports nothing.

    Args:
        key: where `given` stands in the config, for messages.

    Raises:
        UserError: names the key, what was given and what is allowed.
    """
    name = given.get(selector)
    if name not in registry:
        raise UserError(one_of(f"{key}.{selector}", name, registry))
    entry = registry[name]
    options = {option: value for option, value in given.items() if option != selector}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": entry.options,
        "required": [option for option, about in entry.options.items() if "default" not in about],
    }
    check_schema(schema, options, key, f" ({selector} {name})")
    return entry, {
        option: about["default"] for option, about in entry.options.items() if "default" in about
    } | (options)
