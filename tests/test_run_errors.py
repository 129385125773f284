"""What a user can give Snakemake that can't be: one line, the last of a run that ends before its first job."""

import json
import os
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import records
from conftest import Clone, config_of, set_to_tiny
from PIL import Image

from relusym import cifar10, data
from relusym.config.settings import Settings

TRAIN = records.train("cnn", 0)
NEEDS_A_NUMBER = "given; allowed is a whole number"


class Run(NamedTuple):
    """A run that can't be.

    Attributes:
        spoil: what is wrong with the checkout; a function of it, which returns how to mend it.
        given: on the command line.
        told: a pattern in the last line.
        by: what runs it; None: as the user is.
    """

    spoil: Callable[[Clone], Callable[[], Any]]
    given: list[str]
    told: str
    by: list[str] | None = None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A tiny clone; each case spoils it and mends it again."""
    return set_to_tiny(Clone(tmp_path_factory.mktemp("bad") / "clone"))


def nothing(clone):
    return lambda: None


def config(change):
    """Other bytes of config.yaml."""

    def spoil(clone):
        path = clone.folder / "config.yaml"
        before = path.read_bytes()
        path.write_bytes(change(before))
        return lambda: path.write_bytes(before)

    return spoil


def mine(content):
    """A config file of the user's own."""

    def spoil(clone):
        path = clone.folder / "mine.yaml"
        path.write_bytes(content)
        return path.unlink

    return spoil


def no_notes(clone):
    """A file where Snakemake keeps its notes."""
    path, aside = clone.folder / ".snakemake", clone.folder / "aside"
    if path.exists():
        path.rename(aside)
    path.touch()

    def mend():
        path.unlink()
        if aside.exists():
            aside.rename(path)

    return mend


def rights(where, mode):
    """A file that is there, or a folder, with other rights."""

    def spoil(clone):
        path = clone.folder / (where(clone) if callable(where) else where)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(TRAIN), encoding="utf-8")
        else:
            path.mkdir(exist_ok=True)
        before = path.stat().st_mode
        path.chmod(mode)

        def mend():
            path.chmod(before)
            shutil.rmtree(clone.folder / "results", ignore_errors=True)

        return mend

    return spoil


def tree(side):
    """A folder of images with these sides."""

    def spoil(clone):
        for split in ("train", "test"):
            (clone.folder / "images" / split / "cat").mkdir(parents=True)
            for i in range(400):
                Image.new("RGB", (side, side)).save(clone.folder / "images" / split / "cat" / f"{i}.png")
        return lambda: shutil.rmtree(clone.folder / "images")

    return spoil


DRY = ["--dry-run"]
MINE = {"source": "folder", "root": "images", "label": "mine"}
# root may read and write everything; without these capabilities it obeys files' rights as others do
AS_OTHERS = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]
RUNS = {
    "empty variable": Run(
        nothing, [*DRY, "--config", "seeds="], r"^config error: seeds: nothing given \(is a variable"
    ),
    "seeds 0_1": Run(
        nothing, [*DRY, "--config", "seeds=0_1"], "^config error: seeds: 0_1 given; allowed are seeds such as"
    ),
    "setting": Run(
        nothing, [*DRY, "--config", "threads=2.0"], rf"^config error: threads: 2.0 {NEEDS_A_NUMBER}$"
    ),
    "target": Run(
        nothing,
        [*DRY, "tabel2"],
        r"^error: nothing makes 'tabel2' at scale tiny; is it table2\? Targets are .*table2, .*claims",
    ),
    "forced rule": Run(
        nothing, [*DRY, "-R", "trian"], r"^error: nothing makes 'trian' at scale tiny; is it train\?"
    ),
    "net of no seed": Run(
        nothing,
        [*DRY, "results/tiny/figures/filters/conv1-cnn-7.png"],
        r"^error: nothing makes 'results/tiny/figures/filters/conv1-cnn-7\.png' at scale tiny\. Targets are",
    ),
    "pair that isn't asked for": Run(
        nothing,
        [*DRY, "results/tiny/records/pair_merge/cnn--cnn-01234567/0--1.json"],
        "^error: nothing makes 'results/tiny/rec",
    ),
    "key twice": Run(
        config(lambda text: b"scale: demo\n" + text),
        DRY,
        r"^config error: config\.yaml, line \d+: the key 'scale' stands in line 1 already; keep one$",
    ),
    "Latin-1": Run(
        config(lambda text: text + "# Bökman".encode("latin-1")),
        DRY,
        r"^config error: config\.yaml, line \d+: the byte 0xf6 isn't UTF-8; save the file as UTF-8$",
    ),
    "no YAML": Run(
        config(lambda text: b"a: [\n" + text), DRY, r"^config error: config\.yaml, line \d+: no YAML \("
    ),
    "config file that isn't there": Run(
        nothing,
        [*DRY, "--configfile", "mine.yaml"],
        r"^config error: mine\.yaml can't be read \(No such file or directory\)$",
    ),
    "config file in Latin-1": Run(
        mine("scale: tiny # Bökman".encode("latin-1")),
        [*DRY, "--configfile", "mine.yaml"],
        r"^config error: mine\.yaml, line 1: the byte 0xf6 isn't UTF-8; save the file as UTF-8$",
    ),
    "config file that is no YAML": Run(
        mine(b"scale: tiny\nseeds: [0\n"),
        [*DRY, "--configfile", "mine.yaml"],
        r"^config error: mine\.yaml, line \d: no YAML \(",
    ),
    "notes of Snakemake": Run(
        no_notes, DRY, r"^error: \.snakemake isn't a folder, and one belongs there: move it away$"
    ),
    "unreadable record": Run(
        rights(lambda clone: clone.path("records", "train", "cnn-0"), 0),
        DRY,
        r"^error: record results/tiny/records/train/cnn-\w{8}/0\.json can't be read \(Permission denied\): make",
        AS_OTHERS,
    ),
    "checkout that can't be written": Run(
        rights(".snakemake", 0o555),
        [*DRY, "figure10"],
        r"^error: \.snakemake can't be written \(Permission denied\)",
        AS_OTHERS,
    ),
    "GPU that isn't there": Run(
        nothing, ["table1", "--config", "device=cuda:99"], "^error: device: cuda:99 "
    ),
    "images of a folder": Run(
        tree(16),
        [
            "table1",
            "--config",
            f"cifar10={MINE}",
            "models={cnn: {data: {dataset: cifar10, train_images: 300}}}",
            "pairs=[]",
        ],
        r"^error: scales/tiny\.yaml: models\.cnn\.image_size: mine has images of 16×16 pixels; vgg11 takes 32 to 63",
    ),
    "no qsub": Run(
        nothing, ["table1", "--profile", "profiles/pbs"], "^  q(sub|del): not found; run snakemake on a node"
    ),
}


