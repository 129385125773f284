"""Merging others' nets: images in any form, metrics, the nets in hand, and what is refused in one line."""

import weakref
from collections import OrderedDict
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_nets import Images, answers, resnet, smooth_images, vgg11
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relusym.data.augmentation import normalise
from relusym.errors import UserError
from relusym.evaluation import images as sources
from relusym.evaluation.barrier import accuracy
from relusym.evaluation.images import Batches, normalisation
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import Metric
from relusym.merging.identities import LIMITS, hold
from relusym.merging.merge import flip_merge, merge

PIXELS = smooth_images(60)
LABELS = torch.arange(60) % 10
CPU = torch.device("cpu")


def conv_net(*layers):
    torch.manual_seed(0)
    layers = layers or (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *layers).eval()


class Wrapped(nn.Module):
    """A net whose output `wrap` puts into something."""

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))


def refused(call, *told):
    """`call` ends with one line that holds all that is told."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in told), message


# ---- images


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("net", [vgg11, lambda: resnet(size=32)], ids=["vgg11", "resnet"])
def test_a_loader_a_list_and_pixels_give_the_same_merge(net):
    net, x = net(), normalise(PIXELS)
    given = [
        (Images(PIXELS, 16), LABELS),
        (DataLoader(TensorDataset(x, LABELS), 16), None),
        ([(some, labels) for some, labels in zip(x.split(16), LABELS.split(16), strict=True)], None),
        (list(x.split(16)), LABELS),
    ]
    first, *others = [flip_merge(net, images, test_labels=labels) for images, labels in given]
    assert first.accuracy["net"] != first.accuracy["halfway"]
    for other in others:
        assert other.permutations == first.permutations
        assert other.accuracy == first.accuracy
        assert other.scores["loss"] == pytest.approx(first.scores["loss"], rel=1e-5)


def test_even_batches_of_a_loader_are_those_of_pixels():
    here, there = Images(PIXELS[:50], 16), Batches(list(normalise(PIXELS[:50]).split(16)))
    for a, b in zip(here.batches(CPU, even=True), there.batches(CPU, even=True), strict=True):
        assert len(a) in (12, 13) and torch.equal(a, b)
    assert (
        (len(there), there.count, there.shape) == (len(here), here.count, here.shape) == (50, 4, (3, 32, 32))
    )


@pytest.mark.slow(seconds=1)
def test_no_more_than_three_of_a_loaders_batches_are_held_at_once():
    made, largest = [], []

    class Loader:
        def __iter__(self):
            for start in range(0, 60, 10):
                x = normalise(PIXELS[start : start + 10])
                made.append(weakref.ref(x))
                largest.append(sum(one() is not None for one in made))
                yield x

    flip_merge(resnet(size=32), Loader())
    assert len(made) > 30 and max(largest) <= 3


def test_normalisation_scales_to_0_1_first():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    x = normalisation((0.5, 0.1, 0.0), (0.5, 0.1, 2.0))(pixels)
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, 1.0, 0.5]))
    grey = normalisation([0.5], [0.5])(torch.full((2, 4, 4, 1), 255, dtype=torch.uint8))
    assert grey.shape == (2, 1, 4, 4) and (grey == 1).all()


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (PIXELS.permute(0, 3, 1, 2), "pixels.permute(0, 2, 3, 1)"),
        (PIXELS.float() / 255, "is float32"),
        (PIXELS[..., 0], "pixels[..., None]"),
        (PIXELS[0], "pixels[None]"),
        (torch.zeros(2, 8, 8, 4, dtype=torch.uint8), "pixels[..., :3]"),
        (PIXELS[:0], "no images"),
        ("photos/", "str given"),
        (PIXELS.numpy().astype(np.int64), "is int64"),
    ],
)
def test_pixels_in_another_form_are_refused_with_what_to_do(pixels, told):
    refused(lambda: Images(pixels), "Images", told, "uint8 (N, H, W, 3)")


def test_normalisation_is_never_assumed():
    refused(lambda: sources.Images(PIXELS), "normalise=normalisation(mean, std)")
    refused(lambda: normalisation([0.5] * 3, [0.5, 0.5, 0.0]), "positive std")


def test_numpy_pixels_are_read_as_tensors_are():
    assert torch.equal(next(Images(PIXELS.numpy()).batches(CPU)), normalise(PIXELS))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (iter([normalise(PIXELS)]), "read only once"),
        (normalise(PIXELS), "give a list of batches"),
        ([], "empty"),
        ([PIXELS], "uint8"),
        ([normalise(PIXELS).permute(0, 2, 3, 1)], "x.permute(0, 3, 1, 2)"),
        ([{"x": 1}], "a batch is dict"),
        ([torch.full((2, 3, 8, 8), torch.nan)], "aren't finite"),
        ("photos", "str given"),
        (7, "int given"),
    ],
)
def test_batches_of_another_form_are_refused(given, told):
    refused(lambda: Batches(given), told)


def test_images_of_two_sizes_are_refused():
    batches = Batches([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 9, 8)])
    refused(lambda: list(batches.batches(CPU)), "(3, 9, 8)", "(3, 8, 8)", "one size")


# ---- labels, agreement and metrics


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (LABELS[:-1], "59 given for 60 images"),
        (LABELS.float(), "float32"),
        (LABELS + 5, "labels up to 14"),
        (torch.tensor(3), "shape ()"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, told):
    refused(lambda: flip_merge(conv_net(), Images(PIXELS, 16), test_labels=labels), told)
    batches = list(normalise(PIXELS).split(16))
    refused(
        lambda: flip_merge(conv_net(), batches, test_labels=labels),
        told.replace("59 given for 60 images", "11 for a batch of 12"),
    )


def test_without_labels_accuracy_is_agreement_with_the_net_itself():
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(net, images)
    assert merged.accuracy == flip_merge(net, images, test_labels=answers(net, images)).accuracy
    assert merged.accuracy["net"] == 1 > merged.accuracy["halfway"]


def test_where_no_answer_is_right_the_reason_is_given():
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(
        net, images, test_labels=answers(net, images) * 0 + 9 - answers(net, images).mode().values
    )
    wrong = flip_merge(conv_net(), images, test_labels=(answers(conv_net(), images) + 1) % 10)
    assert merged.note is None or "none of the 60" in merged.note
    assert set(wrong.barrier.values()) == {None} and "right on none of the 60 test images" in wrong.note


def test_a_metric_of_ones_own_is_averaged_over_images_of_all_nets():
    margin = Metric(lambda logits, labels: logits.gather(1, labels[:, None])[:, 0] - logits.mean(1))
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(net, images, test_labels=LABELS, metrics={"margin": margin})
    logits = net(normalise(PIXELS)).detach()
    assert merged.scores["margin"]["net"] == pytest.approx(float(margin.of(logits, LABELS).mean()), rel=1e-4)
    of = merged.scores["margin"]
    assert merged.barriers["margin"]["halfway"] == pytest.approx(
        (of["net"] + of["flipped"]) / 2 - of["halfway"]
    )
    assert set(merged.scores) == {"accuracy", "margin"}


def test_the_barrier_of_a_loss_is_its_rise():
    of = flip_merge(vgg11(), Images(PIXELS, 16), test_labels=LABELS)
    loss = of.scores["loss"]
    assert of.barriers["loss"]["repaired"] == pytest.approx(
        loss["repaired"] - (loss["net"] + loss["flipped"]) / 2
    )


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda logits, labels: logits.mean(), "one number an image"),
        (lambda logits, labels: 0.5, "gives float"),
        (lambda logits, labels: logits[:, 99], "fails on logits"),
    ],
)
def test_a_metric_that_isnt_one_number_an_image_is_refused(metric, told):
    mine = {"mine": Metric(metric)}
    refused(lambda: flip_merge(vgg11(), Images(PIXELS, 16), metrics=mine), "metric mine", told)


# ---- nets


@pytest.mark.slow(seconds=1)
def test_the_nets_of_a_merge_have_the_accuracies_that_it_reports():
    net, images = resnet(size=32), Images(PIXELS, 16)
    merged = flip_merge(net, images, test_labels=LABELS)
    assert set(merged.nets) == {"net", "flipped", "halfway", "reset", "repaired", "permuted"}
    assert {name: accuracy(merged.nets[name], images, LABELS) for name in merged.accuracy} == merged.accuracy
    assert accuracy(merged.nets["permuted"], images, LABELS) == merged.accuracy["flipped"]
    assert set(merged.body()) == {
        *("accuracy", "barrier", "absolute_barrier", "permutations", "similarity", "checks")
    }


@pytest.mark.slow(seconds=1)
def test_every_module_stays_in_the_mode_that_it_was_in():
    net, images = resnet(size=32), Images(PIXELS, 16)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.train()
    net.layer1.eval()  # frozen, as in fine-tuning
    modes = [module.training for module in net.modules()]
    flip_merge(net, images)
    merge(net, net, images)
    accuracy(net, images, LABELS)
    invariance_error(net, images)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, logits.relu()),
        lambda logits: {"features": logits.relu(), "logits": logits},
        lambda logits: OrderedDict(out=logits, aux=logits.relu()),
    ],
    ids=["tuple", "logits", "out"],
)
def test_logits_are_found_in_tuples_and_dicts(wrap):
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(Wrapped(net, wrap), images, test_labels=LABELS)
    assert merged.accuracy == flip_merge(net, images, test_labels=LABELS).accuracy


def poisoned():
    net = conv_net()
    net[0].weight.data[3] = torch.nan
    return net


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (lambda: conv_net().half(), "net.float()"),
        (lambda: conv_net().double(), "net.float()"),
        (poisoned, "0.weight holds values that aren't finite"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1), *list(conv_net())[1:]),
            "nothing to transform",
        ),
        (lambda: conv_net()[1:], "can't read images of shape (3, 32, 32)"),
        (lambda: nn.Sequential(nn.Flatten()), "no parameters"),
        (lambda: Wrapped(conv_net(), lambda logits: logits.mean()), "wrap it in a module"),
        (lambda: Wrapped(conv_net(), lambda logits: "ten"), "wrap it in a module"),
        (
            lambda: Wrapped(conv_net(), lambda logits: logits / 0),
            "logits of the first image aren't finite",
        ),
        (lambda: "resnet18", "str; allowed is a torch.nn.Module"),
    ],
    ids=["half", "double", "nan", "pointwise", "shapes", "empty", "scalar", "text", "infinite", "name"],
)
def test_nets_that_cant_be_merged_are_refused(net, told):
    refused(lambda: flip_merge(net(), Images(PIXELS, 16)), told)


def test_grey_images_are_refused_by_a_net_that_reads_colours():
    grey = sources.Images(PIXELS[..., :1], 16, normalisation([0.5], [0.5]))
    refused(lambda: flip_merge(conv_net(), grey), "can't read images of shape (1, 32, 32)")


# ---- identities


def test_a_transformed_net_that_isnt_the_net_on_transformed_images_stops_a_flip_merge(monkeypatch):
    def wrong(traced, symmetry):
        flipped = deepcopy(traced.net)
        flipped[0].weight.data[0] *= 1.1
        return flipped

    monkeypatch.setattr("relusym.merging.merge.transformed", wrong)
    refused(
        lambda: flip_merge(conv_net(), Images(PIXELS, 16)),
        "flipped_net_on_flipped_images",
        "no result is given",
    )


def test_a_net_that_sees_where_things_are_is_flipped_with_all_its_weights():
    net = conv_net(nn.MaxPool2d(15), nn.Flatten(), nn.Linear(32, 10))
    assert flip_merge(net, Images(PIXELS, 16)).checks["flipped_net_on_flipped_images"] < 1e-5


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0.006, float("nan"), float("inf")])
def test_an_identity_that_doesnt_hold_stops_with_one_line(name, value):
    refused(lambda: hold({name: value}), name)
    hold({name: value}, exempt=(name,))
    hold({name: 0.0})
