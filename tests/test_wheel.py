import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, python

pytestmark = pytest.mark.slow(seconds=5)

LIBRARY = SCRIPTS / "relusym"

WITHOUT_SNAKEMAKE = """
import importlib, pkgutil, sys
sys.modules["snakemake"] = None  # importing it fails
import relusym
for module in pkgutil.walk_packages(relusym.__path__, "relusym."):
    importlib.import_module(module.name)
names = {name.partition(".")[0] for name in sys.modules}
assert not names & {"benchmark", "job"}
print(len([name for name in sys.modules if name.startswith("relusym")]))
print(*{getattr(m, "__file__", None) for n, m in sys.modules.items() if n.startswith("relusym")}, sep="\\n")
"""

# Only the wheel's declared dependencies, and their dependencies, can be imported.
DECLARED = """
import sys
from importlib.metadata import distribution, packages_distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
allowed, todo = set(), [Requirement(text) for text in distribution("relusym").requires]
while todo:
    requirement = todo.pop()
    name = canonicalize_name(requirement.name)
    if name not in allowed and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        allowed.add(name)
        todo += map(Requirement, distribution(name).requires or [])
homes = packages_distributions()
forbidden = {name for name, of in homes.items() if not {canonicalize_name(one) for one in of} & allowed} - {"relusym"}
for name in forbidden - set(sys.modules):
    sys.modules[name] = None
assert {"snakemake", "torchvision", "pandas", "yaml"} <= forbidden, forbidden  # torch itself needs jinja2
"""

PUBLIC_AND_MERGE = """
import sys
sys.modules["snakemake"] = None
import relusym
try:
    relusym.merg
except AttributeError as error:
    print(error)
assert "torch" not in sys.modules
public = {*relusym.__all__}
from relusym import *
assert public <= {*globals()}
print(*public)
import torch
from relusym import nets, paper_values
from relusym.data.augmentation import normalise
from relusym.data.chiral_shapes import generate
from relusym.evaluation.images import Images
from relusym.merging.merge import flip_merge
torch.manual_seed(0)
net = nets.build({"architecture": "vgg11", "width": 1 / 32, "group_convs": 8, "initialization": "he"}, classes=10)
train, test = generate(100, 50, seed=0)
train, labels, test = Images(train.images, 100, normalise), test.labels, Images(test.images, 50, normalise)
merged = flip_merge(nets.plain(net.eval()), train, test, labels)
assert merged.checks["flipped_net_on_flipped_images"] < 1e-4, merged.checks
print(merged.accuracy["net"] == merged.accuracy["flipped"], len(paper_values.table(2)))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    source, to = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "workflow_scripts", source / "workflow_scripts", ignore=ignored)
    how = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "wheel", *how, "--wheel-dir", "dist", "."]
    subprocess.run(pip, cwd=source, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(to)
    return to


def run(code, installed, tmp_path):
    """The output of Python code that imports relusym from the wheel."""
    return python(code, folder=tmp_path, PYTHONPATH=str(installed)).splitlines()


def test_the_wheel_holds_the_library_with_its_data_and_its_command_and_nothing_else(installed):
    packed = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    library = {path for path in packed if ".dist-info/" not in path}
    files = (path for path in LIBRARY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert library == {str(path.relative_to(LIBRARY.parent)) for path in files}
    assert {"relusym/paper_values/table2.csv", "relusym/reporting/page.html", "relusym/py.typed"} <= library
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    assert "relusym = relusym.reporting:main" in entries.read_text()


def test_the_public_names_merge_a_net_and_every_module_is_imported_without_snakemake(installed, tmp_path):
    wrong, names, merged, count, *files = run(PUBLIC_AND_MERGE + WITHOUT_SNAKEMAKE, installed, tmp_path)
    assert wrong == "module 'relusym' has no attribute 'merg'"
    assert "flip_merge" in names.split() and len(names.split()) > 8 and merged == "True 7"
    assert int(count) == len([*(installed / "relusym").rglob("*.py")])
    assert all(Path(file).is_relative_to(installed) for file in files)


NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""

COMMAND = """
import sys
import numpy as np
from relusym.reporting.command import main
pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)
np.savez("images.npz", images=pixels, labels=np.arange(20) % 2)
given = ["--images", "images.npz", "--mean", "0", "--std", "1", "--partial-images", "4"]
code = main(["report", "net.py:build", *given, "--json"])
assert code == 0 and sorted(sys.modules["relusym"].__all__)
tuning = ["--train-images", "images.npz", "--fine-tune", "1", "--batch-size", "10"]
assert main(["exact", "net.py:build", *given[:-2], *tuning, "--json"]) == 0
"""


def test_the_command_runs_with_the_declared_dependencies_alone(installed, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    numbers, exact = map(json.loads, run(DECLARED + COMMAND, installed, tmp_path))
    assert numbers["labelled"] and numbers["grid"]["symmetric"] and len(numbers["layers"]) == 1
    assert exact["invariance_error"]["exact_fine_tuned"] < 1e-5 < exact["invariance_error"]["net"]
    written = {path.name for path in (tmp_path / "exact").iterdir()}
    assert written == {f"exact.{ending}" for ending in ("json", "pt2", "safetensors")}
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!doctype html>")
