"""From records to frames: what was measured of each net or pair, by type, and whether the records agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from relusym import checkpoint, cifar10, paper_values
from relusym.errors import UserError
from relusym.findings import Inputs, Record, Selection, np, pd
from relusym.findings.selection import types_in
from relusym.record_types import FAR_BELOW_ZERO
from relusym.records.fields import images_of, nets_of
from relusym.records.files import load_record
from relusym.records.fingerprint import differences


@dataclass(frozen=True)
class Filters:
    """What is kept of one net's filters; for a net that is left out, a reason instead of arrays.

    Attributes:
        drawn: "conv1" (and "conv2" of a VGG11) → float16 (2, c, 3, k, k), RGB filters of the net and, at the same
            places, of its permuted flipped net; conv 2's input channels are projected to RGB.
        permutations: the same names → int16 (c,): channel i is matched to channel `permutation[i]` of the flipped net.
        norms: conv name → float32 (c,), Frobenius norm of each whole filter.
        constraint: conv name → the relative error of equation (3), τ(ψ) = P₁ψP₀ᵀ: ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖.
    """

    model: str
    seed: int
    status: str
    reason: str | None
    drawn: dict[str, np.ndarray]
    permutations: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    constraint: dict[str, float]


def read_filters(path: str | Path) -> Filters:
    """One net's filters; UserError if the file is missing, truncated or not a file of filters."""
    arrays, described = checkpoint.load_arrays(path)
    if described.get("kind") != "filters":
        raise UserError(f"{path} holds no filters: delete it, and it is made again")

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): arrays[n] for n in sorted(arrays) if n.startswith(prefix)}

    drawn = {name: arrays[name] for name in sorted(arrays) if "." not in name}
    about = (described[key] for key in ("model", "seed", "status", "reason"))
    constraint = described.get("kernel_constraint", {})
    return Filters(*about, drawn, under("permutation."), under("norm."), constraint)


def first_kept(nets: Iterable[Filters], model: str) -> Filters:
    """The first net of a type that isn't left out, or its first net if all are; UserError if there is none."""
    of_type = [net for net in nets if net.model == model]
    if not of_type:
        raise UserError(
            f"there are no filters of a net of type {model}: `snakemake --cores all` makes them, once its weights are "
            f"there (models.{model}.weights.file, if they aren't trained)"
        )
    return next((net for net in of_type if net.status == "ok"), of_type[0])


def are_zero(norms: np.ndarray, zero: float) -> np.ndarray:
    """Which filters of a layer are zero: those whose Frobenius norm, of (c,), is below `zero` (0..1) times the largest.

    The paper has no definition; it counts by eye the blank filters in Figures 5 to 8. The layer's largest filter sets
    the scale, since it doesn't depend on how many others are zero, as a mean would, and sets the figures' colours too.
    """
    return norms < zero * norms.max(initial=0)


def count_zero_filters(nets: Iterable[Filters], zero: float) -> pd.DataFrame:
    """One row per net and layer: model, seed, layer, filters, zero_filters, smallest (norm / largest norm)."""
    rows, tiny = [], np.finfo(np.float32).tiny
    for net in (net for net in nets if net.status == "ok"):
        for layer, norms in net.norms.items():
            zeros, smallest = int(are_zero(norms, zero).sum()), float(norms.min() / max(norms.max(), tiny))
            rows.append((net.model, net.seed, layer, len(norms), zeros, smallest))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "filters", "zero_filters", "smallest"])


# The path of each quantity in a record: the first of several that it has. Without REPAIR, nets with batch norm
# have their statistics reset; other nets have nothing to reset.
TRAIN = {"parameters": ["parameters"], "accuracy": ["accuracy"]}
FLIP_MERGE = {
    "invariance_error": ["invariance_error"],
    "accuracy": ["accuracy.net"],
    "flip_accuracy": ["accuracy.flipped"],
    "halfway_accuracy_no_repair": ["accuracy.reset", "accuracy.halfway"],
    "halfway_accuracy": ["accuracy.repaired"],
    "gcnn_barrier_no_repair": ["barrier.reset", "barrier.halfway"],
    "gcnn_barrier": ["barrier.repaired"],
}
PAIR_MERGE = {
    "barrier_no_repair": FLIP_MERGE["gcnn_barrier_no_repair"],
    "barrier": FLIP_MERGE["gcnn_barrier"],
}


