"""The output and files of a job that ends with an error, a warning or a full disk."""

import contextlib
import inspect
import io
import itertools
import os
import signal
import subprocess
import sys
from contextlib import nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SCRIPTS, obstruct

from job import job
from relusym.errors import WARNINGS, Interruption, UserError
from relusym.jobs.job_lock import JobLock
from relusym.whole_files import write_whole

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
MEND = "free space, change permissions, or move away what is there"
LINE = "error in rule train: images are missing: unpack them\n"


def run_job(log, *what, size=10**9, by=()):
    """Run a job with a log: code of the job, code after it, optionally by another command."""
    command = [*by, sys.executable, "-c", JOB, str(log), what[0], str(size), *what[1:]]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    return subprocess.run(command, **pipes, text=True, env=environment, timeout=300, check=False)


@pytest.fixture
def ended(tmp_path):
    """A function that runs a job that ends with an error: the terminal's output, and the log if it is a file."""

    def run(what, log=None, size=10**9):
        path = tmp_path / "logs" / "cnn-0.log"
        path.parent.mkdir()
        if log is not None:
            path.symlink_to(log)
        done = run_job(path, what, size=size)
        assert done.returncode == 1 and not done.stdout and not path.with_suffix(".lock").exists()
        return done.stderr, path.read_text() if log is None else None

    return run


def test_an_unexpected_error_has_its_traceback_in_the_log_and_one_line_on_the_terminal(ended, tmp_path):
    terminal, log = ended(UNEXPECTED)
    assert terminal == f"error in rule train: KeyError: 'accuracy'; see {tmp_path / 'logs' / 'cnn-0.log'}\n"
    lines = log.splitlines()
    first = ["epoch 1", "Traceback (most recent call last):"]
    assert lines[:2] == first and lines[-1] == "KeyError: 'accuracy'"


def test_a_users_error_is_the_same_line_in_the_log_and_on_the_terminal(ended):
    assert ended(EXPECTED) == (LINE, "epoch 1\nerror: images are missing: unpack them\n")


def test_a_log_on_a_full_disk_is_one_line(ended, tmp_path):
    terminal, _ = ended(UNEXPECTED, log="/dev/full")  # full already at the job's first line
    log = tmp_path / "logs" / "cnn-0.log"
    assert terminal == f"error in rule train: {log}: No space left on device; {MEND}\n"


@pytest.mark.parametrize("what", [EXPECTED, UNEXPECTED])
def test_an_error_that_a_full_disk_keeps_from_the_log_is_on_the_terminal(ended, what):
    terminal, log = ended(f"sys.stdout.write('x' * 2039 + chr(10)); {what}", size=2048)
    assert len(log) == 2048 and "rror" not in log
    assert terminal == LINE if what == EXPECTED else terminal.endswith("KeyError: 'accuracy'\n")


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to itself"])
def test_a_non_file_in_place_of_the_log_is_reported_in_one_line_and_blocks_nobody(tmp_path, kind):
    log = tmp_path / "logs" / "cnn-0.log"
    obstruct(log, kind)
    done = run_job(log, "pass")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error in rule train: {log}: ") and MEND in done.stderr


@pytest.mark.parametrize("what", ["pass", "raise UserError('wrong')"])
@pytest.mark.parametrize("number", WARNINGS, ids=lambda number: number.name)
def test_a_warning_at_the_very_end_changes_nothing(tmp_path, what, number):
    log = tmp_path / "logs" / "cnn-0.log"
    kill = f"import os; os.kill(os.getpid(), {int(number)})"
    at_exit = f"import atexit; atexit.register(lambda: exec({kill!r})); {what}"
    done = run_job(log, at_exit, kill)
    words = "" if what == "pass" else "error in rule train: wrong\n"
    assert (done.returncode, done.stderr) == (len(words) and 1, words)


@pytest.mark.parametrize("number", WARNINGS, ids=lambda number: number.name)
def test_a_warning_ends_a_job_that_cannot_save_its_state_with_one_line(tmp_path, number):
    log = tmp_path / "logs" / "cnn-0.log"
    done = run_job(log, f"import os; os.kill(os.getpid(), {int(number)})")
    line = f"ended by {number.name} before it was done; it starts over when it runs again\n"
    assert (done.returncode, done.stderr) == (1, f"error in rule train: {line}")
    assert log.read_text() == f"epoch 1\nerror: {line}" and not log.with_suffix(".lock").exists()


