import copy
import json
import re

import numpy as np
import pytest
import records
import torch
from conftest import ROOT, refused, scale_of, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from records import SELECTION, a, changed, checkpoint, committed_records, flip, made, pair, several, train
from torch import nn

from relusym import checkpoint as checkpoints
from relusym.errors import UserError
from relusym.findings import declared, frames, selection
from relusym.findings.beyond import universe
from relusym.findings.beyond.curves import by_curve
from relusym.findings.frames import accuracies, once, read
from relusym.findings.tables import table4
from relusym.measuring.loading import named_checkpoint, trained_net
from relusym.records.fields import KINDS, problem
from relusym.records.files import load_record, write_record
from relusym.records.results import Results
from relusym.training.loop import State, Training
from relusym.whole_files import sha256

MERGES = "flip_merge", "pair_merge"
BEYOND = "exact_gcnn", "symmetries", "curves", "during_training", "by_layer"


FLIP = "symmetries.horizontal_flip"


@pytest.mark.parametrize("kind, path, by", [
    *((kind, f"barrier.{name}", 0.01) for kind in MERGES for name in ("halfway", "repaired")),
    *((kind, "absolute_barrier.repaired", 0.01) for kind in MERGES),
    *((kind, "accuracy.repaired", 0.01) for kind in MERGES), ("flip_merge", "accuracy.flipped", 0.01),
    ("symmetries", f"{FLIP}.barrier.whole", 0.01), ("symmetries", f"{FLIP}.barrier.pairwise_no_repair", 0.01),
    ("symmetries", f"{FLIP}.accuracy.orbit", 0.01), ("during_training", "epochs.4.barrier", 0.5),
    ("during_training", "epochs.4.absolute_barrier", -0.5),
    ("flipped_training", "largest_difference.float32", 0.1),
])  # fmt: skip
def test_a_number_that_does_not_follow_from_the_others_is_refused(kind, path, by):
    record = a(kind)
    value = record
    for key in path.split("."):
        value = value[int(key) if isinstance(value, list) else key]
    assert problem(changed(record, path, value + 1e-9)) is None  # rounding is accepted
    assert "can't be right" in problem(changed(record, path, value + by))


def test_an_orbit_of_four_has_the_barrier_of_its_mean():
    record = next(of for of in committed_records("symmetries") if "quarter_turn" in of["symmetries"])
    whole = record["symmetries"]["quarter_turn"]["barrier"]["whole"]
    path = "symmetries.quarter_turn.barrier.whole"
    assert "equation (4)" in problem(changed(record, path, whole + 0.01))


def test_a_merge_of_nets_of_accuracy_zero_has_no_barrier():
    nothing = dict.fromkeys(("net", "flipped", "halfway", "repaired"), 0.0)
    record = flip("cnn", 0, scores=nothing) | {"absolute_barrier": {"halfway": 0.0, "repaired": 0.0}}
    assert problem(record | {"barrier": {"halfway": None, "repaired": None}}) is None
    assert "there is none" in problem(record | {"barrier": {"halfway": None, "repaired": 0.0}})
    assert "equation (4)" in problem(flip("cnn", 0) | {"barrier": {"repaired": None}})


def test_a_pair_has_two_nets_with_a_checkpoint_each():
    record = pair("cnn", 0, "cnn", 1)
    assert problem(record) is None and "allowed are two different nets" in problem(record | {"seed_2": 0})
    lacking = {**record["inputs"], "checkpoints": record["inputs"]["checkpoints"][:1]}
    assert "one checkpoint per net, 2" in problem(record | {"inputs": lacking})
    same = {**record["inputs"], "checkpoints": lacking["checkpoints"] * 2}
    assert "all different" in problem(record | {"inputs": same})


def written(tmp_path, *records):
    """The records' files by kind, in the form in which a table reads them."""
    files = {}
    for number, record in enumerate(records):
        path = tmp_path / str(number) / f"{record['kind']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
        files.setdefault(record["kind"], []).append(str(path))
    return files


