"""The status screen, the checklist before a run, and what is left of a job that ends in an error."""

import os
import subprocess
import sys

import pytest

from relusym.errors import WARNINGS
from relusym.jobs import checklist
from relusym.jobs.checklist import Submission, folder_problems, slurm_problems
from relusym.jobs.job_lock import JobLock
from relusym.jobs.job_log import last_words
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
    assert lines[-2].endswith("gcnn-f0/8.log: it was killed, it seems (kill -9, memory, or its node)")


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_log_keeps_the_screen_from_nothing(folder, kind):
    log = folder / "logs/train/cnn-f0/7.log"
    os.mkfifo(log) if kind == "fifo" else log.mkdir()
    status = kind_status("train", {"train/cnn-f0/7": False}, folder)
    assert status.counts == {"to do": 1}


def test_the_last_words_of_a_log_tell_a_kill_from_an_error(tmp_path):
    log, killed = tmp_path / "cnn-0.log", "it was killed, it seems (kill -9, memory, or its node)"
    for text, words in {
        "cnn-0: epoch   1.50/3  loss 1.2\n": f"{killed}, after: cnn-0: epoch   1.50/3  loss 1.2",
        "": killed,
        "epoch 1\nerror: no space left\n": "no space left",
        "epoch 1\nTraceback (most recent call last):\n  File\nKeyError: 'a'\n": "KeyError: 'a'",
        "cnn-0: ok\ndone\n": None,
    }.items():
        log.write_text(text)
        assert last_words(log) == words
    assert last_words(tmp_path / "none.log") is None


def test_a_jobs_type_is_that_of_its_nets():
    names = ["train/cnn-3f9a1c2b/3", "train/pgcnn_late_inv-3f9a1c2b/12", "pair_merge/cnn--gcnn-3f9a1c2b/0--1"]
    assert [type_of(name) for name in names] == ["cnn", "pgcnn_late_inv", "cnn--gcnn"]


# ---- the checklist (on a real Slurm: test_cluster)

PARTITIONS = "cpu*|infinite\ngpu|4:00:00\nlong|1-02:30:00\nquick|30:00\n"
REFUSED = (
    "sbatch: error: invalid partition specified: gqu\nallocation failure: Invalid partition name specified\n"
)


@pytest.fixture
def slurm(monkeypatch):
    """A function that pretends a Slurm: whether it keeps accounts; it has no partition gqu."""

    def pretend(accounts=True):
        def asked(command):
            if command.startswith("sbatch --test-only "):
                return (False, REFUSED) if "-p gqu " in command else (True, "")
            return (True, PARTITIONS) if command.startswith("sinfo ") else (accounts, "")

        monkeypatch.setattr(checklist, "_asked", asked)
        monkeypatch.setattr(checklist.shutil, "which", lambda name: f"/usr/bin/{name}")

    return pretend


def test_a_site_in_order_has_no_problems(slurm):
    slurm()
    minutes = {"gpu": 240, "long": 1590, "quick": 30}
    submissions = [Submission("train", name, most, f"-p {name}") for name, most in minutes.items()]
    assert slurm_problems(submissions, "sacct") == []
    slurm(accounts=False)
    assert slurm_problems([Submission("figure", "", 10**6, "")], "squeue") == []


@pytest.mark.parametrize(
    ("accounts", "submission", "problem"),
    [
        (
            True,
            ("train", "gqu", 120, "-p gqu -t 120"),
            "Slurm refuses train: Invalid partition name specified (`sbatch --test-only -p gqu -t 120`); "
            "set slurm_partition to one of cpu, gpu, long, quick that has",
        ),
        (
            True,
            ("train", "gpu", 300, "-p gpu"),
            "up to 300 minutes and partition gpu allows 240; set `set-resources: {train: {runtime: 240}}`",
        ),
        (True, ("train", "long", 1591, "-p long"), "partition long allows 1590; "),
        (True, ("train", "quick", 31, "-p quick"), "partition quick allows 30; "),
        (False, ("train", "gpu", 1, ""), "keeps no accounts; set it to squeue"),
    ],
)
def test_each_problem_of_a_site_is_one_line_that_says_what_to_set(slurm, accounts, submission, problem):
    slurm(accounts)
    (line,) = slurm_problems([Submission(*submission)], "sacct")
    assert problem in line and "\n" not in line and line.startswith("profiles/slurm/config.yaml: ")


