"""Sharing this machine's GPUs among a user's jobs, where no scheduler hands GPUs out.

Every GPU has a number of slots, each a lock of the operating system, which frees it when its process ends, however it
ends. All of a user's Snakemakes on the machine take their slots from the same folder, which nobody else can enter.
"""

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from relusym.errors import UserError


def visible_gpus() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all of the machine (NVIDIA's)."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = map(str.strip, chosen.split(","))
        return [*filter(None, takewhile(lambda name: name != "-1", names))]  # which hides all behind it
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)


def users_folder() -> Path:
    """This user's folder for locks of this machine, 0700; UserError if it is a link, another's, or open to others."""
    folder = Path(tempfile.gettempdir()) / f"relusym-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    entry = folder.lstat()
    if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.getuid() or entry.st_mode & 0o077:
        raise UserError(
            f"{folder} isn't a folder that you alone can enter: remove it, or set TMPDIR to another"
        )
    return folder


@contextmanager
def gpu_slots(
    count: int, jobs_per_gpu: int, *, log: Callable[[str], None] = lambda line: None, poll: float = 1.0
) -> Iterator[list[str]]:
    """Wait for GPUs to be free, and set CUDA_VISIBLE_DEVICES to them for the time of the context; yields their names.

    Enter it before CUDA is first used. Where the machine has no GPU, nothing happens. UserError if more GPUs are asked
    for than there are, or the folder of locks isn't the user's alone.

    Args:
        count: one GPU is shared with other jobs, the least busy first; of more, each is taken as a whole.
        jobs_per_gpu: how many jobs share one GPU.
        log: gets one line if all GPUs are busy.
    """
    gpus = visible_gpus()
    if not gpus:
        yield []
        return
    if count > len(gpus):
        raise UserError(f"the job asks for {count} GPUs, and {len(gpus)} are visible here; ask for fewer")
    folder, before, reported = users_folder(), os.environ.copy(), False
    while True:
        with ExitStack() as held:
            taken = _take(count, jobs_per_gpu, gpus, folder, held)
            if taken:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
                try:
                    yield taken
                finally:
                    del os.environ["CUDA_VISIBLE_DEVICES"]
                    os.environ |= before
                return
        if not reported:
            log(f"waiting for a GPU: all {len(gpus)} are taken, with {jobs_per_gpu} jobs on each")
            reported = True
        time.sleep(poll)


def _take(count: int, jobs_per_gpu: int, gpus: list[str], folder: Path, held: ExitStack) -> list[str]:
    """The GPUs of which slots could be locked, the locks being in `held`; none if there are too few."""
    if count == 1:  # every GPU's first slot before any GPU's second
        slots = ((gpu, slot) for slot in range(jobs_per_gpu) for gpu in gpus)
        return next(([gpu] for gpu, slot in slots if _lock(folder, gpu, slot, held)), [])
    taken = []
    for gpu in gpus:
        with ExitStack() as whole:
            if all(_lock(folder, gpu, slot, whole) for slot in range(jobs_per_gpu)):
                held.push(whole.pop_all())
                taken.append(gpu)
        if len(taken) == count:
            return taken
    return []


def _lock(folder: Path, gpu: str, slot: int, held: ExitStack) -> bool:
    path = folder / f"gpu-{gpu.replace('/', '-')}.{slot}"
    try:
        held.enter_context(FileLock(path).acquire(blocking=False))
    except Timeout:
        return False
    except OSError as error:
        raise UserError(f"{path} can't be locked ({error.strerror}): remove it") from error
    return True
