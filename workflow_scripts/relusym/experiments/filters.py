"""Filters of a net and of its permuted flipped net: small arrays, so that figures need no checkpoint.

Arrays alone, without PyTorch: what reads them back starts in an instant.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from relusym import checkpoint
from relusym.errors import UserError
from relusym.randomness import stream
from relusym.records import sha256

Record = dict[str, Any]

DRAWN = ("conv1", "conv2")
RGB = 3


def kernels(state: dict[str, np.ndarray], group_convs: int) -> dict[str, np.ndarray]:
    """Every conv's whole kernel (c_out, c_in, 3, 3), group convs written out as by `RegularConv2d.kernel`.

    Args:
        state: a VGG11's state dict.
        group_convs: how many convs, from the first on, are horizontal-flip group convs.
    """
    written = {}
    for number in range(1, 1 + sum(name.endswith(".weight") and "conv" in name for name in state)):
        psi = state[f"features.conv{number}.weight"]
        if number <= group_convs:
            shifted = psi if number == 1 else np.roll(psi, psi.shape[1] // 2, axis=1)
            psi = np.concatenate([psi, shifted[..., ::-1]])
        written[f"conv{number}"] = psi
    return written


def permuted_flipped(psi: np.ndarray, after: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """A flipped kernel with its output and input channels permuted to match those of `psi` (c_out, c_in, 3, 3)."""
    psi = psi[after, ..., ::-1]
    return psi if before is None else psi[:, before]


def projection_to_rgb(channels: int, seed: int) -> np.ndarray:
    """A random projection matrix (3, channels), the same for all nets of one width."""
    rng = np.random.default_rng(stream(seed, "projection to RGB", channels))
    return rng.standard_normal((RGB, channels)) / np.sqrt(channels)


def measure_filters(
    path: Path, flip_record: Record, settings: Record
) -> tuple[dict[str, np.ndarray], Record]:
    """The arrays kept of a net, and what they are of; both for `checkpoint.save_arrays`.

    Args:
        path: the net's checkpoint.
        flip_record: the flip-merge record that was made from this checkpoint.
        settings: as `Settings.filters` gives them.

    Raises:
        UserError: the record was made from another checkpoint.
    """
    made_from, given = sha256(path), flip_record["inputs"]["checkpoints"][0]
    if made_from != given:
        raise UserError(
            f"checkpoint {path} isn't the one that the flip_merge record of {flip_record['model']}-"
            f"{flip_record['seed']} was made from: delete the record, and it is made again"
        )
    about = {
        "kind": "filters",
        "status": flip_record["status"],
        "reason": flip_record.get("reason"),
        "model": flip_record["model"],
        "seed": flip_record["seed"],
        "settings": settings,
        "inputs": inputs_of(flip_record),
    }
    if flip_record["status"] != "ok":
        return {}, about
    state, trained = checkpoint.load_arrays(path)
    permutations = {name: np.array(order, np.int16) for name, order in flip_record["permutations"].items()}
    arrays, constraint, before = {}, {}, None
    for name, psi in kernels(state, trained["settings"]["network"]["group_convs"]).items():
        both = np.stack([psi, permuted_flipped(psi, permutations[name], before)])
        constraint[name] = float(np.linalg.norm(both[1] - both[0]) / np.linalg.norm(psi))
        arrays[f"norm.{name}"] = np.sqrt(np.square(psi, dtype=np.float64).sum((1, 2, 3))).astype(np.float32)
        if name in DRAWN:
            if psi.shape[1] != RGB:
                projection = projection_to_rgb(psi.shape[1], settings["projection_seed"])
                both = np.einsum("rc,nochw->norhw", projection, both)
            arrays[name] = both.astype(np.float16)  # to be looked at
            arrays[f"permutation.{name}"] = permutations[name]
        before = permutations[name]
    return arrays, {**about, "kernel_constraint": constraint}


def inputs_of(flip_record: Record) -> dict[str, str]:
    """What of a flip-merge record the arrays depend on: its checkpoint and its permutations, by their hashes."""
    permutations = json.dumps(flip_record.get("permutations"), sort_keys=True).encode()
    return {
        "checkpoint": flip_record["inputs"]["checkpoints"][0],
        "permutations": hashlib.sha256(permutations).hexdigest(),
    }


def read_about(path: str | Path) -> Record:
    """What the file's header says: kind, status, settings, inputs.

    Raises:
        UserError: it isn't a file of filters.
    """
    about = checkpoint.load_arrays(path, names=())[1]
    if about.get("kind") != "filters":
        raise UserError(f"{path} holds no filters: delete it, and it is made again")
    return about
