"""One job, one process: a lock that holds across the nodes of a cluster and outlives no process.

After a scheduler was killed and started again, or a job was requeued, two copies of one job may be at work. File locks
of the operating system don't reach across nodes on every file system, so the lock is a file: created by one process
alone, rewritten every few seconds by its owner (the heartbeat), and taken over once the heartbeat has stopped.
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
from typing import Any

from relusym.errors import UserError

BEAT = 10.0  # seconds between heartbeats
PATIENCE = 90.0  # seconds without a heartbeat after which an owner on another machine counts as dead


class JobLock:
    """The right to do one job, held from `acquire` to `release`; also a context manager that waits for it.

    Args:
        path: of the lock's file, in a folder that all nodes share.
        tell: is told, in one line, for whom this process waits.

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
        self._done = threading.Event()

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
        self._heart = threading.Thread(target=self._keep_alive, daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Give the lock back; nothing happens if it was taken over."""
        if self._file is None:
            return
        self._done.set()
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
        self._write_beat(0)
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
        beats, since, told = None, time.monotonic(), False
        while True:
            try:
                now = self.path.read_bytes()
            except FileNotFoundError:
                return
            holder = _parsed(now)
            if now != beats:
                beats, since = now, time.monotonic()
            dead = holder is not None and is_known_dead(holder)
            if dead or time.monotonic() - since > self.patience:
                self._remove(holder)
                return
            if not wait:
                raise UserError(
                    f"{self.path.stem} is being done by {described(holder)}: wait for it, or end it first"
                )
            self.waited = True
            if not told and holder is not None:
                self.tell(f"{self.path.stem} is being done by {described(holder)}: waiting for it")
                told = True
            time.sleep(min(self.beat / 4, 1.0))

    def _remove(self, dead: dict[str, Any] | None) -> None:
        """Remove a dead owner's file, and not that of a process that was quicker to do so."""
        aside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if _parsed(aside.read_bytes()) != dead:
                with suppress(OSError):  # give the quicker one its lock back
                    os.link(aside, self.path)
            aside.unlink()


def owner(path: str | Path) -> dict[str, Any] | None:
    """Who holds the lock at `path`, as written by its owner; None if nobody does."""
    try:
        return _parsed(Path(path).read_bytes())
    except OSError:
        return None


def is_held(path: str | Path, patience: float = PATIENCE) -> bool:
    """Whether a process is at work under the lock at `path`, at a glance: by its process, or its last heartbeat."""
    holder = owner(path)
    if holder is None or is_known_dead(holder):
        return False
    try:
        return (
            time.time() - Path(path).stat().st_mtime < 2 * patience
        )  # clocks of two machines differ a little
    except OSError:
        return False


def is_known_dead(holder: dict[str, Any]) -> bool:
    """Whether the owner is dead for sure: a process of this machine that is gone, or this job before its requeue."""
    me = _this_process()
    if holder.get("machine") == me["machine"]:
        return _start_of(holder.get("pid")) != holder.get("started")
    same_job = holder.get("job") is not None and holder.get("job") == me["job"]
    return same_job and holder.get("restarts", 0) < me["restarts"]


def described(holder: dict[str, Any] | None) -> str:
    """The owner in words."""
    if holder is None:
        return "another process"
    job = f"job {holder['job']}, " if holder.get("job") else ""
    return f"{job}process {holder['pid']} on {holder['host']} since {holder['since']}"


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "machine": [platform.node(), _text("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")],
        "host": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(text.splitlines()[0])
    except (ValueError, IndexError):  # created, and not yet written
        return None


def _start_of(pid: int | None) -> str | None:
    """When a process started, so that a later one of the same number isn't taken for it; None if it is gone."""
    if not Path("/proc/self").exists():
        with suppress(OSError, TypeError):
            os.kill(pid, 0)
            return "running"
        return None
    fields = _text(f"/proc/{pid}/stat")
    if fields is None:
        return None
    state, *rest = fields.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError:
        return None
