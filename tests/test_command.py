import argparse
import csv
import ctypes
import errno
import importlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections import defaultdict
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refused, save_images
from PIL import Image
from safetensors.torch import load_file, save_file, save_model
from small_nets import smooth_images, vgg11
from torch import nn

from relusym import checkpoint, reporting
from relusym.channels.tracing import trace
from relusym.evaluation.images import normalisation
from relusym.evaluation.logits import logits_of
from relusym.merging.identities import largest_difference
from relusym.merging.repair import LayerByLayer
from relusym.reporting import image_files
from relusym.reporting.command import main
from relusym.reporting.image_files import Sizing
from relusym.reporting.net_files import (
    Preset,
    build,
    check_distinct,
    load_metric,
    load_weights,
    preset_of_processor,
)
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES

NETS = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 2),
    )

def needs(width):
    return nn.Conv2d(3, width, 3)

def no_net():
    return 7

def pointwise():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

def margin(logits, labels):
    return logits.amax(1) - logits.mean(1)

def whole(logits, labels):
    return logits.mean()

net = build()
number = 7
"""
SCALED = ("--mean", "0.5", "--std", "0.25")
# stands in for timm, whose nets are downloaded, with many retries unless the hub's client knows that it is offline
STAND_IN = """
import os

def is_model(name):
    return True

