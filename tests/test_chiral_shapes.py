"""The demo's generated images."""

from dataclasses import replace

import torch

from relusym.data.chiral_shapes import CLASSES, SHAPES, draw, generate, render
from relusym.randomness import generator


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (generate(60, 20, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert not torch.equal(a.images, c.images)
    assert first[0].images.shape == (60, 32, 32, 3) and first[0].images.dtype == torch.uint8


def test_classes_are_balanced_and_train_and_test_have_no_image_in_common():
    train, test = generate(100, 50, 0)
    assert train.labels.bincount().tolist() == [10] * 10 and test.labels.bincount().tolist() == [5] * 10
    together = torch.cat([train.images, test.images]).flatten(1)
    assert len(together.unique(dim=0)) == 150


def test_mirroring_is_a_fair_coin_and_flips_the_image_exactly():
    labels = torch.arange(10).repeat(200)
    scenes = draw(labels, generator(0, "a test"))
    assert abs(scenes.power.double().mean() - 0.5) < 4 * 0.5 / 2000**0.5
    images = render(scenes)
    assert torch.equal(render(replace(scenes, power=1 - scenes.power)), images.flip(2))


def test_no_pixel_tells_an_image_from_a_mirrored_one():
    """Mean of (image minus mirror image), in standard errors: its square averages to 1 over the pixels."""
    images = generate(4000, 10, 1)[0].images.double()
    difference = (images - images.flip(2))[:, :, :16]  # the right half is the left half's negative
    errors = difference.mean(0) / (difference.std(0) / len(images) ** 0.5)
    assert 0.5 < errors.square().mean() < 2  # 29 if no image is mirrored


def test_some_classes_are_chiral_and_no_class_is_the_mirror_image_of_another():
    mirror = {name: " ".join(row[::-1] for row in drawing.split()) for name, drawing in SHAPES.items()}
    assert mirror["zigzag"] != SHAPES["zigzag"] and mirror["hook"] != SHAPES["hook"]
    for name in CLASSES:
        for other in CLASSES:
            assert name == other or mirror[name] != SHAPES[other]
