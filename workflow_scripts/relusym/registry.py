"""What a name in the config stands for: a class or function that is imported when it is used, and its options."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from relusym.errors import UserError


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
        raise UserError(f"{key}.{selector}: {name!r} is none of {', '.join(registry)}")
    entry = registry[name]
    options = {option: value for option, value in given.items() if option != selector}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": entry.options,
        "required": [option for option, about in entry.options.items() if "default" not in about],
    }
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(options))
    if error is not None:
        where = ".".join([key, *map(str, error.absolute_path)])
        raise UserError(f"{where}: {error.message} ({selector} {name})")
    return entry, {
        option: about["default"] for option, about in entry.options.items() if "default" in about
    } | (options)
