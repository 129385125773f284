"""Cyclic matching: a symmetry of order n undoes itself after n times, so its permutation should, Pⁿ = 1 (section 3)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import rustworkx
import torch
from torch import Tensor

from relusym.channels.groups import ChannelGroup
from relusym.errors import UserError
from relusym.matching.match import Matching, Pair

RESOLUTION = 2**40  # of correlations as integers, which the matching of a general graph is exact on
ORDERS = 2, 4


def involution(pair: Pair) -> Matching:
    """The involutions that maximise the matched channels' correlations, exactly.

    Raises:
        UserError: the second net isn't the first, transformed by a symmetry of order 2; or it has attention heads or
            group norms.
    """
    _check_heads("involution", pair.groups)
    if pair.order != 2:
        raise UserError(
            "matching involution: only for a net and its own transformed self, by a symmetry of order 2 such as a flip"
        )
    return pair.matched_by({name: best_cyclic([table]) for name, table in pair.correlations.items()})


def cyclic(groups: list[ChannelGroup], correlations: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The permutations P, P², … of a net's transformed copies, with Pⁿ = 1: those of a GCNN, as `best_cyclic` has P.

    Args:
        correlations: group name → correlations of the channels of τ⁰ to τⁿ⁻¹ of a net with each other, (n, C, n, C).

    Returns:
        of each copy: group name → int64 (C,), which of its channels go with the net's, in the net's order.

    Raises:
        UserError: n is neither 2 nor 4; or the net has attention heads or group norms.
    """
    _check_heads("cyclic", groups)
    count = next(iter(correlations.values())).shape[0]
    if count not in ORDERS:
        raise UserError(f"matching cyclic: a symmetry of order {count}; allowed are orders 2 and 4")
    copies = torch.arange(count)
    powers = [{} for _ in range(count)]
    for name, table in correlations.items():
        # τ of any two copies is τ of the net: all that are as far apart tell of the same permutation
        apart = [table[copies, :, (copies + k) % count].mean(0) for k in range(1, count)]
        step = best_cyclic(apart)
        powers[0][name] = torch.arange(len(step))
        for before, after in pairwise(powers):
            after[name] = step[before[name]]
    return powers


def best_cyclic(tables: Sequence[Tensor]) -> Tensor:
    """A permutation p with pⁿ = 1 of a large Σₖ Σᵢ tables[k − 1][i, pᵏ(i)], k = 1 to n − 1.

    Of order 2 it has the largest sum of all. Of order 4 that is a matching in four dimensions, too hard to solve
    exactly: first p² is matched, exactly, by tables[1] alone; then which two of its swaps make a cycle of four gain the
    most, exactly; all channels that are left are fixed or swapped by p, exactly. A planted p is the result wherever
    channels correlate most with their own images.

    Args:
        tables: of each power, float (C, C): what it is worth that a channel goes with another.

    Returns:
        int64 (C,).
    """
    turns = [table.cpu().double().numpy() for table in tables]
    if len(turns) == 1:
        return torch.from_numpy(_best_involution(turns[0]))
    once, twice = turns[0] + turns[2].T, turns[1]
    square = _best_involution(twice)
    here = np.flatnonzero(square > np.arange(len(square)))  # the first of each two channels that p² swaps
    there = square[here]
    gained = twice[here, there] + twice[there, here] - twice[here, here] - twice[there, there]
    gained -= np.maximum(once[here, here] + once[there, there], once[here, there] + once[there, here])
    # of the cycle here[i] → here[j] → there[i] → there[j]; the other one through the four is that of j and i
    cycle = once[np.ix_(here, here)] + once[np.ix_(there, there)]
    cycle += once[np.ix_(here, there)].T + once[np.ix_(there, here)].T
    permutation = np.full(len(square), -1)
    for i, j in _matched(np.maximum(cycle, cycle.T) + gained[:, None] + gained[None, :]):
        i, j = (i, j) if cycle[i, j] >= cycle[j, i] else (j, i)
        permutation[[here[i], here[j], there[i], there[j]]] = here[j], there[i], there[j], here[i]
    rest = np.flatnonzero(permutation < 0)
    permutation[rest] = rest[_best_involution(once[np.ix_(rest, rest)])]
    return torch.from_numpy(permutation)


def _best_involution(table: np.ndarray) -> np.ndarray:
    """The permutation p with p(p(i)) = i that has the largest Σ table[i, p(i)].

    Swapping i and j gains table[i, j] + table[j, i] over leaving both fixed, table[i, i] + table[j, j]: a matching of
    largest weight in the graph of the swaps that gain something.
    """
    fixed, permutation = np.diag(table), np.arange(len(table))
    for i, j in _matched(table + table.T - fixed[:, None] - fixed[None, :]):
        permutation[i], permutation[j] = j, i
    return permutation


def _matched(gains: np.ndarray) -> set[tuple[int, int]]:
    """Which two go together so that the gains, symmetric (C, C), add up to the most; none that gains nothing."""
    weights = np.rint(np.triu(gains, 1) * RESOLUTION).astype(np.int64)
    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(len(weights)))
    edges = np.argwhere(weights > 0)
    graph.extend_from_weighted_edge_list(
        list(zip(*edges.T.tolist(), weights[tuple(edges.T)].tolist(), strict=True))
    )
    return rustworkx.max_weight_matching(graph, weight_fn=int)


def _check_heads(matching: str, groups: list[ChannelGroup]) -> None:
    if any(group.heads > 1 for group in groups):
        raise UserError(
            f"matching {matching}: not for nets with attention heads or group norms; use activation or weight"
        )
