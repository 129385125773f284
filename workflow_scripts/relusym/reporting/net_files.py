"""Nets as the command line names them, and weights from files; no code in a file of weights is ever run."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relusym.errors import UserError
from relusym.evaluation.metrics import Metric
from relusym.nets.weights import misfits, read_tensors

NAMED = "file.py:callable, module:callable or torchvision:name"
RANDOM = "random"
SHOWN = 3  # names of tensors in a message


def build(spec: str, weights: str | None, seed: int) -> tuple[nn.Module, tuple[Any, Any] | None]:
    """A net by what the command line calls it, with its weights, in evaluation mode.

    Args:
        spec: `file.py:callable`, `module:callable` or `torchvision:name`; a callable without arguments that returns a
            net, or a net.
        weights: a file of weights; "random" for those that it is made with; of torchvision's nets also a name such as
            `IMAGENET1K_V1`; None: those that the callable gives it, or torchvision's default.
        seed: of random weights.

    Returns:
        the net, and mean and std of images scaled to 0…1, if its weights come with them.

    Raises:
        UserError: there is no such net, or the weights aren't its.
    """
    where, _, what = spec.rpartition(":")
    if not where or not what:
        raise UserError(f"net {spec!r} given; allowed is {NAMED}")
    torch.manual_seed(seed)
    if where == "torchvision":
        net, preset = _of_torchvision(what, weights)
    else:
        net, preset = called(load_object(spec, "net"), spec), None
    if weights is not None and weights != RANDOM and not _is_name(where, weights):
        load_weights(net, weights)
    return net.eval().to(memory_format=torch.channels_last), preset


def name_of(spec: str, net: nn.Module) -> str:
    """What a report calls a net: torchvision's name, its class, or, of PyTorch's own classes, the callable's name."""
    own = not spec.startswith("torchvision:") and not type(net).__module__.startswith("torch.")
    return type(net).__name__ if own else spec.rpartition(":")[2]


def called(made: Any, spec: str) -> nn.Module:
    """A net, or what a callable without arguments makes.

    Raises:
        UserError: it needs arguments, fails, or makes something else.
    """
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise UserError(
                f"net {spec} is {type(made).__name__}; a net or a callable that returns one is needed"
            )
        try:
            inspect.signature(made).bind()
        except TypeError as error:
            raise UserError(
                f"net {spec} can't be called without arguments ({error}): wrap it in a function"
            ) from error
        except ValueError:  # a callable that has no signature
            pass
        made = made()
    if not isinstance(made, nn.Module):
        raise UserError(f"net {spec} returns {type(made).__name__}; a torch.nn.Module is needed")
    return made


def load_object(spec: str, what: str) -> Any:
    """What `file.py:name` or `module:name` names.

    Raises:
        UserError: the file or module is missing, can't be imported, or has no such name.
    """
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise UserError(f"{what} {spec}: there is no file {where}")
            found = importlib.util.spec_from_file_location(Path(where).stem, where)
            module = importlib.util.module_from_spec(found)
            sys.modules.setdefault(found.name, module)  # dataclasses look their module up
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{what} {spec}: {error}; modules of your own are found with PYTHONPATH=folder"
        ) from error
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"{what} {spec}: importing {where} fails ({type(error).__name__}: {_line(error)})"
        ) from error
    for part in name.split("."):
        if not hasattr(module, part):
            known = [key for key in vars(module) if not key.startswith("_")]
            raise UserError(
                f"{what} {spec}: {where} has no {part!r}; it has {', '.join(known[:9]) or 'nothing'}"
            )
        module = getattr(module, part)
    return module


def load_metric(spec: str) -> tuple[str, Metric]:
    """A metric `file.py:fn` or `module:fn`, of logits and labels to one number an image, and its name.

    Raises:
        UserError: there is none.
    """
    if ":" not in spec:
        raise UserError(
            f"metric {spec!r} given; allowed is file.py:fn or module:fn, fn(logits, labels) → (B,)"
        )
    found = load_object(spec, "metric")
    if isinstance(found, Metric):
        return spec.rpartition(":")[2], found
    if not callable(found):
        raise UserError(f"metric {spec} is {type(found).__name__}; a function of logits and labels is needed")
    return spec.rpartition(":")[2], Metric(found)


def _of_torchvision(name: str, weights: str | None) -> tuple[nn.Module, tuple[Any, Any] | None]:
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError("torchvision isn't installed: pip install 'relusym[torchvision]'") from error
    try:
        known = models.get_model_weights(name)
    except ValueError as error:
        raise UserError(
            f"torchvision has no net {name!r}: torchvision.models.list_models() lists them"
        ) from error
    if weights is not None and not _is_name("torchvision", weights):
        options = inspect.signature(models.get_model_builder(name)).parameters
        alone = (
            {"weights_backbone": None} if "weights_backbone" in options else {}
        )  # or it would be downloaded
        return models.get_model(name, weights=None, **alone), None
    try:
        entry = known.DEFAULT if weights is None else known[weights]
    except KeyError as error:
        raise UserError(
            f"weights {weights!r} given; torchvision's {name} has {', '.join(one.name for one in known)}"
        ) from error
    try:
        net = models.get_model(name, weights=entry)
    except OSError as error:  # urllib's errors are
        raise UserError(
            f"{entry.url} can't be downloaded ({_line(error)}): give --weights FILE, or --weights random"
        ) from error
    transforms = entry.transforms()
    return net, (transforms.mean, transforms.std) if hasattr(transforms, "mean") else None


def _is_name(where: str, weights: str) -> bool:
    return (
        where == "torchvision"
        and weights != RANDOM
        and not Path(weights).suffix
        and not Path(weights).exists()
    )


def load_weights(net: nn.Module, path: str) -> None:
    """Load a state dict into a net: safetensors, or what torch.save wrote; wrappers and prefixes are found.

    Raises:
        UserError: the file is missing or damaged, holds code, or another net's weights.
    """
    if not Path(path).is_file():
        raise UserError(f"weights: there is no file {path}")
    expected = net.state_dict()
    state = _without_prefix(_unwrapped(read_tensors(Path(path))), expected)
    state = {k: v for k, v in expected.items() if k.endswith(".num_batches_tracked")} | state
    if wrong := misfits(state, expected, most=SHOWN):
        raise UserError(f"weights {path} don't fit {type(net).__name__}: {wrong}")
    net.load_state_dict(state)


def _unwrapped(contents: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint: its own, or those of the largest dict in it."""
    if not isinstance(contents, Mapping):
        return {}
    tensors = {str(key): value for key, value in contents.items() if isinstance(value, Tensor)}
    below = [_unwrapped(value) for value in contents.values() if isinstance(value, Mapping)]
    return max([tensors, *below], key=len)


def _without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with its names as the net has them, whatever stands before all of these, such as `module.`."""
    first = next(iter(expected), "")
    prefixes = {key.removesuffix(first) for key in state if key.endswith(f".{first}")}
    best = max({"", *prefixes}, key=lambda prefix: sum(f"{prefix}{key}" in state for key in expected))
    return {key.removeprefix(best): tensor for key, tensor in state.items() if key.startswith(best)}


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