def test_a_missing_or_silent_scheduler_is_one_line(monkeypatch, slurm):
    slurm()
    monkeypatch.setattr(checklist, "_asked", lambda command: (False, ""))
    assert "controller doesn't answer" in slurm_problems([], "sacct")[0]
    monkeypatch.setattr(checklist.shutil, "which", lambda name: None)
    assert slurm_problems([], "sacct")[0].startswith(
        "sbatch, srun, squeue, sinfo: not found; run snakemake on a node"
    )


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
log, what, size, *after = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
nothing = {"log": [log], "rule": "train", "params": {}, "resources": {}, "output": {}, "threads": 1}
with job(SimpleNamespace(**nothing)):
    print("epoch 1")
    exec(what)
exec(*after or [""])
"""
UNEXPECTED, EXPECTED = "{}['accuracy']", "raise UserError('images are missing: unpack them')"
MEND = "free space, change its rights, or move away what is there"
LINE = "error in rule train: images are missing: unpack them\n"


@pytest.fixture
def run_job(pytestconfig):
    """A function that runs a job with a log: what it does, and what after it, by another command."""

    def run(log, *what, size=10**9, by=()):
        environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath / "workflow_scripts")}
        command = [*by, sys.executable, "-c", JOB, str(log), what[0], str(size), *what[1:]]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(command, **pipes, text=True, env=environment, timeout=300, check=False)

    return run


@pytest.fixture
def ended(tmp_path, run_job):
    """A function that runs a job that ends in an error: what the terminal has, and the log if it is a file."""

    def run(what, log=None, size=10**9):
        path = tmp_path / "logs" / "cnn-0.log"
        path.parent.mkdir()
        if log is not None:
            path.symlink_to(log)
        done = run_job(path, what, size=size)
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
    assert terminal == f"error in rule train: {log}: No space left on device; {MEND}\n"


@pytest.mark.parametrize("what", [EXPECTED, UNEXPECTED])
def test_on_a_disk_that_is_full_when_the_error_comes_the_terminal_has_it(ended, what):
    terminal, log = ended(f"sys.stdout.write('x' * 2039 + chr(10)); {what}", size=2048)
    assert len(log) == 2048 and "rror" not in log
    assert terminal == LINE if what == EXPECTED else terminal.endswith("KeyError: 'accuracy'\n")


@pytest.mark.parametrize("kind", ["fifo", "folder", "link in a circle"])
def test_what_stands_where_the_log_belongs_is_told_in_one_line_and_keeps_nobody_waiting(
    tmp_path, run_job, kind
):
    log = tmp_path / "logs" / "cnn-0.log"
    log.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(log)
    elif kind == "folder":
        log.mkdir()
    else:
        log.symlink_to(log)
    done = run_job(log, "pass")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error in rule train: {log}: ") and MEND in done.stderr


def test_a_link_to_nowhere_is_no_lock(tmp_path, run_job):
    log = tmp_path / "logs" / "cnn-0.log"
    log.parent.mkdir()
    log.with_suffix(".lock").symlink_to("nowhere")
    done = run_job(log, "pass")
    assert done.returncode == 0 and log.read_text() == "epoch 1\ndone\n"
    assert [*log.parent.iterdir()] == [log]


@pytest.mark.parametrize("what", ["pass", "raise UserError('wrong')"])
@pytest.mark.parametrize("number", WARNINGS, ids=lambda number: number.name)
def test_a_warning_at_the_very_end_changes_nothing(tmp_path, run_job, what, number):
    log = tmp_path / "logs" / "cnn-0.log"
    kill = f"import os; os.kill(os.getpid(), {int(number)})"
    at_exit = f"import atexit; atexit.register(lambda: exec({kill!r})); {what}"
    done = run_job(log, at_exit, kill)
    words = "" if what == "pass" else "error in rule train: wrong\n"
    assert (done.returncode, done.stderr) == (len(words) and 1, words)


@pytest.mark.parametrize("number", WARNINGS, ids=lambda number: number.name)
def test_a_warning_ends_a_job_that_can_not_save_its_state_in_a_line(tmp_path, run_job, number):
    log = tmp_path / "logs" / "cnn-0.log"
    done = run_job(log, f"import os; os.kill(os.getpid(), {int(number)})")
    line = f"ended by {number.name} before it was done; it starts over when it runs again\n"
    assert (done.returncode, done.stderr) == (1, f"error in rule train: {line}")
    assert log.read_text() == f"epoch 1\nerror: {line}" and not log.with_suffix(".lock").exists()


def test_below_nohup_the_end_of_the_terminal_ends_no_job(tmp_path, run_job):
    log = tmp_path / "logs" / "cnn-0.log"
    done = run_job(log, "import os, signal; os.kill(os.getpid(), signal.SIGHUP)", by=["nohup"])
    assert done.returncode == 0 and log.read_text().endswith("done\n")
