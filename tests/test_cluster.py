import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, VGG11S_ALONE, Clone, write_scale
from slurm_cluster import SlurmCluster, missing, wait_until

from relusym.jobs.checklist import Submission, slurm_problems

pytestmark = pytest.mark.slow(seconds=60)
STEPS = 3 * 40  # a training has three epochs of 40 steps, and checks for an interruption after each step
EPOCH = 40

CANCELLED, WARNED = "cancelled by hand (scancel)", "warned before its time limit (SIGUSR1)"
REQUEUED, CRASHED = "requeued, as after a preemption", "its node crashed"
MEMORY, TIME = "over its memory once", "over its runtime once"
RESTARTED = ("controller restarted", "snakemake killed -9 and restarted")
HOLD = {"what": "hold", "at": 60}  # in the middle of the second epoch
AGAIN = {"what": "hold", "at": 20}  # the same number of steps into the run after
FAULTS = {  # of the disturbed run: each training's faults, and the step from which it resumes for the last time
    "cnn-0": ({CANCELLED: HOLD, WARNED: AGAIN}, 60 + 20),
    "gcnn-0": ({REQUEUED: HOLD}, 60),
    "cnn-1": ({CRASHED: HOLD}, EPOCH),
    "gcnn-1": ({MEMORY: {**HOLD, "what": "memory"}, TIME: AGAIN}, EPOCH + 20),
}
TARGETS = ("table1", "table2", "table4", "figure4")
TRIED: dict[str, int] = Counter()


