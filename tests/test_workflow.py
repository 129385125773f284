"""The whole workflow at a tiny scale, and what a later run of it does again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import report_tour
from conftest import MODELS, PAIRS, ROOT, TINY

from relusym.findings.filters import read_filters
from relusym.records.files import load_record
from relusym.theory import STATEMENTS

TABLES = {f"table{number}" for number in range(1, 6)} | {
    "theory",
    "costs",
    "comparison",
    "claims",
    "provenance",
}
# 5 shows a type not in MODELS
FIGURES = {f"figure{number}" for number in (1, 2, 3, 4, 6, 7, 8, 9, 10)} | {"barriers", "zero_filters"}
AGGREGATION = {*TABLES, *FIGURES, "all"}
ALONE = {*STATEMENTS, "flipped_training"}  # jobs on no net
DATA = "prepare_data generated-400-200-0"
RESNET_TRAININGS = ["train old 0", "train simsiam_odd 0", "train simsiam_odd.pretraining 0"]
RESNET_MERGES = ["flip_merge old 0", "flip_merge simsiam_odd 0"]


def of_seed(seed):
    return [f"{rule} {model} {seed}" for rule in ("flip_merge", "train") for model in MODELS]


PAIR_JOBS = ["pair_merge cnn 0 gcnn 0", "pair_merge cnn 1 gcnn 1", "pair_merge gcnn 0 gcnn 1"]


def test_every_net_is_in_the_tables_or_counted_as_left_out(finished):
    folder = finished.folder / "results" / "tiny" / "tables"
    table2 = pd.read_csv(folder / "table2.csv").set_index("model")
    table4 = pd.read_csv(folder / "table4.csv")
    assert list(table2.index) == list(MODELS)
    assert table4[["model_1", "model_2"]].to_numpy().tolist() == PAIRS
    for table, nets in ((table2, [2, 2]), (table4, [2, 1])):  # two seeds of one type are one pair
        assert (table["n"] + table["left_out"]).tolist() == nets
        assert table["n"].sum() > 0


def test_every_job_left_its_log_and_says_what_it_took(finished):
    results = finished.folder / "results" / "tiny"
    paths = [*results.glob("records/*/*/[0-9]*.json")]
    records = {path.relative_to(results / "records").with_suffix("") for path in paths}
    trained, merged = 4 + len(RESNET_TRAININGS), 4 + len(RESNET_MERGES)
    assert len(records) == trained + merged + len(PAIR_JOBS) + len(ALONE)
    for path in paths:
        cost = load_record(path)["cost"]  # of its fork, where a job is one
        assert path.parts[-3] == "theory" or 0 < cost["seconds"] <= cost["job_seconds"] < 86400, path
        assert path.parts[-3] != "train" or cost["job_memory_mb"] > 100, path
    for name in ("flipped_training", *(f"theory/{statement}" for statement in STATEMENTS)):  # on no net
        assert (results / "logs" / f"{name}.log").read_text(encoding="utf-8")
    records = {record for record in records if record.parts[0] not in ("theory", "flipped_training")}
    assert (results / "logs" / "flipped_training.log").read_text(encoding="utf-8")
    for record in records:
        assert (results / "logs" / f"{record}.log").read_text(encoding="utf-8")
    assert not list(results.glob("states/*"))  # of a training that is done


def test_a_fresh_clone_aggregates_the_committed_records_alone(committed):
    assert set(committed.planned("table2")) <= {"table2"}
    for path in committed.folder.glob("results/tiny/tables/*"):
        path.unlink()
    assert committed.planned("table2") == ["table2"]
    assert {*TABLES, "all"} <= set(committed.planned()) <= AGGREGATION


def test_an_outdated_record_is_made_again_from_the_new_settings(committed):
    record = committed.path("records", "train", "gcnn-1", training={"batch_size": 20})
    run = committed.snakemake(record, "--config", "training={batch_size: 20}")
    assert run.returncode == 0, run.stdout
    assert load_record(committed.folder / record)["settings"]["training"]["batch_size"] == 20
    for seed in (0, 1):  # and the old ones are still there
        before = load_record(committed.record("train", f"gcnn-{seed}"))
        assert before["settings"]["training"]["batch_size"] == 10


def test_other_images_to_merge_on_rerun_the_merges_but_no_training(finished):
    jobs = finished.planned("--config", "merging={images: 90}")
    assert set(PAIR_JOBS) <= set(jobs)
    assert not any(job.startswith(("train", "prepare_data")) for job in jobs)


def test_a_missing_record_reruns_what_it_needs_and_no_other_net(committed):
    flip = committed.record("flip_merge", "gcnn-1")
    text = flip.read_text(encoding="utf-8")
    flip.unlink()
    jobs = [job for job in committed.planned() if job not in AGGREGATION]
    assert jobs == ["flip_merge gcnn 1", DATA, "train gcnn 1"]
    flip.write_text(text, encoding="utf-8")
    committed.record("train", "cnn-0").unlink()
    jobs = [job for job in committed.planned() if job not in AGGREGATION]
    assert jobs == [DATA, "train cnn 0"]


def test_a_missing_pair_record_reruns_the_trainings_of_its_two_nets(committed):
    committed.record("pair_merge", "gcnn-0", "gcnn-1").unlink()
    jobs = [job for job in committed.planned("table4") if job != "table4"]
    wanted = ["pair_merge gcnn 0 gcnn 1", DATA, "train gcnn 0", "train gcnn 1"]
    assert jobs == wanted
    assert committed.planned("table2", "figure4") == []  # they read no pairs


def test_a_deleted_record_is_made_again_and_the_tables_with_it_however_new_they_are(copied):
    copied.record("flip_merge", "cnn-0").unlink()
    jobs = set(copied.planned())
    assert {"flip_merge cnn 0", "table2", "figure4", "costs"} <= jobs and "table4" not in jobs


def test_a_piece_of_the_seeds_is_about_these_seeds_alone(tiny):
    jobs = tiny().planned("--config", "seeds=0")
    others = [*AGGREGATION, *ALONE, DATA, *RESNET_TRAININGS, *RESNET_MERGES]  # these have seeds of their own
    assert jobs == sorted([*of_seed(0), "pair_merge cnn 0 gcnn 0", *others])


def test_ctrl_c_saves_every_training_ends_in_a_line_each_and_leaves_no_lock(tiny):
    made = tiny()
    target = made.path("records", "train", "cnn-0", training={"epochs": 1000, "save_every": 1000})
    endless = ("--config", "training={epochs: 1000, save_every: 1000}")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target, *endless]
    run = subprocess.Popen(
        command,
        cwd=made.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    log = made.folder / target.replace("records", "logs").replace(".json", ".log")
    while not (log.exists() and "epoch" in log.read_text(encoding="utf-8")):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 1 and "Traceback" not in output and "Exception" not in output, output
    assert re.search(
        r"^failed: train cnn-0: interrupted in .*the training state is saved", output, re.MULTILINE
    )
    assert len(list((made.folder / "results/tiny/states").iterdir())) == 1
    assert made.planned(target, *endless) == ["train cnn 0"]


LOOKS = """
import sys
from snakemake import cli
from snakemake.scheduling.job_scheduler import JobScheduler

