"""Faster training steps in bfloat16 on a CPU: the same net and the same gradients, as exact as before.

- A 3×3 conv on maps of 2×2 pixels is one product with the dense matrix between all pixels: 16 of 36 multiplications.
- With matrix instructions (AMX) oneDNN wastes most of its time on small maps. There `conv_weights.c` sums the gradient
  of a 3×3 conv's weights. Those of other convs, and on 4×4 pixels the whole of a wide conv, are products with the
  windows of the output pixels.
- ReLU and the 2×2 max pool after it are one pass over the maps, forward and backward: `relu_pool.c`.

The machine's C compiler builds both when a training starts. Without one, ReLU and pool are torch's, with the same bits,
and all gradients of weights are products with windows: with AMX, other bits.

How much each saves, and on which CPU that was measured: docs/benchmark.md.
"""

import ctypes
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import chain, pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import max_pool2d, pad, relu
from torch.overrides import TorchFunctionMode

# Least sizes: below them, the overhead of a call in Python outweighs the gain.
CHANNELS = 128  # of a conv's input
DENSE = (100, CHANNELS)  # images, channels of the input and the output
RELU_POOL = (2**16, 16)  # numbers, a multiple of channels
# With AMX: most pixels, least channels of the input (and of the output)
WINDOWS_FOR_WEIGHTS = (64, 64)
WINDOWS = (16, 256, 512)