class Run:
    """A copy of the workflow, with Snakemake runs."""

    def __init__(self, clone: Clone, environment: dict[str, str], faults: dict[str, list[dict]]):
        self.folder, self.environment = clone.folder, environment
        write_scale(self.folder, "tiny", VGG11S_ALONE | {"pairs": [["cnn", "gcnn"]]})
        clone.configure(scale="tiny")
        scripts = self.folder / "workflow_scripts"
        shutil.copy(ROOT / "tests" / "job_faults.py", scripts)
        for script in scripts.glob("*.py"):
            text = script.read_text(encoding="utf-8")
            with_faults = text.replace("from job import job\n", "from job import job\nimport job_faults\n")
            script.write_text(with_faults)
        (self.folder / "faults.json").write_text(json.dumps(faults))
        self.output = self.folder / "output.txt"
        self.pieces: dict[str, dict[str, str]] = {}
        self.submitted: list[str] = []

    def edit_profile(self, **changes: str) -> None:
        """Set keys of profiles/slurm/config.yaml, including those that are commented out, as a site's user does."""
        path = self.folder / "profiles" / "slurm" / "config.yaml"
        lines = path.read_text(encoding="utf-8").splitlines()
        for key, value in changes.items():
            key = key.replace("_", "-") if key.startswith("slurm_") and "partition" not in key else key
            (place,) = [i for i, line in enumerate(lines) if line.strip().lstrip("# ").startswith(f"{key}:")]
            indent = " " * (len(lines[place]) - len(lines[place].lstrip()))
            lines[place] = f"{indent}{key}: {value}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen:
        with self.output.open("a") as output:
            return subprocess.Popen(
                [Path(sys.executable).with_name("snakemake"), *TARGETS, *arguments], cwd=self.folder,
                env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def finish(self, process: subprocess.Popen, seconds: float = 900) -> None:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            code = "none in time"
        assert code == 0, f"exit {code}; {self.text()}"

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")[-20_000:]

    def events(self, event: str | None = None, job: str | None = None) -> list[dict]:
        file = self.folder / "faults" / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines]
        return [e for e in records if event in (None, e["event"]) and job in (None, e["job"])]

    def go(self, net: str) -> None:
        (self.folder / "faults" / f"{net}.go").touch()

    def checkpoints(self) -> dict[str, bytes]:
        paths = self.folder.glob("results/tiny/checkpoints/*/*.safetensors")
        return {f"{path.parent.name.rpartition('-')[0]}-{path.stem}": path.read_bytes() for path in paths}

    def tables(self) -> dict[str, str]:
        results = self.folder / "results" / "tiny"
        paths = [*results.glob("tables/table*.csv"), *results.glob("figures/figure4.csv")]
        return {path.name: path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def cluster():
    if lacking := missing():
        reason = f"NO SLURM TESTED: this machine lacks {', '.join(lacking)} (apt-get install slurm-wlm munge)"
        print(f"\n{reason}", file=sys.__stderr__)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path, as sockets need
    made = SlurmCluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def runs(cluster, tmp_path_factory):
    """All runs: local and undisturbed first, side by side; then the disturbed ones, side by side."""

    def make(name: str, faults: dict[str, list[dict]]) -> Run:
        run = Run(Clone(tmp_path_factory.mktemp(name)), cluster.environment, faults)
        run.edit_profile(slurm_status_command="squeue", slurm_init_seconds_before_status_checks="3")
        return run

    local, whole = make("local", {}), make("whole", {})
    process = whole.start(*SLURM)
    for seeds in ("0", "0-1"):
        local.finish(local.start("--cores", "2", "--config", f"seeds={seeds}"))
        local.pieces[seeds] = local.tables()
    whole.finish(process)
    calls = cluster.sbatch_calls.read_text().splitlines()
    whole.submitted = [call for call in calls if "--test-only" not in call]
    disturbed = make("disturbed", {net: list(met.values()) for net, (met, _) in FAULTS.items()})
    restarted = make("restarted", {"cnn-0": [HOLD], "gcnn-0": [HOLD]})
    disturb(cluster, disturbed, restarted)
    return SimpleNamespace(local=local, whole=whole, disturbed=disturbed, restarted=restarted)


SLURM = ("--profile", "slurm")
# leaves the GPUs to the other
ONE_SEED = (*SLURM, "--slurm-keep-successful-logs", "--config", "seeds=0", "device=cpu")
DISTURBED = (
    *SLURM,
    "--set-resources",
    # on shares of a GPU; one training runs on node2, which crashes, after which only node1 is left
    *(f"{rule}:gpu=0" for rule in ("train", "flip_merge", "pair_merge")),
    *(f"{rule}:gres='shard:1'" for rule in ("train", "flip_merge", "pair_merge")),
    "train:mem_mb=1500 * attempt",
    "train:slurm_extra='--nodelist=node2' if wildcards.training_id + wildcards.seed == 'cnn1' else '--nodelist=node1'",
)


def disturb(cluster: SlurmCluster, disturbed: Run, restarted: Run) -> None:
    """Every fault once: faults of single jobs in one run, those of the controller and of Snakemake in the other."""
    restarted.edit_profile(slurm_partition="node1")
    first = restarted.start(*ONE_SEED)
    process = disturbed.start(*DISTURBED)

    def at(net: str, fault: str) -> str:
        """Slurm's number of the training that has reached its fault."""
        faults, _ = FAULTS[net]
        what, before = faults[fault]["what"], list(faults).index(fault)
        before = [f["what"] for f in list(faults.values())[:before]].count(what)

        def events():
            return disturbed.events(what, "train " + net.replace("-", " "))[before:]

        events = wait_until(events, 600, f"{net} at the step where it is {fault}; {disturbed.text()}")
        TRIED[fault] += 1
        return events[0]["slurm_job"]

    cancelled, requeued, crashed = at("cnn-0", CANCELLED), at("gcnn-0", REQUEUED), at("cnn-1", CRASHED)
    wait_until(lambda: len(restarted.events("hold")) == 2, 600, "two trainings at their step")
    cluster.stop_controller()
    time.sleep(3)
    cluster.start_controller()
    wait_until(cluster.controller_answers, 600, "the controller is back")
    TRIED[RESTARTED[0]] += 1
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = restarted.start(*ONE_SEED)
    TRIED[RESTARTED[1]] += 1
    cluster.run("scancel", cancelled)
    cluster.run("scontrol", "requeue", requeued)
    cluster.crash_node("node2")
    at("gcnn-1", MEMORY)
    start_soon(cluster, requeued)
    # not on the node that was down: Slurm may still end the job's first run there, which crashes 22.05's controller
    start_soon(cluster, crashed, "ReqNodeList=node1")
    cluster.run("scancel", "--signal=USR1", at("cnn-0", WARNED))
    cluster.run("scontrol", "update", f"JobId={at('gcnn-1', TIME)}", "TimeLimit=1")
    # the copies that the restarted Snakemake submits wait for the first ones, which run on without their Snakemake
    logs = restarted.folder / ".snakemake" / "slurm_logs"
    wait_until(
        lambda: sum("is being done by" in log.read_text() for log in logs.rglob("rule_train/*/*.log")) == 2,
        600, "second copies wait", poll=0.5,
    )  # fmt: skip
    restarted.go("cnn-0")
    restarted.go("gcnn-0")
    restarted.finish(second)
    disturbed.finish(process)


def start_soon(cluster: SlurmCluster, job: str, *changes: str) -> None:
    """Skip the two minutes that Slurm makes a requeued job wait."""

    def pending():
        return "JobState=PENDING" in cluster.run("scontrol", "show", "job", job)

    wait_until(pending, 600, f"job {job} is in the queue", poll=0.5)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", *changes)


def options(call: str) -> dict[str, str]:
    """The options of an sbatch call, with `--mem 4000` and `--mem=4000` in the same form."""
    words = call.partition("--wrap")[0].split()
    collected = {}
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith("-"):
            key, _, value = word.partition("=")
            collected[key] = value or ("" if following.startswith("-") else following)
    return collected


@pytest.mark.parametrize("partition, minutes, options, problem", [
    ("gpu", 1440, "--mem 6000 --gpus=1", None), ("gpu", 120, "--gres=shard:1", None),
    ("", 1440, "--requeue --signal=USR1@120 --gpus=1", None),
    ("gqu", 120, "--gpus=1", "Invalid partition name specified"),
    ("gpu", 120, "--gpus=a100:1", "Requested node configuration is not available"),
    ("gpu", 120, "--nodes=1 --gpus=3", "Requested node configuration is not available"),
    ("gpu", 120, "--mem 64000", "Requested node configuration is not available"),
    ("gpu", 1441, "--gpus=1", "asks for up to 1441 minutes and partition gpu allows 1440"),
    ("", 1441, "--gpus=1", "asks for up to 1441 minutes and partition gpu allows 1440"),
])  # fmt: skip
def test_the_checklist_names_jobs_that_slurm_cannot_run(
    cluster, monkeypatch, partition, minutes, options, problem
):
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    options = f"{f'-p {partition}' if partition else ''} -t 120 {options}"
    submission = Submission("train", partition, minutes, options)
    problems = slurm_problems([submission], "squeue", "mine/config.yaml")
    assert len(problems) == (problem is not None) and all(problem in line for line in problems)


def test_the_cluster_and_the_local_run_give_the_same_weights_and_tables(runs):
    local, whole = runs.local, runs.whole
    assert len(whole.checkpoints()) == 4 and whole.checkpoints() == local.checkpoints()
    assert len(whole.tables()) == 4 and whole.tables() == local.tables()


def test_each_training_and_merge_is_one_submission_that_asks_for_one_gpu_and_no_table_is_submitted(runs):
    calls = [options(call) for call in runs.whole.submitted]
    rules = Counter(call["--comment"].split("_wildcards_")[0] for call in calls)
    assert rules == {"rule_train": 4, "rule_flip_merge": 4, "rule_pair_merge": 2}
    for call in calls:
        training = "train" in call["--comment"]
        assert (call["--gpus"], call["--cpus-per-task"], call["-p"]) == ("1", "1", "gpu")
        assert (call["--mem"], call["-t"]) == (("4000", "120") if training else ("6000", "30"))
        assert call["--signal"] == "USR1@120" and "--requeue" in call
    starts = runs.whole.events("start")
    local_jobs = {event["job"].split()[0] for event in starts if event["slurm_job"] is None}
    assert local_jobs == {"prepare_data", *TARGETS}


def test_jobs_see_the_one_gpu_that_slurm_gave_them_and_run_on_both_nodes(runs):
    whole = runs.whole
    places = defaultdict(list)
    for event in whole.events("start"):
        if event["slurm_job"]:
            (end,) = [e["time"] for e in whole.events("end", event["job"])]
            places[event["node"], event["gpu"]].append((event["time"], end))
    assert {gpu for _, gpu in places} <= {"0", "1"} and {node for node, _ in places} == {"node1", "node2"}
    for spans in places.values():  # no two jobs share a GPU at any time
        ordered = sorted(spans)
        assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


@pytest.mark.parametrize("net", FAULTS, ids=[", then ".join(faults) for faults, _ in FAULTS.values()])
def test_a_training_resumes_from_its_saved_state_after(runs, net):
    faults, saved = FAULTS[net]
    run, name = runs.disturbed, "train " + net.replace("-", " ")
    assert len(run.events("start", name)) == len(faults) + 1
    assert run.events("end", name)[-1]["steps"] == STEPS - saved
    assert run.checkpoints()[net] == runs.local.checkpoints()[net]


def test_after_all_faults_the_tables_are_complete_and_equal(runs):
    assert runs.disturbed.checkpoints() == runs.local.checkpoints()
    assert len(runs.disturbed.tables()) == 4 and runs.disturbed.tables() == runs.local.tables()


def test_a_snakemake_killed_and_started_again_waits_for_the_jobs_that_still_run(runs):
    local, run = runs.local, runs.restarted
    logs = (run.folder / ".snakemake" / "slurm_logs").rglob("rule_train/*/*.log")
    assert sum("was done by the other copy" in log.read_text() for log in logs) == 2
    assert len(run.tables()) == 4 and run.tables() == local.pieces["0"]
    assert run.checkpoints() == {net: local.checkpoints()[net] for net in ("cnn-0", "gcnn-0")}
    assert not list(run.folder.rglob("*.lock")) and not list(run.folder.rglob(".*.part*"))


def test_each_fault_was_met_once(runs, capsys):
    faults = [fault for met, _ in FAULTS.values() for fault in met]
    assert dict.fromkeys([*faults, *RESTARTED], 1) == TRIED
    with capsys.disabled():
        print("\nmet on a Slurm of two nodes, each followed by equal weights and tables:")
        for fault in TRIED:
            print(f"  {fault}")
