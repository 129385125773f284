import os
import re
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import VGG11S_ALONE, finish, latest_log, path_of, snakemake_command, start, write_scale
from filelock import SoftFileLease

from relusym.jobs.gpu_slots import gpu_slots


def run(folder, *arguments, **variables):
    return finish(start([*snakemake_command(), *arguments], folder, **variables))


@pytest.fixture(scope="module")
def two_nets(clone):
    made = clone()
    write_scale(made.folder, "tiny", VGG11S_ALONE | {"seeds": 0, "pairs": [["cnn", "gcnn"]]})
    made.configure(scale="tiny")
    return made.folder


def planned(folder, *profiles, config=()):
    """The output of a dry run of the paper's grid."""
    typed = [argument for profile in profiles for argument in ("--profile", profile)]
    dry = run(folder, *typed, "--config", "scale=paper", *config, "--dry-run", "--verbose")
    assert dry.returncode == 0, dry.stdout
    return dry.stdout


def submissions(folder, *profiles):
    """The number of submissions of each rule or group for the paper's grid."""
    output = planned(folder, *profiles)
    groups = re.findall(r"^\[.*\] Group job (\w+)", output, re.MULTILINE)
    single = re.findall(r"^rule (\w+):", output, re.MULTILINE)
    return Counter(groups or [rule for rule in single if rule in ("train", "flip_merge", "pair_merge")])


def test_the_papers_grid_is_one_job_each_by_default_and_45_submissions_packed(clone):
    folder = clone().folder
    assert (folder / "slurm").is_symlink()  # so that `--profile slurm` works
    assert submissions(folder, "slurm") == {"train": 168, "flip_merge": 168, "pair_merge": 144}
    packed = submissions(folder, "slurm", "profiles/packed")
    assert packed == {"train": 21, "flip_merge": 12, "pair_merge": 12} and packed.total() <= 50


def test_a_training_on_several_gpus_is_not_packed_with_others(clone, imagenet):
    output = planned(clone().folder, "slurm", "profiles/packed", config=["seeds=0", imagenet])
    alone = re.findall(r"^rule train:\n((?:    .*\n)+)", output, re.MULTILINE)
    assert len(alone) == 5 and all(re.search(r"resources: .*\bgpu=8\b", about) for about in alone)
    # VGG11s, and nets with published weights
    assert len(re.findall(r"^    rule train:", output, re.MULTILINE)) == 7 + 5


QSUB = """#!/bin/bash
echo "$@" >> "$PBS/calls"
number=$(wc -l < "$PBS/calls").server
( bash "${@: -1}" > "$PBS/$number.log" 2>&1; echo $? > "$PBS/$number.code" ) > /dev/null 2>&1 &
echo $number
"""
QSTAT = """#!/bin/bash
[ "$1 $2" = "-x -f" ] || exit 2
if [ -e "$PBS/$3.code" ]; then
    printf 'Job Id: %s\\n    job_state = F\\n    Exit_status = %s\\n' "$3" "$(cat "$PBS/$3.code")"
else
    printf 'Job Id: %s\\n    job_state = R\\n' "$3"
fi
"""


