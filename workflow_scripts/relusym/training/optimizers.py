"""SGD and LARS, with parts of a net whose learning rate stays at its peak."""

import torch

from relusym.training.objectives import Objective
from relusym.training.recipe import Recipe


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose rate for each weight is scaled by ‖weight‖ / ‖gradient‖ (You et al. 2017).

    torch has none; as in SimSiam's linear evaluation, biases are not scaled.
    """

    def __init__(self, groups, lr: float, momentum: float, weight_decay: float, trust: float = 1e-3):
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    size, change = parameter.norm(), update.norm()
                    scale = torch.where((size > 0) & (change > 0), group["trust"] * size / change, 1.0)
                    update = update * scale
                buffers = self.state[parameter]
                if "momentum_buffer" not in buffers:
                    buffers["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = buffers["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.sub_(momentum, alpha=group["lr"])


def make_optimizer(objective: Objective, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer of all that an objective trains."""
    fixed = {parameter for part in objective.fixed_rate for parameter in part.parameters()}
    trained = [parameter for parameter in objective.net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter not in fixed], "fixed": False},
        {"params": [parameter for parameter in trained if parameter in fixed], "fixed": True},
    ]
    groups = [group for group in groups if group["params"]]
    how = {"lr": recipe.learning_rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    return Lars(groups, **how) if recipe.optimizer == "lars" else torch.optim.SGD(groups, **how, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: float) -> None:
    """Set the learning rate of a point in training, in epochs."""
    rate = recipe.learning_rate_at(epoch)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate if group["fixed"] else rate
