"""A user's nets: a merge leaves them unchanged, and unsuitable ones are refused before the work."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from conftest import refused
from small_nets import LABELS, PIXELS, Images, Wrapped, conv_net, resnet, vgg11
from torch import nn
from torch.nn import functional as F

from relusym.channels.groups import permute
from relusym.channels.traced import channel_groups
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import accuracy
from relusym.merging.many import merge_many
from relusym.merging.merge import flip_merge, merge
from relusym.pixels.grid import grid
from relusym.reporting.report import report
from relusym.symmetry import SYMMETRIES


@pytest.mark.slow(seconds=1)
def test_every_module_keeps_its_mode():
    net, images = resnet(size=32), Images(PIXELS, 16)
    before = deepcopy(net.state_dict())
    net.train()
    net.layer1.eval()  # frozen, as in fine-tuning
    modes = [module.training for module in net.modules()]
    flip_merge(net, images)
    merge(net, net, images)
    accuracy(net, images, LABELS)
    invariance_error(net, images)
    assert [module.training for module in net.modules()] == modes
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("wrap", [
    lambda logits: (logits, logits.relu()), lambda logits: {"features": logits.relu(), "logits": logits},
    lambda logits: OrderedDict(out=logits, aux=logits.relu()),
], ids=["tuple", "logits", "out"])  # fmt: skip
def test_logits_are_found_in_tuples_and_dicts(wrap):
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(Wrapped(net, wrap), images, test_labels=LABELS)
    assert merged.accuracy == flip_merge(net, images, test_labels=LABELS).accuracy


def with_weight(place, convert):
    net = conv_net()
    net[place].weight = nn.Parameter(convert(net[place].weight.data), requires_grad=False)
    return net


class Body(nn.Module):
    """A conv layer and a head; `through` is applied to the map between them."""

    def __init__(self, through=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.through = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), through

    def forward(self, x):
        return self.head(self.through(F.relu(self.conv(x)).mean((2, 3))))


class Standardised(Body):
    def forward(self, x):
        return super().forward((x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True))


def test_images_that_a_symmetry_doesnt_fit_are_refused():
    wide = Images(PIXELS[:, :16], 60)
    refused(lambda: invariance_error(Body(nn.Identity()), wide, SYMMETRIES["quarter_turn"]), "to be square")
    assert invariance_error(Body(nn.Identity()), wide) > 0


@pytest.mark.parametrize("batch_size", [60, 16])
def test_an_image_whose_logits_arent_finite_is_named(batch_size):
    pixels = PIXELS.clone()
    pixels[40] = 128  # of one colour
    images = Images(pixels, batch_size)
    refused(
        lambda: accuracy(Standardised(), images, LABELS), "logits of image 41 aren't finite", "one colour"
    )
    refused(lambda: flip_merge(Standardised(), images), "logits of image 41 aren't finite")


class Counts(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class Int8(Body):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randint(1, 5, (8,)).to(torch.int8), requires_grad=False)
        self.through = lambda x: x * self.scale


class Table(Body):
    def __init__(self, start=0):
        super().__init__()
        self.register_buffer("table", torch.arange(start, start + 8))


def zero():
    net = conv_net()
    net[-1].weight.data.zero_(), net[-1].bias.data.zero_()
    return net


def patched():
    net = conv_net()
    forward = net.forward
    net.forward = lambda x: 2 * forward(x)
    return net


def hooked():
    net = conv_net()
    net.scale = scale = nn.Parameter(torch.rand(8, 1, 1))
    net[1].register_forward_hook(lambda layer, inputs, output: output * scale)
    return net


def inferring():
    with torch.inference_mode():
        return conv_net()


class Extra(Body):
    def get_extra_state(self):
        return {"seen": 3}


def batch_statistics():
    conv, *others = conv_net()
    return nn.Sequential(conv, nn.BatchNorm2d(8, track_running_stats=False), *others)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("net", "line"), [
    (lambda: conv_net().half(), "net.float()"), (lambda: conv_net().double(), "net.float()"),
    (lambda: with_weight(0, lambda w: w.index_fill(0, torch.tensor(3), torch.nan)),
     "0.weight holds values that aren't finite"),
    (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), *list(conv_net())[1:]), "nothing to transform"),
    (lambda: conv_net()[1:], "can't read images of shape (3, 32, 32)"),
    (lambda: nn.Sequential(nn.Flatten()), "no parameters"),
    (lambda: Wrapped(conv_net(), lambda logits: logits.mean()), "wrap it in a module"),
    (lambda: Wrapped(conv_net(), lambda logits: "ten"), "wrap it in a module"),
    (lambda: Wrapped(conv_net(), lambda logits: logits / 0), "logits of the first images aren't finite"),
    (lambda: "resnet18", "str; allowed is a torch.nn.Module"),
    (lambda: Body(F.dropout), "random even in evaluation mode"),
    (lambda: Body(lambda x: x + 0.1 * torch.randn_like(x)), "random even in evaluation mode"),
    (lambda: Body(lambda x: x - x.mean(0)), "logits depend on the other images of its batch"),
    (lambda: nn.Sequential(nn.ReLU(inplace=True), *conv_net()), "changes the images that it reads"),
    (batch_statistics, "logits depend on the other images of its batch"),
    (Counts, "seen changes whenever the net runs"), (Int8, "scale is torch.int8"),
    (lambda: with_weight(0, lambda w: w.to(torch.float8_e4m3fn)), "0.weight is torch.float8_e4m3fn"),
    (lambda: with_weight(-1, torch.Tensor.to_sparse), "4.weight is sparse"),
    (lambda: nn.Sequential(nn.LazyConv2d(8, 3), *list(conv_net())[1:]), "lazy"),
    (lambda: conv_net().to("meta"), "meta device"),
    (lambda: torch.ao.quantization.quantize_dynamic(conv_net(), {nn.Linear}), "quantised"),
    (lambda: torch.jit.script(conv_net()), "scripted"),
    (lambda: nn.Sequential(torch.jit.script(conv_net()[:2]), *conv_net()[2:]), "layer 0 (Sequential) is scripted"),
    (patched, "its forward is replaced by a function that holds the net"),
    (hooked, "permuting its channels changes what it computes, first at layer 1"),
    (zero, "all zero"), (inferring, "made in inference mode"), (Extra, "get_extra_state"),
    (lambda: Wrapped(conv_net(), lambda logits: (9 * logits).long()), "logits are torch.int64"),
    (lambda: nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "nothing to match"),
    (lambda: Body(lambda x: {}["key"]), "KeyError: 'key' (test_net_checks.py, line"),
    (lambda: Body(lambda x: {4: x, 2: x}[len(x)]),
     "can't be run on an image of 3×32×32: 3 (test_net_checks.py, line"),
], ids=lambda of: of if isinstance(of, str) else "")  # fmt: skip
def test_nets_that_cant_be_measured_correctly_are_refused_before_the_work(net, line, monkeypatch):
    monkeypatch.setattr("relusym.merging.repair.repair", None)  # the longest step
    refused(lambda: flip_merge(net(), Images(PIXELS, 16)), line)


def test_integer_tensors_of_two_nets_have_to_be_equal():
    images = [torch.randn(8, 3, 32, 32)]
    refused(lambda: merge(Table(0), Table(1), images), "table (torch.int64) differs between net_1 and net_2")
    assert merge(Table(0), Table(0), images).accuracy["halfway"] == 1


def random_features():
    net, drawn = Body(), torch.randn(8, generator=torch.Generator().manual_seed(1))
    net.register_buffer("features", drawn, persistent=False)
    net.through = lambda x: x * net.features
    return net


def with_activation(layer):
    net = conv_net()
    net[1] = layer
    return net


@pytest.mark.parametrize("other", [lambda: Body(lambda x: 2 * x), lambda: Body(F.gelu), random_features])
def test_nets_that_differ_in_more_than_their_weights_are_refused(other):
    refused(lambda: merge(Body(), other(), Images(PIXELS, 16)), "an activation, an option or a tensor")
    refused(lambda: merge_many([Body(), Body(), other()], Images(PIXELS, 16)), "different architecture")


def test_nets_may_differ_in_settings_that_only_training_uses():
    refused(lambda: merge(conv_net(), with_activation(nn.GELU()), Images(PIXELS, 16)), "an activation")
    merged = merge(conv_net(), with_activation(nn.ReLU(inplace=True)), Images(PIXELS, 16))
    assert merged.barrier == {"halfway": 0, "repaired": 0}


def test_the_callers_autocast_doesnt_affect_measurements():
    expected = merge(conv_net(), conv_net(), Images(PIXELS, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert merge(conv_net(), conv_net(), Images(PIXELS, 16)).scores == expected.scores


def test_a_nets_counters_are_unchanged_after_its_groups_were_read():
    net = Counts()
    channel_groups(net, (3, 8, 8))
    assert not net.seen.any()


class Caching(nn.Module):
    """Caches a value computed from its weights until its mode is set; its bias includes `more` in evaluation mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.more = nn.Conv2d(3, 8, 3), torch.ones(8)
        self.bias = nn.Parameter(torch.randn(8).round())
        self.head, self.known, self.added = nn.Linear(8 * 4, 5), {}, False

    def train(self, mode=True):
        super().train(mode)
        self.known.clear()
        if mode == self.added:
            self.bias.data += -self.more if mode else self.more
            self.added = not mode
        return self

    def forward(self, x):
        bias = self.known.setdefault("bias", self.bias[:, None, None] * 2)
        x = F.adaptive_avg_pool2d(F.relu(self.conv(x) + bias), 2)
        return self.head(x.view(x.size(0), -1))  # `view` fails on channels-last maps


