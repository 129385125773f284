"""What a job ran on, and what it took."""

import platform
import resource
import time
from typing import Any

import psutil
import torch

import relusym
from relusym.errors import UserError


def device_named(name: str) -> torch.device:
    """The device a config's `device` means; auto is a GPU where there is one. UserError if it isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device: {name} is asked for, but torch {torch.__version__} sees no GPU; set device: cpu"
        )
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise UserError(f"device: {name} given; allowed is at most cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)


class JobMeter:
    """What a job takes from here on, and what it ran with."""

    def __init__(self, device: torch.device):
        self.device, self.started = device, time.perf_counter()

    def fields(self) -> dict[str, Any]:
        """The `code` and `cost` of a record: versions and device; seconds and peak memory in MB, of job and process."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if self.device.type == "cuda":
            name, peak = (
                torch.cuda.get_device_name(self.device),
                torch.cuda.max_memory_allocated(self.device) / 2**20,
            )
        else:
            name, peak = platform.machine(), resident
        return {
            "code": {
                "relusym": relusym.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "device": f"{self.device.type} {name}",
            },
            "cost": {
                "seconds": round(time.perf_counter() - self.started, 2),
                "peak_memory_mb": round(peak, 1),
                "job_seconds": round(time.time() - psutil.Process().create_time(), 2),
                "job_memory_mb": round(resident, 1),
            },
        }
