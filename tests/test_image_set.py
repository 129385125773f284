import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import python, refused, save_images
from PIL import Image

from relusym import checkpoint, data
from relusym.data import folder, image_set
from relusym.data.chiral_shapes import SHAPES, draw, generate, render
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES


@pytest.fixture
def tree(tmp_path):
    """A folder tree of images: two classes, three training and two test images each."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            save_images(tmp_path / split / name, random.integers(0, 256, (count, 8, 8, 3), np.uint8))
    return tmp_path


def test_images_too_large_to_open_have_no_extent_and_are_named_when_they_are_prepared(tree, monkeypatch):
    spec = {"kind": "folder", "root": str(tree)}
    assert data.extent_of(spec, tree / "none") == data.Extent(6, (8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert data.extent_of(spec, tree / "none") is None
    refused(lambda: data.prepare(spec, tree / "mine.safetensors"), match="0.png can't be read")


def test_a_folder_is_read_in_the_order_of_names(tree):
    train, test, _ = folder.read(tree)
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.labels.tolist() == [0, 0, 1, 1]
    with Image.open(tree / "train" / "dog" / "1.png") as image:
        assert np.array_equal(train.images[4].numpy(), np.asarray(image))


def test_splits_may_have_any_names(tree):
    (tree / "test").rename(tree / "held out")
    assert len(folder.read(tree, "train", "held out")[1].labels) == 4


def test_saved_images_are_loaded_unchanged(tree, tmp_path):
    train, test, _ = folder.read(tree)
    image_set.save(tmp_path / "set.safetensors", train, test)
    for split, wanted in (("train", train), ("test", test)):
        got = image_set.load(tmp_path / "set.safetensors", split, source="my images")
        assert torch.equal(got.images, wanted.images) and torch.equal(got.labels, wanted.labels)
        assert (got.classes, got.source) == (wanted.classes, "my images")


def without_classes(tree):
    for folder_of_class in (tree / "train").iterdir():
        folder_of_class.rename(tree / folder_of_class.name)


def without_images(tree):
    for path in (tree / "train" / "cat").iterdir():
        path.unlink()


def with_bytes(change):
    """Change some bytes of an image."""

    def damage(tree):
        path = tree / "train" / "dog" / "2.png"
        path.write_bytes(change(path.read_bytes()))

    return damage


def with_image(where, image):
    return lambda tree: image().save(tree / where)


def with_a_pipe(tree):
    path = tree / "train" / "dog" / "2.png"
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "no folder": (lambda tree: tree / "nowhere", r"nowhere is missing: set data\.root"),
    "no split": (lambda tree: (tree / "test").rename(tree / "tset"),
     "test is missing: set data.train and data.test"),
    "no classes": (without_classes, "train is empty"),
    "other classes": (lambda tree: (tree / "test" / "dog").rename(tree / "test" / "wolf"),
     "differ in the classes dog, wolf"),
    "no images": (without_images, "cat holds no images"),
    "no image": (with_bytes(lambda whole: b"no picture"),
     r"dog/2\.png can't be read \(.*\): replace or remove"),
    "pipe": (with_a_pipe, r"2\.png can't be read \(.*Not a file.*\): replace or remove it"),
    "truncated": (with_bytes(lambda whole: whole[:90]), r"2\.png can't be read"),
    "16 bits": (with_image("train/dog/2.png", lambda: Image.new("I;16", (8, 8), 40_000)),
     r"dog/2\.png has more than 8 bits per channel \(mode I;16"),
    "32 bits": (with_image("train/dog/2.tif", lambda: Image.new("F", (8, 8), 0.5)),
     r"dog/2\.tif has more than 8 bits per channel \(mode F"),
    "bomb": (with_image("train/dog/2.png", lambda: Image.new("1", (20_000, 20_000))),
     r"dog/2\.png can't be read \(.*decompression bomb.*\): replace or remove it"),
    "other size": (with_image("test/cat/1.png", lambda: Image.new("RGB", (9, 8))),
     r"cat/1\.png is 9×8 pixels, not 8×8 as"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "line"), DAMAGES.values(), ids=DAMAGES)
def test_a_fault_of_a_folder_is_named_in_one_line_and_nothing_is_written(tree, damage, line):
    root, to = damage(tree), tree / "set.safetensors"
    root = root if root == tree / "nowhere" else tree
    refused(lambda: data.prepare({"kind": "folder", "root": str(root)}, to), match=line)
    assert not to.exists()


def test_skipped_and_converted_files_of_a_folder_of_images_are_listed(tmp_path):
    for split in ("train", "test"):
        images = Image.new("L", (40, 40), 7), Image.new("RGBA", (40, 40), (1, 2, 3, 4))
        save_images(tmp_path / split / "cat", images)
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    (tmp_path / "train" / "Thumbs.db").touch()
    lines = data.prepare({"kind": "folder", "root": str(tmp_path)}, tmp_path / "set.safetensors")
    train, test = tmp_path / "train", tmp_path / "test"
    first, *converted, last = lines
    files = f"{train / 'Thumbs.db'}, {train / 'cat' / 'notes.txt'}"
    assert first == f"skipped, since they aren't images: {files}"
    modes = [(split, mode) for split in (train, test) for mode in ("L", "RGBA")]
    assert converted == [f"{split}: 1 images of mode {mode} were converted to RGB" for split, mode in modes]
    assert last == f"{tmp_path}: images of 40×40 pixels are kept as they are; image_size scales them"
    pixels = image_set.load(tmp_path / "set.safetensors", "train").images[:, 0, 0].tolist()
    assert pixels == [[7, 7, 7], [1, 2, 3]]


def test_a_label_of_no_class_is_refused(tmp_path):
    images, labels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 7])
    split = image_set.ImageSet(images, labels, ("cat",), "my images")
    line = r"^the train images of my images have the label 7 and 1 classes"
    refused(lambda: image_set.save(tmp_path / "set.safetensors", split, split), match=line)


@pytest.mark.parametrize("spec, line", [
    ({"kind": "mnist"}, r"^data\.kind: 'mnist' given; allowed is one of generated, .*folder"),
    ({"kind": "folder"}, r"^data: the key 'root' is missing"),
    ({"kind": "folder", "root": 3},
     r"^data\.root: 3 given; allowed is text, in quotes: YAML takes this for a number"),
    ({"kind": "folder", "root": "a", "tset": "b"},
     r"^data: unknown key 'tset', is it 'test'\?; allowed are root, train, test"),
])  # fmt: skip
def test_invalid_data_settings_are_refused(spec, line):
    refused(lambda: data.check(spec), match=line)


@pytest.fixture
def prepared(tree, tmp_path):
    path = tmp_path / "set.safetensors"
    data.prepare({"kind": "folder", "root": str(tree)}, path)
    return path


def test_the_digest_depends_on_the_images_and_not_on_their_place(tree, prepared, tmp_path):
    digest = data.digest(prepared)
    train, test, _ = folder.read(tree)
    image_set.save(tmp_path / "other.safetensors", test=test, train=train)
    assert data.digest(tmp_path / "other.safetensors") == digest
    tensors, about = checkpoint.load(prepared)
    checkpoint.save(tmp_path / "reversed.safetensors", dict(reversed(tensors.items())), about)
    assert image_set.load(tmp_path / "reversed.safetensors", "train").classes == train.classes
    others = [replace(train, labels=train.labels.flip(0)), replace(train, images=train.images.flip(0))]
    others += [replace(train, classes=("cat", "wolf"))]
    for other in others:
        image_set.save(tmp_path / "other.safetensors", other, test)
        assert data.digest(tmp_path / "other.safetensors") != digest


@pytest.mark.parametrize("place", [b"cat", "splits", "train_images", "train_labels"])
def test_one_changed_byte_in_prepared_images_is_noticed(prepared, place):
    whole = bytearray(prepared.read_bytes())
    if place == b"cat":
        where = whole.index(place)
    elif place == "splits":
        where = whole.index(b"train", whole.index(b"splits")) + 12
    else:
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        where = 8 + length + header[place]["data_offsets"][1] - 8
    whole[where] = ord("0") if whole[where] != ord("0") else ord("1")
    prepared.write_bytes(whole)
    line = r"set\.safetensors isn't what was prepared .*delete it"
    refused(lambda: image_set.load(prepared, "train"), match=line)


def test_the_digest_is_read_without_torch(prepared):
    code = "import sys\nfrom relusym import data\nprint(data.digest(sys.argv[1]))\nassert 'torch' not in sys.modules"
    assert python(code, prepared).strip() == data.digest(prepared)


def test_a_subset_is_a_seeded_choice_without_repetition(tree):
    train, *_ = folder.read(tree)
    chosen = image_set.subset(train, 4, seed=1)
    assert torch.equal(chosen.images, image_set.subset(train, 4, seed=1).images)
    others = [image_set.subset(train, 4, seed).images for seed in range(2, 8)]
    assert not all(torch.equal(chosen.images, other) for other in others)
    assert len(chosen.images.flatten(1).unique(dim=0)) == 4
    assert image_set.subset(train, None, seed=1) is train
    refused(lambda: image_set.subset(train, 7, seed=1), match="7 images are asked for")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (generate(60, 20, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert not torch.equal(a.images, c.images)
    assert first[0].images.shape == (60, 32, 32, 3) and first[0].images.dtype == torch.uint8


def test_classes_are_balanced_and_train_and_test_have_no_image_in_common():
    train, test = generate(100, 50, 0)
    assert train.labels.bincount().tolist() == [10] * 10 and test.labels.bincount().tolist() == [5] * 10
    assert len(torch.cat([train.images, test.images]).flatten(1).unique(dim=0)) == 150


def test_no_pixel_distinguishes_images_from_mirrored_ones():
    """Mean of (image minus mirror image), in standard errors: its square averages to 1 over the pixels."""
    images = generate(4000, 10, 1)[0].images.double()
    difference = (images - images.flip(2))[:, :, :16]  # the right half is the negative of the left half
    errors = difference.mean(0) / (difference.std(0) / len(images) ** 0.5)
    assert 0.5 < errors.square().mean() < 2  # 29 if no image is mirrored


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda symmetry: symmetry.name)
def test_generated_images_are_moved_equally_often_by_each_power_of_their_symmetry(symmetry):
    labels = torch.arange(10).repeat(200)
    scenes = draw(labels, generator(0, "a test"), symmetry)
    n, p = len(labels), 1 / symmetry.order
    counts = scenes.power.bincount(minlength=symmetry.order).double()
    assert len(counts) == symmetry.order and ((counts - n * p).abs() < 4 * (n * p * (1 - p)) ** 0.5).all()
    few = replace(scenes, **{name: of[:50] for name, of in vars(scenes).items()})
    images = render(few, symmetry)
    moved = render(replace(few, power=(few.power + 1) % symmetry.order), symmetry)
    assert torch.equal(moved, symmetry.act(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_images_that_are_invariant_to_nothing_are_upright():
    free, flipped = (generate(60, 10, 0, symmetry)[0].images for symmetry in (None, HORIZONTAL_FLIP))
    as_drawn = (free == flipped).flatten(1).all(1)
    assert (as_drawn ^ (free == flipped.flip(2)).flatten(1).all(1)).all() and 15 < as_drawn.sum() < 45


def test_some_classes_are_chiral_and_no_class_turned_or_mirrored_is_another():
    drawn = {name: torch.tensor([[c == "#" for c in row] for row in d.split()]) for name, d in SHAPES.items()}
    for name, drawing in drawn.items():
        for other, shape in drawn.items():
            for symmetry in SYMMETRIES.values():
                turned = symmetry.powers(drawing)[1:]
                assert name == other or not any(torch.equal(power, shape) for power in turned)
    for name in ("zigzag", "hook"):
        assert not torch.equal(HORIZONTAL_FLIP.act(drawn[name]), drawn[name])
