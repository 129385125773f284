"""The order of each channel under a permutation."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components


def channel_orders(permutation: ArrayLike) -> np.ndarray:
    """Order of each channel c, int64 (channels,): the smallest k ≥ 1 with Pᵏ(c) = c, the length of its cycle.

    P(c) = permutation[c], integers; the inverse has the same orders. ValueError if it isn't a permutation, or is empty.
    """
    permutation = np.asarray(permutation)
    channels = np.arange(permutation.size)
    if permutation.dtype.kind not in "iu" or not np.array_equal(np.sort(permutation), channels):
        raise ValueError(f"not a permutation of {permutation.size} channels")
    # the cycles are the connected components of the graph with an edge from c to permutation[c]
    graph = csr_array((np.ones(permutation.size, bool), (channels, permutation)))
    cycle = connected_components(graph)[1]
    return np.bincount(cycle)[cycle]
