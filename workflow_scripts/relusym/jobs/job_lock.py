"""One job, one process: a lock that holds across the nodes of a cluster and outlives no process.

After a scheduler was killed and started again, or a job was requeued, two copies of one job may be at work. File locks
of the operating system don't reach across nodes on every file system, so the lock is a file: created by one process
alone, rewritten every few seconds by its owner (the heartbeat), and taken over once the heartbeat has stopped. Clocks
of files and of other machines decide nothing: whoever waits looks for a change, by a clock of its own.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from relusym.errors import UserError

BEAT = 10.0  # seconds between heartbeats
PATIENCE = 90.0  # seconds without a heartbeat after which an owner that may be alive counts as dead
AT_THE_START = 2.5  # the same for one that doesn't wait, in heartbeats: one may be late


class JobLock:
    """The right to do one job, held from `acquire` to `release`; also a context manager that waits for it.

    Args:
        path: of the lock's file, in a folder that all nodes share.
        tell: gets one line about whom this process waits for.

    Attributes:
        waited: whether another process held the lock when this one came.
    """

    def __init__(
        self,
        path: str | Path,
        tell: Callable[[str], None] = lambda line: None,
        beat: float = BEAT,
        patience: float = PATIENCE,
    ):
        self.path, self.tell, self.beat, self.patience = Path(path), tell, beat, patience
        self.waited = False
        self._file: int | None = None
        self._done, self._heart = threading.Event(), threading.Thread(target=self._keep_alive, daemon=True)

    def __enter__(self) -> "JobLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, wait: bool = True) -> None:
        """Take the lock; if another process holds it, wait for it to end.

        Raises:
            UserError: the folder can't be written; or another process holds the lock and `wait` is false.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                self._await(wait)
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}): free space or change the folder"
            ) from error
        self._heart.start()

    def release(self) -> None:
        """Give the lock back; nothing happens if it was taken over."""
        if self._file is None:
            return
        self._done.set()
        if self._heart.is_alive():
            self._heart.join()
        with suppress(OSError):
            if self._is_mine():
                self.path.unlink()
        os.close(self._file)
        self._file = None

    def check(self) -> None:
        """Raises UserError if another process took the lock over, as it may if this one was paused for long."""
        if not self._is_mine():
            raise UserError(
                f"{self.path.stem} was taken over by {described(owner(self.path))}: this copy stops"
            )

    def _create(self) -> bool:
        try:
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        self._me = json.dumps(_this_process() | {"token": uuid.uuid4().hex}).encode()
        try:
            self._write_beat(0)
        except OSError:
            self.release()
            raise
        return True

    def _write_beat(self, count: int) -> None:
        # into the own file, wherever its name points by now
        os.pwrite(self._file, self._me + b"\n%012d\n" % count, 0)
        os.fsync(self._file)

    def _keep_alive(self) -> None:
        count = 0
        while not self._done.wait(self.beat):
            count += 1
            with suppress(OSError):  # a full disk stops the job elsewhere, with a better message
                self._write_beat(count)

    def _is_mine(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(self.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _await(self, wait: bool) -> None:
        """Return once the lock's file is gone: given back by its owner, or removed since its owner is dead."""
        patience = self.patience if wait else AT_THE_START * self.beat
        seen, since, reported = None, time.monotonic(), False
        while True:
            try:
                file = self.path.open("rb")
            except FileNotFoundError:
                return
            with file:
                text = file.read()
                holder = _parsed(text)
                runs = _runs(holder)
                changed, seen = seen not in (None, text), text
                if changed:
                    since = time.monotonic()
                if runs is False or time.monotonic() - since > patience:
                    self._remove(file)
                    return
            busy = f"{self.path.stem} is being done by {described(holder)} ({self.path})"
            if not wait and (runs or changed):
                raise UserError(f"{busy}: wait for it, or end it first")
            self.waited = True
            if not reported:
                self.tell(f"{busy}: {'waiting for it' if wait else 'checking whether it is alive'}")
                reported = True
            time.sleep(min(self.beat / 4, 1.0))

    def _remove(self, dead: BinaryIO) -> None:
        """Remove a dead owner's file, and not that of a process that was quicker: one at a time does so."""
        turn = self.path.with_name(f".{self.path.name}.takeover")
        with JobLock(turn, beat=self.beat, patience=self.patience), suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(dead.fileno())):
                self.path.unlink()


def owner(path: str | Path) -> dict[str, Any] | None:
    """Who holds the lock at `path`, as written by its owner; None if nobody does."""
    with suppress(OSError):
        return _parsed(Path(path).read_bytes())


def is_held(path: str | Path) -> bool:
    """Whether a process holds the lock at `path`, at a glance: one on another machine counts until it is overtaken."""
    holder = owner(path)
    return holder is not None and _runs(holder) is not False


def described(holder: dict[str, Any] | None) -> str:
    """The owner in words."""
    if holder is None:
        return "an unknown process"
    job = f"job {holder['job']}, " if holder.get("job") else ""
    return f"{job}process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _runs(holder: dict[str, Any] | None) -> bool | None:
    """Whether the owner is alive; None if that can't be seen: it is on another machine, or unnamed."""
    if holder is None:
        return None
    me = _this_process()
    if holder.get("machine") == me["machine"] is not None:
        return _start_of(holder.get("pid")) == holder.get("started")
    same_job = me["job"] is not None and holder.get("job") == me["job"]
    return False if same_job and holder.get("restarts", 0) < me["restarts"] else None  # it was requeued


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "machine": _machine(),
        "host": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _machine() -> list[str] | None:
    """Where the number of a process means something: this machine since its boot, this container. Linux alone tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return [platform.node(), boot.strip(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:
        return None


def _start_of(pid: int | None) -> str | None:
    """When a process started, so that a later one of the same number isn't taken for it; None if it is gone."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text.splitlines()[0])
    except (ValueError, IndexError):  # created, and not yet written
        return None
    return found if isinstance(found, dict) else None
