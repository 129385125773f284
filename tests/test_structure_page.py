import ast
import re
import traceback
from pathlib import Path

import pytest
import torch
from small_nets import Images, smooth_images, vgg11

from relusym.merging import merge as merging

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
LIBRARY = ROOT / "workflow_scripts"


def walk(title):
    """The files of a walk, in order: those that its lines link to."""
    lines = re.search(rf"^{re.escape(title)}.*:\n((?:\d+\. .*\n)+)", PAGE, re.MULTILINE)[1]
    return [(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", lines)]


TABLE_4, REPORT = walk("A cell of Table 4"), walk("`relusym report`")


def reached(path):
    """The files that a file imports, or, of a rule, its scripts; of a table, the rules that make its records."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".smk":
        return {(path.parent / script).resolve() for script in re.findall(r'"(\.\./[^"]+\.py)"', text)}
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {LIBRARY / f"{name.replace('.', '/')}.py" for name in names}
    if "findings/tables" in str(path):
        kinds = re.findall(r"\"(\w+)\"", re.search(r"reads=\(([^)]*)\)", text)[1])
        files |= {
            rule
            for rule in ROOT.glob("rules/*.smk")
            for kind in kinds
            if re.search(rf"^rule {kind}:", rule.read_text(encoding="utf-8"), re.MULTILINE)
        }
    return files


@pytest.mark.parametrize(("files", "most"), [(TABLE_4, 6), (REPORT, 12)], ids=["Table 4", "report"])
def test_each_file_of_a_walk_is_reached_from_one_before_it(files, most):
    assert 4 < len(files) <= most  # Table 4's rule and its script are one step
    for place, path in enumerate(files[1:], 1):
        assert any(path in reached(earlier) for earlier in files[:place]), path


def test_the_walk_to_a_cells_arithmetic_passes_every_file_that_the_merge_does(monkeypatch):
    passed = []

    def traced(first, second, halfway):
        passed.append([Path(frame.filename) for frame in traceback.extract_stack()])
        return merging.absolute(first, second, halfway)

    monkeypatch.setattr(merging, "absolute", merging.barrier, raising=False)
    monkeypatch.setattr(merging, "barrier", traced)
    net, other = vgg11(0), vgg11(1)
    images = Images(smooth_images(40), batch_size=20)
    merging.merge(net, other, images, images, torch.arange(40) % 10)
    (first, *_) = passed
    on_the_way = {path for path in first if LIBRARY / "relusym" in path.parents}
    assert on_the_way - {LIBRARY / "relusym/precision.py"} <= {*TABLE_4}
