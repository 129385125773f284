"""Nets as the command line names them, and weights from files; no code in a file of weights is ever run."""

import importlib
import importlib.util
import inspect
import os
import ssl
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from PIL import Image
from torch import Tensor, nn

from relusym import checkpoint
from relusym.channels.tracing import copied, tensor_names, without_wrappers
from relusym.errors import UserError, first_line, listed, theirs
from relusym.evaluation.images import COLOURS
from relusym.evaluation.logits import without_values
from relusym.evaluation.metrics import MEASURED, Metric
from relusym.nets.weights import misfits, read_tensors
from relusym.reporting.image_files import Sizing

NAMED = "file.py:callable, module:callable, torchvision:name, timm:name or hf:name_or_folder"
RANDOM = "random"
SHOWN = 3  # names of tensors in a message
HUB_SECONDS = 5  # within which Hugging Face's hub has to answer


@dataclass(frozen=True)
class Preset:
    """A net's preprocessing, as its package defines it: channels' mean and std in 0…1; size, for images of a folder."""

    mean: Sequence[float]
    std: Sequence[float]
    size: Sizing | None = None


def build(spec: str, weights: str | None, seed: int) -> tuple[nn.Module, Preset | None]:
    """Build a net by its name on the command line, in evaluation mode, with its weights; returns it and any preset.

    UserError if there is no such net, or the weights don't fit it.

    Args:
        spec: `file.py:callable` or `module:callable`, a callable without arguments that returns a net, or a net;
            `torchvision:name`, `timm:name`, `hf:name_or_folder`.
        weights: a file, followed by `:prefix` if it holds several sets; "random", drawn by `seed`; for torchvision's
            nets also a name such as `IMAGENET1K_V1`; None: those that the callable sets, or the package's.
    """
    package, _, name = spec.partition(":")
    if not spec.rpartition(":")[0] or not spec.rpartition(":")[2]:
        raise UserError(f"net {spec!r} given; allowed is {NAMED}")
    preset = None
    if package in PACKAGES:
        torch.manual_seed(seed)
        net, preset = PACKAGES[package](name, weights)
    else:
        with _settings_kept():
            made = load_object(spec, "net")
            torch.manual_seed(seed)  # again, since an import may change it
            net = without_wrappers(called(made, spec))
    for key, tensor in net.named_parameters():
        if wrong := without_values(tensor):
            raise UserError(f"net {spec}: {key} {wrong}")
    if package not in PACKAGES:
        net = copied(net)  # a module's net is the same object each time
    if weights is not None and weights != RANDOM and not _is_name(package, weights):
        load_weights(net, weights)
    for tensor in (*net.parameters(), *net.buffers()):
        # not by Module.to, which fails on banks of kernels, which have five dimensions
        if tensor.ndim == 4 and tensor.layout == torch.strided and not tensor.is_quantized:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return net.eval(), preset


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Undo at the end what users' code sets for the whole process, such as PyTorch's default dtype."""
    folder, kind, device = Path.cwd(), torch.get_default_dtype(), torch.get_default_device()
    with warnings.catch_warnings(), torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            os.chdir(folder)
            torch.set_default_dtype(kind)
            if torch.get_default_device() != device:
                torch.set_default_device(None)


def check_distinct(spec: str, nets: Sequence[nn.Module], weights: Sequence[str | None]) -> None:
    """UserError if nets with random weights have the same weights."""
    drawn = [net.state_dict() for net, which in zip(nets, weights, strict=True) if which == RANDOM]
    first = drawn[0] if drawn else {}
    if any(all(torch.equal(x, other[key]) for key, x in first.items()) for other in drawn[1:]):
        raise UserError(
            f"weights random: net {spec} has the same weights whenever it is made, so there are no two to merge: it "
            "should neither set a seed nor be a net that exists already"
        )


def reads_grey(net: nn.Module) -> bool:
    """Whether the first convolution that could read an image reads a single channel."""
    convs = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    return next((conv.in_channels for conv in convs if conv.in_channels in COLOURS), 3) == 1


def name_of(spec: str, net: nn.Module) -> str:
    """A net's name in reports: that in its package, its class, or, for PyTorch's own classes, the callable's name."""
    package, _, name = spec.partition(":")
    if package in PACKAGES:
        return Path(name).name
    return spec.rpartition(":")[2] if type(net).__module__.startswith("torch.") else type(net).__name__


