import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import conftest
import psutil
import pytest
import snakemake.script
from slurm_cluster import wait_until

import forked_script
from forked_script import FEW, FINDINGS, NETS, ForkedScript, run_as_forks
from relusym.jobs.forks import THREADS, Forks, can_fork
from relusym.records.files import load_record

UNABLE = "a process with numerical libraries can't be forked here"
pytestmark = pytest.mark.skipif(not can_fork(), reason=UNABLE)
MINUTES = 1500  # seconds; long enough on a busy machine


def start(forks, script, **how):
    """Run a script in a fork with this process's environment."""
    return forks.start(script, environment=dict(os.environ), **how)


@pytest.fixture
def written(tmp_path):
    """A function that writes a script and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "scripts" / f"{len(list(tmp_path.glob('scripts/*')))}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_forked_script_sees_the_same_environment_as_by_itself(written, tmp_path, monkeypatch, capfd):
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
    how = {"env": os.environ | environment, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    by_itself = subprocess.run([sys.executable, script], **how, text=True, check=True)
    assert Forks([]).start(script, environment=os.environ | environment).status() == 0
    assert capfd.readouterr().out == by_itself.stdout


@pytest.mark.parametrize("text, status, ending", [
    ("print('done')", 0, ""), ("raise SystemExit", 0, ""), ("raise SystemExit(0)", 0, ""),
    ("raise SystemExit(3)", 3, ""), ("raise SystemExit('what is wrong')", 1, "what is wrong\n"),
    ("1 / 0", 1, "ZeroDivisionError: division by zero\n"), ("import os; os.kill(os.getpid(), 9)", -1, ""),
    ("import sys; sys.stdout.close(); sys.stdout = open('/dev/full', 'w'); print('lost')", -1, ""),
])  # fmt: skip
def test_a_forks_exit_status_is_that_of_the_script_by_itself(text, status, ending, written, capfd):
    script = written(text)
    assert start(Forks([]), script).status() == status and capfd.readouterr().err.endswith(ending)
    alone = subprocess.run([sys.executable, script], check=False).returncode
    assert (alone == 0) == (status == 0) and (alone == status or status == -1)


def test_modules_are_imported_in_advance_and_a_missing_one_fails_in_the_script(written):
    forks = Forks(["wave", "no_such_module", "colorsys"])
    script = written("import sys; assert {'wave', 'colorsys'} <= sys.modules.keys()")
    assert start(forks, script).status() == 0
    assert start(forks, written("import no_such_module")).status() == 1


def test_scripts_run_at_once_and_do_not_affect_each_other(written, tmp_path):
    forks = Forks(["wave"])
    script = written(
        "import os, time, wave\nfrom pathlib import Path\n"
        "assert not hasattr(wave, 'changed')\nwave.changed = True\n"
        f"Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        f"while len(list(Path({str(tmp_path)!r}).glob('[0-9]*'))) < 5: time.sleep(0.01)\n"
    )
    running = [start(forks, script) for _ in range(5)]
    assert not any(fork.status() for fork in running)
    assert {path.name for path in tmp_path.glob("[0-9]*")} == {str(fork.pid) for fork in running}


def test_after_the_process_that_forks_was_killed_running_forks_succeed_and_none_starts(written, tmp_path):
    forks = Forks([])
    go = tmp_path / "go"
    script = written(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n")
    running = start(forks, script)
    forks._process.kill()
    forks._process.wait()
    for _ in range(2):
        with pytest.raises(ChildProcessError, match="the process that starts jobs has ended"):
            start(forks, script)
    go.touch()
    assert running.status() == 0


def test_a_script_requested_while_the_process_dies_is_known_not_to_have_started(written):
    forks = Forks(["torch"])  # which are still being imported at the kill
    forks._process.send_signal(signal.SIGSTOP)
    reported = []

    def ask():
        with pytest.raises(ChildProcessError):
            start(forks, written(""))
        reported.append(True)

    asking = threading.Thread(target=ask)
    asking.start()
    forks._process.kill()
    asking.join(timeout=300)
    assert reported


def test_a_process_that_does_not_answer_in_time_is_killed_and_the_script_is_not_started(written, tmp_path):
    forks = Forks([])
    forks._process.send_signal(signal.SIGSTOP)
    script, refused = written(f"open({str(tmp_path / 'begun')!r}, 'w')"), []

    def ask():
        try:
            start(forks, script, within=0.1)
        except ChildProcessError:
            refused.append(forks._process.wait())

    asking = threading.Thread(target=ask, daemon=True)  # without a limit, it would wait for ever
    asking.start()
    asking.join(MINUTES)
    ended = list(refused)
    forks._process.kill()
    assert ended == [-signal.SIGKILL] and not (tmp_path / "begun").exists()


def test_exit_functions_registered_by_imports_are_not_called_by_forks(written, tmp_path, monkeypatch, capfd):
    (tmp_path / "leaves_work.py").write_text("import atexit; atexit.register(print, 'once', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forks = Forks(["leaves_work"])
    script = written("import atexit, leaves_work; atexit.register(print, 'each')")
    assert [start(forks, script).status() for _ in range(2)] == [0, 0]
    assert capfd.readouterr().out == "each\neach\n"


def test_forks_end_silently_where_matplotlib_cannot_write_its_settings(written, monkeypatch, capfd):
    monkeypatch.setenv("MPLCONFIGDIR", "/dev/null/settings")
    forks = Forks(["matplotlib"])
    capfd.readouterr()
    script = written("import matplotlib; matplotlib.get_configdir()")
    assert [start(forks, script).status() for _ in range(3)] == [0, 0, 0]
    assert "Traceback" not in capfd.readouterr().err


def test_the_process_that_forks_ends_with_its_parent(written):
    script = written(
        "import time\nfrom relusym.jobs.forks import Forks\n"
        "forks = Forks([])\nprint(forks._process.pid, flush=True)\ntime.sleep(1000)\n"
    )
    made = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(made.stdout.readline())
    made.kill()
    made.wait()
    line = Path(f"/proc/{pid}/cmdline")  # empty for a zombie
    ended = "the process that forks ends"
    wait_until(lambda: not line.exists() or not line.read_bytes(), MINUTES, ended, poll=0.05)


def test_importing_what_jobs_import_starts_no_thread_and_touches_no_gpu(written):
    forks = Forks(NETS + FINDINGS)
    script = written(
        "import sys, torch\n"
        f"assert {{*{NETS + FINDINGS}}} <= sys.modules.keys()\n"
        "assert not torch.cuda.is_initialized() and torch.cuda._cached_device_count is None\n"
    )
    assert start(forks, script).status() == 0
    assert len(list(Path(f"/proc/{forks._process.pid}/task").iterdir())) == 1


ELSEWHERE = "conda_env", "container_img", "env_modules", "shadow_dir"


@pytest.mark.parametrize("elsewhere", [*ELSEWHERE, "no process"])
def test_a_job_that_cannot_be_a_fork_runs_as_snakemake_runs_it(elsewhere, monkeypatch):
    ran = []
    plain = snakemake.script.PythonScript
    monkeypatch.setattr(plain, "execute_script", lambda self, fname, edit: ran.append(fname))
    forks = Forks([])
    if elsewhere == "no process":
        forks._process.kill()
        forks._process.wait()
    monkeypatch.setattr(ForkedScript, "forks", forks, raising=False)
    script = ForkedScript.__new__(ForkedScript)
    for name in ELSEWHERE:
        setattr(script, name, "given" if name == elsewhere else None)
    script.threads, script.resources, script.bench_record = 1, SimpleNamespace(tmpdir="/tmp"), None
    script.execute_script("script.py")
    assert ran == ["script.py"]


def test_few_scripts_start_no_process_and_runs_of_only_tables_import_no_torch(monkeypatch):
    made = []
    monkeypatch.setattr(forked_script, "Forks", made.append)
    monkeypatch.setattr(ForkedScript, "forks", None, raising=False)
    monkeypatch.setattr(snakemake.script, "PythonScript", snakemake.script.PythonScript)
    run_as_forks(["../workflow_scripts/train.py"] * FEW)
    assert not made and snakemake.script.PythonScript is not ForkedScript
    run_as_forks(["../workflow_scripts/finding.py"] * 3)
    run_as_forks([f"../workflow_scripts/{script}.py" for script in ("finding", "merge", "finding")])
    assert not any(module.startswith("torch") for module in FINDINGS)
    assert made == [FINDINGS, NETS + FINDINGS] and snakemake.script.PythonScript is ForkedScript


ENDLESS = ("--config", "training={epochs: 1000, save_every: 1000}")


def of(run: subprocess.Popen) -> list[int]:
    """The processes of a run's process group."""
    collected = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # the process has just ended
            continue
        if int(group) == run.pid and state != "Z":
            collected.append(int(folder.name))
    return collected


