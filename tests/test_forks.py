"""Jobs as forks: a script runs in one as it does by itself, and whatever dies, no job is lost or done twice."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import snakemake.script
from slurm_cluster import wait_until

import forked_script
from forked_script import FEW, FINDINGS, NETS, ForkedScript, run_as_forks
from relusym.jobs.forks import THREADS, Forks, can_fork
from relusym.records.files import read_record

pytestmark = pytest.mark.skipif(
    not can_fork(), reason="this system can't fork a process with numerical libraries"
)


MINUTES = 300  # seconds, of a busy machine


@pytest.fixture
def written(tmp_path):
    """A function that writes a script and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "scripts" / f"{len(list(tmp_path.glob('scripts/*')))}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_script_finds_what_it_finds_by_itself(written, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AROUND", "before")
    script = written(
        "import os, sys, atexit, signal\n"
        "atexit.register(print, 'at the end')\n"
        "ignored = [s.name for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN]\n"
        "blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "print(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), sys.stdin.read(), ignored, blocked)\n"
        f"print(*(os.environ[name] for name in ('AROUND', 'TMPDIR', *{THREADS})))\n"
    )
    environment = {"TMPDIR": "/here"} | dict.fromkeys(THREADS, "3")
    by_itself = subprocess.run(
        [sys.executable, script],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Forks([]).start(script, 3, TMPDIR="/here").succeeded()
    assert capfd.readouterr().out == by_itself.stdout


@pytest.mark.parametrize(
    "text, succeeds, said",
    [
        ("print('done')", True, ""),
        ("raise SystemExit", True, ""),
        ("raise SystemExit(0)", True, ""),
        ("raise SystemExit(3)", False, ""),
        ("raise SystemExit('what is wrong')", False, "what is wrong\n"),
        ("1 / 0", False, "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", False, ""),
        ("import sys; sys.stdout.close(); sys.stdout = open('/dev/full', 'w'); print('lost')", False, ""),
    ],
)
def test_it_succeeds_just_where_its_exit_status_would_be_0(text, succeeds, said, written, capfd):
    script = written(text)
    assert Forks([]).start(script, 1).succeeded() == succeeds
    assert capfd.readouterr().err.endswith(said)
    assert (subprocess.run([sys.executable, script], check=False).returncode == 0) == succeeds


def test_modules_are_there_before_and_one_that_is_missing_is_left_to_the_script(written):
    forks = Forks(["wave", "no_such_module", "colorsys"])
    assert forks.start(
        written("import sys; assert {'wave', 'colorsys'} <= sys.modules.keys()"), 1
    ).succeeded()
    assert not forks.start(written("import no_such_module"), 1).succeeded()


def test_scripts_run_at_once_and_leave_each_other_alone(written, tmp_path):
    forks = Forks(["wave"])
    script = written(
        "import os, time, wave\nfrom pathlib import Path\n"
        "assert not hasattr(wave, 'changed')\nwave.changed = True\n"
        f"Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        f"while len(list(Path({str(tmp_path)!r}).glob('[0-9]*'))) < 5: time.sleep(0.01)\n"
    )
    running = [forks.start(script, 1) for _ in range(5)]
    assert all(fork.succeeded() for fork in running)
    assert {path.name for path in tmp_path.glob("[0-9]*")} == {str(fork.pid) for fork in running}


def test_after_the_process_that_forks_was_killed_forks_end_well_and_no_script_is_begun(written, tmp_path):
    forks = Forks([])
    go = tmp_path / "go"
    script = written(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n")
    running = forks.start(script, 1)
    forks._process.kill()
    forks._process.wait()
    for _ in range(2):
        with pytest.raises(ChildProcessError, match="the process that starts jobs has ended"):
            forks.start(script, 1)
    go.touch()
    assert running.succeeded()


def test_a_script_that_is_asked_for_while_the_process_dies_is_known_not_to_be_begun(written):
    forks = Forks(["torch"])  # still importing when it is killed
    forks._process.send_signal(signal.SIGSTOP)
    reported = []

    def ask():
        with pytest.raises(ChildProcessError):
            forks.start(written(""), 1)
        reported.append(True)

    asking = threading.Thread(target=ask)
    asking.start()
    forks._process.kill()
    asking.join(timeout=60)
    assert reported


def test_it_ends_with_the_process_that_made_it(written):
    script = written(
        "import time\nfrom relusym.jobs.forks import Forks\n"
        "forks = Forks([])\nprint(forks._process.pid, flush=True)\ntime.sleep(1000)\n"
    )
    made = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(made.stdout.readline())
    made.kill()
    made.wait()
    line = Path(f"/proc/{pid}/cmdline")  # empty, of one that has ended and isn't waited for
    wait_until(
        lambda: not line.exists() or not line.read_bytes(), MINUTES, "the process that forks ends", poll=0.05
    )


def test_importing_what_jobs_import_starts_no_thread_and_touches_no_gpu(written):
    """Of a process with threads or a GPU's context, a fork is not whole."""
    forks = Forks(NETS + FINDINGS)
    script = written(
        "import sys, torch\n"
        f"assert {{*{NETS + FINDINGS}}} <= sys.modules.keys()\n"
        "assert not torch.cuda.is_initialized() and torch.cuda._cached_device_count is None\n"
    )
    assert forks.start(script, 1).succeeded()
    assert len(list(Path(f"/proc/{forks._process.pid}/task").iterdir())) == 1


@pytest.mark.parametrize(
    "elsewhere", ["conda_env", "container_img", "env_modules", "shadow_dir", "no process"]
)
def test_what_a_fork_can_not_be_runs_as_snakemake_runs_it(elsewhere, monkeypatch):
    ran = []
    monkeypatch.setattr(
        snakemake.script.PythonScript, "execute_script", lambda self, fname, edit: ran.append(fname)
    )
    forks = Forks([])
    if elsewhere == "no process":
        forks._process.kill()
        forks._process.wait()
    monkeypatch.setattr(ForkedScript, "forks", forks, raising=False)
    script = ForkedScript.__new__(ForkedScript)
    for name in ("conda_env", "container_img", "env_modules", "shadow_dir"):
        setattr(script, name, "given" if name == elsewhere else None)
    script.threads, script.resources, script.bench_record = 1, SimpleNamespace(tmpdir="/tmp"), None
    script.execute_script("script.py")
    assert ran == ["script.py"]


def test_few_scripts_start_no_process_and_tables_alone_import_no_torch(monkeypatch):
    made = []
    monkeypatch.setattr(forked_script, "Forks", made.append)
    monkeypatch.setattr(ForkedScript, "forks", None, raising=False)
    monkeypatch.setattr(snakemake.script, "PythonScript", snakemake.script.PythonScript)
    run_as_forks(["../workflow_scripts/train.py"] * FEW)
    assert not made and snakemake.script.PythonScript is not ForkedScript
    run_as_forks(
        ["../workflow_scripts/table.py", "../workflow_scripts/figure.py", "../workflow_scripts/table.py"]
    )
    run_as_forks(
        ["../workflow_scripts/table.py", "../workflow_scripts/merge.py", "../workflow_scripts/table.py"]
    )
    assert made == [FINDINGS, NETS + FINDINGS] and snakemake.script.PythonScript is ForkedScript


ENDLESS = ("--config", "scales={tiny: {training: {epochs: 1000, save_every: 1000}}}")


def of(run: subprocess.Popen) -> list[int]:
    """The processes of a run: those of its process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(group) == run.pid and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.fixture
def started():
    """A function that starts Snakemake as a terminal does, in a group of processes, and waits for two trainings."""
    runs = []

    def start(made, *arguments: str) -> subprocess.Popen:
        run = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=made.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        runs.append(run)
        wait_until(lambda: len(in_training(made)) >= 2, MINUTES, "two nets are trained", poll=0.05)
        return run

    yield start
    for run in runs:
        for pid in of(run):
            os.kill(pid, signal.SIGKILL)
        run.communicate()


def that_forks(run: subprocess.Popen) -> psutil.Process:
    """The process that forks for a run."""
    (found,) = (
        child for child in psutil.Process(run.pid).children() if "relusym.jobs.forks" in child.cmdline()
    )
    return found


def in_training(made) -> list[str]:
    """The nets that have begun."""
    logs = (made.folder / "results/tiny/logs/train").glob("*/*.log")
    begun = [log for log in logs if "epoch" in log.read_text(encoding="utf-8")]
    return [f"{log.parent.name.rpartition('-')[0]}-{log.stem}" for log in begun]


@pytest.mark.slow(seconds=10)
def test_ctrl_c_ends_each_fork_in_a_line_with_its_state_saved_and_leaves_no_process(tiny, started):
    made = tiny()
    run = started(made, "table2", *ENDLESS)
    assert len(that_forks(run).children()) == 2
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 1 and "Traceback" not in said and "Exception" not in said, said
    for net in in_training(made):
        line = rf"^failed: train {net}: interrupted in .*the training state is saved"
        assert re.search(line, said, re.MULTILINE), said
    assert len(list((made.folder / "results/tiny/states").iterdir())) == 2
    wait_until(lambda: not of(run), MINUTES, "no process of the run is left", poll=0.05)


def merges_of(made) -> list[str]:
    """The records of two flip merges."""
    return [made.path("records", "flip_merge", f"cnn-{seed}") for seed in range(2)]


@pytest.mark.slow(seconds=12)
@pytest.mark.parametrize("have_ended", [True, False])
def test_after_a_kill_of_snakemake_what_its_forks_do_counts_in_the_next_run(have_ended, tiny, started):
    made = tiny()
    merges = merges_of(made)
    run = started(made, *merges)
    run.kill()
    if have_ended:
        wait_until(lambda: not of(run), MINUTES, "no process of the run is left", poll=0.05)
    again = made.snakemake(*merges)
    assert again.returncode == 0, again.stdout
    assert not of(run) and all((made.folder / merge).exists() for merge in merges)
    assert made.planned(*merges) == []


@pytest.mark.slow(seconds=15)
def test_a_kill_of_the_process_that_forks_costs_no_job(tiny, finished, started):
    made = tiny()
    merges = merges_of(made)
    run = started(made, *merges)
    that_forks(run).kill()
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 0, said
    for merge in merges:
        assert read_record(made.folder / merge)["barrier"] == read_record(finished.folder / merge)["barrier"]


def test_costs_are_of_the_forks(finished):
    for path in (finished.folder / "results/tiny/records/train").glob("*cnn*/[0-9].json"):
        cost = read_record(path)["cost"]
        assert cost["job_memory_mb"] > 100 and cost["seconds"] <= cost["job_seconds"] < 500, path
