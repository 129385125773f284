"""What every script behind a rule does around its work: one copy at a time, GPU, log, memory, errors in one line."""

import errno
import gc
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from relusym.errors import WARNINGS, Interrupted, UserError
from relusym.jobs.gpu_slots import gpu_slots
from relusym.jobs.job_lock import JobLock
from relusym.jobs.memory import keep_freed_memory

gc.disable()  # until all is imported, none of which is garbage: looking for it takes a fifth of a small job's time

# a full disk, folders without rights: what the user has to mend
NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def job(snakemake) -> Iterator[JobLock]:
    """Send output to the rule's log, keep to its threads, and end on an error with one line on the terminal.

    The log has a user's error as that line, any other as its traceback; the terminal has it if the log can't take it.
    Yields the lock under which no other copy of this job is at work, such as one of a scheduler that was killed.
    """
    gc.freeze()  # nor is it looked through at the end
    gc.enable()
    for number in WARNINGS:  # ignored by the processes around this one, see rules/common.smk
        signal.signal(number, _end)
    if torch := sys.modules.get("torch"):  # tables do without, and start in half the time
        torch.set_num_threads(snakemake.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
    terminal, path = sys.stderr, Path(snakemake.log[0])

    def tell(line: str) -> None:
        print(f"rule {snakemake.rule}: {line}", file=terminal, flush=True)

    try:
        with JobLock(path.with_suffix(".lock"), tell) as lock:
            if lock.waited and _is_done(snakemake):
                tell(f"{path.stem} was done by the other copy")
                sys.exit(0)
            with _written_to(path), _gpus(snakemake, tell):
                yield lock
    except Exception as error:
        print(f"error in rule {snakemake.rule}: {_logged(error, path)}", file=terminal, flush=True)
        sys.exit(1)


@contextmanager
def _written_to(path: Path) -> Iterator[None]:
    """What is printed goes to the log at `path`."""
    log, streams = path.open("w", encoding="utf-8", buffering=1), (sys.stdout, sys.stderr)
    sys.stdout = sys.stderr = log
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        with suppress(OSError):  # on a full disk, where it would hide what came before
            log.close()


def _logged(error: Exception, path: Path) -> str:
    """Write an error to the log at `path`, and return what to print beside: the traceback if the log can't take it."""
    if isinstance(error, OSError) and error.errno in NOT_OURS:
        error = UserError(f"{error.filename or path}: {error.strerror}; free space, or change its rights")
    expected = isinstance(error, UserError)
    whole = f"error: {error}\n" if expected else traceback.format_exc()
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(whole)
    except OSError:
        return str(error) if expected else whole.rstrip()
    return str(error) if expected else f"{type(error).__name__}: {error}; see {path}"


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """What a warning does to a job that can't save its state: it ends at once, and gives its lock and its GPU back."""
    raise Interrupted(
        f"ended by {signal.Signals(number).name} before it was done; it starts over when it runs again"
    )


def _is_done(snakemake) -> bool:
    """Whether the job that another copy was seen at has all its outputs."""
    outputs = snakemake.output
    return outputs.get("record") is not None and all(Path(output).exists() for output in outputs)


@contextmanager
def _gpus(snakemake, tell) -> Iterator[None]:
    """GPUs of this machine for a job that asks for some, unless a scheduler (or the config) has chosen them."""
    jobs_per_gpu = snakemake.params.get("jobs_per_gpu")
    if (
        jobs_per_gpu is None
        or not snakemake.resources.get("gpu")
        or snakemake.params.device not in ("auto", "cuda")
    ):
        yield
        return
    with gpu_slots(snakemake.resources.gpu, jobs_per_gpu, tell=tell) as gpus:
        if gpus:
            tell(f"on GPU {', '.join(gpus)}")
        yield
