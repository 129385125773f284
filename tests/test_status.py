import os

import pytest
from records import CODE, train

from relusym.jobs.job_lock import JobLock
from relusym.jobs.job_log import last_words
from relusym.jobs.status import kind_status, screen, type_of
from relusym.records.files import write_record


@pytest.fixture
def folder(tmp_path):
    """Logs and records of trainings: done, diverged, running, failed, of other settings, not begun, of another type."""
    hours = {
        "cnn-f0/0": ("ok", 0.5), "cnn-f0/1": ("diverged", 0.5), "cnn-0f/4": ("ok", 2.0),
        "gcnn-f0/0": ("ok", 1.0),
    }  # fmt: skip
    for name, (status, of_job) in hours.items():
        path = tmp_path / "records" / "train" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        cost = {"seconds": 1.0, "job_seconds": 3600 * of_job}
        write_record(path, train("cnn", 0, status=status, cost=cost, code=CODE | {"device": "cuda Tesla T4"}))
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
    heads = "kind jobs done running failed to do left out GPU-h spent GPU-h to go"
    assert " ".join(lines[1].split()) == heads
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
    assert kind_status("train", {"train/cnn-f0/7": False}, folder).counts == {"to do": 1}


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
