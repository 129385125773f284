import io
import os
import pty
import re
import select
import shutil
import subprocess
import time
from logging import INFO, LogRecord
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT, finish, obstruct, snakemake_command, start
from records import CODE, train

from relusym.findings import declared
from relusym.findings.layout import at_end, in_words, write_table
from relusym.jobs.job_lock import JobLock
from relusym.jobs.job_log import last_words
from relusym.jobs.status import kind_status, screen, type_of
from relusym.records.files import write_record
from snakemake_logger_plugin_line import LogHandler, Run

SNAKEFILE = """
rule all:
    input: expand("made/{net}.txt", net=["cnn-0", "cnn-1", "cnn-2"])
rule train:
    output: "made/{net}.txt"
    log: "logs/{net}.log"
    shell: "echo 'cnn: epoch   1.50/4  loss' > {log}; "
           "while [ -e wait ] && ! mv go went 2> /dev/null; do sleep 0.1; done; "
           "test {wildcards.net} != $BAD && touch {output}"
"""


@pytest.fixture
def workflow(tmp_path):
    """A folder with a workflow of four jobs, and this project's profile."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    shutil.copytree(ROOT / "profiles" / "default", tmp_path / "profiles" / "default")
    return tmp_path


def command(*arguments):
    return [*snakemake_command(), "--cores", "2", *arguments]


def piped(folder, *arguments, bad="none"):
    run = finish(start(command(*arguments), folder, BAD=bad))
    return run.returncode, run.stdout


def test_on_a_terminal_one_line_shows_what_is_done_to_come_and_running(workflow):
    (workflow / "wait").touch()  # jobs run until it is removed; a file `go` ends one job
    first = rb"of 4 jobs done \| train cnn-\d \(epoch 1.50 of 4\)"
    second = rb"[12] of 4 jobs done \| about \d:\d\d left \| train"
    ours, its = pty.openpty()
    variables = os.environ | {"BAD": "none", "COLUMNS": "120"}
    run = subprocess.Popen(command(), cwd=workflow, env=variables, stdout=its, stderr=its)
    os.close(its)
    output = b""
    for pattern in (first, second, None):
        moving = []
        while pattern is None or not any(re.search(pattern, line) for line in moving):
            assert select.select([ours], [], [], 1500)[0], output  # seconds; long enough on a busy machine
            try:
                output += os.read(ours, 4096)
            except OSError:  # the other end is closed
                assert pattern is None, output
                break
            moving = re.findall(rb"\r([^\r\n]*)\x1b\[K", output)
        if pattern == first:
            (workflow / "go").touch()
        elif pattern == second:
            (workflow / "wait").unlink()
    assert run.wait() == 0
    still = [line for line in output.decode().split("\n") if "\x1b[K4 of 4 jobs done, in 0:" in line]
    assert len(still) == 1 and output.decode().count("\n") <= 3
    (log,) = (workflow / ".snakemake" / "log").iterdir()
    assert log.read_text().count("rule train:") == 3  # the log has what isn't shown


def test_in_a_pipe_a_run_is_a_few_whole_lines(workflow):
    code, output = piped(workflow)
    assert code == 0 and "\r" not in output and len(output.splitlines()) <= 3
    assert output.splitlines()[-1].startswith("4 of 4 jobs done, in 0:")
    code, output = piped(workflow)
    assert code == 0 and output.splitlines()[-1].startswith("Nothing to be done")


def test_in_a_pipe_a_line_shows_the_progress_of_a_long_job(tmp_path, monkeypatch):
    monkeypatch.setattr("snakemake_logger_plugin_line.EVERY_S_IN_A_FILE", 0.01)
    lines, log = io.StringIO(), tmp_path / "cnn-0.log"
    monkeypatch.setattr("sys.stderr", lines)
    settings = dict.fromkeys(("stdout", "dryrun", "quiet", "verbose", "debug_dag"), False)
    shown = LogHandler(SimpleNamespace(**settings), None)
    shown.emit(event("run_info", stats={"train": 2, "total": 2})[1])
    shown.emit(event("job_info", jobid=1, rule_name="train", wildcards={"net": log.stem}, log=[str(log)])[1])
    for epoch in ("1.50", "2.25"):
        log.write_text(f"cnn: epoch   {epoch}/4  loss 1")
        line = f"0 of 2 jobs done | train cnn-0 (epoch {epoch} of 4)"
        until = time.monotonic() + 60
        while line not in lines.getvalue().splitlines() and time.monotonic() < until:
            time.sleep(0.01)
        assert line in lines.getvalue().splitlines()
    shown.close()
    printed = lines.getvalue().splitlines()
    assert len(set(printed)) == len(printed)  # no duplicates


def test_a_failed_job_is_named_with_its_log_and_the_others_go_on(workflow):
    code, output = piped(workflow, bad="cnn-1")
    assert code == 1
    assert "failed: train cnn-1: it was killed, it seems (kill -9, memory, or its node), after: " in output
    assert "after: cnn: epoch   1.50/4  loss (logs/cnn-1.log)\n" in output
    assert "2 of 4 jobs done, 1 failed" in output and len(output.splitlines()) <= 12
    assert {path.name for path in (workflow / "made").iterdir()} == {"cnn-0.txt", "cnn-2.txt"}


def test_a_dry_run_counts_jobs_by_rule_and_lists_them_all_when_asked(workflow):
    code, output = piped(workflow, "--dry-run")
    assert code == 0
    assert "Planned: 4 jobs" in output and "       3 train: cnn-0, cnn-1, cnn-2\n" in output
    assert "1 of each: all" in output and len(output.splitlines()) <= 5
    code, output = piped(workflow, "--dry-run", "--verbose")
    assert code == 0 and len(re.findall(r"^(?:local)?rule train:$", output, re.MULTILINE)) == 3


def event(name, **about):
    record = LogRecord("snakemake", INFO, "", 0, None, None, None)
    vars(record).update(about, event=name)
    return name, record


def test_the_time_left_is_that_of_the_jobs_to_do_by_their_rules_means(monkeypatch):
    now = 0.0
    monkeypatch.setattr("snakemake_logger_plugin_line.time.monotonic", lambda: now)
    run = Run()
    run.take(*event("run_info", stats={"train": 4, "merge": 4, "total": 8}))
    for rule, seconds in (("train", 100), ("merge", 10)):
        run.take(*event("job_info", jobid=rule, rule_name=rule, wildcards={}, log=[]))
        now += seconds
        run.take(*event("job_finished", job_id=rule))
    assert run.line() == "2 of 8 jobs done | about 5:30 left"  # three times 100 and 10 s, one at a time
    for number in range(2):
        wildcards = {"training_id": "cnn", "fingerprint": "3f9a1c2b", "seed": str(number)}
        run.take(*event("job_info", jobid=number, rule_name="train", wildcards=wildcards, log=[]))
    now += 60
    assert run.line() == "2 of 8 jobs done | about 1:45 left | train cnn-0, train cnn-1"  # (330 - 2 × 60) / 2


def test_the_time_left_accounts_for_the_share_that_a_resumed_training_had_done(monkeypatch, tmp_path):
    now = 0.0
    monkeypatch.setattr("snakemake_logger_plugin_line.time.monotonic", lambda: now)
    run = Run()
    run.take(*event("run_info", stats={"train": 3, "total": 3}))
    for number, lines in enumerate((["2.40", "4.00"], ["3.10"])):  # of 4 epochs, this run did two, and one
        log = tmp_path / f"cnn-{number}.log"
        log.write_text("".join(f"cnn-{number}: epoch   {epoch}/4  loss 1\n" for epoch in lines))
        about = {"rule_name": "train", "wildcards": {"net": log.stem}, "log": [str(log)]}
        run.take(*event("job_info", jobid=number, **about))
        if number == 0:
            now += 50
            run.take(*event("job_finished", job_id=number))
    now += 5
    assert run.line() == "1 of 3 jobs done | about 2:00 left | train cnn-1 (epoch 3.10 of 4)"


@pytest.fixture
def table2():
    before = {"accuracy_mean": 0.8, "accuracy_std": 0.01, "invariance_error_mean": 0.1}
    before |= {"invariance_error_std": 0.01, "gcnn_barrier_mean": [0.084, 0.021, 0.0]}
    after = {"gcnn_barrier_std": 0.002, "n": 2, "left_out": 0, "paper_gcnn_barrier_mean": 0.04}
    return pd.DataFrame({"model": [*NAMES], **before, **after})


NAMES = {"cnn": "CNN", "cnn_inv": "CNN + inv-loss", "gcnn": "GCNN"}


@pytest.mark.parametrize("with_loss, beside", [
    (0.021, "less than half of"), (0.06, "below"), (0.084, "not below"),
])  # fmt: skip
def test_the_sentence_states_what_the_table_shows_and_no_more(table2, with_loss, beside):
    table2.loc[table2["model"] == "cnn_inv", "gcnn_barrier_mean"] = with_loss
    assert f"{beside} the CNN's 8.4e-2; GCNN 0." in in_words(table2, NAMES)
    assert in_words(table2[table2["model"] != "gcnn"], NAMES) == ""
    table2.loc[table2["model"] == "cnn_inv", "gcnn_barrier_mean"] = -0.2  # nets that learnt little
    assert in_words(table2, NAMES) == ""


def test_a_run_ends_with_the_tables_and_figures_that_were_asked_for(table2, tmp_path):
    (tmp_path / "tables").mkdir()
    why = "GCNN-1 is left out: accuracy no better than chance"
    layout = declared()["table2"].layout
    write_table(table2, tmp_path / "tables" / "table2", layout, ["Data: shapes", why], NAMES)
    output = at_end(["table2", "figure4"], tmp_path, NAMES)
    assert f"\n{why}\n" in output and "Data: shapes" not in output
    assert "CNN + inv-loss  0.800 ± 1.0e-2" in output and "paper" not in output
    assert f"{tmp_path}/tables/table2.md" in output and f"Picture: {tmp_path}/figures/figure4.png" in output
    everything = at_end(["all"], tmp_path, NAMES)
    assert everything.count("\n") <= 24 and "barriers.png" in everything
    assert len(at_end(["table2"], tmp_path, NAMES, columns=40).splitlines()) == 1
    assert at_end(["status"], tmp_path, NAMES) == ""


def test_a_count_is_printed_as_a_whole_number_beside_a_type_without_nets(tmp_path):
    sizes = pd.DataFrame({"model": ["cnn", "gcnn"], "parameters": pd.array([577000, pd.NA], "Int64")})
    write_table(sizes, tmp_path / "tables" / "table1", declared()["table1"].layout)
    assert re.search(r"^CNN +577,000\nGCNN *$", at_end(["table1"], tmp_path, NAMES), re.MULTILINE)


def test_a_run_of_committed_results_prints_them_and_that_nothing_was_trained(committed):
    for note in (committed.folder / "results/tiny/notes").glob("table2-*"):
        note.unlink()
    # first the table is made, then there is nothing to do; the second time on a terminal without ±
    for by in ((), ("env", "PYTHONIOENCODING=ascii")):
        output = committed.makes("table2", by=by)
        assert "GCNN Barrier" in output and "results/tiny/tables/table2.md" in output
        assert output.rstrip().endswith("To train the nets yourself, move results/tiny away first.")


def test_a_target_of_several_tables_ends_with_each_of_them(committed):
    output = committed.makes("compare")
    tables = {f"results/tiny/tables/{name}.md" for name in ("claims", "comparison")}
    assert tables <= {*re.findall(r"results\S+md", output)}


@pytest.fixture
def folder(tmp_path):
    """Trainings with logs and records: done, diverged, running, failed, other settings, not begun, another type."""
    hours = {
        "cnn-f0/0": ("ok", 0.5), "cnn-f0/1": ("diverged", 0.5), "cnn-0f/4": ("ok", 2.0),
        "gcnn-f0/0": ("ok", 1.0),
    }  # fmt: skip
    for name, (status, of_job) in hours.items():
        path = tmp_path / "records" / "train" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        cost = {"seconds": 1.0, "job_seconds": 3600 * of_job}
        write_record(path, train("cnn", 0, status=status, cost=cost, code=CODE | {"device": "cuda Tesla T4"}))
    logs = tmp_path / "logs" / "train" / "cnn-f0"
    logs.mkdir(parents=True)
    (logs / "3.log").write_text("cnn-3: epoch 1\nerror: no space left\n")
    with JobLock(logs / "2.lock"):
        yield tmp_path


def test_the_screen_counts_jobs_by_state_left_out_nets_and_hours_and_names_failed_jobs(folder):
    jobs = {f"train/cnn-f0/{seed}": seed < 2 for seed in range(5)}
    jobs |= {"train/gcnn-f0/0": True, "train/gcnn-f0/1": False}
    status = kind_status("train", jobs, folder)
    assert status.counts == {"done": 3, "running": 1, "failed": 1, "to do": 2}
    assert status.outcomes == {"ok": 2, "diverged": 1}
    (folder / "records/train/cnn-f0/1.json").write_text("{}")
    assert kind_status("train", jobs, folder).outcomes == {"ok": 2, "broken": 1}
    assert status.hours_spent == pytest.approx(0.5 * 2 + 1)
    assert status.hours_to_go == pytest.approx(0.5 * 3 + 1)  # three cnn, one gcnn, each at its own mean
    merges = kind_status("flip_merge", {"flip_merge/cnn-f0/0": False}, folder)
    assert merges.hours_to_go is None
    lines = screen("Scale paper", [status, merges]).splitlines()
    heads = "kind jobs done running failed to do left out GPU-h spent GPU-h to go"
    assert " ".join(lines[1].split()) == heads
    assert lines[2].split() == ["train", "7", "3", "1", "1", "2", "1", "2.00", "2.50"]
    assert lines[4].split() == ["all", "8", "3", "1", "1", "3", "1", "2.00", "?"]
    assert lines[5] == "train: 1 diverged"
    assert lines[6] == f"failed: {folder / 'logs' / 'train' / 'cnn-f0' / '3.log'}: no space left"
    assert len(lines) == 7 and max(map(len, lines[:6])) <= 100


def test_the_screen_is_one_screen_however_many_jobs_failed(folder):
    logs = folder / "logs" / "train" / "gcnn-f0"
    logs.mkdir()
    for seed in range(100):
        (logs / f"{seed}.log").write_text("")
    jobs = {f"train/gcnn-f0/{seed}": False for seed in range(1, 101)}
    lines = screen("Scale paper", [kind_status("train", jobs, folder)]).splitlines()
    assert len(lines) <= 24 and lines[-1] == "failed: 91 more"
    assert lines[-2].endswith("gcnn-f0/8.log: it was killed, it seems (kill -9, memory, or its node)")


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_non_file_in_place_of_a_log_does_not_affect_the_screen(folder, kind):
    obstruct(folder / "logs/train/cnn-f0/7.log", kind)
    assert kind_status("train", {"train/cnn-f0/7": False}, folder).counts == {"to do": 1}


def test_the_last_line_of_a_log_distinguishes_a_kill_from_an_error(tmp_path):
    log, killed = tmp_path / "cnn-0.log", "it was killed, it seems (kill -9, memory, or its node)"
    for text, words in {
        "cnn-0: epoch   1.50/3  loss 1.2\n": f"{killed}, after: cnn-0: epoch   1.50/3  loss 1.2",
        "": killed,
        "epoch 1\nerror: no space left\n": "no space left",
        "epoch 1\nTraceback (most recent call last):\n  File\nKeyError: 'a'\n": "KeyError: 'a'",
        "cnn-0: ok\ndone\n": None,
    }.items():
        log.write_text(text)
        assert last_words(log) == words
    assert last_words(tmp_path / "none.log") is None


def test_a_jobs_type_is_that_of_its_nets():
    names = ["train/cnn-3f9a1c2b/3", "train/pgcnn_late_inv-3f9a1c2b/12", "pair_merge/cnn--gcnn-3f9a1c2b/0--1"]
    assert [type_of(name) for name in names] == ["cnn", "pgcnn_late_inv", "cnn--gcnn"]
