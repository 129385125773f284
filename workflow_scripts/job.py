"""What every script behind a rule does around its work: one copy at a time, GPU, log, memory, errors in one line."""

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

gc.disable()  # until all is imported, none of which is garbage: looking for it takes a fifth of a small job's time


class job:
    """Send output to the rule's log, keep to its threads, and end on an error with one line on the terminal.

    The log has a user's error as that line, any other as its traceback; the terminal has it if the log can't take it.
    Entered, it gives the lock under which no other copy of this job is at work, such as one of a scheduler that was
    killed.
    """

    def __init__(self, snakemake):
        self._context = _job(snakemake)

    def __enter__(self) -> JobLock:
        return self._context.__enter__()

    def __exit__(self, *raised) -> bool | None:
        return self._context.__exit__(*raised)


@contextmanager
def _job(snakemake) -> Iterator[JobLock]:
    gc.freeze()  # nor is it looked through at the end
    gc.enable()
    if torch := sys.modules.get("torch"):  # tables do without, and start in half the time
        torch.set_num_threads(snakemake.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
    terminal, path = sys.stderr, Path(snakemake.log[0])

    def log(line: str) -> None:
        print(f"rule {snakemake.rule}: {line}", file=terminal, flush=True)

    try:
        try:
            # ignored by the processes around this one, see rules/resources.smk
            for number in filter(hears, WARNINGS):
                signal.signal(number, _end)
            before = _record(snakemake)
            with JobLock(path.with_suffix(".lock"), log) as lock:
                if lock.waited and _record(snakemake) != before and _is_done(snakemake):
                    log(f"{path.stem} was done by the other copy")
                    sys.exit(0)
                with printed_to(path), _gpus(snakemake, log):
                    try:
                        yield lock
                    finally:
                        _hear_no_more()
        finally:
            _hear_no_more()
    except Exception as error:
        print(f"error in rule {snakemake.rule}: {log_error(error, path)}", file=terminal, flush=True)
        sys.exit(1)


def _hear_no_more() -> None:
    """From here on a warning changes nothing: the outputs are written, or the error is known."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    for number in WARNINGS:  # another thread, such as a lock's, would still take it
        signal.signal(number, signal.SIG_IGN)


# From the start of these on, the work has ended, well or not; it takes until `_hear_no_more` to say so.
LEAVING = job.__exit__.__code__, Interruption.__exit__.__code__


def _end(number: int, frame: FrameType | None) -> None:
    """What a warning does to a job that can't save its state: it ends at once, and gives its lock and its GPU back."""
    while frame:
        if frame.f_code in LEAVING:
            return
        frame = frame.f_back
    _hear_no_more()
    raise Interrupted(
        f"ended by {signal.Signals(number).name} before it was done; it starts over when it runs again"
    )


def _record(snakemake) -> tuple[int, int] | None:
    """Which file a job's record is, and when it was written: a job that is done again finds the former one there."""
    record = snakemake.output.get("record")
    if record is None or not Path(record).exists():
        return None
    stat = Path(record).stat()
    return stat.st_ino, stat.st_mtime_ns


def _is_done(snakemake) -> bool:
    """Whether the job that another copy was seen at has all its outputs."""
    return all(Path(output).exists() for output in snakemake.output)


@contextmanager
def _gpus(snakemake, log) -> Iterator[None]:
    """GPUs of this machine for a job that asks for some, unless a scheduler (or the config) has chosen them."""
    jobs_per_gpu, wanted = snakemake.params.get("jobs_per_gpu"), snakemake.resources.get("gpu")
    if jobs_per_gpu is None or not wanted or snakemake.params.device not in ("auto", "cuda"):
        yield
        return
    with gpu_slots(wanted, jobs_per_gpu, log=log) as gpus:
        if gpus:
            log(f"on GPU {', '.join(gpus)}")
        yield
