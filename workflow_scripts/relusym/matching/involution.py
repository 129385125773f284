"""Involution matching: since a flip undoes itself, so should the permutation that stands for it, P² = 1 (section 3)."""

import numpy as np
import rustworkx
import torch
from torch import Tensor

from relusym.errors import UserError
from relusym.matching.match import Matching, Pair

RESOLUTION = 2**40  # of correlations as integers, which the matching of a general graph is exact on


def involution(pair: Pair) -> Matching:
    """The involutions that maximise the matched channels' correlations, exactly.

    Raises:
        UserError: the second net isn't the first, transformed by a symmetry of order 2; or it has attention heads or
            group norms.
    """
    if any(group.heads > 1 for group in pair.groups):
        raise UserError(
            "matching involution: not for nets with attention heads or group norms; use activation or weight"
        )
    if pair.order != 2:
        raise UserError(
            "matching involution: only for a net and its own transformed self, by a symmetry of order 2 such as a flip"
        )
    return pair.matched_by({name: best_involution(table) for name, table in pair.correlations.items()})


def best_involution(table: Tensor) -> Tensor:
    """The permutation p with p(p(i)) = i that has the largest Σ table[i, p(i)]; float (C, C) → int64 (C,).

    Swapping i and j gains table[i, j] + table[j, i] over leaving both fixed, table[i, i] + table[j, j]: a matching of
    largest weight in the graph of the swaps that gain something.
    """
    values = table.cpu().numpy()
    size, fixed = len(values), np.diag(values)
    gains = np.triu(values + values.T - fixed[:, None] - fixed[None, :], 1)
    weights = np.rint(gains * RESOLUTION).astype(np.int64)
    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(size))
    edges = np.argwhere(weights > 0)
    graph.extend_from_weighted_edge_list(
        list(zip(*edges.T.tolist(), weights[tuple(edges.T)].tolist(), strict=True))
    )
    permutation = torch.arange(size)
    for i, j in rustworkx.max_weight_matching(graph, weight_fn=int):
        permutation[i], permutation[j] = j, i
    return permutation