def create_model(name, pretrained):
    assert pretrained and os.environ["HF_HUB_OFFLINE"] == "1", "asks for minutes"
    raise RuntimeError("not in the cache")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of nets, weights, and images: in class folders, in one folder, and as arrays."""
    made = tmp_path_factory.mktemp("command")
    (made / "my_nets.py").write_text(NETS)
    pixels = smooth_images(24, 16)
    for i, image in enumerate(pixels.numpy()):
        for to in (f"photos/{'ab'[i % 2]}", "flat", f"splits/{('Train', 'val')[i % 2]}"):
            (made / to).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(made / to / f"{i:02}.png")
    np.savez(made / "images.npz", images=pixels, labels=np.arange(24) % 2)
    torch.save({"images": pixels, "labels": torch.arange(24) % 2}, made / "images.pt")
    np.savetxt(made / "labels.txt", np.arange(24) % 2, fmt="%d")
    for seed in range(2):
        net = build(f"{made / 'my_nets.py'}:build", None, seed)[0]
        x = normalisation([0.5] * 3, [0.25] * 3)(pixels)
        with torch.no_grad():
            net[6].weight *= 20
            net[6].bias -= net(x).mean(0)  # so that the net distinguishes images
        state = net.state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, made / f"{seed}.safetensors")
        wrapped = {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
        torch.save(wrapped, made / f"{seed}.pth")
    return made


def run(capsys, folder, *arguments, images="photos"):
    """Run a report: exit code, output, and the lines of the error stream."""
    code = main([*map(str, arguments), "--images", str(folder / images)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


def report(capsys, folder, *arguments, net="my_nets.py:build", images="photos", scaled=SCALED):
    typed = "--partial-images", 8, "--batch-size", 10, *scaled, *arguments
    return run(capsys, folder, "report", folder / net, *typed, images=images)


@pytest.fixture(scope="module")
def labelled(folder, tmp_path_factory):
    """A report on a net with labels: its folder, exit code, output, and lines of the error stream."""
    out = tmp_path_factory.mktemp("report") / "report"
    typed = "--partial-images", 8, "--batch-size", 10, *SCALED, "--weights", folder / "0.safetensors"
    typed = *typed, "--labels", "folder", "--images", folder / "photos", "--out", out
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as lines:
        code = main(["report", f"{folder / 'my_nets.py'}:build", *map(str, typed)])
    return out, code, printed.getvalue(), lines.getvalue().splitlines()


def test_a_report_is_one_screen_and_a_folder(labelled):
    out, code, printed, lines = labelled
    assert (code, lines) == (0, ["relusym: classes: 0 a, 1 b"])
    printed = " ".join(printed.split())
    assert "build merged halfway with itself flipped left to right" in printed
    assert "0 of stride 2 meets 16 pixels" in printed and str(out / "report.html") in printed
    tables = ("nets", "layers", "convs", "where_it_fails", "grid", "classes")
    nets = {f"{name}.safetensors" for name in ("permuted", "halfway", "repaired")}
    files = {"report.html", "report.json", *nets, *(f"{table}.csv" for table in tables)}
    assert {path.name for path in out.iterdir()} == files
    numbers = json.loads((out / "report.json").read_text())
    rows = {path.stem: list(csv.DictReader(path.open())) for path in out.glob("*.csv")}
    layers = [layer["name"] for layer in numbers["layers"]]
    assert [row["layer"] for row in rows["layers"]] == layers == ["0", "2"]
    assert [row["conv"] for row in rows["convs"]] == ["0", "2"]
    assert [row["part"] for row in rows["where_it_fails"]] == ["0", "2", "6"]
    assert float(rows["nets"][0]["accuracy"]) == numbers["accuracy"]
    (misfit,) = rows["grid"]
    assert [misfit[key] for key in ("layer", "stride", "meets", "image_pixels")] == ["0", "2", "16", "1"]
    assert numbers["grid"]["next_size"] == 17


def test_the_page_is_self_contained_and_needs_no_script(labelled):
    page = (labelled[0] / "report.html").read_text()
    assert "<script" not in page and not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "url(" not in page and "@import" not in page and "$" not in page
    assert page.count("data:image/svg+xml;base64,") == 7 and "can&#x27;t be equivariant" in page


def test_saved_nets_are_those_that_were_measured(labelled, folder):
    out = labelled[0]
    net, _ = build(f"{folder / 'my_nets.py'}:build", str(folder / "0.safetensors"), 0)
    flipped, permuted, halfway = (HORIZONTAL_FLIP.transform(net) for _ in range(3))
    load_weights(permuted, str(out / "permuted.safetensors"))
    load_weights(halfway, str(out / "halfway.safetensors"))
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert largest_difference(permuted(x), flipped(x)) < 1e-5
        mean = (net[0].weight + permuted[0].weight) / 2
        assert torch.allclose(halfway[0].weight, mean)
    assert checkpoint.load(out / "halfway.safetensors")[1]["which"] == "halfway"


def test_json_is_one_object_with_every_number_and_no_screen(capsys, folder, tmp_path):
    code, printed, lines = report(capsys, folder, "--json", "--out", tmp_path)
    assert (code, lines) == (0, [])
    assert json.loads(printed) == json.loads((tmp_path / "report.json").read_text())
    assert "agreement" in (tmp_path / "report.html").read_text()  # without labels


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("given", ["images.npz", "images.pt", "flat"])
def test_images_may_be_in_one_folder_or_in_a_file(capsys, folder, labelled, tmp_path, given):
    options = ("--out", tmp_path, "--json", "--weights", folder / "0.safetensors")
    labels = ("--labels", folder / "labels.txt") if given == "flat" else ()
    first = json.loads((labelled[0] / "report.json").read_text())
    # class folders have another order, so that channels are matched on the images in another order
    other = json.loads(report(capsys, folder, *options, *labels, images=given)[1])
    assert other["labelled"] and other["accuracy"] == first["accuracy"]
    assert other["invariance_error"] == pytest.approx(first["invariance_error"], rel=1e-5)
    assert other["permutations"] == first["permutations"]


def test_a_custom_metric_is_in_every_table_of_scores(capsys, folder, tmp_path):
    metric = "--metric", f"{folder / 'my_nets.py'}:margin"
    code, printed, _ = report(capsys, folder, "--out", tmp_path, *metric)
    assert code == 0 and "margin" in printed
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert set(numbers["scores"]) == {"accuracy", "loss", "margin"}
    heads = {path.stem: next(csv.reader(path.open())) for path in tmp_path.glob("*.csv")}
    assert {"margin", "absolute_barrier_margin"} <= {*heads["nets"]}
    assert {"up_to_margin", "all_but_margin"} <= {*heads["where_it_fails"]}
    assert "margin" in (tmp_path / "report.html").read_text()


@pytest.mark.slow(seconds=6)
def test_the_same_seed_gives_the_same_report(capsys, folder, tmp_path):
    options = "--json", "--out", tmp_path, "--limit", 13
    runs = [report(capsys, folder, *options, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2] and json.loads(runs[0])["images"] == 13


def test_photos_are_resized_and_cropped(capsys, folder, tmp_path):
    for i, size in enumerate(((40, 30), (30, 50))):
        Image.new("L", size, 90 * i).save(tmp_path / f"{i}.jpg")  # grey files are read as RGB
    options = "--out", tmp_path / "out", "--json"
    net = {"net": folder / "my_nets.py:build", "images": ""}
    code, printed, _ = report(capsys, tmp_path, *options, "--size", 20, 17, **net)
    assert code == 0 and json.loads(printed)["image_shape"] == [3, 17, 17]
    code, _, lines = report(capsys, tmp_path, *options, net=folder / "my_nets.py:build", images="")
    assert code == 1 and all(word in lines[0] for word in ("give --size", "40×30", "30×50"))


@pytest.mark.parametrize("size", [(500, 333), (75, 100), (41, 64), (30, 31), (224, 224)])
def test_photos_are_resized_and_cropped_as_torchvision_does_it(size):
    transforms = pytest.importorskip("torchvision.transforms.v2", reason="torchvision isn't installed")
    image = Image.fromarray(pixels_of(0, shape=size))
    for resize, crop in ((64, 56), (37, 32), (40, 33)):
        made = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
        assert np.array_equal(Sizing(resize, crop)(image), made(image))


def test_merge_writes_the_merged_net(capsys, folder, tmp_path):
    out = tmp_path / "merged.safetensors"
    nets = folder / "my_nets.py:build", folder / "0.safetensors", folder / "1.pth"
    code, printed, lines = run(capsys, folder, "merge", *nets, "--out", out, *SCALED)
    assert (code, lines) == (0, []) and "halfway, with REPAIR" in printed
    assert load_file(out).keys() == load_file(folder / "0.safetensors").keys()
    typed = *nets, "--out", out, *SCALED, "--json", "--which", "halfway"
    code, printed, _ = run(capsys, folder, "merge", *typed)
    numbers = json.loads(printed)
    assert numbers["written"] == "halfway" and set(numbers["barrier"]) == {"halfway", "repaired"}
    first, second = (load_file(folder / f"{seed}.safetensors") for seed in range(2))
    order = torch.tensor(numbers["permutations"]["0"])
    assert torch.allclose(load_file(out)["0.weight"], (first["0.weight"] + second["0.weight"][order]) / 2)


def test_three_nets_are_merged_into_one_and_with_each_matched_to_the_first(capsys, folder, tmp_path):
    out, names = tmp_path / "merged.safetensors", ("0.safetensors", "1.pth", "0.pth")
    given = "merge", folder / "my_nets.py:build", *(folder / name for name in names), "--out", out, *SCALED
    code, printed, lines = run(capsys, folder, *given)
    words = " ".join(printed.split())
    assert (code, lines) == (0, []) and f"written to {out}: the mean of all, with REPAIR" in words
    assert "each matched to the first alone" in printed and "all nets' mean logits" in printed
    numbers = json.loads(run(capsys, folder, *given, "--which", "halfway", "--json")[1])
    assert set(numbers["barrier"]) == {"halfway", "repaired", "pairwise", "pairwise_repaired"}
    mean = sum(numbers["scores"]["accuracy"][f"net_{i}"] for i in (1, 2, 3)) / 3
    for name, barrier in numbers["barrier"].items():
        assert barrier == pytest.approx(1 - numbers["scores"]["accuracy"][name] / mean)
    states = [load_file(folder / f"{seed}.safetensors") for seed in (0, 1, 0)]
    order = [torch.tensor(numbers["permutations"][f"net_{i}"]["0"]) for i in (1, 2, 3)]
    whole = sum(state["0.weight"][p] for state, p in zip(states, order, strict=True)) / 3
    assert torch.allclose(load_file(out)["0.weight"], whole) and torch.equal(order[0], order[2])
    about = checkpoint.load(out)[1]
    assert about["of"] == [str(folder / name) for name in names] and about["which"] == "halfway"
    assert about["barrier"] == numbers["barrier"]
    for more in (["--matching", "weight"], ["--curve", "3"], ["--permuted", tmp_path / "p.safetensors"]):
        code, _, lines = run(capsys, folder, *given, *more)
        assert code == 1 and "more than two nets are matched by their activations" in lines[0]


def test_nets_are_named_in_three_ways(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    specs = f"{folder}/my_nets.py:build", "my_nets:build", f"{folder}/my_nets.py:net"
    nets = [build(spec, None, 0)[0] for spec in specs]
    assert all(isinstance(net, nn.Sequential) and not net.training for net in nets)
    net, preset = build("torchvision:squeezenet1_1", "random", 0)
    assert type(net).__name__ == "SqueezeNet" and preset is None


def test_weights_are_found_in_training_scripts_checkpoints_and_by_a_files_content(folder, tmp_path):
    known = load_file(folder / "0.safetensors")
    args = argparse.Namespace(folder=Path("runs"), more=SimpleNamespace(epochs=3))
    history = defaultdict(list, loss=[2.3, 0.5])
    state = {f"net.{key}": tensor for key, tensor in known.items()}
    torch.save({"state_dict": state, "args": args, "history": history}, tmp_path / "last.ckpt")
    save_file(known, tmp_path / "weights.ST")
    for name in ("last.ckpt", "weights.ST"):
        net, _ = build(f"{folder}/my_nets.py:build", str(tmp_path / name), 5)
        assert all(torch.equal(tensor, known[key]) for key, tensor in net.state_dict().items())
    torch.jit.script(net).save(tmp_path / "scripted.pt")
    refused(lambda: load_weights(net, str(tmp_path / "scripted.pt")), "scripted net", "state dict")


TIED = """
from torch import nn
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
        self.third = nn.Conv2d(8, 8, 3)
        self.third.weight, self.again = self.second.weight, self.head
    def forward(self, x):
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.again(x.mean((2, 3)))
"""


def test_a_net_whose_layers_share_weights_is_read_merged_and_written(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tied.py").write_text(TIED)
    nets = [build("tied.py:Tied", None, seed)[0] for seed in range(2)]
    for net, name in zip(nets, ("a", "b"), strict=True):
        net.to(memory_format=torch.contiguous_format)
        save_model(net, f"{name}.safetensors")  # which writes what is shared once
    code, _, lines = run(
        *(capsys, folder, "merge", "tied.py:Tied", "a.safetensors", "b.safetensors"),
        *(*SCALED, "--out", "m.safetensors", "--permuted", "p.safetensors"),
    )
    assert code == 0, lines
    x, permuted = torch.rand(4, 3, 9, 9), load_file("p.safetensors")
    assert permuted.keys() == nets[1].state_dict().keys()
    assert torch.allclose(build("tied.py:Tied", "p.safetensors", 0)[0](x), nets[1](x), atol=1e-5)
    halfway = (nets[0].second.weight.mean() + nets[1].second.weight.mean()) / 2
    merged = load_file("m.safetensors")["third.weight"]
    assert torch.allclose(merged.mean(), halfway, atol=1e-6)
    save_file(permuted | {"third.weight": merged}, "apart.safetensors")
    refused(lambda: load_weights(nets[0], "apart.safetensors"), "third.weight differ, but are one tensor")


@pytest.mark.parametrize("wrapper", ["nn.DataParallel", "torch.compile"])
def test_weights_are_loaded_into_the_net_inside_a_wrapper(folder, tmp_path, monkeypatch, wrapper):
    monkeypatch.syspath_prepend(folder)
    code = f"import torch\nfrom torch import nn\nfrom my_nets import build\ndef net():\n    return {wrapper}(build())"
    (tmp_path / "wrapped.py").write_text(code)
    net, _ = build(f"{tmp_path / 'wrapped.py'}:net", str(folder / "0.safetensors"), 5)
    assert torch.equal(net[0].weight, load_file(folder / "0.safetensors")["0.weight"])


BESIDE = """
import json, torch
from torch import nn
from layers import Block
class Net(Block):
    def forward(self, x):
        from late import scale
        return scale * super().forward(x)
