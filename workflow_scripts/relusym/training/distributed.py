"""Several processes on one node that train one net: start them, end them, and return their result."""

import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record

from relusym.errors import WARNINGS, Interrupted, UserError
from relusym.whole_files import write_text

POLL_S = 0.2  # between two checks of whether to end


def rank() -> int:
    """This process's number, from 0; 0 if it is the only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several processes, each has the GPU of its number."""
    return torch.device("cuda", rank()) if device.type == "cuda" and world_size() > 1 else device


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean over all processes, of the same shape; not a copy if there is only one."""
    if world_size() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values / world_size()


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; the same in all."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU, so that no GPU waits
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags)


def launch(
    module: str,
    job: dict[str, Any],
    processes: int,
    restarts: int = 0,
    *,
    gpus: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run `python -m module` in several processes, which call `work`; returns what the first one's function does.

    If one process dies, the others are ended, and all of them start again together up to `restarts` times. What they
    print goes to stdout and stderr. UserError if a process raised one, or they failed too often; Interrupted if
    `interrupted` returned true, and the processes saved their state.

    `job`: that function's argument, plain data for JSON; `gpus`: whether each process has a GPU to itself, see
    `local_device`; `interrupted`: polled; once true (or after any exception here), the processes are asked to end.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as folder:
        task, result, end = (Path(folder) / name for name in ("task.json", "result.json", "end"))
        paths = {"result": str(result), "end": str(end)}
        described = {"job": job, "gpus": gpus, "launcher": os.getpid(), **paths}
        task.write_text(json.dumps(described), encoding="utf-8")
        logs = DefaultLogsSpecs(log_dir=folder, tee=Std.ALL)
        here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
        here |= {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": processes, "run_id": uuid.uuid4().hex}
        prefix = "[${rank}] "
        config = LaunchConfig(**here, max_restarts=restarts, logs_specs=logs, log_line_prefix_template=prefix)
        # In a thread, where torch leaves this process's signal handlers as they are. A scheduler and a terminal signal
        # all processes; those that the thread starts inherit its blocked signals, and end when this process asks them.
        blocked = signal.pthread_sigmask, (signal.SIG_BLOCK, WARNINGS)
        with ThreadPoolExecutor(1, "", *blocked) as pool:
            running = pool.submit(elastic_launch(config, sys.executable), "-m", module, str(task))
            try:
                while not wait([running], POLL_S).done:
                    if interrupted():
                        end.touch()
            finally:
                end.touch()
        try:
            running.result()
        except ChildFailedError as error:
            raise UserError(_why(error, processes)) from error
        returned = json.loads(result.read_text(encoding="utf-8"))
    if "interrupted" in returned:
        raise Interrupted(returned["interrupted"])
    return returned["returned"]


def _why(error: ChildFailedError, processes: int) -> str:
    for failure in error.failures.values():
        message = failure.error_file_data["message"]
        kind, _, text = (message["message"] if isinstance(message, dict) else message).partition(": ")
        if kind.endswith("UserError") and text:
            return text
    # a process that was killed is named before those that lost their connection to it
    first = min(error.failures.values(), key=lambda failure: (failure.exitcode >= 0, failure.timestamp))
    how = f"was killed (signal {-first.exitcode})" if first.exitcode < 0 else f"failed ({first.exitcode})"
    return (
        f"one of the {processes} training processes {how}, and the others were ended: the log has its last lines; "
        "run again, and the training goes on from the last saved epoch"
    )


@record
def work(run: Callable[[dict[str, Any], Callable[[], bool]], dict[str, Any]]) -> None:
    """In a module that `launch` starts: call `run` with the job, and with a function that returns whether to end."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if Path(task["result"]).exists():
        return  # started again, since another process failed when all was done
    torch.set_num_threads(1)  # each process has its GPU, or shares the cores

    def interrupted() -> bool:
        return os.getppid() != task["launcher"] or Path(task["end"]).exists()

    with _process_group(task["gpus"]):
        try:
            outcome = {"returned": run(task["job"], interrupted)}
        except Interrupted as error:
            outcome = {"interrupted": str(error)}
        if rank() == 0:
            write_text(task["result"], json.dumps(outcome, allow_nan=False))


@contextmanager
def _process_group(gpus: bool) -> Iterator[None]:
    # torch keeps the store when it starts the processes again; without a prefix they would wait for the dead ones
    store, number, world = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, store=store, rank=number, world_size=world)
    if gpus:
        torch.cuda.set_device(rank())
    try:
        yield
    finally:
        distributed.destroy_process_group()
