"""Matchings: which channel of one net corresponds to which of another (section 3)."""

from relusym.schema import Entry

# By their names in the config. To add one: a function from `match.Pair` to `match.Matching`, and a line here.
MATCHINGS = {
    "activation": Entry("relusym.matching.match:activation"),
    "weight": Entry("relusym.matching.weight:weight"),
    "weight_identity": Entry("relusym.matching.weight:weight_identity"),
    "involution": Entry("relusym.matching.cyclic:involution"),
    "identity": Entry("relusym.matching.match:identity"),
    "random": Entry("relusym.matching.match:random"),
}

# Further matchings, of a channel to a multiple of another, for `merge`, `flip_merge` and `align`. What has no place for
# the factors, such as configs, records, reports and measures of layers, doesn't accept them.
WITH_FACTORS = {
    "signed_activation": Entry("relusym.matching.match:signed_activation"),
    "scaled_activation": Entry("relusym.matching.match:scaled_activation"),
}

# Matchings only of a net with its flipped self, not of two nets.
OF_FLIPS = {"involution"}

# Matchings that take the best of several starts, and the default number of starts.
SEARCHES, STARTS = {"weight"}, 8
