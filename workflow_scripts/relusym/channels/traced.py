"""A net's graph, traced once and shared by all that use it; and the check that its channel groups are correct."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, fx, nn

from relusym.channels.flow import Flow, refuse
from relusym.channels.groups import (
    ChannelGroup,
    Permutations,
    State,
    groups_of,
    moving,
    order_of,
    permute,
    rescale,
)
from relusym.channels.handlers import BATCH_NORMS, CONVS, TRANSPOSED
from relusym.channels.labels import Labels
from relusym.channels.staying import reasons
from relusym.channels.tracing import (
    REGISTERED,
    REPLAYED,
    Handlers,
    bound,
    describe,
    erase_unused,
    function_name,
    mapped,
    relative_difference,
    show_projections,
    trace,
    unwrapped,
)
from relusym.errors import UserError
from relusym.evaluation.logits import evaluating, logits_of

LIMIT = 1e-10  # relative difference in float64: correct nets are within 1e-14, wrong ones at 1e-3 or more
FLOATS = {torch.float16, torch.bfloat16, torch.float32}
CREATED = {"zeros", "ones", "empty", "eye", "linspace"}
CASTS = {"float", "half", "bfloat16"}


@dataclass(frozen=True)
class Planted:
    """A copy of a net in float64 with values at which errors show, which those of a fresh net often hide.

    Every floating-point tensor of the state dict is drawn; everything else stays as it is.
    """

    net: nn.Module
    graph: fx.GraphModule  # with the copy's layers
    constants: dict[str, Tensor]  # that the graph reads
    x: Tensor  # two images
    logits: Tensor  # the copy's on these

    def holding(self, net: nn.Module) -> fx.GraphModule:
        """The graph with the layers of a copy of this copy."""
        return bound(self.graph.graph, net, self.constants)

    def with_state(self, state: State) -> fx.GraphModule:
        """The graph with the tensors of a state dict, which are shared, not copied."""
        shared = {id(tensor): tensor for tensor in self.net.state_dict(keep_vars=True).values()}
        net = deepcopy(self.net, shared)
        net.load_state_dict(state, assign=True)
        return self.holding(net)


class TracedNet:
    """A net, its graph, and what the graph shows about channels and pixels, each computed once. UserError if the net
    can't be run on such images, or its graph can't be read.

    Args:
        net: isn't changed; `DataParallel`, `DistributedDataParallel` and compiled nets are unwrapped, and weights
            computed from parameters (parametrized, weight norm, pruned) are taken as they are in evaluation mode.
        image_shape: one image's (channels, height, width).
        handlers: for layers and functions that aren't PyTorch's, in addition to the registered ones.

    Attributes:
        net: the net as it was traced: unwrapped, with its weights computed.
        graph: of the operations that the net calls; `module` returns it with layers.
        constants: the tensors that the graph reads other than parameters and buffers, by name.
    """

    def __init__(
        self, net: nn.Module, image_shape: tuple[int, ...] = (3, 32, 32), handlers: Handlers | None = None
    ):
        if not isinstance(net, nn.Module):
            raise UserError(f"{type(net).__name__} given as a net; allowed is a torch.nn.Module")
        self.net, self.image_shape = unwrapped(net), _checked(image_shape)
        self.handlers = REGISTERED if handlers is None else REGISTERED | handlers
        refuse(self.net)
        self.graph, self.constants = trace(self.net, self.image_shape, self.handlers)
        show_projections(self.graph, self.net)
        self._flows: dict[type[Flow], Flow] = {}
        self.known: dict[Any, Any] = {}  # what other modules have computed for this net

    def module(self, net: nn.Module | None = None, inside: bool = False) -> fx.GraphModule:
        """The graph with this net's layers, or with those of a copy of it; they are shared, not copied. `inside`:
        before each attention layer that is one node, include a node for its queries, keys and values, by which channels
        are matched.
        """
        graph = deepcopy(self.graph)
        if not inside:
            erase_unused(graph)
        return bound(graph, self.net if net is None else net, self.constants)

    def copied(self, net: nn.Module) -> TracedNet:
        """The traced net of a copy of this net, whatever its weights, without tracing it again."""
        copied = object.__new__(type(self))
        copied.__dict__ = self.__dict__ | {"net": unwrapped(net)}  # with what is known about the architecture
        return copied

    def flow(self, kind: type[Flow]) -> Any:
        """The flow of one kind of labels through the net, such as `PixelFlow` for pixels."""
        if kind not in self._flows:
            planted = self.planted
            self._flows[kind] = kind(planted.net, planted.graph, planted.x[:1], self.handlers)
        return self._flows[kind]

    @cached_property
    def planted(self) -> Planted:
        """A copy of the net with planted values."""
        net = deepcopy(self.net).double().eval()
        constants = {key: x.double() if x.dtype in FLOATS else x for key, x in self.constants.items()}
        graph = bound(_in_float64(deepcopy(self.graph)), net, constants)
        draw = torch.Generator().manual_seed(7)
        x = torch.randn(2, *self.image_shape, generator=draw, dtype=torch.float64)
        x = x.to(next(net.parameters(), x).device)
        name = type(net).__name__
        try:
            with torch.no_grad():
                _draw(net, draw)
                logits = logits_of(_Scaled(graph).run(x))
                if not logits.isfinite().all():  # such as after an exponential
                    net.load_state_dict(self.net.state_dict())
                    _vary(net, draw)
                    logits = logits_of(graph(x))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{name} can't be run in float64, in which channels are checked: {reason}"
            ) from error
        if not logits.isfinite().all():
            raise UserError(f"{name}: its logits aren't finite with weights drawn at random")
        try:
            with torch.no_grad(), evaluating(net):
                copied = logits_of(net(x))
        except Exception:  # such as by a net that casts to float32
            copied = logits
        if not relative_difference(logits, copied) < REPLAYED:
            raise UserError(
                f"{name}: a copy of it doesn't compute with the copy's weights: is its forward replaced, "
                "or is there a hook, by a function that holds the net's layers?"
            )
        return Planted(net, graph, constants, x, logits)

    @cached_property
    def has_batch_norm(self) -> bool:
        """Whether any layer that the net runs in evaluation mode keeps running statistics of its channels."""
        return any(isinstance(layer, BATCH_NORMS) for layer in self.module().modules())

    @cached_property
    def idle(self) -> list[str]:
        """The parts, by name, whose parameters the net doesn't read in evaluation mode, such as auxiliary heads."""
        read = {id(tensor) for tensor in self.module().state_dict(keep_vars=True).values()}
        parameters = list(self.net.named_parameters(remove_duplicate=False))
        owners = {name: [*accumulate(name.split("."), "{}.{}".format)] for name, _ in parameters}
        busy = {owner for name, tensor in parameters if id(tensor) in read for owner in owners[name]}
        idle = [next(owner for owner in owners[name] if owner not in busy)
                for name, tensor in parameters if id(tensor) not in read]  # fmt: skip
        return list(dict.fromkeys(idle))

    @property
    def fixed(self) -> dict[str, str]:
        """Operation whose effect on channels is unknown, so that those that it reads and writes are fixed → why."""
        return self.flow(Flow).fixed

    @cached_property
    def staying(self) -> dict[str, str]:
        """The layers and functions that write channels of which some are in no group → why; except those that write
        nothing but the net's outputs.
        """
        return reasons(self.flow(Flow), self.groups)

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups that `channel_groups` describes, checked; `known["permuted"]` is the difference measured.
        UserError if permuting them at random changes the net's output; the first layer where it shows is named.
        """
        groups, planted = groups_of(self.flow(Flow)), self.planted
        name = type(self.net).__name__
        if not relative_difference(planted.logits[:1], logits_of(self.flow(Flow).result)) < LIMIT:
            raise UserError(f"{name}: its logits on an image depend on the other images of the batch")
        permutations = moving(groups)
        graph = planted.with_state(permute(planted.net.state_dict(), groups, permutations))
        with torch.no_grad():
            self.known["permuted"] = difference = relative_difference(
                planted.logits, logits_of(graph(planted.x))
            )
            if not difference < LIMIT:
                where = self._first_difference(graph, groups, permutations)
                raise UserError(
                    f"{name}: permuting its channels changes what it computes, first at {where}, whose effect "
                    "on channels is unknown; register a handler for it"
                )
        return groups

    def admits(self, factor: float) -> frozenset[str]:
        """The groups each of whose channels may be multiplied by this number without changing what the net computes.

        That is -1 where activations are odd, and 2 where they are positively homogeneous, if everything that reads
        them is, too, and if `rescale` multiplies the channels themselves, not what reads them; checked in float64, as
        the groups are.
        """
        planted, admitted = self.planted, []
        for group in (group for group in self.groups if group.node):  # no output shows the others
            every_second = torch.arange(group.size) % 2 == 0
            factors = {group.name: torch.where(every_second, factor, 1.0).double()}
            graph = planted.with_state(rescale(planted.net.state_dict(), [group], factors))
            wanted = {group.node, "output"}.__contains__
            before, after = (kept_outputs(each, planted.x, wanted) for each in (planted.graph, graph))
            here, there = (group.matched.rows(each[group.node], group.size) for each in (before, after))
            pairs = (planted.logits, logits_of(after["output"])), (here * factors[group.name][:, None], there)
            if all(relative_difference(*pair) < LIMIT for pair in pairs):
                admitted.append(group.name)
        return frozenset(admitted)

    def _first_difference(
        self, permuted: fx.GraphModule, groups: list[ChannelGroup], permutations: Permutations
    ) -> str:
        planted, flow = self.planted, self.flow(Flow)
        outputs = [kept_outputs(graph, planted.x) for graph in (planted.graph, permuted)]
        for node in planted.graph.graph.nodes:
            labels = flow.labels.get(node)
            if not isinstance(labels, Labels) or len(labels.varies) > 1:
                continue
            here, there = (kept[node.name] for kept in outputs)
            for dim in labels.varies:
                order = order_of(node.name, here.shape[dim], groups, permutations, dim)
                here = here.index_select(dim, order.to(here.device))
            if not relative_difference(here, there) < LIMIT:
                return describe(node)
        return "its output"


def _checked(image_shape: Any) -> tuple[int, ...]:
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    if not shape or not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise UserError(f"image_shape: {image_shape} given; allowed is (channels, height, width)")
    return shape


def _in_float64(graph: fx.Graph) -> fx.Graph:
    """The graph with casts to other floating-point types replaced by float64."""

    def wide(x: Any) -> Any:
        return torch.float64 if isinstance(x, torch.dtype) and x in FLOATS else x

    for node in graph.nodes:
        if node.op == "call_method" and node.target in CASTS:
            node.target = "double"
        node.args, node.kwargs = mapped(wide, node.args), mapped(wide, node.kwargs)
        if function_name(node) in CREATED and node.kwargs.get("dtype") is None:
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
    return graph


def _draw(net: nn.Module, draw: torch.Generator) -> None:
    """Draw every floating-point tensor: kernels small, scales positive."""
    for key, value in net.state_dict().items():
        if not value.is_floating_point():
            continue
        # drawing in float64 takes several times as long
        noise = torch.randn(value.shape, generator=draw).double()
        if value.ndim > 1 and "weight" in key.rpartition(".")[2]:
            noise /= max(1, value[0].numel()) ** 0.5
        elif key.endswith(("var", "scale", "gamma")) or (
            value.ndim <= 1 and not key.endswith(("bias", "mean"))
        ):
            noise = torch.rand(value.shape, generator=draw, dtype=torch.float64) + 0.5
        elif value.ndim <= 1:
            noise *= 0.3
        value.copy_(noise)


def _vary(net: nn.Module, draw: torch.Generator) -> None:
    """Change every floating-point tensor by a tenth of its size, or of 1 where it is zero."""
    for value in net.state_dict().values():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value.device)
            value.add_(noise * (value.abs().mean().clamp(min=1e-3) if value.any() else 1) / 10)


class _Scaled(fx.Interpreter):
    """Scales each convolution and linear layer, so that its output has standard deviation 1."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        # weights that are also read outside layers stay, since something may have been computed from them already
        self.scaled = {id(self.fetch_attr(n.target)) for n in graph.graph.nodes if n.op == "get_attr"}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        result, layer = super().call_module(target, args, kwargs), self.fetch_attr(target)
        if not isinstance(layer, (*CONVS, *TRANSPOSED, nn.Linear)) or id(layer.weight) in self.scaled:
            return result
        self.scaled.add(id(layer.weight))
        size = result.std().clamp(min=1e-6)
        for value in (layer.weight, layer.bias):
            if value is not None:
                value.div_(size)
        return result / size


