"""Files are written whole or not at all, even on a full disk."""

import errno
import io
import os
import resource
import shutil
import signal
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import records
import torch
from conftest import obstruct, refused
from matplotlib.figure import Figure

from relusym import checkpoint
from relusym.data import image_set
from relusym.errors import UserError
from relusym.findings.fingerprint import is_whole, write_note
from relusym.findings.layout import Layout, write_table
from relusym.findings.print_style import write_figure
from relusym.jobs.job_lock import JobLock
from relusym.records.files import load_record, load_record_or_none, write_record
from relusym.whole_files import sha256, write_text, write_whole

RECORD = records.train("cnn", 0)


@contextmanager
def little_space(size):
    """Files can grow to `size` bytes; writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def a_record(path):
    write_record(path, records.flip("cnn", 0, permutations={"conv1": list(range(5000))}))


def a_checkpoint(path):
    checkpoint.save(path, {"weight": torch.zeros(5000)}, {})


def prepared_images(path):
    splits = [(torch.zeros(9, 32, 32, 3, dtype=torch.uint8), torch.zeros(9).long()) for _ in range(2)]
    image_set.save(path, *(image_set.ImageSet(*split, ("a",), "nothing") for split in splits))


def a_table(path):
    write_table(pd.DataFrame({"n": range(5000)}), path.with_suffix(""), Layout("Title"))


def a_figure(path):
    figure = Figure()
    figure.subplots().plot(range(100))
    write_figure(figure, [path])


LARGE = {
    "cnn-0.json": a_record, "cnn-0.safetensors": a_checkpoint, "images.safetensors": prepared_images,
    "table2.csv": a_table, "figure4.png": a_figure, "figure4.pdf": a_figure,
}  # fmt: skip


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
@pytest.mark.parametrize(("name", "write"), LARGE.items())
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing_half_written(tmp_path, write, name, older):
    path = tmp_path / name
    if older:
        path.write_bytes(b"older")
    with little_space(2048):
        line = refused(lambda: write(path), "File too large")
    assert line.startswith(f"{path} can't be written (")
    left = [p.name for p in tmp_path.iterdir() if p.name != "settings.json"]  # it is small and thus complete
    assert left == ([name] if older else [])
    assert not older or path.read_bytes() == b"older"


def test_a_disk_that_fills_up_anywhere_in_a_figure_is_reported_in_one_line(tmp_path):
    figure, path = Figure(figsize=(3, 2)), tmp_path / "figure4.pdf"
    figure.subplots().plot(np.random.default_rng(0).normal(size=5000), marker="o")
    write_figure(figure, [path])
    size = path.stat().st_size
    path.unlink()
    for limit in range(0, size, size // 5):
        with little_space(limit), pytest.raises(UserError, match="can't be written"):
            write_figure(figure, [path])
        assert not list(tmp_path.iterdir())


def test_a_write_that_is_interrupted_leaves_the_older_file(tmp_path):
    path = tmp_path / "cnn-0.json"
    write_record(path, RECORD)
    with pytest.raises(KeyboardInterrupt), write_whole(path) as part:
        part.write_text("{", encoding="utf-8")
        raise KeyboardInterrupt
    assert load_record(path) == RECORD
    assert {p.name for p in tmp_path.iterdir()} == {"cnn-0.json", "settings.json"}


def test_a_planted_link_is_not_followed_and_an_unfinished_file_is_private(tmp_path):
    path, target = tmp_path / "cnn-0.json", tmp_path / "private"
    target.write_text("mine")
    path.symlink_to(target)
    (tmp_path / f".cnn-0.{os.getpid()}.part.json").symlink_to(target)
    with write_whole(path) as part:
        assert part.stat().st_mode & 0o777 == 0o600 and not part.is_symlink() and not target.samefile(part)
        part.write_text("whole")
    assert target.read_text() == "mine"
    assert path.read_text() == "whole" and not path.is_symlink()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, Path.touch, lambda path: path.symlink_to(path.name)])
def test_a_non_file_in_place_of_a_note_remakes_its_table_and_blocks_nobody(tmp_path, make):
    make(tmp_path / "table2-0.sha256")
    assert not is_whole(tmp_path / "table2-0.sha256")


def test_two_writers_of_one_file_use_different_temporary_files(tmp_path):
    with write_whole(tmp_path / "a.json") as first, write_whole(tmp_path / "a.json") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.json").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


# ---- any system call may fail


def a_note(path):
    made = path.with_name("table2.csv")
    write_text(made, "n\n1\n")
    write_note(path, "table2", "0" * 16, {}, [made])


def a_lock(path):
    with JobLock(path, beat=0.05, patience=0.5) as lock:
        lock.check()


WRITTEN = LARGE | {"notes/table2-0000000000000000.sha256": a_note, "cnn-0.lock": a_lock}
CALLS = [(os, name) for name in ("open", "write", "fsync", "replace", "link", "mkdir", "chmod", "unlink")]
CALLS.append((io, "open"))


class Faults:
    """In this thread, the system calls named by `fail` fail for files below a folder."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.count, self.failed = str(folder), 0, []
        for module, name in CALLS:
            monkeypatch.setattr(module, name, partial(self._call, getattr(module, name), name))

    def set(self, number=0, first=-1, last=-1):
        self.number, self.first, self.last, self.count, self.failed = number, first, last, 0, []

    def _call(self, call, name, file, *arguments, **options):
        path = str(Path(f"/proc/self/fd/{file}").readlink()) if isinstance(file, int) else os.fspath(file)
        if path.startswith(self.folder) and threading.current_thread() is threading.main_thread():
            self.count += 1
            if self.first < self.count <= self.last:
                self.failed.append(name)
                raise OSError(self.number, os.strerror(self.number), path)
        return call(file, *arguments, **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(sys.platform != "linux", reason="the path of a descriptor is read in /proc")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS], ids=os.strerror)
