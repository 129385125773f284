"""A real Slurm with two nodes on this machine, with two fake GPUs each; it needs neither root nor systemd."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PATH = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", os.environ.get("PATH", "")))

SLURM_CONF = """\
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CredType=cred/munge
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu,shard
ReturnToService=2
MinJobAge=600
KillWait=30
SlurmdTimeout=20
MessageTimeout=30
PropagateResourceLimits=NONE
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=8 RealMemory=32000 Gres=gpu:2,shard:8
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=8 RealMemory=32000 Gres=gpu:2,shard:8
PartitionName=gpu Nodes=node1,node2 Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=node1 Nodes=node1 MaxTime=1-00:00:00 State=UP
"""
GRES_CONF = """\
NodeName=node[1-2] Name=gpu File={folder}/dev/nvidia[0-1]
NodeName=node[1-2] Name=shard Count=8
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    return [name for name in DAEMONS if shutil.which(name, path=PATH) is None]


def wait_until(true: Callable[[], object], seconds: float, what: str, poll: float = 0.2):
    """Wait for a true value of `true()` and return it; AssertionError if there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(poll)
    return value


class SlurmCluster:
    """A cluster from `start()` to `stop()`. `environment`: variables for its users; `folder` must be a short path."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("run", "log", "state", "spool/node1", "spool/node2", "dev", "bin"):
            (folder / name).mkdir(parents=True)
        ports = _free_ports(3)
        names = {
            "folder": folder, "host": socket.gethostname().partition(".")[0], "user": getpass.getuser(),
            "port": ports[0], "port1": ports[1], "port2": ports[2],
        }  # fmt: skip
        self.conf = folder / "slurm.conf"
        self.conf.write_text(SLURM_CONF.format(**names))
        (folder / "gres.conf").write_text(GRES_CONF.format(**names))
        for gpu in ("nvidia0", "nvidia1"):  # links, since they must be character devices
            (folder / "dev" / gpu).symlink_to("/dev/null")
        # srun within a job loses SLURM_CONF; each sbatch call is recorded for the tests
        self._shim("srun", f"export SLURM_CONF={self.conf}")
        self.sbatch_calls = folder / "log" / "sbatch.txt"
        # in one write
        line = f"line=$(printf '%s ' \"$@\" | tr '\\n' ' '); echo \"$line\" >> {self.sbatch_calls}"
        self._shim("sbatch", line)
        strange = ("SLURM_", "SBATCH_", "SNAKEMAKE_")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(strange)}
        self.environment |= {"PATH": f"{folder / 'bin'}{os.pathsep}{PATH}", "SLURM_CONF": str(self.conf)}

    def _shim(self, name: str, line: str) -> None:
        shim = self.folder / "bin" / name
        shim.write_text(f'#!/bin/bash\n{line}\nexec {shutil.which(name, path=PATH)} "$@"\n')
        shim.chmod(0o755)

    def run(self, *command: str, timeout: float = 60) -> str:
        limited = ["timeout", "-k", "5", str(timeout), *command]
        how = {"stdout": -1, "stderr": -1, "text": True, "check": True}
        return subprocess.run(limited, env=self.environment, **how).stdout

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        run = self.folder / "run"
        run.chmod(0o755)
        options = {
            "key-file": key, "socket": run / "munge.sock", "pid-file": run / "munged.pid",
            "log-file": self.folder / "log" / "munged.log", "seed-file": run / "munge.seed",
        }  # fmt: skip
        self.run("munged", "--force", *(f"--{name}={value}" for name, value in options.items()))
        self.start_controller("-c")
        for node in ("node1", "node2"):
            self.start_node(node)

        def both_nodes_run() -> bool:
            hosts = subprocess.run(
                ["timeout", "-k", "5", "20", "srun", "-N2", "-n2", "bash", "-c", "echo on $SLURMD_NODENAME"],
                env=self.environment, capture_output=True, text=True, check=False,
            ).stdout  # fmt: skip
            return sorted(hosts.split()) == ["node1", "node2", "on", "on"]

        wait_until(both_nodes_run, 600, f"two nodes run a job; logs in {self.folder / 'log'}")

    def start_controller(self, *options: str) -> None:
        self.run("slurmctld", "-i", "-f", str(self.conf), *options)

    def controller_answers(self) -> bool:
        try:
            return "is UP" in self.run("scontrol", "ping")
        except subprocess.CalledProcessError:
            return False

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node, "-f", str(self.conf))

    def pid(self, daemon: str) -> int | None:
        file = self.folder / "run" / f"{daemon}.pid"
        text = file.read_text().strip() if file.exists() else ""
        return int(text) if text else None

    def stop_controller(self) -> None:
        pid = self.pid("slurmctld")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 600, "the controller ends")

    def crash_node(self, node: str) -> None:
        """End the node's slurmd and all processes of its jobs at once, as a power cut does."""
        processes = _processes()
        jobs = {pid for pid, environment, _ in processes if f"SLURMD_NODENAME={node}" in environment}
        parents = {_parent(pid) for pid in jobs}
        # slurmstepd first, or it would report to the controller
        steps = [pid for pid, _, command in processes if pid in parents and command.startswith("slurmstepd")]
        for pid in [self.pid(f"slurmd-{node}"), *steps, *jobs]:
            _kill(pid)

    def stop(self) -> None:
        try:
            self.run("scancel", "--user", getpass.getuser())
            wait_until(lambda: not self.run("squeue", "--noheader").strip(), 600, "all jobs end", poll=0.5)
        except (AssertionError, subprocess.SubprocessError):
            pass  # the processes are killed by pid below
        pids = [self.pid(file.stem) for file in (self.folder / "run").glob("*.pid")]
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(None, pids):
                _kill(pid, signal_number)
            time.sleep(1)
        for pid, environment, _ in _processes():  # slurmstepd outlives slurmd
            if f"SLURM_CONF={self.conf}" in environment and pid != os.getpid():
                _kill(pid)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _kill(pid: int | None, number: int = signal.SIGKILL) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _processes() -> list[tuple[int, list[str], str]]:
    """Pid, environment and command line of every process that this user may inspect."""
    collected = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            collected.append((int(folder.name), environment, command))
    return collected
