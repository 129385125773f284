"""Run the Python scripts of rules as forks (relusym/jobs/forks.py), on the machine where Snakemake runs."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import snakemake.script
from snakemake.benchmark import benchmarked

from relusym.jobs.forks import THREADS, Forks, can_fork

FEW = 2  # up to this many scripts, forks save no time
# the code that Snakemake prepends to a script needs the last two modules
FINDINGS = ("pandas", "scipy.stats", "matplotlib.figure", "snakemake.logging", "snakemake.iocontainers")
NETS = ("torch", "torchvision.transforms.v2", "relusym.measuring.train", "relusym.measuring.merge")


def run_as_forks(scripts: Sequence[str]) -> None:
    """Run the scripts of this run as forks of a process with their imports, if there are many and forking is safe."""
    if len(scripts) > FEW and can_fork():
        without_nets = {Path(script).stem for script in scripts} == {"finding"}
        ForkedScript.forks = Forks(FINDINGS if without_nets else NETS + FINDINGS)
        snakemake.script.PythonScript = ForkedScript


class ForkedScript(snakemake.script.PythonScript):
    """A script as Snakemake runs it, but in a fork instead of a new process."""

    forks: ClassVar[Forks]

    def execute_script(self, fname: str, edit: bool = False) -> None:
        """Run the script to its end; subprocess.CalledProcessError if it fails."""
        if self.conda_env or self.container_img or self.env_modules or self.shadow_dir:
            return super().execute_script(fname, edit)
        try:
            variables = dict.fromkeys(THREADS, str(self.threads)) | {"TMPDIR": self.resources.tmpdir}
            fork = self.forks.start(fname, environment=os.environ | variables)
        except ChildProcessError:
            return super().execute_script(fname, edit)
        with benchmarked(fork.pid, self.bench_record) if self.bench_record else nullcontext():
            status = fork.status()
        if status:
            raise subprocess.CalledProcessError(status, [fname])
