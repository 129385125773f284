"""ResNet weights from elsewhere: fetched once, read without running code, brought to torchvision's names."""

import argparse
import pickle
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from relusym.errors import UserError, listed
from relusym.nets import build
from relusym.whole_files import distinct_names, open_file, sha256, write_text, write_whole

State = dict[str, Tensor]

# Layout → what precedes torchvision's names in it; longer ones first, since "module." is part of them.
PREFIXES = {
    "module.base_encoder": "module.base_encoder.",  # MoCo-v3's pretraining
    "module.encoder": "module.encoder.",  # SimSiam's pretraining
    "module": "module.",  # DistributedDataParallel
    "plain": "",
}
WRAPPERS = ("state_dict", "model")  # keys that training scripts put the tensors under
PROJECTION = re.compile(r"fc\.\d+\.")  # a self-supervised head in place of the linear layer
HASH = re.compile(r"sha256=[0-9a-fA-F]{64}")  # at the end of an address
LINEAR_HEAD = re.compile(r"(?:module\.)?(?:linear|fc)\.(weight|bias)")
TIMEOUT_S = 60
# Plain data that training scripts save beside tensors: their arguments, and accuracies computed by NumPy.
PLAIN = [
    *(argparse.Namespace, SimpleNamespace, PosixPath),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
    *((getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")
      for name in ("scalar", "_reconstruct") for core in ("core", "_core")),
    (lambda *factory: {}, "collections.defaultdict"),  # PyTorch's reader fills no other kind of dict
    *((kind, f"builtins.{kind.__name__}") for kind in (list, dict, int, float)),
]  # fmt: skip
LONGEST_NAME = 1000  # bytes of a global's module and name
LONGEST, LONGEST_PART = 1000, 200  # characters of an address, which becomes a path, and of a part of it
UNREACHABLE = urllib.error.URLError, TimeoutError, ConnectionError


class UnavailableError(UserError):
    """A checkpoint that can't be downloaded now; a later attempt may succeed."""


def read_tensors(path: Path) -> dict[str, Any]:
    """As `read_contents`, for a file that holds tensors by name; UserError if it holds something else."""
    contents = read_contents(path)
    if not isinstance(contents, dict):
        raise UserError(
            f"checkpoint {path} holds no tensors by name but a {type(contents).__name__}: save a state dict"
        )
    return contents


def read_contents(path: Path) -> Any:
    """What a checkpoint file holds: `torch.save`'s or safetensors'. No code in it is ever run. UserError if the file is
    truncated, isn't a checkpoint, or holds more than tensors and plain values."""
    head = tail = b""
    try:
        with open_file(path) as file:
            head = file.read(9)
            file.seek(max(0, file.seek(0, 2) - LONGEST_NAME))
            tail = file.read()
        if path.suffix == ".safetensors" or head[8:] == b"{":  # after the length of its header
            return load_file(path)
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types of tensors
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # a global, rather than an opcode in any text, and not one that is cut off, whose last letter isn't read
        kind = re.search(r"nsupported (?:global: )?GLOBAL (\S+)", str(error))
        end = tail[:-1].replace(b"\n", b".").rstrip(b".")
        if head.startswith(b"PK") or (kind and not end.endswith(kind[1].rstrip(".").encode())):
            what = (
                f"more than tensors ({kind[1]})" if kind else "a pickle of another protocol than torch.save's"
            )
            raise UserError(
                f"checkpoint {path} holds {what}, and loading it could run code: refused; save its state dict alone"
            ) from error
        raise UserError(_unreadable(path, head)) from error
    except Exception as error:  # of any kind, if the bytes aren't what PyTorch wrote
        if "TorchScript" in str(error):
            raise UserError(
                f"checkpoint {path} is a scripted net, which is code: save the state dict of the net itself"
            ) from error
        raise UserError(_unreadable(path, head, f" ({type(error).__name__})")) from error


def _unreadable(path: Path, head: bytes, why: str = "") -> str:
    if head[:1] == pickle.PROTO:
        return (
            f"checkpoint {path} is a bare pickle, or only the beginning of what torch.save wrote; loading it could run "
            "code: refused; save a state dict with torch.save"
        )
    return f"{path} is truncated or no checkpoint{why}: replace it"


def fetch(url: str, folder: Path) -> Path:
    """The file at `url`, downloaded into `folder` on first use.

    If the address ends with `#sha256=…`, the file must have that SHA-256. It is recorded beside the file (`.sha256`)
    once the file has been read as a checkpoint, and must stay the same: a file that differs (truncated, changed) is
    fetched again. UnavailableError if it can't be downloaded; UserError if the address leads out of `folder`, or the
    download is truncated, isn't a checkpoint, or has another SHA-256.
    """
    address, _, fragment = url.partition("#")
    if fragment and not HASH.fullmatch(fragment):
        raise UserError(f"{url}: after # must come sha256= and 64 hexadecimal digits")
    pinned = fragment.removeprefix("sha256=").lower() or None
    parts = [part for part in address.partition("://")[2].split("/") if part]
    if not parts or {".", ".."} & {*parts}:
        raise UserError(f"{url}: . and .. can't be parts of an address of weights; give it without")
    if max(map(len, parts)) > LONGEST_PART or len(address) > LONGEST:
        raise UserError(
            f"{url[:60]}…: the address has more than {LONGEST} characters, or a part of it more than {LONGEST_PART}"
        )
    path = folder.joinpath(*parts)
    if _is_as_recorded(path) and pinned in (None, sha256(path)):
        return path
    download(address, path)
    known = pinned or _recorded(path)
    if known is not None and (actual := sha256(path)) != known:
        path.unlink()
        raise UserError(
            f"{address} has SHA-256 {actual}, and not {known} as its address says: check its source, and correct one"
            if pinned
            else f"{address} is no longer the file that was first used (SHA-256 {known}): delete {_note(path)} to "
            "accept it"
        )
    try:
        read_tensors(path)
    except UserError:
        path.unlink()
        raise
    _record(path)
    return path


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, whole or not at all. UnavailableError if the server can't be reached, or doesn't have
    it; UserError if the download ends early."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "file" and not Path(urllib.request.url2pathname(parts.path)).is_file():
            raise ValueError("no regular file")  # a pipe or a device may never end
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, write_whole(path) as part:
            with part.open("wb") as file:
                shutil.copyfileobj(answer, file)
                received = file.tell()
            promised = answer.headers.get("Content-Length")
            if promised is not None and received != int(promised):
                raise UserError(
                    f"{url}: only {received:,} of {int(promised):,} bytes arrived: run again to fetch it again"
                )
    except (*UNREACHABLE, HTTPException, ValueError) as error:
        raise _unavailable(url, error) from error


def _unavailable(url: str, error: Exception) -> UnavailableError:
    reason = " ".join(str(getattr(error, "reason", error)).split())
    return UnavailableError(f"{url} can't be downloaded ({reason}): try again, or set its `weights.file`")


def from_torchvision(name: str, folder: Path) -> tuple[State, Path]:
    """torchvision's ResNet50 weights by their name in its enum, read by its loader, and their file.

    UnavailableError if they can't be downloaded; UserError if torchvision has no such weights, or the download has
    another hash than its name says.
    """
    from torchvision.models import get_weight

    try:
        weights = get_weight(f"ResNet50_Weights.{name}")
    except (KeyError, ValueError) as error:
        raise UserError(f"torchvision has no ResNet50 weights {name!r}") from error
    path = folder / Path(weights.url).name
    if not _is_as_recorded(path):
        path.unlink(missing_ok=True)
    try:
        state = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu", model_dir=str(folder)
        )
    except UNREACHABLE as error:
        raise _unavailable(weights.url, error) from error
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{weights.url}: {error}: run again to fetch it again") from error
    _record(path)
    return state, path


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    try:
        with open_file(_note(path)) as file:
            text = file.read(100).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{_note(path)} can't be read ({error.strerror}): delete it") from error
    if not HASH.fullmatch(f"sha256={text}"):
        raise UserError(f"{_note(path)} holds no SHA-256: delete it, and it is written again")
    return text.lower()


