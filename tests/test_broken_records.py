"""Invalid records: each run reports one line that names the record and the fault, and nothing is lost."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import records
from conftest import ROOT, refused, settings_of
from records import GONE, a, changed, committed_records

from relusym.errors import UserError
from relusym.records.fields import KINDS, fields_of, problem
from relusym.records.files import load_record, load_record_or_none, write_record
from relusym.records.results import Results

TRAIN, FLIP = records.train("cnn", 0), records.flip("cnn", 0)
WHOLE = {kind: {"train": TRAIN, "flip_merge": FLIP}.get(kind) or a(kind) for kind in KINDS}


# ---- invalid numbers and strings

ORBIT = "symmetries.horizontal_flip"
BEYOND = "exact_gcnn", "symmetries", "curves", "during_training", "by_layer", "identifiability"
BROKEN = [
    ("exact_gcnn", "accuracy.net", 5, "less than or equal to 1"),
    ("exact_gcnn", "accuracy.exact", -7, "greater than or equal to 0"),
    ("exact_gcnn", "accuracy.test_time", math.nan, "finite"),
    ("exact_gcnn", "accuracy.other", 2, "less than or equal to 1"),
    ("exact_gcnn", "accuracy.exact", GONE, "lacks the field 'accuracy.exact'"),
    ("exact_gcnn", "invariance_error.exact", -1, "greater than or equal to 0"),
    ("exact_gcnn", "parameters.exact", 0.5, "valid integer"),
    ("exact_gcnn", "representations", {}, "at least 1 item"),
    ("exact_gcnn", "representations.conv1.swapped", 3, "an even number, and at least one channel"),
    ("symmetries", f"{ORBIT}.accuracy.whole", 5, "less than or equal to 1"),
    ("symmetries", f"{ORBIT}.accuracy.net", math.nan, "finite"),
    ("symmetries", "symmetries", {}, "those of the settings"),
    ("symmetries", f"{ORBIT}.order", 1, "greater than or equal to 2"),
    ("symmetries", f"{ORBIT}.order", 4, "the order 2 of the horizontal_flip"),
    ("symmetries", f"{ORBIT}.similarity.conv1", 5, "less than or equal to 1"),
    ("invariance_errors", "invariance_error.crops", -1, "greater than or equal to 0"),
    ("invariance_errors", "accuracy.net", GONE, "lacks the field 'accuracy.net'"),
    ("by_layer", "similarity.conv1", -2, "greater than or equal to -1"),
    ("during_training", "epochs.0.similarity.conv1", 5, "less than or equal to 1"),
    ("during_training", "epochs.1.barrier", None, "by the accuracy, there is a barrier"),
    ("identifiability", "variants.activation.similarity", 5, "less than or equal to 1"),
    ("universe", "merged.3.mean", 0.91, r"by equation .4.|have another mean"),
    ("universe", "accuracy.0", 0.5, "of the accuracies, 3 nets have another mean"),
    ("universe", "accuracy", [0.9], "of the accuracies, 3 nets have another mean"),
    ("universe", "similarity.conv1", 5, "less than or equal to 1"),
    ("flip_merge", "similarity", {"conv1": 5}, "less than or equal to 1"),
    ("flip_merge", "barrier.halfway", GONE, "the accuracy 'halfway' has none"),
    ("pair_merge", "absolute_barrier.repaired", GONE, "the accuracy 'repaired' has none"),
    ("flip_merge", "permutations", {}, "at least 1 item"),
    ("train", "data_wait_share", "a lot", "valid number"),
    ("theory", "measured", {}, "at least 1 item"),
    *((kind, f"inputs.{key}", GONE, f"allowed are inputs with '{key}'")
     for kind in ("flip_merge", "pair_merge", *BEYOND) for key in ("data", "source", "checkpoints")),
    *(("train", f"inputs.{key}", GONE, f"allowed are inputs with '{key}'") for key in ("data", "source")),
    ("pair_merge", "inputs.checkpoints.1", None, "the checkpoint of every net"),
    *(("train", key, "a\nb", "text of one line") for key in ("reason", "inputs.source", "code.device")),
    ("by_layer", "barrier_up_to.classifier", 1.5, "less than or equal to 1"),
    ("by_layer", "equivariance_error.conv1", math.inf, "finite"),
    ("by_layer", "barrier_up_to", {}, "at least 1 item"),
    ("curves", "curve.plain.accuracy.1", "0.5", "valid number"),
    ("curves", "curve.plain.loss.1", GONE, "20 and 21 points"),
    ("curves", "curve.repaired.loss.1", -0.1, "greater than or equal to 0"),
    ("curves", "curve.repaired", GONE, "lacks the field 'curve.repaired'"),
    ("during_training", "epochs.1.accuracy", -7, "greater than or equal to 0"),
    ("during_training", "epochs.0", GONE, "those of the settings"),
    ("universe", "merged.3.barrier.universe", 0.5,
     "by equation .4. of the accuracies, it is 0.1 for 'universe'"),
    ("universe", "merged.3", GONE, "the counts of the settings"),
    ("universe", "seeds", [0, 1], "one seed per checkpoint"),
    ("identifiability", "variants.towers", GONE, "those of the settings"),
    ("identifiability", "variants.activation.channels", 0, "greater than or equal to 1"),
    ("identifiability", "variants.activation.accuracy.repaired", 0.3, r"equation \(4\)"),
    ("theory", "holds", "yes", "valid boolean"),
    ("theory", "measured", {"defect": "none"}, "valid number"),
    ("flipped_training", "runs.float64.loss.0", GONE, "as many points as there are steps"),
    ("flipped_training", "paths.net.0", [1.0, 2.0, 3.0], "at most 2 items"),
    *(("train", "seed", seed, "valid integer|greater than") for seed in (True, 0.0, "0", -1, math.nan, [0])),
    *(("train", "model", model, "text of one line") for model in ("a\nb", "a\0", "a\u2028")),
    ("train", "history.0.loss", math.inf, "finite"),
    ("train", "history", [[]], "valid object|valid dictionary"), ("train", "history", {}, "valid list"),
    ("train", "history.0.accuracy", [0.5], "valid number"),
    ("train", "outputs.checkpoint", GONE, r"lacks the field 'outputs\.checkpoint'"),
    ("flip_merge", "outputs.filters", GONE, r"lacks the field 'outputs\.filters'"),
    ("pair_merge", "accuracy.net_2", GONE, r"lacks the field 'accuracy\.net_2'"),
    ("train", "accuracy", 17, "accuracy: 17 given; allowed is less than or equal to 1"),
    ("train", "accuracy", -1, "accuracy: -1 given; allowed is greater than or equal to 0"),
    ("train", "accuracy", True, "accuracy: True given; allowed is a valid number"),
    ("train", "accuracy", "0.5", "accuracy: '0.5' given; allowed is a valid number"),
    ("train", "accuracy", math.nan, "accuracy: nan given; allowed is a finite number"),
    ("train", "status", "fine",
     "status: 'fine' given; allowed is 'ok', 'diverged', 'degenerate' or 'absent'"),
    ("train", "outputs.checkpoint", "0x1", r"outputs\.checkpoint: '0x1' given; "),
    ("train", "cost.job_seconds", "long", r"cost\.job_seconds: 'long' given; allowed is a valid number"),
    ("train", "cost.job_seconds", -4.0, r"cost\.job_seconds: -4\.0 given; allowed"),
    ("flip_merge", "accuracy", None, "accuracy: None given; allowed is a valid object"),
    ("flip_merge", "permutations.conv1", [0, 0],
     r"permutations\.conv1: \[0, 0\] given; allowed is each of 0 to 1 once"),
    ("flip_merge", "permutations.conv1", [1, 2], r"permutations\.conv1: \[1, 2\] given; allowed"),
    ("flip_merge", "permutations.conv1", [], r"permutations\.conv1: \[\] given; allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value", "allowed"), BROKEN)
def test_an_invalid_record_of_any_kind_is_named_in_one_line_with_what_to_do(
    kind, path, value, allowed, tmp_path
):
    record = changed(WHOLE[kind] if kind in ("train", "flip_merge") else a(kind), path, value)
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "settings.json").write_text(json.dumps(record["settings"]), encoding="utf-8")
    line = refused(lambda: load_record(tmp_path / "record.json"), match=allowed)
    assert line.startswith(f"record {tmp_path}") and line.endswith("delete it, and it is made again")
    assert len(line) < 400 + len(str(tmp_path))
    with pytest.raises(ValueError, match=allowed):
        write_record(tmp_path / "other.json", record)
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("kind", WHOLE)
def test_every_missing_field_of_a_record_is_named(tmp_path, kind):
    path, whole = tmp_path / "record.json", WHOLE[kind]
    write_record(path, whole)
    assert load_record(path) == whole
    fields = [field for each in fields_of(whole) for field in each.model_fields.items()]
    needed = dict.fromkeys(["kind", *(name for name, field in fields if field.is_required())])
    assert {"settings", "cost"} < {*needed}
    for field in needed:
        damaged = {key: value for key, value in whole.items() if key != field}
        with pytest.raises(ValueError, match=rf"lacks the field '{field}'"):
            write_record(path, damaged)
        path.write_text(json.dumps(damaged), encoding="utf-8")
        complaint = rf"record\.json lacks the field '{field}'.*: delete it, and it is made again$"
        if field == "settings":
            complaint = r"record\.json has no settings\.json beside it"
            path.with_name("settings.json").unlink()
        refused(lambda: load_record(path), match=complaint)
        write_record(path, whole)


def test_every_kind_has_its_own_schema_that_its_records_meet():
    for kind, (header, body) in KINDS.items():
        assert all(problem(record) is None for record in committed_records(kind)) and committed_records(kind)
        assert body or header.__name__ in ("Train", "Theory", "FlippedTraining")
        assert "lacks the field" in problem({"kind": kind})
        assert "(settings: None given; allowed" in problem(dict.fromkeys(a(kind)) | {"kind": kind})
    bodies = [body or header for header, body in KINDS.values()]
    assert len({*bodies}) == len(bodies)


def test_a_curve_has_the_points_of_its_settings_an_odd_number():
    record = a("curves")

    def shortened(points):
        short = {way: {key: values[: points - 1] + values[-1:] for key, values in line.items()}
                 for way, line in record["curve"].items()}  # fmt: skip
        return record | {"curve": short}

    assert "4 points; allowed are those of the settings, 21, an odd number" in problem(shortened(4))
    record["settings"] |= {"points": 4}
    assert "an odd number from 3 on" in problem(shortened(4))
    record["settings"] |= {"points": 3}
    three = shortened(3)
    assert problem(three) is None
    three["curve"]["plain"]["accuracy"][-1] += 0.1
    assert "the same endpoints" in problem(three)


def test_a_merge_that_is_left_out_needs_no_measurements(tmp_path):
    left_out = {"status": "left_out"}
    for record in (records.flip("cnn", 0, **left_out), records.pair("cnn", 0, "gcnn", 0, **left_out)):
        path = tmp_path / record["kind"] / "record.json"
        write_record(path, record)
        assert load_record(path) == record


def test_a_duplicate_key_is_refused_at_any_depth(tmp_path):
    path, text = tmp_path / "cnn-0.json", json.dumps(TRAIN)
    for key, once, twice in (
        ("seed", '"seed": 0,', '"seed": 0, "seed": 1,'), ("size", '"data": {', '"data": {"size": 3, '),
    ):  # fmt: skip
        assert once in text
        path.write_text(text.replace(once, twice, 1), encoding="utf-8")
        line = rf"is not valid JSON \(the key '{key}' occurs twice .*delete it"
        refused(lambda: load_record_or_none(path), match=line)


def test_every_committed_record_is_valid():
    """Including those written before there was a schema."""
    paths = [*(ROOT / "results").glob("*/records/*/*/[0-9]*.json")]
    assert paths
    for path in paths:
        load_record(path)


# ---- at the start of a run


def train(**changes):
    return {"train/cnn-0.json": TRAIN | changes}


def place(results, name):
    """The path of a job's record, named like train/cnn-0.json or theory/lemma_e_1.json, and its settings."""
    kind, _, file = name.removesuffix(".json").partition("/")
    if not file:
        return Path(results.folder) / "records" / name, None
    nets = [(net.rpartition("-")[0], int(net.rpartition("-")[2])) for net in file.split("--") if "-" in net]
    key = results.key(kind, *nets) if nets else results.statement(file)
    return Path(f"{results.folder}/records/{key}.json"), results.jobs[key].settings


