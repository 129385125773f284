"""Propagation of channel labels through a net, which is run on one image: each operation has a handler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from relusym.channels.labels import FIXED, Labels, UnionFind, Weights
from relusym.channels.tracing import Handler, Handlers, describe, function_name, layer_of, tensor_names
from relusym.errors import UserError, theirs
from relusym.evaluation.logits import without_values

# Handlers that accept parameters combined entry by entry with constants.
ENTRYWISE: set[Handler] = set()


class Flow(fx.Interpreter):
    """A net's graph with the labels of every node's output. UserError names an operation whose effect is unknown and
    whose operands can't be fixed.

    Attributes:
        relations: which channels are joined.
        places: (name in the state dict, dimension) → the labels along it.
        labels: node → the labels of its output, or the output itself if that isn't a tensor.
        fixed: operation whose effect is unknown, so that the channels that it reads and writes are fixed → why.
        writers: node of a layer that writes channels → their labels.
        result: the net's output on the image.
    """

    what = "channels"
    relations_of: type = UnionFind
    dropped: tuple[type, ...] = (Labels, Weights, Tensor)  # no handler may ignore these

    def __init__(self, net: nn.Module, graph: fx.GraphModule, x: Tensor, handlers: Handlers):
        super().__init__(graph)
        self.relations = self.relations_of()
        self.handlers = getattr(handlers, self.what)
        self.places: dict[Any, Any] = {}
        self.labels: dict[fx.Node, Any] = {}
        self.writers: dict[fx.Node, Tensor] = {}
        self.fixed: dict[str, str] = {}
        self.extra_traceback = False
        self.net, self.tensors = net, net.state_dict(keep_vars=True)
        self.names = {id(self.tensors[names[0]]): names for names in tensor_names(self.tensors)}
        with torch.no_grad():
            self.result = self.run(x)

    def at_input(self, shape: torch.Size) -> Labels:
        """The labels of the net's input."""
        return Labels.alike(FIXED, shape)

    def at_output(self, x: Labels) -> None:
        """Fix the channels of an output."""
        self.relations.join(x.ids, torch.tensor(FIXED), "output")

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.labels[n] = self._labelled(n, result)
        return result

    def _labelled(self, node: fx.Node, result: Any) -> Any:
        if node.op == "placeholder":
            return self.at_input(result.shape)
        if node.op == "get_attr":
            names = self.names.get(id(result))
            if not names or not result.is_floating_point():
                return result
            return Weights(result.shape, {names[0]: torch.arange(result.numel()).reshape(result.shape)})
        known = fx.map_arg((node.args, node.kwargs), self.labels.__getitem__)
        inputs = tree_leaves(known)
        if node.op == "output":
            for x in inputs:
                if isinstance(x, Labels):
                    self.at_output(x)
            return None
        followed = any(isinstance(x, Labels | Weights) for x in inputs)
        followed |= node.op == "call_module" and node.meta["varies"]
        if not followed or not any(isinstance(part, Tensor) for part in tree_leaves(result)):
            return result.clone() if isinstance(result, Tensor) else result  # it may be changed in place
        layer = layer_of(self.module, node)
        name = function_name(node)  # in-place functions are registered without underscores
        keys = type(layer).__mro__ if layer is not None else [name, name.strip("_")]
        handler = next((self.handlers[key] for key in keys if key in self.handlers), None)
        call = Call(self, node, result, layer)
        try:
            if handler is None:
                called = type(layer).__name__ if layer is not None else name
                raise call.refusal(
                    f"the effect of {called} on {self.what} is unknown; register a handler for it"
                )
            call.check(handler, *known)
            try:
                return handler(call, *known[0], **known[1])
            except (AttributeError, IndexError, RuntimeError, TypeError) as error:  # unforeseen arguments
                if not handler.__module__.startswith(__package__.partition(".")[0]):
                    raise
                raise call.refusal(f"it is called in an unknown way ({theirs(error)})") from error
        except Unknown as reason:
            return self.unknown(call, inputs, reason)

    def unknown(self, call: Call, inputs: list[Any], reason: Unknown) -> Any:
        """The labels after an operation whose effect is unknown: all channels that it reads and writes are fixed."""
        self.fixed[describe(call.node)] = str(reason)
        names = call.layer.state_dict() if call.layer is not None else ()
        call.fix(*(x for x in inputs if isinstance(x, Labels | Weights)), *names)
        return tree_map_only(Tensor, lambda x: Labels.alike(FIXED, x.shape), call.result)

    def place(self, name: str, labels: Labels, call: Call) -> None:
        """Record which channels the entries of a parameter or buffer belong to, varying along at most one dimension."""
        for dim in labels.varies[:1]:
            self.place_along(name, dim, call.along(labels, dim), call)

    def place_along(self, name: str, dim: int, labels: Tensor, call: Call) -> None:
        """As `place`, from the labels along a dimension."""
        before = self.places.get((name, dim))
        if before is not None and before.shape != labels.shape:
            raise call.refusal(f"{name} is used in several ways")
        joined = labels if before is None else self.relations.join(before, labels, call.node.name)
        self.places |= {(same, dim): joined for same in self.names_of(name)}

    def names_of(self, name: str) -> list[str]:
        """All names of a tensor of the state dict."""
        return self.names.get(id(self.tensors.get(name)), [name])