def _record(path: Path) -> None:
    write_text(_note(path), f"{sha256(path)}\n")


def _is_as_recorded(path: Path) -> bool:
    if not path.exists() or (recorded := _recorded(path)) is None:
        return False
    if sha256(path) == recorded:
        return True
    print(f"{path} is not what it was when first used (truncated or changed): it is fetched again")
    return False


def to_torchvision(
    files: Sequence[tuple[str, dict[str, Any]]], network: dict[str, Any], layout: str = "auto"
) -> tuple[State, list[str]]:
    """A ResNet's state dict with torchvision's names, and what was left out of it: projection heads, predictors,
    momentum encoders.

    UserError names all tensors that are missing, surplus or of another shape, or the layout if that is another one.

    Args:
        files: name and contents of each: a whole net, or a backbone and a linear head.
        network: the config's `network` section.
        layout: one of `PREFIXES`, or "auto" for any of them.
    """
    state: State = {}
    dropped: list[str] = []
    for name, contents in files:
        for wrapper in WRAPPERS:
            contents = contents[wrapper] if isinstance(contents.get(wrapper), dict) else contents
        tensors = {k: v for k, v in contents.items() if isinstance(v, Tensor) and isinstance(k, str)}
        kind = next((kind for kind, prefix in PREFIXES.items() if f"{prefix}conv1.weight" in tensors), None)
        if kind is None:
            head = {match[1]: key for key in tensors if (match := LINEAR_HEAD.fullmatch(key))}
            state |= {f"fc.{part}": tensors.pop(key) for part, key in head.items()}
            if not head or tensors:
                surplus = ", ".join(tensors) or "no tensors"
                raise UserError(
                    f"checkpoint {name} is neither a ResNet nor a linear head: it holds {surplus}"
                )
            continue
        if layout not in ("auto", kind):
            raise UserError(
                f"checkpoint {name} is in the layout {kind}, not {layout}: set its `weights.layout`"
            )
        prefix = PREFIXES[kind]
        for key, tensor in tensors.items():
            plain = key.removeprefix(prefix)
            if head := LINEAR_HEAD.fullmatch(plain):  # some call it `linear`
                plain = f"fc.{head[1]}"
            beside = bool(prefix) and not key.startswith(prefix)  # predictor, momentum encoder
            if beside or PROJECTION.match(plain):
                dropped.append(key)
            elif plain in state:
                raise UserError(f"checkpoint {name} holds {plain} for a second time: give each tensor once")
            else:
                state[plain] = tensor
    classes = next(iter(state["fc.weight"].shape), 1000) if "fc.weight" in state else 1000
    with torch.device("meta"):
        expected = build(network, classes).state_dict()
    counters = {key: torch.tensor(0) for key in expected if key.endswith(".num_batches_tracked")}
    state = counters | state  # old files lack the counters
    if wrong := misfits(state, expected):
        raise UserError(f"checkpoint {', '.join(name for name, _ in files)} doesn't fit the net: {wrong}")
    return {key: state[key] for key in expected}, dropped