def of_bytes(content):
    return {"train/cnn-0.json": lambda path: path.write_bytes(content)}


SPOILED = {  # what is in the place of a record, and how another record of the folder is refused
    "another's": (lambda path: path.write_text(json.dumps({"data": {"seed": 1}})), "with other settings"),
    "infinite": (lambda path: path.write_text('{"data": {"seed": Infinity}}'), "with other settings"),
    "list": (lambda path: path.write_text("[]"), "with other settings"),
    "half": (lambda path: path.write_text("{"), r"is not valid JSON \(Expecting"),
    "folder": (Path.mkdir, r"can't be read \(Is a directory\)"),
    "pipe": (os.mkfifo, r"can't be read \(Not a file\)"),
    "link to itself": (lambda path: path.symlink_to(path.name), None),  # a new file replaces it
}


@pytest.mark.parametrize(("spoil", "write_line"), SPOILED.values(), ids=SPOILED)
def test_settings_that_are_not_those_of_their_folder_are_named_and_nothing_is_written_beside(
    spoil, write_line, tmp_path
):
    results = Results(settings_of(seeds="0-1"), root=str(tmp_path / "results"))
    (path, settings), (other, _) = place(results, "train/cnn-0.json"), place(results, "train/cnn-1.json")
    write_record(path, TRAIN | {"settings": settings})
    path.with_name("settings.json").unlink()
    spoil(path.with_name("settings.json"))
    assert results.is_there(results.key("train", ("cnn", 0)))
    (line,) = results.broken.values()
    assert re.search(r"settings\.json .*: (give its folder the file back, or delete the f|make it)", line)
    if write_line:
        record = records.train("cnn", 1) | {"settings": settings}
        refused(lambda: write_record(other, record), "settings.json", match=write_line)
        assert not other.exists()


