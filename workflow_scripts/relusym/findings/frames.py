"""From records to frames: what was measured of each net or pair, and its mean and standard deviation by type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relusym import checkpoint, paper_values
from relusym.errors import UserError
from relusym.findings import Inputs, Record, Selection, np, pd
from relusym.findings.agreement import check_accuracies, check_agreement, matching_of
from relusym.records.fields import nets_of
from relusym.records.files import load_record


@dataclass(frozen=True)
class Filters:
    """What is kept of one net's filters.

    Attributes:
        model, seed: the net.
        status, reason: "ok", or "left_out" with the reason; then there are no arrays.
        drawn: "conv1" (and "conv2" of a VGG11) → float16 (2, c, 3, k, k), RGB filters of the net and, at the same
            places, of its permuted flipped net; conv 2's input channels are projected to RGB.
        permutations: the same names → int16 (c,): channel i goes with channel `permutation[i]` of the flipped net.
        norms: conv name → float32 (c,), Frobenius norm of each whole filter.
        constraint: conv name → by how much τ(ψ) = P₁ψP₀ᵀ (equation (3)) fails, ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖.
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
    """One net's filters. Raises UserError: the file is missing, truncated or no file of filters."""
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
    """The first net of a type that isn't left out; its first one if all are; UserError if there is none."""
    of_type = [net for net in nets if net.model == model]
    if not of_type:
        raise UserError(f"there are no filters of a net of type {model}: let snakemake merge one")
    return next((net for net in of_type if net.status == "ok"), of_type[0])


def are_zero(norms: np.ndarray, zero: float) -> np.ndarray:
    """Which filters of a layer are zero: their Frobenius norm (of (c,)) is less than `zero` (0..1) of the largest
    there.

    The paper has no definition; it counts by eye what is blank in Figures 5 to 8. The layer's largest filter sets the
    scale, since it doesn't depend on how many others are zero, as a mean would, and sets the colours there, too.
    """
    return norms < zero * norms.max(initial=0)


def count_zero_filters(nets: Iterable[Filters], zero: float) -> pd.DataFrame:
    """One row a net and layer: model, seed, layer, filters, zero_filters, smallest (norm, as share of the largest)."""
    rows, tiny = [], np.finfo(np.float32).tiny
    for net in (net for net in nets if net.status == "ok"):
        for layer, norms in net.norms.items():
            zeros, smallest = int(are_zero(norms, zero).sum()), float(norms.min() / max(norms.max(), tiny))
            rows.append((net.model, net.seed, layer, len(norms), zeros, smallest))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "filters", "zero_filters", "smallest"])


# Where each quantity stands in a record: of several paths the first that it has. Without REPAIR, nets with batch norm
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
    """What a table or figure is made of, by kind, as far as it is of types that are selected.

    UserError if a file is missing or damaged, filters are of another net than their file's name says, or two records
    disagree on the accuracy of a net.
    """
    inputs = {}
    for kind in kinds:
        reader = _named_filters if kind == "filters" else load_record
        inputs[kind] = [reader(path) for path in files.get(kind, [])]
    inputs = chosen(inputs, selection)
    check_accuracies(inputs)
    return inputs


def _named_filters(path: str) -> Filters:
    filters = read_filters(path)
    *_, folder, name = path.split("/")
    # <model>-<seed>.safetensors, or <seed>.safetensors in a folder of the model's
    stem, net = name.partition(".")[0], f"{filters.model}-{filters.seed}"
    if stem != net and not (stem == str(filters.seed) and folder.startswith(f"{filters.model}-")):
        raise UserError(
            f"{path} holds the filters of {net}, not those that its name says: delete it and the flip_merge record "
            "beside it, and they are made again"
        )
    return filters


def chosen(inputs: Inputs, selection: Selection) -> Inputs:
    """The part of `inputs` whose nets are all of the selected `models` or `pairs`; all of it if there is neither."""
    models = {*selection.get("models", []), *(model for pair in selection.get("pairs", []) for model in pair)}
    if not models:
        return inputs

    def is_wanted(record: Record | Filters) -> bool:
        types = [record.model] if isinstance(record, Filters) else [model for model, _ in nets_of(record)]
        return models.issuperset(types)

    return {kind: list(filter(is_wanted, several)) for kind, several in inputs.items()}


