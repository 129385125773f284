"""The config's files. What YAML lets pass is an error with its line; a scale is a file in a folder `scales`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from relusym.errors import UserError
from relusym.schema import SEEDS_ALLOWED, one_of
from relusym.whole_files import open_file

DEEPEST = 100  # levels of nested sections, more than any config has
NUMERIC = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# not octal or base 60, as which YAML reads 010 and 1:30
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)|[^:]*[.eE][^:]*")
# options of which Snakemake reads the last alone, in all their forms
READ_LAST = {"--config": r"--config(=.*)?|-C(\w+=.*)?", "--configfile": r"--configfiles?(=.*)?"}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is built


def scale_file(name: str, folders: Sequence[str | Path]) -> Path:
    """The file of a scale, in the first folder that has one of that name; UserError if none has."""
    files = {path.stem: path for folder in reversed(folders) for path in sorted(Path(folder).glob("*.yaml"))}
    if name not in files:
        raise UserError(one_of("scale", name, sorted(files)))
    return files[name]


def check_file(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, checked for mistakes that Snakemake ignores, or reports without a line.

    UserError names the file and the line of invalid UTF-8 or YAML, of a repeated key, of a section that contains
    itself, of seeds whose _ YAML would drop, and of a number that YAML would read as another.
    """
    try:
        with open_file(path) as file:
            text = file.read().decode("utf-8")
        _check_depth(path, text)
        top = yaml.compose(text, LOADER)
        values = yaml.load(text, LOADER)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: the byte {error.object[error.start]:#x} isn't UTF-8; save the file as UTF-8"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        raise UserError(f"{path}, line {line}: not valid YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except (ValueError, KeyError) as error:  # from a date, a number or a tag that YAML can't convert
        raise UserError(f"{path}: a value isn't valid YAML ({error}); put it in quotes") from error
    if not isinstance(top, yaml.MappingNode):
        raise UserError(f"{path}: no keys in it; it should hold `key: value` lines, as config.yaml does")
    for section in _sections(top):
        first: dict[str, int] = {}
        for key, value in section.value:
            line = key.start_mark.line + 1
            if (name := str(key.value)) in first:
                raise UserError(
                    f"{path}, line {line}: the key {name!r} is in line {first[name]} already; keep one"
                )
            first[name] = line
            for number in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if key.value == "seeds" and "_" in number.value:
                    raise UserError(f"{path}, line {line}: seeds: {number.value} given; {SEEDS_ALLOWED}")
                if number.tag in NUMERIC and not DECIMAL.fullmatch(number.value):
                    taken = LOADER("").construct_object(number)
                    raise UserError(
                        f"{path}, line {line}: {key.value}: YAML takes {number.value} for {taken}; write it as a "
                        "decimal number"
                    )
    return values


def _check_depth(path: str | Path, text: str) -> None:
    """Refuse sections that contain themselves or are nested too deeply."""
    open_: list[str | None] = []  # the anchors of the sections around an event
    for event in yaml.parse(text, LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) and event.anchor in open_:
            raise UserError(
                f"{path}, line {line}: *{event.anchor} is inside &{event.anchor}, so it has no end"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append(event.anchor)
            if len(open_) > DEEPEST:
                raise UserError(f"{path}, line {line}: more than {DEEPEST} sections inside each other")
        elif isinstance(event, yaml.CollectionEndEvent):
            open_.pop()


def _sections(top: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Every mapping of a YAML file, once."""
    open_, seen = [top], set()
    while open_:
        node = open_.pop()
        if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                yield node
                open_ += [value for _, value in node.value]
            else:
                open_ += node.value


def check_command_line(values: dict[str, Any], words: Iterable[str]) -> None:
    """Check the `values` that Snakemake has parsed from `--config`, the `words` of the command line.

    UserError for a key without a value, for seeds whose _ Python drops, or for an option given twice, of which
    Snakemake reads the last alone.
    """
    words = [*words]
    for option, forms in READ_LAST.items():
        if len([word for word in words if re.fullmatch(forms, word)]) > 1:
            raise UserError(
                f"{option} is given twice, and Snakemake reads the last alone; give it once, with all"
            )
    for key, value in values.items():
        if value is None:
            raise UserError(f"{key}: no value given (is a shell variable unset?); write {key}=null for none")
    for word in words:
        if word.startswith("seeds=") and "_" in word:
            raise UserError(f"seeds: {word.removeprefix('seeds=')} given; {SEEDS_ALLOWED}")


def deep_merge(*sections: dict[str, Any]) -> dict[str, Any]:
    """The sections merged key by key; later sections override earlier ones."""
    result: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = deep_merge(result[key], value) if both else value
    return result
