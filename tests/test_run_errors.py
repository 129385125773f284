"""Invalid input to Snakemake, and obstacles to a run: the last line names them, before any job."""

import os
import re
import shutil
from contextlib import contextmanager, nullcontext

import pytest
import records
from conftest import Clone, config_of, obstruct, save_images, set_to_tiny
from PIL import Image

from relusym import cifar10, data
from relusym.config.settings import Settings
from relusym.records.files import write_record

# root may read and write everything; without these capabilities it obeys file permissions like other users
THESE = "-dac_override,-dac_read_search"
AS_OTHERS = "setpriv", f"--bounding-set={THESE}", f"--inh-caps={THESE}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A tiny clone; each case damages and repairs it."""
    return set_to_tiny(Clone(tmp_path_factory.mktemp("bad") / "clone"))


def by_others():
    by = AS_OTHERS if os.geteuid() == 0 else ()
    if by and shutil.which(by[0]) is None:
        pytest.skip(f"root may do everything, and there is no {by[0]} to take that from it")
    return by


@pytest.fixture
def ends_with(checkout):
    """A function that runs Snakemake and matches its last line to a pattern; it removes the results afterwards."""

    def run(line, *arguments, as_others=False):
        ended = checkout.snakemake(*arguments, by=by_others() if as_others else ())
        assert ended.returncode != 0
        assert re.search(f"^{line}", ended.stdout.strip().splitlines()[-1]), ended.stdout
        wrong = ("Traceback", "File ", "Exception", "Error in")
        assert not any(word in ended.stdout for word in wrong), ended.stdout
        assert not [*checkout.folder.glob("results/tiny/logs/*/*/*.log")]  # no job has started

    yield run
    results = checkout.folder / "results"
    for folder in (results, *results.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.rmtree(results, ignore_errors=True)


@contextmanager
def changed(clone, name, change):
    """The file of this name with other content; `change`: from its bytes, none if there is no file."""
    path = clone.folder / name
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(change(before))
    yield
    path.write_bytes(before) if before else path.unlink()


@contextmanager
def no_notes(clone):
    """A file in place of Snakemake's folder .snakemake."""
    path, aside = clone.folder / ".snakemake", clone.folder / "aside"
    if path.exists():
        path.rename(aside)
    path.touch()
    yield
    path.unlink()
    if aside.exists():
        aside.rename(path)


@contextmanager
def images(clone, side):
    """A folder of images with these sides."""
    for split in ("train", "test"):
        save_images(clone.folder / "images" / split / "cat", [Image.new("RGB", (side, side))] * 400)
    yield
    shutil.rmtree(clone.folder / "images")


FOLDER = {"source": "folder", "root": "images", "label": "mine"}
CNN = "models={cnn: {data: {dataset: cifar10, train_images: 300}}}"


def on_folder(**changes):
    """The options that train a type of CNN on images of a folder."""
    return "--config", f"cifar10={FOLDER | changes}", CNN, "pairs=[]"


def nothing_makes(name):
    return rf"error: nothing makes '{re.escape(name)}' at scale tiny"


OTHER_NET = "results/tiny/figures/filters/conv1-cnn-7.png"
OTHER_PAIR = "results/tiny/records/pair_merge/cnn--cnn-01234567/0--1.json"
DRY = "--dry-run"
RUNS = {
    "empty variable": ([DRY, "--config", "seeds="], "config error: seeds: no value given .is a shell variable"),
    "seeds 0_1": ([DRY, "--config", "seeds=0_1"], "config error: seeds: 0_1 given; allowed are seeds such as"),
    "seeds [0, 1_0]": ([DRY, "--config", "seeds=[0,1_0]"],
     r"config error: seeds: \[0,1_0\] given; allowed are seeds such as"),
    "option twice": ([DRY, "--config", "seeds=0", "-C", "device=cpu"],
     "config error: --config is given twice, and Snakemake reads the last alone; give it once, with all$"),
    "files twice": ([DRY, "--configfile", "config.yaml", "--configfiles", "config.yaml"],
     "config error: --configfile is given twice"),
    "two settings": ([DRY, "--config", "training={epochs: 0, batch_size: 0}"],
     "config error: training.batch_size: 0 given; allowed is at least 1$"),
    "target": ([DRY, "tabel2"], rf"{nothing_makes('tabel2')}; is it table2\? Targets are .*table2, .*claims"),
    "forced rule": ([DRY, "-R", "trian"], rf"{nothing_makes('trian')}; is it train\?"),
    "net of no seed": ([DRY, OTHER_NET], rf"{nothing_makes(OTHER_NET)}\. Targets are"),
    "pair that isn't asked for": ([DRY, OTHER_PAIR], nothing_makes(OTHER_PAIR)),
    "config file that isn't there": ([DRY, "--configfile", "mine.yaml"],
     r"config error: mine\.yaml can't be read \(No such file or directory\)$"),
    "GPU that isn't there": (["table1", "--config", "device=cuda:99"], "error: device: cuda:99 "),
    "no qsub": (["table1", "--profile", "profiles/pbs"], "  q(sub|del): not found; run snakemake on a node"),
}  # fmt: skip
SPOILED = {
    "key twice": (lambda clone: changed(clone, "config.yaml", lambda text: b"scale: demo\n" + text), [DRY],
     r"config error: config\.yaml, line \d+: the key 'scale' is in line 1 already; keep one$"),
    "no YAML": (lambda clone: changed(clone, "config.yaml", lambda text: b"a: [\n" + text), [DRY],
     r"config error: config\.yaml, line \d+: not valid YAML \("),
    "config file in Latin-1": (
     lambda clone: changed(clone, "mine.yaml", lambda _: "scale: tiny # Bökman".encode("latin-1")),
     [DRY, "--configfile", "mine.yaml"],
     r"config error: mine\.yaml, line 1: the byte 0xf6 isn't UTF-8; save the file as UTF-8$"),
    "notes of Snakemake": (no_notes, [DRY],
     r"error: \.snakemake isn't a folder, and one belongs there: move it away$"),
    "images of a folder": (lambda clone: images(clone, 16), ["table1", *on_folder()],
     r"error: scales/tiny\.yaml: models\.cnn\.image_size: mine has images of 16×16 pixels; vgg11 takes 32 to 63"),
}  # fmt: skip
CASES = {name: (nullcontext, *run) for name, run in RUNS.items()} | SPOILED


@pytest.mark.parametrize(("spoil", "arguments", "line"), CASES.values(), ids=CASES)
def test_snakemake_ends_with_one_line_before_any_job(checkout, ends_with, spoil, arguments, line):
    if "profiles/pbs" in arguments and shutil.which("qsub"):
        pytest.skip("there is a qsub here")
    with spoil(checkout):
        ends_with(line, *arguments)


def test_a_dry_run_says_above_its_list_of_jobs_that_the_run_would_be_stopped(checkout):
    with images(checkout, 16):
        dry = checkout.makes(DRY, "table1", *on_folder())
    line = "notice: this run would be stopped before its first job: scales/tiny.yaml: models.cnn.image_size: mine has"
    assert 0 <= dry.find(line) < dry.find("Planned: "), dry


@pytest.mark.parametrize("folder", [".snakemake", "results", "results/tiny/logs", "results/tiny/figures"])
def test_a_folder_that_cannot_be_written(checkout, ends_with, folder):
    path = checkout.folder / folder
    path.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mode
    path.chmod(0o555)
    try:
        reason = rf"\(\S*/{folder} takes no files: Permission denied\)"
        ends_with(rf"error: {folder}\S* can't be written {reason}", "figure10", as_others=True)
    finally:
        path.chmod(before)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
@pytest.mark.parametrize("file", ["logs/figure10.log", "figures/figure10.png"])
def test_a_folder_or_a_pipe_where_a_file_belongs(checkout, ends_with, kind, file):
    obstruct(checkout.folder / "results/tiny" / file, kind)
    ends_with(f"error: results/tiny/{file} isn't a file, and one belongs there: move it away$", "figure10")


UNREADABLE = {"folder": "Is a directory", "fifo": "Not a file", "rights": "Permission denied"}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_record_is_named_and_jobs_that_do_not_need_it_run(checkout, ends_with, kind):
    path, by = checkout.record("train", "cnn-0"), ()
    if kind == "rights":
        write_record(path, records.train("cnn", 0))
        path.chmod(0)
        by = by_others()
    else:
        obstruct(path, kind)
    name = path.relative_to(checkout.folder)
    line = f"record {name} can't be read ({UNREADABLE[kind]}): make it readable, or delete it"
    planned, run = checkout.snakemake(DRY, "table1", by=by), checkout.snakemake("figure10", by=by)
    for ended in (planned, run):
        assert ended.returncode == 0 and ended.stdout.count(f"notice: {line}\n") == 1, ended.stdout
        assert "Traceback" not in ended.stdout
    assert "3 train: cnn-1, gcnn-0, gcnn-1\n" in planned.stdout


# ---- while images are prepared


def prepare(checkout, **source):
    """The run that prepares the images of a folder, and their file."""
    run = config_of(checkout.folder)
    run["cifar10"] |= FOLDER | source
    run |= {"pairs": [], "models": {"cnn": {"data": {"dataset": "cifar10", "train_images": 300}}}}
    to = f"data/{Settings.of(run, [checkout.folder / 'scales']).prepared('cnn')}.safetensors"
    return checkout.snakemake(to, *on_folder(**source)), checkout.folder / to


def test_a_job_that_fails_on_its_input_reports_one_line_and_leaves_no_output(checkout):
    run, prepared = prepare(checkout, root="nowhere")
    line = "data folder nowhere is missing: set cifar10.root to the folder that holds train/ and test/"
    assert run.returncode != 0 and f"\nerror in rule prepare_data: {line}\n" in run.stdout
    assert "Traceback" not in run.stdout and not prepared.exists()
    assert prepared.with_suffix(".log").read_text(encoding="utf-8") == f"error: {line}\n"


def test_images_called_cifar10_only_by_their_label_are_doubted_when_prepared(checkout):
    with images(checkout, 32):
        run, prepared = prepare(checkout, label="CIFAR10")
    assert run.returncode == 0, run.stdout
    line = cifar10.doubt(data.digest(prepared))
    assert run.stdout.count(f"notice: {line}\n") == 1
    assert prepared.with_suffix(".log").read_text(encoding="utf-8").startswith(f"{line}\n")
