"""ResNets for ImageNet, narrow ones of the same strides for small images (section 4.2), and those for CIFAR10."""

from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from relusym.symmetry import Symmetry

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
STEM = 64  # channels of the stem at width 1
CIFAR_CHANNELS = (16, 32, 64)  # of the stages for CIFAR10


class ScaledResNet(ResNet):
    """torchvision's ResNet with all its channel counts scaled; at width 1 it is torchvision's.

    Stem and strides are those for ImageNet: five layers of stride 2, which see the widths 224, 112, 56, 28, 14 of
    ImageNet's images, and 32, 16, 8, 4, 2 of CIFAR10's; at 225 and 33 they see odd widths only (A.2.1).

    Arguments are `nets.ResNetOptions`, number of `classes` (logits), and `symmetry`, unused for want of group convs.
    """

    head = "fc"

    def __init__(
        self, block: str, layers: list[int], width=1.0, classes=1000, symmetry: Symmetry | None = None
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
        _initialize_convs(self)


def _initialize_convs(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class PaddedShortcut(nn.Module):
    """Option A of He et al.: every second pixel in both directions, and zero channels, half of them on either side."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        first = (after - before) // 2
        self.stride, self.padding = stride, (0, 0, 0, 0, first, after - before - first)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) → (B, after, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class CIFARResNet(nn.Module):
    """ResNet20 and its kin (He et al. 2016, section 4.2): a 3×3 stem and three stages of basic blocks; the second and
    third begin with stride 2. Layers are named as in torchvision's ResNets.

    Arguments as in `ScaledResNet`, with `nets.CIFARResNetOptions`; `shortcut`, in blocks that change size: "conv", a
    1×1 conv with batch norm (option B), or "pad", which has no weights (option A).
    """

    head = "fc"

    def __init__(
        self,
        blocks: int = 3,
        width: float = 1.0,
        classes: int = 10,
        symmetry: Symmetry | None = None,
        shortcut: str = "conv",
    ):
        super().__init__()
        channels = [max(1, round(full * width)) for full in CIFAR_CHANNELS]
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        before = channels[0]
        for stage, after in enumerate(channels, start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                if before == after and stride == 1:
                    downsample = None
                elif shortcut == "pad":
                    downsample = PaddedShortcut(before, after, stride)
                else:
                    conv = nn.Conv2d(before, after, 1, stride, bias=False)
                    downsample = nn.Sequential(conv, nn.BatchNorm2d(after))
                layer.append(BasicBlock(before, after, stride, downsample))
                before = after
            setattr(self, f"layer{stage}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)
        _initialize_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, 3, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))
