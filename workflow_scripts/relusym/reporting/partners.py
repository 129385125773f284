"""Channels that go with each other, as pictures: one on an image, its partner on the transformed image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, by_node
from relusym.channels.traced import TracedNet, as_traced
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import evaluating
from relusym.merging.aligned import Lockstep
from relusym.merging.layers import group_output
from relusym.symmetry import Symmetry

SHOWN = 3  # layers
SMALLEST = 6  # pixels of a map that one can make something out of


@dataclass(frozen=True)
class Partners:
    """A channel and its partner.

    Attributes:
        layer: the channel group's name.
        channel, partner: which channels of it.
        correlation: of the two maps, the second one moved back, on this image.
        image, moved: the image and the transformed one as the net reads them, scaled to 0…1, float32 (H, W, C).
        here, there: the channel on the image, and the partner on the transformed one, float32 (h, w).
    """

    layer: str
    channel: int
    partner: int
    correlation: float
    image: np.ndarray
    moved: np.ndarray
    here: np.ndarray
    there: np.ndarray


@torch.no_grad()
def partners(
    net: nn.Module | TracedNet,
    images: ImageSource,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: Mapping[str, Tensor],
) -> list[Partners]:
    """Of a few layers with maps large enough to look at, the channel that its partner mirrors best on one image.

    A channel that goes with another is shown before one that is its own partner.
    """
    traced = as_traced(net, images.shape)
    net = traced.net
    x = images.first(1, device_of(net))
    back = symmetry.inverse(x)
    maps: dict[str, Tensor] = {}
    compared_at = by_node(groups)

    def visit(node: str, outputs: list[Tensor]) -> None:
        for group in compared_at.get(node, ()):
            if (group.matched.dim, group.matched.block, group.heads) != (1, 1, 1):
                continue  # tokens, and what attention computes, make no picture
            output = group_output(group, outputs[0])
            if output.ndim == 4 and min(output.shape[2:]) >= SMALLEST:
                maps[group.name] = output.float().cpu().clone()

    with evaluating(net):
        Lockstep([traced.module(inside=True)]).run([torch.cat([x, back])], visit)
    mapped = [group for group in groups if group.name in maps]
    places = np.linspace(0, len(mapped) - 1, min(SHOWN, len(mapped))).round().astype(int)
    pairs = []
    for group in (mapped[place] for place in places):
        permutation = torch.as_tensor(permutations[group.name]).cpu()
        here, there = maps[group.name]
        mirrored = symmetry.act(there)[permutation]
        a, b = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (here, mirrored))
        correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
        strength = a.norm(dim=1).minimum(b.norm(dim=1))
        swapped = permutation != torch.arange(group.size)
        score = correlation.clamp(min=0) * (strength / strength.max().clamp(min=1e-12)).sqrt() + swapped
        channel = int(score.argmax())
        partner = int(permutation[channel])
        maps_of_both = here[channel].numpy(), there[partner].numpy()
        images_of_both = _picture(x[0]), _picture(back[0])
        best = float(correlation[channel])
        pairs.append(Partners(group.name, channel, partner, best, *images_of_both, *maps_of_both))
    return pairs


def _picture(x: Tensor) -> np.ndarray:
    x = x.float().cpu()
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
