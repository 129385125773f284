import shutil
from functools import partial

import pytest
import torch
from conftest import refused
from PIL import Image
from small_training import CPU, image_tree
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from relusym import data
from relusym.data import image_set
from relusym.data.augmentation import (
    MEAN,
    STD,
    Augmented,
    crop_transform,
    normalise,
    random_crops,
    random_views,
    view_transform,
)
from relusym.data.batches import ImageFiles, ImagesOnDevice
from relusym.data.chiral_shapes import generate
from relusym.data.folder import open_image
from relusym.measuring.loading import normalise_of
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, VERTICAL_FLIP

EACH = HORIZONTAL_FLIP, VERTICAL_FLIP, QUARTER_TURN
SYMMETRIES = pytest.mark.parametrize("symmetry", EACH, ids=lambda s: s.name)


def power(image, symmetry, k):
    """τᵏ of images (…, H, W, 3)."""
    for _ in range(k):
        image = symmetry.act(image.movedim(-1, 0)).movedim(0, -1)
    return image


def test_crops_and_flips_are_those_of_a_plain_loop():
    images = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8)
    augmented, index = Augmented(images, 2, HORIZONTAL_FLIP), torch.tensor([3, 0, 11, 3])
    got = augmented.batch(index, torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(0)
    top, left = torch.randint(5, (2, 4, 1), generator=random)
    mirrored = torch.rand((4, 1), generator=random) < 0.5
    assert mirrored.any() and not mirrored.all()
    for i, k in enumerate(index.tolist()):
        padded = nn.functional.pad(images[k], (0, 0, 2, 2, 2, 2))
        crop = padded[top[i] : top[i] + 8, left[i] : left[i] + 8]
        crop = crop.flip(1) if mirrored[i] else crop
        assert torch.equal(got[i], normalise(crop[None])[0])
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_by_cifar10s_mean_and_std():
    images = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    expected = (255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(normalise(images)[0, :, 0, 0], expected)


def test_a_normalisation_in_the_config_is_used_in_training_and_measuring():
    scale = {"mean": [0.5] * 3, "std": [0.25, 0.5, 1]}
    scaling = normalise_of({"dataset": "cifar10", "normalisation": scale})
    images = torch.randint(0, 256, (8, 6, 6, 3), dtype=torch.uint8)
    scaled = images.permute(0, 3, 1, 2) / 255
    expected = (scaled - 0.5) / torch.tensor([0.25, 0.5, 1])[:, None, None]
    torch.testing.assert_close(scaling(images), expected)
    how = {"batch_size": 8, "seed": 0, "name": "a", "symmetry": None}
    batches = ImagesOnDevice(images, torch.arange(8), 8, normalise=scaling, **how)
    (((view,), drawn),) = batches.epoch(0)
    torch.testing.assert_close(view, expected[drawn])
    assert normalise_of({"dataset": "cifar10"}) is normalise


class Made(TorchDispatchMode):
    """Counts tensors made from Python numbers, whose copy to a GPU makes the CPU wait until the GPU is idle."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_a_batch_makes_no_tensor_that_synchronises_with_a_gpu():
    images = torch.randint(0, 256, (24, 8, 8, 3), dtype=torch.uint8)
    batches = ImagesOnDevice(images, torch.arange(24), 24, batch_size=8, seed=0, name="a", crop_padding=2)
    steps = batches.epoch(0)
    with torch.inference_mode():
        first = normalise(images)  # makes constants that later calls with gradients share
    with Made() as made:
        next(steps), next(steps), normalise(images)
        assert made.count == 0
        torch.tensor([1.0])
        assert made.count == 1
    assert first.is_inference() and not next(steps)[0][0].is_inference()


@SYMMETRIES
def test_each_image_gets_a_random_power_of_the_symmetry(symmetry):
    images = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8)
    index, random = torch.arange(12).repeat(40), torch.Generator().manual_seed(0)
    got = Augmented(images, 1, symmetry).batch(index, random)
    random.manual_seed(0)
    top, left = torch.randint(3, (2, 480, 1), generator=random)
    counts = torch.zeros(symmetry.order)
    for i, k in enumerate(index.tolist()):
        padded = nn.functional.pad(images[k], (0, 0, 1, 1, 1, 1))
        crop = padded[top[i] : top[i] + 8, left[i] : left[i] + 8]
        powers = [normalise(power(crop, symmetry, k)[None])[0] for k in range(symmetry.order)]
        same = [torch.equal(got[i], moved) for moved in powers]
        counts += torch.tensor(same)
    assert counts.sum() == 480 and counts.min() > 0.7 * 480 / symmetry.order


def test_quarter_turns_of_images_that_are_not_square_are_refused():
    images = torch.zeros(2, 8, 9, 3, dtype=torch.uint8)
    line = "quarter_turn: images of 9×8 pixels have to be square"
    refused(lambda: Augmented(images, 0, QUARTER_TURN), match=line)
    assert Augmented(images, 0, VERTICAL_FLIP).batch(torch.arange(2), generator(0)).shape == (2, 3, 8, 9)


def test_a_batch_larger_than_the_set_is_refused():
    some = generate(20, 10, 0)[0]
    line = "batch_size: 21 is more than the 20 training images"
    refused(lambda: ImagesOnDevice(some.images, some.labels, 10, batch_size=21, seed=0, name="a"), match=line)


def test_views_differ_from_image_to_image_and_from_draw_to_draw():
    image = generate(10, 10, 0)[0].images[:1].repeat(6, 1, 1, 1)
    for draw in (random_views, partial(random_crops, area=(0.2, 1.0))):
        views = draw(image, generator(0, "a"), symmetry=HORIZONTAL_FLIP)
        assert views.shape == (6, 32, 32, 3) and views.min() >= 0 and views.max() <= 255.01
        assert all((views[0] - view).abs().max() > 10 for view in views[1:])
        assert not torch.equal(views, draw(image, generator(0, "b"), symmetry=HORIZONTAL_FLIP))
        assert torch.equal(views, draw(image, generator(0, "a"), symmetry=HORIZONTAL_FLIP))


@SYMMETRIES
def test_a_crop_of_the_whole_image_is_the_image_moved_by_a_power_of_the_symmetry(symmetry):
    images = torch.randint(0, 256, (24, 17, 17, 3), dtype=torch.uint8)
    crops = random_crops(images, generator(0, "a"), (2.0, 2.0), symmetry)  # larger than the image: all of it
    differences = [(crops - power(images, symmetry, k).float()).abs() for k in range(symmetry.order)]
    same = torch.stack([difference.amax((1, 2, 3)) < 0.01 for difference in differences])
    assert (same.sum(0) == 1).all() and same.any(1).all()


@pytest.mark.parametrize("transform", [crop_transform, view_transform])
def test_views_of_files_are_moved_by_powers_of_the_symmetry(transform):
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 10))  # the upper half
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        bright = transform(16, QUARTER_TURN)(image).float().mean(0)
        sides = [bright[:4].mean(), bright[:, :4].mean(), bright[-4:].mean(), bright[:, -4:].mean()]
        seen.add(int(torch.stack(sides).argmax()))
    assert seen == {0, 1, 2, 3}


def test_scaling_commutes_with_flipping():
    some = generate(50, 10, 0)[0]
    scaled = image_set.resized(some, 33)
    mirrored = image_set.resized(image_set.ImageSet(some.images.flip(2), some.labels, some.classes, ""), 33)
    assert scaled.images.shape == (50, 33, 33, 3)
    difference = (scaled.images.flip(2).int() - mirrored.images.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01  # halves round to even numbers
    assert image_set.resized(some, 32) is some


@pytest.mark.parametrize("views", [1, 2])
def test_processes_share_every_batch_of_the_whole(views):
    some = generate(60, 10, 0)[0]

    def epoch(rank, processes, start=0):
        how = {"batch_size": 20, "seed": 0, "name": "a", "views": views, "crop_padding": 2}
        batches = ImagesOnDevice(some.images, some.labels, 10, rank=rank, processes=processes, **how)
        return list(batches.epoch(3, start))

    whole, shares = epoch(0, 1), [epoch(0, 2), epoch(1, 2)]
    assert len(whole) == 3
    for (some_views, labels), first, other in zip(whole, *shares, strict=True):
        assert torch.equal(labels[0::2], first[1]) and torch.equal(labels[1::2], other[1])
        for view, a, b in zip(some_views, first[0], other[0], strict=True):
            assert torch.equal(view[0::2], a) and torch.equal(view[1::2], b)
    (later,) = epoch(0, 1, start=2)
    assert all(torch.equal(a, b) for a, b in zip(later[0], whole[2][0], strict=True))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return image_tree(tmp_path_factory.mktemp("imagenet"))


def test_prepared_images_are_torchvisions_evaluation_images(tree, tmp_path):
    from torchvision.transforms import v2

    how = {"kind": "imagenet", "root": str(tree), "resize": 36, "size": 33, "train_images": 10, "seed": 0}
    data.prepare(how, tmp_path / "a.safetensors")
    train, test = (image_set.load(tmp_path / "a.safetensors", split) for split in ("train", "test"))
    assert train.images.shape == (10, 33, 33, 3) and test.images.shape == (24, 33, 33, 3)
    assert test.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and test.classes == ("n01", "n02", "n03")
    assert (train.images.float().mean((1, 2)).argmax(1) == train.labels).all()
    image = Image.open(tree / "val" / "n02" / "3.png")
    expected = v2.Compose([v2.Resize(36), v2.CenterCrop(33), v2.PILToTensor()])(image)
    assert torch.equal(test.images[11], expected.permute(1, 2, 0))
    image_set.save(tmp_path / "c.safetensors", train, test)
    assert data.digest(tmp_path / "a.safetensors") == data.digest(tmp_path / "c.safetensors")
    data.prepare(how | {"resize": 40}, tmp_path / "b.safetensors", workers=2)
    assert not torch.equal(image_set.load(tmp_path / "b.safetensors", "test").images, test.images)


def test_too_few_images_and_differing_classes_are_named(tree, tmp_path):
    how = {"kind": "imagenet", "root": str(tree), "resize": 36, "size": 33, "train_images": 9, "seed": 0}
    line = r"99 images are asked for, but .* has only 24"
    refused(lambda: data.prepare(how | {"train_images": 99}, tmp_path / "a"), match=line)
    (tmp_path / "val" / "n01").mkdir(parents=True)
    (tmp_path / "val" / "n01" / "0.png").write_bytes((tree / "val" / "n01" / "0.png").read_bytes())
    line = r"differ in 2 classes, such as n02"
    refused(lambda: data.prepare(how | {"val": str(tmp_path / "val")}, tmp_path / "a"), match=line)
    nowhere = how | {"root": str(tmp_path / "none")}
    refused(lambda: data.prepare(nowhere, tmp_path / "a", key="my.imagenet"), "set my.imagenet.root")
    assert not (tmp_path / "a").exists()


def labels_and_views(root, number, start=0, **how):
    arguments = {"batch_size": 8, "seed": 0, "name": "a"} | how
    return list(ImageFiles(root / "train", 33, CPU, **arguments).epoch(number, start))


@pytest.mark.parametrize("views", [1, 2])
def test_image_files_are_the_same_for_any_number_of_processes_and_workers_and_after_a_restart(tree, views):
    whole = labels_and_views(tree, 1, views=views)
    assert len(whole) == 3 and all(len(batch[0]) == views for batch in whole)
    assert sorted(torch.cat([batch[1] for batch in whole]).tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    shares = [labels_and_views(tree, 1, views=views, rank=rank, processes=2) for rank in (0, 1)]
    by_workers = labels_and_views(tree, 1, views=views, workers=2)
    (later,) = labels_and_views(tree, 1, 2, views=views)
    for wanted, got in zip(whole, by_workers, strict=True):
        assert torch.equal(wanted[1], got[1]) and all(map(torch.equal, wanted[0], got[0]))
    assert all(map(torch.equal, whole[2][0], later[0]))
    for step, (some_views, labels) in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(labels[rank::2], share[step][1])
            assert all(torch.equal(a[rank::2], b) for a, b in zip(some_views, share[step][0], strict=True))


def test_each_epoch_reads_files_in_another_order_and_draws_other_views(tree):
    first, second = (labels_and_views(tree, number) for number in (0, 1))
    assert not torch.equal(torch.cat([b[1] for b in first]), torch.cat([b[1] for b in second]))
    again = labels_and_views(tree, 0)
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_from_worker_processes_too(tree, tmp_path, workers):
    shutil.copytree(tree, tmp_path / "tree")
    for i in range(8):
        (tmp_path / "tree" / "train" / "n01" / f"{i}.png").write_bytes(b"no image")
    line = r"^image .*\.png can't be read \(.*\): replace or remove it$"
    refused(lambda: labels_and_views(tmp_path / "tree", 0, workers=workers), match=line)
    how = {
        "kind": "imagenet",
        "root": str(tmp_path / "tree"),
        "resize": 36,
        "size": 33,
        "train_images": 24,
        "seed": 0,
    }
    refused(lambda: data.prepare(how, tmp_path / "a", workers=workers), match=line)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name, content", [
    ("a.ppm", b"P6\n16"), ("a.pgm", b"P5 16 16 25Q"), ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + bytes(9)),
])  # fmt: skip
def test_every_damaged_image_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(
        lambda: open_image(tmp_path / name),
        match=rf"^image .*{name} can't be read \(.*\): replace or remove it$",
    )
