"""The status screen, the summary after a run, the checklist before it, and the estimate of a grid."""

import json
from pathlib import Path

import pytest
import yaml

from relusym.experiments.settings import Settings
from relusym.jobs import checklist as cluster_checklist
from relusym.jobs.checklist import Request, data_problems, folder_problems, minutes_of, slurm_problems
from relusym.jobs.grid_estimate import estimate, resnet_operations, vgg_operations
from relusym.jobs.job_lock import JobLock
from relusym.jobs.run_summary import Failure, reason, summary
from relusym.jobs.status import kind_status, screen, type_of

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "config.yaml").read_text(encoding="utf-8"))
SETTINGS = {"epochs": 3}
HEADS = "kind jobs done running failed to do left out GPU-h spent GPU-h to go"
RECORD = {
    "kind": "train",
    "model": "cnn",
    "seed": 0,
    "settings": SETTINGS,
    "accuracy": 0.5,
    "invariance_error": 0.1,
    "outputs": {},
    "code": {"device": "cuda Tesla T4"},
    "cost": {},
}


@pytest.fixture
def results(tmp_path):
    """Six trainings: one done, one diverged, one running, one failed, one of other settings, one not begun."""
    records, logs, benchmarks = (tmp_path / name for name in ("records", "logs", "benchmarks"))
    for folder in (records, logs, benchmarks):
        (folder / "train").mkdir(parents=True)
    for name, changes in (("cnn-0", {}), ("cnn-1", {"status": "diverged"}), ("cnn-4", {"settings": {}})):
        (records / "train" / f"{name}.json").write_text(json.dumps({"status": "ok", **RECORD, **changes}))
        (benchmarks / "train" / f"{name}.tsv").write_text("s\tmax_rss\tcpu_time\n1800\t900\t1700\n")
    (benchmarks / "train" / "gcnn-0.tsv").write_text("s\tmax_rss\tcpu_time\n3600\t900\t3500\n")
    (logs / "train" / "cnn-3.log").write_text("error: no space left\n")
    with JobLock(logs / "train" / "cnn-2.lock"):
        yield records, logs, benchmarks


def test_the_screen_counts_jobs_by_state_what_was_left_out_and_hours(results):
    records, logs, benchmarks = results
    names = [f"cnn-{seed}" for seed in range(5)] + ["gcnn-1"]
    wanted = {str(records / "train" / f"{name}.json"): SETTINGS for name in names}
    status = kind_status("train", wanted, logs, benchmarks, records)
    assert status.counts == {"done": 2, "running": 1, "failed": 1, "to do": 2}
    assert status.outcomes == {"ok": 1, "diverged": 1}
    assert status.hours_spent == pytest.approx(0.5 * 3 + 1)
    assert status.hours_to_go == pytest.approx(0.5 * 3 + 1)  # three cnn, one gcnn, each at its own mean
    merges = kind_status(
        "flip_merge", {str(records / "flip_merge" / "cnn-0.json"): None}, logs, benchmarks, records
    )
    assert merges.hours_to_go is None
    lines = screen("Scale paper", [status, merges]).splitlines()
    assert lines[1].split() == HEADS.split()
    assert lines[2].split() == ["train", "6", "2", "1", "1", "2", "1", "2.50", "2.50"]
    assert lines[4].split() == ["all", "7", "2", "1", "1", "3", "1", "2.50", "?"]
    assert lines[5] == "train: 1 diverged"
    assert len(lines) <= 24 and max(map(len, lines)) <= 100


def test_a_jobs_type_is_its_name_without_seeds():
    assert [type_of(name) for name in ("cnn-3", "pgcnn_late_inv-12", "cnn-0--gcnn-1")] == [
        "cnn",
        "pgcnn_late_inv",
        "cnn--gcnn",
    ]


