"""ImageNet's images for measuring: decoded, resized and cropped once, into one file like the small data sets'."""

import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from relusym.data.folder import image_folder
from relusym.data.image_set import SPLITS, SplitHash, header
from relusym.errors import UserError
from relusym.randomness import generator
from relusym.whole_files import write_whole

BATCH = 64  # images that a worker decodes before it hands them over


def prepare(
    to: Path,
    *,
    root: str,
    train: str,
    val: str,
    resize: int,
    size: int,
    train_images: int,
    seed: int,
    workers: int,
    key: str,
) -> None:
    """Write a file as `image_set.save` does: a seeded choice of the training images, and all validation images.

    Each is resized to `resize` on its shorter side and cropped to `size` × `size` at its centre, as torchvision's
    presets for evaluation do. The file is written as it grows, and later mapped into memory, not read into it.
    UserError if a folder is missing, the splits differ in their classes, or there are fewer training images.
    """
    from torchvision.transforms import v2  # here, since it doubles the start-up of every job

    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])
    folders = {split: Path(root) / folder for split, folder in zip(SPLITS, (train, val), strict=True)}
    splits = {split: image_folder(folder, transform, key) for split, folder in folders.items()}
    classes = splits["train"].classes
    if differing := sorted(set(classes) ^ set(splits["test"].classes)):
        raise UserError(
            f"ImageNet: {folders['train']} and {folders['test']} differ in {len(differing)} classes, such as "
            f"{differing[0]}"
        )
    have = len(splits["train"])
    if train_images > have:
        raise UserError(
            f"{train_images:,} images are asked for, but {folders['train']} has only {have:,}: ask for fewer"
        )
    order = torch.randperm(have, generator=generator(seed, "ImageNet", "chosen images"))[:train_images]
    chosen = {"train": Subset(splits["train"], order.tolist()), "test": splits["test"]}
    layout = {f"{split}_labels": ("int64", (len(some),)) for split, some in chosen.items()}
    layout |= {f"{split}_images": ("uint8", (len(some), size, size, 3)) for split, some in chosen.items()}
    about = header(classes, dict.fromkeys(SPLITS, "0" * 64))  # the digests are known at the end
    with _in_pieces(to, layout, about) as arrays:
        for split, some in chosen.items():
            done, digest = 0, SplitHash()
            for images, labels in DataLoader(some, BATCH, num_workers=workers, collate_fn=_collate):
                part = slice(done, done + len(labels))
                arrays[f"{split}_images"][part], arrays[f"{split}_labels"][part] = images, labels
                digest.update(images.numpy(), labels.numpy())
                done += len(labels)
            about["splits"][split] = digest.hexdigest(classes)
        about |= header(classes, about["splits"])


def _collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in samples]).permute(0, 2, 3, 1)
    return images, torch.tensor([label for _, label in samples])


@contextmanager
def _in_pieces(
    path: str | Path, layout: dict[str, tuple[str, tuple[int, ...]]], about: dict[str, Any]
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays to fill, on disk and not in memory, that become a file like `checkpoint.save`'s at the end.

    `layout`: name → type ("uint8" or "int64") and shape; int64 ones first, so that all are aligned. `about`: as in
    `checkpoint.save`; may change until the end, but not in length.
    """
    types = {"uint8": "U8", "int64": "I64"}  # in safetensors' headers
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": types[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end

    def head() -> bytes:
        text = json.dumps({"__metadata__": {"relusym": json.dumps(about)}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    start = len(head())
    with write_whole(path) as part:
        with part.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, not as a crash later
                os.posix_fallocate(file.fileno(), 0, start + offset)
            file.truncate(start + offset)
        arrays = {
            name: np.memmap(part, dtype, "r+", start + entries[name]["data_offsets"][0], shape)
            for name, (dtype, shape) in layout.items()
        }
        yield arrays
        for array in arrays.values():
            array.flush()
        with part.open("r+b") as file:
            file.write(head())