def quick_steps(net: nn.Module, device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """A reusable context, in which the net's forward pass is the fast one if this CPU has one.

    Which one depends on shapes and the CPU's instructions, with AMX also on the number of threads and on whether there
    is a C compiler, so that the same seed gives the same bytes on a machine. If ONEDNN_MAX_CPU_ISA is set, all is as on
    a CPU without AMX.
    """
    able = torch.cpu.get_capabilities()
    amx = able.get("amx_bf16") and "ONEDNN_MAX_CPU_ISA" not in os.environ
    quick = device.type == "cpu" and dtype == torch.bfloat16 and (amx or able.get("avx512_bf16"))
    return QuickSteps(net, bool(amx)) if quick else nullcontext()


class QuickSteps(TorchFunctionMode):
    """A context in which `torch.conv2d` is `conv2d`, and `relu_pool` is a net's `ReLU`s before 2×2 `MaxPool2d`s.

    A layer that stands in several places of the net is left as it is.
    """

    def __init__(self, net: nn.Module, amx: bool):
        super().__init__()
        self.amx = amx
        self.wide = any(weight.ndim == 4 and weight.shape[1] >= CHANNELS for weight in net.parameters())
        pairs = chain(*(pairwise(layers) for layers in net.modules() if isinstance(layers, nn.Sequential)))
        places = Counter(layer for _, layer in net.named_modules(remove_duplicate=False))
        self.pools = [
            (first, pool)
            for first, pool in pairs
            if isinstance(first, nn.ReLU) and _halves(pool) and places[first] == places[pool] == 1
        ]

    def __enter__(self) -> "QuickSteps":
        for activation, pool in self.pools:
            activation.forward, pool.forward = (lambda x: x), relu_pool
        return super().__enter__() if self.wide else self

    def __exit__(self, *error: object) -> None:
        if self.wide:
            super().__exit__(*error)
        for pair in self.pools:
            for layer in pair:
                del layer.forward  # uncovers the class's

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            return conv2d(self.amx, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def conv2d(
    amx: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
) -> Tensor:
    """`torch.conv2d`, as a product where that is faster."""
    plain = dilation in (1, (1, 1)) and groups == 1 and not isinstance(padding, str) and x.ndim == 4
    if not (plain and torch.is_grad_enabled()):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    stride, padding = ((value, value) if isinstance(value, int) else value for value in (stride, padding))
    (images, channels, height, width), out = x.shape, len(weight)
    shape = (height, width, *weight.shape[2:], *stride, *padding)
    if shape == (2, 2, 3, 3, 1, 1, 1, 1) and images >= DENSE[0] and min(channels, out) >= DENSE[1]:
        return _Dense.apply(x, weight, bias)
    if amx and height * width <= WINDOWS_FOR_WEIGHTS[0] and channels >= WINDOWS_FOR_WEIGHTS[1]:
        pixels, wide, wide_out = WINDOWS
        wholly = height * width <= pixels and channels >= wide and out >= wide_out and (*stride,) == (1, 1)
        return _Windows.apply(x, weight, bias, stride, padding, wholly)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


class _Dense(torch.autograd.Function):
    """A 3×3 conv with padding 1 on 2×2 pixels: a product with a matrix (4·O, 4·C)."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel, pixels = weight.permute(0, 2, 3, 1), _pixels(x)
        matrix = weight.new_empty(2, 2, len(weight), 2, 2, x.shape[1])
        for row, column in product((0, 1), repeat=2):  # of the output
            matrix[row, column] = kernel[:, 1 - row : 3 - row, 1 - column : 3 - column]
        matrix = matrix.view(4 * len(weight), -1)
        ctx.save_for_backward(pixels, matrix)
        return _product(pixels, matrix, None if bias is None else bias.repeat(4), (len(weight), 2, 2))

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (pixels, matrix), (needs_x, needs_weight, needs_bias) = ctx.saved_tensors, ctx.needs_input_grad
        gradient, results = _pixels(gradient), [None, None, None]
        if needs_x:
            results[0] = _product(gradient, matrix.T, None, (matrix.shape[1] // 4, 2, 2))
        if needs_weight:
            blocks = (gradient.T.contiguous() @ pixels).view(2, 2, gradient.shape[1] // 4, 2, 2, -1)
            # summed in float32, the dtype of the weights
            dtype = torch.promote_types(blocks.dtype, torch.float32)
            kernel = blocks.new_zeros((blocks.shape[2], 3, 3, blocks.shape[5]), dtype=dtype)
            for row, column in product((0, 1), repeat=2):
                kernel[:, 1 - row : 3 - row, 1 - column : 3 - column] += blocks[row, column]
            results[1] = kernel.permute(0, 3, 1, 2)
        if needs_bias:
            results[2] = gradient.sum(0).view(4, -1).sum(0)
        return tuple(results)


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W·C)."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    """rows · matrixᵀ + bias as maps (B, *shape), channels last; not a view, so that ReLU may work in place."""
    channels, height, width = shape
    size = rows.shape[0] * len(matrix) // (channels * height * width)
    y = _channels_last((size, channels, height, width), rows.dtype)
    out = y.permute(0, 2, 3, 1).view(len(rows), -1)
    if bias is None:
        torch.mm(rows, matrix.T, out=out)
    else:
        torch.addmm(bias, rows, matrix.T, out=out)
    return y


class _Windows(torch.autograd.Function):
    """A conv whose weights' gradient is a product with the input's windows; `wholly`: so are the conv and the rest."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        wholly: bool,
    ) -> Tensor:
        ctx.stride, ctx.padding, ctx.wholly, ctx.shape = stride, padding, wholly, x.shape
        if not wholly:
            ctx.save_for_backward(x, weight)
            return torch.conv2d(x, weight, bias, stride, padding)
        kernel, sizes = weight.shape[2:], zip(x.shape[2:], padding, weight.shape[2:], strict=True)
        pixels = [size + 2 * more - side + 1 for size, more, side in sizes]
        windows = _windows(x, kernel, pixels, stride, padding)
        ctx.save_for_backward(windows, weight)
        return _product(windows, weight.permute(0, 2, 3, 1).flatten(1), bias, (len(weight), *pixels))

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (needs_x, needs_weight, needs_bias, *_) = ctx.saved_tensors, ctx.needs_input_grad
        kernel, results = weight.shape[2:], [None, None, None]
        if needs_x and ctx.wholly:
            # the conv of the gradient with the kernel turned by half, from outputs to inputs
            around = [side - 1 - more for side, more in zip(kernel, ctx.padding, strict=True)]
            windows = _windows(gradient, kernel, ctx.shape[2:], (1, 1), around)
            turned = weight.flip(2, 3).permute(1, 2, 3, 0).flatten(1)
            results[0] = _product(windows, turned, None, ctx.shape[1:])
        elif needs_x:
            results[0] = torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, ctx.stride, ctx.padding)
        if needs_weight:
            taps = None if ctx.wholly else _conv_weights(x, gradient, (*kernel, *ctx.stride, *ctx.padding))
            if taps is None:
                windows = (
                    x if ctx.wholly else _windows(x, kernel, gradient.shape[2:], ctx.stride, ctx.padding)
                )
                # copied, since products with transposed views are slower by more
                taps = gradient.permute(1, 0, 2, 3).flatten(1).contiguous() @ windows
            results[1] = taps.view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
        if needs_bias:
            results[2] = gradient.sum((0, 2, 3))
        return *results, None, None, None


