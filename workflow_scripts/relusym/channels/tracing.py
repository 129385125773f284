"""Nets as graphs: a net is run on images, and every operation that it calls is recorded."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch  # functions declared by torch.fx.wrap
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from relusym.errors import UserError, first_line, users_line
from relusym.evaluation.logits import evaluating, logits_of

Handler = Callable[..., Any]
Operation = type[nn.Module] | str


class Handlers:
    """Handlers for the effect of operations on channels and on pixels, by layer class or function or method name.

    A layer or function (declared by `torch.fx.wrap`) that has a handler isn't traced into. `channels`, `pixels`: class
    or name → its handler.
    """

    def __init__(self) -> None:
        self.channels: dict[Operation, Handler] = {}
        self.pixels: dict[Operation, Handler] = {}

    def handler(self, *operations: Operation, on: str = "channels") -> Callable[[Handler], Handler]:
        """A decorator that makes a function the handler of these operations.

        The handler is called with a `Call` and the operation's own arguments, each tensor replaced by its `Labels`, or
        by `Weights` if it is made of parameters; it returns the output's labels. UserError if an operation has a
        handler already. `on`: "channels", "pixels" or "both".
        """
        kinds = ("channels", "pixels") if on == "both" else (on,)

        def register(function: Handler) -> Handler:
            for kind, operation in itertools.product(kinds, operations):
                known = getattr(self, kind).setdefault(operation, function)
                if known is not function:
                    name = getattr(operation, "__name__", operation)
                    raise UserError(f"{name} has a handler for {kind} already, {known.__qualname__}")
            return function

        return register

    def __or__(self, other: Handlers) -> Handlers:
        """The handlers of both; where both have one for an operation, `other`'s."""
        union = Handlers()
        union.channels, union.pixels = self.channels | other.channels, self.pixels | other.pixels
        return union

    def __contains__(self, operation: Operation) -> bool:
        return operation in self.channels or operation in self.pixels


REGISTERED = Handlers()
handler = REGISTERED.handler
# For attention that is one node: its input, and the weight and bias of its queries, keys and values; None: of several.
Projection = Callable[[nn.Module, fx.Node], tuple[fx.Node, Any, Any] | None]
PROJECTIONS: dict[Operation, Projection] = {}
SHAPED = {"reshape_as": "reshape", "view_as": "view", "expand_as": "expand"}
READING = {"__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__",
           "item", "tolist", "numpy"}  # fmt: skip
FILLED = {"zeros_like", "ones_like", "full_like", "empty_like", "zero_",
          "new_zeros", "new_ones", "new_full", "new_empty", "fill_"}  # fmt: skip
WEIGHT_HOOKS = {
    WeightNorm: nn.utils.remove_weight_norm,
    SpectralNorm: nn.utils.remove_spectral_norm,
    prune.BasePruningMethod: prune.remove,
}
BATCHES = 2, 3  # batch sizes that a net is traced on: what differs depends on the batch size


def unwrapped(net: nn.Module) -> nn.Module:
    """The net inside a wrapper of PyTorch's: `DataParallel`, `DistributedDataParallel`, `torch.compile`.

    For a net that computes weights from parameters (`torch.nn.utils.parametrize`, weight and spectral norm, pruning), a
    copy whose parameters are these weights, as they are in evaluation mode. UserError for a scripted net, whose
    operations can't be recorded.
    """
    for path, layer in net.named_modules() if isinstance(net, nn.Module) else ():
        if isinstance(layer, torch.jit.ScriptModule):
            name = f"layer {path} ({layer.original_name})" if path else layer.original_name
            raise UserError(f"{name} is scripted: give the net that it was made from")
    net = without_wrappers(net)
    # `check_net` refuses what isn't a net
    return _with_plain_weights(net) if isinstance(net, nn.Module) else net


def without_wrappers(net: nn.Module) -> nn.Module:
    """The net inside `DataParallel`, `DistributedDataParallel` or `torch.compile`'s module."""
    while True:
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):
            net = inner
        else:
            return net


