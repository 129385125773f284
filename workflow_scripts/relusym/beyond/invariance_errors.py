"""The relative invariance error over images of each kind that the paper may have measured it on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from relusym.beyond import declaration
from relusym.record_types import Fields, NotNegative, Share, Shares


class Options(declaration.Selection):
    """The invariance error on other images, since the paper doesn't say which it used."""


class Accuracy(Shares):
    net: Share


class Errors(Fields):
    """Over all test images, all training images, and a random crop of each training image, as in training."""

    test: NotNegative
    train: NotNegative
    crops: NotNegative


class Body(Fields):
    accuracy: Accuracy
    invariance_error: Errors


def settings(section: dict, model: str, upstream: dict[str, Any], snapshots: list[int]) -> dict[str, Any]:
    """Nothing is merged."""
    return {"merging": {}}


def measure(job: declaration.Job) -> dict[str, Any]:
    """The fields of `Body` for one net."""
    import torch

    from relusym.data.augmentation import Augmented
    from relusym.evaluation.invariance import invariance_error
    from relusym.evaluation.metrics import accuracy
    from relusym.randomness import generator

    (net,), ((model, seed),) = job.nets, job.names
    padding = job.settings["trained"][0].get("training", {}).get("crop_padding", 0)
    augmented = Augmented(job.train.images, padding, None, normalise=lambda pixels: pixels)
    every = torch.arange(len(job.train.labels), device=job.device)
    crops = augmented.batch(every, generator(seed, model, "crops"))
    trained_on = {"train": job.train.images, "crops": crops}
    on = {"test": job.test} | {name: replace(job.test, pixels=pixels) for name, pixels in trained_on.items()}
    return {
        "accuracy": {"net": accuracy(net, job.test, job.labels)},
        "invariance_error": {
            name: invariance_error(net, images, job.symmetry) for name, images in on.items()
        },
    }


MEASUREMENT = declaration.Measurement(Options, Body, measure, settings)
