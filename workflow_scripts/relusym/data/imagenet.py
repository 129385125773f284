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

from relusym.data.batches import image_folder
from relusym.errors import UserError
from relusym.randomness import generator
from relusym.records import write_whole

BATCH = 64  # images that a worker decodes before it hands them over


def prepare(
    train: Path,
    val: Path,
    to: Path,
    *,
    resize: int,
    size: int,
    train_images: int,
    seed: int,
    source: str,
    workers: int,
) -> None:
    """Write a file as `image_set.save` does: a seeded choice of the training images, and all validation images.

    Each is resized to `resize` on its shorter side and cropped to `size` × `size` at its centre, as torchvision's
    presets for evaluation do. The file is written as it grows, and later mapped into memory, not read into it.

    Raises:
        UserError: a folder is missing, the splits differ in their classes, or there are fewer training images.
    """
    from torchvision.transforms import v2  # here, since it doubles the start-up of every job

    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])
    splits = {"train": image_folder(train, transform), "test": image_folder(val, transform)}
    classes = splits["train"].classes
    if differing := sorted(set(classes) ^ set(splits["test"].classes)):
        raise UserError(
            f"ImageNet: {train} and {val} differ in {len(differing)} classes, such as {differing[0]}"
        )
    have = len(splits["train"])
    if train_images > have:
        raise UserError(
            f"{train_images:,} images are asked for, but {train} has only {have:,}: ask for fewer"
        )
    order = torch.randperm(have, generator=generator(seed, "ImageNet", "chosen images"))[:train_images]
    chosen = {"train": Subset(splits["train"], order.tolist()), "test": splits["test"]}
    layout = {f"{split}_labels": ("int64", (len(some),)) for split, some in chosen.items()}
    layout |= {f"{split}_images": ("uint8", (len(some), size, size, 3)) for split, some in chosen.items()}
    about = {"classes": classes, "source": f"{source}, resized to {resize}, cropped to {size}"}
    with _in_pieces(to, layout, about) as arrays:
        for split, some in chosen.items():
            done = 0
            for images, labels in DataLoader(some, BATCH, num_workers=workers, collate_fn=_collate):
                part = slice(done, done + len(labels))
                arrays[f"{split}_images"][part], arrays[f"{split}_labels"][part] = images, labels
                done += len(labels)


def _collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in samples]).permute(0, 2, 3, 1)
    return images, torch.tensor([label for _, label in samples])


@contextmanager
def _in_pieces(
    path: str | Path, layout: dict[str, tuple[str, tuple[int, ...]]], about: dict[str, Any]
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays to fill, on disk and not in memory, that become a file like `checkpoint.save`'s at the end.

    Args:
        layout: name → type ("uint8" or "int64") and shape; int64 ones first, so that all are aligned.
        about: as in `checkpoint.save`.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    names = {"uint8": "U8", "int64": "I64"}  # in safetensors' headers
    header: dict[str, Any] = {"__metadata__": {"relusym": json.dumps(about)}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with write_whole(path) as part:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, not as a crash later
                os.posix_fallocate(file.fileno(), start, offset)
            file.truncate(start + offset)
        arrays = {
            name: np.memmap(part, dtype, "r+", start + header[name]["data_offsets"][0], shape)
            for name, (dtype, shape) in layout.items()
        }
        yield arrays
        for array in arrays.values():
            array.flush()
