"""Merging others' nets: images in any form, metrics, the nets in hand, and what is refused in one line."""

import weakref
from collections import OrderedDict
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_nets import Images, answers, resnet, shuffled, smooth_images, vgg11
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from relusym.channels.traced import channel_groups
from relusym.data.augmentation import normalise
from relusym.errors import UserError
from relusym.evaluation import images as sources
from relusym.evaluation.barrier import accuracy
from relusym.evaluation.images import Batches, normalisation
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import Metric
from relusym.merging.identities import LIMITS, hold
from relusym.merging.merge import flip_merge, merge, merge_weights
from relusym.reporting.report import report
from relusym.reporting.words import verdict
from relusym.symmetry import HORIZONTAL_FLIP

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


class Augmented(torch.utils.data.Dataset):
    """Images that are flipped at random."""

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        return normalise(PIXELS[i : i + 1])[0].flip([-1] if torch.rand(()) < 0.5 else []), LABELS[i]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, 16, shuffle=True),
        lambda data: DataLoader(data, 60, shuffle=True),  # all in one batch
        lambda data: DataLoader(data, 16, sampler=WeightedRandomSampler([1.0] * 60, 60)),
    ],
    ids=["shuffled", "in one batch", "sampled"],
)
def test_images_whose_order_changes_from_pass_to_pass_are_refused(loader, labelled):
    x = normalise(PIXELS)
    data = TensorDataset(x, LABELS) if labelled else list(x)
    refused(lambda: merge(conv_net(), conv_net(), loader(data)), "order", "shuffle=False")


def test_images_that_change_from_pass_to_pass_are_refused():
    refused(lambda: flip_merge(conv_net(), DataLoader(Augmented(), 16)), "batch 1", "augmentation")
    x = normalise(PIXELS)

    class Changing(list):
        def __init__(self, sizes):
            self.sizes = iter(sizes)

        def __iter__(self):
            return iter(x[: next(self.sizes, 60)].split(10))

    refused(lambda: flip_merge(conv_net(), Changing([40] * 6)), "batch 5 isn't the same in every pass")
    batches = Batches(Changing([60, 60, 40, 30]))
    assert len(batches) == 40
    refused(lambda: list(batches.batches(CPU)), "4 batches in one pass and 3")


def test_labels_may_come_in_dicts():
    net, x = conv_net(), normalise(PIXELS)
    batches = [{"pixel_values": a, "labels": b} for a, b in zip(x.split(16), LABELS.split(16), strict=True)]
    merged = flip_merge(net, Images(PIXELS, 16), test_labels=LABELS)
    assert flip_merge(net, batches).scores["loss"] == pytest.approx(merged.scores["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "labels", [LABELS / 2, LABELS - 1, torch.nn.functional.one_hot(LABELS).float(), "abc"]
)
def test_labels_of_batches_are_whole_numbers_from_0(labels):
    refused(lambda: flip_merge(conv_net(), [(normalise(PIXELS), labels)]), "labels")


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
        (lambda logits, labels: {}["key"], "KeyError: 'key' (test_own_nets.py, line"),
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
            "logits of the first images aren't finite",
        ),
        (lambda: "resnet18", "str; allowed is a torch.nn.Module"),
    ],
    ids=["half", "double", "nan", "pointwise", "shapes", "empty", "scalar", "text", "infinite", "name"],
)
def test_nets_that_cant_be_merged_are_refused(net, told):
    refused(lambda: flip_merge(net(), Images(PIXELS, 16)), told)


class Body(nn.Module):
    """A conv layer and a head; `through` works on what lies between."""

    def __init__(self, through=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.through = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), through

    def forward(self, x):
        return self.head(self.through(F.relu(self.conv(x)).mean((2, 3))))


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
    """With whole numbers that may be of any use."""

    def __init__(self, start=0):
        super().__init__()
        self.register_buffer("table", torch.arange(start, start + 8))


def float8():
    net = conv_net()
    net[0].weight = nn.Parameter(net[0].weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    return net


def sparse():
    net = conv_net()
    net[-1].weight = nn.Parameter(net[-1].weight.data.to_sparse())
    return net


def zero():
    net = conv_net()
    net[-1].weight.data.zero_(), net[-1].bias.data.zero_()
    return net


def batch_statistics():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), *list(conv_net())[1:]
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("net", "told"),
    [
        (lambda: Body(F.dropout), "random in evaluation mode"),
        (lambda: Body(lambda x: x + 0.1 * torch.randn_like(x)), "random in evaluation mode"),
        (lambda: Body(lambda x: x - x.mean(0)), "other"),
        (batch_statistics, "of its batch"),
        (Counts, "seen changes whenever the net runs"),
        (Int8, "scale is torch.int8"),
        (float8, "0.weight is torch.float8_e4m3fn"),
        (sparse, "4.weight is sparse"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), *list(conv_net())[1:]), "lazy"),
        (lambda: conv_net().to("meta"), "meta device"),
        (lambda: torch.ao.quantization.quantize_dynamic(conv_net(), {nn.Linear}), "quantised"),
        (lambda: torch.jit.script(conv_net()), "scripted"),
        (zero, "all zero"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "nothing to match",
        ),
        (lambda: Body(lambda x: {}["key"]), "KeyError: 'key' (test_own_nets.py, line"),
    ],
    ids=lambda of: "" if isinstance(of, str) else getattr(of, "__name__", ""),
)
def test_nets_that_cant_be_measured_rightly_are_refused_before_the_work(net, told, monkeypatch):
    monkeypatch.setattr("relusym.merging.repair.repair", None)  # of all steps the longest
    refused(lambda: flip_merge(net(), Images(PIXELS, 16)), told)


