"""The command `relusym`: nets, weights and images from files, what it prints and writes, and what it refuses."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_nets import smooth_images, vgg11
from torch import nn

from relusym import checkpoint
from relusym.evaluation.images import normalisation
from relusym.merging.identities import largest_difference
from relusym.reporting.command import main
from relusym.reporting.net_files import build, load_weights
from relusym.symmetry import HORIZONTAL_FLIP

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of nets, weights, and images: in class folders, in one folder, and as arrays."""
    made = tmp_path_factory.mktemp("command")
    (made / "my_nets.py").write_text(NETS)
    pixels = smooth_images(24, 16)
    for i, image in enumerate(pixels.numpy()):
        for to in (f"photos/{'ab'[i % 2]}", "flat"):
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
            net[6].bias -= net(x).mean(0)  # so that it tells images apart
        state = net.state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, made / f"{seed}.safetensors")
        wrapped = {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
        torch.save(wrapped, made / f"{seed}.pth")
    return made


def run(capsys, folder, *arguments, images="photos"):
    """Exit code, output, and the lines of the error stream."""
    code = main([*map(str, arguments), "--images", str(folder / images)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


def report(capsys, folder, *arguments, net="my_nets.py:build", images="photos", scaled=SCALED):
    given = "--partial-images", 8, "--batch-size", 10, *scaled, *arguments
    return run(capsys, folder, "report", folder / net, *given, images=images)


# ---- report


@pytest.mark.slow(seconds=2)
def test_a_report_is_one_screen_and_a_folder(capsys, folder, tmp_path):
    out = tmp_path / "report"
    code, printed, told = report(
        *(capsys, folder, "--weights", folder / "0.safetensors", "--labels", "folder", "--out", out)
    )
    assert (code, told) == (0, ["relusym: classes: 0 a, 1 b"])
    printed = " ".join(printed.split())
    assert "build merged halfway with itself flipped left to right" in printed
    assert "0 of stride 2 meets 16 pixels" in printed and str(out / "report.html") in printed
    assert {path.name for path in out.iterdir()} == {
        *(
            "report.html",
            "report.json",
            "permuted.safetensors",
            "halfway.safetensors",
            "repaired.safetensors",
        ),
        *(f"{table}.csv" for table in ("nets", "layers", "convs", "where_it_fails", "grid", "classes")),
    }
    numbers = json.loads((out / "report.json").read_text())
    rows = {path.stem: list(csv.DictReader(path.open())) for path in out.glob("*.csv")}
    assert (
        [row["layer"] for row in rows["layers"]]
        == [layer["name"] for layer in numbers["layers"]]
        == ["0", "2"]
    )
    assert [row["conv"] for row in rows["convs"]] == ["0", "2"]
    assert [row["part"] for row in rows["where_it_fails"]] == ["0", "2", "6"]
    assert float(rows["nets"][0]["accuracy"]) == numbers["accuracy"]
    (misfit,) = rows["grid"]
    assert (misfit["layer"], misfit["stride"], misfit["meets"], misfit["image_pixels"]) == (
        "0",
        "2",
        "16",
        "1",
    )
    assert numbers["grid"]["next_size"] == 17


@pytest.mark.slow(seconds=2)
def test_the_page_stands_alone_and_needs_no_script(capsys, folder, tmp_path):
    report(capsys, folder, "--out", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "url(" not in page and "@import" not in page and "$" not in page
    assert page.count("data:image/svg+xml;base64,") == 6
    assert "agreement" in page and "can&#x27;t be equivariant" in page


@pytest.mark.slow(seconds=2)
def test_json_is_one_object_with_every_number_and_no_screen(capsys, folder, tmp_path):
    code, printed, told = report(capsys, folder, "--json", "--out", tmp_path, "--labels", "folder")
    assert (code, told) == (0, []) and json.loads(printed) == json.loads(
        (tmp_path / "report.json").read_text()
    )


@pytest.mark.slow(seconds=1)
def test_saved_nets_are_those_that_were_measured(capsys, folder, tmp_path):
    report(capsys, folder, "--weights", folder / "0.safetensors", "--out", tmp_path)
    net, _ = build(f"{folder / 'my_nets.py'}:build", str(folder / "0.safetensors"), 0)
    flipped, permuted, halfway = (HORIZONTAL_FLIP.transform(net) for _ in range(3))
    load_weights(permuted, str(tmp_path / "permuted.safetensors"))
    load_weights(halfway, str(tmp_path / "halfway.safetensors"))
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert largest_difference(permuted(x), flipped(x)) < 1e-5
        mean = (net[0].weight + permuted[0].weight) / 2
        assert torch.allclose(halfway[0].weight, mean)
    assert checkpoint.load(tmp_path / "halfway.safetensors")[1]["which"] == "halfway"


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("given", ["images.npz", "images.pt", "flat"])
def test_images_may_be_files_as_well(capsys, folder, tmp_path, given):
    options = ("--out", tmp_path, "--json", "--weights", folder / "0.safetensors")
    labels = ("--labels", folder / "labels.txt") if given == "flat" else ()
    first = json.loads(report(capsys, folder, *options, "--labels", "folder")[1])
    # class folders are in another order, so that channels are matched on images in another order
    other = json.loads(report(capsys, folder, *options, *labels, images=given)[1])
    assert other["labelled"] and other["accuracy"] == first["accuracy"]
    assert other["invariance_error"] == pytest.approx(first["invariance_error"], rel=1e-5)
    assert other["permutations"] == first["permutations"]


@pytest.mark.slow(seconds=3)
def test_a_metric_of_ones_own_is_in_every_table(capsys, folder, tmp_path):
    metric = "--metric", f"{folder / 'my_nets.py'}:margin"
    code, printed, _ = report(capsys, folder, "--out", tmp_path, *metric)
    assert code == 0 and "margin" in printed
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert set(numbers["scores"]) == {"accuracy", "loss", "margin"}
    assert "up_to_margin" in (tmp_path / "where_it_fails.csv").read_text()


@pytest.mark.slow(seconds=6)
def test_the_same_seed_gives_the_same_report(capsys, folder, tmp_path):
    options = "--json", "--out", tmp_path, "--limit", 13
    runs = [report(capsys, folder, *options, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert json.loads(runs[0])["images"] == 13


@pytest.mark.slow(seconds=2)
def test_photos_are_resized_and_cropped(capsys, folder, tmp_path):
    for i, size in enumerate(((40, 30), (30, 50))):
        Image.new("L", size, 90 * i).save(tmp_path / f"{i}.jpg")  # grey files are read as RGB
    options = "--out", tmp_path / "out", "--json"
    code, printed, _ = report(
        capsys, tmp_path, *options, "--size", 20, 17, net=folder / "my_nets.py:build", images=""
    )
    assert code == 0 and json.loads(printed)["image_shape"] == [3, 17, 17]
    code, _, told = report(capsys, tmp_path, *options, net=folder / "my_nets.py:build", images="")
    assert code == 1 and "give --size" in told[0] and "40×30" in told[0] and "30×50" in told[0]


# ---- merge


def test_merge_writes_the_merged_net(capsys, folder, tmp_path):
    out = tmp_path / "merged.safetensors"
    nets = folder / "my_nets.py:build", folder / "0.safetensors", folder / "1.pth"
    code, printed, told = run(capsys, folder, "merge", *nets, "--out", out, *SCALED)
    assert (code, told) == (0, []) and "halfway, with REPAIR" in printed
    assert load_file(out).keys() == load_file(folder / "0.safetensors").keys()
    code, printed, _ = run(
        capsys, folder, "merge", *nets, "--out", out, *SCALED, "--json", "--which", "halfway"
    )
    numbers = json.loads(printed)
    assert numbers["written"] == "halfway" and set(numbers["barrier"]) == {"halfway", "repaired"}
    first, second = (load_file(folder / f"{seed}.safetensors") for seed in range(2))
    order = torch.tensor(numbers["permutations"]["0"])
    assert torch.allclose(load_file(out)["0.weight"], (first["0.weight"] + second["0.weight"][order]) / 2)


def test_a_net_merged_with_itself_is_itself(capsys, folder, tmp_path):
    out, weights = tmp_path / "merged.safetensors", folder / "0.safetensors"
    given = folder / "my_nets.py:build", weights, weights, "--out", out, "--which", "halfway"
    assert run(capsys, folder, "merge", *given, *SCALED)[0] == 0
    assert all(torch.allclose(tensor, load_file(weights)[key]) for key, tensor in load_file(out).items())


# ---- nets and weights


def test_nets_are_named_in_three_ways(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    nets = [
        build(spec, None, 0)[0]
        for spec in (f"{folder}/my_nets.py:build", "my_nets:build", f"{folder}/my_nets.py:net")
    ]
    assert all(isinstance(net, nn.Sequential) and not net.training for net in nets)
    net, preset = build("torchvision:squeezenet1_1", "random", 0)
    assert type(net).__name__ == "SqueezeNet" and preset is None


@pytest.mark.parametrize("name", ["0.safetensors", "0.pth"])
def test_weights_are_found_behind_wrappers_and_prefixes(folder, name):
    net, _ = build(f"{folder}/my_nets.py:build", str(folder / name), 5)
    known = load_file(folder / "0.safetensors")
    assert all(torch.equal(tensor, known[key]) for key, tensor in net.state_dict().items())


# ---- what is refused


def broken(folder):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "damaged.pth").write_bytes(b"PK\x03\x04")
    torch.save(nn.Linear(2, 2), folder / "code.pth")
    save_file({"0.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    save_file(vgg11().state_dict(), folder / "vgg11.safetensors")
    (folder / "damaged").mkdir(exist_ok=True)
    (folder / "damaged" / "x.jpg").write_bytes(b"no image")
    (folder / "empty").mkdir(exist_ok=True)


REFUSED = {
    "no name": (("my_nets.py",), {}, "file.py:callable, module:callable, torchvision:name, timm:name or hf:name_or_folder"),
    "no file": (("nets.py:build",), {}, "there is no file"),
    "no such name": (("my_nets.py:made",), {}, "has no 'made'; it has nn, build"),
    "arguments": (("my_nets.py:needs",), {}, "wrap it in a function"),
    "no net": (("my_nets.py:no_net",), {}, "returns int"),
    "a number": (("my_nets.py:number",), {}, "is int"),
    "broken": (("broken.py:build",), {}, "ZeroDivisionError"),
    "pointwise": (("my_nets.py:pointwise",), {}, "no spatial layer: nothing to transform"),
    "no weights": (("my_nets.py:build", "--weights", "{}/none.pth"), {}, "there is no file"),
    "code": (("my_nets.py:build", "--weights", "{}/code.pth"), {}, "could run code"),
    "damaged": (("my_nets.py:build", "--weights", "{}/damaged.pth"), {}, "truncated or no checkpoint"),
    "shapes": (
        ("my_nets.py:build", "--weights", "{}/other.safetensors"),
        {},
        "0.weight (2, 2) and not (8, 3, 3, 3)",
    ),
    "missing": (
        ("my_nets.py:build", "--weights", "{}/vgg11.safetensors"),
        {},
        "missing: 0.weight, 0.bias",
    ),
    "not normalised": (("my_nets.py:build",), {"scaled": ()}, "give --mean and --std"),
    "means": (("my_nets.py:build",), {"scaled": ("--mean", 0, 0, "--std", 1)}, "--mean has 2"),
    "std": (("my_nets.py:build",), {"scaled": ("--mean", 0, "--std", 0)}, "positive std"),
    "no images": (("my_nets.py:build",), {"images": "empty"}, "holds no images"),
    "nowhere": (("my_nets.py:build",), {"images": "nowhere"}, "there is no"),
    "no image": (("my_nets.py:build",), {"images": "damaged"}, "x.jpg can't be read"),
    "no classes": (("my_nets.py:build", "--labels", "folder"), {"images": "flat"}, "one folder a class"),
    "other file": (("my_nets.py:build",), {"images": "my_nets.py"}, "allowed is a folder"),
    "labels": (("my_nets.py:build", "--labels", "{}/none.txt"), {}, "one number an image"),
    "device": (("my_nets.py:build", "--device", "abacus"), {}, "abacus"),
    "metric": (("my_nets.py:build", "--metric", "{}/my_nets.py:whole"), {}, "one number an image"),
    "no metric": (("my_nets.py:build", "--metric", "f1"), {}, "file.py:fn"),
    "out": (("my_nets.py:build", "--out", "{}/labels.txt/report"), {}, "can't be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_users_error_is_one_line_and_exit_code_1(capsys, folder, tmp_path, case):
    broken(folder)
    (net, *given), options, told = REFUSED[case]
    out = () if "--out" in given else ("--out", tmp_path / "out")
    given = [text.format(folder) if isinstance(text, str) else text for text in given]
    code, printed, lines = report(capsys, folder, *given, *out, net=net, **options)
    assert (code, printed, len(lines)) == (1, "", 1) and lines[0].startswith("relusym: "), lines
    assert told in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("report",),
        ("report", "net", "--images", "x", "--symmetry", "twist"),
        ("merge", "net", "a", "--images", "x"),
    ]
    + [
        ("report", "net", "--images", "x", "--size", size, *more) for size, *more in (("0",), ("1", "2", "3"))
    ],
)
def test_misuse_ends_with_2(capsys, given):
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2 and "usage: relusym" in capsys.readouterr().err


def test_help_is_enough_to_begin(capsys):
    for given in (("--help",), ("report", "--help"), ("merge", "--help")):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "file.py:callable" in printed and "--labels" in printed
