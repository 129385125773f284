"""Jobs on one machine share its GPUs without a scheduler that hands them out."""

import os
import subprocess
import sys
import threading
import time

import pytest

from relusym.errors import UserError
from relusym.jobs.gpu_slots import gpu_slots, visible_gpus

TAKE = """
import os, sys
from pathlib import Path
from relusym.jobs.gpu_slots import gpu_slots
with gpu_slots(int(sys.argv[2]), 2, folder=Path(sys.argv[1]), poll=0.02):
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def take(tmp_path, pytestconfig):
    """A function that starts a process that takes GPUs of two, two jobs on each, until it reads a line."""
    started = []

    def start(count=1):
        scripts = str(pytestconfig.rootpath / "workflow_scripts")
        environment = os.environ | {"PYTHONPATH": scripts, "CUDA_VISIBLE_DEVICES": "0,1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", TAKE, str(tmp_path), str(count)]
        started.append(subprocess.Popen(command, **pipes, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow(seconds=1)
def test_jobs_of_any_scheduler_spread_over_the_gpus_then_share_them(take):
    seen = []
    jobs = []
    for _ in range(4):
        jobs.append(take())
        seen.append(jobs[-1].stdout.readline().strip())
    assert sorted(seen[:2]) == ["0", "1"] and sorted(seen) == ["0", "0", "1", "1"]
    fifth = take()
    with pytest.raises(subprocess.TimeoutExpired):
        fifth.communicate(timeout=1)  # no slot is free
    jobs[2].kill()  # a job that dies gives its slot back
    assert fifth.stdout.readline().strip() == seen[2]


@pytest.mark.slow(seconds=1)
def test_a_job_on_two_gpus_takes_both_whole(take):
    one = take()
    one.stdout.readline()
    both = take(2)
    with pytest.raises(subprocess.TimeoutExpired):
        both.communicate(timeout=1)
    one.communicate("\n", timeout=20)
    assert both.stdout.readline().strip() == "0,1"


def test_threads_of_one_process_do_not_share_a_slot(tmp_path, monkeypatch):
    monkeypatch.setattr("relusym.jobs.gpu_slots.visible_gpus", lambda: ["0"])
    inside, most = [], []

    def work():
        with gpu_slots(1, 1, folder=tmp_path, poll=0.01):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 5 and max(most) == 1


def test_the_environment_is_as_before_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]
    with gpu_slots(1, 4, folder=tmp_path) as taken:
        assert taken == ["3"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_more_gpus_than_there_are_is_one_line_and_none_at_all_is_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with (
        pytest.raises(UserError, match="asks for 3 GPUs, and 2 are visible"),
        gpu_slots(3, 1, folder=tmp_path),
    ):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpu_slots(1, 4, folder=tmp_path) as taken:
        assert taken == []
