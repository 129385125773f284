"""Nets of every structure compute the same after a permutation of their channels."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torchvision
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from public_nets import measure, rows
from small_nets import Images, answers, net_of, shuffled, smooth_images
from structures import (
    BETWEEN,
    STRUCTURES,
    UNFLIPPED_BETWEEN,
    Between,
    Excited,
    UNet,
    difference,
    shuffle_net,
    with_statistics,
)
from torch import fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from relusym.channels.groups import permute
from relusym.channels.traced import TracedNet, channel_groups
from relusym.merging.aligned import joint_statistics
from relusym.merging.identities import largest_difference
from relusym.merging.merge import merge
from relusym.merging.repair import reset_batch_norm
from relusym.nets import build
from relusym.pixels.transform import flip, transformed
from relusym.symmetry import SYMMETRIES

UNFLIPPED = {"Additions", "Upscaled"}  # a stride on an even width; channels that become pixels
FLIPPED = [structure for structure in STRUCTURES if structure.__name__ not in UNFLIPPED]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_a_permuted_net_computes_the_same(structure):
    torch.manual_seed(0)
    error, moved = difference(with_statistics(structure()))
    assert error < 1e-10 and moved > 10


@torch.no_grad()
@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=SYMMETRIES)
@pytest.mark.parametrize("structure", FLIPPED, ids=lambda structure: structure.__name__)
def test_a_transformed_net_on_transformed_images_computes_the_same(structure, symmetry):
    if structure.__name__ == "Normed" and symmetry.order == 4:  # it sums over rows
        line = "the net combines pixels in a way that doesn't commute with quarter_turn"
        refused(lambda: transformed(structure(), symmetry, (3, 32, 32)), match=line)
        return
    torch.manual_seed(0)
    net, x = with_statistics(structure()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    moved = transformed(net, symmetry, (3, 32, 32))
    for one, other in zip(tree_leaves(net(x)), tree_leaves(moved(symmetry.act(x))), strict=True):
        other = symmetry.inverse(other) if other.shape[-2:] in ((32, 32), (30, 30)) else other
        assert largest_difference(one, other) < 1e-10
    pairs = zip(net.parameters(), moved.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs if a.ndim == 4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize("name", BETWEEN)
def test_an_operations_outputs_are_permuted_with_its_channels_and_flipped(name):
    torch.manual_seed(0)
    net = with_statistics(Between(*BETWEEN[name])).float()
    traced, x = TracedNet(net, (3, 16, 16)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    kept, moved = difference(deepcopy(net).double(), 16, groups=traced.groups)
    assert kept < 1e-10 and moved > 10 and not traced.fixed
    if name in UNFLIPPED_BETWEEN:
        refused(lambda: flip(traced), match=UNFLIPPED_BETWEEN[name])
    else:
        assert torch.allclose(flip(traced).double()(x.flip(-1)), net.double()(x), atol=1e-5)


WRITING = "einsum with dots", "einsum without output", "tensordot", "a matrix times columns", "distances"


@pytest.mark.parametrize("name", [*WRITING, "heads of parameters"])
def test_channels_that_a_product_writes_are_permuted(name):
    torch.manual_seed(0)
    traced = TracedNet(Between(*BETWEEN[name]), (3, 16, 16))
    sizes = sorted(group.size for group in traced.groups)
    assert sizes == ([7, 8, 12] if name in WRITING else [5, 5, 7, 8, 12]) and not traced.staying


def test_learned_maps_beside_channels_are_permuted():
    groups = channel_groups(Between(*BETWEEN["learned maps"]), (3, 16, 16))
    assert sorted(group.size for group in groups) == [2, 8, 12]


# ---- random nets


def layer(make, width=lambda b, c: c):
    """A layer with as many output as input channels; `make` constructs it for this number."""
    return lambda b, c: make(c), width, lambda f, x, y, w: f(x)


def operation(act, width=lambda b, c: c, make=lambda b, c: nn.Identity()):
    return make, width, act


# name → a layer, made of how many channels there were before and are now; how many there are after it; what is
# done with the layer, a map, the map before it and the number of channels
OPERATIONS = {
    "conv": layer(lambda c: nn.Conv2d(c, 8, 3, padding=1, bias=False), lambda b, c: 8),
    "wider": layer(lambda c: nn.Conv2d(c, 12, 1), lambda b, c: 12),
    "depthwise": layer(lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c)),
    "grouped": layer(lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c // 2)),
    "transposed": layer(lambda c: nn.ConvTranspose2d(c, 8, 3, padding=1), lambda b, c: 8),
    "grouped, transposed": layer(lambda c: nn.ConvTranspose2d(c, 2 * c, 3, padding=1, groups=c // 2),
     lambda b, c: 2 * c),
    "batch norm": layer(nn.BatchNorm2d), "group norm": layer(lambda c: nn.GroupNorm(c // 2, c)),
    "groups of many": layer(lambda c: nn.GroupNorm(2, c)),
    "instance norm": layer(lambda c: nn.InstanceNorm2d(c, affine=True)), "prelu": layer(nn.PReLU),
    "relu": layer(lambda c: nn.ReLU()), "gelu": layer(lambda c: nn.GELU()),
    "pool": layer(lambda c: nn.AvgPool2d(3, 1, 1)),
    "residual": operation(lambda f, x, y, w: x + f(y), make=lambda b, c: nn.Conv2d(b, c, 1)),
    "product": operation(lambda f, x, y, w: x * torch.sigmoid(f(y).mean((2, 3), keepdim=True)),
     make=lambda b, c: nn.Conv2d(b, c, 1)),
    "dense": operation(lambda f, x, y, w: torch.cat([y, x], 1), lambda b, c: b + c),
    "halves": operation(lambda f, x, y, w: torch.cat([x.chunk(2, 1)[1].relu(), x.chunk(2, 1)[0]], 1)),
    "pad": operation(lambda f, x, y, w: nn.functional.pad(x, (0, 0, 0, 0, 1, 3)), lambda b, c: c + 4),
    "slice": operation(lambda f, x, y, w: x[:, :w], lambda b, c: max(4, c - 2)),
    "last": operation(lambda f, x, y, w: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), lambda b, c: 8,
     lambda b, c: nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 8))),
    "shuffle": operation(lambda f, x, y, w: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)),
    "stack": operation(lambda f, x, y, w: torch.stack([x, x.relu()], 2).flatten(1, 2), lambda b, c: 2 * c),
}  # fmt: skip


class Drawn(nn.Module):
    """A net of the operations of these names, one after another."""

    def __init__(self, names):
        super().__init__()
        self.names, self.layers, self.widths, channels, before = names, nn.ModuleList(), [], 4, 4
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        for name in names:
            make, width, _ = OPERATIONS[name]
            self.layers.append(make(before, channels))
            before, channels = channels, width(before, channels)
            self.widths.append(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        before = x = self.stem(x)
        for name, layer, width in zip(self.names, self.layers, self.widths, strict=True):
            before, x = x, OPERATIONS[name][2](layer, x, before, width)
        return self.head(x.mean((2, 3)))


@pytest.mark.slow(seconds=2)
@settings(max_examples=60, derandomize=True)
@given(st.lists(st.sampled_from([*OPERATIONS]), min_size=2, max_size=8), st.integers(0, 99))
def test_nets_drawn_at_random_keep_their_logits_under_random_permutations(names, seed):
    torch.manual_seed(seed)
    error, moved = difference(with_statistics(Drawn(names)), 6, seed)
    assert error < 1e-10 and moved, names


# ---- layers called twice, computed weights, traced nets


@torch.no_grad()
@pytest.mark.parametrize("groups, width", [(1, 144), (2, 200), (3, 240), (4, 272), (8, 384)])
def test_shufflenet_v1_is_flipped_and_permuted_where_its_shuffles_allow(groups, width):
    """Channels that grouped convolutions read across each other's groups stay; those of the first unit don't."""
    torch.manual_seed(0)
    net, x = with_statistics(shuffle_net(groups, width)), torch.randn(2, 3, 33, 33, dtype=torch.float64)
    kept, moved = difference(net, 33)
    assert kept < 1e-10 and moved > (100 if groups == 1 else 40)
    assert largest_difference(flip(net, (3, 33, 33))(x.flip(-1)), net(x)) < 1e-10


def test_a_net_without_channels_to_permute_is_refused():
    net, x = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()), torch.randn(2, 3, 8, 8)
    refused(lambda: merge(net, net, [x]), "has no layer whose channels can be permuted")


@pytest.mark.parametrize(("change", "message"), [
    (lambda n: n.insert(1, Halved(12, 12, 1)), "layer 1: its weight is computed"),
    (lambda n: n[2].register_parameter("weight", nn.Parameter(n[1].weight[:10, :, 0, 0].detach())),
     "shares memory"),
    (lambda n: n.insert(1, nn.LazyConv2d(12, 1)), r"1\.weight has no shape yet"),
    (lambda n: n.to("meta"), r"0\.weight is on the meta device and has no values"),
    (lambda n: n.insert(1, Counting(12, 12, 1)), r"1\._extra_state is no tensor \(dict\)"),
    (lambda n: n.append(First(torch.log)), "its logits aren't finite on images drawn at random"),
    (lambda n: n.insert(1, nn.Conv2d(7, 12, 1)), "can't be run on an image of 3×8×8: .*7"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_net_that_cannot_be_permuted_is_refused_in_one_line_that_names_the_reason(change, message):
    net = nn.Sequential(nn.Conv2d(3, 12, 8), nn.Conv2d(12, 12, 1), Rows(12, 10))
    change(net)
    refused(lambda: channel_groups(net, (3, 8, 8)), match=message)


@net_of(lambda: {"weights": nn.Parameter(torch.rand(2, 12, 1, 1))})
def Masked(self, x):
    scale, shift = self.weights
    scale, shift = torch.stack([scale * (torch.arange(12) % 3).view(12, 1, 1), shift])
    return x * scale + shift


@pytest.mark.parametrize(("operation", "name"), [
    (lambda: nn.LSTM(12, 12), "lstm in 2.function"),
    (Masked, "stack in 2.function"),
    (lambda: partial(torch.cumsum, dim=1), "cumsum in 2"),
    (lambda: lambda x: x * x.argmax(1, keepdim=True), "argmax in 2"),
    (lambda: nn.LocalResponseNorm(3), "local_response_norm in 2.function"),
], ids=["LSTM", "a masked parameter beside another", "cumsum", "argmax", "neighbouring channels"])  # fmt: skip
def test_channels_that_an_unknown_operation_reads_stay_and_the_others_are_permuted(operation, name):
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1), First(operation()), nn.Conv2d(12, 12, 1))
    net.append(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)))
    traced = TracedNet(net, (3, 8, 8))
    assert [group.name for group in traced.groups] == ["0", "3"] and list(traced.fixed) == [name]
    assert difference(with_statistics(net), 8)[0] < 1e-10


class Halved(nn.Conv2d):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.doubled = self._parameters.pop("weight")

    @property
    def weight(self):
        return self.doubled / 2


class Counting(nn.Conv2d):
    def get_extra_state(self):
        return {"count": 1}


@net_of(lambda function: {"function": function})
def First(self, x):
    """The first output of an operation on rows, channels last."""
    if isinstance(self.function, nn.LSTM):
        return self.function(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, x.shape[2:])
    result = self.function(x)
    return result if isinstance(result, torch.Tensor) else result[0]


class Rows(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.weight, self.bias)


def test_an_already_traced_net_and_a_net_in_training_mode_have_the_same_groups():
    net = Excited()
    net.squeeze.eval()
    modes = [module.training for module in net.modules()]
    groups = channel_groups(net, (3, 32, 32))
    assert [module.training for module in net.modules()] == modes
    assert channel_groups(fx.symbolic_trace(net), (3, 32, 32)) == groups


def test_nets_in_half_and_double_precision_have_the_same_groups():
    assert channel_groups(deepcopy(net := UNet()).double(), (3, 32, 32)) == channel_groups(net, (3, 32, 32))
    assert channel_groups(net.bfloat16(), (3, 32, 32)) == channel_groups(UNet(), (3, 32, 32))


def test_groups_of_the_same_name_get_different_names():
    parts = {"features": nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3)}), "conv": nn.Conv2d(8, 8, 3)}

    @net_of(lambda: parts | {"head": nn.Linear(8, 10)})
    def Two(self, x):
        return self.head(self.conv(self.features["conv"](x).relu()).relu().mean((2, 3)))

    assert [group.name for group in channel_groups(Two())] == ["conv", "conv#2"]


def test_groups_of_a_part_of_a_layers_channels_name_the_part():
    net = build({"architecture": "cifar_resnet", "blocks": 1, "shortcut": "pad"}, 10)
    sizes = {group.name: group.size for group in channel_groups(net)}
    streams = {"layer3.0.conv2[24:40]": 16, "layer3.0.conv2[16:24,40:48]": 16, "layer3.0.conv2[:16,48:]": 32}
    assert sizes == streams | {f"layer{stage}.0.conv1": 8 * 2**stage for stage in (1, 2, 3)}
    assert difference(with_statistics(net))[0] < 1e-10


def test_the_groups_of_a_group_norm_are_permuted_whole_and_the_channels_within_each():
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 5))
    (group,) = channel_groups(net, (3, 8, 8))
    assert (group.size, group.heads, group.node) == (12, 3, "_2")
    moved = torch.tensor([[9, 8, 11, 10], [0, 3, 1, 2], [7, 6, 5, 4]]).flatten()
    images = torch.randn(4, 3, 8, 8)
    permuted = functional_call(net, permute(net.state_dict(), [group], {group.name: moved}), images)
    assert torch.allclose(permuted, net(images), atol=1e-5)


def test_what_a_grouped_convolution_reads_and_writes_is_permuted_by_groups_and_within_each():
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 4 * 4, 5)),
    )
    read, written = groups = channel_groups(net, (3, 8, 8))
    assert [(group.size, group.heads) for group in groups] == [(8, 4), (12, 4)] and read.tied == written.tied
    weights = {(place.tensor, place.dim, place.block) for group in groups for place in group.places}
    known = {
        ("0.weight", 0, 1),
        ("2.weight", 1, 3),
        ("2.weight", 0, 1),
        ("2.bias", 0, 1),
        ("5.weight", 1, 16),
    }
    assert weights == known
    order = torch.tensor([2, 0, 3, 1])
    within = (
        torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0]]),
        torch.tensor([[2, 0, 1], [0, 2, 1], [1, 2, 0], [0, 1, 2]]),
    )
    moved = {group.name: (order[:, None] * (group.size // 4) + inner).flatten()
             for group, inner in zip(groups, within, strict=True)}  # fmt: skip
    state = permute(net.state_dict(), groups, moved)
    for g, former in enumerate(order):
        kernels = net[2].weight[3 * former : 3 * former + 3]
        assert torch.equal(state["2.weight"][3 * g : 3 * g + 3], kernels[within[1][g]][:, within[0][g]])
    images = torch.randn(4, 3, 8, 8)
    assert torch.allclose(functional_call(net, state, images), net(images), atol=1e-5)


# ---- merging

MERGED = [of for of in STRUCTURES if of.__name__ not in ("Several", "UNet")]  # whose outputs are logits


@pytest.mark.slow(seconds=3)
@torch.no_grad()
@pytest.mark.parametrize("structure", MERGED, ids=lambda structure: structure.__name__)
def test_a_planted_permutation_with_noise_is_recovered(structure):
    torch.manual_seed(0)
    some = Images(smooth_images(200), 100)
    net = reset_batch_norm(with_statistics(structure()).float(), some)
    groups = channel_groups(net, some.shape)
    other, planted = shuffled(net, groups)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3 * float(parameter.abs().mean()))
    merged = merge(net, other, some, some, answers(net, some))
    correlations = joint_statistics([net, net], some, groups).correlations
    # the other channels are uncorrelated
    alive = {name: table.diag() > 0.99 for name, table in correlations.items()}
    assert torch.cat(list(alive.values())).float().mean() > 0.4
    for name, permutation in planted.items():
        right = torch.tensor(merged.permutations[name]) == permutation.argsort()
        assert right[alive[name]].all(), name
    assert merged.checks.pop("permuted_logits") < 1e-4
    assert max(merged.checks.values(), default=0) < 1e-4
    assert merged.accuracy["halfway"] > 0.9 and merged.accuracy["repaired"] > 0.8


# ---- torchvision's

QUICK = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v3_small regnet_y_400mf
    resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t
"""


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("name", QUICK.split())
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_a_permuted_net_of_torchvisions_computes_the_same(name):
    row = measure(f"torchvision:{name}")
    assert row.difference < 1e-10 and row.groups > 6 and row.share > 0.99


@pytest.mark.slow(seconds=2)
def test_a_permuted_segmentation_net_computes_the_same_at_both_its_heads():
    torch.manual_seed(0)
    how = {"weights": None, "weights_backbone": None, "aux_loss": True}
    net = torchvision.models.get_model("deeplabv3_mobilenet_v3_large", **how)
    error, moved = difference(with_statistics(net), 33)
    assert error < 1e-10 and moved > 3_000


def test_the_page_of_nets_has_every_module_of_torchvisions_and_none_is_refused_or_wrong():
    names, page = torchvision.models.list_models(torchvision.models), rows("nets")
    module_of = {name: torchvision.models.get_model_builder(name).__module__ for name in names}
    assert {module_of[name] for name in page} == set(module_of.values())
    assert all(row.groups and row.difference < 1e-10 and row.share > 0.99 for row in page.values())
