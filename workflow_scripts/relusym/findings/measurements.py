"""Where each quantity stands in a record: the one home of these paths.

Of several paths the first that a record has counts. Without REPAIR, nets with batch norm have their statistics reset;
other nets have nothing to reset.
"""

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