def test_a_file_with_another_notation_of_its_number_is_no_record_and_plans_nothing(tmp_path):
    results = Results(settings_of(), root=str(tmp_path / "results"))
    path, settings = place(results, "train/cnn-0.json")
    write_record(path, TRAIN | {"settings": settings})
    for name in ("0.01.json", "0.0.json", "0.٣.json", "00.json", "0.json.bak", ".0.part.json"):
        path.with_name(name).write_text("{}")
    key = results.key("train", ("cnn", 0))
    assert results.name(key) == key and results.is_there(key) and not results.broken


CNN, NO_JSON = r"train/cnn-\w{8}/0", r"cnn-\w{8}/0\.json is not valid JSON"
NO_KIND, UNREADABLE = r"cnn-\w{8}/0\.json lacks the field 'kind'", r"cnn-\w{8}/0\.json can't be read"
FILES = {
    "accuracy 17": (train(accuracy=17),
     rf"{CNN}\.json can't be right \(accuracy: 17 given; .*\): delete it, and it is made again$"),
    "null for an object": (train(settings=None),
     r"settings\.json can't be right \(it holds None\): give its folder the file back"),
    "other model": (train(model="gcnn"), rf"{CNN}\.json is of train/gcnn-\w{{8}}/0, not of {CNN}: give each"),
    "swapped": ({"train/cnn-0.json": records.train("cnn", 1), "train/cnn-1.json": records.train("cnn", 0)},
     rf"{CNN}\.json is of train/cnn-\w{{8}}/1, not of {CNN}: give each record its name back"),
    "pair the wrong way round": ({"pair_merge/cnn-0--gcnn-0.json": records.pair("gcnn", 0, "cnn", 0)},
     r"is of pair_merge/gcnn--cnn-\w{8}/0--0, not"),
    "other kind": ({"train/cnn-0.json": FLIP}, rf"is of flip_merge/cnn-\w{{8}}/0, not of {CNN}"),
    "other statement": ({"theory/lemma_e_1.json": WHOLE["theory"]},
     r"is of theory/example_2_1-\w{8}/0, not of theory/lemma_e_1-\w{8}/0"),
    "no JSON": (of_bytes(b'{"kind": "train", '), rf"{NO_JSON} \(.*\): delete it, and it is made again$"),
    "empty": (of_bytes(b""), NO_JSON), "bytes": (of_bytes(b"\x00\x01"), NO_JSON),
    "not UTF-8": (of_bytes(b'"\xe9"'), NO_JSON), "UTF-16": (of_bytes("{}".encode("utf-16")), NO_JSON),
    "a mark before it": (of_bytes(b"\xef\xbb\xbf{}"), NO_JSON), "two": (of_bytes(b"{}{}"), NO_JSON),
    "number of 5000 digits": (of_bytes(b'{"seed": ' + b"9" * 5000 + b"}"), NO_JSON),
    "a terabyte": ({"train/cnn-0.json": lambda path: (path.touch(), os.truncate(path, 10**12))},
     rf"{UNREADABLE} \(File too large\)"),
    "deeply nested": (of_bytes(b"[" * 100_000), rf"{NO_JSON} \(maximum recursion"),
    "no record": (of_bytes(b"[1, 2]"), NO_KIND), "null": (of_bytes(b"null"), NO_KIND),
    "no kind of record": ({"train/cnn-0.json": {"kind": "letter"}}, NO_KIND),
    "kind that is a list": ({"train/cnn-0.json": {"kind": []}}, NO_KIND),
    "folder": ({"train/cnn-0.json": Path.mkdir}, rf"{UNREADABLE} \(Is a directory\): "),
    "link to itself": ({"train/cnn-0.json": lambda path: path.symlink_to(path.name)},
     rf"{UNREADABLE} \(Too many levels"),
    "file for the records' folder": ({"train": Path.touch}, rf"{UNREADABLE} \(Not a directory\)"),
    "no settings": (of_bytes(json.dumps(TRAIN).encode()),
     r"cnn-\w{8}/0\.json has no settings\.json beside it: give its folder the file back"),
}  # fmt: skip


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.stat().st_size > 2**30 or path.read_bytes() for path in files}


@pytest.mark.parametrize(("files", "line"), FILES.values(), ids=FILES)
def test_at_a_start_a_broken_record_is_named_in_one_line_and_left_as_it_is(files, line, tmp_path):
    results = Results(settings_of(seeds="0-1"), root=str(tmp_path / "results"))
    for name, content in files.items():
        path, settings = place(results, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
            continue
        # the settings are those of its folder, unless they are the invalid part
        settings = settings if isinstance(content.get("settings", {}), dict) else content["settings"]
        path.with_name("settings.json").write_text(json.dumps(settings), encoding="utf-8")
        body = {key: value for key, value in content.items() if key != "settings"}
        path.write_text(json.dumps(body), encoding="utf-8")
    before = contents(tmp_path)
    try:
        there = {key: results.is_there(key) for key in results.jobs}
        message = next(iter(results.broken.values()))
        # broken records are left unchanged, and other jobs run
        assert [*there.values()].count(True) == len(results.broken)
    except UserError as error:  # a folder that can't be listed
        message = str(error)
        assert "Not a directory" in message and not results.broken
    assert contents(tmp_path) == before
    assert "\n" not in message and re.search(line, message), message
