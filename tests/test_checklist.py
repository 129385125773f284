import pytest
from conftest import refused, settings_of

from relusym.jobs import checklist
from relusym.jobs.checklist import Submission, command_problems, in_the_way, slurm_problems
from relusym.records.results import Results
from relusym.whole_files import check_writable

PARTITIONS = "sinfo: warning: old options\ncpu*|infinite\ngpu|4:00:00\nlong|1-02:30:00\nquick|30:00\n"
INVALID = "Invalid partition name specified"
REFUSED = f"sbatch: error: invalid partition specified: gqu\nallocation failure: {INVALID}\n"


@pytest.fixture
def slurm(monkeypatch):
    """A function that simulates a Slurm without a partition gqu; `accounts`: whether it keeps accounts."""

    def pretend(accounts=True):
        def asked(command):
            if command.startswith("sbatch --test-only "):
                return (False, REFUSED) if "-p gqu " in command else (True, "")
            return (True, PARTITIONS) if command.startswith("sinfo ") else (accounts, "")

        monkeypatch.setattr(checklist, "_run", asked)
        monkeypatch.setattr(checklist.shutil, "which", lambda name: f"/usr/bin/{name}")

    return pretend


def test_a_site_in_order_has_no_problems(slurm):
    slurm()
    minutes = {"gpu": 240, "long": 1590, "quick": 30}
    submissions = [Submission("train", name, most, f"-p {name}") for name, most in minutes.items()]
    assert slurm_problems(submissions, "sacct", "mine/config.yaml") == []
    slurm(accounts=False)
    assert slurm_problems([Submission("figure", "", 10**6, "")], "squeue", "mine/config.yaml") == []


@pytest.mark.parametrize(("accounts", "submission", "problem"), [
    (True, ("train", "gqu", 120, "-p gqu -t 120"),
     "Slurm refuses train: Invalid partition name specified (`sbatch --test-only -p gqu -t 120`); "
     "set slurm_partition to one of cpu, gpu, long, quick that has"),
    (True, ("train", "gpu", 300, "-p gpu"),
     "up to 300 minutes and partition gpu allows 240; set `set-resources: {train: {runtime: 240}}`"),
    (True, ("train", "long", 1591, "-p long"), "partition long allows 1590; "),
    (True, ("train", "quick", 31, "-p quick"), "partition quick allows 30; "),
    (False, ("train", "gpu", 1, ""), "keeps no accounts; set it to squeue"),
])  # fmt: skip
def test_each_problem_of_a_site_is_one_line_with_the_setting_to_change(slurm, accounts, submission, problem):
    slurm(accounts)
    (line,) = slurm_problems([Submission(*submission)], "sacct", "mine/config.yaml")
    assert problem in line and "\n" not in line and line.startswith("mine/config.yaml: ")


def test_a_missing_or_silent_scheduler_is_one_line(monkeypatch, slurm):
    slurm()
    monkeypatch.setattr(checklist, "_run", lambda command: (False, ""))
    assert "controller doesn't answer" in slurm_problems([], "sacct", "mine/config.yaml")[0]
    monkeypatch.setattr(checklist.shutil, "which", lambda name: None)
    absent = "sbatch, srun, squeue, sinfo: not found; run snakemake on a node"
    assert slurm_problems([], "sacct", "mine/config.yaml")[0].startswith(absent)


def test_a_results_folder_that_cannot_be_written_is_one_line(tmp_path):
    check_writable(tmp_path / "results" / "paper")
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    line = refused(lambda: check_writable(tmp_path / "file" / "paper"), "free space")
    assert line.startswith(f"{tmp_path / 'file' / 'paper'} can't be written (")


FOLDERS = "data", *(f"results{rest}" for rest in ("", "/demo", "/demo/tables", "/demo/logs"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_where_a_folder_belongs_is_one_line(tmp_path, folder):
    results = Results(settings_of(), root=str(tmp_path / "results"), data=str(tmp_path / "data"))
    assert in_the_way(results.folders) is None
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / folder).touch()
    line = in_the_way(results.folders)
    assert f"{folder} isn't a folder, and one belongs there: move it" in line and "\n" not in line


def test_a_missing_command_is_one_line():
    (line,) = command_problems("mkdir -p logs && qsub-of-nowhere -N {rule}")
    assert line.startswith("qsub-of-nowhere: not found; run snakemake on a node that may submit")
    assert "\n" not in line
    assert command_problems("cd logs && umask 027; QUEUE=gpu mkdir -p logs | cat;") == []
