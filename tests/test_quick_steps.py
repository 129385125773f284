from contextlib import nullcontext
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from small_training import VGG_RECIPE, assert_same, small_images, small_net, train_on
from torch import nn

from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training import loop, quick_steps
from relusym.training.objectives import Supervised
from relusym.training.quick_steps import QuickSteps, relu_pool
from relusym.training.recipe import Recipe

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16


def gradients(layer, x, seen, *, dtype, mode):
    """Outputs, and gradients of their random weighted sum, by x, weight and bias; `seen` gets the backward node."""
    x, layer = x.clone().requires_grad_(), layer.requires_grad_()
    with torch.autocast("cpu", BFLOAT16, enabled=dtype == BFLOAT16), mode:
        y = layer(x)
    seen.append(y.grad_fn.name())
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y, torch.autograd.grad((y.float() * weights).sum(), [x, *layer.parameters()])


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(quick_steps, "CHANNELS", 1)
    monkeypatch.setattr(quick_steps, "DENSE", (1, 1))
    monkeypatch.setattr(quick_steps, "RELU_POOL", (1, 1))


CONVS = [
    (nn.Conv2d(130, 10, 3, padding=1), 2, "_DenseBackward", None),
    (nn.Conv2d(6, 10, 3, padding=1, bias=False), 2, "_DenseBackward", None),
    (nn.Conv2d(130, 10, 3, padding=1), 4, "_WindowsBackward", False),
    (nn.Conv2d(130, 10, 3, padding=1, bias=False), 4, "_WindowsBackward", False),
    (nn.Conv2d(64, 32, 3, padding=1), 8, "_WindowsBackward", False),
    (nn.Conv2d(128, 8, 3), 8, "_WindowsBackward", False),
    (nn.Conv2d(128, 4, 3, stride=2, padding=1), 7, "_WindowsBackward", False),
    (nn.Conv2d(128, 4, (1, 3), stride=(1, 2), padding=(0, 1)), 6, "_WindowsBackward", False),
    (nn.Conv2d(128, 4, 1), 1, "_WindowsBackward", False),
    (nn.Conv2d(256, 512, 3, padding=1), 4, "_WindowsBackward", True),
    (nn.Conv2d(256, 512, (3, 1), padding=(1, 0), bias=False), 3, "_WindowsBackward", True),
    (nn.Conv2d(256, 512, 3, stride=2, padding=1), 4, "_WindowsBackward", False),
]


