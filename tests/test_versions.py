import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(lines):
    """Name → version of lines such as `numpy==2.4.6  # why`; any other line is an error."""
    requirements = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    pinned = {canonicalize_name(r.name): [(s.operator, s.version) for s in r.specifier] for r in requirements}
    assert len(pinned) == len(requirements), "a package is listed twice"
    loose = {name for name, given in pinned.items() if [operator for operator, _ in given] != ["=="]}
    assert not loose, f"not pinned to one version: {loose}"
    return {name: given[0][1] for name, given in pinned.items()}


LOCK = pins((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())


def environment(path):
    """Python's version and the pins of a conda environment, those of its pip section with them."""
    dependencies = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    names = [dependency for dependency in dependencies if isinstance(dependency, str)]
    (python,) = [name.partition("=")[2].lstrip("=") for name in names if name.startswith("python=")]
    conda = [name.replace("=", "==") if "==" not in name else name for name in names]
    conda = [name for name in conda if not name.startswith(("python=", "pip"))]
    pip = [name for dependency in dependencies if isinstance(dependency, dict) for name in dependency["pip"]]
    return python, pins(conda + pip)


VERSIONS = {"torch": "2.14.1", "torchvision": "0.29.1", "snakemake": "9.27.1"}


@pytest.mark.parametrize("name, version", VERSIONS.items())
def test_the_lock_has_the_versions_that_the_results_were_made_with(name, version):
    assert LOCK[name] == version


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_has_the_locks_versions_of_all_that_the_library_needs(path):
    python, pinned = environment(path)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert pinned == {name: LOCK.get(name) for name in pinned}
    needed = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert needed <= set(pinned)


LOCKED = {
    name: extra
    for name, extra in PROJECT["optional-dependencies"].items()
    if name not in ("timm", "transformers")  # other people's nets, which no result was made with
}


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *(text for extra in LOCKED.values() for text in extra)]
)
def test_the_lock_pins_every_dependency_within_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_every_environment_that_a_rule_names_is_there():
    rules = [path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk")]
    named = {name for text in rules for name in re.findall(r"\benvs/[\w.-]+", text)}
    assert named and {ROOT / name for name in named} == set(ENVIRONMENTS)
