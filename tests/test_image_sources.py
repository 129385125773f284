import weakref

import numpy as np
import pytest
import torch
from conftest import refused
from small_nets import LABELS, PIXELS, Images, conv_net, resnet, vgg11
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from relusym.data.augmentation import normalise
from relusym.evaluation import images as sources
from relusym.evaluation.images import Batches, normalisation
from relusym.merging.merge import flip_merge, merge

CPU = torch.device("cpu")
X = normalise(PIXELS)


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("net", [vgg11, lambda: resnet(size=32)], ids=["vgg11", "resnet"])
def test_a_loader_a_list_and_pixels_give_the_same_merge(net):
    net, x = net(), normalise(PIXELS)
    both = list(zip(x.split(16), LABELS.split(16), strict=True))
    forms = [(Images(PIXELS, 16), LABELS), (DataLoader(TensorDataset(x, LABELS), 16), None), (both, None)]
    forms.append((list(x.split(16)), LABELS))
    first, *others = [flip_merge(net, images, test_labels=labels) for images, labels in forms]
    assert first.accuracy["net"] != first.accuracy["halfway"]
    for other in others:
        assert other.permutations == first.permutations and other.accuracy == first.accuracy
        assert other.scores["loss"] == pytest.approx(first.scores["loss"], rel=1e-5)


def test_even_batches_of_a_loader_equal_batches_of_pixels():
    here, there = Images(PIXELS[:50], 16), Batches(list(normalise(PIXELS[:50]).split(16)))
    for a, b in zip(here.batches(CPU, even=True), there.batches(CPU, even=True), strict=True):
        assert len(a) in (12, 13) and torch.equal(a, b)
    for images in (there, here):
        assert (len(images), images.count, images.shape) == (50, 4, (3, 32, 32))


@pytest.mark.slow(seconds=1)
def test_no_more_than_three_of_a_loaders_batches_are_held_at_once():
    made, largest = [], []

    class Loader:
        def __iter__(self):
            for start in range(0, 60, 10):
                x = normalise(PIXELS[start : start + 10])
                made.append(weakref.ref(x))
                largest.append(sum(each() is not None for each in made))
                yield x

    flip_merge(resnet(size=32), Loader())
    assert len(made) > 30 and max(largest) <= 3


def test_normalisation_scales_to_0_1_first():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    x = normalisation((0.5, 0.1, 0.0), (0.5, 0.1, 1.0))(pixels)
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, 1.0, 1.0]))
    grey = normalisation([0.5], [0.5])(torch.full((2, 4, 4, 1), 255, dtype=torch.uint8))
    assert grey.shape == (2, 1, 4, 4) and (grey == 1).all()


@pytest.mark.parametrize("pixels, line", [
    (PIXELS.permute(0, 3, 1, 2), "pixels.permute(0, 2, 3, 1)"), (PIXELS.float() / 255, "is float32"),
    (PIXELS[..., 0], "pixels[..., None]"), (PIXELS[0], "pixels[None]"),
    (torch.zeros(2, 8, 8, 4, dtype=torch.uint8), "pixels[..., :3]"), (PIXELS[:0], "no images"),
    ("photos/", "str given"), (PIXELS.numpy().astype(np.int64), "is int64"),
])  # fmt: skip
def test_pixels_of_another_form_are_refused_with_what_to_do(pixels, line):
    refused(lambda: Images(pixels), "Images", line, "uint8 (N, H, W, 3)")


def test_normalisation_is_never_assumed():
    refused(lambda: sources.Images(PIXELS), "normalise=normalisation(mean, std)")
    refused(lambda: normalisation([0.5] * 3, [0.5, 0.5, 0.0]), "positive std")
    refused(lambda: normalisation([0.5] * 3, [0.5] * 2), "one mean and one std")
    refused(lambda: normalisation(0.5, 0.5), "one mean and one std")
    refused(lambda: normalisation([0.5] * 3, [0.5, 0.5, torch.inf]), "positive std")
    refused(lambda: normalisation([127.5] * 3, [127.5] * 3), "divide mean and std by 255")
    refused(lambda: normalisation([0] * 3, [255] * 3), "divide mean and std by 255")


@pytest.mark.parametrize("function, line", [
    (lambda pixels: None, "returns NoneType"), (lambda pixels: pixels.float(), "(1, 32, 32, 3) for an image"),
    (lambda pixels: normalise(pixels).double(), "float64"), (lambda pixels: normalise(pixels) / 0, "finite"),
    (lambda pixels: normalise(pixels) + torch.rand(()), "is random"),
    (lambda pixels: normalise(pixels) / pixels.float().std(), "depends on other images"),
    (lambda pixels: 1 / 0, "ZeroDivisionError: division by zero (test_image_sources.py, line"),
])  # fmt: skip
def test_an_invalid_normalisation_is_refused(function, line):
    refused(lambda: Images(PIXELS, 16, function), "normalise", line)


