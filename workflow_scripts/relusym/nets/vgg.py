"""The paper's VGG11s: plain, GCNN and partial GCNN (section 4.1, Table 1)."""

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from relusym.nets.group_conv import LiftingConv2d, OrientationPool, RegularConv2d
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
POOL_AFTER = (1, 2, 4, 6, 8)
ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class VGG11(nn.Module):
    """VGG11 for 32×32 images: eight 3×3 convs, five 2×2 pools, one linear layer.

    Arguments are `nets.VGG11Options`, number of `classes` (logits), and:
        symmetry: the group of the group convs; None: the horizontal flip.
        initialization: "pytorch" is the public VGG11 notebook's; "he" draws conv weights from N(0, 2 / fan_in) with
            zero biases.
        batch_norm: whether a batch norm follows each conv; not with group convs.
        pooling: a max pool isn't odd, even after an odd activation: max(−x) = −min(x).

    Layers: `features.conv1` … `features.conv8` (with `norm…`, `relu…` or another activation's name, `pool…`), `pool`
    (over orientations; only after eight group convs) and `classifier`. ValueError if the channels of a group conv don't
    split into orientations.
    """

    head = "classifier"

    def __init__(
        self,
        width: float = 1.0,
        group_convs: int = 0,
        classes: int = 10,
        symmetry: Symmetry | None = None,
        initialization: str = "pytorch",
        batch_norm: bool = False,
        activation: str = "relu",
        pooling: str = "max",
    ):
        super().__init__()
        symmetry = symmetry or HORIZONTAL_FLIP
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for i, full in enumerate(CHANNELS, start=1):
            out = round(full * width)
            if i > group_convs:
                layers[f"conv{i}"] = nn.Conv2d(channels, out, 3, padding=1)
            else:
                group_conv = LiftingConv2d if i == 1 else RegularConv2d
                layers[f"conv{i}"] = group_conv(channels, out, symmetry=symmetry)
            if batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(out)
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
            if i in POOL_AFTER:
                layers[f"pool{i}"] = POOLINGS[pooling](2)
            channels = out
        self.width, self.group_convs, self.classes, self.symmetry = width, group_convs, classes, symmetry
        self.functions = {"activation": activation, "pooling": pooling}
        self.features = nn.Sequential(layers)
        invariant = group_convs == len(CHANNELS)
        self.pool = OrientationPool(symmetry.order) if invariant else nn.Identity()
        self.classifier = nn.Linear(channels // symmetry.order if invariant else channels, classes)
        if initialization == "he":
            for conv in self.features:
                if isinstance(conv, nn.Conv2d | RegularConv2d):
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                    nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, 3, 32, 32)."""
        return self.classifier(self.pool(self.features(x).flatten(1)))

    @torch.no_grad()
    def to_plain(self) -> "VGG11":
        """An ordinary VGG11 with the same function: group convs written out, orientation pool in the linear layer."""
        if self.group_convs == 0:
            return self
        weight = self.classifier.weight
        plain = VGG11(self.width, 0, self.classes, self.symmetry, **self.functions).to(weight)
        for name, module in self.features.named_children():
            if isinstance(module, RegularConv2d):
                module = module.to_plain()
            if isinstance(module, nn.Conv2d):
                getattr(plain.features, name).load_state_dict(module.state_dict())
        if isinstance(self.pool, OrientationPool):
            weight = weight.repeat(1, self.pool.order) / self.pool.order
        plain.classifier.weight.copy_(weight)
        plain.classifier.bias.copy_(self.classifier.bias)
        return plain.train(self.training)


vgg11_bn = partial(VGG11, batch_norm=True)  # without group convs
