"""ResNets for ImageNet, narrow ones for small images, and SimSiam's heads on them (section 4.2)."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

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
    """

    def __init__(self, block: str, layers: list[int], width: float = 1.0, classes: int = 1000):
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


def build(network: dict[str, Any], classes: int) -> ScaledResNet:
    """The net of a config's `network` section: block, layers and width."""
    return ScaledResNet(network["block"], network["layers"], network["width"], classes)


class SimSiam(nn.Module):
    """A ResNet with SimSiam's projector in place of its linear layer, and the predictor (Chen & He 2021).

    Args:
        net: gives the backbone; its `fc` is replaced.
        dimensions: of the representation that is compared (2048 for ResNet50).
        bottleneck: of the predictor's hidden layer (512 for ResNet50).
    """

    def __init__(self, net: ResNet, dimensions: int, bottleneck: int):
        super().__init__()
        features = net.fc.in_features
        net.fc = nn.Sequential(
            *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            *(nn.Linear(features, dimensions, bias=False), nn.BatchNorm1d(dimensions, affine=False)),
        )
        self.encoder = net
        self.predictor = nn.Sequential(
            *(nn.Linear(dimensions, bottleneck, bias=False), nn.BatchNorm1d(bottleneck)),
            *(nn.ReLU(inplace=True), nn.Linear(bottleneck, dimensions)),
        )

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predictions p₁, p₂ and projections z₁, z₂ of two views, each (B, dimensions)."""
        z_1, z_2 = self.encoder(first), self.encoder(second)
        return self.predictor(z_1), self.predictor(z_2), z_1.detach(), z_2.detach()


def simsiam_loss(p_1: Tensor, p_2: Tensor, z_1: Tensor, z_2: Tensor) -> Tensor:
    """Negative cosine similarity of each view's prediction with the other's projection; -1 at best. Shape ()."""
    similarity = nn.functional.cosine_similarity
    return -(similarity(p_1, z_2).mean() + similarity(p_2, z_1).mean()) / 2


def linear_probe(net: ResNet) -> ResNet:
    """`net` with all but its linear layer frozen, and that one drawn anew, as in SimSiam's linear evaluation."""
    net.requires_grad_(False)
    nn.init.normal_(net.fc.weight, std=0.01)
    nn.init.zeros_(net.fc.bias)
    net.fc.requires_grad_(True)
    return net


def spread(projection: Tensor) -> float:
    """Standard deviation of the normalised projections, times √dimensions: 1 spread out, 0 collapsed."""
    unit = torch.nn.functional.normalize(projection.detach().float(), dim=1)
    return float(unit.std(0).mean() * projection.shape[1] ** 0.5)