def called(made: Any, spec: str) -> nn.Module:
    """A net, or the net that a callable returns; UserError if it needs arguments, fails, or returns something else."""
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
        try:
            made = made()
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            raise UserError(f"net {spec}: making it fails: {theirs(error)}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"net {spec} returns {type(made).__name__}; a torch.nn.Module is needed")
    return made


def load_object(spec: str, what: str) -> Any:
    """The object named by `file.py:name` or `module:name`; UserError if the file or module is missing, can't be
    imported, or has no such name."""
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise UserError(f"{what} {spec}: there is no file {where}")
            with _neighbours_first(Path(where)):
                loading = importlib.util.spec_from_file_location(Path(where).stem, Path(where).resolve())
                module = importlib.util.module_from_spec(loading)
                sys.modules.setdefault(loading.name, module)  # dataclasses look their module up
                loading.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} {spec}: {theirs(error)}; for modules of your own in another folder, set PYTHONPATH=folder"
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(f"{what} {spec}: importing {where} fails: {theirs(error)}") from error
    for part in name.split("."):
        if not hasattr(module, part):
            known = [
                key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
            ]
            nearest = get_close_matches(part, known, 9, 0)
            raise UserError(
                f"{what} {spec}: {where} has no {part!r}; it has {', '.join(nearest) or 'nothing'}"
            )
        module = getattr(module, part)
    return module


@contextmanager
def _neighbours_first(file: Path) -> Iterator[None]:
    """Let a file import what lies beside it, as a script may. Afterwards its folder comes last, so that what its net
    imports later is found, but takes no library's place."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def load_metric(spec: str, net: str) -> tuple[str, Metric]:
    """A metric `file.py:fn` or `module:fn`, logits and labels → one number per image, and its name; `net`: the name of
    the net that it measures. UserError if there is no such metric, or if modules of one name lie beside its file and
    the net's."""
    if ":" not in spec:
        raise UserError(
            f"metric {spec!r} given; allowed is file.py:fn or module:fn, fn(logits, labels) → (B,)"
        )
    name = spec.rpartition(":")[2]
    if name in MEASURED:
        raise UserError(f"metric {spec}: {name} is always measured; give yours another name")
    file, other = (Path(named.rpartition(":")[0]).resolve() for named in (spec, net))
    apart = file.suffix == other.suffix == ".py" and file.parent != other.parent
    if apart and (both := _modules(file.parent) - {file.stem} & _modules(other.parent)):
        raise UserError(
            f"metric {spec}: {min(both)} lies beside it and in {other.parent}, and only one can be imported: rename "
            "one, or put both files into one folder"
        )
    with _settings_kept():
        metric = load_object(spec, "metric")
    if not callable(metric) and not isinstance(metric, Metric):
        raise UserError(
            f"metric {spec} is {type(metric).__name__}; a function of logits and labels is needed"
        )
    return name, metric if isinstance(metric, Metric) else Metric(metric)


def _modules(folder: Path) -> set[str]:
    """The names of the modules and packages in a folder."""
    paths = *folder.glob("*.py"), *(path.parent for path in folder.glob("*/*.py"))
    return {path.stem for path in paths} - {"__init__", "__main__"}


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        absent = getattr(error, "name", name) == name
        why = "isn't installed" if absent else f"can't be imported ({first_line(error)})"
        raise UserError(f"{name} {why}: pip install 'relusym[{name}]'") from error


def _from_torchvision(name: str, weights: str | None) -> tuple[nn.Module, Preset | None]:
    models = _package("torchvision").models
    try:
        known = models.get_model_weights(name)
    except ValueError as error:
        raise UserError(
            f"torchvision has no net {name!r}: torchvision.models.list_models() lists them"
        ) from error
    if weights is not None and not _is_name("torchvision", weights):
        options = inspect.signature(models.get_model_builder(name)).parameters
        alone = {"weights_backbone": None} if "weights_backbone" in options else {}  # else downloaded
        return models.get_model(name, weights=None, **alone), None
    try:
        entry = known.DEFAULT if weights is None else known[weights]
    except KeyError as error:
        raise UserError(
            f"weights {weights!r} given; torchvision's {name} has {', '.join(choice.name for choice in known)}"
        ) from error
    try:
        net = models.get_model(name, weights=entry)
    except OSError as error:  # as urllib's errors are
        raise UserError(
            f"{entry.url} can't be downloaded ({first_line(error)}): give --weights FILE, or --weights random"
        ) from error
    made = entry.transforms()
    if not hasattr(made, "mean"):
        return net, None
    size = None
    if hasattr(made, "crop_size"):
        size = Sizing(made.resize_size[0], made.crop_size[0], made.interpolation.value)
    return net, Preset(made.mean, made.std, size)


