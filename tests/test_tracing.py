import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from conftest import refused
from small_nets import NARROW, Images, net_of, pooled, resnet, smooth_images, vgg11
from structures import Mixer, difference, with_statistics
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torchvision.ops import FrozenBatchNorm2d

from relusym.channels import traced as tracing
from relusym.channels.groups import Place, block_outputs, permute, random_permutations
from relusym.channels.traced import TracedNet, channel_groups
from relusym.channels.tracing import Handlers
from relusym.merging.merge import flip_merge, merge
from relusym.nets import build
from relusym.nets.vgg import VGG11
from relusym.pixels.transform import check_planted, flip
from relusym.reporting.report import report
from relusym.symmetry import HORIZONTAL_FLIP


class Net(nn.Module):
    """Two convolutions and a linear layer: 16 channels can be permuted."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, 8, 3, padding=1) for channels in (3, 8))
        self.head = nn.Linear(8, 5)

    def body(self, x):
        return F.relu(self.b(F.relu(self.a(x))))

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Normalised(Net):
    """Normalised by a buffer, a non-persistent buffer, and a constant made in forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((3,), 0.4))
        self.register_buffer("std", torch.full((3,), 0.2), persistent=False)

    def forward(self, x):
        x = (x - self.mean[None, :, None, None]) / self.std[None, :, None, None]
        return super().forward(x * torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1))


class Optional(Net):
    """Optional arguments, assertions and control flow on shapes."""

    def forward(self, x, features=False, mask=None, **unused):
        assert isinstance(x, torch.Tensor) and x.shape[1] == 3, "RGB images"
        torch._assert(x.shape[-1] > 2, "small")
        torch._check(x.dim() == 4)
        batch, _, height, width = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        x = self.body(x)
        if features:
            return x
        return self.head(x.view(batch, -1, int(x.shape[2] * x.shape[3])).mean(2))


class FromShapes(Net):
    """Computed sizes of kernels, pads and views; a squeeze that keeps the batch dimension."""

    def forward(self, x):
        x = self.body(x)
        x = F.max_pool2d(x, x.shape[-1] // 8)
        x = F.pad(x, (0, x.size(3) % 2, 0, 0))
        return self.head(F.avg_pool2d(x, x.size()[2:]).squeeze())


def twice_named():
    layers, gain = Net()._modules, nn.Parameter(torch.rand(8, 1, 1) + 0.5)
    return layers | {"gain": gain, "same": gain, "kernel": layers["b"].weight}


@net_of(twice_named)
def TwiceNamed(self, x):
    """Parameters under two names: one by which channels are multiplied, and a layer's kernel."""
    x = F.relu(self.a(x) * self.gain)
    return self.head(F.relu(self.b(x) + F.conv2d(x.sigmoid(), self.kernel, padding=1)).mean((2, 3)))


class Biased(Net):
    """Attention with a bias per head from a small net on constants, and a bias of queries and values."""

    def __init__(self):
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))
        self.mlp = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0).float()
        self.register_buffer("apart", apart, persistent=False)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).view(len(x), 16, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mask = self.mlp(self.apart.to(x)).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


@net_of(lambda: {**Net()._modules, "norm": FrozenBatchNorm2d(8)})
def Frozen(self, x):
    """Batch norms whose weights are buffers, too."""
    return self.head(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))


class Masked(nn.Conv2d):
    """As in a pruned net or PixelCNN, with the mask as a buffer."""

    def __init__(self):
        super().__init__(8, 8, 3, padding=1)
        self.register_buffer("mask", (torch.rand(8, 8, 3, 3) > 0.3).float())

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class Computed(Net):
    """A masked weight, computed at each use, and an order in a buffer."""

    def __init__(self):
        super().__init__()
        self.masked = Masked()
        self.register_buffer("order", torch.randperm(8))

    def body(self, x):
        return self.masked(super().body(x)).index_select(1, self.order).relu()


class Twice(Net):
    """A layer's weight is read before the layer is called."""

    def body(self, x):
        x = F.relu(self.a(x))
        return F.relu(self.b(x + F.conv2d(x, torch.sign(self.b.weight), padding=1)))


