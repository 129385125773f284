"""What a training minimises. Another objective is one class here and one line in `recipe.OBJECTIVES`."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from relusym.nets.simsiam import SimSiam, simsiam_loss
from relusym.symmetry import Symmetry
from relusym.training.recipe import Recipe

Views = tuple[Tensor, ...]


class Objective(Protocol):
    """What is trained and on what loss; made from a net, a recipe and a symmetry."""

    views: ClassVar[int]  # of each image
    classifies: ClassVar[bool]  # whether its net is a classifier, whose accuracy counts
    frozen: ClassVar[bool]  # whether the net's layers stay in evaluation mode
    net: nn.Module  # with all that is trained; its state dict is the training's result
    fixed_rate: tuple[nn.Module, ...]  # the parts that keep the peak learning rate

    def loss(self, forward: nn.Module, views: Views, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The loss and the number of correct images, both of shape (), in an epoch from 0. `forward`: the net, wrapped
        for several processes; `views`: float32 (B, 3, H, W) each; `labels`: int64 (B,)."""
        ...


class Supervised:
    """Cross-entropy, and the invariance loss where the recipe has it (section 4)."""

    views, classifies, frozen = 1, True, False
    fixed_rate: tuple[nn.Module, ...] = ()

    def __init__(self, net: nn.Module, recipe: Recipe, symmetry: Symmetry):
        self.net, self.recipe, self.symmetry = net, recipe, symmetry

    def loss(self, forward: nn.Module, views: Views, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        (x,) = views
        if self.recipe.invariance_at(epoch):
            logits, moved = forward(torch.cat([x, self.symmetry.act(x)])).float().chunk(2)
            loss = nn.functional.cross_entropy(logits, labels)
            invariance_loss = INVARIANCE_LOSSES[self.recipe.invariance_loss]
            loss = loss + self.recipe.invariance_weight * invariance_loss(logits, moved)
        else:
            logits = forward(x).float()
            loss = nn.functional.cross_entropy(logits, labels)
        return loss, (logits.detach().argmax(1) == labels).sum()


# From logits (B, classes) of images and of moved images, shape (); the paper doesn't say which (docs/paper.md).
INVARIANCE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_norm": lambda here, there: torch.linalg.vector_norm(here - there, dim=1).mean(),
    "whole_batch": lambda here, there: torch.linalg.vector_norm(here - there) / len(here),
    "mean_square": nn.functional.mse_loss,
}


class Linear(Supervised):
    """A new linear layer on the net, all else frozen, as in SimSiam's linear evaluation."""

    frozen = True

    def __init__(self, net: nn.Module, recipe: Recipe, symmetry: Symmetry):
        super().__init__(net, recipe, symmetry)
        head = getattr(net, net.head)
        net.requires_grad_(False)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        head.requires_grad_(True)


class SelfSupervised:
    """SimSiam's loss; the predictor's learning rate stays at its peak."""

    views, classifies, frozen = 2, False, False

    def __init__(self, net: nn.Module, recipe: Recipe, symmetry: Symmetry):
        self.net = SimSiam(net, recipe.dimensions, recipe.bottleneck)
        self.fixed_rate = (self.net.predictor,)

    def loss(self, forward: nn.Module, views: Views, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        outputs = forward(*views)
        return simsiam_loss(*(output.float() for output in outputs)), labels.new_zeros(())
