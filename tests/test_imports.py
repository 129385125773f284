"""The law of imports in pyproject.toml, and that it would be noticed if a module broke it."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
PLANTED = {  # module of the library: an import that it must not have, and the contract that forbids it
    "records": ("relusym.nets", "Rooms import only what lies below them"),
    "data/views": ("relusym.nets.resnet", "Rooms import only what lies below them"),
    "evaluation/barrier": ("relusym.training.loop", "Rooms import only what lies below them"),
    "findings/table4": ("relusym.data", "Findings and theory import the ground alone"),
    "theory/lemma_2_2": ("relusym.nets", "Findings and theory import the ground alone"),
    "findings/table2": ("torch", "Findings need no PyTorch"),
    "reporting/page": ("pandas", "Reports need nothing of the workflow"),
    "merging/layers": ("relusym.reporting", "Rooms import only what lies below them"),
    "jobs/memory": ("relusym.merging", "Jobs know no science"),
    "measuring/merge": ("snakemake.io", "The library knows neither Snakemake"),
    "training/loop": ("benchmark.machine", "The library knows neither Snakemake"),
}


@pytest.fixture
def library(tmp_path):
    """A copy of the library and its law."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "workflow_scripts", tmp_path / "scripts", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder):
    run = subprocess.run(
        LINT, cwd=folder, env={"PYTHONPATH": "scripts"}, capture_output=True, text=True, check=False
    )
    return run.returncode, run.stdout


def test_the_library_keeps_the_law(library):
    code, output = lint(library)
    assert code == 0 and " 0 broken" in output, output


@pytest.mark.parametrize("module", PLANTED)
def test_an_import_against_the_law_is_found(library, module):
    imported, contract = PLANTED[module]
    path = library / "scripts" / "relusym" / f"{module}.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}\nimport {imported}\n", encoding="utf-8")
    code, output = lint(library)
    assert code == 1, output
    broken = [line for line in output.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), output
    assert f"relusym.{module.replace('/', '.')} -> {imported.partition('.')[0]}" in output


def test_a_module_in_no_room_is_found(library):
    (library / "scripts" / "relusym" / "helpers.py").write_text("")
    code, output = lint(library)
    assert code == 1 and "helpers" in output, output


def test_of_findings_the_jobs_import_the_costs_alone():
    graph = grimp.build_graph("relusym", cache_dir=None)
    found = {
        imported
        for module in graph.find_descendants("relusym.jobs")
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith("relusym.findings")
    }
    assert found == {"relusym.findings.costs"}
