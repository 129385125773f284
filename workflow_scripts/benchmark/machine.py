"""What the benchmark runs on: its name, and how fast it multiplies matrices."""

import platform
import re
import statistics
import time
from pathlib import Path

import torch

REPEATS = 7
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices: large enough to reach the device's rate


def clock(device: torch.device) -> float:
    """Seconds on a clock that all processes share, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def device_name(device: torch.device, cores: int) -> str:
    """The GPU's name, or the CPU's with the number of cores in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(models, platform.processor() or platform.machine())}, {cores} cores"


def slug(name: str) -> str:
    """A name as a file's: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of products of square matrices, with torch's present number of threads; the median of several."""
    side = side or SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b  # the first product sets things up
    seconds = []
    for _ in range(REPEATS):
        started = clock(device)
        a @ b
        seconds.append(clock(device) - started)
    return 2 * side**3 / statistics.median(seconds)
