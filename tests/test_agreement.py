import pytest
from conftest import refused
from records import SELECTION, flip, made, pair, settings, train

from relusym.findings import declared
from relusym.findings.agreement import notes
from relusym.findings.beyond import matchings
from relusym.findings.frames import read
from relusym.findings.tables import table1
from relusym.records.files import write_record

OTHER = {"data": "0b" * 32, "source": "my copy"}
COMPLAINTS = {
    "data of a net": (
        {"train": [train("cnn", 0), train("gcnn", 1, inputs=OTHER)]},
        r"train record cnn-0 was made from generated shapes \(da7ada7a\), the train record gcnn-1 from my copy "
        r"\(0b0b0b0b\): delete .*run again",
    ),
    "data of a merge": (
        {"train": [train("cnn", 0)], "flip_merge": [flip("cnn", 0) | {"inputs": OTHER}]},
        "the flip_merge record cnn-0 from my copy",
    ),
    "training": (
        {"train": [train("cnn", 0), train("cnn", 1, settings=settings(epochs=4))]},
        r"cnn-0 and the train record cnn-1 were made with other settings \(training.epochs 3 and 4\): run again",
    ),
    "training of a merged net": (
        {"train": [train("cnn", 0, settings=settings(width=0.5))], "flip_merge": [flip("cnn", 1)]},
        "network.width 0.5 and 0.25",
    ),
    "merging": (
        {"flip_merge": [flip("cnn", 0), flip("cnn", 1) | {"settings": {"merging": {"images": 7}}}]},
        "merging.images 500 and 7",
    ),
    "checkpoint": (
        {"train": [train("cnn", 0, outputs={"checkpoint": "c" * 64})], "flip_merge": [flip("cnn", 0)]},
        r"flip_merge record cnn-0 was made from another checkpoint \(636e6e2d\) than the one in the train record "
        r"cnn-0 \(cccccccc\): run again, and it is made again",
    ),
    "checkpoint of a pair": (
        {"train": [train("cnn", 1, outputs={"checkpoint": "c" * 64})],
         "pair_merge": [pair("cnn", 0, "cnn", 1)]},
        "pair_merge record cnn-0--cnn-1 was made from another checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", COMPLAINTS)
def test_records_that_do_not_go_together_are_refused_in_one_line(what):
    records, complaint = COMPLAINTS[what]
    findings = (declared()[name] for name in ("table1", "table2", "table4", "matchings"))
    tables = [finding.load() for finding in findings if set(records) <= set(finding.reads)]
    assert matchings in tables
    for table in tables:
        refused(lambda: made(table, SELECTION | {"matchings": ["activation"]}, **records), match=complaint)  # noqa: B023


def test_records_that_go_together_are_not_refused():
    unlike = [
        train("cnn", 0),
        train(
            "cnn", 1, settings=settings() | {"seed": 1, "precision": "float32"}
        ),  # an absent key is the default
        train("gcnn", 0, settings=settings(epochs=4)),  # another type
        train("pgcnn", 0, settings=settings(size=33), inputs=OTHER),  # prepared at another size
        train("pgcnn", 1, None, "absent", settings=settings(size=33), inputs={"data": None}, outputs={}),
    ]
    assert made(table1, train=unlike)["n"].sum() == 4


def test_a_table_takes_the_records_of_its_types_alone(tmp_path):
    paths = []
    for record in (train("cnn", 0), train("old", 0), train("gcnn", 0)):
        paths.append(str(tmp_path / f"{record['model']}.json"))
        write_record(paths[-1], record)
    files = {"train": paths, "flip_merge": []}
    for about in ({"models": ["cnn"]}, {"models": {"cnn": {}}}, {"pairs": [("cnn", "cnn")]}):
        found = read(("train", "flip_merge"), files, about)
        assert [record["model"] for record in found["train"]] == ["cnn"] and found["flip_merge"] == []
    assert len(read(("train",), {"train": paths}, {"notes": []})["train"]) == 3


def test_that_nets_of_one_table_were_trained_in_several_precisions_is_told_below_it():
    precisions = "float32", "bfloat16", "bfloat16", None
    nets = [train("cnn", seed, precision=precision) for seed, precision in enumerate(precisions)]
    (line,) = [note for note in notes({"train": nets}, SELECTION) if "float" in note]
    assert line == "Trained: 2 nets in bfloat16 and 1 net in float32"
    assert not [note for note in notes({"train": nets[1:]}, SELECTION) if "float" in note]
