"""Images as nets read them: the only place in this package where pixels, or users' batches, become a net's input."""

import math
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relusym.data.augmentation import Normalise, normalise
from relusym.errors import UserError, theirs
from relusym.randomness import generator

COLOURS = (1, 3)  # channels of an image, grey or RGB
AT_ONCE = 2**22  # entries of images that `pieces` leaves together
SEEN = 256  # entries of an image by which it is recognised
# Keys of batches that are dicts, such as Hugging Face's and its data sets'.
PIXELS = "pixel_values", "images", "image", "img", "inputs", "input", "x"
LABELS = "labels", "label", "targets", "target", "y"
LAYOUT = "uint8 (N, H, W, 3), or (N, H, W, 1) for a net that reads grey images"


def normalisation(mean: Sequence[float], std: Sequence[float]) -> Normalise:
    """The map from pixels to a net's input: scaled to 0…1, then by each channel's mean and std on that scale. UserError
    for a standard deviation that isn't positive, more or fewer means than standard deviations, or ones of grey levels
    0…255.
    """
    if np.ndim(mean) != 1 or np.shape(mean) != np.shape(std) or not len(mean):
        raise UserError(f"mean {mean} and std {std}: one mean and one std per channel are needed")
    if not all(math.isfinite(m) and 0 < s < math.inf for m, s in zip(mean, std, strict=True)):
        raise UserError(f"mean {mean} and std {std}: a finite mean and a positive std per channel are needed")
    if max(*mean, *std) > 1:
        raise UserError(
            f"mean {mean} and std {std}: images are scaled to 0…1 first: divide mean and std by 255"
        )
    return partial(normalise, mean=[255 * value for value in mean], std=[255 * value for value in std])


