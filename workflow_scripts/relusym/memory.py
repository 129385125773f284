"""The process's memory: freed memory is reused instead of being fetched anew from the kernel; its peak."""

import ctypes
import resource
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's <malloc.h>
LARGEST = (2**30, 2**25)  # older versions refuse more than 32 MiB


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; with another C library, do nothing.

    By default it returns blocks as large as a batch's feature maps to the kernel, which zeroes them page by page for
    the next batch: a tenth of a training's time on a CPU.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST):
            mallopt(TRIM_THRESHOLD, LARGEST[0])


def peak_mb() -> float:
    """The most memory that the process has held so far, in MB (2²⁰ bytes)."""
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