def test_under_nohup_closing_the_terminal_ends_no_job(tmp_path):
    log = tmp_path / "logs" / "cnn-0.log"
    done = run_job(log, "import os, signal; os.kill(os.getpid(), signal.SIGHUP)", by=["nohup"])
    assert done.returncode == 0 and log.read_text().endswith("done\n")


AGAIN = """
import sys
from types import SimpleNamespace
from snakemake.iocontainers import OutputFiles
from job import job
log, record, checkpoint = sys.argv[1:]
output = OutputFiles(fromdict={"checkpoint": checkpoint, "record": record})
with job(SimpleNamespace(log=[log], rule="train", params={}, resources={}, output=output, threads=1)):
    print("again")
"""


@pytest.mark.parametrize("written", ["record", "checkpoint", "nothing"])
def test_a_job_that_waited_is_done_if_the_other_copy_wrote_its_record_and_otherwise_runs(
    tmp_path, child, written
):
    log = tmp_path / "0.log"
    outputs = {"record": tmp_path / "0.json", "checkpoint": tmp_path / "0.safetensors"}
    for path in outputs.values():  # from an earlier day, as both copies were forced
        path.write_text("old")
    with JobLock(log.with_suffix(".lock")):
        copy = child(AGAIN, log, *outputs.values())
        assert "waiting for it" in copy.stderr.readline()
        if written != "nothing":
            with write_whole(outputs[written]) as part:
                part.write_text("old")
    _, lines = copy.communicate(timeout=300)
    skipped = written == "record"
    assert (copy.returncode, lines) == (0, "rule train: 0 was done by the other copy\n" if skipped else "")
    assert log.exists() != skipped and (skipped or log.read_text() == "again\ndone\n")


TRACED = {"workflow_scripts", "relusym", "jobs", "filelock"}  # folders


@cache
def is_traced(code):
    file = code.co_filename
    is_ours = file == contextlib.__file__ or Path(file).parent.name in TRACED
    return is_ours and not code.co_flags & inspect.CO_GENERATOR


@pytest.mark.parametrize(
    ("ends", "within"),
    [
        *((ends, nullcontext) for ends in (None, UserError("wrong"), KeyError("accuracy"))),
        *((ends, Interruption) for ends in (None, UserError("wrong"))),  # the context of a training
    ],
    ids=repr,
)
def test_whenever_a_warning_comes_a_job_succeeds_or_ends_with_one_line_and_leaves_no_lock(
    tmp_path, monkeypatch, ends, within
):
    monkeypatch.setitem(sys.modules, "torch", None)  # whose threads a job would set
    log, moment, came = tmp_path / "cnn-0.log", itertools.count(), []
    nothing = {"rule": "train", "params": {}, "resources": {}, "output": {}, "threads": 1}

    def warn(frame, *_):  # at the call of a function
        heard = signal.getsignal(signal.SIGTERM) is not died
        if not is_traced(frame.f_code):
            return
        if heard and next(calls) == when:
            came.append(frame.f_code.co_name)
            signal.raise_signal(signal.SIGTERM)

    def died(*_):
        raise AssertionError("no job was at work")

    def run(terminal):
        with redirect_stderr(terminal), job(SimpleNamespace(log=[str(log)], **nothing)), within():
            if ends:
                raise type(ends)(*ends.args)

    before = {number: signal.getsignal(number) for number in WARNINGS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for when in moment:
        calls, terminal = itertools.count(), io.StringIO()
        signal.signal(signal.SIGTERM, died)
        try:
            sys.settrace(warn)
            run(terminal)
            status = 0
        except SystemExit as ended:
            status = ended.code
        finally:
            sys.settrace(None)
            for number in WARNINGS:  # blocked signals may be pending
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in before.items():
                signal.signal(number, handler)
        line, words = terminal.getvalue(), log.read_text().splitlines() if log.exists() else []
        assert line.count("\n") == status == bool(line)
        assert line.startswith("error in rule train: "[: len(line)])
        assert not words or status == (words[-1] != "done"), (when, line, words)
        assert {path.name for path in tmp_path.iterdir()} <= {log.name}
        log.unlink(missing_ok=True)
        if len(came) <= when:
            break
    assert len(came) > 30
