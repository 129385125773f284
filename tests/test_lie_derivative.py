"""The Lie derivative: zero for equivariant maps, known in other cases, and the sum of the layers' contributions."""

from copy import deepcopy

import pytest
import torch
import torchvision
from conftest import refused
from small_nets import Images, resnet, smooth_images, vgg11
from torch import nn

from relusym.merging.lie_derivative import generators, lie_derivative

IMAGES = Images(smooth_images(12), 5)


def test_generators_are_exact_derivatives_on_linear_maps():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    x = (2 * rows + 3 * columns)[None, None]
    down, right, turn = generators(x, (2, 3), (16, 12))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    # a pixel of the map is two of the image
    assert (down[inner] == 1).all() and (right[inner] == 1.5).all()
    expected = ((columns - 2.5) * 2 - (rows - 3.5) * 3) * 2 / 12
    torch.testing.assert_close(turn[inner], expected[None, None][inner])
    turned = generators(x.permute(0, 2, 3, 1), (1, 2), (16, 12))
    torch.testing.assert_close(turned, torch.stack([down, right, turn]).permute(0, 1, 3, 4, 2))


def circular():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
             nn.Conv2d(8, 8, 5, padding=2, padding_mode="circular")]  # fmt: skip
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], *head).eval()


RANDOM = torch.Generator().manual_seed(1)
NOISE = Images(torch.randint(256, (6, 16, 16, 3), dtype=torch.uint8, generator=RANDOM), 5)


def test_circular_convs_have_no_lie_derivative_and_a_pointwise_layer_between_them_adds_all_of_it():
    net = circular()
    linear = nn.Sequential(net[0], *net[2:]).eval()
    rounding = lie_derivative(linear, NOISE, circular=True).total["translation"]
    measured = lie_derivative(net, NOISE, circular=True)
    assert measured.layers["0"]["translation"] == pytest.approx(measured.total["translation"], rel=1e-3)
    assert max(rounding, measured.layers["2"]["translation"]) < 1e-3 * measured.total["translation"]
    mirrored = lie_derivative(linear, NOISE)  # mirrored borders, but circular convs
    assert mirrored.total["translation"] > 1e2 * rounding


class Masked(nn.Module):
    def forward(self, x):
        return x * (x > 0)


def test_a_mask_has_no_derivative():
    net = circular()
    masked = lie_derivative(nn.Sequential(net[0], Masked(), *net[2:]).eval(), NOISE).total
    assert masked == pytest.approx(lie_derivative(net, NOISE).total, rel=1e-5)


@torch.no_grad()
def test_a_layer_that_reads_single_pixels_has_the_derivative_computed_by_hand():
    """Logits (s, −s), where s is the sum of an image's pixels, weighted by their column."""
    net, columns = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), torch.arange(32.0) * 1e-4
    columns = columns.expand(3, 32, 32).flatten()
    net[1].weight[:], net[1].bias[:] = torch.stack([columns, -columns]), 0
    x = IMAGES.first(5, torch.device("cpu"))
    measured = lie_derivative(net, IMAGES, 5)
    right = torch.zeros_like(x)
    right[..., 1:-1] = (x[..., 2:] - x[..., :-2]) / 2
    down = torch.zeros_like(x)
    down[..., 1:-1, :] = (x[..., 2:, :] - x[..., :-2, :]) / 2
    p = net(x).softmax(1)[:, 0]
    place = torch.arange(32) - 15.5
    turn = (place * down - place[:, None] * right) / 16
    # p₀ = σ(2s): dp₀ = 2 p₀ p₁ ds, and dp₁ = −dp₀
    for name, moves in {"translation": (right, down), "rotation": (turn,)}.items():
        rates = torch.stack([moved.flatten(1) @ net[1].weight[0] for moved in moves])
        squares = (2 * p * (1 - p) * rates) ** 2 * 2
        assert measured.total[name] == pytest.approx(float(squares.mean()) ** 0.5, rel=1e-4)
    assert measured.images == 5


def moved(x, axis, t):
    """An image moved by t pixels, with interpolation and mirrored edges."""
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect").movedim(2 + axis, -1)
    whole = padded[..., 1:-1] + (t * (padded[..., 2:] - padded[..., 1:-1]) if t > 0
                                 else t * (padded[..., 1:-1] - padded[..., :-2]))  # fmt: skip
    whole = whole.movedim(-1, 2 + axis)
    return whole[..., 1:-1] if axis == 0 else whole[..., 1:-1, :]


@pytest.mark.parametrize("make, images", [(vgg11, IMAGES), (resnet, Images(smooth_images(6, 33), 5))])
@torch.no_grad()
def test_contributions_add_up_to_the_derivative_by_finite_differences(make, images):
    net = make()
    measured = lie_derivative(net, images, 5)
    net = net.double()
    x = images.first(5, torch.device("cpu")).double()
    t, squares = 1e-4, 0.0
    for axis in (0, 1):
        ends = [net(moved(x, axis, sign * t)).softmax(1) for sign in (1, -1)]
        squares += float(((ends[0] - ends[1]) / (2 * t)).square().sum(1).mean()) / 2
    assert measured.total["translation"] == pytest.approx(squares**0.5, rel=0.02)
    weighted = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert sorted(measured.layers) == sorted(weighted)


def test_a_net_is_unchanged_and_many_classes_are_measured_in_random_directions():
    net = vgg11().train()
    state = deepcopy(net.state_dict())
    few = lie_derivative(net, IMAGES)
    wide = nn.Linear(64, 100)
    with torch.no_grad():
        wide.weight[:], wide.bias[:] = 0, -1e3
        wide.weight[:10], wide.bias[:10] = net.classifier.weight, net.classifier.bias
    net.classifier = wide
    many = lie_derivative(net, IMAGES)
    assert many.total["translation"] == pytest.approx(few.total["translation"], rel=0.4)
    kept = {key: tensor for key, tensor in net.state_dict().items() if "classifier" not in key}
    assert net.training and all(torch.equal(tensor, state[key]) for key, tensor in kept.items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_tokens_are_refused_in_one_line():
    torch.manual_seed(0)
    transformer = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=10).eval()
    line = r"no Lie derivative: at .*, pixels aren't along a height and a width"
    refused(lambda: lie_derivative(transformer, IMAGES), match=line)
