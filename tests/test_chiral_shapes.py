from dataclasses import replace

import pytest
import torch

from relusym.data.chiral_shapes import SHAPES, draw, generate, render
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES


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


def test_no_pixel_tells_an_image_from_a_mirrored_one():
    """Mean of (image minus mirror image), in standard errors: its square averages to 1 over the pixels."""
    images = generate(4000, 10, 1)[0].images.double()
    difference = (images - images.flip(2))[:, :, :16]  # the right half is the left half's negative
    errors = difference.mean(0) / (difference.std(0) / len(images) ** 0.5)
    assert 0.5 < errors.square().mean() < 2  # 29 if no image is mirrored


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda symmetry: symmetry.name)
def test_generated_images_are_moved_by_each_power_of_their_symmetry_as_often(symmetry):
    labels = torch.arange(10).repeat(200)
    scenes = draw(labels, generator(0, "a test"), symmetry)
    n, p = len(labels), 1 / symmetry.order
    counts = scenes.power.bincount(minlength=symmetry.order).double()
    assert len(counts) == symmetry.order and ((counts - n * p).abs() < 4 * (n * p * (1 - p)) ** 0.5).all()
    few = replace(scenes, **{name: of[:50] for name, of in vars(scenes).items()})
    images = render(few, symmetry)
    moved = render(replace(few, power=(few.power + 1) % symmetry.order), symmetry)
    assert torch.equal(moved, symmetry.act(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_images_that_are_invariant_to_nothing_stand_upright():
    free, flipped = (generate(60, 10, 0, symmetry)[0].images for symmetry in (None, HORIZONTAL_FLIP))
    as_drawn = (free == flipped).flatten(1).all(1)
    assert (as_drawn ^ (free == flipped.flip(2)).flatten(1).all(1)).all() and 15 < as_drawn.sum() < 45


def test_some_classes_are_chiral_and_no_class_turned_or_mirrored_is_another():
    drawn = {name: torch.tensor([[c == "#" for c in row] for row in d.split()]) for name, d in SHAPES.items()}
    for name, one in drawn.items():
        for other, shape in drawn.items():
            for symmetry in SYMMETRIES.values():
                turned = symmetry.powers(one)[1:]
                assert name == other or not any(torch.equal(power, shape) for power in turned)
    for name in ("zigzag", "hook"):
        assert not torch.equal(HORIZONTAL_FLIP.act(drawn[name]), drawn[name])