def test_the_summary_names_each_failed_job_why_and_the_command(tmp_path):
    log = tmp_path / "cnn-3.log"
    log.write_text("cnn-3: epoch 1\nerror: results can't be written (No space left on device): free space\n")
    snakemake_log = (
        "Job 7 has been submitted with SLURM jobid 40 (log: a.log).\n"
        "    message: SLURM-job '40' failed, SLURM status is: 'FAILED'. Detailed failure reason unavailable\n"
        "Job 7 has been submitted with SLURM jobid 44 (log: b.log).\n"
        "    message: SLURM-job '44' failed, SLURM status is: 'TIMEOUT'. Detailed failure reason unavailable\n"
    )
    failures = [Failure("train cnn 3", log, "6"), Failure("train cnn 4", tmp_path / "cnn-4.log", "7")]
    text = summary(failures, 2, "snakemake --profile slurm", snakemake_log)
    assert text.splitlines() == [
        "2 jobs failed, 2 more left undone:",
        "  train cnn 3: results can't be written (No space left on device): free space",
        "  train cnn 4: out of time, in its last attempt as well; set a longer runtime (Slurm job 44); "
        f"see {tmp_path / 'cnn-4.log'}",
        "Run these, and nothing that is done, with:",
        "  snakemake --profile slurm",
    ]
    assert reason(Failure("train cnn 5", None, "8")) == "it ended without a word; see the log of Snakemake"


# ---- the checklist

SHOWN = "AccountingStorageType   = accounting_storage/{kept}\nMinJobAge               = {age} sec\n"


@pytest.fixture
def slurm(monkeypatch):
    """A function that pretends a Slurm: its accounting, for how long it knows jobs, its partitions."""

    def pretend(kept="slurmdbd", age=300, partitions="cpu*|1-00:00:00|(null)\ngpu|04:00:00|gpu:a100:4\n"):
        answers = {"scontrol": SHOWN.format(kept=kept, age=age), "sinfo": partitions}
        monkeypatch.setattr(cluster_checklist, "_asked", lambda *command: answers[command[0]])
        monkeypatch.setattr(cluster_checklist.shutil, "which", lambda name: f"/usr/bin/{name}")

    return pretend


def test_a_site_in_order_has_no_problems(slurm):
    slurm()
    assert slurm_problems([Request("train", "gpu", 120, True)], "sacct") == []
    slurm(kept="none")
    assert (
        slurm_problems([Request("train", "gpu", 120, True), Request("figure", None, 10, False)], "squeue")
        == []
    )


@pytest.mark.parametrize(
    ("site", "request_", "status", "told"),
    [
        (
            {},
            ("train", "gqu", 120, True),
            "sacct",
            "slurm_partition: gqu doesn't exist; set it to one of cpu, gpu",
        ),
        (
            {},
            ("train", None, 120, True),
            "sacct",
            "partition cpu has none; set slurm_partition to one that has (gpu)",
        ),
        (
            {},
            ("train", "gpu", 300, True),
            "sacct",
            "up to 300 minutes and partition gpu allows 240; set `set-resources: ",
        ),
        (
            {"partitions": "gpu|infinite|gpu:4\n"},
            ("train", None, 1, True),
            "sacct",
            "names no partition and Slurm has no default; set slurm_partition to one of gpu",
        ),
        ({"kept": "none"}, ("train", "gpu", 1, True), "sacct", "keeps no accounts; set it to squeue"),
        (
            {"age": 60},
            ("train", "gpu", 1, True),
            "squeue",
            "Slurm forgets jobs after 60 s; set slurm-status-command",
        ),
    ],
)
def test_each_problem_of_a_site_is_one_line_that_says_what_to_set(slurm, site, request_, status, told):
    slurm(**site)
    (problem,) = slurm_problems([Request(*request_)], status)
    assert told in problem and "\n" not in problem and problem.startswith("profiles/slurm/config.yaml: ")


def test_a_missing_or_silent_scheduler_is_told(monkeypatch, slurm):
    slurm()
    monkeypatch.setattr(cluster_checklist, "_asked", lambda *command: None)
    assert "controller doesn't answer" in slurm_problems([], "sacct")[0]
    monkeypatch.setattr(cluster_checklist.shutil, "which", lambda name: None)
    assert slurm_problems([], "sacct")[0].startswith(
        "sbatch, srun, squeue, sinfo: not found; run snakemake on a node"
    )


def test_data_that_can_not_be_prepared_here_is_told(tmp_path, monkeypatch):
    data, root = tmp_path / "data", tmp_path / "cifar10"
    torchvision = {"source": "torchvision", "root": str(root), "train": "train", "test": "test"}

    def unreachable(*_, **__):
        raise OSError

    monkeypatch.setattr(cluster_checklist.socket, "create_connection", unreachable)
    assert data_problems(data, "generated", torchvision) == []
    (told,) = data_problems(data, "cifar10", torchvision)
    assert "can't be reached from here; unpack cifar-10-python.tar.gz there" in told
    (root / "cifar-10-batches-py").mkdir(parents=True)
    assert data_problems(data, "cifar10", torchvision) == []
    told = data_problems(data, "cifar10", {**torchvision, "source": "folder"})
    assert [line.split(";")[0] for line in told] == [
        f"cifar10.root: the folder {root / split} is missing" for split in ("train", "test")
    ]
    data.touch()
    assert data_problems(data, "cifar10", {**torchvision, "source": "folder"}) == []