def kept_outputs(
    graph: fx.GraphModule, x: Tensor, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """The outputs of all nodes whose names are wanted."""
    results: dict[str, Any] = {}

    class Kept(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if wanted(n.name):
                results[n.name] = result.clone() if isinstance(result, Tensor) else result
            return result

    with torch.no_grad():
        Kept(graph).run(x)
    return results


def channel_groups(
    net: nn.Module | TracedNet, image_shape: tuple[int, ...] | None = None, handlers: Handlers | None = None
) -> list[ChannelGroup]:
    """The net's channel groups in the order of their matching nodes; its input and output channels stay fixed.

    VGG11 has 8, ResNet50 has 37. Two channels are in one group if they index the same tensors and nothing else sets
    them apart. That permuting them changes nothing is checked in float64, at planted values. UserError as in
    `TracedNet`, or if permuting the groups changes the net's output (the layer is named).

    Args:
        image_shape: one image's (channels, height, width), which determines the size of flattened feature maps; None:
            (3, 32, 32), or a traced net's.
        handlers: as in `TracedNet`.
    """
    return as_traced(net, image_shape, handlers).groups


def net_of(net: nn.Module | TracedNet) -> nn.Module:
    """A traced net's net, or a net as it is."""
    return net.net if isinstance(net, TracedNet) else net


def as_traced(
    net: nn.Module | TracedNet, image_shape: tuple[int, ...] | None = None, handlers: Handlers | None = None
) -> TracedNet:
    """A traced net as it is, or a net, traced for images of (3, 32, 32) unless a shape is passed. UserError as in
    `TracedNet`, or if the net is traced for images of another shape.
    """
    if not isinstance(net, TracedNet):
        return TracedNet(net, (3, 32, 32) if image_shape is None else image_shape, handlers)
    if image_shape is not None and _checked(image_shape) != net.image_shape:
        shapes = ["×".join(map(str, shape)) for shape in (net.image_shape, image_shape)]
        raise UserError(
            f"{type(net.net).__name__} is traced for images of {shapes[0]}, and these are {shapes[1]}"
        )
    return net
