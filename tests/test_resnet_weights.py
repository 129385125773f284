"""Published ResNet checkpoints: key layouts, mismatches, code in files, downloads."""

import contextlib
import http.server
import os
import pickle
import random
import threading
import warnings
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import refused, settings_of

from relusym.errors import UserError
from relusym.nets import build
from relusym.nets.weights import (
    UnavailableError,
    fetch,
    from_torchvision,
    gather,
    read_tensors,
    to_torchvision,
)
from relusym.whole_files import distinct_names, sha256, write_whole

SMALL = {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1], "width": 1 / 64}
RESNET50 = {"architecture": "resnet", "block": "bottleneck", "layers": [3, 4, 6, 3], "width": 1 / 16}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return build(RESNET50, 1000).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without_head(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def head(state, prefix):
    return {f"{prefix}.{part}": state[f"fc.{part}"] for part in ("weight", "bias")}


def pretrained(state, *encoders):
    """A checkpoint of self-supervised training: encoders whose heads are projections, and a predictor."""
    made = {"module.predictor.0.weight": torch.ones(2, 2)}
    for encoder in encoders:
        made |= prefixed(without_head(state) | PROJECTION, f"module.{encoder}.")
    return {"state_dict": made}


PROJECTION = {"fc.0.weight": torch.ones(3, 3), "fc.1.running_mean": torch.ones(3), "fc.6.bias": torch.ones(3)}
LAYOUTS = {
    "torchvision's": lambda s: [s],
    "wrapped": lambda s: [{"epoch": 3, "arch": "resnet50", "state_dict": s, "optimizer": {"lr": 0.1}}],
    "DistributedDataParallel": lambda s: [{"state_dict": prefixed(s, "module.")}],
    "backbone and separate head": lambda s: [
        without_head(s), {"state_dict": head(s, "module.linear"), "best_acc": 0.7}
    ],
    "SimSiam": lambda s: [pretrained(s, "encoder"), {"state_dict": head(s, "module.fc")}],
    "MoCo-v3": lambda s: [pretrained(s, "base_encoder", "momentum_encoder"), head(s, "fc")],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_from_files(state, tmp_path, name):
    paths = []
    for i, contents in enumerate(LAYOUTS[name](state)):
        paths.append(tmp_path / f"{i}.pth")
        torch.save(contents, paths[-1])
    given = {"file": [str(path) for path in paths], "layout": "auto"}
    gathered, about = gather(given, RESNET50, tmp_path)
    assert list(gathered) == list(state)
    assert all(torch.equal(gathered[key], tensor) for key, tensor in state.items())
    assert about["classes"] == 1000 and about["files"] == {path.name: sha256(path) for path in paths}
    heads = {"SimSiam": 3 + 1, "MoCo-v3": 3 + 1 + len(without_head(state)) + 3}
    assert len(about["dropped"]) == heads.get(name, 0)


def test_the_public_cifar_resnets_layout_is_read(tmp_path):
    """Behind `module.`, with a head called `linear`, and option A shortcuts."""
    network = {"architecture": "cifar_resnet", "blocks": 1, "shortcut": "pad"}
    state = build(network, 10).state_dict()
    names = {name: f"module.{name.replace('fc.', 'linear.')}" for name in state}
    torch.save({"state_dict": {names[key]: tensor for key, tensor in state.items()}}, tmp_path / "a.th")
    gathered, about = gather({"file": str(tmp_path / "a.th")}, network, tmp_path)
    assert list(gathered) == list(state) and all(torch.equal(gathered[key], state[key]) for key in state)
    assert about["classes"] == 10 and not about["dropped"]


@pytest.mark.parametrize("layout", ["plain", "module", "module.encoder"])
def test_a_layout_named_by_the_config_is_the_only_one_accepted(state, layout):
    contents = state if layout == "plain" else prefixed(state, f"{layout}.")
    assert to_torchvision([("a.pth", contents)], RESNET50, layout)[0].keys() == state.keys()
    line = rf"a\.pth is in the layout {layout}, not module\.base_encoder"
    refused(lambda: to_torchvision([("a.pth", contents)], RESNET50, "module.base_encoder"), match=line)


def test_every_missing_surplus_and_misshapen_tensor_is_named(state):
    broken = dict(state)
    del broken["layer3.2.conv1.weight"], broken["bn1.running_var"]
    broken["mystery.weight"] = torch.ones(1)
    broken["layer1.0.bn1.bias"] = torch.ones(3)
    assert refused(lambda: to_torchvision([("a.pth", broken)], RESNET50)) == (
        "checkpoint a.pth doesn't fit the net: missing: bn1.running_var, layer3.2.conv1.weight; "
        "surplus: mystery.weight; of another shape: layer1.0.bn1.bias (3,) and not (4,)"
    )


def test_a_backbone_without_a_head_is_refused_with_what_is_missing(state):
    line = r"missing: fc\.weight, fc\.bias$"
    refused(lambda: to_torchvision([("a.pth", without_head(state))], RESNET50), match=line)


def test_a_separate_head_replaces_the_nets_but_two_nets_are_refused(state):
    bare = {name: 0 * tensor for name, tensor in head(state, "fc").items()}
    replaced, _ = to_torchvision([("a.pth", state), ("b.pth", bare)], RESNET50)
    assert not replaced["fc.weight"].any() and replaced["conv1.weight"].any()
    for files in ([("a.pth", state), ("b.pth", state)], [("b.pth", bare), ("a.pth", state)]):
        refused(partial(to_torchvision, files, RESNET50), match=r"a second time: give each tensor once$")


def test_counters_that_old_files_lack_may_be_missing(state):
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert to_torchvision([("a.pth", old)], RESNET50)[0].keys() == state.keys()


def test_weights_that_are_not_finite_are_refused():
    state = build(SMALL, 10).state_dict()
    state["fc.bias"][0] = float("nan")
    line = r"mine\.pth doesn't fit the net: not all numbers: fc\.bias"
    refused(lambda: to_torchvision([("mine.pth", state)], SMALL), match=line)


def test_a_file_of_something_else_is_refused():
    line = r"neither a ResNet nor a linear head: it holds encoder\.conv"
    refused(lambda: to_torchvision([("a.pth", {"encoder.conv": torch.ones(1)})], RESNET50), match=line)


class Payload:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("form", ["zipped", "unzipped", "bare pickle"])
def test_a_checkpoint_with_a_pickle_payload_is_refused_and_does_not_run(tmp_path, form):
    path = tmp_path / "bad.pth"
    contents = {"conv1.weight": torch.ones(1), "surprise": Payload(tmp_path / "ran")}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(contents["surprise"]))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "zipped")
    line = "is a bare pickle, or .*refused" if form == "bare pickle" else "holds more than tensors.*refused"
    refused(lambda: read_tensors(path), match=rf"bad\.pth {line}")
    assert not (tmp_path / "ran").exists()
    with contextlib.suppress(RuntimeError):  # a bare pickle isn't one of torch's files
        torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # any other unpickler runs the code


