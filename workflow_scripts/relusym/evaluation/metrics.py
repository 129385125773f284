"""What a net's answers are worth: metrics of logits and labels, one number an image, averaged in one pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relusym.errors import UserError
from relusym.evaluation.images import GivenImages, Images, as_images, device_of
from relusym.evaluation.logits import evaluating, logits_of
from relusym.precision import full_float32


@dataclass(frozen=True)
class Metric:
    """A measure of performance.

    Attributes:
        of: logits (B, classes, …) and labels (B, …) → one number an image, (B,).
        lower_is_better: as of a loss; else the larger the better.
    """

    of: Callable[[Tensor, Tensor], Tensor]
    lower_is_better: bool = False

    def absolute_barrier(self, first: float, second: float, halfway: float) -> float:
        """By how much the halfway net is worse than its endpoints' mean, in the metric's units."""
        worse = (first + second) / 2 - halfway
        return -worse if self.lower_is_better else worse


def top_1(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit is at the label; of logits at every pixel, the share of pixels where it is."""
    return (
        (logits.argmax(1) == labels).double().flatten(1).mean(1)
        if logits.ndim > 2
        else logits.argmax(1) == labels
    )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats; of logits at every pixel, the mean over pixels."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return loss.flatten(1).mean(1) if loss.ndim > 1 else loss


TOP_1, LOSS = Metric(top_1), Metric(cross_entropy, lower_is_better=True)
MEASURED = {"accuracy": TOP_1, "loss": LOSS}


class Scores:
    """Sums of metrics over batches of logits.

    Attributes:
        count: images so far.

    Args:
        labels: int64 (N,), of all images in their order; None: those that come with the batches, or, of batches without
            labels, the logits' own answers.
    """

    def __init__(self, metrics: Mapping[str, Metric], labels: Tensor | None = None):
        self.metrics, self.count = metrics, 0
        self._given, self._used = labels, []
        self._total: dict[str, Tensor | int] = dict.fromkeys(metrics, 0)

    def add(self, logits: Tensor, own: Tensor | None = None) -> Tensor:
        """Take in a batch's logits, and the labels that it brings; returns the labels that count.

        Raises:
            UserError: another number of labels; a metric that isn't one number an image.
        """
        if self._given is not None:
            labels = self._given[self.count : self.count + len(logits)].to(logits.device)
        else:
            labels = logits.argmax(1) if own is None else own
        if len(labels) != len(logits):
            raise UserError(f"labels: {len(labels)} for a batch of {len(logits)} images")
        self.count += len(logits)
        self._used.append(labels.cpu())
        for name, metric in self.metrics.items():
            self._total[name] += _per_image(name, metric, logits, labels).sum(dtype=torch.float64)
        return labels

    def means(self) -> dict[str, float]:
        """Metric → mean over the images."""
        if self._given is not None and self.count != len(self._given):
            raise UserError(f"labels: {len(self._given)} given for {self.count} images")
        return {name: float(total) / self.count for name, total in self._total.items()}

    @property
    def labels(self) -> Tensor:
        """Those that counted, on the CPU."""
        return torch.cat(self._used)


@torch.no_grad()
@full_float32()
def evaluate(
    net: nn.Module, images: GivenImages, labels: Tensor | None, metrics: Mapping[str, Metric]
) -> tuple[dict[str, float], Tensor]:
    """Means of all metrics over the images, in one pass.

    Args:
        labels: as of `Scores`.

    Returns:
        metric → mean over the images, and the labels, on the CPU.

    Raises:
        UserError: labels of another length or kind; a metric that isn't one number an image.
    """
    images = as_images(images)
    scores = Scores(metrics, check_labels(labels, images))
    with evaluating(net):
        for x, own in images.pairs(device_of(net)):
            scores.add(logits_of(net(x)), own)
    return scores.means(), scores.labels


def _per_image(name: str, metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    try:
        values: Any = metric.of(logits, labels)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        highest = (
            f", labels up to {int(labels.max())}" if labels.numel() and not labels.is_floating_point() else ""
        )
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"metric {name}: fails on logits {tuple(logits.shape)}{highest} ({reason})"
        ) from error
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(
            f"metric {name}: gives {found} for {len(logits)} images; one number an image is needed"
        )
    return values


def check_labels(labels: Any, images: GivenImages) -> Tensor | None:
    """Labels as a tensor.

    Raises:
        UserError: they aren't whole numbers, or not one an image.
    """
    if labels is None:
        return None
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.ndim < 1:
        raise UserError(
            f"labels of type {labels.dtype} and shape {tuple(labels.shape)} given; allowed is int64 (N,)"
        )
    if isinstance(images, Images) and len(labels) != len(images):
        raise UserError(f"labels: {len(labels)} given for {len(images)} images")
    return labels.long()
