"""Which channels of a net must be permuted together, read from its graph."""
