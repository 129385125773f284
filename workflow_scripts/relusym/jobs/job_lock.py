"""One job, one process: a lock that holds across the nodes of a cluster and doesn't outlive its process.

After a scheduler was killed and restarted, or a job was requeued, two copies of a job may run at once. The lock is
filelock's lease: a file that only one process can create, and that a thread touches every ten seconds. Another process
may take it over at once if the owner is a dead process of the same machine, else after ninety seconds without a touch,
measured by the waiting process's clock; file times and other machines' clocks don't matter. Locks of the operating
system don't reach across nodes on every file system, and flufl.lock relies on the clocks of all nodes.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from relusym.errors import UserError
from relusym.whole_files import open_file

BEAT = 10.0  # seconds between touches
PATIENCE = 90.0  # seconds without a touch after which an owner that may be alive counts as dead


class JobLock:
    """The right to do one job, held from `acquire` to `release`; also a context manager that waits for it.

    The lock's file is `path`, in a folder that all nodes share; `log` is called with one line on the process waited
    for. `waited`: whether another process held the lock first.
    """

    def __init__(
        self,
        path: str | Path,
        log: Callable[[str], None] = lambda line: None,
        beat: float = BEAT,
        patience: float = PATIENCE,
    ):
        self.path, self.log, self.beat, self.patience = Path(path), log, beat, patience
        self.waited, self._looked = False, 0.0
        self._lease = self._lease_of(self.path)

    def __enter__(self) -> "JobLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, wait: bool = True) -> None:
        """Take the lock, or wait for it; UserError if its folder can't be written, or it is held and not `wait`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            first = seen = _state(self.path)
            since, reported = time.monotonic(), False
            while not self._take():
                now, alive = _state(self.path), self._is_alive()
                if now != seen:
                    seen, since = now, time.monotonic()
                elif alive is False or time.monotonic() - since > self.patience:
                    self._remove(seen)
                    continue
                busy = f"{self.path.stem} is being done by {owner(self.path)} ({self.path})"
                if not wait and (alive or (first and now and now != first)):
                    raise UserError(f"{busy}: wait for it, or end it first")
                self.waited = True
                if not reported:
                    self.log(f"{busy}: {'waiting for it' if wait else 'checking whether it is alive'}")
                    reported = True
                time.sleep(min(self.beat / 4, 1.0))
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}): free space or change the folder"
            ) from error

    def release(self) -> None:
        """Release the lock; nothing happens if another process has taken it over."""
        with suppress(OSError):
            self._lease.release()

    def check(self) -> None:
        """Raise UserError if another process has taken the lock over, which happens if this one was paused for long.

        Reads the file at most once a second, since a training calls this after every step.
        """
        if time.monotonic() - self._looked < 1:
            return
        self._looked = time.monotonic()
        if any(self._lease.is_lock_held_by_us for _ in range(2)):  # one read may fail
            return
        try:
            open_file(self.path).close()
        except FileNotFoundError:
            pass
        except OSError:  # while the file system doesn't respond, nobody else can take the lock over either
            return
        raise UserError(f"{self.path.stem} was taken over by {owner(self.path)}: this copy stops")

    def _take(self) -> bool:
        try:
            self._lease.acquire(blocking=False)
        except (Timeout, LeaseSettingsMismatch):
            return False
        return True

    def _remove(self, dead: tuple[int, ...] | None) -> None:
        """Remove a lock file that filelock leaves: an empty one, a zombie's, or any if names can't be exchanged (NFS).

        Only one process at a time does so, so that none removes the new lock of a quicker one.
        """
        turn = self._lease_of(self.path.with_name(f".{self.path.name}.takeover"))
        try:
            with turn.acquire(timeout=self.patience), suppress(FileNotFoundError):
                if _state(self.path) == dead:
                    self.path.unlink()
        except (Timeout, LeaseSettingsMismatch):
            turn.force_break()  # the process whose turn it was is gone, too

    def _lease_of(self, path: Path) -> SoftFileLease:
        return SoftFileLease(
            path, lease_duration=self.patience, heartbeat_interval=self.beat, thread_local=False, mode=0o644
        )

    def _is_alive(self) -> bool | None:
        """Whether the owner is alive; None if that is unknown: the owner is on another machine, or unnamed."""
        holder = self._lease.owner
        if holder is None or holder.hostname != socket.gethostname():
            return None
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE
        return False


def owner(path: str | Path) -> str:
    """The owner of the lock at `path`, for messages."""
    holder = SoftFileLease(path).owner
    return f"process {holder.pid} on {holder.hostname}" if holder else "an unknown process"


def is_held(path: str | Path) -> bool:
    """Whether a process holds the lock at `path`, without waiting: an owner on another machine counts as alive."""
    if not os.path.lexists(path):
        return False
    lock = JobLock(path)
    with suppress(OSError):
        if not lock._take():
            return lock._is_alive() is not False
        lock.release()
    return False


def _state(path: Path) -> tuple[int, ...] | None:
    """A value that changes with every touch of a lock's file, and with its owner; None if the file doesn't exist."""
    with suppress(FileNotFoundError):
        entry = path.lstat()
        return entry.st_ino, entry.st_mtime_ns, entry.st_ctime_ns
    return None
