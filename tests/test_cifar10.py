import errno
import hashlib
import http.server
import json
import pickle
import re
import struct
import tarfile
import threading
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from public_files import official_cifar10
from test_resnet_weights import Payload
from torchvision import datasets

from relusym import checkpoint, cifar10, data
from relusym.data import Extent, image_set, known_extent
from relusym.records.fields import images_of
from relusym.reporting import image_files
from relusym.reporting.command import main

COUNT = 20  # images per batch, in place of 10,000
BATCHES = [*cifar10.BATCHES["train"], *cifar10.BATCHES["test"]]
VERSIONS = cifar10.VERSIONS


@pytest.fixture(autouse=True)
def small(request, monkeypatch):
    """Batches of `COUNT` images, except in the tests of the real files."""
    if "real" not in request.fixturenames:
        monkeypatch.setattr(cifar10, "IN_A_BATCH", COUNT)


def some_images():
    """Pixels, (20, 32, 32, 3), and labels of each batch."""
    random = np.random.default_rng(0)

    def batch():
        pixels = random.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
        return pixels, random.permutation(np.arange(COUNT) % 10)

    return {name: batch() for name in BATCHES}


def planes(pixels):
    """(N, 32, 32, 3) → (N, 3072): reds, greens, blues."""
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)


def python2_pickle(value):
    """A pickle as from Python 2 and its NumPy, like the official files: strings without an encoding, protocol 2."""

    def written(value):
        match value:
            case str():
                return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")
            case int():
                return b"J" + struct.pack("<i", value)
            case list():
                return b"](" + b"".join(map(written, value)) + b"e"
            case dict():
                return b"}(" + b"".join(written(part) for item in value.items() for part in item) + b"u"
            case np.ndarray():
                shape = b"".join(map(written, value.shape)) + b"\x86"
                made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
                kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + written(-1) * 2 + b"K\x00tb"
                value = written(value.tobytes().decode("latin1"))
                return made + b"(K\x01" + shape + kind + b"\x89" + value + b"tb"

    return b"\x80\x02" + written(value) + b"."


def binary_files(images=None, classes=cifar10.CLASSES):
    rows = {
        f"{name}.bin": np.concatenate([labels[:, None].astype(np.uint8), planes(pixels)], 1).tobytes()
        for name, (pixels, labels) in (images or some_images()).items()
    }
    return rows | {"batches.meta.txt": ("\n".join(classes) + "\n\n").encode()}


def python_files(images=None, classes=cifar10.CLASSES, write=python2_pickle):
    batches = {
        name: write({"batch_label": name, "labels": labels.tolist(), "data": planes(pixels)})
        for name, (pixels, labels) in (images or some_images()).items()
    }
    about = {"num_cases_per_batch": COUNT, "label_names": list(classes), "num_vis": 3072}
    return batches | {"batches.meta": write(about)}


FILES = {"binary": binary_files, "python": python_files}


def put(to, files):
    to.mkdir(parents=True)
    for name, contents in files.items():
        (to / name).write_bytes(contents)
    return to


def pack(to, files, inside, mode="w:gz"):
    with tarfile.open(to, mode) as archive:
        for name, contents in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(contents)
            archive.addfile(member, BytesIO(contents))
    return to


def prepared(source, root, tmp_path, **options):
    to = tmp_path / "images.safetensors"
    assert data.prepare({"kind": source, "root": str(root), **options}, to, key="cifar10") == []
    return to


def refusal(source, root, tmp_path):
    line = refused(lambda: prepared(source, root, tmp_path))
    assert not (tmp_path / "images.safetensors").exists()
    return line


@pytest.fixture
def digest(tmp_path):
    """The digest of the small images, computed without the code that reads the official files."""
    images = list(some_images().values())
    splits = [image_set.ImageSet(
        torch.from_numpy(np.concatenate([pixels for pixels, _ in some])),
        torch.from_numpy(np.concatenate([labels for _, labels in some])), cifar10.CLASSES,
    ) for some in (images[:5], images[5:])]  # fmt: skip
    image_set.save(tmp_path / "wanted.safetensors", *splits)
    return data.digest(tmp_path / "wanted.safetensors")