@pytest.mark.parametrize(("how", "line"), [
    ({}, r"more than tensors \(posix\.getcwd\)"), ({"pickle_protocol": 4}, "a pickle of another protocol"),
    ({"_use_new_zipfile_serialization": False}, r"more than tensors \(posix\.getcwd\)"),
])  # fmt: skip
def test_a_checkpoint_whose_code_torch_refuses_in_other_words_isnt_called_truncated(tmp_path, how, line):
    torch.save({"conv1.weight": torch.ones(1), "folder": os.getcwd}, tmp_path / "bad.pth", **how)
    line += ".*, and loading it could run code: refused; save its state dict alone"
    refused(lambda: read_tensors(tmp_path / "bad.pth"), match=line)


def test_weights_are_read_from_what_training_scripts_save(tmp_path):
    beside = {"args": Namespace(lr=0.1), "accuracy": np.float64(93.1), "losses": np.arange(3.0)}
    torch.save({"model": {"weight": torch.ones(1)}, **beside}, tmp_path / "last.pth")
    contents = read_tensors(tmp_path / "last.pth")
    assert contents["model"]["weight"] == 1 and contents["accuracy"] == 93.1
    assert contents["args"] == beside["args"] and contents["losses"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    torch.save({"conv1.weight": torch.ones(1000)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    refused(lambda: read_tensors(tmp_path / "cut.pth"), match=r"cut\.pth is truncated or no checkpoint")


def test_a_checkpoint_of_the_older_format_is_refused_wherever_it_is_truncated(tmp_path):
    torch.save({"conv1.weight": torch.ones(9)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole, cut = (tmp_path / "whole.pth").read_bytes(), tmp_path / "cut.pth"
    for length in range(1, len(whole)):
        cut.write_bytes(whole[:length])
        refused(lambda: read_tensors(cut), match=r"cut\.pth .*only the beginning of what torch\.save")


# ---- downloads


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; while the file `cut` exists, it sends fewer bytes than it announces."""

    def log_message(self, *args):
        pass

    def send_header(self, name, value):
        if name == "Content-Length" and (self.server.folder / "cut").exists():
            value = str(int(value) + 1000)
        super().send_header(name, value)


@pytest.fixture
def server(tmp_path):
    """A folder with a checkpoint, and the address of its files on this machine's loopback interface."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save({"conv1.weight": torch.ones(5)}, folder / "a.pth")
    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.folder = folder
        thread = threading.Thread(target=running.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_checksum_is_recorded_on_first_use_and_checked_ever_after(server, tmp_path, capsys):
    folder, url = server
    path = fetch(f"{url}/a.pth", tmp_path / "kept")
    note = path.with_name("a.pth.sha256")
    assert note.read_text(encoding="utf-8").strip() == sha256(folder / "a.pth") == sha256(path)
    first = path.stat().st_mtime_ns
    assert fetch(f"{url}/a.pth", tmp_path / "kept").stat().st_mtime_ns == first
    assert not capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-100])  # truncated
    fetch(f"{url}/a.pth", tmp_path / "kept")
    assert sha256(path) == note.read_text(encoding="utf-8").strip()
    (line,) = capsys.readouterr().out.splitlines()
    assert "is fetched again" in line
    torch.save({"conv1.weight": torch.zeros(5)}, folder / "a.pth")  # another file at the same address
    path.unlink()
    line = r"no longer the file that was first used .*a\.pth\.sha256"
    refused(lambda: fetch(f"{url}/a.pth", tmp_path / "kept"), match=line)
    assert not path.exists()


def test_a_download_is_kept_only_if_it_has_the_hash_in_its_address(server, tmp_path):
    folder, url = server
    right = sha256(folder / "a.pth")
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    line = rf"a\.pth has SHA-256 {right}, and not {wrong} as its address says"
    refused(lambda: fetch(f"{url}/a.pth#sha256={wrong}", tmp_path / "kept"), match=line)
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    path = fetch(f"{url}/a.pth#sha256={right.upper()}", tmp_path / "kept")
    assert path.name == "a.pth" and path == fetch(f"{url}/a.pth", tmp_path / "kept")
    # also for an existing file
    refused(lambda: fetch(f"{url}/a.pth#sha256={wrong}", tmp_path / "kept"), match=line)
    for fragment in ("sha265=" + right, "sha256=" + right[:-1], "v1"):
        address = partial(fetch, f"{url}/a.pth#{fragment}", tmp_path / "kept")
        refused(address, match="after # must come sha256= and 64 hexadecimal digits")


@pytest.mark.parametrize("address", [
    "{url}/../../../mine.pth", "{url}/a/../../../../mine.pth", "file://../../mine.pth", "file:///.", "file://",
])  # fmt: skip
def test_an_address_leads_to_no_file_outside_the_folder_of_downloads(server, tmp_path, address):
    folder, url = server
    (folder / "mine.pth").write_text("no checkpoint")  # a failed download is unlinked
    mine = tmp_path / "mine.pth"
    mine.write_text("mine")
    line = r"\. and \.\. can't be parts of an address"
    refused(lambda: fetch(address.format(url=url), tmp_path / "data" / "weights"), match=line)
    assert mine.read_text() == "mine" and not (tmp_path / "data").exists()


@pytest.mark.parametrize("path", ["a/" * 2000 + "a.pth", "a" * 300])
def test_an_address_that_is_too_long_for_a_path_is_refused_in_one_line(tmp_path, path):
    refused(lambda: fetch(f"https://h/{path}", tmp_path), match=r"^https://h/a.*…: the address has more than")


def test_each_of_several_files_of_one_name_has_its_hash_in_the_record(state, tmp_path):
    files = [tmp_path / "backbone" / "a.pth", tmp_path / "head" / "a.pth"]
    for file, contents in zip(files, (without_head(state), head(state, "fc")), strict=True):
        file.parent.mkdir()
        torch.save(contents, file)
    _, about = gather({"file": [*map(str, files)]}, RESNET50, tmp_path)
    assert about["files"] == {f"{file.parent.name}/a.pth": sha256(file) for file in files}
    pins = [f"https://h/{name}#sha256={'0' * 64}" for name in about["files"]]
    given = {"dino": {"file": [*map(str, files)]}, "byol": {"urls": pins}}
    models = settings_of(scale="paper", models={id_: {"weights": of} for id_, of in given.items()}).models
    assert distinct_names(models["dino"].files) == [*about["files"]]
    assert models["byol"].pinned == dict.fromkeys(about["files"], "0" * 64)


def test_a_download_that_ends_early_is_refused_and_fetched_again(server, tmp_path):
    folder, url = server
    (folder / "cut").touch()
    refused(lambda: fetch(f"{url}/a.pth", tmp_path / "kept"), match=r"a\.pth.* bytes arrived: run again")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    (folder / "cut").unlink()
    assert sha256(fetch(f"{url}/a.pth", tmp_path / "kept")) == sha256(folder / "a.pth")


@pytest.mark.parametrize("address", [
    "{url}/none.pth", "{url}/\0", "https://ä/ä.pth", "https://h:x/a", "http://[::1/a",
    "file:///etc", "file:///dev/zero", "file:///none.pth",
])  # fmt: skip
def test_an_unreachable_address_is_unavailable(server, tmp_path, address):
    _, url = server
    with pytest.raises(UnavailableError, match=r"can't be downloaded") as error:
        fetch(address.format(url=url), tmp_path)
    assert "\n" not in str(error.value)


ANSWERS = {
    "no HTTP": b"garbage\r\n\r\n",
    "nothing": b"",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nxx",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "in a circle": b"HTTP/1.1 302 x\r\nLocation: /a.pth\r\n\r\n",
    "to a local file": b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
}
NO_CHECKPOINTS = {
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "bytes": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n<html>moved</html>",
}


@pytest.mark.parametrize("case", [*ANSWERS, *NO_CHECKPOINTS])
def test_any_answer_of_a_server_that_is_no_checkpoint_is_one_line_and_not_kept(
    server, tmp_path, monkeypatch, case
):
    answer = (ANSWERS | NO_CHECKPOINTS)[case]
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.wfile.write(answer))
    reason = "can't be downloaded" if case in ANSWERS else "is truncated or no checkpoint"
    line = refused(lambda: fetch(f"{server[1]}/a.pth", tmp_path / "kept"), "a.pth", reason)
    assert len(line) < 400 and not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_a_lost_connection_is_not_reported_as_a_full_disk(tmp_path):
    for lost in (ConnectionResetError, TimeoutError):
        with pytest.raises(lost), write_whole(tmp_path / "a.pth"):
            raise lost
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", [b"", b"\xe9", b"12", b"\xef\xbb\xbf" + b"0" * 64, None], ids=repr)
def test_an_invalid_recorded_checksum_is_named(server, tmp_path, note):
    _, url = server
    path = fetch(f"{url}/a.pth", tmp_path).with_name("a.pth.sha256")
    path.unlink()
    path.mkdir() if note is None else path.write_bytes(note)
    refused(lambda: fetch(f"{url}/a.pth", tmp_path), match=r"a\.pth\.sha256 .*: delete it")


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(3), 3, None, "a", {}, {1: torch.ones(1)}])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    refused(lambda: gather({"file": str(tmp_path / "a.pth")}, SMALL, tmp_path), match="no tensors")


ODD = {
    "complex": torch.ones(10, dtype=torch.cfloat), "sparse": torch.ones(10).to_sparse(),
    "meta": torch.ones(10, device="meta"), "scalar": torch.tensor(1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ["fc.bias", "fc.weight"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_tensors_that_no_net_has_are_named(odd, name):
    state = build(SMALL, 10).state_dict() | {name: odd}
    refused(lambda: to_torchvision([("a.pth", state)], SMALL), match="doesn't fit the net")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_any_bytes_is_read_or_refused(tmp_path, zipped):
    draw, path = random.Random(0), tmp_path / "a.pth"
    torch.save({"conv1.weight": torch.ones(5), "x": [1]}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(200):
        spoiled = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            spoiled[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(spoiled)
        with contextlib.suppress(UserError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert isinstance(read_tensors(path), dict)


def test_torchvision_names_are_checked(tmp_path):
    line = "torchvision has no ResNet50 weights 'IMAGENET1K_V9'"
    refused(lambda: from_torchvision("IMAGENET1K_V9", tmp_path), match=line)


def test_torchvisions_loader_is_used_and_its_cached_file_is_checked_ever_after(tmp_path, monkeypatch, capsys):
    loads = []

    def load(url, *, model_dir, check_hash, weights_only, **rest):
        path = tmp_path / url.rsplit("/", 1)[1]
        if not path.exists():
            torch.save({"conv1.weight": torch.ones(2)}, path)
        loads.append((check_hash, weights_only, model_dir))
        return torch.load(path, weights_only=True)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    _, path = from_torchvision("IMAGENET1K_V1", tmp_path)
    assert path.name == "resnet50-0676ba61.pth" and loads == [(True, True, str(tmp_path))]
    path.write_bytes(b"cut")
    from_torchvision("IMAGENET1K_V1", tmp_path)
    assert "is fetched again" in capsys.readouterr().out and read_tensors(path)
