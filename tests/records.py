"""Invented records in the form in which jobs write them, for tests of their readers."""

import copy
from functools import cache

from conftest import ROOT

from relusym.findings import declared
from relusym.records.files import load_record

# the groups of a ResNet, in the paper's order
MEASURED = [
    "invariance_error", "accuracy", "flip_accuracy", "halfway_accuracy_no_repair", "halfway_accuracy",
    "gcnn_barrier_no_repair", "gcnn_barrier",
]  # fmt: skip
MODELS = ("cnn", "cnn_noaug", "cnn_inv", "cnn_late_inv", "gcnn", "pgcnn", "pgcnn_late_inv")
PAIRS = [("cnn", "cnn"), ("cnn", "cnn_inv"), ("cnn", "gcnn")]
PAIRS += [("cnn_inv", "cnn_inv"), ("cnn_inv", "gcnn"), ("gcnn", "gcnn")]
NAMES = {
    "cnn": "CNN", "cnn_noaug": "CNN w/o aug", "cnn_inv": "CNN + inv-loss",
    "cnn_late_inv": "CNN + late inv-loss", "gcnn": "GCNN", "pgcnn": "PGCNN",
    "pgcnn_late_inv": "PGCNN + late inv-loss",
}  # fmt: skip
CODE = {"relusym": "0.1.0", "torch": "2.14.1", "python": "3.11", "device": "cpu x86_64"}
DATA = "da7a" * 16
ENDS = {"flip_merge": ("net", "flipped"), "pair_merge": ("net_1", "net_2")}


def checkpoint(model, seed):
    return f"{model}-{seed}".encode().hex().ljust(64, "0")


def settings(width=0.25, epochs=3, size=None):
    data = {"dataset": "generated", "train_images": None, "seed": 0, "size": size}
    return {"data": data, "network": {"width": width}, "training": {"epochs": epochs}}


def train(model, seed, accuracy=0.9, status="ok", parameters=577000, **changes):
    return {
        "kind": "train", "status": status, "reason": None if status == "ok" else f"training is {status}",
        "model": model, "seed": seed, "settings": settings(),
        "inputs": {"data": DATA, "source": "generated shapes"},
        "outputs": {"checkpoint": checkpoint(model, seed)},
        "cost": {"seconds": 12.5, "peak_memory_mb": 500.0}, "parameters": parameters, "accuracy": accuracy,
        "history": [{"epoch": 1, "loss": 2.0, "accuracy": 0.3}, {"epoch": 2, "loss": 1.0, "accuracy": 0.6}],
        "data_wait_share": None, "code": CODE,
    } | changes  # fmt: skip


def scores(kind, barrier, halfway=0.4):
    """Accuracies of a merge of two nets of accuracy 0.9, given the barriers with and without REPAIR."""
    between = {"halfway": 0.9 * (1 - halfway), "repaired": 0.9 * (1 - barrier)}
    return dict.fromkeys(ENDS[kind], 0.9) | between


def measurement(kind, nets, status="ok", matching=None, chosen=(), **measured):
    """A record of one kind of measurement of these nets; `chosen`: settings of this kind."""
    merging = {"images": 500} | ({"matching": matching} if matching else {})
    models, seeds = zip(*nets, strict=True)
    named = {"model": models[0], "seed": seeds[0]}
    if len(nets) == 2:
        named = {f"{key}_{i + 1}": of[i] for i in (0, 1) for key, of in (("model", models), ("seed", seeds))}
    elif len(nets) > 2:
        named = {"model": models[0], "seeds": [*seeds]}
    return {
        "kind": kind, "status": status, "reason": None if status == "ok" else "a net is left out", **named,
        "settings": {"merging": merging, "trained": [settings() for _ in nets], **dict(chosen)},
        "inputs": {"data": DATA, "source": "generated shapes",
         "checkpoints": [checkpoint(*net) for net in nets]},
        "outputs": {}, "cost": {"seconds": 1.0}, "code": CODE, **(measured if status == "ok" else {}),
    }  # fmt: skip


def _merge(kind, nets, barrier, status, matching, permutations, **measured):
    merged = {
        "barrier": {"halfway": 0.4, "repaired": barrier},
        "absolute_barrier": {"halfway": 0.36, "repaired": 0.9 * barrier},
        "permutations": permutations or {"conv1": [1, 0], "conv2": [0, 1, 2]},
        "checks": {},
        "accuracy": scores(kind, barrier),
    }
    return measurement(kind, nets, status, matching, **merged | measured)


def flip(model, seed, barrier=0.04, status="ok", *, error=0.2, matching=None, permutations=None, scores=None):
    measured = {"invariance_error": error} | ({"accuracy": scores} if scores else {})
    merged = _merge("flip_merge", [(model, seed)], barrier, status, matching, permutations, **measured)
    return merged | {"outputs": {"filters": "f1" * 32}}


