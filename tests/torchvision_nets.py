"""Every classification net of torchvision, permuted at random: `python tests/torchvision_nets.py` writes docs/nets.md.

About an hour on one core and 12 GB of memory. Until all are measured, what is measured is kept in `docs/.nets.json`,
from where it goes on. With names of nets, only their rows are written anew.
"""

import gc
import json
from pathlib import Path
from time import perf_counter

import torch
import torchvision

from relusym.channels.groups import permute, random_permutations
from relusym.channels.traced import channel_groups
from relusym.errors import UserError
from relusym.merging.identities import largest_difference

PAGE = Path(__file__).parents[1] / "docs" / "nets.md"
MEASURED = PAGE.with_name(".nets.json")
SIZES = 64, 75, 224
FLOAT64_UP_TO = 250e6  # parameters: larger nets would take more than 12 GB
LIMIT = {"float64": 1e-10, "float32": 1e-3}


def constructors():
    """The names of torchvision's classification nets."""
    return torchvision.models.list_models(torchvision.models)


@torch.no_grad()
def drawn(name):
    """A net with random weights, of which none is constant and so blind to permutations."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() > 1 and tensor.std() < 1e-5:
            tensor.uniform_(0.5, 1.5) if key.endswith(("weight", "running_var", "scale")) else tensor.normal_(
                std=0.3
            )
    return net


@torch.no_grad()
def measure(name):
    """What the page says of a net."""
    net = drawn(name)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    precision = "float64" if parameters <= FLOAT64_UP_TO else "float32"
    net = net.to(getattr(torch, precision))
    for size in SIZES:
        try:
            start = perf_counter()
            groups = channel_groups(net, (3, size, size))
            seconds = perf_counter() - start
            break
        except UserError as error:
            reason = str(error)
            if "can't be run" not in reason:
                break
    about = {"size": size, "parameters": parameters, "precision": precision}
    if "groups" not in locals():
        return about | {"refused": reason}
    x = torch.randn(2, 3, size, size, dtype=getattr(torch, precision))
    before = net(x)
    generator = torch.Generator().manual_seed(5)
    permutations = random_permutations(groups, generator)
    net.load_state_dict(permute(net.state_dict(), groups, permutations))
    return about | {
        "groups": len(groups),
        "channels": sum(group.size for group in groups),
        "seconds": seconds,
        "difference": largest_difference(before, net(x)),
    }


def page(measured):
    """docs/nets.md."""
    works = {
        name: row for name, row in measured.items() if row.get("difference", 1) < LIMIT[row["precision"]]
    }
    worst = {
        p: max((row["difference"] for row in works.values() if row["precision"] == p), default=0)
        for p in LIMIT
    }
    lines = [
        "# torchvision's nets",
        "",
        "Which of torchvision's classification nets can be permuted, and so merged: written by `make nets`, which",
        "builds each with random weights, permutes its channel groups at random and compares the logits of images.",
        "How to merge a net of yours: [library.md](library.md); a layer of yours: [extending.md](extending.md).",
        "timm's and Hugging Face's nets: [other_nets.md](other_nets.md).",
        "",
        f"{len(works)} of {len(measured)} work; the largest difference, relative to the largest logit, is",
        f"{worst['float64']:.0e} in float64, and {worst['float32']:.0e} of nets too large for it, in float32.",
        "",
        "| net | size | groups | channels | difference | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, row in sorted(measured.items()):
        if "refused" in row:
            lines.append(f"| {name} | {row['size']} | | | | refused: {row['refused']} |")
        else:
            note = "" if name in works else "**wrong**"
            note = "float32" if row["precision"] == "float32" and not note else note
            numbers = f"{row['groups']} | {row['channels']} | {row['difference']:.1e}"
            lines.append(f"| {name} | {row['size']} | {numbers} | {note} |")
    return "\n".join([*lines, ""])


def listed():
    """What the page says of each net."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) < 6 or not cells[1].isdigit():
            continue
        name, size, groups, channels, difference, note = cells
        found[name] = {"size": int(size), "precision": "float32" if note == "float32" else "float64"}
        found[name] |= (
            {"groups": int(groups), "channels": int(channels), "difference": float(difference)}
            if difference
            else {"refused": note.removeprefix("refused: ")}
        )
    return found


if __name__ == "__main__":
    import sys

    names = sys.argv[1:]
    measured = listed() if names else json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for name in names or constructors():
        if name not in measured or names:
            measured[name] = measure(name)
            if not names:
                MEASURED.write_text(json.dumps(measured, indent=1))
            print(name, measured[name], flush=True)
            gc.collect()
    PAGE.write_text(page(measured), encoding="utf-8")
    if not names:
        MEASURED.unlink()
