"""Following channels through a net: it is run on one image, and every operation says what it does to them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from relusym.channels.labels import FIXED, Labels, Ties, Weights
from relusym.channels.tracing import HANDLERS, Handler, function_name, layer_of, trace
from relusym.errors import UserError
from relusym.evaluation.logits import evaluating


def handler(*operations: type[nn.Module] | str) -> Callable[[Handler], Handler]:
    """Register what layers of these classes, or functions and methods of these names, do to channels.

    The handler is called with a `Call` and the operation's own arguments, each tensor replaced by its `Labels`, or by
    `Weights` if it is made of parameters; it returns the output's labels. A registered layer isn't traced into.
    """

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(operations, function))
        return function

    return register


class Flow(fx.Interpreter):
    """A net's graph with the labels of every node's output.

    Attributes:
        ties: which channels are joined.
        places: name in the state dict and dimension → the labels along it.
        labels: of each node's output; of one that is no tensor, its value.
        writers: nodes of layers that write channels → the labels of these.
        net: the traced net.

    Raises:
        UserError: an operation whose effect on channels is unknown, or layers that can't be permuted; named.
    """

    handlers: dict[type[nn.Module] | str, Handler] = HANDLERS
    what = "channels"
    kind_of_ties = Ties

    def __init__(self, net: nn.Module, image_shape: tuple[int, ...], graph: fx.GraphModule | None = None):
        _refuse(net)
        super().__init__(graph or trace(net, inside=True))
        self.net, self.ties = net, self.kind_of_ties()
        self.places: dict[tuple[str, int], Tensor] = {}
        self.labels: dict[fx.Node, Any] = {}
        self.writers: dict[fx.Node, Tensor] = {}
        self.extra_traceback = False
        self.tensors = net.state_dict(keep_vars=True)
        self.names: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.names.setdefault(id(tensor), []).append(name)
        parameter = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
        with torch.no_grad(), evaluating(self.module):
            try:
                self.run(parameter.new_zeros(1, *image_shape))
            except UserError:
                raise
            except Exception as error:  # whatever a net raises
                shape = "×".join(map(str, image_shape))
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"{type(net).__name__} can't be run on an image of {shape}: {reason}"
                ) from error

    def of_image(self, shape: torch.Size) -> Labels:
        """The labels of the net's input."""
        return Labels.alike(FIXED, shape)

    def of_outputs(self, outputs: list[Labels]) -> None:
        """What is said of the net's outputs: their channels are fixed."""
        for of in outputs:
            self.ties.join(of.ids, torch.tensor(FIXED), "output")

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.labels[n] = self._labelled(n, result)
        return result

    def _labelled(self, node: fx.Node, result: Any) -> Any:
        if node.op == "placeholder":
            return self.of_image(result.shape)
        if node.op == "get_attr":
            names = self.names.get(id(result))
            if not names or not result.is_floating_point():
                return result
            return Weights(result.shape, {names[0]: torch.arange(result.numel()).reshape(result.shape)})
        known = fx.map_arg((node.args, node.kwargs), self.labels.__getitem__)
        if node.op == "output":
            self.of_outputs([of for of in tree_leaves(known) if isinstance(of, Labels)])
            return None
        followed = any(isinstance(of, Labels | Weights) for of in tree_leaves(known))
        if not followed or not any(isinstance(of, Tensor) for of in tree_leaves(result)):
            return result
        layer = layer_of(self.module, node)
        keys = type(layer).__mro__ if layer is not None else [function_name(node)]
        found = next((self.handlers[key] for key in keys if key in self.handlers), None)
        call = Call(self, node, result, layer)
        if found is None:
            what = type(layer).__name__ if layer is not None else function_name(node)
            raise call.refusal(f"the effect of {what} on {self.what} is unknown; register a handler for it")
        return found(call, *known[0], **known[1])


def _refuse(net: nn.Module) -> None:
    """Raise for what a state dict with permuted channels would not be read back as."""
    for name, layer in net.named_modules():
        if parametrize.is_parametrized(layer):
            keys = ", ".join(layer.parametrizations)
            remedy = "call torch.nn.utils.parametrize.remove_parametrizations first"
            raise UserError(f"layer {name}: its {keys} is parametrized; {remedy}")
        stored = "weight" in layer._parameters or "weight" in layer._buffers
        if isinstance(getattr(layer, "weight", None), Tensor) and not stored:
            raise UserError(f"layer {name}: its weight is computed (weight_norm or alike); remove that first")
    memory: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if nn.parameter.is_lazy(tensor):
            raise UserError(f"{name} has no shape yet; run the net once before")
        if tensor.numel():
            other, shared = memory.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))
            if shared is not tensor:
                raise UserError(f"{name} shares memory with {other}, but isn't the same; clone one of them")