class ImageSource(ABC):
    """Images that nets are run on, batch by batch; they can be read any number of times."""

    count: int  # of batches
    shape: tuple[int, int, int]  # channels, height and width of one image

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def pairs(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Normalised batches, float32 (B, C, H, W), and their labels, or None."""

    def batches(self, device: torch.device, *, even: bool = False) -> Iterator[Tensor]:
        """Normalised batches on `device`, the last one smaller if need be; `even` ones differ by one image at most."""
        pieces = (x for x, _ in self.pairs(device))
        if not even:
            return pieces
        whole, rest = divmod(len(self), self.count)
        return _regrouped(pieces, [whole + 1] * rest + [whole] * (self.count - rest))

    def first(self, count: int, device: torch.device) -> Tensor:
        """The first images, normalised: at most `count`, and at most a batch."""
        return next(iter(self.pairs(device)))[0][:count]

    def sample(self, count: int, seed: int) -> tuple["ImageSource", Tensor]:
        """A seeded choice of `count` images, or all if there are fewer, and their indices, int64 (count,), in order.

        Those of users' batches are read once and held in memory.
        """
        if count >= len(self):
            return self, torch.arange(len(self))
        chosen = torch.randperm(len(self), generator=generator(seed, "sample"))[:count].sort().values
        return self._chosen(chosen), chosen

    @abstractmethod
    def _chosen(self, chosen: Tensor) -> "ImageSource":
        """The images at these indices."""


def _regrouped(pieces: Iterator[Tensor], sizes: Iterable[int]) -> Iterator[Tensor]:
    held = next(pieces)
    for size in sizes:
        while len(held) < size:
            held = torch.cat([held, next(pieces)])
        yield held[:size]
        held = held[size:]


@dataclass(frozen=True)
class Images(ImageSource):
    """Images held as pixels. UserError for other pixels, or none; for no `normalise`, or one that fails, is random, or
    returns something else.

    Attributes:
        pixels: uint8 (N, H, W, 3) or (N, H, W, 1), a tensor on any device or a NumPy array.
        batch_size: how many images a net reads at once; it changes results only by rounding.
        normalise: uint8 (B, H, W, C) → float32 (B, C, H, W), as `normalisation` makes it. It depends on the net,
            so there is no default.
    """

    pixels: Tensor
    batch_size: int = 500
    normalise: Normalise | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", as_pixels(self.pixels))
        if not isinstance(self.batch_size, Integral) or self.batch_size < 1:
            raise UserError(f"batch_size: {self.batch_size} given; allowed is a whole number, at least 1")
        if self.normalise is None:
            raise UserError(
                "Images: it isn't known how pixels become the net's input: give normalise=normalisation(mean, std) of "
                "the net"
            )
        try:
            x, pair = (self.normalise(self.pixels[:count]) for count in (1, 2))
        except Exception as error:  # the user's own code may raise anything
            raise UserError(f"Images: normalise fails: {theirs(error)}") from error
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        if kind != f"torch.float32 {(1, *self.shape)}":
            raise UserError(
                f"Images: normalise returns {kind} for an image; float32 {(1, *self.shape)} is needed"
            )
        if not x.isfinite().all():
            raise UserError("Images: what normalise returns isn't finite")
        if not torch.allclose(x, pair[:1], atol=1e-4):
            raise UserError("Images: what normalise returns is random, or depends on other images")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def count(self) -> int:
        return -(-len(self) // self.batch_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.pixels.shape[3], *self.pixels.shape[1:3])

    def pairs(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        return ((self.normalise(piece.to(device)), None) for piece in self.pixels.split(self.batch_size))

    def first(self, count: int, device: torch.device) -> Tensor:
        return self.normalise(self.pixels[:count].to(device))

    def _chosen(self, chosen: Tensor) -> "Images":
        return replace(self, pixels=self.pixels[chosen.to(self.pixels.device)])


def from_numpy(x: Any) -> Any:
    """An array of any byte order and strides as a tensor; anything else unchanged. UserError for an array of anything
    but numbers, or a sparse, quantised or meta tensor.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biufc":
            raise UserError(f"an array of {x.dtype} given; numbers are needed")
        if not x.dtype.isnative or any(stride < 0 for stride in x.strides):
            x = x.astype(x.dtype.newbyteorder("="), "C")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about read-only arrays: they are only read
            x = torch.from_numpy(x)
    if isinstance(x, Tensor) and (x.layout != torch.strided or x.is_quantized or x.is_meta):
        raise UserError(
            "a sparse or quantised tensor, or one without values, given; plain tensors are needed"
        )
    return x


def as_pixels(pixels: Any) -> Tensor:
    """Pixels as a tensor, uint8 (N, H, W, 3) or (N, H, W, 1). UserError if they are something else."""
    pixels = from_numpy(pixels)
    if not isinstance(pixels, Tensor):
        raise UserError(f"Images: {type(pixels).__name__} given; allowed is a tensor or array {LAYOUT}")
    shape = tuple(pixels.shape)
    wrong = None
    if pixels.ndim == 3:
        wrong = "has no dimension of channels: pixels[..., None]"
        if shape[2] in (*COLOURS, 4):
            wrong += ", or, if it is one image, pixels[None]"
    elif pixels.ndim != 4:
        wrong = f"has {pixels.ndim} dimensions"
    elif shape[3] not in COLOURS and shape[1] in (*COLOURS, 4):
        wrong = "has channels before height and width: pixels.permute(0, 2, 3, 1)"
    elif shape[3] == 4:
        wrong = "has a fourth channel (transparency): pixels[..., :3]"
    elif shape[3] not in COLOURS:
        wrong = f"has {shape[3]} channels"
    elif pixels.dtype != torch.uint8:
        wrong = f"is {pixels.dtype}".replace("torch.", "")
        wrong += ": give grey levels 0…255 as uint8, or a list of normalised batches (B, C, H, W) in place of Images"
    elif not len(pixels):
        wrong = "holds no images"
    if wrong:
        raise UserError(f"Images: pixels of shape {shape} given, which {wrong}; allowed is {LAYOUT}")
    return pixels


class Batches(ImageSource):
    """Images in users' batches, such as those of a DataLoader or a list, already normalised. UserError if `items` can
    be read only once or is empty, or if its batches are of another kind, or differ between passes.

    Args:
        items: can be iterated any number of times, always in the same order; each float32 (B, C, H, W), or a tuple of
            that, labels (B,) and anything else, or a dict of `pixel_values` and `labels`.
    """

    def __init__(self, items: Iterable[Any]):
        if not isinstance(items, Iterable) or isinstance(items, Tensor | np.ndarray | str | bytes | Mapping):
            raise UserError(
                f"{type(items).__name__} given as images: give a DataLoader, a list of batches, or Images(pixels, …)"
            )
        if iter(items) is items:
            raise UserError(
                "images come from an iterator, which can be read only once: give a DataLoader or a list"
            )
        self.items = items
        self.counted: tuple[int, int] | None = None  # batches and images, known after the first pass
        self.shape = None  # known from the first batch on
        self._labelled: bool | None = None
        self._checksums: list[int] = []
        first = next(self.pairs(torch.device("cpu")), None)
        if first is None:
            raise UserError("no images: the DataLoader or list of batches is empty")

    def _counts(self) -> tuple[int, int]:
        if self.counted is None:
            for _ in self.pairs(torch.device("cpu")):
                pass
        return self.counted

    def __len__(self) -> int:
        return self._counts()[1]

    @property
    def count(self) -> int:
        return self._counts()[0]

    def pairs(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        batches = images = 0
        for item in self.items:
            if isinstance(item, Mapping):
                x = next((item[key] for key in PIXELS if key in item), item)
                labels = next((item[key] for key in LABELS if key in item), None)
            else:
                x, labels = _parted(item)
            x = self._batch(x)
            if self.counted is None and not x.isfinite().all():
                raise UserError(f"images: batch {batches + 1} holds values that aren't finite")
            labels = None if labels is None else whole_numbers(labels)
            self._labelled = labels is not None if self._labelled is None else self._labelled
            if self._labelled != (labels is not None):
                has = "no labels" if self._labelled else "labels"
                raise UserError(f"images: batch {batches + 1} has {has}, unlike others")
            self._recognise(batches, x, labels)
            batches, images = batches + 1, images + len(x)
            x = x.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            yield x, None if labels is None else labels.to(device)
        if batches < len(self._checksums):
            raise UserError(f"images: {len(self._checksums)} batches in one pass and {batches} in another")
        self.counted = batches, images

    def _recognise(self, place: int, x: Tensor, labels: Tensor | None) -> None:
        """Check that each pass has the same images in the same order, as labels, statistics and barriers require."""
        entries = x.flatten(1)
        some = [entries[:, :: -(-entries.shape[1] // SEEN)], *([] if labels is None else [labels])]
        checksum = 0
        for tensor in some:
            checksum = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), checksum)
        if place == len(self._checksums) and self.counted is None:
            self._checksums.append(checksum)
        elif place == len(self._checksums) or checksum != self._checksums[place]:
            raise UserError(
                f"images: batch {place + 1} isn't the same in every pass: the order of images, or the images, change; "
                "give a DataLoader with shuffle=False, without a random sampler or random augmentation"
            )

    def _chosen(self, chosen: Tensor) -> "Batches":
        held, start = [], 0
        for x, labels in self.pairs(torch.device("cpu")):
            here = chosen[(chosen >= start) & (chosen < start + len(x))] - start
            start += len(x)
            if len(here):
                held.append(x[here] if labels is None else (x[here], labels[here]))
        return Batches(held)

    def _batch(self, x: Any) -> Tensor:
        x = from_numpy(x)
        if not isinstance(x, Tensor):
            raise UserError(
                f"a batch is {type(x).__name__}; allowed is x, (x, labels) or a dict of pixel_values and labels, "
                "x a tensor (B, C, H, W)"
            )
        if x.ndim != 4 or not x.is_floating_point():
            raise UserError(
                f"a batch of shape {tuple(x.shape)} and type {x.dtype} given; allowed is normalised float32 "
                "(B, C, H, W); pixels are given as Images(pixels, normalise=…)"
            )
        if not len(x):
            raise UserError("images: a batch holds none")
        shape = tuple(x.shape[1:])
        if self.shape is None:
            if shape[2] in COLOURS and shape[0] not in COLOURS:
                raise UserError(f"a batch of shape {tuple(x.shape)} has channels last: x.permute(0, 3, 1, 2)")
            self.shape = shape
        if shape != self.shape:
            raise UserError(
                f"images of shape {shape} and {self.shape} given: all need one size; resize or crop them"
            )
        return x.detach().float()


def _parted(item: Any) -> tuple[Any, Any]:
    """A batch's images and labels, without any indices or paths after them; a second view isn't a label."""
    if not isinstance(item, tuple | list) or (len(item) > 2 and getattr(item[1], "ndim", 1) > 2):
        return item, None
    return (*item, None, None)[:2]


def whole_numbers(labels: Any) -> Tensor:
    """Labels as int64; whole numbers in floating point, or in a column, are accepted. UserError if they aren't whole
    numbers from 0.
    """
    try:
        labels = torch.as_tensor(from_numpy(labels)).detach()
    except UserError as error:
        raise UserError(f"labels: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"labels: {type(labels).__name__} given; allowed is int64 (N,)") from error
    if labels.is_complex() or labels.ndim < 1:
        raise UserError(
            f"labels of type {labels.dtype} and shape {tuple(labels.shape)} given; allowed is int64 (N,)"
        )
    labels = labels.double() if labels.is_floating_point() else labels.long()  # few types can be compared
    if (wrong := labels[(labels != labels.floor()) | (labels.abs() > 2**53) | (labels < 0)]).numel():
        raise UserError(f"labels: {wrong[0]:g} given; allowed are whole numbers from 0")
    return (labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels).long()


def pieces(x: Tensor, views: int = 1) -> tuple[Tensor, ...]:
    """Images in parts that a net can read at once, each image in `views` views."""
    return x.split(max(1, AT_ONCE // (views * x[0].numel())))


AnyImages = ImageSource | Iterable[Any]


def as_images(images: AnyImages) -> ImageSource:
    """`Images` as they are; a DataLoader or any other iterable of batches as `Batches`."""
    return images if isinstance(images, ImageSource) else Batches(images)


def device_of(net: torch.nn.Module) -> torch.device:
    """The device of a net's parameters."""
    return next(net.parameters()).device
