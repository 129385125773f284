"""The nets by their names in the config. Another architecture is one module here and one line in `ARCHITECTURES`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from relusym.errors import UserError
from relusym.schema import Entry, Number, Section, Where, choose, key

if TYPE_CHECKING:
    from torch import Tensor, nn

    from relusym.symmetry import Symmetry

Count = Annotated[int, Field(ge=1, le=1000), Number]
Width = Annotated[float, Field(ge=1 / 64, le=16), Number]
# a multiple of 1/32, so that multiples of 64 channels stay whole and even
VGGWidth = Annotated[float, Field(gt=0, multiple_of=1 / 32, le=16), Number]


class VGG11BNOptions(Section):
    """A VGG11 with a batch norm after each conv."""

    width: VGGWidth = key("factor on all channel counts", 1.0)
    initialization: Literal["pytorch", "he"] = key(
        "`he` keeps the signal's size through the ReLUs; `pytorch` is PyTorch's default", "pytorch"
    )
    activation: Literal["relu", "leaky_relu", "gelu", "tanh"] = key(
        "after each conv; `leaky_relu` with slope 0.1", "relu"
    )
    pooling: Literal["max", "average"] = key(
        "of 2×2 pixels; only `average` commutes with a change of sign", "max"
    )


class VGG11Options(VGG11BNOptions):
    """The paper's VGG11s."""

    group_convs: Annotated[int, Field(ge=0, le=8), Number] = key(
        "how many convs, from the first on, are group convs (8: the GCNN, 2: the PGCNN)", 0
    )


class ResNetOptions(Section):
    """torchvision's ResNets."""

    block: Literal["basic", "bottleneck"] = key("`bottleneck` with layers [3, 4, 6, 3]: ResNet50")
    layers: Annotated[list[Count], Field(min_length=4, max_length=4)] = key(
        "blocks in each of the four stages"
    )
    width: Width = key("factor on all channel counts", 1.0)


class CIFARResNetOptions(Section):
    """ResNets of three stages for images of 32×32 pixels: 6 `blocks` + 2 layers."""

    blocks: Count = key("per stage; 3: ResNet20", 3)
    width: Width = key("factor on all channel counts", 1.0)
    shortcut: Literal["conv", "pad"] = key(
        "at the start of a stage: a 1×1 conv, or zeros in new channels", "conv"
    )


# Each takes its options, `classes` and `symmetry`, has the name of its linear layer as `head`, and, if it has layers
# that PyTorch lacks, a method `to_plain`.
ARCHITECTURES = {
    "vgg11": Entry("relusym.nets.vgg:VGG11", VGG11Options),
    "vgg11_bn": Entry("relusym.nets.vgg:vgg11_bn", VGG11BNOptions),
    "resnet": Entry("relusym.nets.resnet:ScaledResNet", ResNetOptions),
    "cifar_resnet": Entry("relusym.nets.resnet:CIFARResNet", CIFARResNetOptions),
}

NARROWEST = 64  # channels of VGG11's narrowest conv at width 1

# the image sides in pixels that an architecture takes, if it doesn't take any
SIDES = {"vgg11": range(32, 64), "vgg11_bn": range(32, 64)}


def options(architecture: str | None = None) -> list[str]:
    """The keys that a `network` section may have for this architecture (none if it doesn't exist), or for any."""
    entries = [entry for name, entry in ARCHITECTURES.items() if architecture in (None, name)]
    return list(dict.fromkeys(option for entry in entries for option in entry.options.model_fields))


def check(network: dict[str, Any], key: str | Where = "network") -> Section:
    """The options of a config's `network` section, checked without importing torch. `key`: the section's place in the
    config, or the name of each of its keys in messages. UserError names the key, its value and what is allowed."""
    return choose(ARCHITECTURES, "architecture", network, key)[1]


def build(network: dict[str, Any], classes: int, symmetry: Symmetry | None = None) -> nn.Module:
    """An untrained net, its weights drawn from torch's global random stream; UserError for options that don't fit.

    Args:
        network: as in `check`.
        classes: number of logits.
        symmetry: the group of its group convs, if it has any; None: the horizontal flip.
    """
    architecture, options = choose(ARCHITECTURES, "architecture", network, "network")
    try:
        return architecture.load()(**options.model_dump(), classes=classes, symmetry=symmetry)
    except ValueError as error:
        raise UserError(f"network: {error}") from error


def plain(net: nn.Module) -> nn.Module:
    """A net of ordinary layers with the same function; `net` itself if all of its layers are."""
    return net.to_plain() if hasattr(net, "to_plain") else net


def load_backbone(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load all but the linear layer from the state dict of another training of this net, SimSiam's or any other.
    UserError if the state dict is of another net."""
    from relusym.nets.simsiam import ENCODER

    encoder = {name[len(ENCODER) :]: t for name, t in tensors.items() if name.startswith(ENCODER)}
    head = f"{net.head}."
    backbone = {name: t for name, t in (encoder or tensors).items() if not name.startswith(head)}
    linear = {name: t for name, t in net.state_dict().items() if name.startswith(head)}
    try:
        net.load_state_dict(backbone | linear)
    except RuntimeError as error:
        raise UserError("the net that this training starts from is of another architecture") from error
