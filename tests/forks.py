"""Snakemake and its jobs as forks of one process that has imported them, torch and the library.

Imports take most of the time of a dry run and of a tiny job, and the tests have hundreds of both. A fork has the
folder, environment, streams and exit status of the command it stands for, and is killed with it. Tests of signals,
clusters and costs run Snakemake as users do.

`python forks.py serve FOLDER` is the process that forks; `python forks.py ask FOLDER` and a script, `snakemake …` or
`-m MODULE …` stands for a command.
"""

import gc
import json
import os
import pkgutil
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

IMPORTED = (
    "torch",
    "torchvision",
    "scipy.optimize",
    "scipy.stats",
    "pandas",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "jsonschema",  # Snakemake's own need
    "snakemake.cli",
    "snakemake.script",
    "smart_open",  # and nbformat: what Snakemake imports late
    "nbformat",
)
LARGEST = 1 << 17  # bytes of a question


class Forks:
    """The process that forks, for as long as the one that made it lives."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        ask = shlex.join([sys.executable, "-IS", __file__, "ask", self._folder.name])
        python = Path(self._folder.name, "python")  # what Snakemake runs its jobs with
        python.write_text(
            f"""#!/bin/sh
case "$1 $2" in
  *.py*) exec {ask} "$1";;
  "-m snakemake" | "-P -m") shift; exec {ask} "$@";;
  *) exec {shlex.quote(sys.executable)} "$@";;
esac
""",
            encoding="utf-8",
        )
        python.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", self._folder.name],
            stdin=subprocess.PIPE,  # closed when this process ends
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout and self._process.stdout.readline(), "no process to fork"
        self.snakemake = [*shlex.split(ask), "snakemake"]


def ask(folder: str, *command: str) -> int:
    """Have a command run in a fork; its exit status."""
    question = {"command": command, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(f"{folder}/socket")
        socket.send_fds(asking, [json.dumps(question).encode()], [0, 1, 2])
        status = int(asking.recv(16))
    return status if status >= 0 else 128 - status


def serve(folder: str) -> None:
    """Fork for each command until standard input is closed."""
    library = (module.name for module in pkgutil.walk_packages(import_module("relusym").__path__, "relusym."))
    for name in (*IMPORTED, *library):
        import_module(name)
    sys.modules["snakemake.cli"].get_argument_parser()  # looks for Snakemake's plugins
    gc.freeze()
    sys.executable = f"{folder}/python"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{folder}/socket")
        listening.listen(64)
        print("ready", flush=True)
        forks: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor: process, and who asked for it
        while True:
            asking = [asked for _, asked in forks.values()]
            ready = select.select([sys.stdin, listening, *forks, *asking], [], [])[0]
            if sys.stdin in ready:
                return
            if listening in ready:
                asked, _ = listening.accept()
                question, streams, _, _ = socket.recv_fds(asked, LARGEST, 3)
                process = os.fork()
                if process == 0:
                    run(**json.loads(question), streams=streams)
                forks[os.pidfd_open(process)] = process, asked
                for stream in streams:
                    os.close(stream)
            for ended in [fork for fork in forks if fork in ready]:
                process, asked = forks.pop(ended)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                with suppress(BrokenPipeError), asked:
                    asked.send(str(status).encode())
                os.close(ended)
            for process, asked in forks.values():
                if asked in ready:  # nobody waits any more
                    os.kill(process, signal.SIGKILL)


def run(command: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """What Python does with a script or with `-m …`, but for taking all modules apart at the end."""
    from relusym.jobs.forks import status_of  # `ask` starts without the packages that are installed

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    if command[0] == "snakemake":
        start, sys.path[0] = sys.modules["snakemake.cli"].main, folder
    elif command[0] == "-m":  # the process that forks for Snakemake
        sys.argv = command[1:]
        sys.modules.pop(command[1], None)  # Python warns of one that is there
        start = partial(runpy.run_module, command[1], run_name="__main__")
    else:
        start, sys.path[0] = (
            partial(runpy.run_path, command[0], run_name="__main__"),
            str(Path(command[0]).parent),
        )
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    status = 1
    try:
        status = status_of(start)
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit({"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:]))
