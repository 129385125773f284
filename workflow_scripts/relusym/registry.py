"""What a name in the config stands for: a class or function that is imported when it is used, and its options."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from relusym.errors import UserError
from relusym.schema import Section, Where, allowed_names, dotted


@dataclass(frozen=True)
class Entry:
    """One choice of a registry: "module:name" of a class or function, and the section of its keys in the config."""

    path: str
    options: type[Section] = Section

    def load(self) -> Callable[..., Any]:
        """The class or function."""
        return pkgutil.resolve_name(self.path)


def one_of(key: str, value: Any, allowed) -> str:
    """What is wrong, if `value` is none of `allowed`."""
    return f"{key}: {value!r} given; {allowed_names(value, allowed)}"


def choose(
    registry: dict[str, Entry], selector: str, values: dict[str, Any], key: str | Where
) -> tuple[Entry, Section]:
    """The entry that `values[selector]` names, and its options; imports nothing.

    `key`: where `values` stand in the config, for messages; or what a message calls each key in it. UserError names the
    key, its value and what is allowed.
    """

    where = key if callable(key) else partial(dotted, key)
    name = values.get(selector)
    if name not in registry:
        raise UserError(one_of(where(selector), name, registry))
    entry = registry[name]
    try:
        options = entry.options.read({k: v for k, v in values.items() if k != selector}, where)
    except UserError as error:
        raise UserError(f"{error} ({selector} {name})") from None
    return entry, options