def test_the_training_and_the_merges_of_a_net_agree_on_its_accuracy_and_settings(tmp_path):
    merges = [flip("cnn", 0), pair("cnn", 0, "cnn", 1), pair("cnn", 1, "cnn", 0)]
    for number, merge in enumerate(merges):
        kinds, folder = ("train", merge["kind"]), tmp_path / str(number)
        folder.mkdir()
        read(kinds, written(folder, train("cnn", 0, 0.9), merge), {})
        read(kinds, written(folder, train("cnn", 0, 0.896), merge), {})  # an image or two may differ
        line = r"the train record cnn-0 has an accuracy of 0\.7 for cnn-0, the \w+ record cnn\S+ of 0\.9: delete the"
        refused(lambda: read(kinds, written(folder, train("cnn", 0, 0.7), merge), {}), match=line)  # noqa: B023
        other = train("cnn", 0, 0.9, settings=records.settings(epochs=9))
        files = written(folder / "other", other, merge)
        refused(lambda: read(kinds, files, {}), match=r"with other settings \(training\.epochs")  # noqa: B023


@pytest.mark.parametrize(
    "kind", [*MERGES, "identifiability", *(kind for kind in BEYOND if kind != "by_layer")]
)
def test_every_measurement_of_a_net_agrees_with_its_training_on_its_accuracy(kind, tmp_path):
    for merge in committed_records(kind):
        assert accuracies(merge)
        for (model, seed), accuracy in accuracies(merge):
            net = train(model, seed, accuracy, inputs=merge["inputs"], outputs={"checkpoint": "0" * 64})
            frames.check_accuracies({"train": [net], kind: [merge]})
            with pytest.raises(UserError, match=f"the train record {model}-{seed} has an accuracy"):
                frames.check_accuracies({"train": [net | {"accuracy": accuracy / 2}], kind: [merge]})


def test_a_set_of_merged_nets_counts_once_in_any_order():
    turned = [several("cnn", seeds) for seeds in ((0, 1, 2), (1, 2, 0), (2, 0, 1))]
    others = [several("cnn", (1, 2, 3)), several("gcnn", (0, 1, 2))]
    table = made(universe, SELECTION, universe=[*turned, *others])
    assert dict(zip(table["model"], table["n"], strict=True)) == {"cnn": 2, "gcnn": 1}


@pytest.mark.parametrize("kind", ["curves", "exact_gcnn", "symmetries"])
def test_measurements_beyond_the_paper_are_checked_against_the_trainings(kind, tmp_path):
    settings = settings_of(scale="laptop")
    results = Results(settings, root=str(ROOT / "results"))
    keys = selection.keys(results, kind)
    assert keys["train"] and "train" not in declared()[kind].reads
    files = {each: [results.record(key) for key in several] for each, several in keys.items()}
    inputs = read((kind,), files, {})
    assert {*inputs} == {kind}
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    net = load_record(files["train"][0])
    changed_one = written(wrong, net | {"accuracy": net["accuracy"] / 2})["train"]
    line = (
        rf"{net['model']}-{net['seed']}\b.* has an accuracy of .* of .*\b{net['accuracy'] / 2:g}\b.*: delete"
    )
    refused(lambda: read((kind,), files | {"train": [*changed_one, *files["train"][1:]]}, {}), match=line)


def test_a_checkpoint_belongs_to_one_net():
    copied = train("cnn", 1, outputs={"checkpoint": checkpoint("cnn", 0)})
    line = r"train record cnn-0 and the train record cnn-1 have one checkpoint \(636e6e2d\) for two nets, cnn-0 and "
    refused(lambda: frames.check_agreement({"train": [train("cnn", 0), copied]}), match=line)


def test_merges_of_a_net_use_one_checkpoint_even_where_its_training_is_not_read():
    other = flip("cnn", 0, matching="weight")
    other["inputs"] = other["inputs"] | {"checkpoints": ["c" * 64]}
    line = "was made from another checkpoint"
    refused(lambda: frames.check_agreement({"flip_merge": [flip("cnn", 0), other]}), match=line)


@pytest.mark.parametrize("name", ["cnn-1.safetensors", "gcnn-0.safetensors", "cnn-0a1b2c3d/1.safetensors"])
def test_filters_of_another_net_than_in_their_files_name_are_refused(name, tmp_path):
    about = {"kind": "filters", "status": "left_out", "reason": "x", "model": "cnn", "seed": 0}
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    checkpoints.save_arrays(path, {}, about)
    line = r"holds the filters of cnn-0, not of the net in its name: delete it"
    refused(lambda: read(("filters",), {"filters": [str(path)]}, {}), match=line)
    for right in ("cnn-0.safetensors", "cnn-0a1b2c3d/0.safetensors", "cnn-0a1b2c3d/0.1.safetensors"):
        path = tmp_path / "right" / right
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save_arrays(path, {}, about)
        assert read(("filters",), {"filters": [str(path)]}, {})["filters"][0].seed == 0


