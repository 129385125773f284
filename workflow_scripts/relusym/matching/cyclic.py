"""Cyclic matching: n applications of a symmetry of order n are the identity, so Pⁿ = 1 should hold (section 3)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import rustworkx
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from relusym.channels.groups import ChannelGroup
from relusym.errors import UserError
from relusym.matching.match import Matching, Pair, assigned

RESOLUTION = 2**40  # of correlations as integers, for which matching a general graph is exact
TIED = 1e-9  # sums of gains that differ by less are equal up to rounding
NO_GAIN = 1e-6  # gains of less are none: correlations are of float32 activations
ORDERS = 2, 4


def involution(pair: Pair) -> Matching:
    """The involutions that maximise the matched channels' correlations, exactly."""
    return pair.matched_by(assigned(pair.groups, pair.correlations, best_involution))


def cyclic(groups: list[ChannelGroup], correlations: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The permutations 1, P, … Pⁿ⁻¹ of a net's transformed copies, with Pⁿ = 1 as for a GCNN; as they fit best.
    UserError if n is neither 2 nor 4, or if n is 4 and channels lie in heads, as in `ChannelGroup`.

    Args:
        correlations: group name → correlations between the channels of a net transformed by τ⁰ to τⁿ⁻¹, (n, C, n, C).

    Returns:
        for each copy: group name → int64 (C,), the copy's channel that each channel of the net is matched to.
    """
    count = next(iter(correlations.values())).shape[0]
    if count not in ORDERS:
        raise UserError(f"matching cyclic: a symmetry of order {count}; allowed are orders 2 and 4")
    if count > 2 and any(group.heads > 1 for group in groups):
        raise UserError(
            f"matching cyclic: not of order {count} for nets with attention heads, group norms or grouped "
            "convolutions; use activation or universe"
        )
    copies = torch.arange(count)
    # copies j and j + k differ by τᵏ for every j, so their correlations are averaged over j
    apart = {name: [table[copies, :, (copies + k) % count].mean(0) for k in range(1, count)]
             for name, table in correlations.items()}  # fmt: skip
    if count == 2:
        steps = assigned(groups, {name: once for name, (once,) in apart.items()}, best_involution)
    else:
        steps = {name: best_of_order_four(tables) for name, tables in apart.items()}
    powers = [{} for _ in range(count)]
    for name, step in steps.items():
        powers[0][name] = torch.arange(len(step))
        for before, after in pairwise(powers):
            after[name] = step[before[name]]
    return powers


def best_of_order_four(tables: Sequence[Tensor]) -> Tensor:
    """A permutation p with p⁴ = 1 and a large Σₖ Σᵢ tables[k − 1][i, pᵏ(i)], k = 1 to 3.

    The largest sum would be a four-dimensional matching, too hard to solve exactly, so it is done in three steps, each
    exact: p² is matched by tables[1] alone; then its swaps are paired into those cycles of four that gain the most; all
    remaining channels are fixed or swapped by p. A planted p is recovered wherever channels correlate most with their
    images under it.

    Args:
        tables: for each power, float (C, C): the worth of matching a channel to another.

    Returns:
        int64 (C,).
    """
    turns = [table.cpu().double().numpy() for table in tables]
    once, twice = turns[0] + turns[2].T, turns[1]
    square = best_involution(twice)
    here = np.flatnonzero(square > np.arange(len(square)))  # the first of each pair of channels that p² swaps
    there = square[here]
    gained = twice[here, there] + twice[there, here] - twice[here, here] - twice[there, there]
    gained -= np.maximum(once[here, here] + once[there, there], once[here, there] + once[there, here])
    # the worth of the cycle here[i] → here[j] → there[i] → there[j]; the other cycle of these four is that of j and i
    cycle = once[np.ix_(here, here)] + once[np.ix_(there, there)]
    cycle += once[np.ix_(here, there)].T + once[np.ix_(there, here)].T
    permutation = np.full(len(square), -1)
    for i, j in _matched(np.maximum(cycle, cycle.T) + gained[:, None] + gained[None, :]):
        i, j = (i, j) if cycle[i, j] >= cycle[j, i] else (j, i)
        permutation[[here[i], here[j], there[i], there[j]]] = here[j], there[i], there[j], here[i]
    rest = np.flatnonzero(permutation < 0)
    permutation[rest] = rest[best_involution(once[np.ix_(rest, rest)])]
    return torch.from_numpy(permutation)


def best_involution(table: np.ndarray) -> np.ndarray:
    """The permutation p with p(p(i)) = i that has the largest Σ table[i, p(i)].

    Swapping i and j gains table[i, j] + table[j, i] over leaving both fixed, table[i, i] + table[j, j]: the
    swaps are a maximum-weight matching in the graph of all swaps that gain more than rounding.
    """
    fixed, permutation = np.diag(table), np.arange(len(table))
    for i, j in _matched(table + table.T - fixed[:, None] - fixed[None, :]):
        permutation[i], permutation[j] = j, i
    return permutation


def _matched(gains: np.ndarray) -> set[tuple[int, int]]:
    """The disjoint pairs of channels with the largest sum of gains, symmetric (C, C), each of them more than rounding.

    Matching a general graph of all pairs is slow. An assignment is quick, and gains at least as much; if its cycles can
    be cut into pairs without a loss, these are the best. If not, few pairs are left to match: those whose slack below
    the assignment's dual prices, pᵢ + pⱼ − gains[i, j] ≥ 0, isn't larger than the loss.
    """
    gains = np.triu(np.where(gains > NO_GAIN, gains, 0), 1)
    gains += gains.T
    channels, partner = linear_sum_assignment(gains, maximize=True)
    pairs = _matched_among(gains, np.stack([channels, partner], 1))
    assigned_gains = gains[channels, partner]
    loss = assigned_gains.sum() - 2 * sum(gains[pair] for pair in pairs)
    if loss < TIED:
        return pairs
    columns, rows = np.zeros(len(gains)), channels
    while len(rows):  # Bellman-Ford, from the rows whose partner's price has risen
        offers = ((columns[partner[rows]] - assigned_gains[rows])[:, None] + gains[rows]).max(0)
        risen = offers > columns + TIED / len(gains)
        columns = np.where(risen, offers, columns)
        rows = channels[risen[partner]]
    prices = (assigned_gains - columns[partner] + columns) / 2
    slack = 2 * (prices[:, None] + prices - gains)
    return _matched_among(gains, np.argwhere(slack <= loss + TIED))


def _matched_among(gains: np.ndarray, pairs: np.ndarray) -> set[tuple[int, int]]:
    """As `_matched`, of these pairs, (n, 2)."""
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    weights = np.rint(gains[tuple(pairs.T)] * RESOLUTION).astype(np.int64)
    pairs, weights = pairs[weights > 0], weights[weights > 0]
    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(len(gains)))
    graph.extend_from_weighted_edge_list(list(zip(*pairs.T.tolist(), weights.tolist(), strict=True)))
    return rustworkx.max_weight_matching(graph, weight_fn=int)
