"""Merging two nets: match, permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""

from relusym.registry import Entry

# By their names in the config. Another is one function from `matching.Pair` to `matching.Matching`, and one line here.
MATCHINGS = {
    "activation": Entry("relusym.merging.matching:activation"),
    "identity": Entry("relusym.merging.matching:identity"),
}
