"""Which channel of one net goes with which of another (section 3)."""

from relusym.registry import Entry

# By their names in the config. Another is one function from `matching.Pair` to `matching.Matching`, and one line here.
MATCHINGS = {
    "activation": Entry("relusym.matching.match:activation"),
    "signed_activation": Entry("relusym.matching.match:signed_activation"),
    "scaled_activation": Entry("relusym.matching.match:scaled_activation"),
    "weight": Entry("relusym.matching.weight:weight"),
    "weight_identity": Entry("relusym.matching.weight:weight_identity"),
    "involution": Entry("relusym.matching.involution:involution"),
    "identity": Entry("relusym.matching.match:identity"),
    "random": Entry("relusym.matching.match:random"),
}

# Those of a net and its flipped self alone: no pair of two nets is merged by them.
OF_FLIPS = {"involution"}

# Those by which a channel goes with a multiple of another: for `merge`, `flip_merge` and `align`, which carry the
# factors along. Records, reports and measures of layers have permutations alone, and take the others.
WITH_FACTORS = {"signed_activation", "scaled_activation"}
PERMUTATIONS_ALONE = {name: entry for name, entry in MATCHINGS.items() if name not in WITH_FACTORS}

# Those that take the best of several starts, and of how many by default.
SEARCHES, STARTS = {"weight"}, 8
