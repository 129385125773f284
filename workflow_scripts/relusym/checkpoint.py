"""Checkpoints: tensors and JSON metadata in one safetensors file, written whole; loading never runs code.

PyTorch is imported only where its tensors are needed: jobs on NumPy arrays start ten times faster without it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from relusym.errors import UserError
from relusym.whole_files import open_file, write_whole

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


def save(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write `tensors`, with `about` as JSON in the header; one that layers share is written under each of its names."""
    from safetensors.torch import save as serialize

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with write_whole(path) as part:
        # not by save_file, whose error on a full disk isn't an OSError
        part.write_bytes(serialize(tensors, {"relusym": json.dumps(about)}))


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Like `save`, for NumPy arrays; `arrays` may be empty."""
    from safetensors.numpy import save as serialize

    arrays = {name: array.copy(order="C") for name, array in arrays.items()}
    with write_whole(path) as part:
        part.write_bytes(serialize(arrays, {"relusym": json.dumps(about, allow_nan=False)}))


def load(
    path: str | Path, device: str | torch.device = "cpu", names: Iterable[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (only `names`; None: all) and `save`'s `about`; UserError if `save` didn't write the file."""
    return _load(path, "pt", str(device), names)


def load_arrays(
    path: str | Path, names: Iterable[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Like `load`, but as NumPy arrays, also from files of `save`. An empty `names` reads the header alone."""
    return _load(path, "np", "cpu", names)


def shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name, without reading the tensors; UserError as in `load`."""
    with _opened(path, "np", "cpu") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _load(path: str | Path, framework: str, device: str, names: Iterable[str] | None) -> tuple[dict, dict]:
    with _opened(path, framework, device) as file:
        header = (file.metadata() or {}).get("relusym")
        tensors = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    try:
        about = json.loads(header or "null")
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{path} was not written by this project: delete it, and it is made again")
    return tensors, about


@contextmanager
def _opened(path: str | Path, framework: str, device: str) -> Iterator[Any]:
    try:
        open_file(path).close()  # safetensors reports any file that it can't open as missing
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: let snakemake make it") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): make it readable, or delete it") from error
    try:
        with safe_open(str(path), framework=framework, device=device) as file:
            yield file
    except (SafetensorError, struct.error, OSError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({' '.join(str(error).split())}): delete it, and it is "
            "made again"
        ) from error
