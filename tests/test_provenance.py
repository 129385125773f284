"""Where tables come from, by their records."""

from relusym.findings.provenance import provenance
from relusym.records import data_notes

CODE = {"relusym": "0.1.0", "torch": "2.14.1", "python": "3.11", "device": "cpu x86_64"}


def record(kind="train", status="ok", source="CIFAR10", device="cpu x86_64", epochs=1, seconds=1800):
    inputs = {"data": "00"} | ({"source": source} if source else {})
    made = {"kind": kind, "status": status, "inputs": inputs, "settings": {"epochs": epochs}}
    return made | {"code": CODE | {"device": device}, "cost": {"seconds": seconds}, "precision": "float32"}


def test_a_table_has_a_row_for_each_kind_and_origin_of_its_records():
    records = [record(), record(), record(device="cuda T4"), record("flip_merge")]
    found = provenance(records, {"Table 1": ["train"], "Table 2": ["train", "flip_merge"]})
    counted = found[["made", "kind", "device", "records", "hours"]].to_numpy().tolist()
    assert counted == [
        ["Table 1", "train", "cpu x86_64", 2, 1.0],
        ["Table 1", "train", "cuda T4", 1, 0.5],
        ["Table 2", "train", "cpu x86_64", 2, 1.0],
        ["Table 2", "train", "cuda T4", 1, 0.5],
        ["Table 2", "flip_merge", "cpu x86_64", 1, 0.5],
    ]


def test_other_settings_have_another_fingerprint_whatever_their_order():
    def fingerprint(*epochs):
        (found,) = provenance([record(epochs=n) for n in epochs], {"Table 1": ["train"]}).itertuples()
        return found.settings

    assert fingerprint(1, 2) == fingerprint(2, 1, 1) != fingerprint(1)


def test_what_was_left_out_is_counted_with_the_images_of_its_data():
    left_out = record("flip_merge", status="left_out", source=None)
    (found,) = provenance([record("flip_merge"), left_out], {"Table 2": ["flip_merge"]}).itertuples()
    assert (found.records, found.left_out, found.images) == (2, 1, "CIFAR10")


def test_a_record_without_images_and_status_has_a_row_all_the_same():
    theory = {"kind": "theory", "settings": {}, "code": CODE, "cost": {"seconds": 3600}}
    (found,) = provenance([theory, record()], {"Theory": ["theory"]}).itertuples()
    assert (found.records, found.left_out, found.images, found.hours) == (1, 0, "", 1.0)


def test_no_records_are_no_rows():
    assert len(provenance([], {"Table 1": ["train"]})) == 0


def test_the_notes_of_a_table_name_data_records_and_code():
    notes = data_notes([record(), record(), record("flip_merge", device="cuda T4")])
    assert notes[:2] == ["Data: CIFAR10", "From 2 train and 1 flip_merge records"]
    assert notes[2:] == [
        "Made with relusym 0.1.0, torch 2.14.1, python 3.11, device cpu x86_64",
        "Made with relusym 0.1.0, torch 2.14.1, python 3.11, device cuda T4",
    ]
    assert data_notes([]) == []
