"""The nets by their names in the config. Another architecture is one module here and one line in `ARCHITECTURES`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relusym.errors import UserError
from relusym.registry import Entry, choose

if TYPE_CHECKING:
    from torch import Tensor, nn

    from relusym.symmetry import Symmetry

COUNT = {"type": "integer", "minimum": 1, "maximum": 1000}
WIDTH = {"type": "number", "minimum": 1 / 64, "maximum": 16, "default": 1.0}  # factor on all channel counts
# 64 channels and more come out whole and even
VGG_WIDTH = {"type": "number", "exclusiveMinimum": 0, "multipleOf": 1 / 32, "maximum": 16, "default": 1.0}
INITIALIZATION = {"enum": ["pytorch", "he"], "default": "pytorch"}

# Each takes its options, `classes` and `symmetry`, has the name of its linear layer as `head`, and, if it has layers of
# its own kind, a method `to_plain`.
ARCHITECTURES = {
    "vgg11": Entry(
        "relusym.nets.vgg:VGG11",
        {
            "width": VGG_WIDTH,
            "group_convs": {"type": "integer", "minimum": 0, "maximum": 8, "default": 0},
            "initialization": INITIALIZATION,
        },
    ),
    "vgg11_bn": Entry("relusym.nets.vgg:vgg11_bn", {"width": VGG_WIDTH, "initialization": INITIALIZATION}),
    "resnet": Entry(
        "relusym.nets.resnet:ScaledResNet",
        {
            "block": {"enum": ["basic", "bottleneck"]},
            "layers": {"type": "array", "items": COUNT, "minItems": 4, "maxItems": 4},
            "width": WIDTH,
        },
    ),
    "cifar_resnet": Entry(
        "relusym.nets.cifar_resnet:CIFARResNet",
        {
            "blocks": {**COUNT, "default": 3},
            "width": WIDTH,
            "shortcut": {"enum": ["conv", "pad"], "default": "conv"},
        },
    ),
}

# sides of images in pixels that an architecture takes, if not any
SIDES = {"vgg11": range(32, 64), "vgg11_bn": range(32, 64)}


def options(architecture: str | None = None) -> list[str]:
    """The keys that a `network` section may have, of this architecture (none if there is no such) or of any."""
    named = (
        ARCHITECTURES if architecture is None else [name for name in ARCHITECTURES if name == architecture]
    )
    return list(dict.fromkeys(option for name in named for option in ARCHITECTURES[name].options))


def check(network: dict[str, Any], key: str = "network") -> None:
    """Check a config's `network` section, without importing torch.

    Args:
        network: the architecture's name and its options.
        key: where the section stands in the config.

    Raises:
        UserError: names the key, what was given and what is allowed.
    """
    choose(ARCHITECTURES, "architecture", network, key)


def build(network: dict[str, Any], classes: int, symmetry: Symmetry | None = None) -> nn.Module:
    """An untrained net, its weights drawn from torch's global random stream.

    Args:
        network: as in `check`.
        classes: number of logits.
        symmetry: the group of its group convs, if it has any; None: the horizontal flip.

    Raises:
        UserError: a network that can't be.
    """
    architecture, options = choose(ARCHITECTURES, "architecture", network, "network")
    try:
        return architecture.load()(**options, classes=classes, symmetry=symmetry)
    except ValueError as error:
        raise UserError(f"network: {error}") from error


def plain(net: nn.Module) -> nn.Module:
    """A net of ordinary layers with the same function; `net` itself if it has no others."""
    return net.to_plain() if hasattr(net, "to_plain") else net


def load_backbone(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load all but the linear layer from the state dict of another training of this net, SimSiam's or any other.

    Raises:
        UserError: the state dict is of another net.
    """
    from relusym.nets.simsiam import ENCODER

    if encoder := {
        name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)
    }:
        tensors = encoder
    head = f"{net.head}."
    own = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(head)}
    backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    try:
        net.load_state_dict(backbone | own)
    except RuntimeError as error:
        raise UserError("the net that this training starts from is of another architecture") from error
