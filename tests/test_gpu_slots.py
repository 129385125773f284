"""Jobs on one machine share its GPUs without a scheduler."""

import os
import subprocess

import pytest
from conftest import most_at_once, obstruct, refused

from relusym.jobs.gpu_slots import gpu_slots, users_folder, visible_gpus

TAKE = """
import os, sys
from relusym.jobs.gpu_slots import gpu_slots
with gpu_slots(int(sys.argv[1]), 2, poll=0.02):
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def take(tmp_path, child):
    """A function that starts a process that takes some of two GPUs, with two jobs on each, until it reads a line."""
    return lambda count=1: child(TAKE, count, CUDA_VISIBLE_DEVICES="0,1", TMPDIR=str(tmp_path))


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
        fifth.communicate(timeout=1)  # all slots are taken
    jobs[2].kill()  # a job that dies frees its slot
    assert fifth.stdout.readline().strip() == seen[2]


@pytest.mark.slow(seconds=1)
def test_a_job_on_two_gpus_takes_both_exclusively(take):
    one = take()
    one.stdout.readline()
    both = take(2)
    with pytest.raises(subprocess.TimeoutExpired):
        both.communicate(timeout=1)
    one.communicate("\n", timeout=300)
    assert both.stdout.readline().strip() == "0,1"


def test_threads_of_one_process_do_not_share_a_slot(monkeypatch):
    monkeypatch.setattr("relusym.jobs.gpu_slots.visible_gpus", lambda: ["0"])
    assert most_at_once(5, lambda: gpu_slots(1, 1, poll=0.01)) == 1


def test_the_environment_is_restored_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus() == ["3", "5"]  # the same slot names, however the list is written
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with gpu_slots(1, 4) as taken:
        assert taken == ["3"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_asking_for_more_gpus_than_visible_is_one_line_and_without_any_the_cpu_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    refused(lambda: gpu_slots(3, 1).__enter__(), match="asks for 3 GPUs, but only 2 are visible")
    for none in ("", "-1", " ", ",", "-1,0"):  # values with which CUDA sees no GPU
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        with gpu_slots(1, 4) as taken:
            assert taken == []


def test_the_locks_are_in_a_folder_that_only_the_user_can_enter(temporary, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with gpu_slots(1, 1):
        (folder,) = temporary.iterdir()
        assert folder == users_folder() and folder.name == f"relusym-{os.getuid()}"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [slot.name for slot in folder.iterdir()] == ["gpu-0.0"]


@pytest.mark.parametrize("planted", ["link", "link to nowhere", "open to all", "file", "another's"])
def test_a_folder_that_another_user_planted_is_refused_and_its_target_is_untouched(
    temporary, monkeypatch, planted
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    private, folder = temporary / "private", temporary / f"relusym-{os.getuid()}"
    private.mkdir(mode=0o700)
    if planted.startswith("link"):
        folder.symlink_to(private if planted == "link" else temporary / "nowhere")
    elif planted == "file":
        folder.touch(mode=0o600)
    else:
        folder.mkdir(mode=0o700)
        if planted == "open to all":
            folder.chmod(0o1777)
        else:
            uid = os.getuid()
            monkeypatch.setattr(os, "getuid", lambda: uid + 1)
            folder.rename(temporary / f"relusym-{uid + 1}")
    refused(lambda: gpu_slots(1, 1).__enter__(), match=r"relusym-\d+ isn't a folder that you alone can enter")
    assert private.stat().st_mode & 0o777 == 0o700 and not list(private.iterdir())
    assert not (temporary / "nowhere").exists()


def test_a_slot_that_is_a_link_is_refused_and_not_followed_and_a_pipe_is_locked_without_hanging(
    temporary, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    link, pipe = (users_folder() / f"gpu-{gpu}.0" for gpu in (0, 1))
    obstruct(pipe, "fifo")
    with gpu_slots(2, 1) as taken:
        assert taken == ["0", "1"]
    link.unlink()
    obstruct(link, "link to nowhere")
    refused(lambda: gpu_slots(1, 1).__enter__(), "gpu-0.0 can't be locked (", "remove it")
    assert not link.with_name("nowhere").exists()
