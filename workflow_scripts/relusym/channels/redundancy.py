"""Nets whose function doesn't determine their parameters: some of their channels do nothing or are duplicates.

Every edit leaves the net's function unchanged. It is for nets whose channels are all those of convolutions, batch norms
and linear layers, such as VGG11; others are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup
from relusym.errors import UserError

# The channels that are added. `silent`: zero on every image, though they are read; `unread`: not zero, but read by
# nothing; `duplicated`: copies of some channels, the weights that read them divided at random; `split`: of all.
EDITS = "silent", "unread", "duplicated", "split"
SHARE = 0.25  # of a group's channels are added, at least two, drawn without replacement; by `split`, all
SAME = 1e-4  # two channels are duplicates if their weights differ by less, relative to their norm
SIZES = {
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.Linear: ("out_features", "in_features"),
    nn.BatchNorm2d: ("num_features",),
}


@torch.no_grad()
def redundant(net: nn.Module, groups: list[ChannelGroup], edit: str, generator: torch.Generator) -> nn.Module:
    """A net with the same function and more channels: the original ones, then those added by an edit of `EDITS`.

    Args:
        net: with act(0) = 0 if `silent`; without batch norm unless `split` or `duplicated`.
        groups: its channel groups.
    """
    chosen = {}
    for group in groups:
        count = group.size if edit == "split" else max(2, round(SHARE * group.size))
        chosen[group.name] = torch.randperm(group.size, generator=generator)[:count]
    wide = reindexed(net, groups, {g.name: torch.cat([torch.arange(g.size), chosen[g.name]]) for g in groups})
    for group in groups if edit in ("silent", "unread") else ():
        for rows in _slices(wide, group, 0):
            drawn = torch.randint(rows[: group.size].numel(), rows[group.size :].shape, generator=generator)
            others = rows[: group.size].flatten()[drawn]
            rows[group.size :] = others if edit == "unread" else 0
    for group in groups if edit != "silent" else ():
        for columns in _slices(wide, group, 1):
            added = columns[group.size :]
            shares = torch.rand(added.shape, generator=generator) * (edit != "unread")
            added *= shares.to(added)
            if edit != "unread":
                columns[chosen[group.name]] *= 1 - shares.to(added)
    return wide


@torch.no_grad()
def reduced(
    net: nn.Module, groups: list[ChannelGroup], silent: dict[str, Tensor] | None = None
) -> tuple[nn.Module, dict[str, int]]:
    """The net without zero, unread or duplicate channels; a duplicate's outgoing weights are added to the original's.

    Layer by layer from the input, since channels that read duplicates become duplicates only once those are removed.

    Args:
        silent: group name → bool (C,): channels that are zero on all images, besides those whose weights are zero.

    Returns:
        The net, and the number of channels removed from each group.
    """
    net, gone = deepcopy(net), {}
    for group in groups:
        rows = torch.cat([rows.flatten(1) for rows in _slices(net, group, 0)], 1).double()
        columns = torch.cat([columns.flatten(1) for columns in _slices(net, group, 1)], 1)
        useless = ~rows.any(1) | ~columns.any(1)
        if silent is not None:
            useless |= silent[group.name].to(useless.device)
        size = rows.norm(dim=1)
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        alike = apart <= SAME * torch.minimum(size[:, None], size)
        alike &= ~useless[:, None] & ~useless
        first = torch.where(useless, torch.arange(len(rows)).to(size.device), alike.int().argmax(1))
        while not torch.equal(first, first[first]):  # such as duplicates of duplicates
            first = first[first]
        kept = ~useless & (first == torch.arange(len(first)).to(first.device))
        copies = (~useless & ~kept).nonzero().flatten()
        for columns in _slices(net, group, 1):
            columns.index_add_(0, first[copies], columns[copies])
        if not kept.any():
            raise UserError(f"group {group.name}: no channel of it does anything, so none would be left")
        gone[group.name] = int((~kept).sum())
        net = reindexed(net, [group], {group.name: kept.nonzero().flatten().cpu()})
    return net, gone


@torch.no_grad()
def reindexed(net: nn.Module, groups: list[ChannelGroup], indices: dict[str, Tensor]) -> nn.Module:
    """A copy of the net where channel i of a group has the weights of channel `indices[name][i]`, int64 (C′,).
    UserError if a group has channels in a layer other than convolutions (of groups 1), batch norms and linear layers.
    """
    net = deepcopy(net)
    for group in groups:
        for place in group.places:
            layer, kind = _layer(net, place.tensor)
            entries = place.index(group.size)[indices[group.name]].flatten()
            tensor = getattr(layer, kind)
            chosen = tensor.index_select(place.dim, entries.to(tensor.device))
            setattr(layer, kind, nn.Parameter(chosen) if isinstance(tensor, nn.Parameter) else chosen)
            setattr(layer, SIZES[type(layer)][place.dim], len(entries))
    return net


def _layer(net: nn.Module, tensor: str) -> tuple[nn.Module, str]:
    name, _, kind = tensor.rpartition(".")
    layer = net.get_submodule(name)
    if type(layer) not in SIZES or getattr(layer, "groups", 1) > 1:
        raise UserError(
            f"layer {name}: channels of a {type(layer).__name__} can't be added or taken away here"
        )
    return layer, kind


def _slices(net: nn.Module, group: ChannelGroup, dim: int) -> Iterator[Tensor]:
    """Views of the tensors that write a group's channels (dim 0) or read them (dim 1), with the channels first."""
    for place in group.places:
        if place.dim == dim:
            layer, kind = _layer(net, place.tensor)
            if place.entries is not None:
                raise UserError(f"{place.tensor}: only some of its channels are in group {group.name}")
            yield getattr(layer, kind).data.movedim(dim, 0).unflatten(0, (-1, place.block))


@torch.no_grad()
def towers(first: nn.Module, second: nn.Module, groups: list[ChannelGroup]) -> nn.Module:
    """Two nets of one architecture side by side in a net of twice the channels, which returns the mean of their logits.

    Its weights are block-diagonal. `groups`: the first net's.
    """
    both = reindexed(first, groups, {group.name: torch.arange(group.size).repeat(2) for group in groups})
    dims: dict[str, set[int]] = {}
    for group in groups:
        for place in group.places:
            dims.setdefault(place.tensor, set()).add(place.dim)
    left, right, wide = (net.state_dict() for net in (first, second, both))
    for name, tensor in wide.items():
        if name in dims:
            half = [size // (1 + (dim in dims[name])) for dim, size in enumerate(tensor.shape)]
            mean = 1 if 0 in dims[name] else 2  # the last layer sums over both
            tensor.zero_()
            tensor[tuple(slice(size) for size in half)] = left[name] / mean
            ends = zip(half, tensor.shape, strict=True)
            tensor[tuple(slice(size - half, None) for half, size in ends)] = right[name] / mean
        elif tensor.is_floating_point():
            tensor.copy_((left[name] + right[name]) / 2)
    return both
