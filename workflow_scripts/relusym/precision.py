"""The precision in which float32 is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the context, or a function that it decorates, float32 keeps full precision on GPUs as well.

    NVIDIA GPUs from Ampere on have a less precise format, TF32 (10 bits of mantissa instead of 23), which PyTorch uses
    for convolutions by default. Autocast to bfloat16 or float16 is not touched.
    """
    kinds = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