JobScheduler._schedule_reevalutation = lambda *_: print("looks again in a while")
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("limit, looks", [((), False), (("--max-jobs-per-timespan", "9/1s"), True)])
def test_the_scheduler_looks_for_jobs_when_one_ends_and_each_second_only_with_a_limit(
    committed, limit, looks
):
    (committed.folder / "results" / "tiny" / "tables" / "table2.csv").unlink()
    command = [sys.executable, "-c", LOOKS, "--cores", "1", "table2", *limit]
    run = subprocess.run(command, cwd=committed.folder, capture_output=True, text=True, check=True)
    assert "Statistics of VGG11 nets" in run.stdout and ("looks again" in run.stdout) == looks


def test_the_paper_scale_is_168_nets_168_flip_merges_and_144_pair_merges_and_a_piece_its_seeds_of_them(clone):
    made = clone()
    rules = Counter(job.split()[0] for job in made.planned("--config", "scale=paper"))
    assert (rules["train"], rules["flip_merge"], rules["pair_merge"]) == (168, 168, 144)
    assert rules["prepare_data"] == 1  # ImageNet isn't here: its ten nets are left out
    piece = Counter(job.split()[0] for job in made.planned("--config", "scale=paper", "seeds=0-3"))
    between_types, within_a_type = 3 * 4, 3 * 3  # the last seed's partner within a type is in the next piece
    assert (piece["train"], piece["flip_merge"]) == (7 * 4, 7 * 4)
    assert piece["pair_merge"] == between_types + within_a_type


@pytest.mark.workflow  # whose clone it asks for by name
@pytest.mark.skipif(not report_tour.BROWSER, reason="no Chromium here: the report is not looked at")
@pytest.mark.parametrize("state", ["finished", "committed"])
def test_the_report_shows_every_table_and_figure_without_an_error(state, request, tmp_path):
    """After a run, and in a fresh clone, where nothing of Snakemake's own is left."""
    folder = request.getfixturevalue(state).folder
    report = tmp_path / "report.html"
    run = request.getfixturevalue(state).snakemake("--report", str(report))
    assert run.returncode == 0, run.stdout
    tour = report_tour.tour(report, tmp_path)
    assert tour["errors"] == []
    assert "GCNN barrier" in tour["description"] and tour["rules"] > 0
    # it opens with the figure of all barriers and with Table 2
    assert tour["glance"]["width"] > 200 and 0 < tour["glance"]["top"] < 600
    assert "Statistics of VGG11 nets" in tour["description"] and "(paper)" in tour["description"]
    results = folder / "results" / "tiny"
    shown = {path for path, seen in tour["seen"].items() if seen["shown"]}
    wanted = [*results.glob("tables/*.html"), *results.glob("figures/*.png")]
    assert {path.relative_to(folder).as_posix() for path in wanted} == shown
    assert {Path(path).stem for path in shown} >= TABLES
    for path in shown:
        seen = tour["seen"][path]
        assert seen["rows"] > 0 if path.endswith(".html") else seen["width"] > 200, path
    assert all(seen["caption"] for seen in tour["seen"].values())
    assert report.stat().st_size < 10e6


