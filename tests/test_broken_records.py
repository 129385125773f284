"""Records that can't be right: one line that names the record and what is wrong, at every start; nothing is lost."""

import json
import re
from pathlib import Path

import pytest
import records
from conftest import settings_of

from relusym.errors import UserError
from relusym.records.fields import fields_of
from relusym.records.files import read_record, write_record
from relusym.records.results import Results

TRAIN, FLIP, PAIR = records.train("cnn", 0), records.flip("cnn", 0), records.pair("cnn", 0, "gcnn", 0)
TRAIN, FLIP, PAIR = records.train("cnn", 0), records.flip("cnn", 0), records.pair("cnn", 0, "gcnn", 0)
THEORY = {
    "kind": "theory",
    "statement": "Lemma 2.2",
    "claim": "A.",
    "holds": True,
    "draws": 5,
    "tested": "B.",
    "largest_violation": 0.0,
    "counterfactual": "C.",
    "measured": {"defect": 0.0},
    "settings": {"seed": 0, "draws": 5},
    "cost": {"seconds": 1.0},
}
FIGURE3 = {
    "kind": "flipped_training",
    "settings": {},
    "inputs": {"data": records.DATA},
    "largest_difference": {"float64": 0.0, "float32": 0.0},
    "runs": {
        precision: {"loss": [1.0], "flipped_batches": [0.0, 0.0], "same_batches": [0.0, 0.1]}
        for precision in ("float64", "float32")
    },
    "paths": {name: [[0.0, 1.0], [0.5, 1.0]] for name in ("net", "flipped")},
    "cost": {},
}
WHOLE = {
    "train": TRAIN,
    "flip_merge": FLIP,
    "pair_merge": PAIR,
    "theory": THEORY,
    "flipped_training": FIGURE3,
}


def train(**changes):
    return {"train/cnn-0.json": TRAIN | changes}


def flip(**changes):
    return {"flip_merge/cnn-0.json": FLIP | changes}


def a_link_to_itself(path):
    path.symlink_to(path.name)


def place(results: Results, name: str) -> tuple[Path, dict | None]:
    """Where the record of a job lies, named such as train/cnn-0.json or theory/lemma_e_1.json; and its settings."""
    kind, _, file = name.removesuffix(".json").partition("/")
    if not file:
        return Path(results.folder) / "records" / name, None
    nets = [
        (model, int(seed))
        for model, _, seed in (net.rpartition("-") for net in file.split("--") if "-" in net)
    ]
    key = results.key(kind, *nets) if nets else results.statement(file)
    return Path(f"{results.folder}/records/{key}.json"), results.jobs[key].settings


CASES = {
    # records
    "accuracy 17": (
        train(accuracy=17),
        (
            r"train/cnn-\w{8}/0\.json can't be right \(accuracy: 17 given; allowed is less than or equal to 1\): "
            "delete it, and it is made again$"
        ),
    ),
    "accuracy -1": (train(accuracy=-1), r"\(accuracy: -1 given; allowed is greater than or equal to 0\)"),
    "accuracy true": (train(accuracy=True), r"\(accuracy: True given; allowed is a valid number\)"),
    "accuracy in quotes": (train(accuracy="0.5"), r"\(accuracy: '0.5' given; allowed is a valid number\)"),
    "status": (
        train(status="fine"),
        r"\(status: 'fine' given; allowed is 'ok', 'diverged', 'degenerate' or 'absent'\)",
    ),
    "null for an object": (train(settings=None), r"\(settings: None given; allowed is a valid object\)"),
    "null for a merge's accuracy": (
        flip(accuracy=None),
        r"\(accuracy: None given; allowed is a valid object\)",
    ),
    "hash": (train(outputs={"checkpoint": "0x1"}), r"\(outputs\.checkpoint: '0x1' given; "),
    "other model": (
        train(model="gcnn"),
        r"train/cnn-\w{8}/0\.json is of train/gcnn-\w{8}/0, not of train/cnn-\w{8}/0: give each",
    ),
    "other seed": (
        train(seed=1),
        r"train/cnn-\w{8}/0\.json is of train/cnn-\w{8}/1, not of train/cnn-\w{8}/0",
    ),
    "swapped": (
        {"train/cnn-0.json": records.train("cnn", 1), "train/cnn-1.json": records.train("cnn", 0)},
        r"train/cnn-\w{8}/0\.json is of train/cnn-\w{8}/1, not of train/cnn-\w{8}/0: give each record its name back",
    ),
    "pair the wrong way round": (
        {"pair_merge/cnn-0--gcnn-0.json": records.pair("gcnn", 0, "cnn", 0)},
        r"is of pair_merge/gcnn--cnn-\w{8}/0--0, not",
    ),
    "other kind": ({"train/cnn-0.json": FLIP}, r"is of flip_merge/cnn-\w{8}/0, not of train/cnn-\w{8}/0"),
    "other statement": (
        {"theory/lemma_e_1.json": THEORY},
        r"is of theory/lemma_2_2-\w{8}/0, not of theory/lemma_e_1-\w{8}/0",
    ),
    "no permutation": (
        flip(permutations={"conv1": [0, 0]}),
        r"\(permutations\.conv1: \[0, 0\] given; allowed is each of 0 to 1 once\)",
    ),
    "permutation from 1": (
        flip(permutations={"conv1": [1, 2]}),
        r"permutations\.conv1: \[1, 2\] given; allowed",
    ),
    "no JSON": (
        {"train/cnn-0.json": '{"kind": "train", '},
        r"train/cnn-\w{8}/0\.json is not valid JSON \(.*\): delete it, and it is made again$",
    ),
    "empty": ({"train/cnn-0.json": ""}, r"cnn-\w{8}/0\.json is not valid JSON"),
    "no record": ({"train/cnn-0.json": "[1, 2]"}, r"cnn-\w{8}/0\.json lacks the field 'kind'"),
    "null": ({"train/cnn-0.json": "null"}, r"cnn-\w{8}/0\.json lacks the field 'kind'"),
    "no kind of record": (
        {"train/cnn-0.json": {"kind": "letter"}},
        r"cnn-\w{8}/0\.json lacks the field 'kind'",
    ),
    "kind that is a list": ({"train/cnn-0.json": {"kind": []}}, r"cnn-\w{8}/0\.json lacks the field 'kind'"),
    "bytes": ({"train/cnn-0.json": "\x00\x01"}, r"cnn-\w{8}/0\.json is not valid JSON"),
    "not UTF-8": (
        {"train/cnn-0.json": lambda path: path.write_bytes(b'"\xe9"')},
        r"cnn-\w{8}/0\.json is not valid JSON",
    ),
    "deeply nested": (
        {"train/cnn-0.json": "[" * 100_000},
        r"cnn-\w{8}/0\.json is not valid JSON \(maximum recursion",
    ),
    "nan": (train(accuracy=float("nan")), r"\(accuracy: nan given; allowed is a finite number\)"),
    "folder for a record": (
        {"train/cnn-0.json": Path.mkdir},
        r"cnn-\w{8}/0\.json can't be read \(Is a directory\): ",
    ),
    "link to itself": (
        {"train/cnn-0.json": a_link_to_itself},
        r"cnn-\w{8}/0\.json can't be read \(Too many levels",
    ),
    "file for the records' folder": ({"train": ""}, r"cnn-\w{8}/0\.json can't be read \(Not a directory\)"),
    "cost in words": (
        train(cost={"job_seconds": "long"}),
        r"\(cost\.job_seconds: 'long' given; allowed is a valid number\)",
    ),
    "cost below 0": (train(cost={"job_seconds": -4.0}), r"\(cost\.job_seconds: -4\.0 given; allowed"),
    "records without their settings": (
        {"train/cnn-0.json": lambda path: path.write_text(json.dumps(TRAIN), encoding="utf-8")},
        r"cnn-\w{8}/0\.json has no settings\.json beside it: give its folder the file back",
    ),
}