def tidy(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record, one column a scalar, by its path: `accuracy.net`; no lists; NaN for what it hasn't got."""
    frame = pd.json_normalize(list(records))
    is_list = frame.map(lambda value: isinstance(value, list)).any()
    return frame.loc[:, ~is_list.astype(bool)]


def measured(records: Sequence[Record], key: list[str], paths: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Columns `key`, `paths` (floats) and `ok`, a row a record; UserError if one lacks a number or is given twice."""
    scalars = tidy(records)
    frame = scalars.reindex(columns=["kind", *key])
    frame["ok"] = scalars.reindex(columns=["status"])["status"].eq("ok")
    for quantity, several in paths.items():
        values = scalars.reindex(columns=several).apply(pd.to_numeric, errors="coerce")
        frame[quantity] = values.bfill(axis=1).iloc[:, 0].astype(float)
        for _, record in frame[frame["ok"] & frame[quantity].isna()].iterrows():
            raise UserError(
                f"{_named(record, key)} lacks a number in '{several[0]}': delete it, and it is made again"
            )
    for _, record in frame[frame.duplicated(key)].iterrows():
        raise UserError(f"{_named(record, key)} is given twice: keep one")
    return frame[[*key, *paths, "ok"]]


def once(records: Sequence[Record]) -> list[Record]:
    """The records without those of a pair that stands already the other way round: a pair is one merge."""
    first: dict[tuple, list] = {}
    return [
        record
        for record in records
        if (nets := nets_of(record)) == first.setdefault((matching_of(record), frozenset(nets)), nets)
    ]


def _named(record: pd.Series, key: list[str]) -> str:
    return f"the {record['kind']} record of " + ", ".join(f"{field} {record[field]}" for field in key)


def nets(
    inputs: Inputs,
    trained: Sequence[str] = ("accuracy",),
    merged: Sequence[str] = ("invariance_error", "gcnn_barrier"),
) -> pd.DataFrame:
    """One row a net: model, seed, the quantities (of `TRAIN` and of `FLIP_MERGE`), ok (both its records are)."""
    check_agreement(inputs)
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
    """One row a pair of nets (`once`): model_1, model_2, seed_1, seed_2, barrier, ok."""
    check_agreement(inputs)
    key = ["model_1", "model_2", "seed_1", "seed_2"]
    return measured(once(inputs["pair_merge"]), key, {"barrier": PAIR_MERGE["barrier"]})


def in_order(nets: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The rows in the order in which the config has their types; those of one type stay in theirs."""
    places = {model: place for place, model in enumerate(models)}
    return nets.sort_values("model", key=lambda types: types.map(places), kind="stable")


def summary(nets: pd.DataFrame, key: list[str], wanted: Sequence, quantities: Sequence[str]) -> pd.DataFrame:
    """Columns `key`, `…_mean` and `…_std` (sample's, NaN for n < 2) of each quantity, n (ok) and left_out (not ok).

    One row for each of `wanted`, in their order: values of `key`, tuples if it has several.
    """
    several = len(key) > 1
    index = (
        pd.MultiIndex.from_tuples(map(tuple, wanted), names=key)
        if several
        else pd.Index([*wanted], name=key[0])
    )
    ok = nets[nets["ok"]].groupby(key)
    columns = {
        f"{quantity}_{statistic}": getattr(ok[quantity], statistic)().reindex(index)
        for quantity in quantities
        for statistic in ("mean", "std")
    }
    n, both = (groups.size().reindex(index, fill_value=0) for groups in (ok, nets.groupby(key)))
    return pd.DataFrame(columns | {"n": n, "left_out": both - n}, index=index).reset_index()


def summary_along(
    nets: pd.DataFrame, records: Sequence[Record], key: str, models: Sequence[str], quantities: Sequence[str]
) -> pd.DataFrame:
    """As `summary`, a row a type and value of `key` (epoch, layer), of nets that are ok; others count in each row."""
    values = {model: sorted({*rows}) for model, rows in nets.groupby("model")[key]}
    left_out = [
        {"model": record["model"], key: value}
        for record in records
        if record["status"] != "ok"
        for value in values.get(record["model"], [])
    ]
    both = pd.concat([nets, pd.DataFrame(left_out, columns=["model", key])])
    both = both.assign(ok=[True] * len(nets) + [False] * len(left_out))
    wanted = [(model, value) for model in models for value in values.get(model, [])]
    return summary(both, ["model", key], wanted, quantities)


def beside_paper(ours: pd.DataFrame, number: int, key: list[str]) -> pd.DataFrame:
    """`ours`, then the columns of the paper's Table `number` as `paper_…`, NaN in rows that the paper hasn't got."""
    paper = paper_values.table(number).set_index(key).add_prefix("paper_")
    rows = pd.MultiIndex.from_frame(ours[key]) if len(key) > 1 else ours[key[0]]
    return pd.concat([ours, paper.reindex(rows).reset_index(drop=True)], axis=1)