"""
LAYERS = "from torch import nn\nclass Block(nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, {}, 3)"


def test_a_nets_file_imports_what_lies_beside_it_and_libraries_dont(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "library")])
    for folder, channels in (("library", 1), ("a", 4), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(BESIDE)
        (tmp_path / folder / "layers.py").write_text(LAYERS.format(channels))
        (tmp_path / folder / "late.py").write_text(f"scale = {channels}")
        for name in ("json", "torch", "library"):
            (tmp_path / folder / f"{name}.py").write_text(f"channels = {channels}")
    (tmp_path / "library" / "late.py").unlink()
    spec = f"{tmp_path / 'a' / 'net.py'}:Net"
    net, _ = build(spec, None, 0)
    x = torch.randn(2, 3, 8, 8)
    expected = 4 * nn.functional.conv2d(x, net.weight, net.bias)
    assert len(net.weight) == 4 and torch.allclose(net(x), expected, atol=1e-5)
    assert importlib.import_module("library").channels == 1
    for name in ("layers", "late", "library", "net"):
        del sys.modules[name]
    (tmp_path / "b" / "metric.py").write_text("def fn(logits, labels):\n    return labels")
    line = "b/metric.py:fn: json lies beside it and in .*/a, and only one can be imported: rename one, or put"
    refused(lambda: load_metric(f"{tmp_path}/b/metric.py:fn", spec), match=line)
    assert load_metric(f"{tmp_path}/b/metric.py:fn", f"{tmp_path}/b/net.py:Net")[0] == "fn"


SHARED = """
import functools, torch
from my_nets import build
torch.manual_seed(0)
made, cached = build(), functools.cache(build)
"""


@pytest.mark.parametrize("net", ["shared:made", "shared:cached", "{}/again.py:made"])
def test_nets_that_are_one_object_get_separate_weights(folder, tmp_path, monkeypatch, net):
    monkeypatch.syspath_prepend(folder), monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shared.py").write_text(SHARED)
    (tmp_path / "again.py").write_text("from shared import made")
    monkeypatch.delitem(sys.modules, "shared", raising=False)
    nets = [build(net.format(tmp_path), str(folder / f"{i}.safetensors"), i)[0] for i in range(2)]
    for i, made in enumerate(nets):
        assert torch.equal(made[0].weight, load_file(folder / f"{i}.safetensors")["0.weight"])


def test_random_nets_differ_even_if_a_module_sets_a_seed_or_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    seeded = "import torch\nfrom my_nets import build as inner\ntorch.manual_seed(0)\n"
    seeded += "def build():\n    return inner()\ndef same():\n    torch.manual_seed(0)\n    return inner()\n"
    (tmp_path / "seeded.py").write_text(seeded)
    for name in ("build", "same"):
        spec = f"{tmp_path / 'seeded.py'}:{name}"
        nets = [build(spec, "random", i)[0] for i in range(2)]
        check_distinct(spec, nets, ["random", "0.pt"])
        if name == "build":
            check_distinct(spec, nets, ["random", "random"])
    refused(lambda: check_distinct(spec, nets, ["random", "random"]), "seeded.py:same", "set a seed")


@pytest.mark.parametrize("line", [
    "torch.set_default_dtype(torch.float64)", "torch.set_default_device('meta')",
    "torch.set_grad_enabled(False)", "os.chdir('/')",
])  # fmt: skip
def test_process_wide_settings_of_a_users_module_are_undone(tmp_path, line):
    before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), Path.cwd()
    code = f"import os, torch\n{line}\ndef net():\n    with torch.device('cpu'):\n"
    (tmp_path / "sets.py").write_text(f"{code}        return torch.nn.Conv2d(3, 4, 3).float()\n")
    build(f"{tmp_path / 'sets.py'}:net", None, 0)
    after = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), Path.cwd()
    assert after == before


def test_a_net_may_have_tensors_of_any_number_of_dimensions(tmp_path):
    code = "import torch\ndef net():\n    made = torch.nn.Conv2d(3, 4, 3)\n"
    code += "    made.bank = torch.nn.Parameter(torch.zeros(2, 4, 3, 3, 3))\n    return made\n"
    (tmp_path / "bank.py").write_text(code)
    made = build(f"{tmp_path / 'bank.py'}:net", None, 0)[0]
    assert made.weight.is_contiguous(memory_format=torch.channels_last) and made.bank.ndim == 5


@pytest.mark.parametrize(
    "net, line", [("LazyConv2d(8, 3)", "lazy"), ("Conv2d(3, 8, 3, device='meta')", "meta device")]
)
def test_nets_without_values_are_refused_by_name(tmp_path, net, line):
    (tmp_path / "without.py").write_text(f"from torch import nn\ndef net():\n    return nn.{net}\n")
    refused(lambda: build(f"{tmp_path / 'without.py'}:net", None, 0), "weight", line)


BRIGHT = """
import torch
from torch import nn

def net(classes=3):
    made = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(3, classes),
    )
    with torch.no_grad():
        for value in made.parameters():
            value.zero_()
        for c in range(3):
            made[0].weight[c, c, 1, 1], made[4].weight[c, c] = 1, 9
    return made
"""


SMALL = """
from torch import nn

