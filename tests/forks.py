"""Snakemake and its jobs as forks of a process that has imported them (relusym/jobs/forks.py), for the tests.

Imports take most of the time of a dry run and of a tiny job, and the tests have hundreds of both. A fork has the
folder, environment, streams and exit status of the command that it replaces, and is killed with it. Tests of signals,
clusters and costs run Snakemake as users do.

`python forks.py FOLDER SCRIPT …` replaces `python SCRIPT …`.
"""

import json
import os
import select
import shlex
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

LARGEST = 1 << 17  # the most bytes of a request
SCRIPTS = {
    "snakemake": "import sys; sys.executable = {python!r}; from snakemake.cli import main; main()",
    "forks": "import runpy; runpy.run_module('relusym.jobs.forks', run_name='__main__')",
}


class Commands:
    """Commands that run in forks: `snakemake`, and the Python scripts that it starts."""

    def __init__(self):
        from relusym.jobs.forks import Forks  # not at the top: requesters start without site-packages

        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        ask = shlex.join([sys.executable, "-IS", __file__, str(folder)])
        python = folder / "python"  # the interpreter with which Snakemake runs its jobs
        for name, text in SCRIPTS.items():
            (folder / f"{name}.py").write_text(text.format(python=str(python)), encoding="utf-8")
        self.snakemake = [*shlex.split(ask), str(folder / "snakemake.py")]
        python.write_text(
            f"""#!/bin/sh
case "$1 $2 $3" in
  *.py*) exec {ask} "$@";;
  "-m snakemake "*) shift 2; exec {shlex.join(self.snakemake)} "$@";;
  "-P -m relusym.jobs.forks") shift 3; exec {ask} {folder}/forks.py "$@";;
  *) exec {shlex.quote(sys.executable)} "$@";;
esac
""",
            encoding="utf-8",
        )
        python.chmod(0o755)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(f"{folder}/socket")
        self._listening.listen(64)
        before = os.environ.copy()
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        self._forks = Forks(["preloaded"])
        os.environ.clear()
        os.environ.update(before)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            threading.Thread(target=self._run, args=[self._listening.accept()[0]], daemon=True).start()

    def _run(self, asked: socket.socket) -> None:
        question, streams, _, _ = socket.recv_fds(asked, LARGEST, 3)
        command, folder, environment = json.loads(question)
        fork = self._forks.start(*command, environment=environment, folder=folder, streams=streams)
        for stream in streams:
            os.close(stream)
        if asked in select.select([fork, asked], [], [])[0]:  # nobody waits for the fork any more
            with suppress(ProcessLookupError):
                os.kill(fork.pid, signal.SIGKILL)
        with asked, suppress(BrokenPipeError):
            asked.send(str(fork.status()).encode())


def ask(folder: str, *command: str) -> int:
    """Run a command in a fork, and return its exit status."""
    question = [command, str(Path.cwd()), dict(os.environ)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(f"{folder}/socket")
        socket.send_fds(asking, [json.dumps(question).encode()], [0, 1, 2])
        return int(asking.recv(16)) & 0xFF


if __name__ == "__main__":
    sys.exit(ask(*sys.argv[1:]))