def read(kinds: Sequence[str], files: Mapping[str, Sequence[str]], selection: Selection) -> Inputs:
    """The inputs of a table or figure, by kind, limited to the selected types.

    UserError if a file is missing or damaged, filters are of another net than the one in their file's name, or
    records disagree (`check_agreement`, `check_accuracies`); `train` records are compared even if not among `kinds`.
    """
    inputs = {}
    for kind in dict.fromkeys([*kinds, *files]):
        reader = _named_filters if kind == "filters" else load_record
        inputs[kind] = [reader(path) for path in files.get(kind, [])]
    inputs = chosen(inputs, selection)
    check_agreement(inputs)
    check_accuracies(inputs)
    return {kind: inputs[kind] for kind in kinds}


def _named_filters(path: str) -> Filters:
    filters = read_filters(path)
    *_, folder, name = path.split("/")
    # <model>-<seed>.safetensors, or <seed>.safetensors in a folder of the model's
    stem, net = name.partition(".")[0], f"{filters.model}-{filters.seed}"
    if stem != net and not (stem == str(filters.seed) and folder.startswith(f"{filters.model}-")):
        raise UserError(
            f"{path} holds the filters of {net}, not of the net in its name: delete it and the flip_merge record "
            "beside it, and they are made again"
        )
    return filters


def chosen(inputs: Inputs, selection: Selection) -> Inputs:
    """Those `inputs` whose nets are all of the selected `models` or `pairs`; all of them if there is neither."""
    models = types_in(selection)
    if models is None:
        return inputs

    def is_wanted(record: Record | Filters) -> bool:
        types = [record.model] if isinstance(record, Filters) else [model for model, _ in nets_of(record)]
        return {*types} <= {*models}

    return {kind: list(filter(is_wanted, several)) for kind, several in inputs.items()}


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record and one column per scalar, by its path, `accuracy.net`; NaN if missing, and no lists."""
    frame = pd.json_normalize(list(records))
    is_list = frame.map(lambda value: isinstance(value, list)).any()
    return frame.loc[:, ~is_list.astype(bool)]


def measured(records: Sequence[Record], key: list[str], paths: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Columns `key`, `paths` (floats) and `ok`, one row per record; UserError if one lacks a number or occurs twice."""
    scalars = tidy(records)
    frame = scalars.reindex(columns=["kind", *key])
    frame["ok"] = scalars.reindex(columns=["status"])["status"].eq("ok")
    for quantity, several in paths.items():
        values = scalars.reindex(columns=several).apply(pd.to_numeric, errors="coerce")
        frame[quantity] = values.bfill(axis=1).iloc[:, 0].astype(float)
        for _, record in frame[frame["ok"] & frame[quantity].isna()].iterrows():
            raise UserError(
                f"{_row_named(record, key)} lacks a number in '{several[0]}': delete it, and it is made again"
            )
    for _, record in frame[frame.duplicated(key)].iterrows():
        raise UserError(f"{_row_named(record, key)} occurs twice: keep one")
    return frame[[*key, *paths, "ok"]]


def once(records: Sequence[Record]) -> list[Record]:
    """The records without repeated pairs in the other order: a pair is one merge.

    UserError if the barriers of such two records differ by more than the accuracies of a net may.
    """
    first, kept = {}, []
    for record in records:
        other = first.setdefault((matching_of(record), frozenset(nets_of(record))), record)
        if nets_of(other) == nets_of(record):
            kept.append(record)
            continue
        ours, theirs = ((each.get("barrier") or {}).get("repaired") for each in (record, other))
        if None not in (ours, theirs) and abs(ours - theirs) > SAME_ACCURACY + 1e-9:
            raise UserError(
                f"the {_named(other)} has a barrier of {theirs:g}, the {_named(record)}, which is of the same nets, of "
                f"{ours:g}: delete the record that is wrong, and it is made again"
            )
    return kept


def _row_named(record: pd.Series, key: list[str]) -> str:
    return f"the {record['kind']} record of " + ", ".join(f"{field} {record[field]}" for field in key)


