"""Nets of others as this package reads them: what they have to be, their mode, and where their logits are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relusym.errors import UserError
from relusym.evaluation.images import ImageSource, device_of

LOGITS = (
    "logits",
    "out",
)  # keys of outputs that are dicts, as of Hugging Face's nets and torchvision's segmentation


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Within, the nets are in evaluation mode; afterwards, every module is in the mode that it was in."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def logits_of(output: Any) -> Tensor:
    """A net's logits: its output, or of a dict the entry `logits`, `out` or the first, of a tuple the first.

    Raises:
        UserError: there is no tensor (B, classes, …).
    """
    found = output
    if isinstance(found, Mapping):
        found = next((found[key] for key in LOGITS if key in found), next(iter(found.values()), None))
    elif isinstance(found, tuple | list):
        found = found[0] if found else None
    if not isinstance(found, Tensor) or found.ndim < 2:
        kind = (
            f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        )
        raise UserError(
            f"the net's output is {kind}: wrap it in a module whose forward returns logits (B, classes)"
        )
    return found


@torch.no_grad()
def check_net(name: str, net: nn.Module, images: ImageSource) -> None:
    """Raises UserError if the net's weights are not finite float32 on one device, or it can't read such images."""
    if not isinstance(net, nn.Module):
        raise UserError(f"{name} is {type(net).__name__}; allowed is a torch.nn.Module")
    weights = [(key, tensor) for key, tensor in net.state_dict().items() if tensor.is_floating_point()]
    if not weights or not any(True for _ in net.parameters()):
        raise UserError(f"{name} ({type(net).__name__}) has no parameters: there is nothing to merge")
    for key, tensor in weights:
        if tensor.dtype != torch.float32:
            raise UserError(
                f"{name}: {key} is {tensor.dtype}; channels are matched in float32: give net.float()"
            )
        if tensor.device != device_of(net):
            raise UserError(
                f"{name}: {key} is on {tensor.device}, others on {device_of(net)}: one device is needed"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{name}: {key} holds values that aren't finite: its training diverged")
    with evaluating(net):
        try:
            output = net(images.first(2, device_of(net)))
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{name} can't read images of shape {images.shape}: {reason}") from error
        if not logits_of(output).isfinite().all():
            raise UserError(f"{name}: logits of the first image aren't finite")