def test_figures_and_theory_are_there_in_every_form(finished):
    results = finished.folder / "results" / "tiny"
    for figure in FIGURES:
        assert (results / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    nets = [read_filters(path) for path in sorted(results.glob("filters/*/*"))]
    names = ["cnn-0", "cnn-1", "gcnn-0", "gcnn-1", "old-0", "simsiam_odd-0"]
    assert [f"{net.model}-{net.seed}" for net in nets] == names
    zero = pd.read_csv(results / "figures" / "zero_filters_by_net.csv")
    assert len(zero) == 8 * sum(net.status == "ok" for net in nets if net.model in MODELS)
    theory = pd.read_csv(results / "tables" / "theory.csv")
    assert len(theory) == len(STATEMENTS)
    for name in ("table1", "table2", "table4", "theory"):
        for ending in (".csv", ".md"):
            assert (results / "tables" / f"{name}{ending}").stat().st_size > 100


def test_tex_and_pdf_are_made_for_who_asks_and_anew_when_their_table_is(committed):
    results = committed.folder / "results/tiny"
    asked = ["results/tiny/tables/table2.tex", "results/tiny/figures/figure4.pdf"]
    assert committed.planned(*asked) == ["for_latex figures/figure4.pdf", "for_latex tables/table2.tex"]
    assert committed.planned("latex").count("latex") == 1
    run = committed.snakemake(*asked)
    assert run.returncode == 0, run.stdout
    assert (results / "figures/figure4.pdf").read_bytes().startswith(b"%PDF")
    assert r"\bottomrule" in (results / "tables/table2.tex").read_text(encoding="utf-8")
    assert committed.planned(*asked) == [] == committed.planned()
    committed.configure(models={**TINY["models"], "gcnn": {**TINY["models"]["gcnn"], "name": "A GCNN"}})
    run = committed.snakemake("--dry-run", asked[0])
    assert "table2.tex shows an earlier state; its target table2 beside it makes it again" in run.stdout
    assert {"for_latex figures/figure4.pdf", "for_latex tables/table2.tex"} <= {*committed.planned("latex")}
    assert committed.planned("table2", asked[0]) == ["for_latex tables/table2.tex", "table2"]
    assert committed.snakemake("table2", asked[0]).returncode == 0
    assert "A GCNN" in (results / "tables/table2.tex").read_text(encoding="utf-8")
    run = committed.snakemake("--dry-run", "results/tiny/tables/table2.pdf")
    assert run.returncode != 0 and "nothing makes" in run.stdout


def test_any_nets_filters_can_be_drawn_from_committed_arrays(committed):
    drawn = "results/tiny/figures/filters/conv2-gcnn-1.pdf"
    assert committed.planned(drawn) == ["filter_pairs conv2 gcnn 1 pdf"]
    run = committed.snakemake(drawn)
    assert run.returncode == 0, run.stdout
    assert (committed.folder / drawn).read_bytes().startswith(b"%PDF")


def test_another_projection_makes_the_arrays_again_with_their_merges_and_trains_nothing(finished):
    jobs = finished.planned("--config", "filters={projection_seed: 1, zero_filter: 0.1}")
    assert {job for job in jobs if job.split()[0] not in AGGREGATION} == {
        *(f"flip_merge {model} {seed}" for model in MODELS for seed in (0, 1)),
        *RESNET_MERGES,
    }


def test_the_benchmark_is_run_when_it_is_asked_for_and_by_no_other_target(clone):
    made = clone()
    assert made.planned("--force", "bench") == ["bench"]
    assert "bench" not in made.planned()


def test_the_laptops_committed_tables_follow_from_its_committed_records_byte_by_byte(clone):
    made, committed = clone(), ROOT / "results" / "laptop"
    for part in ("records", "filters"):
        shutil.copytree(committed / part, made.folder / "results" / "laptop" / part)
    tables = sorted({path.stem for path in (committed / "tables").iterdir()})
    run = made.snakemake(*tables, "--config", "scale=laptop")
    assert run.returncode == 0 and tables, run.stdout
    for path in (committed / "tables").iterdir():
        assert (
            made.folder / "results" / "laptop" / "tables" / path.name
        ).read_bytes() == path.read_bytes(), path
    for name in tables:
        (note,) = (made.folder / "results" / "laptop" / "notes").glob(f"{name}-*")
        assert note.read_bytes() == (committed / "notes" / note.name).read_bytes()