def misfits(state: State, expected: State, most: int | None = None) -> str:
    """How a state dict differs from a net's, and which tensors have NaN or infinity; "" if it fits. `most`: names
    listed of each kind; None: all."""
    wrong = {
        "missing": [key for key in expected if key not in state],
        "surplus": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(tensor.shape)} and not {tuple(expected[key].shape)}"
            for key, tensor in state.items()
            if key in expected and tensor.shape != expected[key].shape
        ],
        "not all numbers": [key for key, tensor in state.items() if not _are_numbers(tensor)],
    }
    return "; ".join(f"{how}: {listed(keys, most)}" for how, keys in wrong.items() if keys)


def _are_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has its values in memory, all of them real and finite."""
    odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex()
    return not odd and bool(tensor.isfinite().all())


def gather(weights: dict[str, Any], network: dict[str, Any], folder: Path) -> tuple[State, dict[str, Any]]:
    """A net's weights from the source in its config, and what records keep of them: `classes`, `files`, `dropped`.

    UnavailableError if they can't be downloaded; UserError if they aren't those of such a net.

    Args:
        weights: the config's `weights` section: `file` (a path or several), `urls`, or `torchvision` (a name in its
            enum); `layout` as in `to_torchvision`.
        network: the config's `network` section.
        folder: where downloads are kept.
    """
    if name := weights.get("torchvision"):
        state, path = from_torchvision(name, folder)
        files, paths = [(path.name, state)], [path]
    else:
        file = weights.get("file")
        some = [file] if isinstance(file, str) else file
        paths = [*map(Path, some)] if some else [fetch(url, folder) for url in weights["urls"]]
        files = [(str(path), read_tensors(path)) for path in paths]
    state, dropped = to_torchvision(files, network, weights.get("layout", "auto"))
    files = dict(zip(distinct_names(paths), map(sha256, paths), strict=True))
    return state, {"classes": len(state["fc.weight"]), "files": files, "dropped": dropped}