class Unknown(UserError):
    """The effect of an operation is unknown."""


def refuse(net: nn.Module) -> None:
    """Raise UserError for a net that a permuted state dict can't be read back into."""
    for name, layer in net.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight is not (layer._parameters | layer._buffers).get("weight"):
            raise UserError(f"layer {name}: its weight is computed; make it a parameter first")
        held = [getattr(cell.cell_contents, "__self__", cell.cell_contents)
                for cell in getattr(vars(layer).get("forward"), "__closure__", None) or ()]  # fmt: skip
        if any(isinstance(x, nn.Module) for x in held):
            raise UserError(
                f"{f'layer {name}' if name else type(layer).__name__}: its forward is replaced by a function that "
                "holds the net, so that a copy would compute with this net's weights: define it in a class"
            )
    memory: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"{name} is no tensor ({type(tensor).__name__}), so it can't be permuted: leave it out"
            )
        if wrong := without_values(tensor):
            raise UserError(f"{name} {wrong}")
        if tensor.numel():
            other, shared = memory.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))
            if shared is not tensor:
                raise UserError(f"{name} shares memory with {other}, but isn't the same; clone one of them")


def alike(values: Tensor) -> bool:
    """Whether all entries of a tensor are equal."""
    return bool((values == values.flatten()[0]).all())


def in_order(entries: Tensor, shape: torch.Size) -> bool:
    """Whether `entries` are numbered in the memory order of a tensor of this shape."""
    return entries.numel() == shape.numel() and torch.equal(entries.flatten(), torch.arange(shape.numel()))


def padded(x: Tensor, ndim: int) -> Tensor:
    """The tensor with `ndim` dimensions: leading ones of size 1 are added."""
    return x[(None,) * (ndim - x.ndim)]


