import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tour
import yaml
from conftest import MODELS, PAIRS, ROOT, TINY, Clone, config_of, finish, scale_of, settings_of, start
from records import MEASURED

from relusym import paper_values
from relusym.checkpoint import load_arrays
from relusym.findings.frames import read_filters
from relusym.records.files import load_record
from relusym.theory import STATEMENTS

TABLES = {"theory", "costs", "comparison", "claims", "provenance", *(f"table{i}" for i in range(1, 6))}
# 5 shows a type not in MODELS
FIGURES = {f"figure{number}" for number in (1, 2, 3, 4, 6, 7, 8, 9, 10)} | {"barriers", "zero_filters"}
AGGREGATION = {*TABLES, *FIGURES, "all"}
ALONE = {*STATEMENTS, "flipped_training"}  # jobs without a net
RESNET_TRAININGS = ["train old 0", "train simsiam_odd 0", "train simsiam_odd.pretraining 0"]
RESNET_MERGES = ["flip_merge old 0", "flip_merge simsiam_odd 0"]
PAIR_JOBS = ["pair_merge cnn 0 gcnn 0", "pair_merge cnn 1 gcnn 1", "pair_merge gcnn 0 gcnn 1"]


def test_every_net_is_in_the_tables_or_counted_as_left_out(finished):
    folder = finished.folder / "results" / "tiny" / "tables"
    table2 = pd.read_csv(folder / "table2.csv").set_index("model")
    table4 = pd.read_csv(folder / "table4.csv")
    assert list(table2.index) == list(MODELS)
    assert table4[["model_1", "model_2"]].to_numpy().tolist() == PAIRS
    for table, nets in ((table2, [2, 2]), (table4, [2, 1])):  # two seeds of one type are one pair
        assert (table["n"] + table["left_out"]).tolist() == nets and table["n"].sum() > 0


def test_every_job_left_its_log_and_its_cost(finished):
    results = finished.folder / "results" / "tiny"
    paths = [*results.glob("records/*/*/[0-9]*.json")]
    records = {path.relative_to(results / "records").with_suffix("") for path in paths}
    trained, merged = 4 + len(RESNET_TRAININGS), 4 + len(RESNET_MERGES)
    assert len(records) == trained + merged + len(PAIR_JOBS) + len(ALONE)
    for path in paths:
        cost = load_record(path)["cost"]  # of the job's fork, if it is one
        assert path.parts[-3] == "theory" or 0 < cost["seconds"] <= cost["job_seconds"] < 86400, path
        assert path.parts[-3] != "train" or cost["job_memory_mb"] > 100, path
    logs = {record for record in records if record.parts[0] not in ("theory", "flipped_training")}
    without_nets = "flipped_training", *(f"theory/{statement}" for statement in STATEMENTS)
    for name in (*without_nets, *logs):
        assert (results / "logs" / f"{name}.log").read_text(encoding="utf-8")
    assert not list(results.glob("states/*"))  # a finished training leaves no state


def test_a_fresh_clone_only_aggregates_the_committed_records(committed):
    assert set(committed.planned("table2")) <= {"table2"}
    for path in committed.folder.glob("results/tiny/tables/*"):
        path.unlink()
    assert committed.planned("table2") == ["table2"]
    assert {*TABLES, "all"} <= set(committed.planned()) <= AGGREGATION


def test_a_run_of_some_seeds_shows_only_these_seeds(tiny):
    jobs = tiny().planned("--config", "seeds=0")
    of_seed = [f"{rule} {model} 0" for rule in ("flip_merge", "train") for model in MODELS]
    others = [*AGGREGATION, *ALONE, "prepare_data generated-400-200-0"]
    others += [*RESNET_TRAININGS, *RESNET_MERGES]  # these have their own seeds
    assert jobs == sorted([*of_seed, "pair_merge cnn 0 gcnn 0", *others])


