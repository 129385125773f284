"""Where records come from: told below a table, and refused if it isn't the same for all of one table."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from relusym import cifar10
from relusym.errors import UserError
from relusym.findings import About, Inputs, Record
from relusym.findings.measurements import accuracies
from relusym.records.fields import images_of, nets_of

OF_NO_NETS = "filters", "flipped_training", "theory"
SAME_ACCURACY = 0.005  # one image of 200: by more, rounding on another device doesn't move it


def matching_of(record: Record) -> str:
    """By which matching a merge was made."""
    return record["settings"].get("merging", {}).get("matching", "activation")


def notes(inputs: Inputs, about: About) -> list[str]:
    """The lines below a table: `about["notes"]`, then the images, how many records, of which precision, code, device.

    The precision of trainings stands there if nets of several are in the table.
    """
    records = list(chain(*(found for kind, found in inputs.items() if kind != "filters")))
    doubts = {cifar10.doubt(of["inputs"]["data"]) for of in records if images_of(of) == f"{cifar10.NAME}?"}
    kinds = Counter(record["kind"] for record in records)
    made = {
        ", ".join(f"{what} {version}" for what, version in record["code"].items())
        for record in records
        if "code" in record
    }
    precisions = Counter(record["precision"] for record in inputs.get("train", ()) if record.get("precision"))
    mixed = " and ".join(
        f"{count} net{'s' * (count > 1)} in {precision}" for precision, count in sorted(precisions.items())
    )
    counted = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    return [
        *about.get("notes", []),
        *(f"Data: {images}" for images in sorted({*map(images_of, records)} - {None})),
        *sorted(doubts),
        *([f"From {counted} records"] if records else []),
        *([f"Trained: {mixed}"] if len(precisions) > 1 else []),
        *(f"Made with {what}" for what in sorted(made)),
    ]


def check_agreement(inputs: Inputs) -> None:
    """Refuse records that can't be averaged: of other data, of nets trained otherwise, of other checkpoints.

    Raises:
        UserError: two records for the same data set and image size (of generated images: number and seed, too) were
            made from images of other content; two records disagree on how a type is trained or merged; a merge was made
            from another checkpoint than the one that the net's train record, or another merge's, names; one checkpoint
            stands for two nets.
    """
    records = [record for kind in inputs if kind not in OF_NO_NETS for record in inputs[kind]]
    images, settings = {}, {}
    for record in records:
        if record["inputs"].get("data") is not None:
            first = images.setdefault(_prepared_from(next(_settings(record))[1].get("data", {})), record)
            if first["inputs"]["data"] != record["inputs"]["data"]:
                raise UserError(
                    f"the {_named(first)} was made from {_images(first)}, the {_named(record)} from "
                    f"{_images(record)}: delete the records of one of the two, and run again"
                )
        for key, given in _settings(record):
            first, wanted = settings.setdefault(key, (record, given))
            if difference := _difference(wanted, given):
                raise UserError(
                    f"the {_named(first)} and the {_named(record)} were made with other settings ({difference}): "
                    "run again, and the outdated one is made again"
                )
    hashes, nets = {}, {}
    for record in records:
        if record["kind"] == "train":
            named = [record["outputs"].get("checkpoint")]
        else:
            named = record["inputs"].get("checkpoints", ())
        for net, named_hash in zip(nets_of(record), named, strict=False):
            if not named_hash:
                continue
            first, wanted = hashes.setdefault(net, (record, named_hash))
            if named_hash != wanted:
                raise UserError(
                    f"the {_named(record)} was made from another checkpoint ({named_hash[:8]}) than the one in the "
                    f"{_named(first)} ({wanted[:8]}): run again, and it is made again"
                )
            first, its_net = nets.setdefault(named_hash, (record, net))
            if net != its_net:
                raise UserError(
                    f"the {_named(first)} and the {_named(record)} have one checkpoint ({named_hash[:8]}) for two "
                    f"nets, {its_net[0]}-{its_net[1]} and {net[0]}-{net[1]}: delete the record that is a copy, and it "
                    "is made again"
                )


def check_accuracies(inputs: Inputs) -> None:
    """Refuse records that give one net accuracies further apart than `SAME_ACCURACY`.

    Raises:
        UserError: two records do (named).
    """
    first: dict[Any, tuple[Record, float]] = {}
    for record in chain(*(inputs[kind] for kind in inputs if kind not in OF_NO_NETS)):
        for net, accuracy in accuracies(record):
            other, its_accuracy = first.setdefault(net, (record, accuracy))
            if abs(accuracy - its_accuracy) > SAME_ACCURACY + 1e-9:
                raise UserError(
                    f"the {_named(other)} has an accuracy of {its_accuracy:g} for {net[0]}-{net[1]}, the "
                    f"{_named(record)} of {accuracy:g}: delete the record that is wrong, and it is made again"
                )


def _prepared_from(data: dict[str, Any]) -> tuple[Any, ...]:
    """Of the settings of data those that go with one content of the images."""
    numbers = (
        ("train_images", "test_images", "seed", "invariant_to") if data.get("dataset") == "generated" else ()
    )
    return tuple(data.get(key) for key in ("dataset", "size", *numbers))


def _settings(record: Record) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What has to be equal in records of one table, by what it has to be equal for: first each type's training."""
    settings = record["settings"]
    yield from zip([model for model, _ in nets_of(record)], settings.get("trained", [settings]), strict=False)
    if record["kind"] != "train":
        key = (record["kind"], *(model for model, _ in nets_of(record)), matching_of(record))
        yield key, {name: value for name, value in settings.items() if name != "trained"}


def _difference(one: Any, other: Any, path: str = "") -> str | None:
    """In which setting the two differ: `training.epochs 3 and 4`. A net's seed may; an absent one is the default."""
    if isinstance(one, dict) and isinstance(other, dict):
        ignored = set() if path.startswith("data.") else {"seed"}
        common = [key for key in one if key in other and key not in ignored]
        found = (_difference(one[key], other[key], f"{path}{key}.") for key in common)
        return next(filter(None, found), None)
    return f"{path.removesuffix('.')} {one} and {other}" if one != other else None


def _named(record: Record) -> str:
    return f"{record['kind']} record {'--'.join(f'{model}-{seed}' for model, seed in nets_of(record))}"


def _images(record: Record) -> str:
    return f"{images_of(record) or 'images'} ({record['inputs']['data'][:8]})"