def nets(
    inputs: Inputs,
    trained: Sequence[str] = ("accuracy",),
    merged: Sequence[str] = ("invariance_error", "gcnn_barrier"),
) -> pd.DataFrame:
    """One row per net: model, seed, the quantities (of `TRAIN` and of `FLIP_MERGE`), ok (if both its records are)."""
    key = ["model", "seed"]
    both = pd.merge(
        measured(inputs["train"], key, {name: TRAIN[name] for name in trained}),
        measured(inputs["flip_merge"], key, {name: FLIP_MERGE[name] for name in merged}),
        on=key,
        how="outer",
        suffixes=("", "_flip"),
    )
    both["ok"] = both["ok"].eq(True) & both.pop("ok_flip").eq(True)
    return both


def pairs(inputs: Inputs) -> pd.DataFrame:
    """One row per pair of nets (`once`): model_1, model_2, seed_1, seed_2, barrier, ok."""
    key = ["model_1", "model_2", "seed_1", "seed_2"]
    return measured(once(inputs["pair_merge"]), key, {"barrier": PAIR_MERGE["barrier"]})


def ok(nets: pd.DataFrame) -> pd.DataFrame:
    """The rows of nets, or merges, that aren't left out."""
    return nets[nets["ok"].astype(bool)]


def in_order(nets: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The rows sorted by type, in the order of `models`; the rows of one type keep their order."""
    places = {model: place for place, model in enumerate(models)}
    return nets.sort_values("model", key=lambda types: types.map(places), kind="stable")


def summary(nets: pd.DataFrame, key: list[str], wanted: Any, quantities: Sequence[str]) -> pd.DataFrame:
    """Columns `key`, `…_mean` and `…_std` (sample's, NaN for n < 2) of each quantity, n (ok) and left_out (not ok).

    One row for each of `wanted`, in their order: values of `key`, or tuples (or a frame) of several keys.
    """
    index = pd.DataFrame(wanted, columns=key).set_index(key).index
    kept = ok(nets).groupby(key)
    columns = {
        f"{quantity}_{statistic}": getattr(kept[quantity], statistic)().reindex(index)
        for quantity in quantities
        for statistic in ("mean", "std")
    }
    n, both = (groups.size().reindex(index, fill_value=0) for groups in (kept, nets.groupby(key)))
    return pd.DataFrame(columns | {"n": n, "left_out": both - n}, index=index).reset_index()


def summary_along(
    nets: pd.DataFrame, records: Sequence[Record], key: str, models: Sequence[str], quantities: Sequence[str]
) -> pd.DataFrame:
    """Like `summary`, per type and value of `key` (epoch, layer), for nets that are ok; others count in each row."""
    nets, by = in_order(nets.sort_values(key, kind="stable"), models).assign(ok=True), ["model", key]
    table = summary(nets, by, nets[by].drop_duplicates(), quantities)
    left_out = Counter(record["model"] for record in records if record["status"] != "ok")
    return table.assign(left_out=table["model"].map(left_out).astype(int))


def beside_paper(ours: pd.DataFrame, number: int, key: list[str]) -> pd.DataFrame:
    """`ours`, then the columns of the paper's Table `number` as `paper_…`, NaN in rows that the paper doesn't have."""
    paper = paper_values.table(number).set_index(key).add_prefix("paper_")
    return ours.join(paper, on=key)


NO_NETS = "filters", "flipped_training", "theory"  # kinds
SAME_ACCURACY = 0.005  # one image of 200: rounding on another device doesn't change it by more
ACCURACIES = {  # by kind, those of the nets as trained; for a line, of its ends
    "train": lambda record: [record["accuracy"]],
    "flip_merge": lambda record: [record["accuracy"]["net"]],
    "identifiability": lambda record: [record["variants"]["activation"]["accuracy"]["net"]],
    **dict.fromkeys(("exact_gcnn", "invariance_errors"), lambda record: [record["accuracy"]["net"]]),
    "pair_merge": lambda record: [record["accuracy"][net] for net in ("net_1", "net_2")],
    "curves": lambda record: [record["curve"]["plain"]["accuracy"][end] for end in (0, -1)],
    "during_training": lambda record: [record["epochs"][-1]["accuracy"]],
    "universe": lambda record: record["accuracy"],
    "symmetries": lambda record: [each["accuracy"]["net"] for each in record["symmetries"].values()],
}
REASONS = {"degenerate": "accuracy no better than chance", "diverged": "training diverged"}


def matching_of(record: Record) -> str:
    """The matching by which a merge was made."""
    return record["settings"].get("merging", {}).get("matching", "activation")


def notes(inputs: Inputs, selection: Selection, *more: str) -> list[str]:
    """The lines below a table: the selection's, then on records and code, negative barriers and nets left out."""
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
    named = {model: names.get(model, model) for model in {*seeds, *absent}}
    types = Counter(named.values())

    def name_of(model: str) -> str:
        """Its id if another type here has the same name, such as one on other images."""
        return named[model] if types[named[model]] == 1 else model

    lines = [f"{name_of(model)} is left out: {reason}" for model, reason in absent.items()]
    for (model, reason), gone in groups.items():
        name, several = name_of(model), len(gone) > 1
        if gone == seeds[model]:
            nets = f"{name} (all {len(gone)} nets) are" if several else f"{name} is"
        else:
            nets = f"{', '.join(f'{name}-{seed}' for seed in sorted(gone))} {'are' if several else 'is'}"
        lines.append(f"{nets} left out: {reason}")
    return lines


def check_agreement(inputs: Inputs) -> None:
    """Raise a UserError for records that can't be averaged.

    Two with the same data set and image size (and for generated images, number and seed) were made from different
    images; two disagree on how a type is trained or merged; a merge was made from another checkpoint than the one that
    the net's train record, or another merge, names; two nets have one checkpoint.
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
            for name, value, other in differences(wanted, its_settings):
                raise UserError(
                    f"the {_named(first)} and the {_named(record)} were made with other settings "
                    f"({name} {value} and {other}): run again, and the outdated one is made again"
                )
    for record in records:
        trained = record["kind"] == "train"
        named = [record["outputs"].get("checkpoint")] if trained else record["inputs"].get("checkpoints", ())
        for net, content in zip(nets_of(record), named, strict=False):
            if not content:
                continue
            first, wanted = hashes.setdefault(net, (record, content))
            if content != wanted:
                raise UserError(
                    f"the {_named(record)} was made from another checkpoint ({content[:8]}) than the one in the "
                    f"{_named(first)} ({wanted[:8]}): run again, and it is made again"
                )
            first, other = nets.setdefault(content, (record, net))
            if net != other:
                raise UserError(
                    f"the {_named(first)} and the {_named(record)} have one checkpoint ({content[:8]}) for two "
                    f"nets, {other[0]}-{other[1]} and {net[0]}-{net[1]}: delete the record that is a copy, and it "
                    "is made again"
                )


def check_accuracies(inputs: Inputs) -> None:
    """Raise a UserError if two records' accuracies of one net differ by more than `SAME_ACCURACY`."""
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
    """The accuracies in a record of its nets as trained: (model, seed), accuracy."""
    kind, nets = record["kind"], nets_of(record)
    if kind not in ACCURACIES or (kind != "train" and record.get("status") != "ok"):
        return []
    values = ACCURACIES[kind](record)
    nets = nets * len(values) if kind == "symmetries" else nets
    return [(net, value) for net, value in zip(nets, values, strict=False) if value is not None]


def _prepared_from(data: dict[str, Any]) -> tuple[Any, ...]:
    """The data settings that determine the content of the images."""
    numbers = ("train_images", "test_images", "seed", "invariant_to")
    keys = ("dataset", "size", *(numbers if data.get("dataset") == "generated" else ()))
    return tuple(data.get(key) for key in keys)


def _settings(record: Record) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield (key, settings); settings with one key must be equal within a table. Each type's training comes first."""
    settings, models = record["settings"], [model for model, _ in nets_of(record)]
    yield from zip(models, settings.get("trained", [settings]), strict=False)
    if record["kind"] != "train":
        merging = {name: value for name, value in settings.items() if name != "trained"}
        yield (record["kind"], *models, matching_of(record)), merging


def _named(record: Record) -> str:
    return f"{record['kind']} record {'--'.join(f'{model}-{seed}' for model, seed in nets_of(record))}"


def _images(record: Record) -> str:
    return f"{images_of(record) or 'images'} ({record['inputs']['data'][:8]})"
