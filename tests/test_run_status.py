"""The status screen, the checklist before a run, and what is left of a job that ends in an error."""

import os
import subprocess
import sys

import pytest

from relusym.jobs import checklist
from relusym.jobs.checklist import Submission, data_problems, folder_problems, slurm_problems
from relusym.jobs.job_lock import JobLock
from relusym.jobs.status import kind_status, screen, type_of
from relusym.records.files import write_record

RECORD = {
    "kind": "train",
    "status": "ok",
    "model": "cnn",
    "seed": 0,
    "settings": {},
    "inputs": {},
    "outputs": {"checkpoint": "0" * 64},
    "accuracy": 0.5,
    "history": [],
    "code": {"device": "cuda Tesla T4"},
    "cost": {},
}


@pytest.fixture
def folder(tmp_path):
    """Logs and records of trainings: done, diverged, running, failed, of other settings, not begun, of another type."""
    hours = {
        "cnn-f0/0": ("ok", 0.5),
        "cnn-f0/1": ("diverged", 0.5),
        "cnn-0f/4": ("ok", 2.0),
        "gcnn-f0/0": ("ok", 1.0),
    }
    for name, (status, of_job) in hours.items():
        path = tmp_path / "records" / "train" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {**RECORD, "status": status, "cost": {"seconds": 1.0, "job_seconds": 3600 * of_job}}
        write_record(path, record)
    logs = tmp_path / "logs" / "train" / "cnn-f0"
    logs.mkdir(parents=True)
    (logs / "3.log").write_text("cnn-3: epoch 1\nerror: no space left\n")
    with JobLock(logs / "2.lock"):
        yield tmp_path


def test_the_screen_counts_jobs_by_state_what_was_left_out_and_hours_and_names_what_failed(folder):
    jobs = {f"train/cnn-f0/{seed}": seed < 2 for seed in range(5)}
    jobs |= {"train/gcnn-f0/0": True, "train/gcnn-f0/1": False}
    status = kind_status("train", jobs, folder)
    assert status.counts == {"done": 3, "running": 1, "failed": 1, "to do": 2}
    assert status.outcomes == {"ok": 2, "diverged": 1}
    (folder / "records/train/cnn-f0/1.json").write_text("{}")
    assert kind_status("train", jobs, folder).outcomes == {"ok": 2, "broken": 1}
    assert status.hours_spent == pytest.approx(0.5 * 2 + 1)
    assert status.hours_to_go == pytest.approx(0.5 * 3 + 1)  # three cnn, one gcnn, each at its own mean
    merges = kind_status("flip_merge", {"flip_merge/cnn-f0/0": False}, folder)
    assert merges.hours_to_go is None
    lines = screen("Scale paper", [status, merges]).splitlines()
    assert (
        " ".join(lines[1].split()) == "kind jobs done running failed to do left out GPU-h spent GPU-h to go"
    )
    assert lines[2].split() == ["train", "7", "3", "1", "1", "2", "1", "2.00", "2.50"]
    assert lines[4].split() == ["all", "8", "3", "1", "1", "3", "1", "2.00", "?"]
    assert lines[5] == "train: 1 diverged"
    assert lines[6] == f"failed: {folder / 'logs' / 'train' / 'cnn-f0' / '3.log'}: no space left"
    assert len(lines) == 7 and max(map(len, lines[:6])) <= 100


def test_the_screen_is_one_screen_however_many_jobs_failed(folder):
    logs = folder / "logs" / "train" / "gcnn-f0"
    logs.mkdir()
    for seed in range(100):
        (logs / f"{seed}.log").write_text("")
    jobs = {f"train/gcnn-f0/{seed}": False for seed in range(1, 101)}
    lines = screen("Scale paper", [kind_status("train", jobs, folder)]).splitlines()
    assert len(lines) <= 24 and lines[-1] == "failed: 91 more"
    assert lines[-2].endswith("gcnn-f0/8.log: it was killed")