@dataclass(frozen=True)
class Call:
    """One call of an operation, as passed to its handler.

    Attributes:
        flow: the flow of the whole net.
        node: the graph node.
        result: the operation's result.
        layer: the layer that was called; None for a function or method.
    """

    flow: Flow
    node: fx.Node
    result: Any
    layer: nn.Module | None

    @property
    def shape(self) -> torch.Size:
        """The shape of the output."""
        return self.result.shape

    @property
    def relations(self) -> Any:
        """The relations between labels."""
        return self.flow.relations

    def refusal(self, reason: str) -> Unknown:
        """An error that names the operation: channels that it touches are fixed, and pixels can't be moved."""
        what = f"layer {self.node.target}" if self.layer is not None else f"operation {self.node.name}"
        return Unknown(f"{what}: {reason}")

    def check(self, handler: Handler, args: Any, options: dict[str, Any]) -> None:
        """Raise Unknown if the handler doesn't take these arguments, or ignores tensors among them."""
        parameters = signature(handler)
        try:
            bound = parameters.bind(self, *args, **options).arguments
        except TypeError as error:
            raise self.refusal(f"its handler doesn't take these arguments ({error})") from error
        for name, x in bound.items():
            if parameters.parameters[name].annotation in (Labels, "Labels") and not isinstance(x, Labels):
                raise self.refusal("its effect on parameters or constants is unknown")
        if handler not in ENTRYWISE and any(
            isinstance(x, Weights) and x.beside for x in tree_leaves((args, options))
        ):
            raise self.refusal("its effect on parameters and constants together is unknown")
        for x in tree_leaves([bound.get(name) for name in ("rest", "options")]):
            if isinstance(x, self.flow.dropped) and x.shape.numel() > 1:
                raise self.refusal("the effect of one of its operands is unknown")

    def fix(self, *operands: Any) -> None:
        """Fix the channels of these labels, parameters and buffers; those by name are this layer's."""
        for x in operands:
            if isinstance(x, Labels):
                self.relations.join(x.ids, torch.tensor(FIXED), self.node.name)
            names = [self._name(x)] if isinstance(x, str) else getattr(x, "sources", ())
            for name in filter(None, names):
                for dim, size in enumerate(self.flow.tensors[name].shape):
                    self.flow.place_along(name, dim, torch.full([size], FIXED), self)

    def along(self, x: Labels, dim: int) -> Tensor:
        """The labels along a dimension, int64 (n,); labels that vary along others are joined."""
        dim %= len(x.shape)
        others = [other for other in x.varies if other != dim]
        return self.relations.join_along(x.ids, others, self.node.name).flatten().expand(x.shape[dim])

    def index(self, weights: str | Weights | None, dim: int, labels: Tensor) -> None:
        """Record that a dimension of a parameter or buffer (by name: this layer's) is indexed by these channels.

        None, and a parameter that the layer was created without, are skipped.
        """
        if isinstance(weights, Labels | Tensor):
            self.combine(Labels.along(labels, dim, weights.shape), weights, shape=weights.shape)
        elif not self.is_whole(weights):
            self.meet(weights, Labels.along(labels, dim, weights.shape).ids)
        elif weights is not None and (name := self._name(weights)):
            self.flow.place_along(name, dim, labels, self)

    def is_whole(self, weights: str | Weights | None) -> bool:
        """Whether weights are a parameter or buffer itself, or an entrywise function of it."""
        if not isinstance(weights, Weights):
            return True
        shape = self.flow.tensors[weights.name].shape
        same = len(weights.sources) == 1 and weights.shape == shape
        return same and in_order(weights.sources[weights.name], shape)

    def write(self, weights: str | Weights, dim: int, count: int) -> Tensor:
        """The labels of the channels that this operation writes: new ones, unless its weights wrote channels before."""
        before = self.flow.places.get((self._name(weights), dim)) if self.is_whole(weights) else None
        labels = self.relations.fresh(count) if before is None else before
        self.index(weights, dim, labels)
        self.writes(labels)
        return labels

    def writes(self, labels: Tensor) -> None:
        """Record this operation as the writer of these channels."""
        self.flow.writers[self.node] = labels

    def mix(self, x: Labels, dims: list[int], how: Hashable = None) -> Tensor:
        """The labels, of size 1 along `dims`, of a symmetric function of all entries along these dimensions.

        If labels vary along no other dimension, their channels are only set apart from others; else they are nested.
        """
        mixed = [dim for dim in x.varies if dim in dims]
        if mixed and mixed == x.varies:
            self.relations.mark(x.ids.unique(), (self.node.name, how))
            return x.ids.new_full([1] * x.ids.ndim, FIXED)
        return self.relations.nest(x.ids, mixed, self.node.name) if mixed else x.ids

    def combine(self, *operands: Any, shape: torch.Size | None = None) -> Any:
        """The labels (or weights) of an entrywise function of broadcast tensors: channels that meet are joined."""
        shape = self.shape if shape is None else shape
        ndim = len(shape)
        weights = [x for x in operands if isinstance(x, Weights)]
        labelled = [Labels(x.shape, padded(x.ids, ndim)) for x in operands if isinstance(x, Labels)]
        constants = [x for x in operands if isinstance(x, Tensor) and x.numel() > 1]
        constants += [x for parameter in weights for x in parameter.beside]
        if not labelled:
            return self._combined(weights, tuple(x for x in constants if not alike(x)))
        varies = sorted({dim for x in labelled for dim in x.varies})
        labelled += [self.constant(padded(x, ndim), varies) for x in constants]
        ids, known = None, ()
        for x in labelled:
            sizes = (1,) * (ndim - len(x.shape)) + tuple(x.shape)
            everywhere = x.ids.numel() == 1 and all(sizes[dim] == 1 for dim in varies)
            if not (everywhere and varies):
                ids = x.ids if ids is None else self.relations.meet(ids, known, x.ids, sizes, self.node.name)
                known = tuple(map(max, known, sizes)) or sizes
        for parameter in weights:
            self.meet(parameter, ids)
        return Labels(shape, ids)

    def constant(self, values: Tensor, varies: Sequence[int] = ()) -> Labels:
        """The labels of a tensor that doesn't depend on the image: a single one if all its entries are equal. `varies`:
        the dimensions along which the labels that it meets vary.
        """
        if values.numel() and alike(values):
            return Labels.alike(self.relations.constant(float(values.flatten()[0])), values.shape)
        return Labels(values.shape, self.relations.constants(values, [*varies]))

    def _combined(self, weights: list[Weights], beside: tuple[Tensor, ...]) -> Weights:
        """An entrywise function of parameters; one used twice is used with the same entries, or reduced over them."""
        sources: dict[str, Tensor] = {}
        every = [(name in parameter.pooled, name, padded(entries, self.result.ndim))
                 for parameter in weights for name, entries in parameter.sources.items()]  # fmt: skip
        every.sort(key=lambda each: (each[0], -each[2].numel()))
        for pooled, name, entries in every:
            known = sources.setdefault(name, entries)
            if known is not entries:
                for dim, size in enumerate(entries.shape) if pooled else ():
                    known = known.narrow(dim, 0, 1) if size == 1 else known
                if known.shape != entries.shape or not torch.equal(known, entries):
                    raise self.refusal(f"{name} is used in several ways")
        whole = {name for pooled, name, _ in every if not pooled}
        return Weights(self.shape, sources, frozenset(sources.keys() - whole), beside)

    def meet(self, weights: Weights, ids: Tensor) -> None:
        """Record that weights are indexed by the channels that they meet entry by entry, broadcast."""
        varies = [dim for dim, size in enumerate(ids.shape) if size > 1]
        for name, entries in weights.sources.items():
            tensor, entries = self.flow.tensors[name], padded(entries, ids.ndim)
            if varies and all(entries.shape[dim] == 1 for dim in varies):
                continue  # all these channels meet the same entry
            whole = entries.shape[-tensor.ndim :] == tensor.shape and in_order(entries, tensor.shape)
            if whole and len(varies) == 1 and entries.shape[varies[0]] == ids.shape[varies[0]]:
                self.flow.place_along(name, varies[0] - ids.ndim + tensor.ndim, ids.flatten(), self)
                continue
            both = [x.flatten() for x in torch.broadcast_tensors(entries, ids)]
            pairs = torch.stack(both).unique(dim=1)
            pairs = pairs[:, pairs[0] >= 0]
            met = self.relations.gathered(*pairs, tensor.shape, self.node.name)
            places = torch.unravel_index(pairs[0], tensor.shape) if name in weights.pooled else ()
            for dim, place in enumerate(places):
                if not place.any():  # `sources` has the first of the pooled entries
                    met = met.narrow(dim, 0, 1)
            self.flow.place(name, Labels.of(met.expand(tensor.shape)), self)

    def _name(self, weights: str | Weights) -> str | None:
        """A tensor's name in the state dict; None if it is None in the layer."""
        name = weights.name if isinstance(weights, Weights) else f"{self.node.target}.{weights}"
        return None if attrgetter(name)(self.flow.module) is None else name
