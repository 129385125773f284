"""Nets whose weights are tied along orbits: GCNNs with any representations, and with free parameters only."""

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import functional_call


class TiedNet(nn.Module):
    """An ordinary net whose parameters are the same along each orbit of a group that permutes their entries.

    With the orbits of `merging.exact_gcnn.orbits`, every kernel satisfies equation (3), τ(ψ) = P₁ψP₀ᵀ, whatever
    values the free parameters take: a net of group convs in which a channel is fixed (an invariant one) or swapped
    with another (two of a regular representation).

    Args:
        plain: the ordinary net. Its values should be the same along orbits (see `merging.exact_gcnn.project`); if they
            aren't, as at initialisation, an orbit's first value is used.
        orbits: for each tensor of its state dict, int64 of the tensor's shape: entries with the same number, from 0,
            form an orbit.

    Attributes:
        free: the free parameters of each tensor, one per orbit, (orbits,).
    """

    def __init__(self, plain: nn.Module, orbits: Mapping[str, Tensor]):
        super().__init__()
        self.plain = plain
        named = dict(plain.named_parameters())
        self.free = nn.ParameterDict()
        for name, parameter in named.items():
            numbers = orbits[name].to(parameter.device)
            first = np.unique(numbers.cpu(), return_index=True)[1]  # the place of each orbit's first entry
            self.free[_key(name)] = nn.Parameter(parameter.detach().flatten()[first])
            self.register_buffer(f"orbits/{_key(name)}", numbers)
            parameter.requires_grad_(False)
        averaged = {key: x for key, x in plain.named_buffers() if x.ndim and x.is_floating_point()}
        self.buffered = [name for name in averaged if name in orbits]  # all that are saved
        for name in self.buffered:
            self.register_buffer(f"orbits/{_key(name)}", orbits[name].to(averaged[name].device))
        self.names = list(named)

    def tensors(self) -> dict[str, Tensor]:
        """The ordinary net's tensors, by its names; buffers, such as running statistics, are averaged along orbits."""
        tensors = {name: _Tied.apply(self.free[_key(name)], self._orbits(name)) for name in self.names}
        if not self.training:
            for name in self.buffered:
                buffer, numbers = self.plain.get_buffer(name), self._orbits(name)
                means = torch.bincount(numbers.flatten(), buffer.flatten()) / torch.bincount(
                    numbers.flatten()
                )
                tensors[name] = means[numbers].to(buffer)
        return tensors

    def _orbits(self, name: str) -> Tensor:
        return self.get_buffer(f"orbits/{_key(name)}")

    def forward(self, x: Tensor) -> Tensor:
        """As in the ordinary net."""
        return functional_call(self.plain, self.tensors(), (x,))

    def to_plain(self) -> nn.Module:
        """A copy of the ordinary net with the present values."""
        net = deepcopy(self.plain)
        training, self.training = self.training, False
        net.load_state_dict({**net.state_dict(), **self.tensors()})
        self.training = training
        return net.requires_grad_(True)

    @property
    def free_parameters(self) -> int:
        """The number of free parameters."""
        return sum(values.numel() for values in self.free.values())


class _Tied(torch.autograd.Function):
    """Copy each orbit's value to the orbit's entries of a tensor; the value's gradient is the mean over its orbit.

    With the mean, not the sum, a training step is that of the ordinary net, projected: learning rate and weight decay
    mean the same for both.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, orbits: Tensor) -> Tensor:
        ctx.save_for_backward(orbits)
        ctx.size = len(values)
        return values[orbits]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (orbits,) = ctx.saved_tensors
        flat = orbits.flatten()
        sums = gradient.new_zeros(ctx.size).index_add_(0, flat, gradient.flatten())
        return sums / torch.bincount(flat, minlength=ctx.size), None


def _key(name: str) -> str:
    return name.replace(".", "/")