@torch.no_grad()
def test_a_net_that_caches_computed_weights_is_measured_with_its_present_weights():
    net, x = Caching().train(), torch.randn(20, 3, 8, 8)
    before = deepcopy(net.state_dict())
    other = deepcopy(net).eval()
    other(x)
    groups = channel_groups(other, (3, 8, 8))
    other.load_state_dict(permute(other.state_dict(), groups, {"conv": torch.arange(8).flip(0)}))
    expected = deepcopy(net).eval()(x)
    assert torch.allclose(other(x), expected, atol=1e-5)
    assert set(merge(net, other.train(), [x]).barrier.values()) == {0.0}
    assert net.training and not net.known and not net.added
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(net.eval()(x), expected)


def test_nothing_is_left_on_a_net():
    class Leaves(Body):
        def forward(self, x):
            x = x * torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1)  # tracing attaches this to the net
            self.features = F.relu(self.conv(x))
            return self.head(self.features.mean((2, 3)))

    net = Leaves()
    before = [set(vars(module)) | set(module._buffers) for module in net.modules()]
    merged = merge(net, deepcopy(net), Images(PIXELS, 16), test_labels=LABELS)
    assert [set(vars(module)) | set(module._buffers) for module in net.modules()] == before
    assert set(merged.barrier.values()) == {0.0}