LOOKS = """
import sys
from snakemake import cli
from snakemake.scheduling.job_scheduler import JobScheduler

JobScheduler._schedule_reevalutation = lambda *_: print("looks again in a while")
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("limit, looks", [((), False), (("--max-jobs-per-timespan", "9/1s"), True)])
def test_the_scheduler_looks_for_jobs_when_one_ends_and_each_second_with_a_limit(committed, limit, looks):
    (committed.folder / "results" / "tiny" / "tables" / "table2.csv").unlink()
    command = [sys.executable, "-c", LOOKS, "--cores", "1", "table2", *limit]
    output = finish(start(command, committed.folder)).stdout
    assert "Statistics of VGG11 nets" in output and ("looks again" in output) == looks


@pytest.mark.workflow  # it requests its clone by name
@pytest.mark.skipif(not report_tour.BROWSER, reason="no Chromium here: the report is not looked at")
@pytest.mark.parametrize("state", ["finished", "committed"])
def test_the_report_shows_every_table_and_figure_without_an_error(state, request, tmp_path):
    folder = request.getfixturevalue(state).folder
    report = tmp_path / "report.html"
    request.getfixturevalue(state).makes("--report", str(report))
    tour = report_tour.tour(report, tmp_path)
    assert tour["errors"] == [] and "GCNN barrier" in tour["description"] and tour["rules"] > 0
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
    assert all(seen["caption"] for seen in tour["seen"].values()) and report.stat().st_size < 10e6


def test_figures_and_theory_exist_in_every_format(finished):
    results = finished.folder / "results" / "tiny"
    for figure in FIGURES:
        assert (results / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    nets = [read_filters(path) for path in sorted(results.glob("filters/*/*"))]
    names = ["cnn-0", "cnn-1", "gcnn-0", "gcnn-1", "old-0", "simsiam_odd-0"]
    assert [f"{net.model}-{net.seed}" for net in nets] == names
    zero = pd.read_csv(results / "figures" / "zero_filters_by_net.csv")
    assert len(zero) == 8 * sum(net.status == "ok" for net in nets if net.model in MODELS)
    assert len(pd.read_csv(results / "tables" / "theory.csv")) == len(STATEMENTS)
    for name in ("table1", "table2", "table4", "theory"):
        for ending in (".csv", ".md"):
            assert (results / "tables" / f"{name}{ending}").stat().st_size > 100


def test_tex_and_pdf_are_made_on_request_and_remade_with_their_table(committed):
    results = committed.folder / "results/tiny"
    asked = ["results/tiny/tables/table2.tex", "results/tiny/figures/figure4.pdf"]
    assert committed.planned(*asked) == ["for_latex figures/figure4.pdf", "for_latex tables/table2.tex"]
    assert committed.planned("latex").count("latex") == 1
    committed.makes(*asked)
    assert (results / "figures/figure4.pdf").read_bytes().startswith(b"%PDF")
    assert r"\bottomrule" in (results / "tables/table2.tex").read_text(encoding="utf-8")
    assert committed.planned(*asked) == [] == committed.planned()
    committed.configure(models={**TINY["models"], "gcnn": {**TINY["models"]["gcnn"], "name": "A GCNN"}})
    run = committed.snakemake("--dry-run", asked[0])
    assert "table2.tex is out of date; ask for the target table2 together with this file to" in run.stdout
    assert {"for_latex figures/figure4.pdf", "for_latex tables/table2.tex"} <= {*committed.planned("latex")}
    assert committed.planned("table2", asked[0]) == ["for_latex tables/table2.tex", "table2"]
    committed.makes("table2", asked[0])
    assert "A GCNN" in (results / "tables/table2.tex").read_text(encoding="utf-8")
    assert "nothing makes" in committed.fails("--dry-run", "results/tiny/tables/table2.pdf")


def test_any_nets_filters_can_be_drawn_from_committed_arrays(committed):
    drawn = "results/tiny/figures/filters/conv2-gcnn-1.pdf"
    assert committed.planned(drawn) == ["filter_pairs conv2 gcnn 1 pdf"]
    committed.makes(drawn)
    assert (committed.folder / drawn).read_bytes().startswith(b"%PDF")


def test_the_benchmark_runs_only_on_request(clone):
    made = clone()
    assert made.planned("--force", "bench") == ["bench"] and "bench" not in made.planned()


def test_the_laptops_committed_tables_follow_from_its_committed_records_byte_by_byte(clone):
    made, committed = clone(), ROOT / "results" / "laptop"
    for part in ("records", "filters"):
        shutil.copytree(committed / part, made.folder / "results" / "laptop" / part)
    tables = sorted({path.stem for path in (committed / "tables").iterdir()})
    made.makes(*tables, "--config", "scale=laptop")
    assert tables
    for path in (committed / "tables").iterdir():
        again = made.folder / "results/laptop/tables" / path.name
        assert again.read_bytes() == path.read_bytes(), path
    for name in tables:
        (note,) = (made.folder / "results" / "laptop" / "notes").glob(f"{name}-*")
        assert note.read_bytes() == (committed / "notes" / note.name).read_bytes()


ROWS = ("old", "simsiam_odd")


def merges(clone):
    return [load_record(clone.record("flip_merge", f"{row}-0")) for row in ROWS]


def test_table_5_has_every_measured_column_of_every_row_and_table_3_a_part_of_them(finished):
    folder = finished.folder / "results" / "tiny" / "tables"
    five, three = (pd.read_csv(folder / f"table{number}.csv") for number in (5, 3))
    known = merges(finished)
    ok = [record["model"] for record in known if record["status"] == "ok"]
    assert len(known) == 2 and "old" in ok and five["method"].tolist() == ok
    assert five[MEASURED].notna().all(axis=None) and five["paper_gcnn_barrier"].notna().all()
    assert three["method"].tolist() == ["old"]
    pd.testing.assert_frame_equal(three, five[five["method"] == "old"].reset_index(drop=True))


def test_figure_9_is_drawn_from_small_arrays_without_a_checkpoint(finished, committed):
    figures = finished.folder / "results" / "tiny" / "figures"
    assert (figures / "figure9.png").read_bytes().startswith(b"\x89PNG")
    arrays, about = load_arrays(finished.folder / finished.path("filters", "flip_merge", "old-0"))
    assert arrays["conv1"].shape == (2, 8, 3, 7, 7) and about["status"] == "ok"
    stream = merges(finished)[0]["permutations"]["layer1.0.conv2"]
    filters, matches = arrays["conv1"]  # the stem writes to the first blocks' residual stream
    assert np.array_equal(matches, filters[stream][..., ::-1])
    (committed.folder / "results" / "tiny" / "figures" / "figure9.png").unlink()
    assert committed.planned("figure9") == ["figure9"]


NOTICE = "notice: ImageNet is not at data/imagenet/train: set imagenet.root to the folder with train/ and "
NOTICE += "val/; until then the rows of Tables 3 and 5 are left out"


def test_at_the_paper_scale_a_dry_run_lists_every_job_of_all_ten_rows_and_names_the_key(
    clone, tmp_path, imagenet
):
    fresh = clone()
    run = fresh.snakemake("--dry-run", "table3", "table5", "--config", "scale=paper")
    assert [line for line in run.stdout.splitlines() if "ImageNet" in line] == [NOTICE]
    assert fresh.planned("table3", "table5", "--config", "scale=paper") == ["table3", "table5"]
    config = ("--config", "scale=paper", imagenet)
    rows = set(paper_values.table(5)["method"])
    # the paper names no source of BYOL's weights
    jobs = fresh.planned("table3", "table5", *config)
    rules = Counter(job.split()[0] for job in jobs)
    assert {job.split()[1] for job in jobs if job.startswith("flip_merge")} == rows - {"byol"}
    assert rules["flip_merge"] == 9 and rules["train"] == 9 + 1 and rules["weights"] == 5
    assert rules["prepare_data"] == 2 and rules["table3"] == rules["table5"] == 1
    (tmp_path / "byol.pth").touch()
    file = f"models={{byol: {{weights: {{file: {tmp_path}/byol.pth}}}}}}"
    rules = Counter(job.split()[0] for job in fresh.planned("table3", "table5", *config, file))
    assert rules["flip_merge"] == 10 and rules["train"] == 10 + 1 and rules["weights"] == 6
    variant = ", ".join(f"{row}: {{data: {{resize: 232}}}}" for row in rows)
    variant = f"models={{{variant}}}"
    prepared = [job for job in fresh.planned("table5", *config, variant) if job.startswith("prepare_data")]
    assert len(prepared) == 2 and all("-232-22" in job and job.endswith("-5000-0") for job in prepared)


def test_an_unavailable_net_is_left_out_with_its_reason_and_tried_again(clone, tmp_path, imagenet):
    fresh = clone()
    rows = scale_of(fresh.folder, "paper")["models"]
    models = {row: model for row, model in rows.items() if model.get("table") != "table5"}
    models |= {row: rows[row] for row in ("torchvision_old_inv", "byol")}
    fresh.configure(scale="paper", device="cpu", models=models, figure9=None)
    fresh.makes("table3", "table5")
    tables = fresh.folder / "results" / "paper" / "tables"
    notes = (tables / "table5.md").read_text(encoding="utf-8")
    assert "- BYOL is left out: ImageNet is not at data/imagenet/train: set imagenet.root" in notes
    assert len(pd.read_csv(tables / "table5.csv")) == 0
    (tmp_path / "byol.pth").touch()
    byol = f"models={{byol: {{weights: {{file: {tmp_path}/byol.pth}}}}}}"
    jobs = fresh.planned("table5", "--config", imagenet, byol)
    assert "train torchvision_old_inv 0" in jobs and "flip_merge byol 0" in jobs
    again = fresh.snakemake("table5")
    assert "Nothing to be done" in again.stdout, again.stdout  # for the same reason


def test_a_net_whose_download_fails_is_left_out_with_its_reason_and_so_is_its_merge(clone):
    fresh = clone()
    rows = scale_of(fresh.folder, "demo")["models"]
    models = {row: model for row, model in rows.items() if model.get("table") != "table5"}
    models["gone"] = rows["old"] | {"weights": {"urls": ["http://127.0.0.1:9/gone.pth"]}}
    fresh.configure(scale="demo", models=models, figure9=None)
    fresh.makes("table5")
    results = fresh.folder / "results" / "demo"
    merge = load_record(fresh.record("flip_merge", "gone-0", scale="demo"))
    assert (merge["status"], merge["reason"]) == ("left_out", "gone-0 is absent")
    notes = (results / "tables" / "table5.md").read_text(encoding="utf-8")
    assert "http://127.0.0.1:9/gone.pth can't be downloaded" in notes


def test_the_papers_ten_rows_ship_and_table_3_is_seven_of_them():
    settings, five = settings_of(scale="paper"), paper_values.table(5)
    assert settings.table("table5") == five["method"].tolist()
    assert settings.in_table3 == five[five["in_table3"] == "yes"]["method"].tolist()
    for _, row in five.iterrows():
        shown = settings.shown(row["method"])
        assert shown["image_size"] == row["image_size"] and shown["paper"] == row["method"]
        for flag in ("trained_by_authors", "self_supervised"):
            assert shown[flag] == (row[flag] == "yes")


@pytest.mark.usefixtures("imagenet")
def test_a_local_file_takes_precedence_over_any_other_source_and_makes_an_eleventh_row(tmp_path):
    (tmp_path / "net.pth").touch()
    paper = scale_of(ROOT, "paper")
    rows, file = paper["models"], str(tmp_path / "net.pth")
    rows["mine"] = rows["byol"] | {"name": "Mine", "weights": {"file": file}}
    rows["torchvision_old_inv"]["weights"] = {"file": file}
    rows["torchvision_old"]["weights"]["file"] = file
    imagenet = {"root": str(tmp_path)}
    settings = settings_of(paper, "paper", imagenet=imagenet)
    reason = "no checkpoint is at hand: set models.byol.weights.file to a local file"
    assert settings.absent == {"byol": reason}
    rows["byol"]["weights"]["file"] = str(tmp_path / "none.pth")
    settings = settings_of(paper, "paper", imagenet=imagenet)
    assert len(settings.table("table5")) == 11
    for row in ("mine", "torchvision_old_inv", "torchvision_old"):
        assert settings.train(row)["weights"] == {"file": file, "layout": "auto"}
        assert settings.models[row].recipe == [] and settings.models[row].training_ids == [row]
    assert settings.models["torchvision_old_225"].recipe == ["training"]
    reason = f"the checkpoint {tmp_path}/none.pth is missing: set models.byol.weights.file"
    assert settings.absent == {"byol": reason}
    assert settings.paper_row("mine") is None and "mine" not in settings.in_table3


SNAKEFILE = """
configfile: "mine.yaml"

