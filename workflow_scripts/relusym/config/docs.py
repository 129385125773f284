"""`python -m relusym.config.docs` prints docs/config.md: every key of the config, from the sections themselves."""

import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic.fields import FieldInfo

from relusym import nets
from relusym.config import sections
from relusym.config.sections import Run, Scale
from relusym.schema import Section

START = """\
# Every key of the config

(Made by `make docs/config.md` from the sections that check a config,
[sections.py](../workflow_scripts/relusym/config/sections.py).)

[config.yaml](../config.yaml) says what to run, a file in [scales](../scales) everything else. On the command line, and
in config.yaml, a scale's keys override its file: `--config scale=laptop 'training={batch_size: 200}'`. A model has its
scale's sections, key by key, except for the keys of its entry. Numbers may also be written as 1e-3.
"""
LIMITS = {"ge": "from", "gt": "above", "le": "to", "lt": "below", "multiple_of": "in steps of"}
WHOLE = {"training": sections.Training}  # the whole sections behind partial ones
NAMED = {
    sections.Seeds: "seeds, such as 3, 0-3, or [0, 5]",
    sections.Id: "id",
    sections.Device: "device",
    sections.Pair: "pair of models",
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
    Any: "text or list",
}


def page() -> str:
    """The page, as Markdown."""
    parts = [START, "## The run: config.yaml\n", *_table(Run), *_below(3, Run)]
    parts += ["## A scale: `scales/<scale>.yaml`\n", *_table(Scale)]
    parts += _below(3, Scale, omit=("pretraining", "linear", "beyond", "models"))
    parts += ["### `network`\n", "`architecture` is one of these, with its options:\n"]
    for name, entry in nets.ARCHITECTURES.items():
        parts += _part(4, f"architecture: {name}", entry.options)
    fields = sections.ModelSection.model_fields
    parts += _part(3, "models.<id>", sections.ModelSection, [*fields.keys() - {*sections.SHARED}])
    parts += _part(4, "models.<id>.weights", sections.Weights)
    parts += [
        "### `beyond`\n",
        "[Measurements beyond the paper](beyond.md), each with its nets; one that is null is off.\n",
    ]
    for name, section in sections.BEYOND.items():
        parts += [*_part(4, f"beyond.{name}", section), *_below(5, section, prefix=f"beyond.{name}.")]
    return "\n".join(parts).rstrip() + "\n"


def _part(level: int, title: str, section: type[Section], names: list[str] | None = None) -> Iterator[str]:
    yield f"{'#' * level} `{title}`\n"
    yield f"{' '.join((section.__doc__ or '').split())}\n"
    yield from _table(section, names)


def _below(level: int, section: type[Section], omit: tuple[str, ...] = (), prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if (inner := WHOLE.get(name) or _section(field.annotation)) and name not in omit:
            yield from _part(level, f"{prefix}{name}", inner)
            yield from _below(level + 1, inner, prefix=f"{prefix}{name}.")


def _section(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _table(section: type[Section], names: list[str] | None = None) -> Iterator[str]:
    types = get_type_hints(section, include_extras=True)
    yield "| key | what | default | meaning |\n|:--|:--|:--|:--|"
    for name, field in section.model_fields.items():
        if names is None or name in names:
            cells = f"`{name}`", _type(types[name]), _default(field, types[name]), field.description or ""
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _default(field: FieldInfo, type_: Any) -> str:
    value = field.default
    if field.is_required():
        return "(needed)"
    if isinstance(value, Section) or value == "" or (value is None and NoneType not in _members(type_)):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf).splitlines()[0]
    return text if value is None or isinstance(value, bool) else f"`{text}`"


def _members(type_: Any) -> tuple[Any, ...]:
    if get_origin(type_) is Annotated:
        return _members(get_args(type_)[0])
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


def _type(type_: Any) -> str:
    if named := next((text for each, text in NAMED.items() if type_ == each), None):
        return named
    members = _members(type_)
    if len(members) > 1:
        return " or ".join(map(_type, members))
    origin, inner = get_origin(members[0]), get_args(members[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is list:
        return f"list: {_type(inner[0])}"
    if origin is dict:
        return "sections by id" if _section(inner[1]) else "keys and values"
    bounds = [m for part in getattr(type_, "__metadata__", ()) for m in getattr(part, "metadata", [])]
    limits = (
        f"{word} {getattr(bound, key):,.10g}"
        for key, word in LIMITS.items()
        for bound in bounds
        if hasattr(bound, key)
    )
    return " ".join([NAMED.get(members[0], "section"), *limits])


if __name__ == "__main__":
    print(page(), end="")
