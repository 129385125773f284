"""Why channels stay at their places, of layers and functions whose effect on channels is known."""

from __future__ import annotations

from torch import Tensor, fx

from relusym.channels.flow import Flow
from relusym.channels.groups import ChannelGroup, is_along_positions, rewritten_positions
from relusym.channels.labels import FIXED
from relusym.channels.tracing import describe


def reasons(flow: Flow, groups: list[ChannelGroup]) -> dict[str, str]:
    """The layers and functions that write channels of which some are in no group → why; see `TracedNet.staying`."""
    roots = flow.relations.roots()

    def channels(labels: Tensor) -> set[int]:
        return set(roots[labels.flatten().clamp(min=FIXED).numpy()].tolist())

    moved = set()
    for group in groups:
        for place in group.places:
            labels = flow.places[place.tensor, place.dim].flatten()
            moved |= channels(labels[place.index(group.size)])
    known = {FIXED} | moved
    why = {}
    *nodes, output = flow.module.graph.nodes
    ends = {output}  # and what it reads, up to the layers that write it
    for node in reversed(nodes):
        if ends & node.users.keys() and node not in flow.writers:
            ends.add(node)
    for node, labels in flow.writers.items():
        written = channels(labels)
        known |= written
        if len(labels) == 1 or written <= moved:
            continue
        if not ends & node.users.keys():
            why[_name(node)] = "what reads them tells them from one another"
        elif not _readers(node, ends) <= ends:
            why[_name(node)] = "the net returns them"
    by_dimension = sorted(flow.places.items(), key=lambda place: place[0][1])
    for (tensor, _), labels in by_dimension:  # layers that write come first
        hidden = channels(labels) - known
        known |= hidden
        if hidden and labels.numel() > 1:
            layer = tensor.rpartition(".")[0] or tensor
            why.setdefault(layer, "no output shows them, by which they could be matched")
    rewritten = rewritten_positions(flow)
    for node in nodes:
        if node.name in flow.relations.crossed:
            why[_name(node)] = "they are multiplied by one another, so that they only move together"
        if is_along_positions(flow, node):
            before = set().union(*(rewritten.get(source, ()) for source in node.all_input_nodes))
            for layer in filter(before.__contains__, nodes):
                why[_name(layer)] = "they lie along positions, and another layer reads them"
    return why


def _name(node: fx.Node) -> str:
    return describe(node).removeprefix("layer ")


def _readers(node: fx.Node, ends: set[fx.Node]) -> set[fx.Node]:
    """All that reads a node's output, directly or through nodes in `ends`."""
    readers, new = set(), [node]
    while new:
        users = new.pop().users.keys() - readers
        readers |= users
        new += users & ends
    return readers
