"""Nets with batch norm of which only some parts are merged, run side by side: what they have in common runs once."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from relusym.merging.batch_norm import norms_of

Which = tuple[str, int]  # "up_to" or "all_but", and the part's number


class _Stretch(fx.Interpreter):
    """Consecutive nodes of a graph, each with the merged layer or the net's own, and batch norms that are only its own.

    Args:
        own, merged: nets of one graph.
        nodes: of `own`'s graph.
        is_merged: whether a node reads the merged net's tensors.
    """

    def __init__(
        self,
        own: fx.GraphModule,
        merged: fx.GraphModule,
        nodes: list[fx.Node],
        is_merged: Callable[[fx.Node], bool],
    ):
        super().__init__(own)
        self.nodes, self.args_iter = nodes, iter(())
        self.found: dict[str, Any] = {}
        self.norms: list[nn.Module] = []
        for node in nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            owner, _, name = str(node.target).rpartition(".")
            found = getattr((merged if is_merged(node) else own).get_submodule(owner), name)
            if node.op == "call_module" and norms_of(found):
                found = deepcopy(found)
                self.norms += norms_of(found)
            self.found[str(node.target)] = found

    def fetch_attr(self, target: str) -> Any:
        return self.found[target]

    def go(self, env: dict[fx.Node, Any]) -> Any:
        """Run the nodes; `env`, what they and later ones read, is changed. Returns the last one's output."""
        self.env, output = env, None
        for node in self.nodes:
            output = env[node] = self.run_node(node)
            for unused in self.user_to_last_uses.get(node, ()):
                del env[unused]
        self.env = {}
        return output


class Branches:
    """All nets of which parts are merged up to one or all but one, each batch norm reset by itself.

    Merged layers run up to some part; from there this part runs as it is in the net, and from there again the others,
    as they are in the net ("up_to" the part before) or merged ("all_but" this one). Half of all the layers are saved.

    Args:
        own, merged: nets of one graph.
        owner: node's name → number of the part that it belongs to; parts are numbered as they first run.

    Attributes:
        norms: all batch norms.
    """

    def __init__(self, own: fx.GraphModule, merged: fx.GraphModule, owner: dict[str, int]):
        nodes = list(own.graph.nodes)
        self.input, owners = nodes[0], [owner[node.name] for node in nodes]
        count = max(owners) + 1
        starts = [1, *(owners.index(part) for part in range(1, count)), len(nodes) - 1]
        parts = [nodes[start:stop] for start, stop in pairwise(starts)]
        rests = [nodes[start:] for start in starts[1:]]

        def stretch(nodes: list[fx.Node], is_merged: Callable[[int], bool]) -> _Stretch:
            made = _Stretch(own, merged, nodes, lambda node: is_merged(owner[node.name]))
            self.norms += made.norms
            return made

        self.norms: list[nn.Module] = []
        self.merged = [stretch(part, lambda of, k=k: of <= k) for k, part in enumerate(parts)]
        self.kept = [stretch(part, lambda of, k=k: of < k) for k, part in enumerate(parts)]
        self.up_to = [stretch(rest, lambda of, k=k: of < k) for k, rest in enumerate(rests)]
        self.all_but = [stretch(rest, lambda of, k=k: of != k) for k, rest in enumerate(rests)]

    def run(self, x: Tensor) -> Iterator[tuple[Which, Any]]:
        """Every net's output on a batch."""
        env, last = {self.input: x}, len(self.merged) - 1
        for k in range(last + 1):
            kept = _copied(env)
            self.kept[k].go(kept)
            if k:
                yield ("up_to", k - 1), self.up_to[k].go(_copied(kept))
            yield ("all_but", k), self.all_but[k].go(kept)
            self.merged[k].go(env)
        yield ("up_to", last), self.all_but[last].go(env)  # nothing but the output is left


def _copied(env: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """What layers that work in place may change."""
    return tree_map(lambda of: of.clone() if isinstance(of, Tensor) else of, env)