def small(*first):
    return nn.Sequential(*first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

def plain():
    return small(nn.Conv2d(3, 8, 3))

def bare():
    return small(nn.Conv2d(3, 8, 3, bias=False))

def normed():
    return small(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
"""


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with `images` and nets, one of which predicts the brightest channel."""
    monkeypatch.chdir(tmp_path)
    Path("bright.py").write_text(BRIGHT)
    Path("small.py").write_text(SMALL)
    class_folders("images", "abc")


@pytest.fixture
def bright(in_folder, capsys):
    """A report on the net that predicts the brightest channel: exit code, numbers, lines."""

    def report(*arguments, net="bright.py:net"):
        typed = net, "--mean", 0, "--std", 1, "--partial-images", 0, "--json", *arguments
        code = main(["report", *map(str, typed)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if code == 0 else printed.out, printed.err.splitlines()

    return report


def pixels_of(channel, seed=0, shape=(16, 16)):
    pixels = np.random.RandomState(seed).randint(0, 90, (*shape, 3)).astype(np.uint8)
    pixels[..., channel] += 120
    return pixels


PHOTOS = [pixels_of(c, i) for c in range(3) for i in range(6)]  # as in `class_folders`, in order
CLASSES = np.repeat(np.arange(3), 6)


def class_folders(root, names):
    """Six images each, whose brightest channel is the index of their class in `names`."""
    for channel, name in enumerate(names):
        save_images(Path(root, name), (pixels_of(channel, i) for i in range(6)))


def refusal(code, printed, lines, *parts):
    assert (code, printed, len(lines)) == (1, "", 1) and all(word in lines[0] for word in parts), lines


def refuses(capsys, typed, *parts):
    """Whether a command ends with 1, and with one line that contains these parts."""
    code, printed = main(typed.split()), capsys.readouterr()
    refusal(code, printed.out, printed.err.splitlines(), *parts)


def test_class_folders_that_are_numbers_are_warned_of(bright):
    class_folders("numeric", ["9", "10", "11"])
    _, numbers, lines = bright("--images", "numeric", "--labels", "folder")
    assert numbers["accuracy"] < 0.5 and numbers["inputs"]["classes"] == ["10", "11", "9"]
    assert "folder 10 is class 0, …, 9 is 2" in lines[0]
    assert lines[0].removeprefix("relusym: ") in numbers["notes"]
    class_folders("digits", ["0", "1", "2"])
    assert bright("--images", "digits", "--labels", "folder")[2] == []


def test_links_are_followed_and_hidden_files_left_out(bright):
    for place, name in enumerate("abc"):
        Path("links", name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(pixels_of(place, i)).save(Path("links", name, f"{i}.JPG"), quality=95)
    Path("links/a").rename("aside")
    Path("links/a").symlink_to("../aside")
    Path("links/b/again").symlink_to("..")  # a circle
    Path("links/.cache").mkdir()
    Path("links/__MACOSX").mkdir()
    for name in (".cache/x.png", "c/._3.png", "__MACOSX/1.png"):
        Image.fromarray(pixels_of(0)).save(Path("links", name))
    for name in ("a/notes.txt", "b/photo.heic", "c/photo.HEIC"):
        Path("links", name).write_text("")
    Path("links/c/gone.png").symlink_to("nowhere.png")
    _, numbers, lines = bright("--images", "links", "--labels", "folder")
    assert (numbers["images"], numbers["accuracy"], numbers["classes"]) == (12, 1, ["a", "b", "c"])
    (line,) = lines
    assert line.endswith("images: 4 files that aren't images were skipped: 2 .heic, 1 .txt, 1 broken links")
    assert list(numbers["by_class"]["net"]) == [1, 1, 1]


def test_images_are_read_the_way_up_that_viewers_show_them(bright):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :3] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90° when shown
    Path("turned").mkdir()
    Image.fromarray(pixels).save("turned/a.png", exif=exif)
    read = image_files.read("turned").pixels[0].numpy()
    assert read.shape == (12, 8, 3) and (read[:3] == 200).all() and (read[3:] == 0).all()


@pytest.mark.parametrize(
    "exif", [b"XX*\0", b"II*\0\x08\0\0\0\xff\xff" + b"\1" * 40], ids=["header", "entries"]
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_images_whose_exif_data_is_damaged_are_read_as_they_lie(tmp_path, exif):
    Image.fromarray(pixels_of(0, shape=(8, 12))).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    assert image_files.read(str(tmp_path)).pixels.shape == (1, 8, 12, 3)


def test_labels_in_the_order_of_numbers_that_names_as_text_arent_in_are_warned_of(bright):
    Path("numbered").mkdir()
    for i in range(12):
        Image.fromarray(pixels_of(i % 3, i)).save(f"numbered/img{i}.png")
    np.savetxt("labels.txt", np.arange(12) % 3, fmt="%d")
    _, _, lines = bright("--images", "numbered", "--labels", "labels.txt")
    assert "img10.png comes before img2.png" in lines[0]
    for i in range(12):
        Path(f"numbered/img{i}.png").rename(f"numbered/img{i:02}.png")
    _, numbers, lines = bright("--images", "numbered", "--labels", "labels.txt")
    assert (numbers["accuracy"], lines) == (1, [])


def test_one_of_two_sets_of_weights_in_a_file_is_chosen(bright):
    good = build("bright.py:net", None, 0)[0].state_dict()
    good = {key: tensor.contiguous() for key, tensor in good.items()}
    off = good | {"4.weight": good["4.weight"].roll(1, 0)}
    on = "--images", "images", "--labels", "folder"
    both = {"student": good, "teacher": off}
    torch.save({f"{who}.{key}": of[key] for who, of in both.items() for key in of}, "both.pt")
    refusal(*bright("--weights", "both.pt", *on), "'student', 'teacher'", "both.pt:student")
    assert bright("--weights", "both.pt:student", *on)[1]["accuracy"] == 1
    assert bright("--weights", "both.pt:teacher.", *on)[1]["accuracy"] < 0.5
    refusal(*bright("--weights", "both.pt:pupil", *on), "'pupil'", "'student', 'teacher'")
    torch.save({"model": off, "ema": {f"module.{k}": v for k, v in good.items()}, "epoch": 3}, "last.pt")
    refusal(*bright("--weights", "last.pt", *on), "'ema.module'", "'model'")
    assert bright("--weights", "last.pt:ema", *on)[1]["accuracy"] == 1
    torch.save(good | {f"ema.{k}": v for k, v in off.items()}, "beside.pt")
    refusal(*bright("--weights", "beside.pt", *on), "''", "'ema'")
    assert bright("--weights", "beside.pt:", *on)[1]["accuracy"] == 1
    normed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    averaged = {key: 2 * parameter.detach() for key, parameter in normed.named_parameters()}
    torch.save({"model": normed.state_dict(), "ema": averaged}, "averaged.pt")  # only parameters, no buffers
    refused(lambda: load_weights(normed, "averaged.pt"), "'ema', 'model'")
    load_weights(normed, "averaged.pt:model")
    torch.save({"model": good, "ema": good}, "same.pt")
    assert bright("--weights", "same.pt", *on)[1]["accuracy"] == 1


NAMES = "images labels|x y|X y|data targets|image label|arr_0 arr_1|x_test y_test|test_images test_labels"


@pytest.mark.parametrize("names", NAMES.split("|"))
def test_arrays_have_the_names_that_data_sets_give_them(tmp_path, names):
    images, labels = names.split()
    pixels, numbers = np.stack([pixels_of(c) for c in range(3)]), np.arange(3)
    others = {"x_train": pixels[:0], "train_images": pixels[:0]}
    np.savez(tmp_path / "a.npz", **{images: pixels, labels: numbers[:, None]}, **others)
    torch.save((torch.tensor(pixels), torch.tensor(numbers)), tmp_path / "a.pt")
    for name in ("a.npz", "a.pt"):
        pictures = image_files.read(str(tmp_path / name))
        assert [pixels_of(c).tolist() for c in pictures.labels] == pictures.pixels.tolist()


@pytest.mark.parametrize("labels, line", [
    (CLASSES + 0.5, "whole numbers"), (CLASSES - 1, "-1"), (CLASSES + 1, "labels up to 3"),
    (np.full(18, np.nan), "whole numbers"), (np.repeat(["a", "b", "c"], 6), "numbers are needed"),
    (np.arange(3), "3 given for 18 images"), (np.eye(3)[CLASSES], "(18, 3)"),
])  # fmt: skip
def test_labels_are_whole_numbers_from_0_one_per_image(bright, labels, line):
    np.savez("images.npz", images=PHOTOS, labels=labels)
    refusal(*bright("--images", "images.npz"), "label", line)


def are_brightest(pictures):
    """Whether the labels of `PHOTOS`, in any order, are their brightest channels."""
    brightest = pictures.pixels.double().mean((1, 2)).argmax(1)
    return len(brightest) == len(PHOTOS) and torch.equal(brightest, pictures.labels)


KINDS = np.uint8, np.uint16, np.uint32, np.uint64, np.int16, ">i4", ">f8"


@pytest.mark.parametrize("labels", [*map(CLASSES.astype, KINDS), CLASSES[:, None] / 1.0])
def test_labels_may_be_whole_numbers_of_any_type_and_in_a_column(tmp_path, labels):
    others = {"names": np.array(["a", None])}  # not read
    np.savez(tmp_path / "images.npz", images=PHOTOS, labels=labels, **others)
    file = (tmp_path / "images.npz").rename(tmp_path / "images.NPZ")
    assert are_brightest(image_files.read(str(file)))


def test_a_text_of_labels_may_begin_with_a_byte_order_mark_and_not_be_empty(in_folder):
    Path("labels.txt").write_text("".join(f"{c}\n" * 6 for c in range(3)), encoding="utf-8-sig")
    assert are_brightest(image_files.read("images", labels="labels.txt"))
    Path("labels.txt").write_text("")
    refused(lambda: image_files.read("images", labels="labels.txt"), "0 given for 18 images")


def test_photos_are_read_in_grey_by_a_net_that_reads_grey_images(bright):
    Path("grey.py").write_text(
        BRIGHT.replace("def net", "def colours")
        + """

def net():
    made = colours()
    made[0] = torch.nn.Conv2d(1, 3, 3)
    return made
"""
    )
    code, numbers, lines = bright("--images", "images", "--labels", "folder", net="grey.py:net")
    assert (code, numbers["image_shape"], lines) == (0, [1, 16, 16], [])


def lying(path):
    """An .npz whose header claims a far larger array than the file has."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))


def cut(path):
    np.savez(path, images=[pixels_of(0)] * 8)
    Path(path).write_bytes(Path(path).read_bytes()[:-400])


@pytest.mark.parametrize("name, write, line", [
    ("cut.npz", cut, "truncated"), ("text.npz", lambda path: Path(path).write_text("images"), "text.npz"),
    ("lying.npz", lying, "doesn't fit into memory (Unable to allocate 2.73 PiB"),
    ("none.npy", lambda path: Path(path).write_bytes(b""), "truncated"),
    ("open.npy", lambda path: Path(path).write_bytes(b"\x93NUMPY\1\0\2\0(\n"), "truncated"),
    ("list.pt", lambda path: torch.save([torch.zeros(2)] * 3, path), "holds list"),
    ("keys.pt", lambda path: torch.save({0: torch.zeros(2), 1: torch.ones(2)}, path), "it has 0, 1"),
    ("text.npz", lambda path: np.savez(path, images=np.array(["a", "b"])), "numbers are needed"),
    ("halves.npz", lambda path: np.savez(path, images=np.zeros((2, 8, 8, 3), ">u2")), "uint8"),
    ("objects.npz", lambda path: np.savez(path, images=np.array(["a", None])), "Python objects"),
    ("sparse.pt", lambda path: torch.save({"images": torch.zeros(2, 8, 8, 3).to_sparse()}, path), "plain"),
])  # fmt: skip
def test_damaged_and_other_files_of_images_are_refused_in_one_line(bright, name, write, line):
    write(name)
    refusal(*bright("--images", name), name, line)


SIZES = {"0.weight": (3, 3, 3, 3), "4.weight": (3, 3), "4.bias": (3,)}


@pytest.mark.parametrize("weights, line", [
    ([torch.zeros(2)], "no tensors by name"), ({0: torch.zeros(2), 1: torch.ones(2)}, "missing: 0.weight"),
    (torch.zeros(2), "no tensors by name"),
    (dict.fromkeys(SIZES, torch.int8), "0.weight is torch.int8"),
    (dict.fromkeys(SIZES, torch.float32), "not all numbers: 0.weight"),
])  # fmt: skip
def test_other_files_of_weights_are_refused_in_one_line(bright, weights, line):
    if isinstance(weights, dict) and weights.keys() == SIZES.keys():
        fill = float("nan") if weights["4.bias"].is_floating_point else 1
        weights = {key: torch.full(SIZES[key], fill, dtype=kind) for key, kind in weights.items()}
    torch.save(weights, "weights.pt")
    refusal(*bright("--images", "images", "--weights", "weights.pt"), line)


def test_weights_of_a_net_whose_state_isnt_all_tensors_are_refused(bright):
    code = "class Extra(nn.Sequential):\n    def get_extra_state(self):\n        return {'epoch': 3}\n"
    Path("extra.py").write_text(BRIGHT + code + "    def set_extra_state(self, state):\n        pass\n"
                                "def extra():\n    return Extra(*net())\n")  # fmt: skip
    torch.save(build("extra.py:extra", None, 0)[0].state_dict(), "extra.pt")
    on = "--images", "images", "--weights", "extra.pt"
    refusal(*bright(*on, net="extra.py:extra"), "_extra_state, which isn't a tensor", "give the net without")


def test_input_files_are_never_overwritten(bright, capsys):
    state = build("bright.py:net", None, 0)[0].state_dict()
    Path("out").mkdir()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, "out/halfway.safetensors")
    before = Path("out/halfway.safetensors").read_bytes()
    on = "--images", "images"
    refusal(*bright(*on, "--weights", "out/halfway.safetensors", "--out", "out"), "also read")
    refusal(*bright(*on, "--weights", "out/halfway.safetensors", "random", "--out", "out"), "also read")
    assert Path("out/halfway.safetensors").read_bytes() == before
    Path("link.safetensors").symlink_to("out/halfway.safetensors")
    typed = "merge bright.py:net out/halfway.safetensors random --images images --mean 0 --std 1 --out link.safetensors"
    refuses(capsys, typed, "also read")
    assert Path("out/halfway.safetensors").read_bytes() == before
    refusal(*bright(*on, "--labels", "folder", "--out", "images/report"), "among the class folders")
    on = "--images images --mean 0 --std 1 --train-images train --train-labels folder --out train/exact"
    class_folders("train", "abc")
    refuses(capsys, f"exact bright.py:net {on}", "among the class folders in train")
    assert not Path("train/exact").exists()
    on = "--images images --mean 0 --std 1 --fine-tune 1 --train-images exact/exact.safetensors --out exact"
    typed = "merge bright.py:net random random --images images --out m.safetensors --permuted images"
    refuses(capsys, typed, "images given as an output; allowed is a file that ends in")
    Path("out").rename("exact"), Path("exact/halfway.safetensors").rename("exact/exact.safetensors")
    refuses(capsys, f"exact bright.py:net {on}", "also read")
    Path("exact/exact.safetensors").rename("exact/model.safetensors")
    on = "--images images --mean 0 --std 1 --out ./exact/model.safetensors"
    refuses(capsys, f"merge hf:exact random random {on}", "also read")
    assert Path("exact/model.safetensors").read_bytes() == before


def test_files_of_an_older_report_are_removed_by_a_new_one(bright):
    on = "--images", "images", "--out", "out"
    assert bright(*on, "--labels", "folder", "--curve", 3)[0] == 0
    Path("out/reset.safetensors").write_bytes(b"of a net with batch norm")
    Path("out/mine.txt").write_text("mine")
    assert bright(*on)[0] == 0
    left = {path.name for path in Path("out").iterdir()}
    assert "mine.txt" in left and not left & {"classes.csv", "curve.csv", "reset.safetensors"}
    weights = [f"{i}/x.pt" for i in range(2)]
    for path in (*weights, "x-0.pt"):
        Path(path).parent.mkdir(exist_ok=True)
        torch.save(build("bright.py:net", None, 0)[0].state_dict(), path)
    assert bright(*on, "--weights", *weights, "x-0.pt")[1]["nets"] == ["x-0", "x-1", "x-0-2"]
    left = {path.name for path in Path("out").iterdir()}
    assert "barriers.csv" in left and not left & {"halfway.safetensors", "convs.csv"}
    Path("x-0.pt").rename("nets.csv.pt")
    assert bright(*on, "--weights", "nets.csv.pt", weights[0])[1]["nets"] == ["nets.csv-0", "x-1"]
    assert bright(*on)[0] == 0 and not Path("out/barriers.csv").exists()


def test_an_interrupted_report_resumes_at_its_last_layer(folder, capsys, tmp_path, monkeypatch):
    made, fork, stop = [], LayerByLayer.fork, [4]

    def interrupted(self, layers):
        made.append(layers)
        if len(made) in stop:
            raise KeyboardInterrupt
        return fork(self, layers)

    monkeypatch.setattr(LayerByLayer, "fork", interrupted)
    on = "--json", "--out", tmp_path / "out", "--weights", folder / "0.safetensors"
    assert report(capsys, folder, *on)[0] == 130 and len(made) == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.safetensors"]
    code, printed, _ = report(capsys, folder, *on)
    assert code == 0 and len(made) == 4 + 6 - 3  # three layers have two partial merges each
    assert not (tmp_path / "out" / "unfinished.safetensors").exists()
    made[:] = [None] * 4
    assert report(capsys, folder, *on)[1] == printed and len(made) == 4 + 6
    for other in (("--match-images", 20), ("--metric", f"{folder / 'my_nets.py'}:margin")):  # it starts over
        made[:] = [None] * 4
        assert report(capsys, folder, *on, *other)[0] == 0
        whole = len(made)
        made.clear()
        assert report(capsys, folder, *on)[0] == 130
        made[:] = [None] * 4
        assert report(capsys, folder, *on, *other)[0] == 0 and len(made) == whole
    stop[0], on = 10, (*on, folder / "1.safetensors")  # in the second net
    made.clear()
    assert report(capsys, folder, *on)[0] == 130
    assert report(capsys, folder, *on)[0] == 0 and len(made) == 10 + 12 - 9
    assert not list(tmp_path.rglob("unfinished*"))


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(monkeypatch):
    def interrupted(*module):
        raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "relusym.reporting.command")
    monkeypatch.delattr(reporting, "command")
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=interrupted)])
    assert reporting.main() == 130


def test_a_disk_without_room_for_images_is_reported_at_once(bright, monkeypatch):

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refusal(*bright("--images", "images"), "TMPDIR", "No space left")


@pytest.mark.parametrize("code, line", [
    ("import sys\nsys.exit(3)", "SystemExit: 3 (theirs.py, line 2)"),
    ("def net():\n    return {}['key']", "KeyError: 'key' (theirs.py, line 2)"),
    (BRIGHT + "\n\nclass Mine(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
     "        self.inner = globals()['_net']()\n    def forward(self, x):\n        raise OSError('no such thing')\n"
     "_net, net = net, Mine\n", "OSError: no such thing (theirs.py, line 23)"),
    (BRIGHT + "\n\nclass Mine(nn.Sequential):\n    def forward(self, x):\n        raise SystemExit(0)\n"
     "_net = net\ndef net():\n    return Mine(_net())\n", "SystemExit: 0 (theirs.py, line 20)"),
])  # fmt: skip
def test_an_exception_in_a_users_code_is_shown_as_theirs_with_its_line(bright, code, line):
    Path("theirs.py").write_text(code)
    refusal(*bright("--images", "images", net="theirs.py:net"), line)


def test_json_is_the_only_output_whatever_a_net_prints(in_folder, capfd):
    loud = """
import os, subprocess
print("imported")
class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()
    def forward(self, x):
        print("forward")
        os.write(1, b"written")
        return self.inner(x)
subprocess.run(["echo", "of a child"])
"""
    Path("loud.py").write_text(BRIGHT + loud)
    typed = "--mean 0 --std 1 --partial-images 0 --json --images images"
    code = main(f"report loud.py:Loud {typed}".split())
    printed = capfd.readouterr()
    assert code == 0 and json.loads(printed.out)["name"] == "Loud" and len(printed.out.splitlines()) == 1
    assert all(word in printed.err for word in ("imported", "forward", "written", "of a child"))


SHORT = "--mean 0 --std 1 --partial-images 0 --images images"


def test_what_a_net_prints_at_exit_isnt_mixed_with_the_json(in_folder, monkeypatch, capfd):
    late = "\nimport ctypes\ndef late():\n    ctypes.CDLL(None).printf(b'kept in C')\n    return net()\n"
    Path("late.py").write_text(BRIGHT + late)
    monkeypatch.setattr("sys.argv", f"relusym report late.py:late {SHORT} --json".split())
    kept = os.dup(1)
    assert main() == 0
    os.write(1, b"at the end")
    ctypes.CDLL(None).fflush(None)
    os.dup2(kept, 1), os.close(kept)
    printed = capfd.readouterr()
    assert json.loads(printed.out)["name"] == "late"
    assert "kept in C" in printed.err and "at the end" in printed.err


@pytest.mark.parametrize("more", ["", "--json"])
def test_output_that_cant_be_encoded_or_written_is_no_traceback(in_folder, monkeypatch, capfd, more):
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full, os.fdopen(writing, "w") as closed:
        for stream, lines in ((full, ["relusym: the results can't be printed"]), (closed, [])):
            monkeypatch.setattr("sys.stdout", stream)
            try:
                assert main(f"report bright.py:net {SHORT} {more}".split()) == 1
            except SystemExit as ended:  # raised by rich for a closed pipe
                assert ended.code == 1
            assert [line.partition(" (")[0] for line in capfd.readouterr().err.splitlines()] == lines


def test_names_are_shown_as_they_are_and_in_any_terminal(bright, monkeypatch):
    bracketed = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n" \
        "        self.net = nn.ModuleDict({'[red] $x$ \\x1b': net()})\n    def forward(self, x):\n" \
        "        return self.net['[red] $x$ \\x1b'](x)\n"  # fmt: skip
    Path("b[red].py").write_text(BRIGHT + bracketed)
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    typed = "--mean 0 --std 1 --partial-images 3 --images images --labels folder --out out[/red]"
    assert main(f"report b[red].py:Net {typed}".split()) == 0
    terminal.flush()
    shown = terminal.buffer.getvalue().decode("ascii")
    assert "net.[red] $x$" in shown and "out[/red]/report.html" in shown
    assert "[red] $x$" in Path("out[/red]/report.html").read_text()


def test_every_error_that_can_be_known_is_reported_before_images_are_read(bright, capsys, monkeypatch):
    monkeypatch.setattr("relusym.reporting.image_files.read", None)
    Path("file").write_text("")
    on = "--images", "images"
    refusal(*bright(*on, "--out", "file/report"), "can't be written")
    refusal(*bright(*on, "--out", "a\0b"), "NUL")
    refusal(*bright(*on, "--labels", ""), "empty")
    refusal(*bright(*on, "--out", "a" * 300), "too long")
    Path("gone").symlink_to("nowhere/at/all"), Path("circle").symlink_to("circle")
    refusal(*bright(*on, "--out", "gone"), "can't be written")
    refusal(*bright(*on, "--out", "circle"), "can't be written")
    refusal(*bright(*on, "--device", "meta"), "meta")
    refusal(*bright(*on, "--metric", "bright.py:accuracy"), "another name")
    refusal(*bright(*on, "--device", "abacus"), "abacus")
    refusal(*bright(*on, "--metric", "bright.py:f1"), "no 'f1'")
    refusal(*bright(*on, "--weights", "none.pt"), "there is no file")
    refusal(*bright(*on, "--weights", "random", "none.pt"), "there is no file none.pt")
    state = build("bright.py:net", None, 0)[0].state_dict()
    torch.save(state | {"4.bias": state["4.bias"] / 0}, "nan.pt")
    refusal(*bright(*on, "--weights", "nan.pt"), "4.bias")
    refusal(*bright(*on, net="bright.py:nut"), "no 'nut'")
    on = "--images images --mean 0 --std 1"
    refuses(capsys, f"merge bright.py:net nan.pt random {on} --out m.safetensors", "nan.pt", "4.bias")
    refuses(capsys, f"merge bright.py:net random random {on} --out m.safetensors", "has the same weights")
    torch.save(state, "right.pt")
    line = "for a net without batch norm, allowed is halfway or repaired"
    refuses(capsys, f"merge bright.py:net right.pt right.pt {on} --out m.safetensors --which reset", line)
    refuses(capsys, f"exact bright.py:net {on} --train-images none", "--train-images: there is no none")


@pytest.mark.parametrize("typed", [
    "report bright.py:net --out /proc/x", "merge bright.py:net random random --out /proc/x.safetensors",
    "exact bright.py:net --out /proc/x",
])  # fmt: skip
def test_a_place_that_takes_no_files_is_named_before_anything_is_read(in_folder, capsys, monkeypatch, typed):
    monkeypatch.setattr("relusym.reporting.net_files.build", None)
    lines = "can't be written (/proc takes no files: ", "free space or change the folder"
    refuses(capsys, f"{typed} --images images", *lines)


def test_a_class_folders_number_that_isnt_the_nets_is_warned_of(bright):
    class_folders("two", "ab")
    _, numbers, _ = bright("--images", "two", "--labels", "folder")
    assert "the net has 3 classes, and there are 2 class folders" in numbers["notes"][0]
    class_folders("four", "abc"), Path("images/a").rename("four/d")
    refusal(*bright("--images", "four", "--labels", "folder"), "labels up to 3, but the net has 3 classes")


def test_random_twice_is_two_nets_and_the_merged_net_is_read_again(bright, capsys, monkeypatch):
    traces = []
    monkeypatch.setattr("relusym.channels.traced.trace", lambda *net: traces.append(net) or trace(*net))
    on = "--images images --labels folder --mean 0 --std 1 --json"
    typed = f"merge small.py:plain random random {on} --out m.safetensors --permuted p.safetensors --curve 3"
    assert main([*typed.split(), "--which", "repaired"]) == 0 and len(traces) == 2  # each net once
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["scores"]["loss"]["net_1"] != numbers["scores"]["loss"]["net_2"]
    assert set(numbers["baselines"]) == {"ensemble", "flips"} and len(numbers["curve"]["plain"]["loss"]) == 3
    about = checkpoint.load("m.safetensors")[1]
    assert about["of"] == ["random", "random"]
    assert (about["which"], about["matching"]) == ("repaired", "activation")
    assert about["scores"] == numbers["scores"] and about["images"] == 18
    second, _ = build("small.py:plain", "random", 1)
    permuted, order = load_file("p.safetensors"), torch.tensor(numbers["permutations"]["0"])
    assert torch.equal(permuted["0.weight"], second[0].weight[order])
    again = f"merge small.py:plain m.safetensors p.safetensors {on} --out n.safetensors --which halfway"
    assert main(again.split()) == 0
    printed = capsys.readouterr()
    assert "m.safetensors is the repaired net of a merge of random and random" in printed.err
    foreign = {"relusym": json.dumps({"relusym": "1", "which": "halfway", "of": 3})}
    save_file(permuted, "foreign.safetensors", metadata=foreign)
    assert main(again.replace("p.safe", "foreign.safe").split()) == 0
    assert list(json.loads(capsys.readouterr().out)["cards"]) == ["m.safetensors"]
    cards = json.loads(printed.out)["cards"]
    assert cards["m.safetensors"] == about and cards["p.safetensors"]["which"] == "permuted"


@pytest.mark.parametrize("net, fits", [("bare", ["halfway"]), ("normed", ["reset", "halfway"])])
def test_a_net_whose_layers_cannot_hold_the_merge_is_refused_before_it_is_merged(
    bright, capsys, monkeypatch, net, fits
):
    on = "--images images --mean 0 --std 1 --out"
    typed = f"merge small.py:{net} random random {on} m.safetensors"
    with monkeypatch.context() as without:
        without.setattr("relusym.merging.merge.merge", None)
        refuses(capsys, f"{typed} --which repaired", f"allowed is {' or '.join(fits)} ")
    assert not Path("m.safetensors").exists()
    assert main(typed.split()) == 0 and checkpoint.load("m.safetensors")[1]["which"] == fits[0]
    again = f"merge small.py:{net} m.safetensors random {on}"
    capsys.readouterr()
    refuses(capsys, f"{again} m.safetensors", "also read")
    assert main(f"{again} n.safetensors".split()) == 0


@pytest.mark.parametrize(
    "missing, line", [("timm", "timm isn't installed"), ("tqdm", "No module named 'tqdm'")]
)
def test_a_package_that_cant_be_imported_is_named_with_the_reason(monkeypatch, missing, line):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("importlib.import_module", absent)
    refused(lambda: build("timm:resnet10t", "random", 0), line, "pip install 'relusym[timm]'")


def test_the_mean_over_orientations_beside_a_merge_is_over_those_of_the_symmetry(folder, capsys, tmp_path):
    weights, losses = [folder / f"{seed}.safetensors" for seed in range(2)], []
    net, _ = build(f"{folder / 'my_nets.py'}:build", str(weights[0]), 0)
    arrays = torch.load(folder / "images.pt")
    x = normalisation([0.5] * 3, [0.25] * 3)(arrays["images"])
    typed = folder / "my_nets.py:build", *weights, "--out", tmp_path / "m.safetensors", *SCALED, "--json"
    for name, symmetry in SYMMETRIES.items():
        printed = run(capsys, folder, "merge", *typed, "--labels", "folder", "--symmetry", name)[1]
        with torch.no_grad():
            logits = torch.stack([net(turned) for turned in symmetry.powers(x)]).mean(0)
        losses.append(float(nn.functional.cross_entropy(logits, arrays["labels"])))
        assert json.loads(printed)["baselines"]["flips"]["loss"] == pytest.approx(losses[-1], rel=1e-5)
    assert len({round(loss, 4) for loss in losses}) == len(SYMMETRIES) == 3


def test_nets_are_merged_without_images_by_their_weights(folder, capsys, tmp_path):
    net, out = f"{folder / 'my_nets.py'}:build", str(tmp_path / "m.safetensors")
    weights = [str(folder / f"{seed}.safetensors") for seed in range(2)]
    typed = ["merge", net, *weights, "--out", out]
    assert main([*typed, "--matching", "weight", "--size", "16", "--mean", "0.5", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    first, second, merged = map(load_file, (*weights, out))
    order = torch.tensor(numbers["permutations"]["0"])
    assert torch.allclose(merged["0.weight"], (first["0.weight"] + second["0.weight"][order]) / 2)
    assert checkpoint.load(out)[1]["matching"] == "weight"
    for more, line in (([], "--images: needed"), (["--matching", "weight"], "--size: without images"),
                       (["--matching", "weight", "--size", "16", "--which", "repaired"], "to correct")):  # fmt: skip
        assert main([*typed, *more]) == 1 and line in capsys.readouterr().err


def test_the_lie_derivative_is_reported_on_request(folder, capsys, tmp_path):
    given = "--weights", folder / "0.safetensors", "--out", tmp_path, "--json"
    numbers = json.loads(report(capsys, folder, *given)[1])
    assert "lie_derivative" not in numbers and not (tmp_path / "lie_derivative.csv").exists()
    lie = json.loads(report(capsys, folder, *given, "--lie-derivative", 8)[1])["lie_derivative"]
    rows = list(csv.DictReader((tmp_path / "lie_derivative.csv").open()))
    assert [row["layer"] for row in rows] == ["0", "2", "6", "whole net"] and lie["images"] == 8
    rotations = [of["rotation"] for of in lie["layers"].values()]
    assert [float(row["lie_rotation"]) for row in rows[:3]] == rotations
    barriers = {part["part"]: part["up_to"]["accuracy"] for part in numbers["where_it_fails"]}
    assert [float(row["up_to_accuracy"]) for row in rows[:3]] == [barriers[row["layer"]] for row in rows[:3]]
    assert float(rows[3]["lie_translation"]) == lie["total"]["translation"] > 0
    assert "the Lie derivative by layer" in (tmp_path / "report.html").read_text()


def test_several_nets_are_reported_side_by_side(folder, capsys, tmp_path):
    weights = [folder / "0.safetensors", tmp_path / "1#.pth", folder / "0.pth"]
    weights[1].write_bytes((folder / "1.pth").read_bytes())
    typed = "--labels", "folder", "--out", tmp_path, "--json", "--weights", *weights
    code, printed, _ = report(capsys, folder, *typed)
    numbers = json.loads(printed)
    names = ["0-0", "1#", "0-2"]
    assert code == 0 and numbers["nets"] == names
    matrix = numbers["barriers"]["repaired"]
    for i, name in enumerate(names):
        single = json.loads((tmp_path / name / "report.json").read_text())
        assert single == numbers["reports"][name] and single["gcnn_barrier"]["repaired"] == matrix[i][i]
        assert [row[i] for row in matrix] == matrix[i]
    assert matrix[2][0] == 0  # the same net
    assert matrix[0][1] == pytest.approx(matrix[1][2])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "1%23/report.html" in page and "3 nets side by side" in page
    rows = list(csv.reader((tmp_path / "barriers.csv").open()))
    assert rows[0] == ["net", *names] and float(rows[1][2]) == matrix[0][1]


@pytest.mark.parametrize("how, size", [
    ({"size": {"height": 224, "width": 224}, "resample": 2}, (224, 224, "bilinear", True)),
    ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
      "resample": 3}, (256, 224, "bicubic", False)),
    ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, (256, 224, "bicubic", False)),
    ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3}, (384, 384, "bicubic", True)),
    ({"size": 224, "do_resize": False}, None),
])  # fmt: skip
def test_hugging_faces_processors_define_the_preprocessing(how, size):
    preset = preset_of_processor({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **how})
    assert preset.mean == [0.5] * 3 and preset.std == [0.25] * 3
    assert preset.size == (size and Sizing(*size))
    assert preset_of_processor({"rescale_factor": 1 / 127.5, **how}) is None
    assert preset_of_processor({"do_normalize": False, **how}).std == [1.0]


def test_timms_nets_define_their_preprocessing():
    timm = pytest.importorskip("timm", reason="timm isn't installed")
    net, preset = build("timm:resnet18", "random", 0)
    assert type(net) is type(timm.create_model("resnet18"))
    assert preset == Preset((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), Sizing(235, 224, "bicubic"))
    refused(lambda: build("timm:resnet1800", "random", 0), match="timm has no net 'resnet1800'")


def test_a_net_of_an_unreachable_hub_is_refused_within_seconds(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub = f"http://127.0.0.1:{server.getsockname()[1]}"  # nobody listens on this port any more
    for key, value in {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "timm.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    line = f"timm's resnet10t can't be loaded ({hub} can't be reached: "
    refused(lambda: build("timm:resnet10t", None, 0), line, "give --weights FILE, or --weights random")
    assert os.environ.pop("HF_HUB_OFFLINE") == "1"
    assert sys.modules.pop("timm").__file__.startswith(str(tmp_path))


@pytest.mark.parametrize(
    "package, net", [("timm", "timm:resnet10t"), ("transformers", "hf:microsoft/resnet-18")]
)
def test_nets_of_a_package_are_refused_within_seconds_without_a_network(tmp_path, package, net):
    """In a new process, in which the hub's client isn't imported yet."""
    pytest.importorskip(package, reason=f"{package} isn't installed")
    typed = "import sys; from relusym.reporting.command import main; sys.exit(main(sys.argv[1:]))"
    typed = [sys.executable, "-c", typed, "report", net, "--images", tmp_path, "--out", tmp_path / "out"]
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(typed, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 1 and "127.0.0.1:9 can't be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Retrying" not in done.stderr


def test_a_folder_of_hugging_faces_is_read_without_a_network(tmp_path):
    hf = pytest.importorskip("transformers", reason="transformers isn't installed")
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7)
    made = hf.ResNetForImageClassification(config).eval()
    made.save_pretrained(tmp_path)
    how = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 32}, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(how))
    net, preset = build(f"hf:{tmp_path}", None, 0)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(logits_of(net(x)), made(x).logits, atol=1e-5)
    assert preset == Preset([0.5] * 3, [0.25] * 3, Sizing(32, 32, "bicubic"))
    other = build(f"hf:{tmp_path}", "random", 1)[0]
    assert not torch.allclose(logits_of(other(x)), made(x).logits, atol=1e-2)
    refused(lambda: build(f"hf:{tmp_path / 'none'}", None, 0), match="can't be loaded")


def broken(folder):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "damaged.pth").write_bytes(b"PK\x03\x04")
    torch.save(nn.Linear(2, 2), folder / "code.pth")
    save_file({"0.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    save_file(vgg11().state_dict(), folder / "vgg11.safetensors")
    (folder / "damaged").mkdir(exist_ok=True)
    (folder / "damaged" / "x.jpg").write_bytes(b"no image")
    (folder / "header").mkdir(exist_ok=True)
    (folder / "header" / "x.ppm").write_bytes(b"P6 4 x 255 ")
    (folder / "empty").mkdir(exist_ok=True)


NET, WEIGHTS = "my_nets.py:build", ("my_nets.py:build", "--weights")
REFUSED = {
    "no name": (("my_nets.py",), {}, "torchvision:name, timm:name or hf:name_or_folder"),
    "no file": (("nets.py:build",), {}, "there is no file"),
    "no such name": (("my_nets.py:wole",), {}, "has no 'wole'; it has whole, "),
    "arguments": (("my_nets.py:needs",), {}, "wrap it in a function"),
    "no net": (("my_nets.py:no_net",), {}, "returns int"),
    "a number": (("my_nets.py:number",), {}, "is int"),
    "broken": (("broken.py:build",), {}, "ZeroDivisionError"),
    "pointwise": (("my_nets.py:pointwise",), {}, "no spatial layer: nothing to transform"),
    "code": ((*WEIGHTS, "{}/code.pth"), {}, "could run code"),
    "damaged": ((*WEIGHTS, "{}/damaged.pth"), {}, "truncated or no checkpoint"),
    "shapes": ((*WEIGHTS, "{}/other.safetensors"), {}, "0.weight (2, 2) and not (8, 3, 3, 3)"),
    "missing": ((*WEIGHTS, "{}/vgg11.safetensors"), {}, "missing: 0.weight, 0.bias"),
    "not normalised": ((NET,), {"scaled": ()}, "give --mean and --std"),
    "means": ((NET,), {"scaled": ("--mean", 0, 0, "--std", 1)}, "--mean: 2 values given"),
    "stds": ((NET,), {"scaled": ("--mean", 0, "--std", 1, 1)}, "--std: 2 values given; allowed is one per channel"),
    "std": ((NET,), {"scaled": ("--mean", 0, "--std", 0)}, "positive std"),
    "nan": ((NET,), {"scaled": ("--mean", "nan", "--std", 1)}, "finite mean"),
    "levels": ((NET,), {"scaled": ("--mean", 124, 116, 104, "--std", 58, 57, 57)}, "divide mean and std by 255"),
    "no images": ((NET,), {"images": "empty"}, "holds no images"),
    "nowhere": ((NET,), {"images": "nowhere"}, "there is no"),
    "no image": ((NET,), {"images": "damaged"}, "x.jpg can't be read"),
    "no size": ((NET,), {"images": "header"}, "x.ppm can't be read"),
    "no classes": ((NET, "--labels", "folder"), {"images": "flat"}, "one folder per class"),
    "splits": ((NET, "--labels", "folder"), {"images": "splits"},
     "are splits, Train and val, not classes; give one of them, such as "),
    "other file": ((NET,), {"images": "my_nets.py"}, "allowed is a folder"),
    "labels": ((NET, "--labels", "{}/none.txt"), {}, "one number per image"),
    "metric": ((NET, "--metric", "{}/my_nets.py:whole"), {}, "one number per image"),
    "no metric": ((NET, "--metric", "f1"), {}, "file.py:fn"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_users_error_is_one_line_and_exit_code_1(capsys, folder, tmp_path, case):
    broken(folder)
    (net, *typed), options, line = REFUSED[case]
    out = () if "--out" in typed else ("--out", tmp_path / "out")
    typed = [text.format(folder) if isinstance(text, str) else text for text in typed]
    code, printed, lines = report(capsys, folder, *typed, *out, net=net, **options)
    assert (code, printed, len(lines)) == (1, "", 1) and lines[0].startswith("relusym: "), lines
    assert line in lines[0] and not (tmp_path / "out").exists()


MISUSE = {
    "": "the following arguments are required: report | merge | exact",
    "report": "the following arguments are required: net, --images",
    "merge net a --images x --out m": "the weights of at least two nets are needed",
    "report net --images x --symmetry twist": "--symmetry: invalid choice: 'twist'",
    "report net --images x --matching telepathy": "--matching: invalid choice: 'telepathy'",
    "report net --images x --curve 1": "--curve: 1 given; allowed is at least 2",
    "report net --images x --size 0": "--size: 0 given; allowed is at least 1",
    "report net --images x --size 1 2 3": "--size: one number, or two",
    "report net --images x --size 224 256": "--size: one number, or two",
    f"report net --images x --batch-size {10**23}": f"--batch-size: {10**23} given; allowed is at most",
    f"report net --images x --seed {2**63}": f"--seed: {2**63} given; allowed is at most {2**63 - 1}",
}


@pytest.mark.parametrize("typed", MISUSE)
def test_misuse_ends_with_2_and_the_reason(capsys, typed):
    with pytest.raises(SystemExit) as ended:
        main(typed.split())
    lines = capsys.readouterr().err
    assert ended.value.code == 2 and "usage: relusym" in lines and MISUSE[typed] in lines.splitlines()[-1]


HELP = {
    "": ("a net encodes a symmetry", "merge nets of one architecture", "make the exact GCNN of a net"),
    "report": ("file.py:callable", "--weights", "--images", "--labels", "--mean", "--out", "flipped self"),
    "merge": ("file.py:callable", "at least two", "--images", "--labels", "--mean", "--out", "--which"),
    "exact": ("file.py:callable", "--weights", "--images", "--labels", "--mean", "--out", "--fine-tune"),
}


@pytest.mark.parametrize("command", HELP)
def test_each_help_text_is_enough_to_begin(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and [words for words in HELP[command] if words not in printed] == []