def _without_hub() -> str | None:
    """Why Hugging Face's hub can't be reached, or None. If it can't, its client, imported later, only reads its cache.

    Left to itself, the client would retry for minutes.
    """
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urlopen(Request(hub, method="HEAD"), timeout=HUB_SECONDS).close()
    except (HTTPError, HTTPException, ValueError):  # it answers, or its client reports the error better
        return None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # the client has certificates that Python may lack
            return None
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"{hub} can't be reached: {reason}"
    return None


def _from_timm(name: str, weights: str | None) -> tuple[nn.Module, Preset]:
    offline = _without_hub() if weights is None else None
    timm = _package("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"timm has no net {name!r}: timm.list_models() lists them")
    try:
        net = timm.create_model(name, pretrained=weights is None)
    except Exception as error:  # from the hub, its client or the network, of many types
        raise UserError(_unavailable("timm", name, offline, error)) from error
    how = timm.data.resolve_model_data_config(net)
    crop = how["input_size"][-1]
    squash = how["crop_mode"] == "squash"
    size = Sizing(int(crop / how["crop_pct"]), crop, how["interpolation"], squash)
    return net, Preset(how["mean"], how["std"], size)


def _from_hugging_face(name: str, weights: str | None) -> tuple[nn.Module, Preset | None]:
    local = {"local_files_only": Path(name).is_dir()}
    offline = None if local["local_files_only"] else _without_hub()
    transformers = _package("transformers")
    nets = transformers.AutoModelForImageClassification
    try:
        if weights is None:
            net = nets.from_pretrained(name, **local)
        else:
            net = nets.from_config(transformers.AutoConfig.from_pretrained(name, **local))
    except Exception as error:  # from the hub, its client or the network, of many types
        raise UserError(_unavailable("Hugging Face", name, offline, error)) from error
    try:
        reader = importlib.import_module("transformers.image_processing_utils").BaseImageProcessor
        how = reader.get_image_processor_dict(name, **local)[0]
    except OSError:  # the net has no such file
        return net, None
    return net, preset_of_processor(how)


def preset_of_processor(how: Mapping[str, Any]) -> Preset | None:
    """The preset in Hugging Face's preprocessor_config.json; None if it doesn't scale pixels to 0…1."""
    if abs(how.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3 or not how.get("do_rescale", True):
        return None
    normal = (how["image_mean"], how["image_std"]) if how.get("do_normalize", True) else ([0.0], [1.0])
    to, size = how.get("size") or {}, None
    to = {"shortest_edge": to} if isinstance(to, int) else to
    resize = to.get("shortest_edge") or to.get("height")
    if how.get("do_resize", True) and resize:
        crop = how.get("crop_size") if how.get("do_center_crop") else None
        crop = crop["height"] if isinstance(crop, Mapping) else crop
        if (share := how.get("crop_pct")) and "shortest_edge" in to and resize < WHOLE:  # ConvNeXt's
            resize, crop = int(resize / share), resize
        squash = "height" in to or (share is not None and resize >= WHOLE)
        size = Sizing(resize, crop or resize, Image.Resampling(how.get("resample", 2)).name.lower(), squash)
    return Preset(*normal, size)


def _unavailable(package: str, name: str, offline: str | None, error: Exception) -> str:
    why = offline or f"{type(error).__name__}: {first_line(error)}"
    return f"{package}'s {name} can't be loaded ({why}): give --weights FILE, or --weights random"


WHOLE = 384  # pixels from which on ConvNeXt's images are squashed instead of cropped
PACKAGES = {"torchvision": _from_torchvision, "timm": _from_timm, "hf": _from_hugging_face}


def _is_name(where: str, weights: str) -> bool:
    path = Path(weights)
    named = weights != RANDOM and ":" not in weights and not path.suffix
    return where == "torchvision" and named and not path.exists()


def card_of(weights: str) -> dict[str, Any] | None:
    """The card in the header of a file of weights; None if this package didn't write it."""
    try:
        about = checkpoint.load_arrays(weights, [])[1]
    except UserError:
        return None
    written = "relusym" in about and "which" in about and isinstance(about.get("of", []), list)
    return about if written else None


def load_weights(net: nn.Module, path: str) -> None:
    """Load a state dict into a net: safetensors, or a file by torch.save; wrappers and prefixes are recognised.

    `path` is followed by `:prefix`, as in `last.pt:ema`, if several sets of weights in the file fit. UserError if the
    file is missing or damaged, holds code, or another net's weights; or if several sets fit, and none is chosen.
    """
    file, _, prefix = path.rpartition(":")
    if Path(path).is_file() or not file:
        file, prefix = path, None
    if not Path(file).is_file():
        raise UserError(f"weights: there is no file {file}")
    expected, parameters = net.state_dict(), dict(net.named_parameters(remove_duplicate=False))
    if odd := [key for key, value in expected.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"net {type(net).__name__}: its state dict has {odd[0]}, which isn't a tensor (of a quantised layer, or of "
            "get_extra_state) and can't be averaged: give the net without"
        )
    # a running average of weights may have the parameters alone
    needed = {key: expected[key] for key in expected if key in parameters} or expected
    sets = _sets(read_tensors(Path(file)), needed)
    if not sets:
        raise UserError(f"weights {file} holds no tensors by name: a state dict is needed")
    fitting = {name: state for name, state in sets.items() if _fits(state, needed)}
    if prefix is not None:
        name = prefix.removesuffix(".")
        within = [place for place in fitting or sets if name and f".{name}." in f".{place}."]
        if name not in sets and len(within) != 1:
            raise UserError(
                f"weights {path}: {name!r} isn't one of its sets of weights, which are {_names(sets)}"
            )
        state = sets[name if name in sets else within[0]]
    else:
        state = max((fitting or sets).values(), key=lambda state: sum(key in state for key in expected))
        if any(other is not state and not _same(state, other, expected) for other in fitting.values()):
            raise UserError(
                f"weights {file} holds {len(fitting)} sets that fit, {_names(fitting)}: choose one, such as "
                f"{file}:{next(iter(fitting))}"
            )
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(
                f"weights {file}: {key} is sparse, quantised or without values; plain tensors are needed"
            )
        if key in expected and expected[key].is_floating_point() and not tensor.is_floating_point():
            raise UserError(
                f"weights {file}: {key} is {tensor.dtype}, as in a quantised net: give plain float32 tensors"
            )
    state = {k: v for k, v in expected.items() if k.endswith(".num_batches_tracked")} | state
    for names in tensor_names(expected):  # of which safetensors keeps one
        held = [state[name] for name in names if name in state]
        if not all(torch.equal(held[0], tensor) for tensor in held[1:]):
            raise UserError(
                f"weights {path}: {listed(names)} differ, but are one tensor in {type(net).__name__}"
            )
        state |= dict.fromkeys(names, held[0]) if held else {}
    if wrong := misfits(state, expected, most=SHOWN):
        raise UserError(f"weights {path} don't fit {type(net).__name__}: {wrong}")
    net.load_state_dict(state)


def _sets(contents: Any, expected: Mapping[str, Tensor], path: str = "") -> dict[str, dict[str, Tensor]]:
    """All sets of weights in a checkpoint: what precedes their names (keys of dicts, modules) → state dict."""
    if not isinstance(contents, Mapping):
        return {}
    tensors = {str(key): value for key, value in contents.items() if isinstance(value, Tensor)}
    first = next(iter(expected), "")
    heads = {key.removesuffix(first) for key in tensors if key == first or key.endswith(f".{first}")} or {""}
    under = {
        head: {key.removeprefix(head): tensor for key, tensor in tensors.items() if key.startswith(head)}
        for head in sorted(heads)
        if tensors
    }
    whole = [head for head, state in under.items() if _fits(state, expected)]
    sets = {}
    for head, state in under.items():  # without the sets below it, such as `ema.` beside a net's weights
        below = tuple(other.removeprefix(head) for other in whole if other != head and other.startswith(head))
        sets[f"{path}{head}".removesuffix(".")] = {
            key: tensor for key, tensor in state.items() if not (below and key.startswith(below))
        }
    for key, value in contents.items():
        sets = _sets(value, expected, f"{path}{key}.") | sets
    return sets


def _fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(key in state and state[key].shape == tensor.shape for key, tensor in expected.items())


def _same(state: Mapping[str, Tensor], other: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(key not in state or torch.equal(state[key], other[key]) for key in expected if key in other)


def _names(sets: Mapping[str, Any]) -> str:
    return listed([repr(name) for name in sets], SHOWN)
