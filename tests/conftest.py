"""Copies of the workflow in temporary folders, and Snakemake runs in them."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from forks import Commands
from hypothesis import HealthCheck
from hypothesis import settings as how
from PIL import Image

from relusym.config.reading import LOADER
from relusym.config.sections import Draws, Run
from relusym.config.settings import Settings
from relusym.errors import UserError
from relusym.jobs.forks import can_fork
from relusym.records.results import Results

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup, but tested processes must hear it
    signal.signal(signal.SIGHUP, lambda *_: None)
how.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
how.load_profile("any machine")
torch.set_num_threads(1)  # more threads slow down nets this small, a lot on a busy machine

ROOT = Path(__file__).parents[1]
PARTS = (
    "Snakefile", "config.yaml", "scales", "rules", "profiles", "slurm", "envs", "report", "workflow_scripts",
)  # fmt: skip
SCRIPTS = ROOT / "workflow_scripts"
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), LOADER)


def config_of(folder: Path) -> dict[str, Any]:
    return read_yaml(folder / "config.yaml")


def scale_of(folder: Path, name: str) -> dict[str, Any]:
    return read_yaml(folder / "scales" / f"{name}.yaml")


def write_scale(folder: Path, name: str, sections: dict[str, Any]) -> None:
    path = folder / "scales" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.dump(sections, Dumper=DUMPER, sort_keys=False), encoding="utf-8")


def set_keys(sections: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set values by dotted key."""
    for key, value in changes.items():
        *path, last = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value


def settings_of(sections: dict[str, Any] | None = None, scale: str = "demo", **run: Any) -> Settings:
    """The settings of a scale with these sections (None: the project's scale of that name)."""
    with TemporaryDirectory() as folder:
        if sections is not None:
            write_scale(Path(folder), scale, sections)
        return Settings.of({"scale": scale, **run}, [f"{folder}/scales", ROOT / "scales"])


commands = cache(Commands)  # made by the first test that runs Snakemake


def snakemake_command() -> list[str]:
    """The command that runs Snakemake: in a fork where processes can be forked."""
    return commands().snakemake if can_fork() else [sys.executable, "-m", "snakemake"]


def start(command: Sequence[str], folder: Path, group: bool = False, **variables: str) -> subprocess.Popen:
    """Start a command, with both output streams in `stdout`; `group`: in its own process group, as from a terminal."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE", "SLURM", "CUDA"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=kept | variables, start_new_session=group, **pipes)


def finish(run: subprocess.Popen, seconds: float = 3000) -> subprocess.CompletedProcess[str]:
    try:
        output = run.communicate(timeout=seconds)[0]
        return subprocess.CompletedProcess(run.args, run.returncode, output)
    finally:
        run.kill()


def python(code: str, *arguments: object, folder: Path | None = None, **variables: str) -> str:
    """The output of Python code that runs with this checkout's library."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)} | variables
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts a Python with this checkout's library and the tests' modules; it ends with the test."""
    started = []

    def start(code: str, *arguments: object, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": f"{SCRIPTS}:{ROOT / 'tests'}"} | variables
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, **pipes, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def latest_log(folder: Path) -> str:
    """The whole log of the last run of Snakemake in a folder, of which its output shows little."""
    logs = (folder / ".snakemake" / "log").glob("*.log")
    return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text(encoding="utf-8")


def most_at_once(count: int, context: Callable[[], AbstractContextManager]) -> int:
    """How many of `count` threads, each of which enters a context once, are inside at a time, at the most."""
    inside, most, left = [], [], []

    def enter() -> None:
        with context():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()
        left.append(1)

    threads = [threading.Thread(target=enter) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(left) == count
    return max(most)


ENDINGS = {"records": ".json", "logs": ".log"}


def path_of(folder: Path, room: str, kind: str, *nets: str, **changes: Any) -> str:
    """The path of a job's file, such as the one of `train`, `cnn-0` in `records`, with these changes to the config."""
    results = Results(Settings.of(config_of(folder) | changes, [folder / "scales"]))
    results.prefix = f"{folder}/"
    named = [(net.rpartition("-")[0], int(net.rpartition("-")[2])) for net in nets]
    name = results.name(results.key(kind, *named))
    name = name.partition("/")[2] if room in ("checkpoints", "filters", "states") else name
    return f"{results.folder}/{room}/{name}{ENDINGS.get(room, '.safetensors')}"