def test_a_pair_counts_once_in_either_order():
    both = [pair("cnn", 0, "cnn", 1, 0.309), pair("cnn", 1, "cnn", 0, 0.309)]
    assert once(both) == both[:1] and once(both[::-1]) == both[1:]
    row = made(table4, train=[train("cnn", 0), train("cnn", 1)], pair_merge=both).iloc[0]
    assert row["n"] == 1 and row["barrier_mean"] == pytest.approx(0.309) and np.isnan(row["barrier_std"])
    left_out = [pair("cnn", 0, "cnn", 1, status="left_out"), pair("cnn", 1, "cnn", 0, status="left_out")]
    assert made(table4, pair_merge=left_out).iloc[0]["left_out"] == 1
    by_weight = pair("cnn", 1, "cnn", 0, 0.5, matching="weight")
    others = [pair("cnn", 0, "cnn_inv", 0), pair("cnn", 1, "cnn_inv", 0), by_weight]
    assert once([*both, *others]) == [both[0], *others]  # other nets and another matching count separately
    apart = [both[0], pair("cnn", 1, "cnn", 0, 0.32)]
    line = r"cnn-0--cnn-1 has a barrier of 0\.309, .*cnn-1--cnn-0, .*same nets, of 0\.32"
    refused(lambda: once(apart), match=line)


def test_a_curve_between_two_nets_counts_once():
    paths = sorted((ROOT / "results/laptop/records/curves").rglob("[0-9]*.json"))
    curve = next(of for of in map(load_record, paths) if "model_1" in of)
    swapped = {"1": "2", "2": "1"}
    swapped = [(f"{key}_{i}", f"{key}_{j}") for key in ("model", "seed") for i, j in ("12", "21")]
    back = curve | {first: curve[other] for first, other in swapped}
    assert len(by_curve([curve, back])) == len(by_curve([curve])) == 2  # ways


@pytest.mark.parametrize(("seeds", "pairs"), [("0", 0), ("0-1", 1), ("0-2", 3), ("0-3", 4)])
def test_the_seeds_of_a_type_are_paired_once_each(seeds, pairs):
    changes = {"seeds": seeds, "pairs": [["cnn", "cnn"], ["cnn", "gcnn"]], "beyond": {}}
    of_scale = settings_of(scale_of(ROOT, "demo") | changes)
    within = [pair for pair in of_scale.pairs if pair[0][0] == pair[1][0]]
    assert len(within) == pairs == len({frozenset(pair) for pair in within})
    assert len(of_scale.pairs) - pairs == len(of_scale.sections.seeds)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["ok", "left_out", "0" * 64, "cnn", "a\nb", {}, [], 0.5, 1.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
TABLES = ["table1", "table2", "table4", "matchings", *BEYOND, "theory", "beyond_claims", "provenance"]
FIGURES = ["figure3", "figure4", "curves_figure", "symmetries_figure"]


def places(value, path=()):
    """Every path of keys in a record, except in its settings, which planning compares with the config's."""
    if path == ("settings",):
        return
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in [*value][:12] if isinstance(value, dict) else range(min(len(value), 3)):
            yield from places(value[key], (*path, key))


@pytest.mark.slow(seconds=30)
@settings(max_examples=150)
@given(st.sampled_from([*KINDS]), st.data())
def test_a_record_of_any_content_is_refused_in_one_line_or_tabulated(kind, data):
    record = copy.deepcopy(data.draw(st.sampled_from(committed_records(kind))))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([*places(record)] or [("kind",)]))
        place = record
        for key in path[:-1]:
            place = place[key]
        what = data.draw(st.sampled_from(["delete", "replace", "add"]))
        if what == "delete":
            del place[path[-1]]
        elif what == "replace":
            place[path[-1]] = data.draw(JSON)
        elif isinstance(place, dict):
            key = data.draw(st.sampled_from(["model", "seed", "model_1", "seed_2", "x", "a\nb"]))
            place[key] = data.draw(JSON)
    if wrong := problem(record):
        assert "\n" not in wrong
        return
    models = [of for key in ("model", "model_1", "model_2") if isinstance(of := record.get(key), str)]
    about = {"models": models, "pairs": [models] if len(models) == 2 else [], "names": {}, "descriptions": {}}
    about |= {"notes": [], "matchings": ["activation"], "made": {}}
    for name in (*TABLES, *FIGURES):
        reads, module = declared()[name].reads, declared()[name].load()
        if kind in reads:
            inputs = {each: [record] if each == kind else [] for each in reads}
            try:
                getattr(module, "frame", getattr(module, "draw", None))(inputs, about)
                getattr(module, "notes", frames.notes)(inputs, about)
                frames.check_accuracies(inputs)
            except UserError as error:
                assert "\n" not in str(error)


