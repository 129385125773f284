"""Two copies of a job never write at once, whichever process dies at any time."""

import errno
import os
import re
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
from conftest import most_at_once, obstruct, refused

from relusym.jobs.job_lock import PATIENCE, JobLock, _state, is_held, owner

QUICK = {"beat": 0.05, "patience": 0.5}
HOLD = """
import sys, time
from relusym.jobs.job_lock import JobLock
with JobLock(sys.argv[1], lambda line: print(line, flush=True), beat=0.05, patience=300) as lock:
    print("held", flush=True)
    sys.stdin.readline()
"""
# in filelock's format
ELSEWHERE = f"filelock/2\npid=1\nhost=other\nmode=lease\ntoken=0\nduration={PATIENCE}\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs" / "cnn-0.lock"


@pytest.fixture
def hold(path, child):
    """A function that starts a process that takes the lock, holds it until it reads a line, and releases it."""
    return lambda: child(HOLD, path)


@pytest.fixture
def elsewhere(path, monkeypatch):
    """A function that leaves another machine's lock, touched every ten seconds of a clock that `sleep` advances."""

    def leave(beats_for):
        class Clock:
            now = 0.0

            def monotonic(self):
                return self.now

            def sleep(self, seconds):
                self.now += seconds
                if self.now < beats_for and self.now % 10 == 0:
                    os.utime(path, (self.now // 10, self.now // 10))

        path.parent.mkdir()
        path.write_text(ELSEWHERE)
        os.utime(path, (0, 0))
        clock = Clock()
        monkeypatch.setattr("relusym.jobs.job_lock.time", clock)
        return clock

    return leave


def test_a_second_copy_waits_names_the_owner_and_continues_when_the_first_has_ended(path, hold):
    first = hold()
    assert first.stdout.readline() == "held\n"
    second = hold()
    line = second.stdout.readline()
    assert line.startswith(f"cnn-0 is being done by process {first.pid} on ") and "waiting" in line
    first.communicate("\n", timeout=300)
    assert second.stdout.readline() == "held\n"
    second.communicate("\n", timeout=300)
    assert not list(path.parent.iterdir())


def refusal(path):
    return refused(lambda: JobLock(path).acquire(wait=False))


def test_a_process_that_does_not_wait_names_the_owner_and_the_file_of_the_lock_at_once(path, hold):
    first = hold()
    first.stdout.readline()
    holder = rf"cnn-0 is being done by process {first.pid} on \S+ \({re.escape(str(path))}\)"
    assert re.fullmatch(f"{holder}: wait for it, or end it first", refusal(path))


def test_a_process_that_does_not_wait_is_refused_at_another_machines_next_heartbeat(path, elsewhere):
    clock = elsewhere(beats_for=300)
    assert refusal(path).startswith(f"cnn-0 is being done by process 1 on other ({path}): wait")
    assert clock.now < 12


DATES = pytest.mark.parametrize("dated", [0, 4_070_908_800], ids=["1970", "2099"])
TEXTS = {"whole": ELSEWHERE, "empty": "", "of other patience": ELSEWHERE.replace("90", "30")}


@DATES
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_process_that_does_not_wait_takes_over_a_lock_without_a_heartbeat(path, elsewhere, text, dated):
    clock = elsewhere(beats_for=0)
    path.write_text(text)
    os.utime(path, (dated, dated))
    lines = []
    lock = JobLock(path, lines.append)
    lock.acquire(wait=False)
    lock.check()
    lock.release()
    assert [line.partition("(")[2] for line in lines] == [f"{path}): checking whether it is alive"]
    assert 90 < clock.now < 95


def test_another_machines_lock_is_taken_over_ninety_seconds_after_its_last_heartbeat(path, elsewhere):
    clock = elsewhere(beats_for=300)
    with JobLock(path) as lock:
        assert lock.waited and 380 < clock.now < 385  # the last heartbeat was at 290
        lock.check()


@DATES
def test_a_lock_counts_as_held_unless_its_process_is_gone_whatever_its_date(path, hold, dated):
    assert not is_held(path)
    with JobLock(path):
        os.utime(path, (dated, dated))
        assert is_held(path)
    path.write_text(ELSEWHERE)
    os.utime(path, (dated, dated))
    assert is_held(path)
    path.unlink()
    first = hold()
    first.stdout.readline()
    os.utime(path, (dated, dated))
    first.kill()
    first.wait()
    assert not is_held(path)


def test_a_copy_that_was_taken_over_while_paused_stops(path):
    lock = JobLock(path, **QUICK)
    lock.acquire()
    lock.check()
    path.unlink()
    path.write_text(ELSEWHERE)
    time.sleep(1)  # the lock is checked once a second
    refused(lambda: lock.check(), match="cnn-0 was taken over by process 1 on other")
    lock.release()
    assert path.exists()  # the other process's lock


def test_the_lock_of_a_killed_process_is_taken_over_at_once(path, hold):
    first = hold()
    first.stdout.readline()
    first.kill()
    while psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE:  # nobody waits for it
        time.sleep(0.01)
    assert not is_held(path)
    lock = JobLock(path)
    lock.acquire(wait=False)
    assert not lock.waited and owner(path).startswith(f"process {os.getpid()} on ")


@pytest.fixture(params=["names can be exchanged", "names can't be exchanged"])
def dead(request, path, hold, monkeypatch):
    """A lock left by a killed process of this machine, on a local file system and on one like NFS."""
    killed = hold()
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    if request.param == "names can't be exchanged":
        for module in ("_soft", "_util"):
            monkeypatch.setattr(f"filelock.{module}.exchange_names", lambda source, target: False)


def test_only_one_of_many_that_take_over_a_dead_processs_lock_holds_it_at_a_time(path, dead):
    @contextmanager
    def turn():
        with JobLock(path, beat=0.05, patience=300) as lock:  # on a busy machine, too
            yield
            lock.check()

    assert most_at_once(8, turn) == 1
    assert not list(path.parent.iterdir())


def test_a_process_late_to_take_over_never_touches_the_lock_of_a_quicker_one(path, dead):
    state = _state(path)
    how = QUICK | {"patience": 300}  # on a busy machine, too
    with JobLock(path, **how) as quicker:
        late = threading.Thread(target=lambda: [JobLock(path, **how)._remove(state) for _ in range(50)])
        late.start()
        while late.is_alive():
            assert quicker._lease.is_lock_held_by_us


def test_a_process_that_died_during_a_takeover_is_no_obstacle(path, dead):
    path.with_name(f".{path.name}.takeover").write_text("")
    with JobLock(path, beat=0.05, patience=0.2):
        pass
    assert not path.exists()


@pytest.mark.parametrize("kind", ["link to nowhere", "fifo", "torn"])
def test_a_file_that_is_no_lock_is_taken_over_and_a_links_target_is_untouched(path, kind):
    path.parent.mkdir()
    path.write_text("filelo") if kind == "torn" else obstruct(path, kind)
    with JobLock(path, **QUICK) as lock:
        lock.check()
        assert path.is_file() and not path.is_symlink()
    assert not list(path.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    line = r"cnn-0\.lock can't be written \(.*\): free space or change the folder"
    refused(lambda: JobLock(tmp_path / "file" / "cnn-0.lock").acquire(), match=line)


def test_a_lock_that_cannot_be_written_for_lack_of_space_leaves_no_file(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    line = r"cnn-0\.lock can't be written \(No space left on device\)"
    refused(lambda: JobLock(path).acquire(), match=line)
    assert not list(path.parent.iterdir())
