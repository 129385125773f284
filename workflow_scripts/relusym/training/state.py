"""A training's state between two runs of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relusym import checkpoint
from relusym.errors import UserError
from relusym.training.optimizers import Sgd


@dataclass
class State:
    """All that a training goes on from, kept in a file.

    Attributes:
        path: the file; None keeps nothing.
        net, optimizer, scaler: what has a state.
        history: of the epochs that are done; one row each.
    """

    path: Path | None
    net: nn.Module
    optimizer: Sgd
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]]

    def save(self, step: int = 0, sums: Tensor | None = None) -> None:
        """Write weights, momentum, float16's scale and history, and how far an unfinished epoch is.

        Args:
            step: how many of its steps are done.
            sums: its losses and right answers so far, (2,).
        """
        if self.path is None:
            return
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            if parameter in self.optimizer.momentum_buffers:  # a frozen one has none
                tensors[f"momentum.{name}"] = self.optimizer.momentum_buffers[parameter]
        if sums is not None:
            tensors["sums"] = sums
        about = {"history": self.history, "step": step, "scaler": self.scaler.state_dict()}
        checkpoint.save(self.path, tensors, about)

    def restore(self) -> tuple[int, Tensor | None]:
        """Load what `save` wrote, if there is something; its step and sums.

        Raises:
            UserError: the file is truncated, foreign, or the state of another net.
        """
        if self.path is None or not self.path.exists():
            return 0, None
        tensors, about = checkpoint.load(self.path, next(self.net.parameters()).device)
        weights = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        try:
            self.net.load_state_dict(weights)
            for name, parameter in self.net.named_parameters():
                if f"momentum.{name}" in tensors:
                    buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                    self.optimizer.momentum_buffers[parameter] = buffer
            if about["scaler"]:
                self.scaler.load_state_dict(about["scaler"])
            self.history += about["history"]
            return about["step"], tensors.get("sums")
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{self.path} isn't the state of this training: delete it, and it starts over"
            ) from error
