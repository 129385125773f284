"""Several processes on one node that train one net: starting them, and telling how they ended."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from relusym.errors import UserError

SCRIPTS = Path(__file__).parents[1]
ENDED = re.compile(r"exitcode\s*:\s*(-?\d+)")
USER_ERROR = re.compile(r"UserError: (.*)")


def rank() -> int:
    """This process's number, from 0; 0 if it is the only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several processes, each has the GPU of its number."""
    return torch.device("cuda", rank()) if device.type == "cuda" and world_size() > 1 else device


@contextmanager
def process_group(device: torch.device):
    """Join the processes that torchrun started together."""
    # torchrun keeps its store when it starts the processes again; without a prefix they would wait for the dead ones
    store, number, world = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=number, world_size=world)
    if device.type == "cuda":
        torch.cuda.set_device(rank())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def launch(
    module: str, job: dict[str, Any], processes: int, restarts: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run `python -m module <job's file>` in several processes under torchrun; what rank 0 wrote to job["result"].

    If one process dies, torchrun ends the others, and starts all of them together up to `restarts` times.

    Args:
        job: JSON; "result" is added.
        say: is given every line that the processes print.

    Raises:
        UserError: the processes failed more often than they may be restarted.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, given = Path(folder) / "result.json", Path(folder) / "job.json"
        given.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", module, str(given)]
        paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        lines = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=surroundings
        ) as running:
            try:
                for line in running.stdout:
                    say(line.rstrip("\n"))
                    lines.append(line)
            except BaseException:  # told to end: so are the processes
                running.terminate()
                raise
        if running.returncode == 0:
            return json.loads(result.read_text(encoding="utf-8"))
    raise UserError(how_it_ended("".join(lines), processes))


def how_it_ended(output: str, processes: int) -> str:
    """One line on why processes under torchrun failed, from what they printed: a user's error, or how one died."""
    if told := USER_ERROR.search(output):
        return told[1]
    code = next(iter(ENDED.findall(output)), None)
    how = (
        f"was killed (signal {code[1:]})" if code and code[0] == "-" else f"failed ({code or 'no exit code'})"
    )
    return (
        f"one of the {processes} training processes {how}, and the others were ended: the log has its last words; "
        "run again, and the training goes on from the last saved epoch"
    )