@pytest.fixture
def started():
    """A function that starts Snakemake as a terminal does, in its own process group, and waits for some trainings."""
    runs = []

    def start(made, *arguments: str, count: int = 2) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        runs.append(conftest.start(command, made.folder, group=True))
        wait_until(lambda: len(in_training(made)) >= count, MINUTES, f"{count} nets are trained", poll=0.05)
        return runs[-1]

    yield start
    for run in runs:
        for pid in of(run):
            os.kill(pid, signal.SIGKILL)
        run.communicate()


def that_forks(run: subprocess.Popen) -> psutil.Process:
    children = psutil.Process(run.pid).children()
    (forking,) = (child for child in children if "relusym.jobs.forks" in child.cmdline())
    return forking


def in_training(made) -> list[str]:
    """The nets whose training has started."""
    logs = (made.folder / "results/tiny/logs/train").glob("*/*.log")
    begun = [log for log in logs if "epoch" in log.read_text(encoding="utf-8")]
    return [f"{log.parent.name.rpartition('-')[0]}-{log.stem}" for log in begun]


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("ending", ["Ctrl-C", "closed terminal"])
def test_each_fork_ends_with_one_line_and_its_state_saved_and_no_process_is_left(tiny, started, ending):
    made, (number, forks) = tiny(), {"Ctrl-C": (signal.SIGINT, 0)}.get(ending, (signal.SIGHUP, 2))
    alone = made.path("records", "train", "cnn-0", training={"epochs": 1000, "save_every": 1000})
    target, count = ("table2", 2) if forks else (alone, 1)  # a few jobs aren't run as forks
    run = started(made, target, *ENDLESS, count=count)
    assert not forks or len(that_forks(run).children()) == forks
    os.killpg(run.pid, number)
    output = run.communicate(timeout=MINUTES)[0]
    assert run.returncode == 1 and "Traceback" not in output and "Exception" not in output, output
    for net in in_training(made):
        line = rf"^failed: train {net}: interrupted in .*the training state is saved"
        assert re.search(line, output, re.MULTILINE), output
    assert len(list((made.folder / "results/tiny/states").iterdir())) == count
    wait_until(lambda: not of(run), MINUTES, "no process of the run is left", poll=0.05)
    assert made.planned(alone, *ENDLESS) == ["train cnn 0"]  # no lock is left