@pytest.mark.filterwarnings("error")
def test_numpy_pixels_are_read_as_tensors_are():
    bgr, fixed = np.ascontiguousarray(PIXELS.numpy()[..., ::-1]), PIXELS.numpy().copy()
    fixed.setflags(write=False)
    for pixels in (PIXELS.numpy(), np.asfortranarray(fixed), bgr[..., ::-1], fixed):
        assert torch.equal(next(Images(pixels).batches(CPU)), normalise(PIXELS))
    assert Images(fixed).pixels.data_ptr() == fixed.ctypes.data  # without a copy


@pytest.mark.parametrize("given, line", [
    (iter([normalise(PIXELS)]), "read only once"), (normalise(PIXELS), "a list of batches"),
    ([], "empty"), ([PIXELS], "uint8"), ([normalise(PIXELS).permute(0, 2, 3, 1)], "x.permute(0, 3, 1, 2)"),
    ([{"pictures": 1}], "a batch is dict"), ([[X, X.flip(-1), LABELS]], "a batch is list"),
    ([X, X * torch.nan], "batch 2 holds values that aren't finite"), ([X, X[:0]], "a batch holds none"),
    ([torch.full((2, 3, 8, 8), torch.nan)], "aren't finite"), ([X.to_sparse()], "sparse"),
    ([X.to("meta")], "without values"), ([X.numpy().astype(object)], "numbers are needed"),
    ("photos", "str given"), (7, "int given"),
])  # fmt: skip
def test_batches_of_another_form_are_refused(given, line):
    refused(lambda: len(Batches(given)), line)


def test_images_of_two_sizes_are_refused():
    batches = Batches([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 9, 8)])
    refused(lambda: list(batches.batches(CPU)), "(3, 9, 8)", "(3, 8, 8)", "one size")


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        return normalise(PIXELS[i : i + 1])[0].flip([-1] if torch.rand(()) < 0.5 else []), LABELS[i]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("loader", [
    lambda data: DataLoader(data, 16, shuffle=True),
    lambda data: DataLoader(data, 60, shuffle=True),  # all in one batch
    lambda data: DataLoader(data, 16, sampler=WeightedRandomSampler([1.0] * 60, 60)),
], ids=["shuffled", "in one batch", "sampled"])  # fmt: skip
def test_images_whose_order_changes_from_pass_to_pass_are_refused(loader, labelled):
    data = TensorDataset(X, LABELS) if labelled else list(X)
    refused(lambda: merge(conv_net(), conv_net(), loader(data)), "order", "shuffle=False")


def test_images_that_change_from_pass_to_pass_are_refused():
    refused(lambda: flip_merge(conv_net(), DataLoader(Augmented(), 16)), "batch 1", "augmentation")

    class Changing(list):
        def __init__(self, sizes):
            self.sizes = iter(sizes)

        def __iter__(self):
            return iter(X[: next(self.sizes, 60)].split(10))

    refused(lambda: flip_merge(conv_net(), Changing([40] * 7)), "batch 5 isn't the same in every pass")
    batches = Batches(Changing([60, 60, 40, 30]))
    assert len(batches) == 40
    refused(lambda: list(batches.batches(CPU)), "4 batches in one pass and 3")


@pytest.mark.parametrize("batch", [
    (X, LABELS, [f"{i}.png" for i in range(60)]), (X, LABELS.float()), (X, LABELS[:, None]),
    (X, LABELS.to(torch.uint8)), {"img": X, "target": LABELS},
    {"pixel_values": X, "labels": LABELS},
    {"x": X, "y": LABELS, "index": torch.arange(60)}, (X.clone().requires_grad_(), LABELS.tolist()),
    (X.numpy()[..., ::-1].copy()[..., ::-1], LABELS.numpy().astype(">i8")), (X.numpy().astype(">f4"), LABELS),
])  # fmt: skip
def test_batches_may_have_any_form_that_data_sets_return(batch):
    ((x, labels),) = Batches([batch]).pairs(CPU)
    assert torch.equal(x, X) and torch.equal(labels, LABELS) and labels.dtype == torch.int64


@pytest.mark.parametrize("batches, line", [
    ([(X[:30], LABELS[:30]), X[30:]], "batch 2 has no labels"),
    ([X[:30], (X[30:], LABELS[30:])], "batch 2 has labels, unlike"),
    ([(X[:30], LABELS[:30]), (X[30:], LABELS[30:] + 1)], "labels up to 10"),
    *(([(X, of)], "labels") for of in (LABELS / 2, LABELS - 1, torch.eye(10)[LABELS], "abc")),
    ([(X, LABELS.half() + torch.inf)], "labels: inf given"),
])  # fmt: skip
def test_labels_are_whole_numbers_of_the_nets_classes_in_all_batches_or_none(batches, line):
    refused(lambda: flip_merge(conv_net(), batches), line)


def test_grey_images_are_refused_by_a_net_that_reads_colours():
    grey = sources.Images(PIXELS[..., :1], 16, normalisation([0.5], [0.5]))
    refused(lambda: flip_merge(conv_net(), grey), "can't read images of shape (1, 32, 32)")