@dataclass(frozen=True)
class Call:
    """One call of an operation, to its handler.

    Attributes:
        flow: of the whole net.
        node: the call's own.
        result: what it returned.
        layer: the layer that it called, if it was one.
    """

    flow: Flow
    node: fx.Node
    result: Any
    layer: nn.Module | None

    @property
    def shape(self) -> torch.Size:
        """The output's."""
        return self.result.shape

    def refusal(self, reason: str) -> UserError:
        """An error that names the operation."""
        what = f"layer {self.node.target}" if self.layer is not None else f"operation {self.node.name}"
        return UserError(f"{what}: {reason}")

    def along(self, x: Labels, dim: int) -> Tensor:
        """The labels along a dimension, int64 (n,); what varies along others is joined."""
        dim %= len(x.shape)
        others = [other for other in x.varies if other != dim]
        return self.flow.ties.join_along(x.ids, others, self.node.name).flatten().expand(x.shape[dim])

    def index(self, weights: str | Weights | None, dim: int, labels: Tensor) -> None:
        """Say that a dimension of a parameter or buffer, of this layer's if by name, is indexed by these channels."""
        if weights is None:
            return
        for name in self._names(weights):
            before = self.flow.places.get((name, dim))
            if before is not None and before.shape != labels.shape:
                raise self.refusal(f"{name} is used in several ways")
            joined = labels if before is None else self.flow.ties.join(before, labels, self.node.name)
            self.flow.places[name, dim] = joined

    def write(self, weights: str | Weights, dim: int, count: int) -> Tensor:
        """The labels of the channels that this operation writes: new ones, but if its weights wrote before."""
        names = self._names(weights)
        before = self.flow.places.get((names[0], dim))
        labels = self.flow.ties.fresh(count) if before is None else before
        self.index(weights, dim, labels)
        self.writes(labels)
        return labels

    def writes(self, labels: Tensor) -> None:
        """Say that the channels' statistics are those that this layer gives them."""
        self.flow.writers[self.node] = labels

    def mix(self, x: Labels, dims: list[int], how: Hashable = None) -> Tensor:
        """What is computed from all entries along these dimensions alike: the labels, with size 1 there.

        If no others vary, the channels are only told from those that aren't there; else they stay together (`nest`).
        """
        mixed = [dim for dim in x.varies if dim in dims]
        if mixed and mixed == x.varies:
            self.flow.ties.mark(x.ids.unique(), (self.node.name, how))
            return x.ids.new_full([1] * x.ids.ndim, FIXED)
        return self.flow.ties.nest(x.ids, mixed, self.node.name) if mixed else x.ids

    def combine(self, *operands: Any) -> Any:
        """What is computed entry by entry of tensors, broadcast: channels that meet are joined."""
        shape, ndim = self.shape, self.result.ndim
        labelled, weights = [], []
        for of in operands:
            if isinstance(of, Tensor) and of.numel() > 1:
                alike = bool((of == of.flatten()[0]).all())
                label = self.flow.ties.constant(float(of.flatten()[0])) if alike else FIXED
                of = Labels.alike(label, of.shape)
            if isinstance(of, Labels):
                labelled.append(Labels(of.shape, of.ids[(None,) * (ndim - of.ids.ndim)]))
            elif isinstance(of, Weights):
                weights.append(of)
        if not labelled:
            sources = {name: ids for of in weights for name, ids in of.sources.items()}
            if len(sources) < sum(len(of.sources) for of in weights):
                raise self.refusal(f"{weights[0].name} is used in several ways")
            return Weights(shape, sources)
        varies = sorted({dim for of in labelled for dim in of.varies})
        ids, known = None, ()
        for of in labelled:
            sizes = (1,) * (ndim - len(of.shape)) + tuple(of.shape)
            alike = of.ids.numel() == 1 and all(sizes[dim] == 1 for dim in varies)
            if not (alike and varies):
                ids = (
                    of.ids if ids is None else self.flow.ties.meet(ids, known, of.ids, sizes, self.node.name)
                )
                known = tuple(map(max, known, sizes)) or sizes
        for of in weights:
            self.meet(of, ids)
        return Labels(shape, ids)

    def meet(self, weights: Weights, ids: Tensor) -> None:
        """Weights that meet channels entry by entry, broadcast, are indexed by them."""
        varies = [dim for dim, size in enumerate(ids.shape) if size > 1]
        sizes = (1,) * (ids.ndim - len(weights.shape)) + tuple(weights.shape)
        if all(sizes[dim] == 1 for dim in varies) and varies:
            return
        for name, entries in weights.sources.items():
            tensor = self.flow.tensors[name]
            entries = entries[(None,) * (ids.ndim - entries.ndim)]
            where, found = torch.broadcast_tensors(entries, ids)
            met = torch.full([tensor.numel()], FIXED)
            pairs = torch.stack([where.flatten(), found.flatten()]).unique(dim=1)
            pairs = pairs[:, pairs[0] >= 0]
            met[pairs[0]] = pairs[1]
            self.flow.ties.join(met[pairs[0]], pairs[1], self.node.name)
            of = Labels.of(met.reshape(tensor.shape))
            if of.varies:
                self.index(Weights(tensor.shape, {name: entries}), of.varies[0], self.along(of, of.varies[0]))

    def _names(self, weights: str | Weights) -> list[str]:
        """All names in the state dict of a tensor that a handler means."""
        name = weights.name if isinstance(weights, Weights) else f"{self.node.target}.{weights}"
        owner, _, key = name.rpartition(".")
        tensor = getattr(self.flow.module.get_submodule(owner), key)
        return self.flow.names.get(id(tensor), [name])
