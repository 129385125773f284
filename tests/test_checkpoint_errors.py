import json

import pytest
import records
import torch
from conftest import refused

from relusym import checkpoint
from relusym.measuring.loading import named_checkpoint, trained_net
from relusym.records.files import write_record
from relusym.whole_files import sha256

SETTINGS = {"network": {"architecture": "vgg11", "width": 1 / 32}, "symmetry": "horizontal_flip"}
ABOUT = {"model": "cnn", "seed": 0, "settings": SETTINGS, "classes": 10}


def header(metadata):
    """A safetensors file without tensors, its header's text as given."""
    text = json.dumps({"__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


CONTENTS = {
    "weights that are no numbers": ({"conv1.weight": torch.full((2,), torch.nan)},
     "cnn-0.safetensors has weights that are no numbers, in conv1.weight"),
    "infinite weights": ({"conv1.weight": torch.full((2,), torch.inf)}, "has weights that are no numbers"),
    "another net": ({"conv1.weight": torch.ones(2)},
     "doesn't hold a net of this project: delete it, and it is"),
    "header that is no JSON": (header({"relusym": "{"}), "was not written by this project: delete it, and"),
    "header of another project": (header({"relusym": "[1]"}), "was not written by this project"),
    "broken header": (b'\x10\0\0\0\0\0\0\0{"broken": \n\n', "is truncated or no safetensors file ("),
    "empty": (b"", "is truncated or no safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "line"), CONTENTS.values(), ids=CONTENTS)
def test_a_checkpoint_that_can_not_be_is_refused_in_one_line(content, line, tmp_path):
    path, record = tmp_path / "cnn-0.safetensors", tmp_path / "cnn-0.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        checkpoint.save(path, content, ABOUT)
    write_record(record, records.train("cnn", 0, settings=SETTINGS, outputs={"checkpoint": sha256(path)}))
    before = path.read_bytes(), record.read_bytes()
    refused(lambda: trained_net(path, record, SETTINGS, torch.device("cpu")), "cnn-0.safetensors", line)
    assert (path.read_bytes(), record.read_bytes()) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": "gcnn"}])
def test_a_checkpoint_whose_header_says_another_net_than_its_record_is_refused(change, tmp_path):
    path, record = tmp_path / "cnn-0.safetensors", tmp_path / "cnn-0.json"
    for about in (ABOUT, ABOUT | change):
        checkpoint.save(path, {}, about)
        write_record(record, records.train("cnn", 0, settings=SETTINGS, outputs={"checkpoint": sha256(path)}))
        if about == ABOUT:
            assert named_checkpoint(path, record, SETTINGS, "cpu")[1] == about
    ((key, value),) = change.items()
    line = f"is of {key} {value}, and"
    refused(lambda: named_checkpoint(path, record, SETTINGS, "cpu"), line, ": delete both")
