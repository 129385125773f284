"""What a run shows: one line that moves, the errors, a short plan of a dry run, and at the end what was asked for."""

import os
import pty
import re
import subprocess
from logging import INFO, LogRecord

import pandas as pd
import pytest
from conftest import ROOT, snakemake_command

from relusym.findings.screen import at_end, in_words
from snakemake_logger_plugin_line import Run

SNAKEFILE = """
rule all:
    input: expand("made/{net}.txt", net=["cnn-0", "cnn-1", "cnn-2"])
rule train:
    output: "made/{net}.txt"
    log: "logs/{net}.log"
    shell: "echo 'cnn: epoch   1.50/4  loss' > {log}; sleep 2; test {wildcards.net} != $BAD && touch {output}"
"""


@pytest.fixture
def workflow(tmp_path):
    """A folder with four jobs, and the profile of this project."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "profiles" / "default").mkdir(parents=True)
    profile = (ROOT / "profiles" / "default" / "config.yaml").read_text()
    (tmp_path / "profiles" / "default" / "config.yaml").write_text(profile)
    return tmp_path


def command(*arguments):
    return [*snakemake_command(), "--cores", "2", *arguments]


def piped(folder, *arguments, bad="none"):
    run = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=os.environ | {"BAD": bad},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


def test_on_a_terminal_one_line_says_what_is_done_to_come_and_running(workflow):
    ours, its = pty.openpty()
    run = subprocess.Popen(
        command(), cwd=workflow, env=os.environ | {"BAD": "none", "COLUMNS": "120"}, stdout=its, stderr=its
    )
    os.close(its)
    output = b""
    while True:
        try:
            output += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    assert run.wait() == 0
    moving = re.findall(r"\r([^\r\n]*)\x1b\[K", output.decode())
    assert any(re.search(r"of 4 jobs done \| train cnn-\d \(epoch 1.50 of 4\)", line) for line in moving), (
        output
    )
    assert any(re.search(r"[12] of 4 jobs done \| about \d:\d\d left \| train", line) for line in moving), (
        output
    )
    still = [line for line in output.decode().split("\n") if "\x1b[K4 of 4 jobs done, in 0:" in line]
    assert len(still) == 1 and output.decode().count("\n") <= 3
    (log,) = (workflow / ".snakemake" / "log").iterdir()
    assert log.read_text().count("rule train:") == 3  # what isn't shown is in the file


def test_in_a_pipe_a_run_is_a_few_whole_lines(workflow):
    code, output = piped(workflow)
    assert code == 0 and "\r" not in output and len(output.splitlines()) <= 3
    assert output.splitlines()[-1].startswith("4 of 4 jobs done, in 0:")
    code, output = piped(workflow)
    assert code == 0 and output.splitlines()[-1].startswith("Nothing to be done")


def test_a_failed_job_is_named_with_its_log_and_the_others_go_on(workflow):
    code, output = piped(workflow, bad="cnn-1")
    assert (
        code == 1
        and "failed: train cnn-1: it was killed, it seems (kill -9, memory, or its node), after: " in output
    )
    assert "after: cnn: epoch   1.50/4  loss (logs/cnn-1.log)\n" in output
    assert "2 of 4 jobs done, 1 failed" in output and len(output.splitlines()) <= 12
    assert {path.name for path in (workflow / "made").iterdir()} == {"cnn-0.txt", "cnn-2.txt"}


def test_a_dry_run_counts_jobs_by_rule_and_lists_them_all_when_asked(workflow):
    code, output = piped(workflow, "--dry-run")
    assert code == 0
    assert "Would run 4 jobs" in output and "       3 train: cnn-0, cnn-1, cnn-2\n" in output
    assert "1 of each: all" in output and len(output.splitlines()) <= 5
    code, output = piped(workflow, "--dry-run", "--verbose")
    assert code == 0 and len(re.findall(r"^(?:local)?rule train:$", output, re.MULTILINE)) == 3


def test_what_is_wrong_with_a_call_is_shown(workflow):
    code, output = piped(workflow, "nothing_of_the_kind")
    assert code == 1 and "nothing_of_the_kind" in output and "Traceback" not in output


def event(name, **about):
    record = LogRecord("snakemake", INFO, "", 0, None, None, None)
    record.__dict__.update(about)
    return name, record


def test_the_time_left_is_that_of_the_jobs_to_do_by_the_means_of_their_rules(monkeypatch):
    now = 0.0
    monkeypatch.setattr("snakemake_logger_plugin_line.time.monotonic", lambda: now)
    run = Run()
    run.take(*event("run_info", stats={"train": 4, "merge": 4, "total": 8}))
    for rule, seconds in (("train", 100), ("merge", 10)):
        run.take(*event("job_info", jobid=rule, rule_name=rule, log=["logs/a-0.log"]))
        now += seconds
        run.take(*event("job_finished", job_id=rule))
    assert run.line() == "2 of 8 jobs done | about 5:30 left"  # three times 100 and 10 s, one at a time
    for number in range(2):
        run.take(*event("job_info", jobid=number, rule_name="train", log=[f"logs/cnn-{number}.log"]))
    now += 60
    assert run.line() == "2 of 8 jobs done | about 1:45 left | train cnn-0, train cnn-1"  # (330 - 2 × 60) / 2


@pytest.fixture
def table2():
    barriers = {"cnn": 0.084, "cnn_inv": 0.021, "gcnn": 0.0}
    rows = [
        {
            "model": model,
            "accuracy_mean": 0.8,
            "accuracy_std": 0.01,
            "invariance_error_mean": 0.1,
            "invariance_error_std": 0.01,
            "gcnn_barrier_mean": barrier,
            "gcnn_barrier_std": 0.002,
            "n": 2,
            "left_out": 0,
            "paper_gcnn_barrier_mean": 0.04,
        }
        for model, barrier in barriers.items()
    ]
    return pd.DataFrame(rows)


NAMES = {"cnn": "CNN", "cnn_inv": "CNN + inv-loss", "gcnn": "GCNN"}


@pytest.mark.parametrize(
    ("with_loss", "beside"), [(0.021, "less than half of"), (0.06, "below"), (0.084, "not below")]
)
def test_the_sentence_says_what_the_table_shows_and_no_more(table2, with_loss, beside):
    table2.loc[table2["model"] == "cnn_inv", "gcnn_barrier_mean"] = with_loss
    output = in_words(table2, NAMES)
    assert f"{beside} the CNN's 8.4e-2; GCNN 0." in output
    assert in_words(table2[table2["model"] != "gcnn"], NAMES) == ""


def test_a_run_ends_with_the_tables_and_figures_that_were_asked_for(table2, tmp_path):
    (tmp_path / "tables").mkdir()
    table2.to_csv(tmp_path / "tables" / "table2.csv", index=False)
    output = at_end(["table2", "figure4"], tmp_path, NAMES)
    assert "CNN + inv-loss  0.800 ± 1.0e-2" in output and "paper" not in output
    assert f"{tmp_path}/tables/table2.md" in output and f"Picture: {tmp_path}/figures/figure4.png" in output
    assert at_end(["all"], tmp_path, NAMES).count("\n") <= 24 and "barriers.png" in at_end(
        ["all"], tmp_path, NAMES
    )
    assert len(at_end(["table2"], tmp_path, NAMES, columns=40).splitlines()) == 1
    assert at_end(["status"], tmp_path, NAMES) == ""


def test_a_run_of_committed_results_prints_them_and_says_that_nothing_was_trained(committed):
    for note in (committed.folder / "results/tiny/notes").glob("table2-*"):
        note.unlink()
    # first the table is made, then there is nothing to do, on a terminal without ±
    for by in ((), ("env", "PYTHONIOENCODING=ascii")):
        run = committed.snakemake("table2", by=by)
        assert run.returncode == 0, run.stdout
        assert "GCNN Barrier" in run.stdout and "results/tiny/tables/table2.md" in run.stdout
        assert run.stdout.rstrip().endswith("To train them yourself, move results/tiny away first.")


def test_a_target_of_several_tables_ends_with_each_of_them(committed):
    output = committed.snakemake("compare").stdout
    assert {f"results/tiny/tables/{name}.md" for name in ("claims", "comparison")} <= {
        *re.findall(r"results\S+md", output)
    }
