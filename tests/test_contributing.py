import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, finish, start
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

TARGETS = "demo", "check", "test", "test-cluster", "lint", "format", "laptop", "bench"
MAKE = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflow_on_github_runs_existing_targets():
    workflows = [*ROOT.glob(".github/workflows/*.yml")]
    assert workflows
    for path in workflows:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"push", "pull_request"} <= {*workflow[True]}  # YAML reads `on` as true
        run = [step["run"] for step in steps(workflow) if "run" in step]
        assert ".ci/run" in run and "make demo" in run
        assert {line.split()[1] for line in run if re.match(r"make \w", line)} <= MAKE
        assert all(step["uses"].count("@") == 1 for step in steps(workflow) if "uses" in step)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_and_the_contributors_page_name_targets_of_the_makefile():
    text = (ROOT / ".ci" / "run").read_text() + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {target for line in re.findall(r"\bmake ([\w -]+)", text) for target in line.split()}
    assert {"lint", "check", "test", "test-cluster"} <= named <= MAKE


@pytest.mark.parametrize("target", TARGETS)
def test_make_would_run_programs_and_files_that_are_there(target):
    run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    programs = {Path(word).name for word in run.stdout.split() if word.startswith(".venv/bin/")}
    assert programs and all(Path(sys.executable).with_name(program).exists() for program in programs)
    files = re.findall(r"(?:tests/|requirements|Snakefile|rules)[\w./]*", run.stdout)
    assert all((ROOT / file).exists() for file in files)


def test_the_catalogs_entry_shows_how_to_call_the_workflow():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["report"] and usage["software-stack-deployment"]["conda"]
    flag, setting = shlex.split(usage["mandatory-flags"]["flags"])
    scale = setting.partition("=")[2]
    assert flag == "--config" and (ROOT / "scales" / f"{scale}.yaml").exists()


def test_the_containers_recipe_copies_existing_files_and_is_built_where_the_snakefile_looks():
    recipe = (ROOT / "envs" / "relusym.def").read_text()
    (files,) = re.findall(r"%files\n((?:    .*\n)+)", recipe)
    assert all((ROOT / line.split()[0]).exists() for line in files.splitlines())
    (built,) = re.findall(r"apptainer build (\S+) (\S+)", recipe)
    assert built[1] == "envs/relusym.def"
    assert f'CONTAINER = f"{{workflow.current_basedir}}/{built[0]}"' in (ROOT / "Snakefile").read_text()


APPTAINER = """#!/bin/bash
# Records the image, and runs the command outside of it, with this Python, whose packages are the image's.
if [ "$1" = --version ]; then echo "apptainer version 1.3.0"; exit; fi
while [[ "$1" != *.sif ]]; do shift; done
echo "$1" >> "$IMAGES"
PATH="$PYTHON_FOLDER:$PATH" exec "${@:2}"
"""


def test_with_apptainer_every_job_runs_in_the_image_of_the_recipe(tiny, tmp_path):
    made, stand_in = tiny(), tmp_path / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text(APPTAINER)
    stand_in.chmod(0o755)
    stand_in.with_name("singularity").symlink_to(stand_in)
    image = made.folder / "envs" / "relusym.sif"
    image.touch()
    site = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "IMAGES": str(tmp_path / "images")}
    command = [sys.executable, "-m", "snakemake", "lemma_e_1", "--cores", "2", "--sdm", "apptainer"]
    run = finish(start(command, made.folder, PYTHON_FOLDER=str(Path(sys.executable).parent), **site))
    assert run.returncode == 0, run.stdout
    assert set((tmp_path / "images").read_text().split()) == {str(image)}
    assert made.path_of_statement("lemma_e_1").exists()


ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(lines):
    """Name → version of lines such as `numpy==2.4.6  # why`; any other line is an error."""
    requirements = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    pinned = {canonicalize_name(r.name): [(s.operator, s.version) for s in r.specifier] for r in requirements}
    assert len(pinned) == len(requirements), "a package is listed twice"
    loose = {name for name, by in pinned.items() if [operator for operator, _ in by] != ["=="]}
    assert not loose, f"not pinned to one version: {loose}"
    return {name: specifiers[0][1] for name, specifiers in pinned.items()}


LOCK = pins((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())


def environment(path):
    """Python's version and the pins of a conda environment, including those of its pip section."""
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


OTHERS = "timm", "transformers"  # packages of public nets, which no result uses
LOCKED = [extra for name, extra in PROJECT["optional-dependencies"].items() if name not in OTHERS]
NEEDED = [*PROJECT["dependencies"], *(text for extra in LOCKED for text in extra)]


@pytest.mark.parametrize("text", NEEDED)
def test_the_lock_pins_every_dependency_within_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_every_environment_that_a_rule_names_exists():
    rules = [path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk")]
    named = {name for text in rules for name in re.findall(r"\benvs/[\w.-]+", text)}
    assert named and {ROOT / name for name in named} == set(ENVIRONMENTS)
