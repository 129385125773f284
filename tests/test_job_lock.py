"""No two copies of a job write, whoever dies when."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from relusym.errors import UserError
from relusym.jobs.job_lock import JobLock, is_held, owner

QUICK = {"beat": 0.05, "patience": 0.5}
HOLD = """
import sys, time
from relusym.jobs.job_lock import JobLock
with JobLock(sys.argv[1], lambda line: print(line, flush=True), beat=0.05, patience=0.5) as lock:
    print("held", flush=True)
    sys.stdin.readline()
"""
ELSEWHERE = {"pid": 1, "started": "1", "machine": ["other", "boot", "ns"], "host": "other", "since": "now"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs" / "cnn-0.lock"


@pytest.fixture
def hold(path, pytestconfig):
    """A function that starts a process that takes the lock, holds it until it reads a line, and gives it back."""
    started = []

    def start():
        environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath / "workflow_scripts")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(
            subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes, text=True, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_copy_waits_says_for_whom_and_goes_on_when_the_first_has_ended(path, hold):
    first = hold()
    assert first.stdout.readline() == "held\n"
    second = hold()
    told = second.stdout.readline()
    assert told.startswith(f"cnn-0 is being done by process {first.pid} on ") and "waiting" in told
    first.communicate("\n", timeout=20)
    assert second.stdout.readline() == "held\n"
    second.communicate("\n", timeout=20)
    assert not list(path.parent.iterdir())


def test_one_that_does_not_wait_says_who_holds_the_lock(path, hold):
    first = hold()
    first.stdout.readline()
    with pytest.raises(UserError, match=f"cnn-0 is being done by process {first.pid} on .*: wait for it"):
        JobLock(path, **QUICK).acquire(wait=False)


def test_the_lock_of_a_killed_process_is_taken_over_at_once(path, hold):
    first = hold()
    first.stdout.readline()
    assert is_held(path)
    first.kill()
    first.wait()
    assert not is_held(path)
    started = time.monotonic()
    with JobLock(path, patience=60) as lock:
        assert time.monotonic() - started < 5 and not lock.waited
        assert owner(path)["pid"] == os.getpid()


def test_another_machines_lock_is_taken_over_once_its_heartbeat_has_stopped(path):
    path.parent.mkdir()
    path.write_text(json.dumps(ELSEWHERE) + "\n0\n")
    stop = threading.Event()

    def beat():
        count = 0
        while not stop.wait(0.05):
            count += 1
            path.write_text(f"{json.dumps(ELSEWHERE)}\n{count}\n")

    heart = threading.Thread(target=beat)
    heart.start()
    threading.Timer(1.5, stop.set).start()
    started = time.monotonic()
    with JobLock(path, **QUICK) as lock:
        assert lock.waited and time.monotonic() - started > 1.5
        lock.check()
    heart.join()


def test_a_requeued_job_takes_over_from_its_former_self_at_once(path, monkeypatch):
    path.parent.mkdir()
    path.write_text(json.dumps({**ELSEWHERE, "job": "12", "restarts": 0}) + "\n0\n")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    started = time.monotonic()
    with JobLock(path, patience=60):
        assert time.monotonic() - started < 5


def test_a_copy_that_was_taken_over_while_paused_stops(path):
    lock = JobLock(path, **QUICK)
    lock.acquire()
    lock.check()
    path.unlink()
    path.write_text(json.dumps(ELSEWHERE) + "\n0\n")
    with pytest.raises(UserError, match="cnn-0 was taken over by process 1 on other"):
        lock.check()
    lock.release()
    assert path.exists()  # the other's lock


def test_of_many_that_take_over_a_dead_ones_lock_one_at_a_time_holds_it(path):
    path.parent.mkdir()
    path.write_text(json.dumps(ELSEWHERE) + "\n0\n")
    inside, most, turns = [], [], []

    def take():
        with JobLock(path, **QUICK):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()
            turns.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(turns) == 8 and max(most) == 1


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cnn-0\.lock can't be written \(.*\): free space or change the folder"
    ):
        JobLock(tmp_path / "file" / "cnn-0.lock").acquire()