def test_a_jobs_type_is_that_of_its_nets():
    names = ["train/cnn-3f9a1c2b/3", "train/pgcnn_late_inv-3f9a1c2b/12", "pair_merge/cnn--gcnn-3f9a1c2b/0--1"]
    assert [type_of(name) for name in names] == ["cnn", "pgcnn_late_inv", "cnn--gcnn"]


# ---- the checklist (on a real Slurm: test_cluster)

CONFIG = "AccountingStorageType   = accounting_storage/{kept}\nMinJobAge               = {age} sec\n"
PARTITIONS = """\
PartitionName=cpu AllowGroups=ALL Default=YES QoS=N/A DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0
PartitionName=gpu AllowGroups=ALL Default=NO QoS=N/A DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=04:00:00 MinNodes=0
PartitionName=long AllowGroups=ALL Default=NO QoS=N/A DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=1-02:30:00 MinNodes=0
"""
REFUSED = (
    "sbatch: error: invalid partition specified: gqu\nallocation failure: Invalid partition name specified\n"
)


@pytest.fixture
def slurm(monkeypatch):
    """A function that pretends a Slurm: its accounting, for how long it knows jobs, that it has no partition gqu."""

    def pretend(kept="slurmdbd", age=300):
        def asked(command):
            if command.startswith("sbatch --test-only "):
                return (False, REFUSED) if "-p gqu " in command else (True, "")
            return True, PARTITIONS if "partition" in command else CONFIG.format(kept=kept, age=age)

        monkeypatch.setattr(checklist, "_asked", asked)
        monkeypatch.setattr(checklist.shutil, "which", lambda name: f"/usr/bin/{name}")

    return pretend


def test_a_site_in_order_has_no_problems(slurm):
    slurm()
    submissions = [Submission("train", "gpu", 240, "-p gpu"), Submission("train", "long", 1590, "-p long")]
    assert slurm_problems(submissions, "sacct") == []
    slurm(kept="none")
    assert slurm_problems([Submission("figure", "", 10**6, "")], "squeue") == []


@pytest.mark.parametrize(
    ("site", "submission", "status", "problem"),
    [
        (
            {},
            ("train", "gqu", 120, "-p gqu -t 120"),
            "sacct",
            "Slurm refuses train: Invalid partition name specified (`sbatch --test-only -p gqu -t 120`); "
            "set slurm_partition to one of cpu, gpu, long that has",
        ),
        (
            {},
            ("train", "gpu", 300, "-p gpu"),
            "sacct",
            "up to 300 minutes and partition gpu allows 240; set `set-resources: {train: {runtime: 240}}`",
        ),
        ({}, ("train", "long", 1591, "-p long"), "sacct", "partition long allows 1590; "),
        ({"kept": "none"}, ("train", "gpu", 1, ""), "sacct", "keeps no accounts; set it to squeue"),
        (
            {"age": 60},
            ("train", "gpu", 1, ""),
            "squeue",
            "Slurm forgets jobs after 60 s; set slurm-status-command",
        ),
    ],
)
def test_each_problem_of_a_site_is_one_line_that_says_what_to_set(slurm, site, submission, status, problem):
    slurm(**site)
    (line,) = slurm_problems([Submission(*submission)], status)
    assert problem in line and "\n" not in line and line.startswith("profiles/slurm/config.yaml: ")


def test_a_missing_or_silent_scheduler_is_one_line(monkeypatch, slurm):
    slurm()
    monkeypatch.setattr(checklist, "_asked", lambda command: (False, ""))
    assert "controller doesn't answer" in slurm_problems([], "sacct")[0]
    monkeypatch.setattr(checklist.shutil, "which", lambda name: None)
    assert slurm_problems([], "sacct")[0].startswith(
        "sbatch, srun, squeue, sinfo: not found; run snakemake on a node"
    )


