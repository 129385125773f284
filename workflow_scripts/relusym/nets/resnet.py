"""ResNets for ImageNet, and narrow ones of the same strides for small images (section 4.2)."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from relusym.symmetry import Symmetry

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
STEM = 64  # channels of the stem at width 1


class ScaledResNet(ResNet):
    """torchvision's ResNet with all its channel counts scaled; at width 1 it is torchvision's.

    Stem and strides are those for ImageNet: five layers of stride 2, which see the widths 224, 112, 56, 28, 14 of
    ImageNet's images, and 32, 16, 8, 4, 2 of CIFAR10's; at 225 and 33 they see odd widths only (A.2.1).

    Args:
        block: "basic" or "bottleneck".
        layers: residual blocks in each of the four stages.
        width: factor on all channel counts.
        classes: number of logits.
        symmetry: unused, since it has no group convs.
    """

    head = "fc"

    def __init__(
        self,
        block: str,
        layers: list[int],
        width: float = 1.0,
        classes: int = 1000,
        symmetry: Symmetry | None = None,
    ):
        super().__init__(BLOCKS[block], layers, num_classes=classes)
        if width == 1:
            return
        stem = round(STEM * width)
        self.inplanes = stem
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        for stage, blocks in enumerate(layers):
            channels, stride = stem * 2**stage, 1 if stage == 0 else 2
            setattr(self, f"layer{stage + 1}", self._make_layer(BLOCKS[block], channels, blocks, stride))
        self.fc = nn.Linear(self.inplanes, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
