"""The frame of every rule's script: one copy at a time, GPU, log, memory, and errors in one line."""

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from relusym.errors import WARNINGS, Interrupted, Interruption, hears
from relusym.jobs.gpu_slots import gpu_slots
from relusym.jobs.job_lock import JobLock
from relusym.jobs.job_log import log_error, printed_to
from relusym.memory import keep_freed_memory

gc.disable()  # during imports, which leave no garbage: searching for it takes a fifth of a small job's time


class job:
    """A context that sends output to the rule's log, limits threads, and exits on an error with a line on the terminal.

    The log gets a UserError as that line, any other error as its traceback, which the terminal gets if the log can't be
    written. `as` binds the lock that keeps out other copies of this job, such as those of a scheduler that was killed.
    """

    def __init__(self, snakemake):
        self._context = _job(snakemake)

    def __enter__(self) -> JobLock:
        return self._context.__enter__()

    def __exit__(self, *raised) -> bool | None:
        return self._context.__exit__(*raised)


@contextmanager
def _job(snakemake) -> Iterator[JobLock]:
    gc.freeze()  # the imported modules aren't searched at exit, either
    gc.enable()
    if torch := sys.modules.get("torch"):  # tables don't import it, and start in half the time
        torch.set_num_threads(snakemake.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
    terminal, path = sys.stderr, Path(snakemake.log[0])

    def log(line: str) -> None:
        print(f"rule {snakemake.rule}: {line}", file=terminal, flush=True)

    try:
        try:
            # the shell and the Snakemake around this process ignore these signals, see rules/resources.smk
            for number in filter(hears, WARNINGS):
                signal.signal(number, _end)
            before = _record(snakemake)
            with JobLock(path.with_suffix(".lock"), log) as lock:
                are_made = all(Path(output).exists() for output in snakemake.output)
                if lock.waited and are_made and _record(snakemake) != before:
                    log(f"{path.stem} was done by the other copy")
                    sys.exit(0)
                with printed_to(path), _gpus(snakemake, log):
                    try:
                        yield lock
                    finally:
                        _ignore_warnings()
        finally:
            _ignore_warnings()
    except Exception as error:
        print(f"error in rule {snakemake.rule}: {log_error(error, path)}", file=terminal, flush=True)
        sys.exit(1)


def _ignore_warnings() -> None:
    """Ignore warnings from here on: the outputs are written, or the error is known."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    for number in WARNINGS:  # another thread, such as a lock's, would still receive the signal
        signal.signal(number, signal.SIG_IGN)


# Once one of these functions is entered, the work is over, successful or not, though warnings aren't ignored yet.
LEAVING = job.__exit__.__code__, Interruption.__exit__.__code__


def _end(number: int, frame: FrameType | None) -> None:
    """End a job that can't save its state, on a warning; its lock and its GPU are released."""
    while frame:
        if frame.f_code in LEAVING:
            return
        frame = frame.f_back
    _ignore_warnings()
    raise Interrupted(
        f"ended by {signal.Signals(number).name} before it was done; it starts over when it runs again"
    )


def _record(snakemake) -> tuple[int, int] | None:
    """The inode and modification time of a job's record, to tell a new record from that of an earlier run."""
    record = snakemake.output.get("record")
    if record is None or not Path(record).exists():
        return None
    stat = Path(record).stat()
    return stat.st_ino, stat.st_mtime_ns


@contextmanager
def _gpus(snakemake, log) -> Iterator[None]:
    """Hold GPUs of this machine for a job that needs any, unless a scheduler or the config has chosen them."""
    jobs_per_gpu, wanted = snakemake.params.get("jobs_per_gpu"), snakemake.resources.get("gpu")
    if jobs_per_gpu is None or not wanted or snakemake.params.device not in ("auto", "cuda"):
        yield
        return
    with gpu_slots(wanted, jobs_per_gpu, log=log) as gpus:
        if gpus:
            log(f"on GPU {', '.join(gpus)}")
        yield