def test_a_run_names_each_broken_record_and_makes_everything_that_does_not_need_it(committed):
    broken = committed.record("flip_merge", "gcnn-1")
    broken.write_text("{}", encoding="utf-8")
    name = str(broken.relative_to(committed.folder))
    line = f"record {name} lacks the field 'kind'"
    output = committed.makes("--dry-run", "table1")
    assert f"notice: {line}" in output and "Error" not in output
    (committed.folder / "results/tiny/tables/table1.csv").unlink()
    output = committed.fails("table1", "table2", "table4")
    again = ": delete it, and it is made again\n"
    assert re.search(rf"error in rule table2: {re.escape(line)}.*{again}", output)
    assert (committed.folder / "results/tiny/tables/table1.csv").exists() and broken.read_text() == "{}"
    assert "error in rule table4" not in output and committed.snakemake("status").returncode == 0
    broken.unlink()
    assert "flip_merge gcnn 1" in committed.planned("table2")


SETTINGS = {"network": {"architecture": "vgg11", "width": 1 / 32}, "symmetry": "horizontal_flip"}
ABOUT = {"model": "cnn", "seed": 0, "settings": SETTINGS, "classes": 10}


def header(metadata):
    """A safetensors file without tensors, with this text as the header's metadata."""
    text = json.dumps({"__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


CONTENTS = {
    "NaN weights": ({"conv1.weight": torch.full((2,), torch.nan)},
     "cnn-0.safetensors has weights that aren't finite numbers, in conv1.weight"),
    "infinite weights": ({"conv1.weight": torch.full((2,), torch.inf)}, "has weights that aren't finite numbers"),
    "another net": ({"conv1.weight": torch.ones(2)},
     "doesn't hold a net of this project: delete it, and it is"),
    "header that is no JSON": (header({"relusym": "{"}), "was not written by this project: delete it, and"),
    "header of another project": (header({"relusym": "[1]"}), "was not written by this project"),
    "broken header": (b'\x10\0\0\0\0\0\0\0{"broken": \n\n', "is truncated or not a safetensors file ("),
    "empty": (b"", "is truncated or not a safetensors file"),
}  # fmt: skip


def test_the_state_of_another_training_is_refused(tmp_path):
    path, net = tmp_path / "cnn-0.safetensors", nn.Linear(2, 3)
    its = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    line = r"cnn-0\.safetensors isn't the state of this training: delete it, and it starts over"
    others = {"net.weight": torch.ones(9)}, {"history": []}
    for tensors, about in (({}, {}), (net.state_dict(), {"status": "ok"}), others, (its, {"scaler": {}})):
        checkpoints.save(path, tensors, about)
        refused(State(path, Training(net), None, None).restore, match=line)


@pytest.mark.parametrize(("content", "line"), CONTENTS.values(), ids=CONTENTS)
def test_an_invalid_checkpoint_is_refused_in_one_line(content, line, tmp_path):
    path, record = tmp_path / "cnn-0.safetensors", tmp_path / "cnn-0.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        checkpoints.save(path, content, ABOUT)
    write_record(record, records.train("cnn", 0, settings=SETTINGS, outputs={"checkpoint": sha256(path)}))
    before = path.read_bytes(), record.read_bytes()
    refused(lambda: trained_net(path, record, SETTINGS, torch.device("cpu")), "cnn-0.safetensors", line)
    assert (path.read_bytes(), record.read_bytes()) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": "gcnn"}])
def test_a_checkpoint_whose_header_names_another_net_than_its_record_is_refused(change, tmp_path):
    path, record = tmp_path / "cnn-0.safetensors", tmp_path / "cnn-0.json"
    for about in (ABOUT, ABOUT | change):
        checkpoints.save(path, {}, about)
        write_record(record, records.train("cnn", 0, settings=SETTINGS, outputs={"checkpoint": sha256(path)}))
        if about == ABOUT:
            assert named_checkpoint(path, record, SETTINGS, "cpu")[1] == about
    ((key, value),) = change.items()
    line = f"is of {key} {value}, and"
    refused(lambda: named_checkpoint(path, record, SETTINGS, "cpu"), line, ": delete both")
