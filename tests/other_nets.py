"""timm's and Hugging Face's architectures, permuted at random: `python tests/other_nets.py` writes docs/other_nets.md.

It needs timm and transformers, which nothing else here does, and no network: all weights are drawn. About half an hour
on one core. With names, only their rows are written anew.
"""

import os
import sys
import warnings
from ast import literal_eval
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import relusym
from relusym.evaluation.logits import logits_of
from relusym.merging.identities import largest_difference

PAGE = Path(__file__).parents[1] / "docs" / "other_nets.md"
SIZES = 64, 96, 128, 160, 224, 240, 256
CLASSES = 20
TIMM = Path(__file__).with_name("timm_nets.txt").read_text().split()
SMALL = {
    "image_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "patch_size": 16,
}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
HUGGING_FACE = {
    "ResNet": STAGES | {"embedding_size": 16},
    "ViT": SMALL,
    "DeiT": SMALL,
    "ConvNext": STAGES,
    "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.35},
    "RegNet": STAGES | {"embedding_size": 16, "groups_width": 8},
    "Swin": {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "Dinov2": SMALL,
}
# Why channels of a net stay at their places.
REASONS = {
    "ecaresnet26t": "its attention's kernels run along channels, which gives each its neighbours",
    "eva02_tiny_patch14_224": "rotary position embeddings turn queries' and keys' channels in pairs",
    "mixer_s32_224": "what lies between two layers along tokens stays",
    "lambda_resnet26t": "queries' channels lie along a dimension of a convolution over positions",
    "halonet26t": "channels of heads that share a table of relative positions stay",
    "coat_tiny": "one linear layer along the tokens of three scales joins their channels",
    "mvitv2_tiny": "channels of heads that share convolutions and a table of relative positions stay",
    "sequencer2d_s": "its recurrent layers' channels stay",
}


def build(name, size):
    """A net for images of a size, with drawn weights; without a prefix, timm's."""
    if name.startswith("hf:"):
        import transformers

        kind, options = name.removeprefix("hf:"), HUGGING_FACE[name.removeprefix("hf:")]
        config = getattr(transformers, f"{kind}Config")(**options, num_labels=CLASSES)
        return getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=CLASSES, img_size=size).eval()
    except TypeError:
        return timm.create_model(name, pretrained=False, num_classes=CLASSES).eval()


def share(net, groups):
    """Of the channels that convolutions and linear layers write, the last ones left out, how many are in a group."""
    moved = Counter()
    for group in groups:
        for place in group.places:
            if place.dim == 0:
                moved[place.tensor] += place.index(group.size).numel()
    layers = {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    }
    written = {
        f"{name}.weight": len(layer.weight) for name, layer in layers.items() if len(layer.weight) != CLASSES
    }
    return sum(min(moved[name], count) for name, count in written.items()) / sum(written.values())


@torch.no_grad()
def measure(name):
    """What the page says of a net: size, groups, share, difference, note."""
    for size in SIZES:
        torch.manual_seed(0)
        try:
            net = build(name, size)
            net(torch.randn(1, 3, size, size))
            break
        except Exception as error:  # it takes no images of this size
            problem = error
    else:
        return [0, 0, 0.0, 0.0, f"can't be made: {problem}"]
    try:
        traced = relusym.TracedNet(net, (3, size, size))
        groups = traced.groups
    except relusym.UserError as error:
        return [size, 0, 0.0, 0.0, f"refused: {error}"]
    planted = traced.planted
    before = logits_of(planted.net(planted.x))
    permutations = relusym.random_permutations(groups, torch.Generator().manual_seed(9))
    state = planted.net.state_dict()
    planted.net.load_state_dict(relusym.permute(state, groups, permutations))
    difference = largest_difference(before, logits_of(planted.net(planted.x)))
    part = share(net, groups)
    return [size, len(groups), part, difference, "" if part > 0.999 else REASONS.get(name, "")]


def rows():
    """What the page says already."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else ():
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1]) if line.startswith("|") else ("",)
        if len(cells) == 5 and cells[0].isdigit():
            found[name] = [int(cells[0]), int(cells[1]), float(cells[2]), float(cells[3]), cells[4]]
    return found


def page(measured):
    """docs/other_nets.md."""
    right = [row for row in measured.values() if row[1] and row[3] < 1e-10]
    whole, worst = sum(row[2] > 0.999 for row in right), max(row[3] for row in right)
    lines = [
        "# timm's and Hugging Face's nets",
        "",
        "Which of some architectures that nobody here wrote can be permuted, and so merged: written by",
        "`python tests/other_nets.py`, which builds each with weights drawn at random, permutes its channel groups",
        "at random and compares the logits of images in float64, at planted values. *Share*: of the channels that",
        "convolutions and linear layers write, how many are in a group; the others stay at their places.",
        "torchvision's nets: [nets.md](nets.md).",
        "",
        f"{len(right)} of {len(measured)} work, {whole} of them with all channels; the largest difference, relative",
        f"to the largest logit, is {worst:.0e}.",
        "",
        "| net | size | groups | share | difference | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, (size, groups, part, difference, note) in sorted(measured.items()):
        note = "**wrong**" if groups and not difference < 1e-10 else note
        lines.append(f"| {name} | {size} | {groups} | {part:.3f} | {difference:.1e} | {note} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    measured = rows()
    for name in sys.argv[1:] or [*TIMM, *(f"hf:{name}" for name in HUGGING_FACE)]:
        read, write = os.pipe()
        if not os.fork():  # memory of large nets goes back
            os.write(write, repr(measure(name)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            row = pipe.read()
        os.wait()
        measured[name] = literal_eval(row) if row else [0, 0, 0.0, 0.0, "killed"]
        print(name, measured[name], flush=True)
        PAGE.write_text(page(measured), encoding="utf-8")