def test_data_that_can_not_be_prepared_here_is_one_line_each(tmp_path, monkeypatch):
    prepared, root = tmp_path / "images.safetensors", tmp_path / "cifar10"
    torchvision = {"kind": "torchvision", "root": str(root)}
    folder = {"kind": "folder", "root": str(root), "train": "train", "test": "held_out"}
    imagenet = {"kind": "imagenet", "root": str(root), "train": "train", "val": "val", "resize": 256}

    def unreachable(*_, **__):
        raise OSError

    monkeypatch.setattr(checklist.socket, "create_connection", unreachable)
    assert data_problems(prepared, {"kind": "generated", "seed": 0}, "scales.demo.data") == []
    (line,) = data_problems(prepared, torchvision, "cifar10")
    assert line.startswith(f"cifar10.root: {root} holds no CIFAR10 and ")
    assert "can't be reached from here; unpack cifar-10-python.tar.gz there" in line
    (root / "cifar-10-batches-py").mkdir(parents=True)
    assert data_problems(prepared, torchvision, "cifar10") == []
    (root / "train").mkdir()
    for spec, key, missing in ((folder, "datasets.mine", "held_out"), (imagenet, "imagenet", "val")):
        (line,) = data_problems(prepared, spec, key)
        assert (
            line
            == f"{key}.root: the folder {root / missing} is missing; set {key}.root to the tree of images"
        )
    (root / "train").rmdir()
    assert len(data_problems(prepared, folder, "datasets.mine")) == 2
    prepared.touch()
    assert data_problems(prepared, folder, "datasets.mine") == []


def test_a_results_folder_that_can_not_be_written_is_one_line(tmp_path):
    assert folder_problems(tmp_path / "results" / "paper") == []
    (tmp_path / "file").touch()
    (line,) = folder_problems(tmp_path / "file" / "paper")
    assert line.startswith(f"{tmp_path / 'file' / 'paper'} can't be written (") and "free space" in line


# ---- a job's error

JOB = """
import resource, sys
from types import SimpleNamespace
from job import job
from relusym.errors import UserError
log, what, size = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
nothing = {"log": [log], "rule": "train", "params": {}, "resources": {}, "output": {}, "threads": 1}
with job(SimpleNamespace(**nothing)):
    print("epoch 1")
    exec(what)
"""
UNEXPECTED, EXPECTED = "{}['accuracy']", "raise UserError('images are missing: unpack them')"
LINE = "error in rule train: images are missing: unpack them\n"


@pytest.fixture
def ended(tmp_path, pytestconfig):
    """A function that runs a job that ends in an error: what the terminal has, and the log if it is a file."""

    def run(what, log=None, size=10**9):
        path = tmp_path / "logs" / "cnn-0.log"
        path.parent.mkdir()
        if log is not None:
            path.symlink_to(log)
        environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath / "workflow_scripts")}
        command = [sys.executable, "-c", JOB, str(path), what, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 1 and not done.stdout and not path.with_suffix(".lock").exists()
        return done.stderr, path.read_text() if log is None else None

    return run


def test_of_an_unexpected_error_the_log_has_the_traceback_and_the_terminal_one_line(ended, tmp_path):
    terminal, log = ended(UNEXPECTED)
    assert terminal == f"error in rule train: KeyError: 'accuracy'; see {tmp_path / 'logs' / 'cnn-0.log'}\n"
    lines = log.splitlines()
    assert (
        lines[:2] == ["epoch 1", "Traceback (most recent call last):"] and lines[-1] == "KeyError: 'accuracy'"
    )


def test_of_a_users_error_both_have_the_one_line(ended):
    assert ended(EXPECTED) == (LINE, "epoch 1\nerror: images are missing: unpack them\n")


def test_a_log_on_a_full_disk_is_one_line(ended, tmp_path):
    terminal, _ = ended(UNEXPECTED, log="/dev/full")  # which the job meets at its first line
    log = tmp_path / "logs" / "cnn-0.log"
    assert (
        terminal == f"error in rule train: {log}: No space left on device; free space, or change its rights\n"
    )


@pytest.mark.parametrize("what", [EXPECTED, UNEXPECTED])
def test_on_a_disk_that_is_full_when_the_error_comes_the_terminal_has_it(ended, what):
    terminal, log = ended(f"sys.stdout.write('x' * 2039 + chr(10)); {what}", size=2048)
    assert len(log) == 2048 and "rror" not in log
    assert terminal == LINE if what == EXPECTED else terminal.endswith("KeyError: 'accuracy'\n")
