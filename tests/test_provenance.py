from records import CODE, flip, pair, train

from relusym import cifar10
from relusym.findings import agreement, declared
from relusym.findings.tables import provenance


def record(kind="train", status="ok", source="CIFAR10", device="cpu x86_64", epochs=1, seconds=1800):
    inputs = {"data": cifar10.DIGEST} | ({"source": source} if source else {})
    made = {"kind": kind, "status": status, "inputs": inputs, "settings": {"epochs": epochs}}
    return made | {"code": CODE | {"device": device}, "cost": {"seconds": seconds}, "precision": "float32"}


def by_kind(records):
    kinds = {kind: [] for kind in declared()["provenance"].reads}
    for one in records:
        kinds[one["kind"]].append(one)
    return kinds


def made_of(records, *names, models=None):
    return provenance.frame(by_kind(records), {"made": dict.fromkeys(names, models)})


def test_a_table_has_a_row_for_each_kind_and_origin_of_its_records():
    records = [record(), record(), record(device="cuda T4"), record("flip_merge")]
    found = made_of(records, "table1", "table2")
    counted = found[["made", "kind", "device", "records", "hours"]].to_numpy().tolist()
    assert counted == [
        ["Table 1", "train", "cpu x86_64", 2, 1.0], ["Table 1", "train", "cuda T4", 1, 0.5],
        ["Table 2", "train", "cpu x86_64", 2, 1.0], ["Table 2", "train", "cuda T4", 1, 0.5],
        ["Table 2", "flip_merge", "cpu x86_64", 1, 0.5],
    ]  # fmt: skip


def test_other_settings_have_another_fingerprint_whatever_their_order():
    def fingerprint(*epochs):
        (found,) = made_of([record(epochs=n) for n in epochs], "table1").itertuples()
        return found.settings

    assert fingerprint(1, 2) == fingerprint(2, 1, 1) != fingerprint(1)


def test_what_was_left_out_is_counted_with_the_images_of_its_data():
    left_out = record("flip_merge", status="left_out", source=None)
    (found,) = made_of([record("flip_merge"), left_out], "table2").itertuples()
    assert (found.records, found.left_out, found.images) == (2, 1, "CIFAR10")


def test_a_record_without_images_and_status_has_a_row_all_the_same():
    theory = {"kind": "theory", "settings": {}, "code": CODE, "cost": {"seconds": 3600}}
    (found,) = made_of([theory, record()], "theory").itertuples()
    assert (found.records, found.left_out, found.images, found.hours) == (1, 0, "", 1.0)


def test_no_records_are_no_rows():
    assert len(made_of([], "table1")) == 0


def test_the_notes_of_a_table_name_data_records_and_code():
    records = by_kind([record(), record(), record("flip_merge", device="cuda T4")])
    first, *notes = agreement.notes(records, {"notes": ["of the config"]})
    assert first == "of the config"
    assert notes[:2] == ["Data: CIFAR10", "From 2 train and 1 flip_merge records"]
    assert notes[2:] == [
        "Made with relusym 0.1.0, torch 2.14.1, python 3.11, device cpu x86_64",
        "Made with relusym 0.1.0, torch 2.14.1, python 3.11, device cuda T4",
    ]
    assert agreement.notes({}, {}) == []


def test_tables_say_cifar10_for_its_content_and_doubt_what_only_its_label_says():
    copies = [record(source="my copy"), record(), record("flip_merge", status="left_out", source=None)]
    assert agreement.notes(by_kind(copies), {})[:1] == ["Data: CIFAR10"]
    assert set(made_of(copies, "table2")["images"]) == {"CIFAR10"}
    others = [made | {"inputs": made["inputs"] | {"data": "ab" * 32}} for made in copies[1:]]
    doubted = agreement.notes(by_kind(others), {})
    assert doubted[:3] == [
        "Data: CIFAR10?",
        "CIFAR10?: these aren't CIFAR10's images, or not in its order (their SHA-256 begins with abababab, that of "
        "CIFAR10's with cfd62e0d)",
        "From 1 train and 1 flip_merge records",
    ]
    assert set(made_of(others, "table2")["images"]) == {"CIFAR10?"}


def test_what_is_made_of_filters_comes_from_flip_merges_of_its_types():
    records = [flip("cnn", 0), flip("gcnn", 0), flip("gcnn", 1), train("gcnn", 0), pair("cnn", 0, "gcnn", 0)]
    found = made_of(records, "figure8", "zero_filters", models=["gcnn"])
    counted = found[["made", "kind", "records"]].to_numpy().tolist()
    assert counted == [["Figure 8", "flip_merge", 2], ["Zero-filters", "flip_merge", 2]]
    (claims,) = made_of(records, "claims", models=["cnn"]).itertuples()
    assert (claims.made, claims.kind, claims.records) == ("Claims", "flip_merge", 1)


def test_every_kind_that_a_table_or_figure_reads_is_accounted_for():
    for table, is_beyond in (("provenance", False), ("beyond_provenance", True)):
        findings = [finding for finding in declared().values() if finding.is_beyond == is_beyond]
        read = {kind for finding in findings for kind in finding.reads}
        assert read - {"filters"} == set(declared()[table].reads)
