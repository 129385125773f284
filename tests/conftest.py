"""Copies of the workflow in folders of their own, and Snakemake run in them."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

torch.set_num_threads(1)  # nets this small only lose by more, and a busy machine makes them crawl

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "config.yaml", "rules", "profiles", "slurm", "envs", "report", "workflow_scripts")


class Clone:
    """A copy of the workflow as a fresh clone has it: no data, no results, nothing of Snakemake's own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for part in PARTS:
            source, to = ROOT / part, folder / part
            if source.is_symlink():
                to.symlink_to(source.readlink())
            elif source.is_dir():
                shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)

    def configure(self, **changes) -> None:
        """Replace whole top-level entries of config.yaml."""
        path = self.folder / "config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def as_committed(self, made: "Clone") -> "Clone":
        """`made`, with the committed results of this one: no checkpoints, no data, times as git leaves them."""
        kept = shutil.ignore_patterns("checkpoints", "states", "logs")
        shutil.copytree(self.folder / "results", made.folder / "results", ignore=kept)
        order = random.Random(0)
        for path in sorted(path for path in made.folder.rglob("*") if path.is_file()):
            time = 1.7e9 + order.uniform(0, 10)  # a clone writes files in any order, within seconds
            os.utime(path, (time, time))
        return made

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on two cores; the result's `stdout` holds both streams in their order."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        surroundings = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )

    def planned(self, *arguments: str) -> list[str]:
        """The jobs that a dry run lists, each as its rule and wildcards, such as `train cnn 0`; sorted."""
        run = self.snakemake("--dry-run", *arguments)
        assert run.returncode == 0, run.stdout
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", run.stdout, re.MULTILINE)
        values = [re.search(r"^    wildcards: (.*)$", about, re.MULTILINE) for _, about in jobs]
        return sorted(
            " ".join([rule, *re.findall(r"=([^,]+)", found[1] if found else "")])
            for (rule, _), found in zip(jobs, values, strict=True)
        )


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Callable[[], Clone]:
    """A function that makes a fresh clone of the workflow."""
    return lambda: Clone(tmp_path_factory.mktemp("clone"))