def merges_of(made, **changes) -> list[str]:
    return [made.path("records", "flip_merge", f"cnn-{seed}", **changes) for seed in range(2)]


@pytest.mark.slow(seconds=10)
def test_a_killed_job_is_reported_as_killed_in_one_line(tiny, started):
    made = tiny()
    run = started(made, *merges_of(made, training={"epochs": 1000, "save_every": 1000}), *ENDLESS)
    for fork in that_forks(run).children():
        fork.kill()
    output = run.communicate(timeout=MINUTES)[0]
    assert run.returncode == 1
    for net in ("cnn-0", "cnn-1"):
        line = rf"^failed: train {net}: it was killed, it seems \(kill -9, .*\), after: {net}: epoch "
        assert re.search(line, output, re.MULTILINE), output


@pytest.mark.slow(seconds=12)
@pytest.mark.parametrize("have_ended", [True, False])
def test_after_snakemake_is_killed_the_next_run_counts_the_work_of_its_forks(have_ended, tiny, started):
    made = tiny()
    merges = merges_of(made)
    run = started(made, *merges)
    run.kill()
    run.wait(MINUTES)  # until then it still owns its lock
    if have_ended:
        wait_until(lambda: not of(run), MINUTES, "no process of the run is left", poll=0.05)
    made.makes(*merges)
    assert not of(run) and all((made.folder / merge).exists() for merge in merges)
    assert made.planned(*merges) == []


@pytest.mark.slow(seconds=15)
def test_no_job_is_lost_if_the_process_that_forks_is_killed(tiny, finished, started):
    made = tiny()
    merges = merges_of(made)
    run = started(made, *merges)
    that_forks(run).kill()
    output = run.communicate(timeout=MINUTES)[0]
    assert run.returncode == 0, output
    for merge in merges:
        assert load_record(made.folder / merge)["barrier"] == load_record(finished.folder / merge)["barrier"]
