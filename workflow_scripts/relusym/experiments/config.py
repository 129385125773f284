"""The config as the user gives it: read as plain values, and checked against its schema."""

import math
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import jsonschema
import yaml

from relusym.errors import UserError
from relusym.registry import one_line

EXPONENTIAL = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")  # 1e-2, which YAML 1.1 takes for text


def seed_list(given: int | str | list[int]) -> list[int]:
    """The seeds meant by 3, "0-3", "0,2,5-7" or [0, 2].

    Raises:
        UserError: a seed listed twice, or a range that runs backwards.
    """
    if isinstance(given, int):
        return [given]
    seeds: list[int] = []
    for part in given.split(",") if isinstance(given, str) else given:
        first, _, last = str(part).partition("-")
        if last and int(last) < int(first):
            raise UserError(f"seeds: the range {part} runs backwards; write {last}-{first}")
        seeds += range(int(first), int(last or first) + 1)
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise UserError(f"seeds: {twice[0]} is listed twice in {given}; list each seed once")
    return seeds


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
            value = yaml.safe_load(config) if config else config
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
    schema = yaml.safe_load(
        files("relusym.experiments").joinpath("config.schema.yaml").read_text(encoding="utf-8")
    )
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        raise UserError(one_line(error))


def laid_over(*sections: dict[str, Any]) -> dict[str, Any]:
    """The sections laid over each other, key by key; what a later one says goes before an earlier one."""
    result: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = laid_over(result[key], value) if both else value
    return result
