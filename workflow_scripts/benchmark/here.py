"""This project's side of the benchmark, as its workflow trains and merges; `plain` has the same two functions."""

from collections.abc import Sequence

import torch

from relusym.data.augmentation import normalise
from relusym.data.batches import ImagesOnDevice
from relusym.data.image_set import ImageSet
from relusym.evaluation.images import Images
from relusym.memory import keep_freed_memory
from relusym.merging import merge as merging
from relusym.nets.vgg import VGG11
from relusym.training import loop
from relusym.training.recipe import Recipe

torch.set_flush_denormal(True)
keep_freed_memory()


def train(net: VGG11, images: ImageSet, recipe: Recipe, device: torch.device, workers: int) -> None:
    labelled = images.images.to(device), images.labels.to(device), len(images.classes)
    options = {"batch_size": recipe.batch_size, "crop_padding": recipe.crop_padding, "name": "benchmark"}
    batches = ImagesOnDevice(*labelled, seed=torch.initial_seed(), **options)
    loop.train(net, batches, recipe, device=device)


def merge(
    nets: Sequence[VGG11], images: ImageSet, test: ImageSet, batch: int, device: torch.device, workers: int
) -> tuple[dict[str, list[int]], dict[str, float]]:
    nets = [net.to(memory_format=torch.channels_last) for net in nets]
    some, tests = (Images(split.images.to(device), batch, normalise) for split in (images, test))
    merged = (merging.flip_merge if len(nets) == 1 else merging.merge)(*nets, some, tests, test.labels)
    return merged.permutations, merged.accuracy
