"""Nets as graphs: what torch.fx traces, and what this package asks of a graph's nodes."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from relusym.errors import UserError
from relusym.evaluation.logits import evaluating

Handler = Callable[..., Any]
HANDLERS: dict[type[nn.Module] | str, Handler] = {}  # `flow.handler` registers them
# Attention as a whole → its input, weight and bias of queries, keys and values, of one node each; None: it has others.
Projection = Callable[[fx.GraphModule, fx.Node], tuple[fx.Node, Any, Any] | None]
PROJECTIONS: dict[type[nn.Module] | str, Projection] = {}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in HANDLERS or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module, inside: bool = False) -> fx.GraphModule:
    """The net's graph, in evaluation mode.

    Args:
        inside: with a node for the queries, keys and values of each attention layer that shows none, before it; nothing
            reads it but those who match channels.

    Raises:
        UserError: torch.fx can't trace it (control flow that depends on values).
    """
    try:
        with evaluating(net):
            tracer = _Tracer()
            graph = fx.GraphModule(net, tracer.trace(net), type(net).__name__)
    except Exception as error:  # torch.fx raises many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{type(net).__name__} can't be traced by torch.fx: {reason}") from error
    # both lie in cycles, which would keep the net's weights until the garbage collector comes by
    graph.graph.owning_module = None
    tracer.__dict__.clear()
    if inside:
        for node in list(graph.graph.nodes):
            _show_projection(graph, node)
    return graph


def _show_projection(graph: fx.GraphModule, node: fx.Node) -> None:
    layer = layer_of(graph, node)
    key = function_name(node) if layer is None else type(layer)
    found = PROJECTIONS[key](graph, node) if key in PROJECTIONS else None
    if found is None:
        return
    x, *weights = found
    with graph.graph.inserting_before(node):
        read = [graph.graph.get_attr(of) if isinstance(of, str) else of for of in weights]
        shown = graph.graph.call_function(F.linear, (x, *read))
    owner = str(read[0].target).rpartition(".")[0]
    shown.meta["layer"] = owner or node.name


def function_name(node: fx.Node) -> str | None:
    """The name of the function or method that a node calls."""
    called = node.op in ("call_function", "call_method")
    return getattr(node.target, "__name__", str(node.target)) if called else None


def layer_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None
