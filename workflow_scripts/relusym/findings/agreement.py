"""Where records come from: stated below a table, and refused if it isn't the same for all of one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from relusym import cifar10
from relusym.errors import UserError
from relusym.findings import Inputs, Record, Selection
from relusym.records.fields import images_of, nets_of

NO_NETS = "filters", "flipped_training", "theory"  # kinds
SAME_ACCURACY = 0.005  # one image of 200: by more, rounding on another device doesn't move it
FAR_BELOW_ZERO = -0.05  # a barrier
ACCURACIES = {  # by kind, those of the nets as they were trained; of a line, of its ends
    "train": lambda record: [record["accuracy"]],
    "flip_merge": lambda record: [record["accuracy"]["net"]],
    "exact_gcnn": lambda record: [record["accuracy"]["net"]],
    "pair_merge": lambda record: [record["accuracy"][net] for net in ("net_1", "net_2")],
    "curves": lambda record: [record["curve"]["plain"]["accuracy"][end] for end in (0, -1)],
    "during_training": lambda record: [record["epochs"][-1]["accuracy"]],
    "universe": lambda record: record["accuracy"],
    "symmetries": lambda record: [each["accuracy"]["net"] for each in record["symmetries"].values()],
}
REASONS = {"degenerate": "its accuracy is no better than chance", "diverged": "its training diverged"}


def matching_of(record: Record) -> str:
    """By which matching a merge was made."""
    return record["settings"].get("merging", {}).get("matching", "activation")


def notes(inputs: Inputs, selection: Selection, *more: str) -> list[str]:
    """The lines below a table: the selection's, on its records and code, on negative barriers, on nets left out."""
    records = list(chain(*(records for kind, records in inputs.items() if kind != "filters")))
    kinds = Counter(record["kind"] for record in records)
    code = {
        ", ".join(f"{what} {version}" for what, version in record["code"].items())
        for record in records
        if "code" in record
    }
    precisions = Counter(record["precision"] for record in inputs.get("train", ()) if record.get("precision"))
    names = selection.get("names", {})
    counts = [f"{count} net{'s' * (count > 1)} in {name}" for name, count in sorted(precisions.items())]
    return [
        *selection.get("notes", []),
        *(f"Data: {images}" for images in sorted({*map(images_of, records)} - {None})),
        *sorted({cifar10.doubt(r["inputs"]["data"]) for r in records if images_of(r) == f"{cifar10.NAME}?"}),
        *([f"From {' and '.join(f'{n} {kind}' for kind, n in kinds.items())} records"] if records else []),
        *([f"Trained: {' and '.join(counts)}"] if len(counts) > 1 else []),
        *(f"Made with {what}" for what in sorted(code)),
        *more,
        *_negative_barriers(inputs, names),
        *_left_out(records, selection.get("absent", {}), names),
    ]


def _negative_barriers(inputs: Inputs, names: Mapping[str, str]) -> list[str]:
    merges = [record for kind in ("flip_merge", "pair_merge") for record in inputs.get(kind, ())]
    least = min(merges, key=_barrier, default=None)
    if least is None or _barrier(least) > FAR_BELOW_ZERO:
        return []
    of_nets = [accuracy for _, accuracy in accuracies(least)]
    nets = " and ".join(f"{names.get(model, model)}-{seed}" for model, seed in nets_of(least))
    return [
        f"Barriers are negative, down to {_barrier(least):.3f} ({nets}), where the halfway net is more accurate than "
        f"what it is made of: of nets that learnt little (here accuracy {max(of_nets, default=0):.3f}) a barrier means "
        "little"
    ]


def _barrier(record: Record) -> float:
    return (record.get("barrier") or {}).get("repaired") or 0.0


