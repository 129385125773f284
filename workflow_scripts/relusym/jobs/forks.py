"""Jobs as forks of one process that has imported their modules, since imports take most of a small job's time.

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

LARGEST = 1 << 17  # the most bytes of a message
START_WITHIN = 300  # seconds; imports are slow on a busy machine
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def can_fork() -> bool:
    """Whether a process that has imported numerical libraries can be forked: on macOS, these libraries break."""
    return sys.platform == "linux"


@dataclass
class Fork:
    """A running fork. `pid`: of its process."""

    pid: int
    _answers: socket.socket

    def status(self) -> int:
        """Wait for it to end, and return its exit status; -1 if it was killed."""
        with self._answers:
            return int(self._answers.recv(16) or -1)

    def fileno(self) -> int:
        """For `select`: readable once the fork has ended."""
        return self._answers.fileno()


class Forks:
    """The process that forks, which lives as long as this one; it first imports those of `modules` that exist."""

    def __init__(self, modules: Sequence[str]):
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", __name__, *modules]
        with asked:
            self._process = subprocess.Popen(
                command, stdin=asked, env=os.environ | dict.fromkeys(THREADS, "1")
            )

    def start(
        self,
        *command: str,
        environment: dict[str, str],
        folder: str | Path = ".",
        streams: Sequence[int] = (),
        within: float = START_WITHIN,
    ) -> Fork:
        """Run `python command…`, a script with its arguments, in a fork; `environment` is its whole environment.

        `streams`: descriptors of its standard input, output and error; by default, an empty input, and this process's
        output and error. ChildProcessError if the process that forks has ended or doesn't answer within `within`
        seconds; the script hasn't been started then.
        """
        answers, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = json.dumps([command, environment, str(Path(folder).absolute())]).encode()
        for side in (answers, self._asking):
            side.settimeout(within)
        try:
            with answering:
                socket.send_fds(self._asking, [message], [answering.fileno(), *streams])
            pid = int(answers.recv(16))
        except (OSError, ValueError):
            answers.close()
            self._process.kill()  # otherwise it might start the script later
            raise ChildProcessError("the process that starts jobs has ended") from None
        answers.settimeout(None)
        return Fork(pid, answers)


def serve(modules: Sequence[str]) -> None:
    """Fork for each message until the other side is closed."""
    # Ctrl-C reaches this process, too, which is in the jobs' process group, but is meant for the jobs
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    for name in modules:
        with suppress(ImportError):  # a job that needs it will fail
            import_module(name)
    gc.freeze()
    # any threads are a preloaded allocator's, for instance: these modules start none (tests/test_forks.py)
    warnings.filterwarnings("ignore", ".*is multi-threaded", DeprecationWarning)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=sys.stdin.fileno()) as asked:
        while True:
            message, descriptors, _, _ = socket.recv_fds(asked, LARGEST, 4)
            if not message:
                return
            if os.fork() == 0:
                _become(*json.loads(message), *descriptors, signals=before)
            for descriptor in descriptors:
                os.close(descriptor)


def _become(
    command: list[str],
    environment: dict[str, str],
    folder: str,
    answering: int,
    *streams: int,
    signals: set[int],
) -> NoReturn:
    status = 1
    try:
        answers = socket.socket(fileno=answering)
        for number, stream in enumerate(streams or [os.open(os.devnull, os.O_RDONLY)]):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = command
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [str(Path(command[0]).parent), *filter(None, paths)]
        atexit._clear()  # functions that the imported modules registered are for the parent to call
        if multiprocessing := sys.modules.get("multiprocessing.util"):
            atexit.register(multiprocessing._exit_function)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        answers.send(b"%d" % os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        status = _status_of(partial(runpy.run_path, command[0], run_name="__main__"))
        answers.send(b"%d" % status)
    finally:
        os._exit(status)  # tearing down all modules would take longer than many a job


def _status_of(work: Callable[[], object]) -> int:
    """Call `work` as if it were the whole program, and return the exit status that Python would end with."""
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