class Asked(Net):
    """Attention with learned queries."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 4, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def body(self, x):
        x = super().body(x)
        tokens = x.flatten(2).transpose(1, 2)
        asked = self.attention(self.queries.expand(len(x), -1, -1), tokens, tokens)[0].mean(1)
        return x * asked[:, :, None, None]


class Means(Net):
    """An unknown operation on values without pixels, and weighted branches."""

    def __init__(self):
        super().__init__()
        self.both, self.shares = nn.Bilinear(8, 8, 8), nn.Parameter(torch.rand(2))

    def body(self, x):
        x = super().body(x)
        x = torch.stack([x, x.square()], -1) @ self.shares.softmax(0)
        return x * self.both(*[x.mean((2, 3))] * 2)[:, :, None, None]


TWO_CONVS = Normalised, Optional, FromShapes, TwiceNamed
CHANNELS = dict.fromkeys((*TWO_CONVS, Asked, Frozen), 16) | {Computed: 24, Twice: 8, Means: 8}
CHANNELS |= {Biased: 16 + 16 + 16 + 12 + 4, Mixer: 24 + 32}


@pytest.mark.parametrize("kind", CHANNELS, ids=lambda kind: kind.__name__)
def test_nets_in_common_styles_compute_the_same_when_permuted(kind):
    torch.manual_seed(0)
    net = with_statistics(kind())
    groups = channel_groups(net, (3, 32, 32))
    assert sum(group.size for group in groups) == CHANNELS[kind]
    assert difference(net, groups=groups)[0] < 1e-10


@pytest.mark.parametrize("kind", [Twice, Asked, Means, Computed], ids=lambda kind: kind.__name__)
def test_nets_in_common_styles_are_flipped(kind):
    torch.manual_seed(0)
    net, x = kind(), torch.randn(4, 3, 16, 16)
    assert torch.allclose(flip(net, (3, 16, 16))(x.flip(-1)), net(x), atol=1e-5)


@pytest.mark.parametrize("kind", TWO_CONVS, ids=lambda kind: kind.__name__)
def test_nets_in_common_styles_are_merged_with_their_flipped_selves(kind):
    torch.manual_seed(0)
    net = kind().eval()
    attributes, state = set(vars(net)), deepcopy(net.state_dict())
    x = torch.randn(20, 3, 32, 32)
    merged = flip_merge(net, [x])
    for end, images in (("net", x), ("flipped", x.flip(-1)), ("permuted", x.flip(-1))):
        torch.testing.assert_close(merged.nets[end](images), net(x), rtol=0, atol=1e-5)
    halfway = merged.nets["halfway"].state_dict()
    for key, tensor in merged.nets["permuted"].state_dict().items():
        torch.testing.assert_close(halfway[key], (tensor + merged.nets["net"].state_dict()[key]) / 2)
    assert sum(map(len, merged.permutations.values())) == CHANNELS[kind] and not merged.traced.fixed
    assert set(vars(net)) == attributes
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)


def test_a_net_that_computes_in_bfloat16_is_merged():
    class Autocast(Net):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                x = self.body(x)
            return self.head(x.float().mean((2, 3)))

    torch.manual_seed(0)
    net, x = Autocast(), torch.randn(20, 3, 16, 16)
    merged = flip_merge(net, [x])
    assert torch.equal(merged.nets["net"](x), net(x)) and not torch.equal(net(x), Net.forward(net, x))
    assert {name: len(p) for name, p in merged.permutations.items()} == {"a": 8, "b": 8}


def test_the_net_in_a_wrapper_is_traced():
    net = Net()
    expected = channel_groups(net)
    assert channel_groups(nn.DataParallel(net)) == channel_groups(torch.compile(net)) == expected


class Symmetric(nn.Module):
    """A kernel and its mirror image, averaged."""

    def forward(self, weight):
        return (weight + weight.flip(-1)) / 2


registered = parametrize.register_parametrization
COMPUTED = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "two of them": lambda layer: registered(nn.utils.parametrizations.weight_norm(layer), "weight",
     Symmetric()), "bias": lambda layer: registered(layer, "bias", nn.Softplus()),
    "weight norm by a hook": nn.utils.weight_norm, "spectral norm by a hook": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}  # fmt: skip


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_net_that_computes_weights_from_parameters_is_merged_like_one_with_these_weights(compute):
    torch.manual_seed(0)
    net, plain = Net(), Net()
    compute(net.b)
    x = torch.randn(20, 3, 16, 16)
    net(x), net.eval()  # with the history of a training step
    with torch.no_grad():
        expected = net(x)
        for name in ("a", "b", "head"):
            for key in ("weight", "bias"):
                getattr(getattr(plain, name), key).copy_(getattr(getattr(net, name), key))
    net.train()
    state, kind = deepcopy(net.state_dict()), type(net.b)
    merged, same = flip_merge(net, [x]), flip_merge(plain, [x])
    assert merged.barrier == same.barrier and merged.permutations == same.permutations
    assert torch.allclose(merged.nets["net"](x), expected, atol=1e-6)
    assert channel_groups(net) == channel_groups(plain)
    assert net.training and type(net.b) is kind
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
    assert torch.allclose(net.eval()(x), expected, atol=1e-6)


def test_computing_a_parametrized_weight_leaves_a_shared_parameter_to_the_other_layer():
    class Stemmed(Net):
        def forward(self, x):
            return super().forward(self.stem(x))

    torch.manual_seed(0)
    net, x = Stemmed(), torch.randn(2, 3, 16, 16)
    net.a = nn.Conv2d(8, 8, 3, padding=1)
    net.stem = nn.Conv2d(3, 8, 1)
    net.b.weight = net.a.weight
    registered(net.b, "weight", Symmetric())
    assert torch.allclose(TracedNet(net).net.body(net.stem(x)), net.body(net.stem(x)), atol=1e-6)


def test_a_state_dict_with_parametrizations_is_refused_by_permute_in_one_line():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.b)
    traced = TracedNet(net)
    permutations = random_permutations(traced.groups, torch.Generator().manual_seed(0))
    line = r"has no b\.weight: it isn't that of the net that was traced"
    refused(lambda: permute(net.state_dict(), traced.groups, permutations), match=line)
    state, x = permute(traced.net.state_dict(), traced.groups, permutations), torch.randn(2, 3, 16, 16)
    expected = net.eval()(x)
    traced.net.load_state_dict(state)
    assert torch.allclose(traced.net(x), expected, atol=1e-5)
    line = "layer b: its weight is computed, so it can't be transformed"
    refused(lambda: HORIZONTAL_FLIP.transform(net), match=line)


def halves_in_place(x):
    torch._foreach_mul_(list((x := x + 1).chunk(2, 2)), 2)
    return x


def strided_in_place(x):
    (x := x + 1).as_strided((2, 3), (1, 1)).mul_(2)
    return x


class Depends(Net):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return super().forward(self.how(x))


@pytest.mark.parametrize("how, message", [
    (lambda x: x if x.sum() > 0 else -x,
     "can't be traced: what it does depends on the image's values .by bool"),
    (lambda x: x * x.max().item(), "depends on the image's values .by item"),
    (lambda x: x - x.mean(0), "its logits on an image depend on the other images of the batch"),
    (lambda x: x if len(x) < 3 else x * 2, "calls other operations on 3 images than on 2"),
    (lambda x: F.dropout(x, 0.5), "something else each time, in evaluation mode: it draws at random"),
    (lambda x: torch.ones(2, 3, 32, 32), "doesn't depend on the image"),
    (halves_in_place, "foreach_mul changes in place what it doesn't return"),
    (strided_in_place, "what mul changes in place shares memory with other tensors in an unknown way"),
], ids=["bool", "item", "batch", "length", "dropout", "constant", "in place", "strided"])  # fmt: skip
def test_a_net_that_no_graph_can_represent_is_refused(how, message):
    refused(lambda: channel_groups(Depends(how)), match=message)


@net_of(lambda: {"gain": nn.Parameter(torch.ones(8))})
def Gain(self, x):
    return x * self.gain[:, None, None]


def test_an_incomplete_handler_is_named_even_if_the_weights_hide_the_fault():
    net = pooled(nn.Conv2d(3, 8, 3), Gain())
    wrong = Handlers()
    wrong.handler(Gain)(lambda call, x: x)
    line = r"Sequential: permuting its channels changes .* first at layer 1, whose "
    refused(lambda: channel_groups(net, handlers=wrong), match=line)
    assert [group.size for group in channel_groups(net)] == [8]
    refused(lambda: wrong.handler(Gain)(lambda call, x: x), match="Gain has a handler for channels already, ")


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("net", [vgg11, lambda: resnet(size=32)], ids=["vgg11", "resnet"])
def test_a_report_traces_its_net_once(monkeypatch, net):
    net, traced, original = net(), [], tracing.trace
    monkeypatch.setattr(tracing, "trace", lambda net, *rest: traced.append(net) or original(net, *rest))
    report(net, Images(smooth_images(30), 30), partial_images=10)
    assert traced == [net]


def test_a_flipped_net_is_checked_in_float64_at_a_size_that_its_strides_allow():
    net = pooled(nn.Conv2d(3, 8, 3, 2, 1))
    traced = TracedNet(net, (3, 16, 16))
    assert check_planted(traced, HORIZONTAL_FLIP) < 1e-12
    x = torch.randn(2, 3, 17, 17)
    assert torch.allclose(flip(traced)(x.flip(-1)), net(x), atol=1e-5)
    unflippable = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(), nn.Linear(8 * 64, 4))
    unflippable[0].stride = (3, 3)
    unflippable[2] = nn.Linear(8 * 25, 4)
    assert check_planted(TracedNet(unflippable, (3, 16, 16)), HORIZONTAL_FLIP) is None


def test_handlers_of_extending_md_serve_merges_and_reports():
    @net_of(lambda: {"gain": nn.Parameter(torch.rand(8) + 0.5)})
    def Gain(self, x):
        """By NumPy, in evaluation mode."""
        return torch.from_numpy(x.detach().numpy() * self.gain.detach().numpy()[:, None, None])

    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = (of for of in re.findall(r"```python\n(.*?)```", page, re.S) if "Handlers()" in of)
    names = {"Gain": Gain}
    exec(code, names)
    torch.manual_seed(0)
    nets = [pooled(nn.Conv2d(3, 8, 3), Gain()) for _ in range(2)]
    images, handlers = Images(smooth_images(40), 20), names["handlers"]
    for merged in (merge(*nets, images, handlers=handlers), flip_merge(nets[0], images, handlers=handlers)):
        assert len(merged.permutations["0"]) == 8 and merged.checks["permuted_logits"] < 1e-5
    x = images.first(40, torch.device("cpu"))
    here, there = nets[0][:3](x), nets[0][:3](x.flip(-1)).flip(-1)[:, merged.permutations["0"]]
    (layer,) = report(nets[0], images, partial_images=10, handlers=handlers).layers
    expected = float((here - there).norm() / here.norm())
    assert layer.equivariance["matched"] == pytest.approx(expected, rel=1e-4)
    refused(lambda: merge(*nets, images), match="depends on the image's values")


def test_control_flow_on_parameters_and_images_of_another_size_are_refused():
    class Reads(Net):
        def forward(self, x):
            return super().forward(x) if self.head.bias.sum() > 0 else -super().forward(x)

    refused(lambda: channel_groups(Reads()), "Reads can't be traced: ", "on a parameter's values (by bool")
    line = "Net is traced for images of 3×32×32, and these are 3×16×16"
    refused(lambda: channel_groups(TracedNet(Net()), (3, 16, 16)), line)


def test_an_image_shape_of_another_form_is_refused():
    for shape in (32, (), (3, 32.0, 32)):
        for net in (Net(), TracedNet(Net())):
            refused(
                lambda net=net, shape=shape: channel_groups(net, shape),
                "allowed is (channels, height, width)",
            )


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 10, 32), nn.Flatten()])
def test_a_net_that_is_a_single_layer_has_no_groups(layer):
    assert channel_groups(layer) == []


class Named(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


@dataclass
class Data:
    logits: torch.Tensor
    features: torch.Tensor


@pytest.mark.parametrize("output", [Named, Data])
def test_channels_that_a_net_returns_beside_its_logits_are_fixed_in_every_form_of_output(output):
    class Returns(Net):
        def forward(self, x):
            features = self.body(x).mean((2, 3))
            return output(features=features, logits=self.head(features))

    assert [group.name for group in channel_groups(Returns())] == ["a"]


def test_a_net_that_returns_classes_has_its_groups():
    class Classes(Net):
        def forward(self, x):
            return super().forward(x).argmax(1, keepdim=True)

    assert channel_groups(Classes()) == channel_groups(Net())


def test_groups_of_vgg11_are_the_known_ones():
    groups = channel_groups(VGG11(1 / 8))
    sizes = enumerate([8, 16, 32, 32, 64, 64, 64, 64], start=1)
    assert [(g.name, g.size) for g in groups] == [(f"conv{i}", size) for i, size in sizes]
    for i, group in enumerate(groups, start=1):
        following = f"features.conv{i + 1}.weight" if i < 8 else "classifier.weight"
        conv = f"features.conv{i}"
        places = {Place(f"{conv}.weight", 0), Place(f"{conv}.bias", 0), Place(following, 1)}
        assert set(group.places) == places


def known_streams(net, last_conv):
    """torchvision's structure: for each stage, the places that its residual stream indexes."""

    def written(conv, norm):
        yield Place(f"{conv}.weight", 0)
        yield from (Place(f"{norm}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var"))

    streams, open_stream = [], set(written("conv1", "bn1"))
    for stage in range(1, 5):
        layer = getattr(net, f"layer{stage}")
        for i, block in enumerate(layer):
            name = f"layer{stage}.{i}"
            open_stream.add(Place(f"{name}.conv1.weight", 1))
            if block.downsample is not None:  # a new stream begins
                open_stream.add(Place(f"{name}.downsample.0.weight", 1))
                streams.append(open_stream)
                open_stream = set(written(f"{name}.downsample.0", f"{name}.downsample.1"))
            open_stream |= set(written(f"{name}.conv{last_conv}", f"{name}.bn{last_conv}"))
    return [*streams, open_stream | {Place("fc.weight", 1)}]


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(("name", "last_conv"), [("resnet18", 2), ("resnet50", 3)])
def test_residual_streams_are_those_of_torchvisions_resnets(name, last_conv):
    net = getattr(torchvision.models, name)()
    groups = {frozenset(group.places) for group in channel_groups(net, (3, 64, 64))}
    streams = known_streams(net, last_conv)
    assert len(streams) == (5 if last_conv == 3 else 4)
    for stream in streams:
        assert frozenset(stream) in groups
    blocks = sum(len(getattr(net, f"layer{stage}")) for stage in range(1, 5))
    assert len(groups) == len(streams) + blocks * (last_conv - 1)


def test_block_outputs_are_the_relus_behind_the_additions():
    names = [node.name for node in block_outputs(TracedNet(build(NARROW, 10)).module())]
    assert names == [f"layer{block}_relu_2" for block in ("1_0", "1_1", "2_0", "3_0", "4_0")]


def test_a_permutation_that_is_no_bijection_is_refused():
    net = VGG11(1 / 16)
    groups = channel_groups(net)
    permutations = {group.name: torch.arange(group.size) for group in groups}
    permutations["conv4"][0] = permutations["conv4"][1]
    refused(lambda: permute(net.state_dict(), groups, permutations), "conv4", "bijection")
    others = {group.name: torch.arange(group.size) for group in groups}
    for width in (1 / 32, 1 / 8):
        state = VGG11(width).state_dict()
        refused(
            lambda state=state: permute(state, groups, others), "it isn't that of the net that was traced"
        )
    for others in ({}, {groups[0].name: torch.arange(groups[0].size).float()}):
        refused(lambda others=others: permute(net.state_dict(), groups, others), "bijection")
