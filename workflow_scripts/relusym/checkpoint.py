"""Checkpoints: tensors and text in one safetensors file, written whole; loading never runs code."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from relusym.errors import UserError
from relusym.records import write_whole


def save(path: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write `tensors` with `about` (JSON) in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_whole(path) as part:
        # not by save_file, whose error on a full disk is no OSError
        part.write_bytes(serialize(tensors, {"relusym": json.dumps(about)}))


def load(
    path: str | Path, device: str | torch.device = "cpu", names: Iterable[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (only those of `names`, if given) and what `save` was told about them.

    Raises:
        UserError: the file is missing, truncated, or not written by `save`.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(torch.device(device))) as file:
            about = (file.metadata() or {}).get("relusym")
            wanted = file.keys() if names is None else names
            tensors = {name: file.get_tensor(name) for name in wanted}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: let snakemake make it") from error
    except (SafetensorError, struct.error, OSError) as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({error}): delete it, and it is made again"
        ) from error
    if about is None:
        raise UserError(f"{path} was not written by this project: delete it, and it is made again")
    return tensors, json.loads(about)