def tensor_names(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names in a state dict, those of each tensor together: several, if layers share it."""
    names: dict[int | str, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(tensor.data_ptr() or name, []).append(name)  # an empty tensor has no address
    return list(names.values())


@torch.no_grad()
def copied(net: nn.Module) -> nn.Module:
    """A copy of a net; weights computed by hooks are copied without their autograd history."""
    computed = [x for layer in net.modules() for x in vars(layer).values() if isinstance(x, Tensor)]
    return deepcopy(net, {id(x): x.detach().clone() for x in computed})


@torch.no_grad()
def _with_plain_weights(net: nn.Module) -> nn.Module:
    if not any(parametrize.is_parametrized(layer) or _weight_hooks(layer) for layer in net.modules()):
        return net
    plain = copied(net)
    modes = {layer: layer.training for layer in plain.modules()}
    plain.eval()
    for layer in modes:
        if parametrize.is_parametrized(layer):
            weights = {key: nn.Parameter(getattr(layer, key).clone()) for key in layer.parametrizations}
            # not by remove_parametrizations: it changes the layer's class, which the net shares
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            for key, weight in weights.items():
                setattr(layer, key, weight)
        for key, remove in _weight_hooks(layer):
            if remove is prune.remove:  # it writes into the parameter, which other layers may share
                layer._parameters[f"{key}_orig"] = deepcopy(layer._parameters[f"{key}_orig"])
            remove(layer, key)
        layer._load_state_dict_pre_hooks = OrderedDict(  # remove_spectral_norm leaves its hook behind
            (i, hook)
            for i, hook in layer._load_state_dict_pre_hooks.items()
            if not isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook)
        )
    for layer in plain.modules():
        layer.training = modes.get(layer, False)
    return plain


def _weight_hooks(layer: nn.Module) -> list[tuple[str, Callable[[nn.Module, str], Any]]]:
    """The names of weights that hooks compute before each call, each with the function that makes it a parameter."""
    return [
        (hook._tensor_name if kind is prune.BasePruningMethod else hook.name, remove)
        for hook in layer._forward_pre_hooks.values()
        for kind, remove in WEIGHT_HOOKS.items()
        if isinstance(hook, kind)
    ]


class Recorder(TorchFunctionMode):
    """Records the operations that a net calls, as a graph, while it runs.

    Attributes:
        graph: the net's; the `meta` of a node has its output's "shape", the module that called it ("owner"), and, as
            "constant", its value if it depends neither on the image nor on the state dict.
        free: name of a constant that no node computes → its value.
    """

    def __init__(self, net: nn.Module, handlers: Handlers):
        super().__init__()
        self.handlers = handlers
        self.graph, self.free = fx.Graph(), {}
        self.nodes: Mapping[Tensor, fx.Node | tuple[fx.Node, int]] = WeakTensorKeyDictionary()
        self.paths = {id(module): path for path, module in reversed(list(net.named_modules()))}
        self.state = {id(tensor): name for name, tensor in reversed(net.state_dict(keep_vars=True).items())}
        self.reads: dict[str, fx.Node] = {}
        # view of a tensor → that tensor, the method that made the view, and its arguments
        self.views: Mapping[Tensor, tuple[Tensor, str, tuple, dict]] = WeakTensorKeyDictionary()
        self.times: Mapping[Tensor, int] = WeakTensorKeyDictionary()  # when a tensor got its node
        # memory → when it was last changed in place, and by what
        self.changes: dict[int, tuple[int, str]] = {}
        self.clock = 0
        self.before: dict[int, Tensor] = {}  # constants' values before they are changed in place
        self.autocast = False
        self.owners = [""]  # the modules being called, the net first
        self.inside = False

    def input(self, x: Tensor) -> None:
        node = self.graph.placeholder("x")
        node.meta = {"shape": x.shape, "varies": True, "image": True}
        self._set(x, node)

    def _set(self, tensor: Tensor, node: fx.Node | tuple[fx.Node, int]) -> None:
        self.clock += 1
        self.nodes[tensor], self.times[tensor] = node, self.clock

    def output(self, result: Any) -> None:
        if hasattr(result, "logits") and not isinstance(result, Mapping):  # a named tuple or a dataclass
            result = result._asdict() if isinstance(result, tuple) else getattr(result, "__dict__", {})
        if isinstance(result, Mapping):
            result = {str(key): part for key, part in result.items() if _tensors(part)}
        node = self.graph.output(self._nodes_of(result))
        if not any(source.meta.get("image") for source in node.all_input_nodes):
            raise UserError(
                "its output doesn't depend on the image through PyTorch operations; scripted and compiled functions "
                "and vmap hide theirs: call the plain ones"
            )

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        with self._inside():
            name, versions = getattr(func, "__name__", ""), _versions((args, kwargs))
            if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
                constants = [x for x in args[:1] if isinstance(x, Tensor) and not self._varies(x)]
                self.before = {id(x): x.clone() for x in constants}
            result = func(*args, **kwargs)
            self._note(func, args, kwargs, result, _changed(versions))
            self.before = {}
        return result

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def _where(self, name: str) -> str:
        return _called_in(name, self.owners[-1])

    def _note(
        self, func: Callable, args: tuple, kwargs: dict[str, Any], result: Any, changed: list[Tensor]
    ) -> None:
        name = getattr(func, "__name__", "")
        self.autocast |= torch.is_autocast_enabled("cpu")
        if name in READING and (whose := self._read(args[0])):
            raise UserError(f"what it does depends on {whose} values (by {self._where(name.strip('_'))})")
        if name == "__setitem__":
            if self._depends(args):
                self._record("call_function", set_item, args, {}, args[0])
            else:
                self.nodes.pop(args[0], None)
            result = args[0]
        elif name == "__get__" and _tensors(result):
            self._record("call_function", getattr, (args[0], func.__self__.__name__), {}, result)
        elif name in FILLED and not _tensors((args[1:], kwargs)):  # the tensor gives only its shape and type
            value = kwargs.get("fill_value", kwargs.get("value", args[-1]))
            value = value if name in ("full_like", "new_full", "fill_") else float("ones" in name)
            kind = {"dtype": result.dtype, "device": result.device}
            self._record("call_function", torch.full, (tuple(result.shape), value), kind, result)
        elif name in ("to", "type_as") and any(isinstance(x, Tensor) for x in args[1:]):
            self._record("call_method", "to", (args[0], result.device, result.dtype), {}, result)
        elif name == "copy_":
            self._record("call_method", "expand", (args[1], *result.shape), {}, result)
        elif name in SHAPED:  # the other tensor gives only its shape
            self._record("call_method", SHAPED[name], (args[0], *result.shape), {}, result)
        elif name == "new_tensor" and not _tensors(args[1:]):  # made of numbers: a constant
            pass
        elif _tensors(result):
            if isinstance(kwargs.get("out"), Tensor):  # it is the result
                kwargs = {key: x for key, x in kwargs.items() if key != "out"}
            self._record(*_called(func, name, args, kwargs), result)
        method = func.__self__.__name__ if name == "__get__" else SHAPED.get(name, name)
        rest = tuple(result.shape) if name in SHAPED else args[1:]
        self._note_memory(method, args, rest, kwargs, result, changed)

    def _note_memory(
        self, method: str, args: tuple, rest: tuple, kwargs: dict, result: Any, changed: list[Tensor]
    ) -> None:
        """Note which results share memory with an argument, and what was changed in place."""
        read = _tensors((args, kwargs))
        for i, part in enumerate(result if isinstance(result, tuple | list) else [result]):
            if isinstance(part, Tensor) and not any(part is x for x in read):
                source = next((x for x in read if _memory(x) == _memory(part)), None)
                if source is not None:
                    which = i if part is not result else None
                    self.views[part] = source, method, (which, *rest), kwargs
        if any(x is result for x in changed):
            self._assign(result, method.strip("_"))
            changed = [x for x in changed if _memory(x) != _memory(result)]
        if any(id(x) not in self.state for x in changed):  # running statistics are restored
            raise UserError(f"{self._where(method.strip('_'))} changes in place what it doesn't return")

    def _assign(self, part: Tensor, by: str) -> None:
        """Record a change in place of part of a tensor, such as `x[:, :8].mul_(2)`, as an assignment to the tensor."""
        memory, parts = _memory(part), [part]
        while part in self.views:
            source, method, rest, kwargs = self.views[part]
            if self._depends((source, part)):
                if not _is_method(method):
                    break
                self._record("call_function", set_view, (source, part, method, *rest), kwargs, source)
            else:
                self.nodes.pop(source, None)
            parts.append(part := source)
        if isinstance(part, nn.Parameter) and id(part) in self.state:
            raise UserError(f"{self._where(by)} changes parameter {self.state[id(part)]} in place")
        self.clock += 1
        self.changes[memory] = self.clock, self._where(by)
        self.times.update(dict.fromkeys(parts, self.clock))

    def _current(self, tensor: Tensor) -> fx.Node | tuple[fx.Node, int] | None:
        """The tensor's node; if its memory was changed in place since, a new one, as a view of its source."""
        time, by = self.changes.get(_memory(tensor), (0, "")) if tensor in self.nodes else (0, "")
        if time and self.times[tensor] < time:
            node = self.nodes.pop(tensor)
            source, method, (which, *rest), kwargs = self.views.get(tensor, (None, "", (None,), {}))
            if source is not None and not self._varies(source):
                return None
            if not _is_method(method) and (node[0] if isinstance(node, tuple) else node).meta["varies"]:
                raise UserError(
                    f"what {by} changes in place shares memory with other tensors in an unknown way: "
                    "clone it first"
                )
            if source is not None:
                view = (source, method, which, *rest)
                self._record("call_function", view_of, view, kwargs, tensor)
        return self.nodes.get(tensor)

    def call_layer(self, original: Callable, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """In place of `nn.Module.__call__`: a layer that has a handler is a single node."""
        path = self.paths.get(id(layer))
        if self.inside or not path:  # the net itself is never a single node
            return original(layer, *args, **kwargs)
        with self._inside():
            whole = self._is_whole(layer) and (self._depends((args, kwargs)) or layer._parameters)
        if not whole:
            self.owners.append(path)
            try:
                return original(layer, *args, **kwargs)
            finally:
                self.owners.pop()
        return self._call_whole(partial(original, layer), args, kwargs, "call_module", path)

    def _is_whole(self, layer: nn.Module) -> bool:
        kind = type(layer)
        if kind in self.handlers:
            return True
        # other libraries' batch norms, too: REPAIR resets them
        torchs = kind.__module__.startswith("torch.nn") or isinstance(layer, nn.modules.batchnorm._BatchNorm)
        return torchs and any(base in self.handlers for base in kind.__mro__)

    def call_wrapped(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """In place of a function that `torch.fx.wrap` has declared and that has a handler."""
        if self.inside:
            return function(*args, **kwargs)
        return self._call_whole(function, args, kwargs, "call_function", function)

    def _call_whole(self, call: Callable, args: tuple, kwargs: dict, op: str, target: Any) -> Any:
        with self._inside():
            versions = _versions((args, kwargs))
            result = call(*args, **kwargs)
            self._record(op, target, args, kwargs, result)
            name = f"layer {target}" if op == "call_module" else target.__name__
            self._note_memory(name, args, (), kwargs, result, _changed(versions))
        return result

    def _record(self, op: str, target: Any, args: tuple, kwargs: dict, result: Any) -> None:
        varies = op == "call_module" or self._depends((args, kwargs))
        args, kwargs = self._nodes_of((args, kwargs), constants=varies)
        in_place = isinstance(result, Tensor) and args and self.nodes.get(result, self) is args[0]
        if in_place and (result in self.views or not args[0].meta["image"]):
            copied = self.graph.call_method("clone", args[:1])  # a rerun must change nothing else
            copied.meta = {"shape": result.shape, "varies": varies, "image": args[0].meta["image"]}
            args = copied, *args[1:]
        node = self.graph.create_node(op, target, args, kwargs)
        image = any(source.meta.get("image") for source in node.all_input_nodes)
        node.meta = {"varies": varies, "image": image, "owner": self.owners[-1]}
        if isinstance(result, Tensor):
            node.meta["shape"] = result.shape
            self._set(result, node)
        else:
            self._record_parts(node, result)

    def _record_parts(self, node: fx.Node, result: Any) -> None:
        """Note the parts of a node's tuple; each gets a node once it is used."""
        for i, part in enumerate(result):
            if isinstance(part, Tensor):
                self._set(part, (node, i))
            elif isinstance(part, tuple | list) and _tensors(part):
                inner = self.graph.call_function(operator.getitem, (node, i))
                inner.meta = dict(node.meta)
                self._record_parts(inner, part)

    def _depends(self, args: Any) -> bool:
        """Whether any tensor depends on the image or is a parameter or buffer."""
        return any(self._varies(tensor) for tensor in _tensors(args))

    def _read(self, tensor: Tensor) -> str | None:
        """Whose values these are, if control flow may not depend on them; it may on integer buffers, such as flags."""
        meta = self._meta(tensor)
        if meta is None:
            return "a parameter's" if id(tensor) in self.state and tensor.is_floating_point() else None
        return "the image's" if meta["image"] else "a parameter's" if meta["varies"] else None

    def _varies(self, tensor: Tensor) -> bool:
        meta = self._meta(tensor)
        return id(tensor) in self.state if meta is None else meta["varies"]

    def _meta(self, tensor: Tensor) -> dict[str, Any] | None:
        node = self._current(tensor)
        return None if node is None else (node[0] if isinstance(node, tuple) else node).meta

    def _nodes_of(self, args: Any, constants: bool = True) -> Any:
        """Arguments with a node in place of each tensor; with `constants`, nodes of constants keep their values."""
        return mapped(lambda x: self._node_of(x, constants) if isinstance(x, Tensor) else x, args)

    def _node_of(self, tensor: Tensor, constant: bool) -> fx.Node:
        node = self._current(tensor)
        if isinstance(node, tuple):
            whole, i = node
            node = self.graph.call_function(operator.getitem, (whole, i))
            node.meta = whole.meta | {"shape": tensor.shape}
            self._set(tensor, node)
        if node is None and (name := self.state.get(id(tensor))) is not None:
            if name not in self.reads:
                self.reads[name] = self.graph.create_node("get_attr", name)
                self.reads[name].meta = {"shape": tensor.shape, "varies": True, "image": False}
            return self.reads[name]
        if node is None:
            name = f"_free{len(self.free)}"
            self.free[name] = tensor
            node = self.graph.create_node("get_attr", name)
            node.meta = {"shape": tensor.shape, "varies": False, "image": False}
            self._set(tensor, node)
        if constant and not node.meta["varies"]:
            node.meta["constant"] = self.before.get(id(tensor), tensor).detach().clone()
        return node


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x after `x[index] = value`."""
    x = x.clone()
    x[index] = value
    return x


def view_of(x: Tensor, method: str, which: int | None, *args: Any, **kwargs: Any) -> Tensor:
    """What a method or property of x returns; if that is several tensors, number `which`."""
    method = "reshape" if method == "view" else method  # in any memory format
    view = getattr(x, method)
    view = view(*args, **kwargs) if callable(view) else view
    return view if which is None else view[which]


def set_view(x: Tensor, value: Tensor, *view: Any, **kwargs: Any) -> Tensor:
    """A copy of x where a view of it has other values."""
    x = x.clone(memory_format=torch.contiguous_format)  # so that it has every view that x has
    view_of(x, *view, **kwargs).copy_(value)
    return x


def _is_method(name: str) -> bool:
    """Whether it names a method that makes the same view of a tensor whatever its strides."""
    return hasattr(Tensor, name) and name != "as_strided"


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _versions(args: Any) -> list[tuple[Tensor, int]]:
    return [(x, x._version) for x in _tensors(args) if not x.is_inference()]


def _changed(versions: list[tuple[Tensor, int]]) -> list[Tensor]:
    """The tensors that were changed in place since they had these versions."""
    return [x for x, version in versions if x._version != version]


def mapped(function: Callable[..., Any], args: Any, *others: Any) -> Any:
    """Apply a function to each argument and those of `others` at its place, within tuples, lists, dicts and slices."""
    if isinstance(args, fx.Node):
        return function(args, *others)
    if isinstance(args, Mapping):
        return {key: mapped(function, x, *(other[key] for other in others)) for key, x in args.items()}
    if isinstance(args, slice):
        parts = [(x.start, x.stop, x.step) for x in (args, *others)]
        return slice(*(mapped(function, *each) for each in zip(*parts, strict=True)))
    if isinstance(args, tuple | list) and all(len(other) == len(args) for other in others):
        parts = [mapped(function, *each) for each in zip(args, *others, strict=True)]
        return parts if isinstance(args, list) else tuple(parts)
    return function(args, *others)


def _tensors(args: Any) -> list[Tensor]:
    return [x for x in tree_leaves(args) if isinstance(x, Tensor)]


def _called(func: Callable, name: str, args: tuple, kwargs: dict) -> tuple[str, Any, tuple, dict]:
    """How a node calls a PyTorch function: operation, target and arguments."""
    if not args and (first := next(iter(kwargs), "")) in ("input", "tensors"):  # handlers take it by position
        args, kwargs = (kwargs[first],), {key: x for key, x in kwargs.items() if key != first}
    bare = name.strip("_")
    if name.startswith("__r") and hasattr(operator, bare[1:]) and len(args) == 2:
        return "call_function", getattr(operator, bare[1:]), args[::-1], kwargs
    if name == "__rdiv__":
        return "call_function", operator.truediv, args[::-1], kwargs
    if (name.startswith("__") or name == "pow") and hasattr(operator, bare):
        return "call_function", getattr(operator, bare), args, kwargs
    if name == "squeeze" and len(args) == 1 and not kwargs:  # never the batch dimension
        return "call_method", name, (args[0], tuple(i for i, n in enumerate(args[0].shape) if n == 1)), {}
    if func is Tensor.view and not kwargs and not isinstance(args[1], torch.dtype):
        return "call_method", "reshape", args, {}  # in any memory format
    if getattr(torch.Tensor, name, None) is func and not isinstance(func, BuiltinFunctionType):
        return "call_method", name, args, kwargs
    return "call_function", func, args, kwargs


@contextmanager
def _recording(recorder: Recorder) -> Iterator[None]:
    original = nn.Module.__call__
    nn.Module.__call__ = lambda layer, *args, **kwargs: recorder.call_layer(original, layer, *args, **kwargs)
    with ExitStack() as restored:
        restored.callback(setattr, nn.Module, "__call__", original)
        for (_, name), where in _wrapped_fns_to_patch.items():
            if name in recorder.handlers and name in where:
                restored.callback(where.__setitem__, name, where[name])
                where[name] = partial(recorder.call_wrapped, where[name])
        with recorder:
            yield


def record(net: nn.Module, x: Tensor, handlers: Handlers = REGISTERED) -> tuple[Recorder, Any]:
    """A recorder of what a net calls on a batch of images, and the net's output."""
    recorder = Recorder(net, handlers)
    recorder.input(x)
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with torch.no_grad(), evaluating(net):
        try:
            with _recording(recorder):
                result = net(x)
        finally:
            for buffer, before in buffers:
                if not (buffer.is_meta or torch.equal(buffer, before)):  # as if it counts images
                    buffer.copy_(before)
    recorder.output(result)
    return recorder, result


# Largest relative differences of a graph's logits from the net's: if autocast makes them bfloat16, and otherwise.
REPLAYED, EXACT = 1e-2, 1e-3


def trace(
    net: nn.Module, image_shape: tuple[int, ...], handlers: Handlers = REGISTERED
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The net's graph in evaluation mode, for images of this shape at any batch size; and its constants, by name.
    UserError if the net can't be run on such images, its operations depend on the batch size, or what it computes can't
    be recorded.
    """
    name = type(net).__name__
    parameter = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, *image_shape, generator=draw).to(parameter) for n in BATCHES]
    try:
        (few, _), (more, result) = (record(net, x, handlers) for x in batches)
    except UserError as error:
        raise UserError(f"{name} can't be traced: {error}") from error
    except Exception as error:  # a net may raise anything
        shape = "×".join(map(str, image_shape))
        where = users_line(error)
        reason = first_line(error) + (f" ({where})" if where else "")
        raise UserError(f"{name} can't be run on an image of {shape}: {reason}") from error
    graph, constants = few.graph, {}
    nodes, others = list(graph.nodes), list(more.graph.nodes)
    if [(node.op, str(node.target)) for node in nodes] != [(node.op, str(node.target)) for node in others]:
        raise UserError(f"{name} calls other operations on {BATCHES[1]} images than on {BATCHES[0]}")
    sizes, depending = _Sizes(graph, nodes[0]), {}
    for node, other in zip(nodes, others, strict=True):
        value, same = (
            n.meta.pop("constant", run.free.get(n.target)) for n, run in ((node, few), (other, more))
        )
        if value is not None and value.shape == same.shape and torch.equal(value, same):
            target = f"_constant{len(constants)}"
            constants[target] = value
            with graph.inserting_before(node):
                read = graph.create_node("get_attr", target)
            read.meta = {"shape": value.shape, "varies": False}
            whole = node.op == "get_attr"
            node.replace_all_uses_with(
                read,
                delete_user_cb=lambda user, whole=whole: (
                    whole or user.meta.get("varies", user.op == "output")
                ),
            )
        elif value is not None and node.op == "get_attr":
            entries = torch.cat([value.flatten(), same.flatten()])
            if entries.numel() and bool((entries == entries[0]).all()):  # such as concatenated zeros
                shape = mapped(sizes.matched, tuple(value.shape), tuple(same.shape))
                with graph.inserting_before(node):
                    full = graph.call_function(torch.full, (shape, entries[0].item()), {"dtype": value.dtype})
                full.meta = {"shape": value.shape, "varies": False}
                node.replace_all_uses_with(full)
            else:
                depending[node] = value.shape
        node.args = mapped(sizes.matched, node.args, other.args)
        node.kwargs = mapped(sizes.matched, node.kwargs, other.kwargs)
    erase_unused(graph)
    for node in graph.nodes:
        if node in depending:
            shape = tuple(depending[node])
            raise UserError(f"{name}: a constant of shape {shape} depends on the number of images")
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    constants = {key: value for key, value in constants.items() if key in read}
    with torch.no_grad(), evaluating(net):
        expected, limit = logits_of(result), REPLAYED if few.autocast else EXACT
        if not expected.isfinite().all():
            raise UserError(f"{name}: its logits aren't finite on images drawn at random")
        replayed = logits_of(bound(graph, net, constants)(batches[1]))
        if not relative_difference(expected, replayed) <= limit:
            if not relative_difference(expected, logits_of(net(batches[1]))) <= limit:
                raise UserError(
                    f"{name} computes something else each time, in evaluation mode: it draws at random"
                )
            raise UserError(
                f"{name} can't be traced: some of what it computes isn't recorded, such as functions of the image's "
                "values outside PyTorch"
            )
    return graph, constants


def relative_difference(expected: Tensor, x: Tensor) -> float:
    if expected.shape != x.shape:
        return float("inf")
    expected, x = expected.double(), x.double()
    return float((expected - x).norm() / expected.norm().clamp(min=1e-30))


class _Sizes:
    """Numbers among a graph's arguments that depend on the batch size."""

    def __init__(self, graph: fx.Graph, image: fx.Node):
        self.graph = graph
        with graph.inserting_after(image):  # the batch size: erased if nothing reads it
            self.nodes = {(1, 0): graph.call_method("size", (image, 0))}

    def matched(self, few: Any, more: Any) -> Any:
        """An argument, or a node for a number that differs."""
        if type(few) is not int or few == more:
            return few
        step = (more - few) // (BATCHES[1] - BATCHES[0])
        return self._node(step, few - step * BATCHES[0])

    def _node(self, step: int, rest: int) -> fx.Node:
        """`step` times the batch size plus `rest`."""
        if (step, rest) not in self.nodes:
            count = self.nodes[1, 0]
            for function, number, idle in ((operator.mul, step, 1), (operator.add, rest, 0)):
                if number != idle:
                    with self.graph.inserting_after(count):
                        count = self.graph.call_function(function, (count, number))
            self.nodes[step, rest] = count
        return self.nodes[step, rest]


def erase_unused(graph: fx.Graph) -> None:
    """Erase the nodes that no other reads."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def bound(graph: fx.Graph, net: nn.Module, constants: dict[str, Tensor]) -> fx.GraphModule:
    """A graph as a module that shares the net's layers."""
    root = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            known = constants.get(node.target)
            root[node.target] = operator.attrgetter(node.target)(net) if known is None else known
    module = fx.GraphModule(root, graph, type(net).__name__)
    # a cycle would keep the net's weights until the garbage collector runs
    module.graph.owning_module = None
    return module


def show_projections(graph: fx.Graph, net: nn.Module) -> None:
    """Add a node for the queries, keys and values of each attention layer that is one node, to match channels by."""
    for node in list(graph.nodes):
        key = type(net.get_submodule(node.target)) if node.op == "call_module" else function_name(node)
        projection = PROJECTIONS[key](net, node) if key in PROJECTIONS else None
        if projection is None:
            continue
        x, *weights = projection
        with graph.inserting_before(node):
            read = [graph.create_node("get_attr", w) if isinstance(w, str) else w for w in weights]
            shown = graph.call_function(F.linear, (x, *read))
        shown.meta = {
            "layer": str(read[0].target).rpartition(".")[0] or node.name,
            "image": x.meta.get("image"),
        }


def describe(node: fx.Node) -> str:
    """What a node calls, and where, for messages."""
    if node.op == "call_module":
        return f"layer {node.target}"
    return _called_in(function_name(node) or str(node.target), node.meta.get("owner", ""))


def _called_in(name: str, owner: str) -> str:
    return f"{name} in {owner}" if owner else name


def function_name(node: fx.Node) -> str | None:
    """The name of the function or method that a node calls."""
    called = node.op in ("call_function", "call_method")
    return getattr(node.target, "__name__", str(node.target)) if called else None


def layer_of(graph: nn.Module, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None
