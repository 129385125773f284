"""Metrics of logits and labels, one number per image, averaged over the images in one pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relusym.errors import UserError, theirs
from relusym.evaluation.images import AnyImages, Images, ImageSource, as_images, device_of, whole_numbers
from relusym.evaluation.logits import check_finite, evaluating, logits_of
from relusym.precision import full_float32


@dataclass(frozen=True)
class Metric:
    """A measure of performance.

    Attributes:
        function: logits (B, classes, …) and labels (B, …) → one number per image, (B,).
        lower_is_better: as for a loss; otherwise, larger is better.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    lower_is_better: bool = False

    def absolute_barrier(self, mean: float, halfway: float) -> float:
        """Equation (4) without its denominator: by how much the halfway net is worse than its endpoints' mean, in the
        metric's units."""
        return halfway - mean if self.lower_is_better else mean - halfway


def top_1(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit is at the label; for logits at every pixel, the share of pixels where it is."""
    right = logits.argmax(1) == labels
    return right.double().flatten(1).mean(1) if right.ndim > 1 else right


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats; for logits at every pixel, the mean over pixels."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return loss.flatten(1).mean(1) if loss.ndim > 1 else loss


TOP_1, LOSS = Metric(top_1), Metric(cross_entropy, lower_is_better=True)
FEW = 10  # images that any net may classify alike
# logits that vary by less, or by a smaller share of their size, don't tell images apart
SMALL, HARDLY = 1e-3, 1e-2
MEASURED = {"accuracy": TOP_1, "loss": LOSS}


class Scores:
    """Sums of the accuracy and other metrics over batches of logits.

    Attributes:
        count: images so far.

    Args:
        labels: int64 (N,), of all images in their order; None: those of the batches or, if these have none, the
            predictions.
    """

    def __init__(self, metrics: Mapping[str, Metric], labels: Tensor | None = None):
        self.metrics, self.count = {"accuracy": TOP_1, **metrics}, 0
        self._labels, self._labelled = labels, labels is not None
        self._used: list[Tensor] = []
        self._answers: list[Tensor] = []
        self._total: dict[str, Tensor | int] = dict.fromkeys(self.metrics, 0)
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, logits: Tensor, brought: Tensor | None = None) -> Tensor:
        """Add a batch's logits, and its labels, if it has some; returns the labels that are used. UserError for more or
        fewer labels than images, a metric that isn't one number per image, or logits that aren't finite.
        """
        check_finite(logits, self.count)
        answers = logits.argmax(1)
        if self._labels is not None:
            labels = self._labels[self.count : self.count + len(logits)].to(logits.device)
        else:
            labels = answers if brought is None else brought
        if len(labels) != len(logits):
            raise UserError(f"labels: {len(labels)} for a batch of {len(logits)} images")
        _check_fit(labels, logits)
        self._labelled |= brought is not None
        self.count += len(logits)
        relative = (logits - logits.mean(1, keepdim=True)).double()  # what softmax sees
        self._sum, self._squares = self._sum + relative.sum(0), self._squares + relative.square().sum()
        self._used.append(labels.cpu())
        self._answers.append(answers.cpu())
        for name, metric in self.metrics.items():
            self._total[name] += _per_image(name, metric, logits, labels).sum(dtype=torch.float64)
        return labels

    def means(self) -> dict[str, float]:
        """Metric → mean over the images."""
        if self._labels is not None and self.count != len(self._labels):
            raise UserError(f"labels: {len(self._labels)} given for {self.count} images")
        return {name: float(total) / self.count for name, total in self._total.items()}

    @property
    def alike(self) -> str | None:
        """Why these logits don't tell the images apart; None if they do."""
        if self.count < FEW:
            return None
        mean = self._sum / self.count
        size = (float(self._squares) / self.count / mean.numel()) ** 0.5
        varies = max(0.0, size**2 - float(mean.square().mean())) ** 0.5
        if varies < max(SMALL, HARDLY * size):
            return f"its logits, of size {size:.1e}, vary by {varies:.1e} between images"
        answers = torch.cat(self._answers).unique()
        if len(answers) == 1 and not (self._labelled and len(self.labels.unique()) == 1):
            return f"it predicts class {int(answers)} for all {self.count} of them"
        return None

    @property
    def by_class(self) -> list[float | None]:
        """Accuracy on the images, or pixels, of each class; None where there are none."""
        right = torch.cat(self._answers) == self.labels
        every, correct = (
            labels.flatten().bincount(minlength=len(self._sum))
            for labels in (self.labels, self.labels[right])
        )
        shares = (correct / every.double()).tolist()
        return [None if share != share else share for share in shares]

    @property
    def labels(self) -> Tensor:
        """The labels that were used, on the CPU."""
        return torch.cat(self._used)


@torch.no_grad()
@full_float32()
def evaluate(
    net: nn.Module, images: AnyImages, labels: Tensor | None, metrics: Mapping[str, Metric] | None = None
) -> Scores:
    """The accuracy and other metrics of a net over the images, in one pass. UserError for labels of another length or
    kind, or a metric that isn't one number per image. `labels`: as in `Scores`.
    """
    images = as_images(images)
    scores = Scores(metrics or {}, check_labels(labels, images))
    with evaluating(net):
        for x, brought in images.pairs(device_of(net)):
            scores.add(logits_of(net(x)), brought)
    return scores


def accuracy(net: nn.Module, images: AnyImages, labels: Tensor | None = None) -> float:
    """Share of the images whose largest logit is at `labels`, int64 (N,), or at the batches' labels."""
    return evaluate(net, images, labels).means()["accuracy"]


def check_metrics(
    logits: Tensor, labels: Tensor | None, images: ImageSource, metrics: Mapping[str, Metric]
) -> None:
    """Raise UserError for labels or metrics that don't fit the first images' logits, (B, classes, …)."""
    if not isinstance(metrics, Mapping):
        raise UserError(f"metrics: {type(metrics).__name__} given; allowed is a dict of names and Metrics")
    for name, metric in metrics.items():
        if name == "accuracy":
            raise UserError("metric accuracy: it is always measured; give yours another name")
        if not isinstance(metric, Metric):
            raise UserError(f"metric {name} is {type(metric).__name__}; give relusym.Metric(function)")
    labels = check_labels(labels, images)
    if labels is None:
        labels = next(iter(images.pairs(logits.device)))[1]
    else:
        _check_fit(labels, logits)  # all of them
    count = len(logits) if labels is None else min(len(labels), len(logits))
    Scores(metrics).add(logits[:count], labels if labels is None else labels[:count].to(logits.device))


def _check_fit(labels: Tensor, logits: Tensor) -> None:
    if labels.shape[1:] != logits.shape[2:]:
        raise UserError(
            f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}: one whole number per "
            "image, or per pixel, is needed"
        )
    if labels.numel() and (highest := int(labels.max())) >= (classes := logits.shape[1]):
        raise UserError(
            f"labels up to {highest}, but the net has {classes} classes: allowed is 0 to {classes - 1}"
        )


def _per_image(name: str, metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    if metric.function not in (top_1, cross_entropy):  # users' functions may change their arguments
        logits, labels = logits.clone(), labels.clone()
    try:
        values: Any = metric.function(logits, labels)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"metric {name}: fails on logits {tuple(logits.shape)}: {theirs(error)}") from error
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        kind = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(
            f"metric {name}: returns {kind} for {len(logits)} images; one number per image is needed"
        )
    return values


def check_labels(labels: Any, images: AnyImages) -> Tensor | None:
    """Labels as a tensor. UserError if they aren't whole numbers from 0, or not one per image."""
    if labels is None:
        return None
    labels = whole_numbers(labels)
    if isinstance(images, Images) and len(labels) != len(images):
        raise UserError(f"labels: {len(labels)} given for {len(images)} images")
    return labels