def refused(call: Callable[[], Any], *parts: str, match: str = "") -> str:
    """The one-line message of the `UserError` that `call` raises, which must contain these parts and match `match`."""
    with pytest.raises(UserError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts) and re.search(match, line), line
    return line


def save_images(folder: Path, images: Iterable[Any]) -> None:
    """Write images, of PIL's or uint8 (H, W, 3), to `0.png`, `1.png`, … in a new folder."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image)).save(folder / f"{i}.png")


def obstruct(path: Path, kind: str) -> None:
    """Put a fifo, a folder, a link to itself or a link to nowhere where a file belongs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("link"):
        path.symlink_to(path.name if kind == "link to itself" else "nowhere")
    else:
        {"fifo": os.mkfifo, "folder": Path.mkdir}[kind](path)


class Clone:
    """A copy of the workflow like a fresh clone: no data, no results, none of Snakemake's files."""

    def __init__(self, folder: Path):
        self.folder = folder
        for part in PARTS:
            source, to = ROOT / part, folder / part
            if source.is_symlink():
                to.symlink_to(source.readlink())
            elif source.is_dir():
                shutil.copytree(source, to)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)

    @classmethod
    def at(cls, folder: Path) -> "Clone":
        """The workflow that already exists in a folder."""
        made = cls.__new__(cls)
        made.folder = folder
        return made

    def copy(self, folder: Path) -> "Clone":
        """A copy of everything in another folder, including checkpoints, images and file times."""
        return Clone.at(Path(shutil.copytree(self.folder, folder, symlinks=True)))

    def configure(self, **changes) -> None:
        """Replace whole top-level entries of config.yaml, and of the file of its scale."""
        run, sections = config_of(self.folder), {}
        for key, value in changes.items():
            (run if key in Run.model_fields else sections)[key] = value
        text = yaml.dump(run, Dumper=DUMPER, sort_keys=False)
        (self.folder / "config.yaml").write_text(text, encoding="utf-8")
        if sections:
            write_scale(self.folder, run["scale"], scale_of(self.folder, run["scale"]) | sections)

    def as_committed(self, made: "Clone") -> "Clone":
        """`made` with this clone's results as committed: no checkpoints, no data, file times as from git."""
        kept = shutil.ignore_patterns("checkpoints", "states", "logs", "weights", "*.html", "*.tex", "*.pdf")
        shutil.copytree(self.folder / "results", made.folder / "results", ignore=kept)
        order = random.Random(0)
        for path in sorted(path for path in made.folder.rglob("*") if path.is_file()):
            time = 1.7e9 + order.uniform(0, 10)  # a clone writes files in any order, within seconds
            os.utime(path, (time, time))
        return made

    def results(self) -> Results:
        """The results, by the clone's config, with paths below the workflow's folder."""
        return Results(Settings.of(config_of(self.folder), [self.folder / "scales"]))

    def path_of_statement(self, name: str) -> Path:
        return self.folder / self.results().record(self.results().statement(name))

    def snakemake(self, *arguments: str, by: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on two cores, optionally `by` another command; both output streams are in `stdout`."""
        snakemake = [*by, sys.executable, "-m", "snakemake"] if by else snakemake_command()
        return finish(start([*snakemake, "--cores", "2", *arguments], self.folder))

    def makes(self, *arguments: str, **how: Any) -> str:
        """The output of a run that has to succeed."""
        run = self.snakemake(*arguments, **how)
        assert run.returncode == 0, run.stdout
        return run.stdout

    def fails(self, *arguments: str, **how: Any) -> str:
        """The output of a run that has to fail, without a traceback."""
        run = self.snakemake(*arguments, **how)
        assert run.returncode != 0 and "Traceback" not in run.stdout, run.stdout
        return run.stdout

    def planned(self, *arguments: str) -> list[str]:
        """The jobs that a dry run lists, each as its rule and nets, such as `train cnn 0`; sorted."""
        output = self.makes("--dry-run", "--verbose", *arguments)
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", output, re.MULTILINE)
        named = []
        for rule, about in jobs:
            line = re.search(r"^    wildcards: (.*)$", about, re.MULTILINE)
            wildcards = dict(re.findall(r"(\w+)=([^,]+)", line[1] if line else ""))
            wildcards.pop("fingerprint", None)
            if "model_1" in wildcards:
                wildcards = {key: wildcards[key] for key in ("model_1", "seed_1", "model_2", "seed_2")}
            # a seed may have a number, as in 0.1
            values = [re.sub(r"^([\d-]+)\.\d+$", r"\1", value) for value in wildcards.values()]
            named.append(" ".join([rule, *values]))
        return sorted(named)

    def path(self, room: str, kind: str, *nets: str, **changes: Any) -> str:
        return path_of(self.folder, room, kind, *nets, **changes)

    def record(self, kind: str, *nets: str, **changes: Any) -> Path:
        return self.folder / self.path("records", kind, *nets, **changes)


CLONES = {"clone", "tiny", "finished", "copied", "committed", "checkout", "workflow"}  # of whole workflows


def pytest_collection_modifyitems(items):
    """Mark tests of whole workflows; files that take long are run first, so that all processes end together."""
    seconds = Counter()
    for item in items:
        if CLONES & {*item.fixturenames}:
            item.add_marker("workflow")
            seconds[item.path] += 3  # typical of these tests
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.kwargs["seconds"]
    items.sort(key=lambda item: -seconds[item.path])


MODELS = ("cnn", "gcnn")
PAIRS = [["cnn", "gcnn"], ["gcnn", "gcnn"]]
VGG11S = {model: scale_of(ROOT, "paper")["models"][model] for model in MODELS}
COSINE = {"epochs": 5, "batch_size": 40, "learning_rate": 0.02, "schedule": "cosine", "warmup_epochs": 0}
RESNET = {
    **{"table": "table5", "seeds": 0, "merging": {"images": 200, "batch_size": 100}, "training": COSINE},
    "network": {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1], "width": 0.125},
}
RESNETS = {
    "old": RESNET | {"image_size": 32, "paper": "torchvision_old"},
    "simsiam_odd": RESNET
    | {"image_size": 33, "paper": "simsiam_225", "recipe": ["pretraining", "linear"]}
    | {"pretraining": {"epochs": 1, "dimensions": 32, "bottleneck": 8}}
    | {"linear": {"epochs": 3, "learning_rate": 0.15}},
}
SHARED = {  # by all models of the scale `tiny`
    "seeds": "0-1", "data": {"dataset": "generated", "train_images": 400, "test_images": 200, "seed": 0},
    "network": {"width": 0.03125, "initialization": "he"},
    "training": {
     **{"epochs": 3, "batch_size": 10, "learning_rate": 0.01, "weight_decay": 0.0005, "warmup_epochs": 1},
     **{"crop_padding": 2, "invariance_weight": 0.3, "precision": "float32"}},
    "merging": {"images": 100, "invariance_images": 50, "batch_size": 50},
    "flipped_training": {"seed": 0, "steps": 2, "batch_size": 4, "learning_rate": 0.01},
    "theory": {"seed": 0, "draws": dict.fromkeys(Draws.model_fields, 200)},
}  # fmt: skip
VGG11S_ALONE = SHARED | {"models": VGG11S, "pairs": PAIRS}
TINY = SHARED | {"models": VGG11S | RESNETS, "pairs": PAIRS, "figure9": "old"}


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Callable[[], Clone]:
    return lambda: Clone(tmp_path_factory.mktemp("clone"))


def set_to_tiny(made: Clone) -> Clone:
    """The clone with `tiny` as its only scale: two types of VGG11 and two of ResNets."""
    shutil.rmtree(made.folder / "scales")
    write_scale(made.folder, "tiny", TINY)
    made.configure(scale="tiny", device="cpu")
    return made


@pytest.fixture(scope="session")
def tiny(clone) -> Callable[[], Clone]:
    """A function that makes a fresh clone at the scale `tiny`."""
    return lambda: set_to_tiny(clone())


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id) -> Clone:
    """A clone at the scale `tiny` after a whole run, made once for all processes. Tests only change copies of it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    folder, output = shared / "finished", shared / "finished.log"
    with FileLock(f"{folder}.lock"):
        if not output.exists():
            run = set_to_tiny(Clone(folder)).snakemake()
            output.write_text(f"{run.stdout}\n{run.returncode}")
    text, _, code = output.read_text().rpartition("\n")
    assert code == "0", text
    return Clone.at(folder)


@pytest.fixture
def copied(finished, tmp_path) -> Clone:
    """A copy of the finished clone, including checkpoints, images and file times."""
    return finished.copy(tmp_path / "copy")


@pytest.fixture
def imagenet(tmp_path) -> str:
    """The option that names empty folders like ImageNet's, in the test's folder."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    return f"imagenet={{root: {tmp_path}}}"


@pytest.fixture
def committed(finished, tiny) -> Clone:
    """A fresh clone with the finished run's committed results: no checkpoints, no data, file times as from git."""
    return finished.as_committed(tiny())
