"""Jobs as forks of one process that has imported what they need: imports take most of a small job's time.

`python -m relusym.jobs.forks MODULE…` is that process. Its standard input is a socket, each message a script to run;
it ends when the other side does.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from relusym.errors import WARNINGS

LARGEST = 1 << 14  # bytes of a message
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def can_fork() -> bool:
    """Whether a process that has imported numerical libraries can be forked here: macOS's don't bear it."""
    return sys.platform == "linux"


@dataclass
class Fork:
    """A fork that is at work.

    Attributes:
        pid: of its process.
    """

    pid: int
    _told: socket.socket

    def succeeded(self) -> bool:
        """Wait for its end; whether its exit status was 0. A fork that was killed did not succeed."""
        with self._told:
            return bool(self._told.recv(1))


class Forks:
    """The process that forks, for as long as this one lives.

    Args:
        modules: what it imports first, as far as it is there.
    """

    def __init__(self, modules: Sequence[str]):
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", __name__, *modules]
        with asked:
            self._process = subprocess.Popen(
                command, stdin=asked, env=os.environ | dict.fromkeys(THREADS, "1")
            )

    def start(self, script: str, threads: int, **environment: str) -> Fork:
        """Run a Python script in a fork as `python script` would, but for an empty standard input.

        Args:
            threads: that numerical libraries may use.
            environment: variables, beside those that this process had when it made the object.

        Raises:
            ChildProcessError: the process that forks has ended, and the script was not begun.
        """
        told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = json.dumps([script, environment | dict.fromkeys(THREADS, str(threads))]).encode()
        try:
            with tells:
                socket.send_fds(self._asking, [message], [tells.fileno()])
            pid = int(told.recv(16))
        except (ConnectionError, ValueError):
            raise ChildProcessError("the process that starts jobs has ended") from None
        return Fork(pid, told)


def serve(modules: Sequence[str]) -> None:
    """Fork for each message until the other side is closed."""
    # Ctrl-C is for the jobs, which are in the same process group
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    for name in modules:
        with suppress(ImportError):  # a job that needs it says so
            import_module(name)
    gc.freeze()
    # of an allocator that is preloaded, say: these modules start none (tests/test_forks.py)
    warnings.filterwarnings("ignore", ".*is multi-threaded", DeprecationWarning)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=sys.stdin.fileno()) as asked:
        while True:
            message, descriptors, _, _ = socket.recv_fds(asked, LARGEST, 1)
            if not message:
                return
            with socket.socket(fileno=descriptors[0]) as tells:
                if os.fork() == 0:
                    _become(*json.loads(message), tells, before)


def _become(script: str, environment: dict[str, str], tells: socket.socket, signals: set[int]) -> NoReturn:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment)
        sys.argv, sys.path[:0] = [script], [str(Path(script).parent)]
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        tells.send(str(os.getpid()).encode())
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        status = status_of(partial(runpy.run_path, script, run_name="__main__"))
        if status == 0:
            tells.send(b"0")
    finally:
        os._exit(status)  # taking all modules apart would take longer than many a job


def status_of(work: Callable[[], object]) -> int:
    """Work as the whole of a process: exceptions and output are printed, functions of `atexit` are called.

    Returns:
        The exit status that Python would end with.
    """
    status = 0
    try:
        work()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(sys.argv[1:])