@pytest.mark.parametrize(("files", "line"), CASES.values(), ids=CASES)
def test_a_record_that_can_not_be_right_is_named_in_one_line_and_left_as_it_is(files, line, tmp_path):
    results = Results(settings_of(seeds="0-1"), root=str(tmp_path / "results"))
    for name, content in files.items():
        path, settings = place(results, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            # those that its folder is of, unless it is they that can't be right
            settings = settings if isinstance(content.get("settings", {}), dict) else content["settings"]
            path.with_name("settings.json").write_text(json.dumps(settings), encoding="utf-8")
            body = {key: value for key, value in content.items() if key != "settings"}
            path.write_text(json.dumps(body), encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    try:
        there = {key: results.is_there(key) for key in results.jobs}
        message = next(iter(results.broken.values()))
        # they are left as they are, and the others go on
        assert [*there.values()].count(True) == len(results.broken)
    except UserError as error:  # of files that can't be read
        message = str(error)
        assert "can't be read" in message and not results.broken
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "\n" not in message and re.search(line, message), message


@pytest.mark.parametrize("kind", WHOLE)
def test_every_missing_field_of_a_record_is_named(tmp_path, kind):
    path = tmp_path / "record.json"
    write_record(path, WHOLE[kind])
    assert read_record(path) == WHOLE[kind]
    fields = [field for each in fields_of(WHOLE[kind]) for field in each.model_fields.items()]
    needed = dict.fromkeys(["kind", *(name for name, field in fields if field.is_required())])
    assert {"settings", "cost"} < {*needed}
    for field in needed:
        damaged = {key: value for key, value in WHOLE[kind].items() if key != field}
        with pytest.raises(ValueError, match=rf"lacks the field '{field}'"):
            write_record(path, damaged)
        path.write_text(json.dumps(damaged), encoding="utf-8")
        complaint = rf"record\.json lacks the field '{field}'"
        if field == "settings":
            complaint = r"record\.json has no settings\.json beside it"
            path.with_name("settings.json").unlink()
        with pytest.raises(UserError, match=complaint):
            read_record(path)
        write_record(path, WHOLE[kind])


def test_a_merge_that_is_left_out_needs_no_measurements(tmp_path):
    for record in (
        records.flip("cnn", 0, status="left_out"),
        records.pair("cnn", 0, "gcnn", 0, status="left_out"),
    ):
        path = tmp_path / record["kind"] / "record.json"
        write_record(path, record)
        assert read_record(path) == record


def test_a_record_never_holds_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError):
        write_record(tmp_path / "record.json", TRAIN | {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_every_committed_record_is_as_records_have_to_be():
    """What was written before there was a schema."""
    paths = [*(Path(__file__).parents[1] / "results").glob("*/records/*/*/[0-9]*.json")]
    assert paths
    for path in paths:
        read_record(path)