MATCHINGS = "one of activation, weight, weight_identity, involution, "


@pytest.mark.parametrize("key, value, line", [
    ("matching", "telepathy", MATCHINGS), ("matching", "involution", "only for a net and its transformed self"),
    *(("seed", seed, f"{seed} given; allowed is a whole number from 0") for seed in (-1, 2**63, 0.5)),
    *(("starts", starts, f"{starts} given; allowed is a whole number, at least 1") for starts in (0, 1.5)),
    ("names", ("net", "net"), "two that differ"), ("names", ("net", "halfway"), "none of halfway"),
])  # fmt: skip
def test_invalid_options_are_refused_before_the_work(key, value, line, monkeypatch):
    monkeypatch.setattr("relusym.merging.merge.check_net", None)
    refused(lambda: merge(conv_net(), conv_net(), Images(PIXELS, 16), **{key: value}), key, line)


@pytest.mark.parametrize("key, value", [
    ("partial_images", 2.5), ("curve_points", 1), ("lie_images", -1), ("symmetry", "mirror"),
])  # fmt: skip
def test_a_report_that_cant_be_made_is_refused_before_the_work(key, value, monkeypatch):
    monkeypatch.setattr("relusym.merging.merge.check_net", None)
    refused(lambda: report(conv_net(), Images(PIXELS, 16), **{key: value}), key, str(value))


@pytest.mark.parametrize("net, shape, line", [
    (conv_net, (3, 8.5, 8), "image_shape"), (conv_net, (3, -1, 8), "image_shape"),
    (lambda: nn.Linear, (3, 8, 8), "type"),
])  # fmt: skip
def test_inputs_that_are_no_net_or_no_image_are_refused(net, shape, line):
    refused(lambda: channel_groups(net(), shape), line)


def test_symmetries_are_looked_up_by_name():
    net, images = conv_net(), Images(PIXELS, 16)
    by_name, symmetry = flip_merge(net, images, symmetry="vertical_flip"), SYMMETRIES["vertical_flip"]
    assert by_name.similarity == flip_merge(net, images, symmetry=symmetry).similarity
    assert by_name.similarity != flip_merge(net, images).similarity
    fits = [grid(net, (3, 32, 40), each) for each in ("vertical_flip", symmetry, "horizontal_flip")]
    assert fits[0] == fits[1] and [fit.size for fit in fits] == [32, 32, 40]