def pair(model_1, seed_1, model_2, seed_2, barrier=0.05, status="ok", *, matching=None, permutations=None):
    nets = [(model_1, seed_1), (model_2, seed_2)]
    return _merge("pair_merge", nets, barrier, status, matching, permutations)


def run_of(barriers, pairs, first=0):
    """Records by kind of nets with these barriers, by type, with seeds from `first` on, and of pairs of neighbours."""
    records = {"train": [], "flip_merge": [], "pair_merge": []}
    for model, values in barriers.items():
        for seed, value in enumerate(values, first):
            records["train"].append(train(model, seed))
            records["flip_merge"].append(flip(model, seed, value, error=value))
    for model, values in pairs.items():
        for i, value in enumerate(values):
            seeds = first + i, first + (i + 1) % len(values)
            records["pair_merge"].append(pair(model, seeds[0], model, seeds[1], value))
    return records


def several(model, seeds, barrier=0.1, gain=0.02, status="ok", counts=(3,)):
    """Nets merged into one: the barrier with REPAIR in one universe, `gain` higher if each is matched to the first."""
    barriers = {"universe": barrier, "universe_no_repair": 0.4}
    barriers |= {"pairwise": barrier + gain, "pairwise_no_repair": 0.5}
    merged = {
        "mean": 0.9, "ensemble": 0.92,
        "accuracy": {name: 0.9 * (1 - value) for name, value in barriers.items()}, "barrier": barriers,
    }  # fmt: skip
    measured = {"accuracy": [0.9] * len(seeds), "merged": {str(count): merged for count in counts}}
    measured |= {"cycles": 0.5, "similarity": {"conv1": 0.6}}
    nets, chosen = [(model, seed) for seed in seeds], {"counts": [*counts]}
    return measurement("universe", nets, status, "activation", chosen, **measured)


def identifiable(model="relu", seed=60, barriers=(("activation", 0.05), ("towers", 0.0))):
    """A net merged with its flipped self in several variants, with these barriers."""
    measured = {name: {
        "accuracy": {"net": 0.5, "flipped": 0.5, "halfway": 0.4, "repaired": 0.5 * (1 - barrier)},
        "barrier": {"halfway": 0.2, "repaired": float(barrier)},
        **{"similarity": 0.5, "channels": 100, "negative": 0, "spread": 0.0, "gone": None},
    } for name, barrier in dict(barriers).items()}  # fmt: skip
    how = {"matching": "activation", "chosen": {"variants": [*measured]}}
    return measurement("identifiability", [(model, seed)], **how, invariance_error=0.1, variants=measured)


def invariant(model="cnn", seed=0, accuracy=0.9, errors=(0.05, 0.04, 0.06)):
    """A net's invariance errors over test images, training images and crops."""
    measured = {"invariance_error": dict(zip(("test", "train", "crops"), errors, strict=True))}
    measured |= {"accuracy": {"net": accuracy}}
    return measurement("invariance_errors", [(model, seed)], chosen={"merging": {}}, **measured)


SELECTION = {"models": MODELS, "pairs": PAIRS, "names": NAMES, "descriptions": {}, "notes": []}


def made(table, selection=SELECTION, **inputs):
    """A table's frame from records by kind; kinds that its module reads and that are missing here are empty."""
    kinds = next(finding.reads for finding in declared().values() if finding.module == table.__name__)
    return table.frame({kind: inputs.get(kind, []) for kind in kinds}, selection)


MADE_UP = {
    "identifiability": identifiable,
    "invariance_errors": invariant,
    "universe": lambda: several("cnn", range(3)),
}  # of kinds without committed records


@cache
def committed_records(kind):
    """Some records of each kind that jobs have written, those with the shortest lists first."""
    if kind in MADE_UP:
        return [MADE_UP[kind]()]
    paths = sorted((ROOT / "results" / "laptop" / "records" / kind).rglob("*.json"))
    written = [load_record(path) for path in paths if path.name != "settings.json"]
    written.sort(key=lambda record: "model_1" in record)  # single nets first
    names = ("cnn", "vertical_cnn", "shapes_turned_cnn", None)
    of_model = {}
    for record in written:
        of_model.setdefault(record.get("model", record.get("model_1")), record)
    return [of_model[name] for name in names if name in of_model]


def a(kind):
    return copy.deepcopy(committed_records(kind)[0])


GONE = object()


def changed(record, path, value):
    """A copy of a record with another value at a path of keys, or without the key if the value is `GONE`."""
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    place = record
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    last = int(last) if isinstance(place, list) else last
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return record
