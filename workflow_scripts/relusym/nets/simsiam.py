"""SimSiam's heads on a backbone, and its loss (Chen & He 2021; section 4.2 of the paper)."""

import torch
from torch import Tensor, nn

ENCODER = "encoder."  # prefix of the backbone's tensors in a state dict


class SimSiam(nn.Module):
    """A net with SimSiam's projector in place of its linear layer, and the predictor.

    Args:
        net: the backbone; its linear layer is replaced.
        dimensions: of the representation that is compared (2048 for ResNet50).
        bottleneck: of the predictor's hidden layer (512 for ResNet50).
    """

    def __init__(self, net: nn.Module, dimensions: int, bottleneck: int):
        super().__init__()
        features = getattr(net, net.head).in_features
        projector = nn.Sequential(
            *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            *(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)),
            *(nn.Linear(features, dimensions, bias=False), nn.BatchNorm1d(dimensions, affine=False)),
        )
        setattr(net, net.head, projector)
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
    similarity = torch.nn.functional.cosine_similarity
    return -(similarity(p_1, z_2).mean() + similarity(p_2, z_1).mean()) / 2
