"""Weights' gradients as one matrix product: the same gradients, and only where they are quicker."""

from contextlib import nullcontext

import pytest
import torch
from small_training import VGG_RECIPE, small_images, small_net, train_on
from torch import nn

from relusym.training import loop, weight_gradients
from relusym.training.weight_gradients import SmallMaps, quick_weight_gradients

AMX = {"amx_bf16": True, "avx512_bf16": True}
BFLOAT16 = torch.bfloat16


def gradients(conv, x, seen, *, dtype, mode):
    """Of a sum of the outputs, weighted at random: those of x, weight and bias; `seen` gets the names of what ran."""
    x, conv = x.clone().requires_grad_(), conv.requires_grad_()
    with torch.autocast("cpu", BFLOAT16, enabled=dtype == BFLOAT16), mode:
        y = conv(x)
    seen.append(y.grad_fn.name())
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y, torch.autograd.grad((y.float() * weights).sum(), [x, *conv.parameters()])


@pytest.mark.parametrize(
    "conv, side",
    [
        (nn.Conv2d(130, 10, 3, padding=1), 4),
        (nn.Conv2d(130, 10, 3, padding=1, bias=False), 2),
        (nn.Conv2d(128, 8, 3), 8),
        (nn.Conv2d(128, 4, 3, stride=2, padding=1), 7),
        (nn.Conv2d(128, 4, (1, 3), stride=(1, 2), padding=(0, 1)), 6),
        (nn.Conv2d(128, 4, 1), 1),
    ],
    ids=str,
)
def test_gradients_are_those_of_conv2d(conv, side):
    images = torch.randn(7, conv.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    for form in (torch.contiguous_format, torch.channels_last):
        # the same for both: some CPUs round one form unlike the other
        ran, x = [], images.to(memory_format=form)
        y, quick = gradients(conv, x, ran, dtype=BFLOAT16, mode=SmallMaps())
        z, usual = gradients(conv, x, ran, dtype=BFLOAT16, mode=nullcontext())
        _, exact = gradients(conv, x, ran, dtype=torch.float32, mode=nullcontext())
        assert ran[0] == "_ConvBackward" != ran[1] and torch.equal(y, z)
        for a, b, c in zip(quick, usual, exact, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert (a - c).norm() <= 1.2 * (b - c).norm() + 1e-3 * c.norm()


def test_float32_is_exact_in_it_as_well():
    conv, x = nn.Conv2d(130, 10, 3, padding=1).double(), torch.randn(3, 130, 4, 4, dtype=torch.float64)
    for a, b in zip(
        gradients(conv, x, [], dtype=torch.float64, mode=SmallMaps())[1],
        gradients(conv, x, [], dtype=torch.float64, mode=nullcontext())[1],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "conv, side",
    [
        (nn.Conv2d(128, 4, 3, padding=1), 9),
        (nn.Conv2d(127, 4, 3, padding=1), 4),
        (nn.Conv2d(128, 4, 3, padding=1, groups=2), 4),
        (nn.Conv2d(128, 4, 3, padding=2, dilation=2), 4),
        (nn.Conv2d(128, 4, 3, padding="same"), 4),
    ],
    ids=str,
)
def test_other_convs_are_left_as_they_are(conv, side):
    ran = []
    gradients(conv, torch.randn(2, conv.in_channels, side, side), ran, dtype=BFLOAT16, mode=SmallMaps())
    assert "_Conv" not in ran[0]


def test_it_is_used_in_bfloat16_on_a_cpu_with_amx_alone(monkeypatch):
    def used(able=AMX, device="cpu", dtype=BFLOAT16):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
        return isinstance(quick_weight_gradients(torch.device(device), dtype), SmallMaps)

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert used()
    assert not used({"avx512_bf16": True}) and not used(device="cuda") and not used(dtype=torch.float32)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # to train an older CPU's nets again
    assert not used()


def test_trainings_take_their_gradients_so(monkeypatch):
    taken = []
    conv2d = weight_gradients.conv2d
    monkeypatch.setattr(weight_gradients, "conv2d", lambda *given: taken.append(given) or conv2d(*given))
    monkeypatch.setattr(loop, "quick_weight_gradients", lambda device, dtype: SmallMaps())
    train_on(small_images(40), small_net(), VGG_RECIPE.but(epochs=1, warmup_epochs=0))
    assert taken
