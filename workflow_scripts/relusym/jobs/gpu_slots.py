"""Sharing this machine's GPUs among a user's jobs, where no scheduler assigns GPUs.

Every GPU has a number of slots, each a lock of the operating system, which releases it when the process ends, for
whatever reason. All of a user's Snakemakes on the machine share one folder of locks, which nobody else can enter.
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
    """The NVIDIA GPUs that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else the machine's."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = map(str.strip, chosen.split(","))
        return [*filter(None, takewhile(lambda name: name != "-1", names))]  # CUDA stops at -1
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)


def users_folder() -> Path:
    """The user's folder of locks on this machine, 0700; UserError if it is a link, or others own it or can enter it."""
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
    """Wait until GPUs are free, and set CUDA_VISIBLE_DEVICES to them within the context; yields their names.

    Enter it before CUDA is first used. On a machine without GPUs, it yields no names and sets nothing. UserError if the
    job asks for more GPUs than are visible, or the folder of locks isn't private to the user.

    Args:
        count: a single GPU is shared with other jobs, the least busy GPU first; two or more are taken exclusively.
        jobs_per_gpu: how many jobs share one GPU.
        log: called with one line if all GPUs are busy.
    """
    gpus = visible_gpus()
    if not gpus:
        yield []
        return
    if count > len(gpus):
        raise UserError(f"the job asks for {count} GPUs, but only {len(gpus)} are visible; ask for fewer")
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
    """Lock slots of `count` GPUs, with the locks in `held`, and return these GPUs; none if too few are free."""
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
