"""SGD and LARS, with parts of a net whose learning rate stays at its peak."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from relusym.training.objectives import Objective
from relusym.training.recipe import Recipe


class Sgd:
    """SGD with momentum and weight decay, by torch's fused kernel; torch's GradScaler takes it as one of torch's.

    torch.optim.SGD takes the same steps, but loads torch's compiler first, which takes longer than a small training.
    `momentum_buffers` are by parameter, of its shape, from the first step on.
    """

    # GradScaler's word for: it sets `grad_scale` and `found_inf`, and the kernel does the rest
    _step_supports_amp_scaling = True

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, momentum: float, weight_decay: float):
        self.param_groups = [
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **group} for group in groups
        ]
        self.momentum_buffers: dict[Tensor, Tensor] = {}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            buffers = [self.momentum_buffers.get(parameter) for parameter in trained]
            how = {key: group[key] for key in ("lr", "momentum", "weight_decay")}
            sgd(
                trained,
                [parameter.grad for parameter in trained],
                buffers,
                fused=True,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                dampening=0.0,
                nesterov=False,
                maximize=False,
                **how,
            )
            if group["momentum"]:
                self.momentum_buffers.update(zip(trained, buffers, strict=True))


class Lars(Sgd):
    """SGD with momentum whose rate for each weight is scaled by ‖weight‖ / ‖gradient‖ (You et al. 2017).

    torch has none; as in SimSiam's linear evaluation, biases are not scaled.
    """

    _step_supports_amp_scaling = False

    def __init__(self, groups, lr: float, momentum: float, weight_decay: float, trust: float = 1e-3):
        super().__init__(groups, lr, momentum, weight_decay)
        self.trust = trust

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    size, change = parameter.norm(), update.norm()
                    scale = torch.where((size > 0) & (change > 0), self.trust * size / change, 1.0)
                    update = update * scale
                if parameter not in self.momentum_buffers:
                    self.momentum_buffers[parameter] = torch.zeros_like(parameter)
                momentum = self.momentum_buffers[parameter].mul_(group["momentum"]).add_(update)
                parameter.sub_(momentum, alpha=group["lr"])


def make_optimizer(objective: Objective, recipe: Recipe) -> Sgd:
    """The recipe's optimizer of all that an objective trains."""
    fixed = {parameter for part in objective.fixed_rate for parameter in part.parameters()}
    trained = [parameter for parameter in objective.net.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter not in fixed], "fixed": False},
        {"params": [parameter for parameter in trained if parameter in fixed], "fixed": True},
    ]
    groups = [group for group in groups if group["params"]]
    how = {"lr": recipe.learning_rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    return (Lars if recipe.optimizer == "lars" else Sgd)(groups, **how)


def set_rate(optimizer: Sgd, recipe: Recipe, epoch: float) -> None:
    """Set the learning rate of a point in training, in epochs."""
    rate = recipe.learning_rate_at(epoch)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate if group["fixed"] else rate
