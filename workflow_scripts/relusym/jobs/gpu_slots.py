"""Sharing this machine's GPUs among jobs, where no scheduler hands GPUs out.

Every GPU has a number of slots, each a lock file that the operating system frees when its process ends, however it
ends. Jobs of all schedulers on the machine take their slots from the same files, so that none of them race for a GPU.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from relusym.errors import UserError

FOLDER = Path(tempfile.gettempdir()) / "relusym-gpu-slots"  # on this machine, for all its users


def visible_gpus() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all of the machine (NVIDIA's)."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)


@contextmanager
def gpu_slots(
    count: int,
    jobs_per_gpu: int,
    *,
    folder: Path = FOLDER,
    tell: Callable[[str], None] = lambda line: None,
    poll: float = 1.0,
) -> Iterator[list[str]]:
    """Wait for GPUs to be free, and set CUDA_VISIBLE_DEVICES to them for the time of the context.

    Enter it before CUDA is first used. Where the machine has no GPU, nothing happens.

    Args:
        count: one GPU is shared with other jobs, the least busy first; of more, each is taken as a whole.
        jobs_per_gpu: how many jobs share one GPU.
        tell: gets one line if all GPUs are busy.

    Yields:
        the names of the GPUs taken.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    gpus = visible_gpus()
    if not gpus:
        yield []
        return
    if count > len(gpus):
        raise UserError(f"the job asks for {count} GPUs, and {len(gpus)} are visible here; ask for fewer")
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    before, reported = os.environ.copy(), False
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
            tell(f"waiting for a GPU: all {len(gpus)} are taken, with {jobs_per_gpu} jobs on each")
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
    path = folder / f"{gpu.replace('/', '-')}.{slot}"
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    held.callback(os.close, file)
    return True