module relu:
    snakefile: "{clone}/Snakefile"
    config: config
    {prefix}

use rule * from relu as relu_*

rule accuracies:
    default_target: True
    input: rules.relu_table2.output, rules.relu_lemma_2_2.output, rules.relu_figure4.output
    output: "accuracies.txt"
    shell: "cut -d, -f1,2 {{input[0]}} > {{output}}"
"""


@pytest.mark.slow(seconds=20)
def test_another_workflow_uses_ours_under_a_prefix_with_its_own_config_and_folder(tiny, tmp_path):
    made = tiny()
    config = config_of(made.folder) | {"seeds": 0, "models": dict.fromkeys(TINY["models"])}
    config |= {"models": config["models"] | {"cnn": {"name": "Mine"}}, "figure9": None}
    mine, outer = Clone.at(tmp_path), tmp_path
    (outer / "mine.yaml").write_text(yaml.safe_dump(config))
    (outer / "Snakefile").write_text(SNAKEFILE.format(clone=made.folder, prefix=""))
    mine.makes()
    table = pd.read_csv(outer / "results/tiny/tables/table2.csv")
    assert table["model"].tolist() == ["cnn"] and (table["n"] + table["left_out"]).tolist() == [1]
    assert (outer / "accuracies.txt").read_text().startswith("model,accuracy_mean\ncnn,")
    assert (outer / "results/tiny/figures/figure4.png").exists()
    assert not (made.folder / "results").exists() and not (made.folder / "data").exists()
    again = "--rerun-triggers", "mtime"
    assert "Nothing to be done" in mine.makes(*again)
    assert "relu_train" in mine.makes(*again, "--forcerun", "relu_train", "--dry-run")


@pytest.mark.slow(seconds=10)
def test_under_a_prefix_finished_records_are_found(finished, tiny, tmp_path):
    made = tiny()
    mine = Clone.at(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config_of(made.folder)))
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(clone=made.folder, prefix='prefix: "below"'))
    shutil.copytree(finished.folder / "results/tiny/records", tmp_path / "below/results/tiny/records")
    shutil.copytree(finished.folder / "results/tiny/filters", tmp_path / "below/results/tiny/filters")
    assert mine.planned() == ["accuracies", "relu_figure4", "relu_table2"]
    mine.makes()
    assert not (tmp_path / "results").exists() and not (tmp_path / "below/data").exists()
    for name in ("tables/table2.csv", "figures/figure4.png"):
        ours, its = (folder / "results/tiny" / name for folder in (tmp_path / "below", finished.folder))
        assert ours.read_bytes() == its.read_bytes()
    assert "Nothing to be done" in mine.snakemake().stdout
    other = config_of(made.folder) | {"training": {"weight_decay": 0.5}}  # a different net
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(other))
    assert {"relu_train cnn 0", "relu_table2", "accuracies"} <= {*mine.planned()}
