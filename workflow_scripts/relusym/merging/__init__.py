"""Merging two nets: match, permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""

from relusym.registry import Entry

# By their names in the config. Another is one function from `matching.Pair` to `matching.Matching`, and one line here.
MATCHINGS = {
    "activation": Entry("relusym.merging.matching:activation"),
    "weight": Entry("relusym.merging.weight_matching:weight"),
    "weight_identity": Entry("relusym.merging.weight_matching:weight_identity"),
    "involution": Entry("relusym.merging.involution:involution"),
    "identity": Entry("relusym.merging.matching:identity"),
    "random": Entry("relusym.merging.matching:random"),
}

# Those of a net and its flipped self alone: no pair of two nets is merged by them.
OF_FLIPS = {"involution"}

# Those that take the best of several starts, and of how many unless the config says.
SEARCHES, STARTS = {"weight"}, 8
