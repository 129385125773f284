"""Independent random streams from the seeds in the config."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one use of randomness, named by e.g. model type, purpose and epoch.

    Streams with different names are independent: two model types with the same seed share neither initial weights nor
    the order of the images, so that merging them (Table 4) merges independently trained nets.
    """
    key = [seed, *(zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names)]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator on the CPU, seeded by `stream`."""
    import torch  # here, so that jobs without it start ten times faster

    return torch.Generator().manual_seed(stream(seed, *names))