def _windows(x: Tensor, kernel: Sequence[int], pixels: Sequence[int], stride, padding) -> Tensor:
    """The window of x (B, C, H, W) for each output pixel: (B · pixels, kernel's height · width · C)."""
    (up, left), (down, right) = padding, stride
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, left, left, up, up)).contiguous()
    image, row, column, channel = padded.stride()
    shape = (len(x), *pixels, *kernel, x.shape[1])
    strides = (image, row * down, column * right, row, column, channel)
    return padded.as_strided(shape, strides).reshape(len(x) * pixels[0] * pixels[1], -1)


def _conv_weights(x: Tensor, gradient: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The weights' gradient (O, 3, 3, C) by `conv_weights.c`; None if it isn't built or made for these shapes."""
    (images, channels, height, width), out = x.shape, gradient.shape[1]
    same, fits = shape == (3, 3, 1, 1, 1, 1), images > 0 and channels % 32 == out % 32 == 0
    suits = same and fits and x.dtype == torch.bfloat16 and torch.get_num_threads() == 1
    if not (suits and hasattr(_built(), "conv_weights")):
        return None
    x, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, gradient))
    taps = torch.empty((out, 3, 3, channels))
    failed = _call("conv_weights", x, gradient, taps, images, height, width, channels, out)
    return None if failed else taps


def relu_pool(x: Tensor) -> Tensor:
    """ReLU and 2×2 max pool of x (B, C, H, W); in one pass for one thread and bfloat16, channels last."""
    suits = x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last)
    even = x.shape[-2] % 2 == x.shape[-1] % 2 == 0
    long = x.numel() >= RELU_POOL[0] and x.shape[1] % RELU_POOL[1] == 0
    if suits and even and long and torch.get_num_threads() == 1 and _built():
        return _ReluPool.apply(x)
    return relu(max_pool2d(x, 2))  # the maximum commutes with ReLU, which then has a quarter of the pixels


class _ReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = _channels_last((batch, channels, height // 2, width // 2), x.dtype)
        which = torch.empty_like(y, dtype=torch.int16)
        _call("relu_pool", x, y, which, batch * height // 2, width // 2, channels)
        ctx.save_for_backward(which)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (which,) = ctx.saved_tensors
        batch, channels, height, width = which.shape
        gradient_of_x = _channels_last((batch, channels, 2 * height, 2 * width), gradient.dtype)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        _call("relu_pool_backward", gradient, which, gradient_of_x, batch * height, width, channels)
        return gradient_of_x


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _call(name: str, a: Tensor, b: Tensor, c: Tensor, *sizes: int) -> int:
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c))
    return getattr(_built(), name)(*pointers, *map(ctypes.c_size_t, sizes))


@lru_cache
def _built() -> ctypes.CDLL | None:
    """`relu_pool.c` and, with AMX, `conv_weights.c`, compiled for this machine; None where that can't be done."""
    options = ("-O3", "-march=native", "-mprefer-vector-width=256", "-shared", "-fPIC")
    with TemporaryDirectory() as folder:
        library = Path(folder) / "quick_steps.so"
        sources = (Path(__file__).with_name(name) for name in ("relu_pool.c", "conv_weights.c"))
        command = [os.environ.get("CC", "cc"), *options, *sources, "-o", library]
        try:
            subprocess.run(command, check=True, capture_output=True)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError):
            return None


def _halves(pool: nn.Module) -> bool:
    """Whether a layer is a plain 2×2 max pool."""
    if not isinstance(pool, nn.MaxPool2d):
        return False
    how = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return how in ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1)) and not (pool.ceil_mode or pool.return_indices)
