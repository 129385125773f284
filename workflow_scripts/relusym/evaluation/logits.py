"""Users' nets as this package reads them: what is required of them, their mode, and where their logits are."""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from relusym.errors import UserError, theirs
from relusym.evaluation.images import ImageSource, device_of

# keys of outputs that are dicts, as in Hugging Face's nets and torchvision's segmentation nets
LOGITS = "logits", "out"
CONTAINERS = dict, OrderedDict, list, set
CHECKED = 4  # images that a net is tried on before any work
ROUNDING = 1e-3  # the largest relative difference between logits that should be the same


class _AnyLayout(TorchFunctionMode):
    """`view` works on images with channels last, too, which most nets process faster: it is replaced by `reshape`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.view and not kwargs and not isinstance(args[1], torch.dtype):
            func = Tensor.reshape
        return func(*args, **(kwargs or {}))


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Put nets into evaluation mode; afterwards, every module has the mode and the attributes that it had before.

    So whatever tracing or a net's forward stored on it, as in a cache, is removed. What the net's `eval` and `train`
    do, such as emptying a cache, is kept.
    """
    modules = [
        module for net in nets for module in net.modules() if not isinstance(module, torch.jit.ScriptModule)
    ]
    modes = [(module, module.training) for module in modules]
    training = [net for net in nets if net.training]
    for net in nets:
        net.eval()
    before = [(vars(module), dict(vars(module))) for module in modules]
    held = [(x, copy(x)) for _, entries in before for x in entries.values() if type(x) in CONTAINERS]
    # compiled parts run eagerly, so that their operations are seen; unless torch.compile was used, _dynamo isn't loaded
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with ExitStack() as stack:
            stack.enter_context(eager)
            stack.enter_context(_AnyLayout())
            for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):  # the caller's, not a net's
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for x, entries in (*before, *held):
            x.clear()
            (x.extend if isinstance(x, list) else x.update)(entries)
        for net in training:
            net.train()
        for module, mode in modes:
            module.training = mode


def logits_of(output: Any) -> Tensor:
    """A net's logits: its output, or its attribute or entry `logits`, a dict's `out` or first, a tuple's first.
    UserError if there is no tensor (B, classes, …).
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping | tuple | list):
        logits = logits[_place(logits)] if logits else None
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        kind = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(logits).__name__
        )
        raise UserError(
            f"the net's output is {kind}: wrap it in a module whose forward returns logits (B, classes)"
        )
    return logits


def _place(output: Mapping | Sequence) -> Any:
    """The key or index of the logits in an output of several entries."""
    if not isinstance(output, Mapping):
        return 0
    return next((key for key in LOGITS if key in output), next(iter(output)))


def others_note(output: Any) -> list[str]:
    """A line on the entries of an output, or of a graph's, that aren't the logits; none without such entries."""
    if not isinstance(output, Mapping | tuple | list) or len(output) < 2:
        return []
    return [
        f"the net returns {len(output)} entries: accuracies, errors and barriers are of entry {_place(output)!r} alone"
    ]


def check_finite(logits: Tensor, before: int = 0) -> None:
    """UserError if logits (B, …) aren't finite; `before`: how many images came before these."""
    wrong = ~logits.isfinite().flatten(1).all(1)
    if wrong.any():
        place = before + int(wrong.nonzero()[0]) + 1
        raise UserError(
            f"a net's logits of image {place} aren't finite: leave such images out, or mend the net (does it divide "
            "by 0 for an image of one colour?)"
        )


