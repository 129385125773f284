"""Checkpoints and arrays that aren't what they should be are refused in one line, and left as they are."""

import json
import os
import pickle
import re

import pytest
import records
import torch

from relusym import checkpoint
from relusym.errors import UserError
from relusym.measuring.loading import load_net, trained_net
from relusym.records.files import write_record
from relusym.whole_files import sha256

TRAIN = records.train("cnn", 0)


def net_of(value=0.0, about=None, text=None):
    """A checkpoint that its train record names, read for a merge."""

    def read(root):
        path, record = root / "cnn-0.safetensors", root / "cnn-0.json"
        settings = {"network": {"architecture": "vgg11", "width": 1 / 32}, "symmetry": "horizontal_flip"}
        checkpoint.save(
            path, {"conv1.weight": torch.full((2,), value)}, {"settings": settings, "classes": 10}
        )
        if text is not None:
            path.write_bytes(text)
        write_record(record, TRAIN | {"settings": settings, "outputs": {"checkpoint": sha256(path)}})
        before = path.read_bytes(), record.read_bytes()
        try:
            trained_net(path, record, settings, torch.device("cpu"))
        finally:
            assert (path.read_bytes(), record.read_bytes()) == before

    return read


def header(metadata):
    """A safetensors file without tensors, its header's text as given."""
    text = json.dumps({"__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


def a_folder_for_a_checkpoint(root):
    (root / "net.safetensors").mkdir()
    checkpoint.load(root / "net.safetensors")


def a_looping_checkpoint(root):
    (root / "net.safetensors").symlink_to("net.safetensors")
    checkpoint.load_arrays(root / "net.safetensors")


CASES = {
    "weights that are no numbers": (
        net_of(float("nan")),
        r"cnn-0\.safetensors has weights that are no numbers, in conv1\.weight",
    ),
    "infinite weights": (net_of(float("inf")), r"cnn-0\.safetensors has weights that are no numbers"),
    "header that is no JSON": (
        net_of(text=header({"relusym": "{"})),
        r"was not written by this project: delete it, and",
    ),
    "header of another project": (net_of(text=header({"relusym": "[1]"})), "was not written by this project"),
    "broken header": (
        net_of(text=b'\x10\0\0\0\0\0\0\0{"broken": \n\n'),
        r"is truncated or no safetensors file \(.*\): delete it",
    ),
    "empty checkpoint": (net_of(text=b""), "is truncated or no safetensors file"),
    "another net's checkpoint": (
        net_of(1.0),
        "doesn't hold a net of this project: delete it, and it is made",
    ),
    "folder for a checkpoint": (
        a_folder_for_a_checkpoint,
        r"net\.safetensors can't be read \(Is a directory\)",
    ),
    "unreadable filters": (a_looping_checkpoint, r"net\.safetensors can't be read \(Too many levels"),
}


@pytest.mark.parametrize(("read", "line"), CASES.values(), ids=CASES)
def test_a_checkpoint_that_can_not_be_is_refused_in_one_line(read, line, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert "\n" not in str(error.value) and re.search(line, str(error.value)), error.value


class Trap:
    """Unpickled, it makes the folder `sprung`."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def test_a_pickled_checkpoint_is_refused_without_running_what_it_holds(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match=r"net\.safetensors is truncated or no safetensors file"):
        load_net(path, torch.device("cpu"))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "sprung").exists()  # the trap works
