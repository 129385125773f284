"""The gradient of a wide conv's weight on feature maps of few pixels, as one matrix product.

oneDNN's own kernel for it, in bfloat16 with a CPU's matrix instructions (AMX), takes up to twelve times as long: in
all a third of the training of a VGG11 of half the width. With older instructions it is as quick.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import TorchFunctionMode

# Feature maps of more pixels, or of fewer channels, cost as much time to take apart as the product saves
PIXELS, CHANNELS = 64, 128


def quick_weight_gradients(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Within, wide convs on few pixels have the gradient of their weights taken the quick way, where it is one.

    Where ONEDNN_MAX_CPU_ISA asks for older instructions, all is as on a CPU that has no others.
    """
    quick = device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16")
    return SmallMaps() if quick and "ONEDNN_MAX_CPU_ISA" not in os.environ else nullcontext()


class SmallMaps(TorchFunctionMode):
    """Within, `torch.conv2d` on at most `PIXELS` pixels and at least `CHANNELS` channels is `_Conv`."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            return conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1
) -> Tensor:
    """`torch.conv2d`, by `_Conv` where that is quicker."""
    plain = dilation in (1, (1, 1)) and groups == 1 and not isinstance(padding, str)
    quick = x.shape[-2] * x.shape[-1] <= PIXELS and x.shape[-3] >= CHANNELS
    if not (plain and quick and torch.is_grad_enabled()):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    stride, padding = ((value, value) if isinstance(value, int) else value for value in (stride, padding))
    return _Conv.apply(x, weight, bias, stride, padding)


class _Conv(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight, of_bias, *_) = ctx.saved_tensors, ctx.needs_input_grad
        results: list[Tensor | None] = [None, None, None]
        if of_x:
            results[0] = torch.nn.grad.conv2d_input(x.shape, weight, gradient, ctx.stride, ctx.padding)
        if of_weight:
            windows = _windows(x, weight.shape[2:], gradient.shape[2:], ctx.stride, ctx.padding)
            product = gradient.permute(1, 0, 2, 3).flatten(1) @ windows
            results[1] = product.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        if of_bias:
            results[2] = gradient.sum((0, 2, 3))
        return *results, None, None


def _windows(x: Tensor, kernel: Sequence[int], pixels: Sequence[int], stride, padding) -> Tensor:
    """What each output pixel sees of x (B, C, H, W): (B · pixels, kernel's height · width · C)."""
    (up, left), (down, right) = padding, stride
    padded = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, up, up)).contiguous()
    image, row, column, channel = padded.stride()
    shape = (len(x), *pixels, *kernel, x.shape[1])
    strides = (image, row * down, column * right, row, column, channel)
    return padded.as_strided(shape, strides).reshape(len(x) * pixels[0] * pixels[1], -1)
