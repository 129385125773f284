"""A run in whose way something stands says so in a line, before any job."""

import os
import re
import shutil

import pytest
from conftest import Clone, set_to_tiny

# root may read and write everything; without these capabilities it obeys files' rights as others do
AS_OTHERS = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return set_to_tiny(Clone(tmp_path_factory.mktemp("start") / "clone"))


@pytest.fixture
def ends_with(checkout):
    """A function that runs Snakemake for a target and holds its only line to a pattern; results are gone afterwards."""

    def run(target, line, by=()):
        ended = checkout.snakemake(target, by=by)
        last = ended.stdout.strip().splitlines()[-1]
        assert ended.returncode == 1 and re.search(f"^error: {line}", last), ended.stdout
        assert not any(word in ended.stdout for word in ("Traceback", "Exception", "Error in")), ended.stdout

    (checkout.folder / "results").mkdir()
    yield run
    for folder in (checkout.folder / "results").rglob("*"):
        if folder.is_dir():
            folder.chmod(0o755)
    (checkout.folder / "results").chmod(0o755)
    shutil.rmtree(checkout.folder / "results")


@pytest.mark.parametrize("folder", ["results", "results/tiny/logs", "results/tiny/figures"])
def test_a_folder_that_can_not_be_written(checkout, ends_with, folder):
    by = AS_OTHERS if os.geteuid() == 0 else ()
    if by and shutil.which(by[0]) is None:
        pytest.skip(f"root may write everything, and there is no {by[0]} to take that from it")
    (checkout.folder / folder).mkdir(parents=True, exist_ok=True)
    (checkout.folder / folder).chmod(0o555)
    ends_with(
        "figure10", rf"{folder}\S* can't be written \(Permission denied\): free space, or run in a folder", by
    )


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("file", ["logs/figure10.log", "figures/figure10.png"])
def test_a_folder_or_a_pipe_where_a_file_belongs(checkout, ends_with, kind, file):
    path = checkout.folder / "results/tiny" / file
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    ends_with("figure10", f"results/tiny/{file} isn't a file, and one belongs there: move it away$")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_folder_or_a_pipe_where_a_record_belongs(checkout, ends_with, kind):
    path = checkout.record("train", "cnn-0")
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    ends_with(
        "table1",
        r"record results/tiny/records/train/cnn-\w+/0\.json can't be read \((Not a file|Is a directory)\)",
    )
