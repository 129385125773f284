"""Training of one net by several processes."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import refused
from slurm_cluster import wait_until
from small_training import assert_same, saved
from training_worker import run

from relusym import checkpoint
from relusym.errors import Interrupted
from relusym.training.distributed import _why, launch

pytestmark = pytest.mark.slow(seconds=10)


@pytest.fixture(autouse=True)
def worker_is_found(monkeypatch, pytestconfig):
    paths = [Path(__file__).parent, pytestconfig.rootpath / "workflow_scripts"]
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, paths)))


@pytest.fixture
def job(tmp_path):
    state = str(tmp_path / "state.safetensors")
    return {"folder": str(tmp_path), "to": str(tmp_path / "net.safetensors"), "state": state}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The batches that one process gets, which two processes would share equally."""
    folder = tmp_path_factory.mktemp("alone")
    run({"folder": str(folder), "to": str(folder / "net.safetensors"), "state": None})
    return saved(folder / "net.safetensors")


def test_a_killed_process_ends_the_job_with_one_line_and_the_next_run_resumes(job, alone):
    (Path(job["folder"]) / "kill").touch()
    line = r"one of the 2 training processes was killed \(signal 9\).*goes on"
    refused(lambda: launch("training_worker", job, 2), match=line)
    assert len(checkpoint.load(job["state"])[1]["history"]) == 2
    run(job)  # with one process
    assert_same(alone, saved(job["to"]), 1e-5)


def test_all_processes_start_again_together_after_a_kill_and_equal_one_on_the_same_global_batch(job, alone):
    (Path(job["folder"]) / "kill").touch()
    assert launch("training_worker", job, 2, 1) == {"epochs": 3}
    assert not (Path(job["folder"]) / "kill").exists()
    assert_same(alone, saved(job["to"]), 1e-5)


def test_a_process_that_fails_after_training_causes_no_second_training(job):
    folder = Path(job["folder"])
    job["fails at the end"] = True
    (folder / "wait").touch()
    with pytest.raises(Interrupted, match=r"^interrupted in epoch 1\.33 of 3"):
        launch("training_worker", job, 2, 3, interrupted=(folder / "is waiting").exists)
    assert checkpoint.load(job["state"])[1]["step"] == 2
    assert sorted((folder / "runs").read_text().split()) == ["0", "1"]


def test_a_users_error_in_a_process_is_the_users_error_of_the_job(job):
    (Path(job["folder"]) / "user error").touch()
    refused(lambda: launch("training_worker", job, 1), match=r"^image a\.jpg can't be read: replace it$")


def test_the_named_failed_process_is_a_killed_one_or_else_the_first():
    def reason(*failed):
        about = {"error_file_data": {"message": "RuntimeError: x"}}
        failures = [SimpleNamespace(exitcode=code, timestamp=time, **about) for code, time in failed]
        failures = dict(enumerate(failures))
        return _why(SimpleNamespace(failures=failures), len(failed))

    assert reason((3, 1), (1, 2)).startswith("one of the 2 training processes failed (3), ")
    assert reason((1, 2), (3, 1)).startswith("one of the 2 training processes failed (3), ")
    assert reason((1, 1), (-9, 2)).startswith("one of the 2 training processes was killed (signal 9), ")


LAUNCHER = """
import json, sys
from relusym.errors import Interruption
from relusym.training.distributed import launch
with Interruption() as interrupted:
    launch("training_worker", json.loads(sys.argv[1]), 2, 3, interrupted=interrupted)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_when_the_launcher_is_warned_or_dies_all_stop_at_one_step_and_the_next_run_resumes(
    job, alone, child, number
):
    folder, state = Path(job["folder"]), Path(job["state"])
    (folder / "wait").touch()  # wait for it in the second epoch
    launcher, waiting = child(LAUNCHER, json.dumps(job)), folder / "is waiting"
    wait_until(lambda: waiting.exists() or launcher.poll() is not None, 1500, "all wait", poll=0.01)
    launcher.send_signal(number)
    assert launcher.wait(timeout=1500) != 0
    if number == signal.SIGTERM:
        line = launcher.stderr.read().splitlines()[-1]
        assert line.startswith("relusym.errors.Interrupted: interrupted in epoch 1.33 of 3")
    (folder / "wait").unlink()
    wait_until(lambda: checkpoint.load(state)[1]["step"], 1500, "the state is saved", poll=0.01)
    about = checkpoint.load(state)[1]
    assert (len(about["history"]), about["step"]) == (1, 2)
    run(job)
    assert_same(alone, saved(job["to"]), 1e-5)
