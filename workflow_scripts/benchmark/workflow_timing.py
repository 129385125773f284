"""What the workflow itself costs: planning its jobs, starting one, and running the demo."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from relusym.config.settings import Settings
from relusym.errors import UserError
from relusym.records.files import load_record
from relusym.records.results import Results

LEFT_OUT = {"data", "results", "tests", "docs"}  # of no use in a copy, or made by runs
START_UP = "start_up"  # a scale with one small training


class WorkflowCopy:
    """A copy of the workflow in another folder, as in a fresh clone.

    Args:
        root: the workflow's folder.
        folder: where the copy goes.
    """

    def __init__(self, root: Path, folder: Path):
        self.folder = folder
        made = shutil.ignore_patterns(".*", "__pycache__")

        def left_out(at: str, names: list[str]) -> set[str]:
            return made(at, names) | (LEFT_OUT if Path(at) == root else set())  # relusym has a room `data`

        shutil.copytree(root, folder, ignore=left_out, dirs_exist_ok=True)
        self.add_scale(START_UP, start_up_scale(self.scale("demo")))

    def scale(self, name: str) -> dict[str, Any]:
        """The sections of a scale."""
        return yaml.safe_load((self.folder / f"scales/{name}.yaml").read_text(encoding="utf-8"))

    def add_scale(self, name: str, sections: dict[str, Any]) -> None:
        """Write a scale of these sections."""
        text = yaml.safe_dump(sections, sort_keys=False)
        (self.folder / f"scales/{name}.yaml").write_text(text, encoding="utf-8")

    def seconds(self, *arguments: str) -> float:
        """How long Snakemake takes. Raises UserError: it fails."""
        surroundings = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
        command = [sys.executable, "-m", "snakemake", *arguments]
        started = time.monotonic()
        run = subprocess.run(
            command, cwd=self.folder, env=surroundings, capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise UserError(f"bench: {' '.join(arguments)} failed: {(run.stdout + run.stderr)[-2000:]}")
        return time.monotonic() - started

    def dry_run(self, scale: str, seeds: str | None = None) -> float:
        """Seconds to plan a scale's jobs from scratch; `seeds` instead of the scale's own, such as 0-239."""
        if seeds:
            scale, sections = f"{scale}_more", self.scale(scale) | {"seeds": seeds}
            self.add_scale(scale, sections)
        return self.seconds("--dry-run", "--quiet", "--cores", "1", "--config", f"scale={scale}")

    def start_up(self, device: str) -> float:
        """Seconds from a training job's start to its first useful work: its whole time without its record's."""
        results = Results(Settings.of({"scale": START_UP}, [self.folder / "scales"]))
        record = results.record(results.key("train", ("cnn", 0)))
        self.seconds("--cores", "1", "--force", record, "--config", f"scale={START_UP}", f"device={device}")
        cost = load_record(self.folder / record)["cost"]
        return cost["job_seconds"] - cost["seconds"]

    def run(self, scale: str, cores: int, device: str) -> tuple[float, float]:
        """Run a scale: seconds from start to end, and the sum of its jobs' useful seconds."""
        wall = self.seconds("--cores", str(cores), "--config", f"scale={scale}", f"device={device}")
        records = sorted(self.folder.glob(f"results/{scale}/records/*/*/[0-9]*.json"))
        return wall, sum(map(useful_seconds, records))


def start_up_scale(demo: dict[str, Any]) -> dict[str, Any]:
    """The demo's VGG11s with one short training."""
    training = {**demo["training"], "epochs": 1, "warmup_epochs": 0}
    data = {**demo["data"], "train_images": 200, "test_images": 100}
    merging = {**demo["merging"], "images": 100, "invariance_images": 100}
    models = {id_: model for id_, model in demo["models"].items() if model.get("table") != "table5"}
    kept = {key: value for key, value in demo.items() if key not in ("figure9", "beyond")}
    return kept | {"seeds": "0", "data": data, "training": training, "merging": merging, "models": models}


def useful_seconds(record: Path) -> float:
    """By a record, the seconds that its work took once everything was imported."""
    return json.loads(record.read_text(encoding="utf-8"))["cost"]["seconds"]
