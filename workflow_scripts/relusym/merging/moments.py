"""Moments of channels over images and positions, added up batch by batch in float64."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relusym.channels.groups import ChannelGroup

EPSILON = 1e-4  # added to σσ′, so that dead channels correlate with nothing
CHUNK = 2048  # samples whose products are added up in float32
CACHED = 2**18  # values processed at once on a CPU: they fit its cache, which all values of a wide map don't


def samples(activations: Tensor, dim: int = 1) -> Tensor:
    """(B, C, H, W), or any tensor with channels along `dim` → float32 (B·H·W, C), one sample per position.

    A view if the activations are float32 and channels are last in memory.
    """
    x = activations.float()
    return x if x.ndim == 2 else x.movedim(dim, -1).reshape(-1, x.shape[dim])


def group_output(group: ChannelGroup, output: Tensor) -> Tensor:
    """A group's channels in its node's output, moved to dimension 1: (B, C, …), or (B, C, T) for tokens."""
    place = group.matched
    output = output.movedim(place.dim, 1)
    if place.entries is None and place.block == 1:
        return output
    chosen = output[:, place.index(group.size, output.device).flatten()]
    return chosen if place.block == 1 else chosen.unflatten(1, (group.size, place.block))


def portions(*nets: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same samples of one or more nets, (S, C) each, in portions that fit a CPU's cache; whole on a GPU."""
    if nets[0].device.type != "cpu":
        return iter([nets])
    rows = max(1, CACHED // nets[0].shape[1] // CHUNK) * CHUNK
    return zip(*(x.split(rows) for x in nets), strict=True)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, float64 (C,)."""

    mean: Tensor
    std: Tensor

    def towards(self, other: "Statistics", share: float = 0.5) -> "Statistics":
        """Statistics interpolated towards another net's, `share` of the way: a merged net's targets."""
        pairs = (self.mean, other.mean), (self.std, other.std)
        return Statistics(*(a * (1 - share) + b * share for a, b in pairs))

    def permuted(self, permutation: Tensor) -> "Statistics":
        """The statistics of the net whose channel i is this net's channel `permutation[i]`."""
        index = permutation.to(self.mean.device)
        return Statistics(self.mean[index], self.std[index])

    def times(self, factors: Tensor) -> "Statistics":
        """The statistics of the net whose channels are multiplied by `factors`, (C,)."""
        factors = factors.to(self.mean)
        return Statistics(self.mean * factors, self.std * factors.abs())


class Moments:
    """First and second moments of channels: count, sum and sum of squares of the samples so far.

    Values are taken relative to the first samples' means, so that float32 sums within a batch lose nothing to
    cancellation.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add samples (S, C)."""
        for (portion,) in portions(x):
            self.centred(portion)

    def centred(self, x: Tensor) -> Tensor:
        """Add samples (S, C) that fit the cache; returns them relative to the origin."""
        if not self.count:
            self.origin = x.mean(0)
            self.total = torch.zeros_like(self.origin, dtype=torch.float64)
            self.square = torch.zeros_like(self.total)
        x = x - self.origin
        self.count += len(x)
        self.total += x.sum(0)
        self.square += x.square().sum(0)
        return x

    @property
    def offset(self) -> Tensor:
        """Mean relative to the origin."""
        return self.total / self.count

    def statistics(self) -> Statistics:
        """Statistics of all samples so far, with the population standard deviation."""
        variance = (self.square / self.count - self.offset**2).clamp_(min=0)
        return Statistics(self.offset + self.origin, variance.sqrt())


def cross_product(first: Tensor, second: Tensor) -> Tensor:
    """firstᵀ·second of samples (S, C₁) and (S, C₂), float64 (C₁, C₂).

    A float32 product over all samples of a wide map has errors of up to 1e-3. Products over `CHUNK` samples don't, and
    adding them up in float64 costs far less than a float64 product.
    """
    whole = len(first) // CHUNK * CHUNK
    a, b = (x[:whole].unflatten(0, (-1, CHUNK)) for x in (first, second))
    return torch.bmm(a.mT, b).sum(0, dtype=torch.float64) + first[whole:].T @ second[whole:]


class JointMoments:
    """Two nets' moments over the same samples, with the sum of their cross products."""

    def __init__(self) -> None:
        self.first, self.second = Moments(), Moments()
        self.product: Tensor | None = None

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add the same samples of both nets, (S, C₁) and (S, C₂)."""
        for a, b in portions(first, second):
            product = cross_product(self.first.centred(a), self.second.centred(b))
            self.product = product if self.product is None else self.product.add_(product)

    def correlation(self) -> Tensor:
        """Pearson correlation, denominator σσ′ + `EPSILON`, float64 (C₁, C₂); NaN becomes 0."""
        covariance = self.product / self.first.count - torch.outer(self.first.offset, self.second.offset)
        deviations = torch.outer(self.first.statistics().std, self.second.statistics().std)
        return torch.nan_to_num(covariance / (deviations + EPSILON), nan=0.0)