@pytest.mark.parametrize("name", WRITTEN)
def test_whichever_call_fails_one_line_reports_it_and_nothing_is_half_written(
    tmp_path, monkeypatch, name, code
):
    folder, path = tmp_path / "written", tmp_path / "written" / name
    path.parent.mkdir(parents=True)
    faults = Faults(folder, monkeypatch)
    faults.set()
    WRITTEN[name](path)
    calls, whole = faults.count, contents(folder)
    assert calls > 4
    for once in (True, False):  # one call fails, or it and all later ones
        for first in range(calls):
            shutil.rmtree(folder)
            path.parent.mkdir(parents=True)
            older = {} if first % 2 or name.endswith(".lock") else {name: b"older"}
            if older:
                path.write_bytes(b"older")
            faults.set(code, first, first + 1 if once else calls * 9)
            try:
                WRITTEN[name](path)
                refused = False
            except UserError as error:
                refused = True
                assert "\n" not in str(error) and os.strerror(code) in str(error)
            failed = {*faults.failed}
            faults.set()
            left = contents(folder)
            assert failed and (refused or left == whole or "unlink" in failed)
            assert not older or left[name] in (b"older", whole[name])
            # otherwise a temporary file may remain, or a lock, which the next run takes over
            if "unlink" not in failed and (once or not name.endswith(".lock")):
                assert all(content in (whole.get(file), older.get(file)) for file, content in left.items())


@pytest.fixture
def no_longer():
    def end(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [load_record_or_none, checkpoint.load, checkpoint.load_arrays, sha256])
@pytest.mark.parametrize("kind", ["fifo", "folder", "link to itself"])
def test_a_non_file_is_reported_and_blocks_nobody(tmp_path, no_longer, read, kind):
    path = tmp_path / "cnn-0.json"
    obstruct(path, kind)
    refused(lambda: read(path), match=r"json can't be read \((Not a file|Is a directory|Too many levels)")