def test_whole_numbers_of_two_nets_have_to_be_the_same():
    images = [torch.randn(8, 3, 32, 32)]
    refused(lambda: merge(Table(0), Table(1), images), "table (torch.int64) of net_1 and of net_2", "differ")
    assert merge(Table(0), Table(0), images).accuracy["halfway"] == 1


def test_nothing_is_left_on_a_net():
    class Leaves(Body):
        def forward(self, x):
            x = x * torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1)  # which tracing hangs on the net
            self.features = F.relu(self.conv(x))
            return self.head(self.features.mean((2, 3)))

    net = Leaves()
    before = [set(vars(module)) | set(module._buffers) for module in net.modules()]
    merged = merge(net, deepcopy(net), Images(PIXELS, 16), test_labels=LABELS)
    assert [set(vars(module)) | set(module._buffers) for module in net.modules()] == before
    assert set(merged.barrier.values()) == {0.0}


@pytest.mark.parametrize(
    "given",
    [{"matching": "telepathy"}, {"matching": "involution"}, {"seed": -1}, {"seed": 2**63}, {"seed": 0.5}],
)
def test_what_isnt_there_is_told_before_the_work(given, monkeypatch):
    monkeypatch.setattr("relusym.merging.merge.check_net", None)
    refused(lambda: merge(conv_net(), conv_net(), Images(PIXELS, 16), **given), *map(str, given))


def test_a_net_that_doesnt_tell_images_apart_gets_no_verdict():
    net, images = conv_net(), Images(PIXELS, 16)
    with torch.no_grad():
        net[-1].weight *= 1e-6
    hardly = report(net, images, LABELS, partial_images=0)
    assert "doesn't tell these images apart" in verdict(hardly) and "barrier" not in verdict(hardly)
    assert "vary by" in hardly.notes[0] and "barrier means nothing" in hardly.notes[0]
    with torch.no_grad():
        net[-1].weight *= 2e6
        net[-1].bias[3] += 20
    assert "it answers 3 to all 60 of them" in report(net, images, LABELS, partial_images=0).notes[0]
    with torch.no_grad():
        net[-1].bias[3] -= 20
        net[-1].bias -= net(normalise(PIXELS)).mean(0)
    assert "halfway with itself" in verdict(report(net, images, LABELS, partial_images=0))


# ---- baselines, classes, the curve, merging by weights


def test_baselines_and_classes_are_what_they_say():
    net, images, x = vgg11(), Images(PIXELS, 16), normalise(PIXELS)
    labels = answers(net, images)
    labels[::3] = (labels[::3] + 1) % 10
    found = report(net, images, labels, partial_images=0, curve_points=3)
    flipped = HORIZONTAL_FLIP.transform(net)
    with torch.no_grad():
        logits = {"net": net(x), "ensemble": net(x) + flipped(x), "flips": net(x) + net(x.flip(-1))}
    right = {name: of.argmax(1) == labels for name, of in logits.items()}
    assert found.merged.accuracy["net"] == pytest.approx(float(right["net"].double().mean()))
    for name in ("ensemble", "flips"):
        assert found.baselines[name]["accuracy"] == pytest.approx(float(right[name].double().mean()))
    for i, share in enumerate(found.merged.by_class["net"]):
        of = right["net"][labels == i].double()
        assert share == (pytest.approx(float(of.mean())) if len(of) else None)
    for way in ("plain", "repaired"):
        ends = [found.merged.accuracy[name] for name in ("net", "flipped")]
        assert found.curve[way]["accuracy"][::2] == pytest.approx(ends)
    assert found.curve["plain"]["accuracy"][1] == pytest.approx(found.merged.accuracy["halfway"])
    assert found.curve["repaired"]["loss"][1] == pytest.approx(
        found.merged.scores["loss"]["repaired"], rel=1e-4
    )


def test_nets_are_merged_by_their_weights_without_images():
    net = vgg11()
    other, planted = shuffled(net, channel_groups(net))
    aligned = merge_weights(net, other, (3, 32, 32))
    assert all(torch.equal(planted[name][order], torch.arange(len(order)))
               for name, order in aligned.permutations.items())  # fmt: skip
    halfway = aligned.between(0.5).net.state_dict()
    assert all(torch.allclose(tensor, halfway[key]) for key, tensor in net.state_dict().items())
    assert aligned.similarity == {}


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
