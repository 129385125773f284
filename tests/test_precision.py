import pytest
import torch
from small_nets import Images, answers, resnet, smooth_images, vgg11
from small_training import RESNET_RECIPE, small_images, small_net, train_on
from torch import nn

from relusym.evaluation.barrier import accuracy
from relusym.evaluation.invariance import invariance_error
from relusym.merging.merge import flip_merge, merge
from relusym.precision import full_float32

KINDS = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)


def precisions():
    return [kind.fp32_precision for kind in KINDS]


def in_tf32(x):
    """Rounded to the ten bits of mantissa that TF32 has."""
    return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.fixture
def on_ampere(monkeypatch):
    """Convolutions round their operands as a GPU from Ampere on does, if PyTorch's settings let it."""
    conv = nn.Conv2d._conv_forward

    def forward(self, x, weight, bias):
        if torch.backends.cudnn.conv.fp32_precision == "tf32":
            x, weight = in_tf32(x), in_tf32(weight)
        return conv(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", forward)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # PyTorch's default


@torch.no_grad()
def test_a_gcnn_is_invariant_to_float32s_precision_on_a_gpu_with_tf32(on_ampere):
    net, images = vgg11(group_convs=8), Images(smooth_images(100))
    assert invariance_error(net, images) < 1e-5
    x = images.first(100, torch.device("cpu"))
    logits, moved = net(x), net(x.flip(3))
    error = (logits - moved).norm(dim=1) / (logits.norm(dim=1) + moved.norm(dim=1)) * 2
    assert error.mean() > 1e-4  # what it would be


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("net", [vgg11, resnet])
def test_every_measurement_runs_in_full_float32_and_leaves_the_settings_as_they_were(net):
    net, images, before, seen = net(), Images(smooth_images(60, 33), 30), precisions(), []
    labels = answers(net, images)
    other = Images(images.pixels, 30)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda *_: seen.append(precisions()))
    for measure in (
        lambda: accuracy(net, images, labels),
        lambda: invariance_error(net, images),
        lambda: merge(net, net, images, other, labels),
        lambda: flip_merge(net, images, other, labels),
    ):
        seen.clear()
        measure()
        assert seen and all(precision == ["ieee"] * 3 for precision in seen) and precisions() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_computes_in_the_precision_that_it_names(precision):
    images, net, seen, before = small_images(40), small_net(), [], precisions()
    conv = net.features.conv2
    conv.register_forward_hook(lambda module, args, output: seen.append((output.dtype, precisions())))
    train_on(images, net, RESNET_RECIPE.but(epochs=1, precision=precision))
    assert seen == [(getattr(torch, precision), ["ieee"] * 3)] * len(seen) and seen
    assert precisions() == before


def test_the_settings_come_back_after_an_error():
    before = precisions()
    with pytest.raises(RuntimeError), full_float32():
        raise RuntimeError
    assert precisions() == before