@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
def test_snakemake_ends_with_one_line_before_any_job(checkout, case):
    by = []
    if case.by and os.geteuid() == 0:
        by = case.by
        if shutil.which(by[0]) is None:
            pytest.skip(f"root may read everything, and there is no {by[0]} to take that from it")
    if "profiles/pbs" in case.given and shutil.which("qsub"):
        pytest.skip("there is a qsub here")
    mend = case.spoil(checkout)
    try:
        run = checkout.snakemake(*case.given, by=by)
        made = [
            path for path in checkout.folder.glob("results/tiny/*/*/*") if path.suffix in (".json", ".log")
        ]
    finally:
        mend()
    assert run.returncode != 0 and re.search(case.told, last_line(run)), run.stdout
    assert not any(word in run.stdout for word in ("Traceback", "File ", "Exception", "Error in")), run.stdout
    assert [path.name for path in made] in ([], ["cnn-0.json"])  # no job began


def last_line(run):
    return run.stdout.strip().splitlines()[-1]


def test_a_job_that_fails_on_its_input_tells_the_line_and_leaves_no_output(checkout):
    source = {**MINE, "root": "nowhere"}
    given = [
        "--config",
        f"cifar10={source}",
        "models={cnn: {data: {dataset: cifar10, train_images: 300}}}",
        "pairs=[]",
    ]
    config = config_of(checkout.folder)
    config["cifar10"] |= source
    config |= {"pairs": [], "models": {"cnn": {"data": {"dataset": "cifar10", "train_images": 300}}}}
    settings = Settings.of(config, [checkout.folder / "scales"])
    prepared = f"data/{settings.prepared('cnn')}.safetensors"
    run = checkout.snakemake(prepared, *given)
    assert run.returncode != 0
    told = "data folder nowhere is missing: set cifar10.root to the folder that holds train/ and test/"
    assert f"\nerror in rule prepare_data: {told}\n" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (checkout.folder / prepared).exists()
    log = (checkout.folder / prepared).with_suffix(".log")
    assert log.read_text(encoding="utf-8") == f"error: {told}\n"


def test_images_that_only_their_label_calls_cifar10_are_doubted_when_they_are_prepared(checkout):
    mend = tree(32)(checkout)
    source = MINE | {"label": "CIFAR10"}
    config = config_of(checkout.folder)
    config["cifar10"] |= source
    config |= {"pairs": [], "models": {"cnn": {"data": {"dataset": "cifar10", "train_images": 300}}}}
    folders = [checkout.folder / "scales"]
    to = checkout.folder / f"data/{Settings.of(config, folders).prepared('cnn')}.safetensors"
    models = "models={cnn: {data: {dataset: cifar10, train_images: 300}}}"
    given = "--config", f"cifar10={source}", models, "pairs=[]"
    try:
        run = checkout.snakemake(str(to.relative_to(checkout.folder)), *given)
    finally:
        mend()
    assert run.returncode == 0, run.stdout
    line = cifar10.doubt(data.digest(to))
    assert run.stdout.count(f"notice: {line}\n") == 1
    assert to.with_suffix(".log").read_text(encoding="utf-8").startswith(f"{line}\n")