def test_a_results_folder_that_can_not_be_written_is_told(tmp_path):
    assert folder_problems(tmp_path / "results" / "paper") == []
    (tmp_path / "file").touch()
    (told,) = folder_problems(tmp_path / "file" / "paper")
    assert told.startswith(f"{tmp_path / 'file' / 'paper'} can't be written (") and "free space" in told


def test_slurms_time_limits_in_minutes():
    limits = ["infinite", "30:00", "04:00:00", "1-00:00:00", "7-12:30:00"]
    assert [minutes_of(limit) for limit in limits] == [None, 30, 240, 1440, 10830]


# ---- the estimate


def test_a_paper_training_costs_what_its_arithmetic_says_against_the_measured_one(tmp_path):
    for kind, seconds in (("train", 300), ("flip_merge", 60)):
        (tmp_path / kind).mkdir()
        for seed in (0, 1):
            (tmp_path / kind / f"cnn-{seed}.tsv").write_text(f"s\tcpu_time\n9999\t{seconds}\n")
    laptop, paper = (Settings.of({**CONFIG, "scale": scale}) for scale in ("laptop", "paper"))
    frame = estimate(laptop, paper, tmp_path, tflops=4).set_index("kind")
    assert list(frame.index) == ["train", "flip_merge"] and list(frame["jobs"]) == [168, 168]
    arithmetic = vgg_operations(1.0) / vgg_operations(0.25)
    assert arithmetic == pytest.approx(16, rel=0.05)
    late = [how["invariance_from"] for how in CONFIG["models"].values()]
    passes = 24 * sum(1 if start is None else 2 - start for start in late)  # over the images in an epoch
    core_hours = passes * 300 * 10 * arithmetic / 3600  # ten times the epochs, at the paper's width
    assert frame.loc["train", "core_hours"] == pytest.approx(core_hours, rel=1e-6)
    core = 3 * 10 * 50_000 * vgg_operations(0.25) / 300
    assert frame.loc["train", "gpu_hours"] == pytest.approx(core_hours * core / 4e12, rel=1e-6)
    images = (50_000 + 10_000) / (10_000 + 10_000)  # matched and tested on
    assert frame.loc["flip_merge", "core_hours"] == pytest.approx(
        168 * 60 * images * arithmetic / 3600, rel=1e-6
    )


def test_resnets_are_estimated_from_resnets(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "resnet_train").mkdir()
    (tmp_path / "train" / "cnn-0.tsv").write_text("s\tcpu_time\n9\t300\n")
    (tmp_path / "resnet_train" / "old-supervised.tsv").write_text("s\tcpu_time\n9\t60\n")
    laptop, paper = (Settings.of({**CONFIG, "scale": scale}) for scale in ("laptop", "paper"))
    frame = estimate(laptop, paper, tmp_path, tflops=4).set_index("kind")
    assert frame.loc["resnet_train", "jobs"] == 5
    even, odd = (resnet_operations("bottleneck", (3, 4, 6, 3), 1.0, size) for size in (224, 225))
    # 90 epochs with the invariance loss at 224, without and with it at 225; SimSiam's two views, and its linear layer
    passes = 3 * 90 * 2 * even + (3 * 90 * (1 + 2) + 3 * 100 * 2 + 90) * odd
    assert frame.loc["resnet_train", "gpu_hours"] == pytest.approx(1_281_167 * passes / 4e12 / 3600, rel=1e-6)


def test_a_resnet50_takes_four_billion_multiplications_at_224():
    assert resnet_operations("bottleneck", (3, 4, 6, 3), 1.0, 224) == pytest.approx(2 * 4.09e9, rel=0.01)


def test_a_vgg11_takes_the_operations_that_its_layers_add_up_to():
    by_hand = 9 * (3 * 64 * 1024 + 64 * 128 * 256 + (128 * 256 + 256 * 256) * 64)
    by_hand += 9 * ((256 * 512 + 512 * 512) * 16 + (512 * 512 * 2) * 4)
    assert vgg_operations(1.0) == 2 * (by_hand + 512 * 10)