@pytest.fixture
def pbs(tmp_path):
    """A function that runs Snakemake with the PBS profile, and the file of its submissions, one per line."""
    for name, text in (("qsub", QSUB), ("qstat", QSTAT), ("qdel", "#!/bin/bash\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    site = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PBS": str(tmp_path)}
    typed = ("--profile", "profiles/pbs", "--seconds-between-status-checks", "1")
    return lambda folder, *given: run(folder, *typed, *given, **site), tmp_path / "calls"


def test_the_pbs_profile_submits_checks_states_and_retries_failed_jobs(two_nets, pbs):
    submit, calls = pbs
    record = path_of(two_nets, "records", "train", "gcnn-0")
    state = broken_state(two_nets, "gcnn")
    done = submit(two_nets, "--retries", "1", record)
    assert done.returncode == 1
    assert f"\nfailed: train gcnn-0: {state.relative_to(two_nets)} is truncated" in done.stdout
    assert [re.findall(r"-l (\S+)", call) for call in calls.read_text().splitlines()] == [
        ["select=1:ncpus=1:ngpus=1:mem=4000mb", "walltime=7200"],
        ["select=1:ncpus=1:ngpus=1:mem=8000mb", "walltime=14400"],
    ]
    state.unlink()
    done = submit(two_nets, record)
    assert done.returncode == 0, done.stdout
    assert (two_nets / record).exists() and len(calls.read_text().splitlines()) == 3


def test_the_checklist_names_the_profile_that_was_read(two_nets, tmp_path):
    answers = {"sinfo": "echo 'cpu*|infinite'", "sbatch": "exit 1", "srun": "", "squeue": "", "sacct": ""}
    for name, text in answers.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    shutil.copytree(two_nets / "profiles/slurm", two_nets / "mine", dirs_exist_ok=True)
    typed = "--profile", "mine", path_of(two_nets, "records", "train", "cnn-0"), "--forceall"
    done = run(two_nets, *typed, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1 and "\n  mine/config.yaml: Slurm refuses train: " in done.stdout, done.stdout


def test_packed_nets_ask_for_one_gpu_and_for_the_time_of_all(two_nets, pbs):
    submit, calls = pbs
    shutil.rmtree(two_nets / "results", ignore_errors=True)
    records = [path_of(two_nets, "records", "train", f"{model}-0") for model in ("cnn", "gcnn")]
    done = submit(two_nets, "--profile", "profiles/packed", *records)
    assert done.returncode == 0, done.stdout
    (call,) = calls.read_text().splitlines()
    assert re.findall(r"-l (\S+)", call) == ["select=1:ncpus=1:ngpus=1:mem=4000mb", "walltime=14400"]
    assert all((two_nets / record).exists() for record in records)


def test_nothing_is_submitted_if_the_data_cannot_be_prepared_here(clone, pbs):
    submit, calls = pbs
    config = ("--config", "scale=paper", "cifar10={source: folder, root: nowhere}")
    folder = clone().folder
    record = path_of(folder, "records", "train", "cnn-0", scale="paper")
    done = submit(folder, record, "--retries", "0", *config)
    assert done.returncode == 1 and not calls.exists()
    line = "data folder nowhere is missing: set cifar10.root to the folder that holds train/ and test/"
    assert f"\nerror in rule prepare_data: {line}\n" in done.stdout


def broken_state(folder, model):
    """A training state that can't be read, which fails the net's training."""
    state = folder / "-0".join(path_of(folder, "states", "train", f"{model}-0").split("/0"))
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_bytes(b"torn")
    return state


def test_jobs_share_the_gpus_a_failed_net_is_named_and_the_same_command_resumes(two_nets, monkeypatch):
    shutil.rmtree(two_nets / "results", ignore_errors=True)
    state = broken_state(two_nets, "cnn")
    typed = ("table2", "table4", "--profile", "profiles/gpu", "--config", "jobs_per_gpu=1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    # another process holds GPU 7 until a job has taken GPU 8, which the failing net may free at once
    with ThreadPoolExecutor() as pool, gpu_slots(1, 1):
        first = start([*snakemake_command(), *typed], two_nets, CUDA_VISIBLE_DEVICES="7,8")
        lock = two_nets / ".snakemake" / "relusym-tiny.lock"
        while not (holder := SoftFileLease(lock).owner) and first.poll() is None:
            time.sleep(0.05)
        refused = pool.submit(run, two_nets, *typed)
        heard = [first.stdout.readline()]
        while heard[-1] not in ("rule train: on GPU 8\n", ""):
            heard.append(first.stdout.readline())
    second = refused.result()
    assert second.returncode == 1
    held = rf"process {holder.pid} on .* \({lock.relative_to(two_nets)}\)"
    assert re.search(rf"^error: .* is being done by {held}: wait for it", second.stdout, re.MULTILINE)
    output = "".join(heard) + finish(first).stdout
    assert first.returncode == 1
    assert {"rule train: on GPU 7", "rule train: on GPU 8"} <= set(output.splitlines())
    log = path_of(two_nets, "logs", "train", "cnn-0")
    unreadable = f"{state.relative_to(two_nets)} is truncated"
    assert re.search(rf"^failed: train cnn-0: {unreadable}.* \({log}\)$", output, re.MULTILINE)
    assert (two_nets / path_of(two_nets, "records", "flip_merge", "gcnn-0")).exists()  # the other net ran
    status = run(two_nets, "status", "--cores", "1")
    assert status.returncode == 0, status.stdout
    lines = [line.split() for line in status.stdout.splitlines() if "_merge " in line or "train " in line]
    rows = {line[0]: line[1:6] for line in lines}
    assert rows["train"] == ["2", "1", "0", "1", "0"]  # jobs, done, running, failed, to do
    assert rows["flip_merge"] == ["2", "1", "0", "0", "1"]
    assert rows["pair_merge"] == ["1", "0", "0", "0", "1"]
    assert f"\nfailed: {log}: {unreadable}" in status.stdout
    state.unlink()
    again = run(two_nets, *typed, CUDA_VISIBLE_DEVICES="7,8")
    assert again.returncode == 0, again.stdout
    jobs = Counter(re.findall(r"^(?:local)?rule (\w+):$", latest_log(two_nets), re.MULTILINE))
    assert jobs == {"train": 1, "flip_merge": 1, "pair_merge": 1, "table2": 1, "table4": 1}