@pytest.mark.parametrize("source", VERSIONS)
@pytest.mark.parametrize("form", ["folder", "parent", "renamed", "archive", "in a folder", "tar"])
def test_both_official_versions_give_the_same_bytes_in_the_official_order(tmp_path, digest, source, form):
    version, files = VERSIONS[source], FILES[source]()
    # not in alphabetical order, as in the official archives
    files = dict(sorted(files.items(), key=lambda item: hashlib.md5(item[0].encode()).digest()))
    if form in ("folder", "parent", "renamed"):
        at = put(tmp_path / "root" / (version.folder if form != "renamed" else "mine"), files)
        root = at.parent if form == "parent" else at
    else:
        name, mode = ("mine.tar", "w") if form == "tar" else (version.archive, "w:gz")
        (tmp_path / "root").mkdir()
        at = pack(tmp_path / "root" / name, files, version.folder, mode)
        root = at.parent if form == "in a folder" else at
    to = prepared(source, root, tmp_path)
    assert data.digest(to) == digest
    wanted, written = ((tmp_path / name).read_bytes() for name in ("wanted.safetensors", to.name))
    assert written == wanted


@pytest.fixture
def torchvisions(tmp_path, monkeypatch):
    """torchvision's class, with the small archive in place of its download."""
    archive = pack(tmp_path / "cifar-10-python.tar.gz", python_files(), "cifar-10-batches-py")
    official, sums = datasets.CIFAR10, {n: hashlib.md5(c).hexdigest() for n, c in python_files().items()}
    served = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(official, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(official, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(official, "test_list", [[name, sums[name]] for name in BATCHES[5:]])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": sums["batches.meta"]})
    yield archive
    server.shutdown()
    server.server_close()


def test_torchvision_downloads_the_same_files_once_and_repairs_damaged_ones(tmp_path, digest, torchvisions):
    root = tmp_path / "root"
    assert data.digest(prepared("torchvision", root, tmp_path)) == digest
    shown = datasets.CIFAR10(root, train=False)  # how other code reads these files
    ours = image_set.load(tmp_path / "images.safetensors", "test")
    assert np.array_equal(shown.data, ours.images.numpy()) and shown.targets == ours.labels.tolist()
    torchvisions.unlink()
    assert data.digest(prepared("torchvision", root, tmp_path, download=False)) == digest
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    assert data.digest(prepared("torchvision", root, tmp_path)) == digest  # from the archive kept there
    (root / "cifar-10-batches-py" / "data_batch_2").unlink()
    line = r"^CIFAR10 isn't available in .*root .*not found or corrupted.*set cifar10\.root"
    refused(lambda: prepared("torchvision", root, tmp_path, download=False), match=line)


def tree(root, name="{index:05}"):
    """A folder per class; `name` makes an image's name from its index in the split and within its class."""
    for split, batches in cifar10.BATCHES.items():
        images = zip(*(some_images()[batch] for batch in batches), strict=True)
        pixels, labels = map(np.concatenate, images)
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            to = root / split / cifar10.CLASSES[label]
            to.mkdir(parents=True, exist_ok=True)
            within = int((labels[:index] == label).sum())
            Image.fromarray(image).save(to / f"{name.format(index=index, within=within)}.png")
    return root


def test_a_folder_has_the_same_digest_only_if_names_define_the_order(tmp_path, digest, monkeypatch):
    known = checkpoint.load_arrays(tmp_path / "wanted.safetensors", names=())[1]["splits"]
    monkeypatch.setattr(cifar10, "SPLIT_DIGESTS", known)

    def prepare(root):
        data.prepare({"kind": "folder", "root": str(root)}, tmp_path / "images.safetensors")
        to = tmp_path / "images.safetensors"
        return image_set.load(to, "train"), data.digest(to)

    for kind, name in (("padded", "{index:05}"), ("kaggle", "{index}"), ("worded", "image_{index}_of_many")):
        assert prepare(tree(tmp_path / kind, name))[1] == digest
    images, other = prepare(tree(tmp_path / "within", "{within:04}"))
    assert other != digest and images.labels.tolist() == sorted(images.labels.tolist())  # by class
    cats = tree(tmp_path / "changed") / "test" / "cat"
    Image.new("RGB", (32, 32)).save(min(cats.iterdir()))
    images, other = prepare(cats.parents[1])
    assert other != digest and image_set.split_digest(images) == known["train"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_from_python_3_and_a_newer_numpy_are_read_too(tmp_path, digest, protocol):
    files = python_files(write=partial(pickle.dumps, protocol=protocol))
    root = put(tmp_path / "cifar-10-batches-py", files)
    assert data.digest(prepared("python", root, tmp_path)) == digest


def test_the_extent_is_known_before_the_images_are_read():
    for source in cifar10.SOURCES:
        assert known_extent({"kind": source, "root": "nowhere"}) == Extent(50_000, (32, 32), 10_000)


@pytest.fixture
def real():
    return official_cifar10()


@pytest.mark.slow(seconds=15)
def test_the_official_files_have_the_digest_in_the_code(real, tmp_path):
    source, at = real
    assert data.digest(prepared(source, at, tmp_path)) == cifar10.DIGEST
    splits = cifar10.read(at, source)
    images = {
        name: tuple(part[10_000 * i : 10_000 * (i + 1)] for part in splits[split])
        for split, names in cifar10.BATCHES.items()
        for i, name in enumerate(names)
    }
    other = "python" if source == "binary" else "binary"
    version = VERSIONS[other]
    archive = pack(tmp_path / version.archive, FILES[other](images), version.folder, "w")
    assert data.digest(prepared(other, archive, tmp_path)) == cifar10.DIGEST
    mean = splits["train"][0].mean((0, 1, 2)) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)  # the values in the literature


def test_the_digest_of_a_data_set_combines_those_of_its_splits():
    assert image_set.header(cifar10.CLASSES, cifar10.SPLIT_DIGESTS)["digest"] == cifar10.DIGEST


def again(files, batch, change=lambda images: None, **how):
    """The files again, with changed images or other classes."""
    images = some_images()
    change(images)
    files |= FILES["binary" if batch.endswith(".bin") else "python"](images, **how)


def one_more(images):
    images["data_batch_3"] = tuple(np.concatenate([part, part[:1]]) for part in images["data_batch_3"])


def another_label(images):
    images["data_batch_3"][1][3] = 10


WRONG = {  # how the files are damaged (`one`: the third batch), and the lines for the binary and the Python version
    "missing": (lambda files, batch: files.pop(batch),
     (r"lacks data_batch_3(\.bin)?: ", r"lacks data_batch_3: ")),
    "truncated": (lambda files, batch: files.update({batch: files[batch][:-100]}),
     (r"data_batch_3\.bin has 61,360 bytes, but a batch of CIFAR10 has 61,460: ", "data_batch_3 is truncated")),
    "empty": (lambda files, batch: files.update({batch: b""}),
     (r"data_batch_3\.bin has 0 bytes", r"data_batch_3 is truncated or damaged \(EOFError\)")),
    "another size": (lambda files, batch: again(files, batch, one_more),
     (r"data_batch_3\.bin has 64,533 bytes",
      r"data_batch_3 has data uint8 \(21, 3072\), but a batch of CIFAR10 has uint8 \(20, 3072\): ")),
    "another label": (lambda files, batch: again(files, batch, another_label),
     (r"data_batch_3(\.bin)? has the label 10, but CIFAR10 has 0 to 9",) * 2),
    "other classes": (lambda files, batch: again(files, batch, classes=("plane", *cifar10.CLASSES[1:])),
     (r"batches\.meta.*: the classes are plane, automobile, .*, truck, not CIFAR10's",) * 2),
    "no classes": (lambda files, batch: files.pop(next(file for file in files if "meta" in file)),
     (r"lacks batches\.meta\.txt: ", r"lacks batches\.meta: ")),
}  # fmt: skip


@pytest.mark.parametrize("source", VERSIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_fault_of_the_official_files_is_one_line_that_names_the_file(tmp_path, source, packed, wrong):
    version, files, (damage, lines) = VERSIONS[source], FILES[source](), WRONG[wrong]
    damage(files, f"data_batch_3{version.ending}")
    place = tmp_path / (version.archive if packed else version.folder)
    root = pack(place, files, version.folder) if packed else put(place, files)
    line = refusal(source, root, tmp_path)
    assert line.startswith(str(root)) and re.search(lines[source == "python"], line), line


@pytest.mark.parametrize("source", VERSIONS)
def test_a_truncated_archive_is_one_line_wherever_it_ends(tmp_path, source):
    version = VERSIONS[source]
    for mode in ("w:gz", "w"):
        archive = pack(tmp_path / version.archive, FILES[source](), version.folder, mode)
        whole = archive.read_bytes()
        for share in (0.001, 0.3, 0.7):
            archive.write_bytes(whole[: int(share * len(whole))])
            line = refusal(source, archive, tmp_path)
            assert "is truncated or not an archive" in line or "lacks " in line, line
        archive.write_bytes(b"<html>not found</html>")
        assert "is truncated or not an archive" in refusal(source, archive, tmp_path)


def test_missing_files_are_one_line_with_what_is_expected(tmp_path):
    line = refusal("binary", tmp_path / "nowhere", tmp_path)
    start = f"cifar10.root: {tmp_path / 'nowhere'} given; allowed is cifar-10-batches-bin/, its archive "
    assert line == f"{start}cifar-10-binary.tar.gz, or the folder that holds either"
    put(tmp_path / "nowhere" / "cifar-10-batches-py", python_files())
    there = "there is cifar-10-batches-py: set cifar10.source: python"
    assert refusal("binary", tmp_path / "nowhere", tmp_path) == f"{line} ({there})"


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path, name):
    ran = tmp_path / "ran"
    files = python_files() | {name: pickle.dumps({"data": Payload(ran), "labels": [], "label_names": []})}
    line = refusal("python", put(tmp_path / "cifar-10-batches-py", files), tmp_path)
    assert re.search(rf"{name} asks for _?io\.", line) and "refused, since it could run code" in line
    assert not ran.exists()
    pickle.loads(files[name])
    assert ran.exists()  # any other unpickler runs the code


ZEROS = np.zeros((COUNT, 3072), np.uint8)
OTHER_PICKLES = {
    "a list": ([1, 2], "holds no dict of arrays"),
    "CIFAR100": ({"data": ZEROS, "fine_labels": [0] * COUNT}, "has no entry labels"),
    "floats": ({"data": np.zeros((COUNT, 3072)), "labels": [0] * COUNT}, "has data float64"),
    "words": ({"data": ZEROS, "labels": ["cat"] * COUNT}, "has the label 'cat'"),
    "labels missing": ({"data": ZEROS, "labels": [0]}, "has no list of 20 labels"),
    "ragged": ({"data": [[1], [1, 2]], "labels": [0] * COUNT}, "has data list, but a batch"),
}


@pytest.mark.parametrize("case", OTHER_PICKLES)
def test_a_pickle_of_something_else_is_one_line(tmp_path, case):
    contents, pattern = OTHER_PICKLES[case]
    files = python_files() | {"data_batch_3": pickle.dumps(contents)}
    line = refusal("python", put(tmp_path / "cifar-10-batches-py", files), tmp_path)
    assert re.search(f"data_batch_3 .*{pattern}", line), line


OTHER = "0" * 64


@pytest.mark.parametrize("label, content, called", [
    ("CIFAR10", cifar10.DIGEST, "CIFAR10"), ("my copy", cifar10.DIGEST, "CIFAR10"),
    ("CIFAR10", OTHER, "CIFAR10?"), ("cifar-10", OTHER, "CIFAR10?"),
    ("CIFAR10 as JPEG (quality 75, 4:2:0)", OTHER, "CIFAR10 as JPEG (quality 75, 4:2:0)"),
    ("CIFAR100", OTHER, "CIFAR100"), ("my copy", OTHER, "my copy"),
])  # fmt: skip
def test_images_are_called_cifar10_by_their_content_and_not_by_their_label(label, content, called):
    assert images_of({"inputs": {"source": label, "data": content}}) == called


def read(root, **how):
    return image_files.read(str(root), **how)


@pytest.mark.parametrize("source", VERSIONS)
def test_a_report_reads_official_files_and_by_default_their_test_images(tmp_path, source, monkeypatch):
    version = VERSIONS[source]
    folder = put(tmp_path / "there" / version.folder, FILES[source]())
    archive = pack(tmp_path / "mine.tgz", FILES[source](), version.folder)
    pixels, labels = some_images()["test_batch"]
    for root in (folder, folder.parent, archive):
        images = read(root)
        order = [int(np.flatnonzero((pixels == image).all((1, 2, 3)))[0]) for image in images.pixels.numpy()]
        assert sorted(order) == list(range(COUNT)) and images.labels.tolist() == labels[order].tolist()
        assert images.classes == cifar10.CLASSES
        (note,) = images.notes
        assert "CIFAR10?: these aren't CIFAR10's test images" in note
    assert len(read(archive, split="train").pixels) == 5 * COUNT
    assert len(read(archive, limit=7).pixels) == 7
    np.save(tmp_path / "own.npy", np.arange(COUNT))
    labelled = read(folder, labels=str(tmp_path / "own.npy"))
    assert labelled.labels.tolist() == order  # the same seeded subset, by position in the file
    digest = image_set.hexdigest(pixels, labels.astype(np.int64), cifar10.CLASSES)
    monkeypatch.setattr(cifar10, "SPLIT_DIGESTS", cifar10.SPLIT_DIGESTS | {"test": digest})
    assert read(folder).notes == ()


def test_a_folder_that_cant_be_read_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    denied = Mock(side_effect=PermissionError(errno.EACCES, "Permission denied", "locked"))  # also for root
    with monkeypatch.context() as locked:
        locked.setattr(Path, "is_file", denied)
        line = r"^cifar10\.root: locked given; allowed"
        refused(lambda: cifar10.find("locked", "binary", "cifar10"), match=line)
    monkeypatch.setattr(cifar10, "recognised", denied)
    typed = f"torchvision:resnet18 --weights random --mean 0 --std 1 --images {tmp_path} --out {tmp_path}/out"
    assert main(["report", *typed.split()]) == 1
    assert capsys.readouterr().err == "relusym: locked can't be read (Permission denied): make it readable\n"


def test_what_a_report_cannot_do_with_official_files_is_one_line(tmp_path):
    folder = put(tmp_path / "cifar-10-batches-bin", binary_files())
    line = r"^--labels folder .* has its own labels, so leave the option out$"
    refused(lambda: read(folder, labels="folder"), match=line)
    line = r"^--size resizes images of a folder; those of a file are taken as they are$"
    refused(lambda: read(folder, size=[40]), match=line)
    photos = tree(tmp_path / "photos")
    refused(lambda: read(photos, split="test"), match=r"^--split: only for CIFAR10's official files")
    assert len(read(photos / "test", labels="folder").pixels) == COUNT
    other = pack(tmp_path / "other.tar.gz", {"1.png": b"", "2.png": b""}, "photos")
    line = r"other\.tar\.gz holds no batches of CIFAR10: allowed is cifar-10-binary"
    refused(lambda: read(other), match=line)
    np.save(tmp_path / "few.npy", np.arange(3))
    refused(lambda: read(folder, labels=str(tmp_path / "few.npy")), match=r"^labels: 3 given for 20 images$")


NET = """
from torch import nn

def build():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), *head)
"""


def test_the_command_reports_on_an_official_archive_with_its_labels_and_names_its_images(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    archive = pack(tmp_path / "cifar-10-python.tar.gz", python_files(), "cifar-10-batches-py")
    typed = ["report", f"{tmp_path / 'net.py'}:build", "--images", str(archive)]
    typed += ["--out", str(tmp_path / "report")]
    assert main(typed) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "give --mean and --std" in line
    assert "for CIFAR10 have --mean 0.4914 0.4822 0.4465 --std 0.247" in line
    assert main([*typed, "--mean", "0.5", "--std", "0.25", "--partial-images", "0", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["images"] == COUNT and numbers["labelled"] and "CIFAR10?: " in numbers["notes"][0]


def test_an_exact_gcnn_is_tuned_on_training_images_and_measured_on_test_images(tmp_path, capsys, monkeypatch):
    def refuse(net, shape):
        raise RuntimeError("no such operation\nin a graph")

    monkeypatch.setattr("relusym.reporting.exact.exported", refuse)
    (tmp_path / "net.py").write_text(NET)
    folder = put(tmp_path / "cifar-10-batches-bin", binary_files())
    typed = ["exact", f"{tmp_path / 'net.py'}:build", "--images", str(folder), "--out", str(tmp_path / "out")]
    typed += ["--mean", "0.5", "--std", "0.25", "--fine-tune", "1", "--batch-size", "10", "--json"]
    assert main([*typed, "--split", "train"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--split train: the net is trained on these" in line and not (tmp_path / "out").exists()
    assert main(typed) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["images"], numbers["fine_tuning"]["images"]) == (COUNT, 5 * COUNT)
    assert "doesn't support the net: no such operation" in numbers["notes"][-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"exact.safetensors", "exact.json"}