@torch.no_grad()
def check_net(name: str, net: nn.Module, images: ImageSource) -> Tensor:
    """Try a net on the first images, before any work. UserError if its weights are not finite, dense float32 on one
    device; if it can't read such images; if its logits are not finite, or all zero, or random, or depend on the other
    images of a batch; or if running it changes it. Returns the logits of at most `CHECKED` images, (B, classes, …).
    """
    check_weights(name, net)
    x = images.first(CHECKED, device_of(net))
    buffers = {key: buffer.clone() for key, buffer in net.named_buffers()}
    tried = x.clone()
    with evaluating(net):
        try:
            logits = logits_of(net(tried))
            if not torch.equal(tried, x):
                raise UserError(
                    "it changes the images that it reads, in place: make `x = x.clone()` the first line of its forward"
                )
            again, part = (logits_of(net(view)) for view in (x, x[: (len(x) + 1) // 2]))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        except Exception as error:  # the user's own code may raise anything
            raise UserError(f"{name} can't read images of shape {images.shape}: {theirs(error)}") from error
    for key, buffer in net.named_buffers():
        if not torch.equal(buffer, buffers[key]) and buffer.isfinite().all():
            buffer.copy_(buffers[key])
            raise UserError(
                f"{name}: {key} changes whenever the net runs, even in evaluation mode: change it only if "
                "self.training"
            )
    if len(logits) != len(x):
        raise UserError(f"{name}: {len(logits)} logits for {len(x)} images: (B, classes) is needed")
    if logits.shape[1] < 2:
        raise UserError(f"{name}: logits of shape {tuple(logits.shape)}; at least two classes are needed")
    if not logits.is_floating_point():
        raise UserError(f"{name}: its logits are {logits.dtype}; floating-point numbers are needed")
    if not logits.isfinite().all():
        raise UserError(f"{name}: logits of the first images aren't finite")
    if not logits.any():
        raise UserError(f"{name}: logits of the first images are all zero: it can't tell images apart")
    most = ROUNDING * logits.abs().max()
    if (logits - again).abs().max() > most:
        raise UserError(
            f"{name}: its logits are random even in evaluation mode: F.dropout needs training=self.training, and noise "
            "an `if self.training`"
        )
    if (logits[: len(part)] - part).abs().max() > most:
        raise UserError(
            f"{name}: an image's logits depend on the other images of its batch (batch statistics in evaluation "
            "mode?), so no measurement would hold for another batch"
        )
    return logits


def without_values(tensor: Tensor) -> str | None:
    """Why a parameter has no values; None if it has some."""
    if is_lazy(tensor):
        return "has no shape yet (a lazy layer): run the net on a batch first"
    return "is on the meta device and has no values: load weights" if tensor.is_meta else None


def check_weights(name: str, net: Any) -> None:
    """UserError if a net's weights are not finite, dense float32 on one device."""
    if not isinstance(net, nn.Module):
        raise UserError(f"{name} is {type(net).__name__}; allowed is a torch.nn.Module")
    state = net.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            kind = "what get_extra_state returns, which can't be averaged: leave it out"
            if not key.endswith("_extra_state"):
                kind = f"{type(value).__name__}, as in a quantised layer: give the net unquantised"
            raise UserError(f"{name}: {key} is {kind}")
    parameters = dict(net.named_parameters())
    if not parameters:
        raise UserError(f"{name} ({type(net).__name__}) has no parameters: there is nothing to merge")
    for key, tensor in (state | parameters).items():
        if wrong := without_values(tensor) or _unusable(tensor, key in parameters, device_of(net)):
            raise UserError(f"{name}: {key} {wrong}")


def _unusable(tensor: Tensor, is_parameter: bool, device: torch.device) -> str | None:
    if tensor.is_quantized or is_traceable_wrapper_subclass(tensor):
        kind = "quantised" if tensor.is_quantized else type(tensor).__name__
        return f"is {kind}: give plain float32 tensors"
    if tensor.layout != torch.strided:
        return "is sparse: give it dense, by .to_dense()"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode, so that nothing can be copied into it: give copy.deepcopy(net)"
    if tensor.dtype != torch.float32 and (is_parameter or tensor.is_floating_point()):
        return f"is {tensor.dtype}; channels are matched, and weights averaged, in float32: give net.float()"
    if tensor.device != device and tensor.numel() > 1:
        return f"is on {tensor.device}, others on {device}: one device is needed"
    if tensor.is_floating_point() and not tensor.isfinite().all():
        return "holds values that aren't finite: its training diverged"
    return None
