"""Which channel of one net goes with which of another (section 3)."""

from relusym.schema import Entry

# By their names in the config. Another is one function from `matching.Pair` to `matching.Matching`, and one line here.
MATCHINGS = {
    "activation": Entry("relusym.matching.match:activation"),
    "weight": Entry("relusym.matching.weight:weight"),
    "weight_identity": Entry("relusym.matching.weight:weight_identity"),
    "involution": Entry("relusym.matching.cyclic:involution"),
    "identity": Entry("relusym.matching.match:identity"),
    "random": Entry("relusym.matching.match:random"),
}

# More of them, by which a channel goes with a multiple of another: `merge`, `flip_merge` and `align` carry the factors
# along. What has permutations alone, as configs, records, reports and measures of layers, takes none of these.
WITH_FACTORS = {
    "signed_activation": Entry("relusym.matching.match:signed_activation"),
    "scaled_activation": Entry("relusym.matching.match:scaled_activation"),
}

# Those of a net and its flipped self alone: no pair of two nets is merged by them.
OF_FLIPS = {"involution"}

# Those that take the best of several starts, and of how many by default.
SEARCHES, STARTS = {"weight"}, 8
