"""Public architectures, randomly permuted: writes docs/nets.md (torchvision's) and docs/other_nets.md.

    python tests/public_nets.py torchvision    # `make nets`: one net of each family
    python tests/public_nets.py others         # a quarter of an hour on one core; needs timm and transformers
    python tests/public_nets.py NAME …         # prints the rows of these nets, such as `torchvision:resnet152`

It needs no network access: all weights are random. A page is rewritten after each net.
"""

import os
import sys
import textwrap
import warnings
from ast import literal_eval
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import nn

import relusym

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {"nets": (64, 70, 75, 224), "other_nets": (64, 96, 128, 160, 224, 240, 256)}
CLASSES = 20
# one net of each of torchvision's modules and kinds of block; the other nets differ in depth and width
TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d
    shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2
""".strip().split()
TIMM = Path(__file__).with_name("timm_nets.txt").read_text().split()
SMALL = {"image_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"hidden_size": 32, "patch_size": 16}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
HUGGING_FACE = {
    "ResNet": STAGES | {"embedding_size": 16}, "ViT": SMALL, "DeiT": SMALL, "ConvNext": STAGES,
    "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.35},
    "RegNet": STAGES | {"embedding_size": 16, "groups_width": 8},
    "Swin": {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "Dinov2": SMALL,
}  # fmt: skip
# Why channels of a net can't be permuted.
REASONS = {
    "ecaresnet26t": "its attention convolves along channels, which fixes each one's neighbours",
    "eva02_tiny_patch14_224": "rotary position embeddings rotate queries' and keys' channels in pairs",
    "mixer_s32_224": "channels between two layers along tokens stay",
    "lambda_resnet26t": "queries' channels lie along a dimension of a convolution over positions",
    "halonet26t": "channels of heads that share a table of relative positions stay",
    "coat_tiny": "one linear layer along the tokens of three scales joins their channels",
    "sequencer2d_s": "its recurrent layers' channels stay",
    "torchvision:shufflenet_v2_x0_5": "a few channels take paths through the shuffles that no other takes",
}


# page → its subject, and the command that writes it
PAGES = {
    "nets": ("torchvision's nets", "torchvision's classification nets, one of each family,", "make nets",
     "timm's and Hugging Face's nets: [other_nets.md](other_nets.md)."),
    "other_nets": ("timm's and Hugging Face's nets", "these timm and Hugging Face architectures",
     "python tests/public_nets.py others", "torchvision's nets: [nets.md](nets.md)."),
}  # fmt: skip


def page_of(name):
    return "nets" if name.startswith("torchvision:") else "other_nets"


class Row(NamedTuple):
    """A net's row of a page."""

    size: int
    groups: int
    share: float
    difference: float
    note: str = ""


def build(name, size):
    """A net for images of a size, with random weights; a name without a prefix is timm's."""
    if name.startswith("torchvision:"):
        how = {"weights": None, "num_classes": CLASSES}
        make = partial(torchvision.models.get_model, name.partition(":")[2], **how)
        for options in (
            {"image_size": size},
            {"aux_logits": False},
        ):  # layers used only in training have no channels here
            with suppress(TypeError):
                return make(**options).eval()
        return make().eval()
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
    """The share of output channels of convolutions and linear layers, except the last, that are in a group."""
    moved = Counter()
    for group in groups:
        for place in group.places:
            if place.dim == 0:
                moved[place.tensor] += place.index(group.size).numel()
    kinds, modules = nn.Linear | nn.Conv1d | nn.Conv2d, net.named_modules()
    counts = {f"{name}.weight": len(layer.weight) for name, layer in modules if isinstance(layer, kinds)}
    written = {name: count for name, count in counts.items() if count != CLASSES}
    return sum(min(moved[name], count) for name, count in written.items()) / sum(written.values())


@torch.no_grad()
def measure(name):
    """The row of a net; `groups` checks that the permuted net computes the same."""
    for size in SIZES[page_of(name)]:
        torch.manual_seed(0)
        try:
            net = build(name, size)
            traced = relusym.TracedNet(net, (3, size, size))
            groups = traced.groups
        except relusym.UserError as error:
            problem = f"refused: {error}"
            if "can't be run" not in problem:
                break
        except Exception as error:  # the net accepts no images of this size
            problem = f"can't be made: {error}"
        else:
            part = share(net, groups)
            note = "" if part > 0.999 else REASONS.get(name, "")
            return Row(size, len(groups), part, traced.known["permuted"], note)
    return Row(size, 0, 0.0, 0.0, problem)


def rows(page):
    """The existing rows of a page: name → row."""
    path, known = DOCS / f"{page}.md", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1]) if line.startswith("|") else ("",)
        if len(cells) == 5 and cells[0].isdigit():
            known[name] = Row(int(cells[0]), int(cells[1]), float(cells[2]), float(cells[3]), cells[4])
    return known


def written(page, measured):
    title, nets, command, other = PAGES[page]
    right = [row for row in measured.values() if row.groups and row.difference < 1e-10]
    whole = [name for name, row in sorted(measured.items()) if row in right and row.share > 0.999]
    lines = [
        f"# {title}",
        "",
        f"Which of {nets} can be permuted, and so merged?",
        f"`{command}` writes this page: it builds each net, permutes its channel groups at random and compares the",
        "logits in float64, where all parameters and statistics, and two images, are drawn at random. *Share*: of the",
        "channels written by convolutions and linear layers, how many are in a group; the others stay at their places.",
        "To merge your net, see [library.md](library.md); for a layer of your own, [extending.md](extending.md).",
        other,
        "",
        f"{len(right)} of {len(measured)} work, {len(whole)} of them with all channels. "
        f"Relative to the largest logit, the largest difference is {max(row.difference for row in right):.0e}.",
        "",
        "| net | size | groups | share | difference | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    if page == "other_nets":  # too many for a table
        lines[-2:-2] = [textwrap.fill(f"All channels: {', '.join(whole)}.", 110, break_on_hyphens=False), ""]
        measured = {name: row for name, row in measured.items() if name not in whole}
    for name, (size, groups, part, difference, note) in sorted(measured.items()):
        note = "**wrong**" if groups and not difference < 1e-10 else note
        lines.append(f"| {name} | {size} | {groups} | {part:.3f} | {difference:.1e} | {note} |")
    return "\n".join([*lines, ""])


def main(arguments):
    """Measure nets one by one, each in its own process, which frees its memory at the end."""
    named = {
        "torchvision": [f"torchvision:{name}" for name in TORCHVISION],
        "others": [*TIMM, *(f"hf:{name}" for name in HUGGING_FACE)],
    }
    pages, whole_page = {page: {} for page in PAGES}, arguments in (["torchvision"], ["others"])
    for name in [name for argument in arguments for name in named.get(argument, [argument])]:
        page = page_of(name)
        read, write = os.pipe()
        if not os.fork():
            os.write(write, repr(tuple(measure(name))).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            row = pipe.read()
        os.wait()
        row = Row(*literal_eval(row)) if row else Row(0, 0, 0.0, 0.0, "killed")
        pages[page][name.removeprefix("torchvision:")] = row
        print(name, *row, flush=True)
        if whole_page:
            (DOCS / f"{page}.md").write_text(written(page, pages[page]), encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1:])
