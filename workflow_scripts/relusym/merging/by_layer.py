"""Layer by layer: how far from equivariant a net's activations are, and the barrier if only its first layers merge."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from relusym.merging.aligned import Aligned
from relusym.merging.barrier import accuracy, barrier
from relusym.merging.channel_groups import ChannelGroup, trace
from relusym.merging.images import ImageSource, device_of
from relusym.merging.lockstep import Lockstep
from relusym.merging.repair import repair_points, repaired
from relusym.precision import full_float32
from relusym.symmetry import Symmetry


@torch.no_grad()
@full_float32()
def equivariance_errors(
    net: nn.Module,
    images: ImageSource,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: dict[str, Tensor],
) -> dict[str, float]:
    """By channel group, ‖Pφ(τ⁻¹x)τ − φ(x)‖ / ‖φ(x)‖ over all images together: 0 is equivariant, √2 is unrelated.

    Args:
        permutations: group name → int64 (C,): channel i goes with channel `permutation[i]` of the transformed net.
    """
    net.eval()
    device, of_node = device_of(net), {group.node: group for group in groups}
    squares: dict[str, list[Tensor]] = defaultdict(lambda: [torch.zeros((), device=device) for _ in range(2)])

    def visit(node: str, outputs: list[Tensor]) -> None:
        if (group := of_node.get(node)) and outputs[0].ndim == 4 and outputs[0].shape[1] == group.size:
            here, there = outputs[0].chunk(2)
            there = symmetry.act(there).index_select(1, permutations[group.name].to(device))
            squares[group.name][0] += (here - there).square().sum()
            squares[group.name][1] += here.square().sum()

    run = Lockstep([trace(net)])
    for x in images.batches(device):
        run.run([torch.cat([x, symmetry.powers(x)[-1]])], visit)
    return {name: float((off / whole.clamp(min=1e-30)).sqrt()) for name, (off, whole) in squares.items()}


def layers(net: nn.Module) -> list[tuple[str, ...]]:
    """The modules with parameters in the order in which they run; a norm goes with the layer before it."""
    found: list[tuple[str, ...]] = []
    for node in trace(net).graph.nodes:
        if node.op != "call_module" or not net.get_submodule(node.target).state_dict():
            continue
        is_norm = isinstance(net.get_submodule(node.target), nn.modules.batchnorm._BatchNorm)
        if is_norm and found:
            found[-1] += (str(node.target),)
        else:
            found.append((str(node.target),))
    return found


@torch.no_grad()
@full_float32()
def barriers_up_to(
    aligned: Aligned, images: ImageSource, test_images: ImageSource, labels: Tensor
) -> dict[str, float | None]:
    """By layer, the barrier (with REPAIR) if it and all layers before it are merged, and the rest is the first net's.

    The last layer's is the barrier of the whole merge. Of a net without batch norm.
    """
    first, second = aligned.statistics
    ends = [accuracy(net, test_images, labels) for net in (aligned.first, aligned.second)]
    whole = aligned.between(0.5).state_dict()
    points, merged, found = set(repair_points(trace(aligned.first)).values()), set(), {}
    for names in layers(aligned.first):
        merged |= {*names}
        net = aligned.between(0)
        net.load_state_dict(
            {
                key: whole[key] if key.rpartition(".")[0] in merged else tensor
                for key, tensor in net.state_dict().items()
            }
        )
        targets = {
            name: first[name].halfway(second[name]) if name in merged else first[name] for name in points
        }
        fixed = repaired(net, targets, images)[0]
        found[names[0]] = barrier(*ends, accuracy(fixed, test_images, labels)) if any(ends) else None
    return found