def _left_out(records: Iterable[Record], absent: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Which types, or nets of a type, are left out, and why."""
    seeds: dict[str, set[int]] = {}
    reasons: dict[tuple[str, int], str] = {}
    for record in sorted(records, key=lambda record: record["kind"] != "train"):
        nets, status = nets_of(record), record.get("status", "ok")
        for model, seed in nets:
            seeds.setdefault(model, set()).add(seed)
        if status != "ok" and len(nets) == 1 and nets[0][0] not in absent:
            reason = record.get("reason")
            if record["kind"] != "train":  # "cnn-0 is degenerate"
                status, reason = (reason or status).rpartition(" ")[2], None
            reasons.setdefault(nets[0], reason or REASONS.get(status, f"it is {status}"))
    groups: dict[tuple[str, str], set[int]] = {}
    for (model, seed), reason in reasons.items():
        groups.setdefault((model, reason), set()).add(seed)
    lines = [f"{names.get(model, model)} is left out: {reason}" for model, reason in absent.items()]
    for (model, reason), gone in groups.items():
        name, several = names.get(model, model), len(gone) > 1
        if gone == seeds[model]:
            nets = f"{name} (all {len(gone)} nets) is" if several else f"{name} is"
        else:
            nets = f"{', '.join(f'{name}-{seed}' for seed in sorted(gone))} {'are' if several else 'is'}"
        lines.append(f"{nets} left out: {reason}")
    return lines


def check_agreement(inputs: Inputs) -> None:
    """Refuse records that can't be averaged (UserError).

    Two for the same data set and image size (of generated images: number and seed, too) were made from images of other
    content; two disagree on how a type is trained or merged; a merge was made from another checkpoint than the one that
    the net's train record, or another merge's, names; one checkpoint stands for two nets.
    """
    records = [record for kind in inputs if kind not in NO_NETS for record in inputs[kind]]
    images, settings, hashes, nets = {}, {}, {}, {}
    for record in records:
        if record["inputs"].get("data") is not None:
            first = images.setdefault(_prepared_from(next(_settings(record))[1].get("data", {})), record)
            if first["inputs"]["data"] != record["inputs"]["data"]:
                raise UserError(
                    f"the {_named(first)} was made from {_images(first)}, the {_named(record)} from "
                    f"{_images(record)}: delete the records of one of the two, and run again"
                )
        for key, its_settings in _settings(record):
            first, wanted = settings.setdefault(key, (record, its_settings))
            if difference := _difference(wanted, its_settings):
                raise UserError(
                    f"the {_named(first)} and the {_named(record)} were made with other settings ({difference}): "
                    "run again, and the outdated one is made again"
                )
    for record in records:
        trained = record["kind"] == "train"
        named = [record["outputs"].get("checkpoint")] if trained else record["inputs"].get("checkpoints", ())
        for net, checkpoint in zip(nets_of(record), named, strict=False):
            if not checkpoint:
                continue
            first, wanted = hashes.setdefault(net, (record, checkpoint))
            if checkpoint != wanted:
                raise UserError(
                    f"the {_named(record)} was made from another checkpoint ({checkpoint[:8]}) than the one in the "
                    f"{_named(first)} ({wanted[:8]}): run again, and it is made again"
                )
            first, other = nets.setdefault(checkpoint, (record, net))
            if net != other:
                raise UserError(
                    f"the {_named(first)} and the {_named(record)} have one checkpoint ({checkpoint[:8]}) for two "
                    f"nets, {other[0]}-{other[1]} and {net[0]}-{net[1]}: delete the record that is a copy, and it "
                    "is made again"
                )


def check_accuracies(inputs: Inputs) -> None:
    """Refuse (UserError) two records that state accuracies of a net further apart than `SAME_ACCURACY`."""
    first: dict[Any, tuple[Record, float]] = {}
    for record in chain(*(inputs[kind] for kind in inputs if kind not in NO_NETS)):
        for net, accuracy in accuracies(record):
            other, its_accuracy = first.setdefault(net, (record, accuracy))
            if abs(accuracy - its_accuracy) > SAME_ACCURACY + 1e-9:
                raise UserError(
                    f"the {_named(other)} has an accuracy of {its_accuracy:g} for {net[0]}-{net[1]}, the "
                    f"{_named(record)} of {accuracy:g}: delete the record that is wrong, and it is made again"
                )


def accuracies(record: Record) -> list[tuple[tuple[str, int], float]]:
    """The accuracies that a record states of its nets as they were trained: (model, seed), accuracy."""
    kind, nets = record["kind"], nets_of(record)
    if kind not in ACCURACIES or (kind != "train" and record.get("status") != "ok"):
        return []
    values = ACCURACIES[kind](record)
    nets = nets * len(values) if kind == "symmetries" else nets
    return [(net, value) for net, value in zip(nets, values, strict=False) if value is not None]


def _prepared_from(data: dict[str, Any]) -> tuple[Any, ...]:
    """Of the settings of data those that go with one content of the images."""
    numbers = ("train_images", "test_images", "seed", "invariant_to")
    keys = ("dataset", "size", *(numbers if data.get("dataset") == "generated" else ()))
    return tuple(data.get(key) for key in keys)


def _settings(record: Record) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What has to be equal in records of one table, by what it has to be equal for: first each type's training."""
    settings, models = record["settings"], [model for model, _ in nets_of(record)]
    yield from zip(models, settings.get("trained", [settings]), strict=False)
    if record["kind"] != "train":
        merging = {name: value for name, value in settings.items() if name != "trained"}
        yield (record["kind"], *models, matching_of(record)), merging


def _difference(first: Any, second: Any, path: str = "") -> str | None:
    """In which setting the two differ: `training.epochs 3 and 4`. A net's seed may; an absent one is the default."""
    if isinstance(first, dict) and isinstance(second, dict):
        ignored = set() if path.startswith("data.") else {"seed"}
        common = [key for key in first if key in second and key not in ignored]
        return next(
            filter(None, (_difference(first[key], second[key], f"{path}{key}.") for key in common)), None
        )
    return f"{path.removesuffix('.')} {first} and {second}" if first != second else None


def _named(record: Record) -> str:
    return f"{record['kind']} record {'--'.join(f'{model}-{seed}' for model, seed in nets_of(record))}"


def _images(record: Record) -> str:
    return f"{images_of(record) or 'images'} ({record['inputs']['data'][:8]})"