@pytest.mark.parametrize("conv, side, name, wholly", CONVS, ids=str)
def test_convs_and_their_gradients_are_as_accurate_as_torchs(conv, side, name, wholly):
    images = torch.randn(7, conv.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    for form in (torch.contiguous_format, torch.channels_last):  # some CPUs round them differently
        ran, x = [], images.to(memory_format=form)
        y, quick = gradients(conv, x, ran, dtype=BFLOAT16, mode=QuickSteps(conv, amx=True))
        z, usual = gradients(conv, x, ran, dtype=BFLOAT16, mode=nullcontext())
        float32, exact = gradients(conv, x, ran, dtype=torch.float32, mode=nullcontext())
        assert ran[0] == name != ran[1] and getattr(y.grad_fn, "wholly", None) is wholly
        for a, b, c in zip((y, *quick), (z, *usual), (float32, *exact), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert (a - c).norm() <= 1.2 * (b - c).norm() + 1e-3 * c.norm()


@pytest.mark.parametrize("conv, side, name, wholly", CONVS, ids=str)
def test_float64_convs_are_as_accurate_too(conv, side, name, wholly):
    conv = deepcopy(conv).double()
    x, ran = torch.randn(3, conv.in_channels, side, side, dtype=torch.float64), []
    quick = gradients(conv, x, ran, dtype=torch.float64, mode=QuickSteps(conv, amx=True))
    usual = gradients(conv, x, ran, dtype=torch.float64, mode=nullcontext())
    assert ran[0] == name and getattr(quick[0].grad_fn, "wholly", None) is wholly
    for a, b in zip((quick[0], *quick[1]), (usual[0], *usual[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def weight_maps(images, channels, out, height, width):
    seeded = torch.Generator().manual_seed(0)
    shapes = ((images, channels, height, width), (images, out, height, width))
    drawn = (torch.randn(shape, generator=seeded).to(BFLOAT16) for shape in shapes)
    return tuple(x.to(memory_format=torch.channels_last) for x in drawn)


# one image and many, in one part and several, of which the last is smaller; a single image larger than a part
@pytest.mark.parametrize("shape", [
    (1, 32, 32, 1, 1), (7, 64, 32, 2, 3), (100, 32, 96, 8, 8), (130, 96, 64, 5, 7), (83, 32, 32, 4, 4),
    (3, 32, 32, 50, 47),
], ids=str)  # fmt: skip
def test_weight_gradients_with_matrix_instructions_match_float64(shape, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x, gradient = weight_maps(*shape)
    taps = quick_steps._conv_weights(x, gradient, (3, 3, 1, 1, 1, 1))
    if taps is None:
        pytest.skip("no C compiler or no matrix instructions (AMX) here")
    size = (shape[2], shape[1], 3, 3)
    exact = torch.nn.grad.conv2d_weight(x.double(), size, gradient.double(), padding=1)
    assert taps.dtype == torch.float32
    assert (taps.permute(0, 3, 1, 2) - exact).norm() <= 2e-6 * exact.norm()


@pytest.mark.parametrize("refused", [
    {"kernel": (1, 3, 1, 1, 0, 1)}, {"kernel": (3, 3, 2, 2, 1, 1)}, {"channels": 48}, {"out": 40}, {"threads": 2},
    {"images": 0}, {"failed": 1}, {"built": False}, {},
], ids=str)  # fmt: skip
def test_other_weight_gradients_are_products_with_windows(refused, monkeypatch):
    sizes = {name: refused.get(name, usual) for name, usual in (("images", 2), ("channels", 64), ("out", 32))}
    monkeypatch.setattr(torch, "get_num_threads", lambda: refused.get("threads", 1))
    built = SimpleNamespace(conv_weights=lambda *sizes: refused.get("failed", 0))
    library = built if refused.get("built", True) else None
    monkeypatch.setattr(quick_steps, "_built", lambda: library)
    taps = quick_steps._conv_weights(
        *weight_maps(**sizes, height=4, width=4), refused.get("kernel", (3, 3, 1, 1, 1, 1))
    )
    assert (taps is None) == bool(refused)


@pytest.mark.parametrize("conv, side, amx", [
    (nn.Conv2d(128, 4, 3, padding=1), 9, True), (nn.Conv2d(63, 4, 3, padding=1), 4, True),
    (nn.Conv2d(128, 4, 3, padding=1, groups=2), 2, True),
    (nn.Conv2d(128, 4, 3, padding=2, dilation=2), 4, True), (nn.Conv2d(128, 4, 3, padding="same"), 2, True),
    (nn.Conv2d(256, 512, 3, padding=1), 4, False), (nn.Conv2d(512, 4, 3, padding=1), 8, False),
    (nn.Conv2d(8, 4, 1), 2, False),
], ids=str)  # fmt: skip
def test_other_convs_are_left_as_they_are(conv, side, amx):
    ran, x = [], torch.randn(2, conv.in_channels, side, side)
    y, _ = gradients(conv, x, ran, dtype=BFLOAT16, mode=QuickSteps(conv, amx))
    z, _ = gradients(conv, x, ran, dtype=BFLOAT16, mode=nullcontext())
    assert ran[0] == ran[1] and torch.equal(y, z)


def maps(shape, values=None):
    """Maps in bfloat16, channels last, with many equal values and zeros of both signs."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(2).round().div(2)
    for i, value in enumerate(values or ()):
        x.view(-1)[i::7] = value
    return x.to(BFLOAT16).to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 2, 2), (2, 64, 8, 6), (4, 33, 4, 4), (2, 16, 7, 9)], ids=str)
@pytest.mark.parametrize("values", [(), (float("nan"), -float("inf"), float("inf"), -0.0)], ids=str)
def test_fused_relu_and_pool_equal_torchs_bit_for_bit(built, shape, values, monkeypatch):
    if built and not quick_steps._built():
        pytest.skip("no C compiler here")
    monkeypatch.setattr(quick_steps, "_built", quick_steps._built if built else lambda: None)
    results = []
    for function in (relu_pool, lambda x: nn.functional.max_pool2d(nn.functional.relu(x), 2)):
        x = maps(shape, values)
        y = function(x)
        results.append((y, torch.autograd.grad(y, x, maps(y.shape).detach())[0]))
    ((y, of_x), (z, of_z)) = results
    torch.testing.assert_close(y, z, rtol=0, atol=0, equal_nan=True)
    if not values:  # among several NaNs, any may get the gradient
        assert torch.equal(of_x, of_z)


def test_negative_nans_of_a_diverged_net_are_kept():
    nan = torch.full((1, 4, 2, 2), -1, dtype=torch.int16).view(BFLOAT16).to(memory_format=torch.channels_last)
    assert nan.isnan().all() and relu_pool(nan).isnan().all()


@pytest.mark.parametrize("group_convs, batch_norm", [(0, False), (2, False), (8, False), (0, True)])
def test_a_nets_gradients_and_layers_are_unchanged(group_convs, batch_norm):
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1, invariance_from=0.0, invariance_weight=0.3)
    torch.manual_seed(0)
    net = VGG11(1 / 16, group_convs, initialization="he", batch_norm=batch_norm)
    net = net.to(memory_format=torch.channels_last)
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10

    def step(context, dtype=BFLOAT16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), context:
            loss, _ = Supervised(net, recipe, HORIZONTAL_FLIP).loss(net, (x,), labels, 0)
        return torch.autograd.grad(loss, list(net.parameters()))

    quick, plain, exact = (
        torch.cat([gradient.flatten() for gradient in step(*how)])
        for how in ((QuickSteps(net, amx=True),), (nullcontext(),), (nullcontext(), torch.float32))
    )
    assert (quick - exact).norm() <= 1.2 * (plain - exact).norm()
    assert not any("forward" in vars(layer) for layer in net.modules())


class Shared(nn.Module):
    """A ReLU before a pool and before none, and a pool after a ReLU and after none."""

    def __init__(self):
        super().__init__()
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        convs = [nn.Conv2d(channels, 16, 3, padding=1) for channels in (3, 16, 16)]
        self.first = nn.Sequential(convs[0], self.relu, nn.MaxPool2d(2))
        self.second = nn.Sequential(convs[1], nn.ReLU(), self.pool, convs[2], self.pool)

    def forward(self, x):
        y = self.first(x)
        return self.second(y), self.relu(y - 1)


def test_layers_in_several_places_of_a_net_are_unchanged_in_each():
    torch.manual_seed(0)
    net, x = Shared(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", BFLOAT16):
        plain = net(x)
        with QuickSteps(net, amx=False):
            quick = net(x)
    assert all(map(torch.equal, plain, quick))


def test_quick_steps_are_used_only_in_bfloat16_on_a_cpu_with_its_instructions(monkeypatch):
    def amx(able, device="cpu", dtype=BFLOAT16):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
        return getattr(quick_steps.quick_steps(small_net(), torch.device(device), dtype), "amx", None)

    new, older = {"amx_bf16": True, "avx512_bf16": True}, {"avx512_bf16": True}
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert amx(new) is True and amx(older) is False and amx({}) is None
    assert amx(new, device="cuda") is None and amx(new, dtype=torch.float32) is None
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # to reproduce an older CPU's nets
    assert amx(new) is False


@pytest.mark.parametrize("amx", [True, False])
def test_trainings_take_quick_steps_with_the_same_bytes_each_time(amx, monkeypatch):
    taken = []
    conv2d = quick_steps.conv2d
    monkeypatch.setattr(quick_steps, "conv2d", lambda *given: taken.append(given) or conv2d(*given))
    monkeypatch.setattr(loop, "quick_steps", lambda net, device, dtype: QuickSteps(net, amx))
    recipe = VGG_RECIPE.but(epochs=2, warmup_epochs=0, precision="bfloat16")
    states = [train_on(small_images(40), small_net(), recipe).net.state_dict() for _ in range(2)]
    assert taken
    assert_same(*states)


def test_with_and_without_a_compiler_a_training_gives_the_same_bytes(monkeypatch):
    if not quick_steps._built():
        pytest.skip("no C compiler here")
    monkeypatch.setattr(loop, "quick_steps", lambda net, device, dtype: QuickSteps(net, amx=False))
    recipe = VGG_RECIPE.but(epochs=2, warmup_epochs=0, precision="bfloat16")
    states = [train_on(small_images(40), small_net(), recipe).net.state_dict()]
    monkeypatch.setattr(quick_steps, "_built", lambda: None)
    states.append(train_on(small_images(40), small_net(), recipe).net.state_dict())
    assert_same(*states)
