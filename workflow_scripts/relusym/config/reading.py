"""The config as the user gives it: read as plain values, and checked against its schema."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from relusym.errors import UserError
from relusym.registry import SEEDS_ALLOWED, check_schema

MOST_SEEDS, LARGEST_SEED = 10_000, 2**32 - 1
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is built
EXPONENTIAL = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")  # 1e-2, which YAML 1.1 takes for text


def seed_list(given: int | str | list[int]) -> list[int]:
    """The seeds meant by 3, "0-3", "0,2,5-7" or [0, 2].

    Raises:
        UserError: a seed listed twice, a range that runs backwards, too many seeds or too large ones.
    """
    if isinstance(given, int):
        return [given]
    seeds: list[int] = []
    for part in given.split(",") if isinstance(given, str) else given:
        first, _, last = str(part).partition("-")
        some = range(int(first), int(last or first) + 1)
        if not some:
            raise UserError(f"seeds: the range {part} runs backwards; write {last}-{first}")
        if some[-1] > LARGEST_SEED or len(seeds) + len(some) > MOST_SEEDS:
            raise UserError(
                f"seeds: {given} given; allowed are at most {MOST_SEEDS:,} seeds, none above {LARGEST_SEED}"
            )
        seeds += some
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise UserError(f"seeds: {twice[0]} is listed twice in {given}; list each seed once")
    return seeds


def check_file(path: str | Path) -> None:
    """Check what Snakemake passes over, or reports without a line, when it reads a config file.

    Raises:
        UserError: names the file and the line of what isn't UTF-8 or YAML, of a key that stands there twice, and of
            seeds whose _ YAML would drop.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        top = yaml.compose(text, LOADER)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: the byte {error.object[error.start]:#x} isn't UTF-8; save the file as UTF-8"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        raise UserError(f"{path}, line {line}: no YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(top, yaml.MappingNode):
        raise UserError(f"{path}: no keys in it; it should hold `key: value` lines, as config.yaml does")
    for section in _sections(top):
        first: dict[str, int] = {}
        for key, value in section.value:
            line = key.start_mark.line + 1
            if (name := str(key.value)) in first:
                raise UserError(
                    f"{path}, line {line}: the key {name!r} stands in line {first[name]} already; keep one"
                )
            first[name] = line
            if key.value == "seeds" and "_" in value.value:
                raise UserError(f"{path}, line {line}: seeds: {value.value} given; {SEEDS_ALLOWED}")


def _sections(top: yaml.Node | None) -> Iterator[yaml.MappingNode]:
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


def check_command_line(given: dict[str, Any], words: Iterable[str]) -> None:
    """Check what Snakemake makes of `--config`.

    Args:
        given: what it understood.
        words: of the command line.

    Raises:
        UserError: a key without a value, or seeds whose _ Python drops.
    """
    for key, value in given.items():
        if value is None:
            raise UserError(
                f"{key}: nothing given (is a variable of the shell unset?); write {key}=null for none"
            )
    for word in words:
        if re.fullmatch(r"seeds=[\d_]*_[\d_]*", word):
            raise UserError(f"seeds: {word.removeprefix('seeds=')} given; {SEEDS_ALLOWED}")


def plain(config: Any) -> Any:
    """The config as plain JSON values; numbers that Snakemake's command line left as text are numbers again."""
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    if isinstance(config, str):
        if EXPONENTIAL.fullmatch(config):
            return float(config)
        try:
            value = yaml.load(config, LOADER) if config else config
        except yaml.YAMLError:  # text that only looks like YAML, such as a folder named {new}
            return config
        config = value if value is None or isinstance(value, bool | int | float) else config
    # JSON has no infinity or not-a-number: left as text, they are refused as no number
    return str(config) if isinstance(config, float) and not math.isfinite(config) else config


def validate(config: dict[str, Any]) -> None:
    """Check a config of plain values against `config.schema.yaml`.

    Raises:
        UserError: names the key, what was given and what is allowed.
    """
    schema = files("relusym.config").joinpath("config.schema.yaml").read_text(encoding="utf-8")
    check_schema(yaml.load(schema, LOADER), config)


def laid_over(*sections: dict[str, Any]) -> dict[str, Any]:
    """The sections laid over each other, key by key; what a later one says goes before an earlier one."""
    result: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = laid_over(result[key], value) if both else value
    return result
