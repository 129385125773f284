"""Where each quantity stands in a record: the one home of these paths.

Of several paths the first that a record has counts. Without REPAIR, nets with batch norm have their statistics reset;
other nets have nothing to reset.
"""

from relusym.findings import Record
from relusym.records.fields import nets_of

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


def accuracies(record: Record) -> list[tuple[tuple[str, int], float]]:
    """What a record says of the accuracy of its nets as they were trained: (model, seed), accuracy."""
    kind = record["kind"]
    if kind == "train":
        values = [record["accuracy"]]
    elif record.get("status") != "ok":
        values = []
    elif kind in ("flip_merge", "exact_gcnn"):
        values = [record["accuracy"]["net"]]
    elif kind == "pair_merge":
        values = [record["accuracy"]["net_1"], record["accuracy"]["net_2"]]
    elif kind == "curves":
        line = record["curve"]["plain"]["accuracy"]
        values = [line[0], line[-1]][: len(nets_of(record))]
    elif kind == "during_training":
        values = [record["epochs"][-1]["accuracy"]]
    elif kind == "symmetries":
        return [
            (net, of["accuracy"]["net"]) for net in nets_of(record) for of in record["symmetries"].values()
        ]
    else:
        values = []
    return [(net, of) for net, of in zip(nets_of(record), values, strict=False) if of is not None]
