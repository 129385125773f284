import numpy as np
import pytest
import torch
from conftest import ROOT, settings_of
from public_files import official_cifar10, public_resnet

from relusym import nets
from relusym.evaluation.barrier import accuracy
from relusym.evaluation.images import Images, normalisation
from relusym.evaluation.invariance import invariance_error
from relusym.measuring.loading import normalise_of
from relusym.nets.weights import gather
from relusym.pixels.transform import transformed
from relusym.reporting import image_files, net_files
from relusym.symmetry import HORIZONTAL_FLIP

# Accuracy, as published, and the flipped net's; relative invariance error over the test images
PUBLISHED = {
    "public_resnet20": ("resnet20-12fca82f.th", 0.9173, 0.9105, 0.3435),
    "public_resnet32": ("resnet32-d509ac18.th", 0.9263, 0.9180, 0.3180),
}


@pytest.fixture(scope="module")
def test_images():
    return image_files.read(str(official_cifar10()[1]))


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("model", PUBLISHED)
def test_a_public_resnet_has_its_published_accuracy_on_the_original_images(test_images, model, tmp_path):
    name, published, flipped, error = PUBLISHED[model]
    given = settings_of(scale="laptop").models[model]
    state, about = gather({"file": str(public_resnet(name, tmp_path))}, given.network, tmp_path)
    net = nets.build(given.network, about["classes"])
    net.load_state_dict(state)
    assert not about["dropped"] and not test_images.notes  # the digest of the official test images
    images = Images(test_images.pixels, 500, normalise_of(given.data.settings()))
    assert accuracy(net, images, test_images.labels) == published
    # not the net on flipped images: strides of 2 on an even width look at other pixels there
    assert accuracy(transformed(net, HORIZONTAL_FLIP, (3, 32, 32)), images, test_images.labels) == flipped
    assert invariance_error(net, images) == pytest.approx(error, abs=5e-5)


def test_the_net_of_the_docs_gives_the_same_logits_as_the_workflows(tmp_path):
    file = public_resnet("resnet20-12fca82f.th", tmp_path)
    own, _ = net_files.build(f"{ROOT / 'docs/resnet20.py'}:ResNet20", str(file), 0)
    given = settings_of(scale="laptop").models["public_resnet20"]
    net = nets.build(given.network, 10)
    net.load_state_dict(gather({"file": str(file)}, given.network, tmp_path)[0])
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    scale = given.data.normalisation
    x, y = normalise_of(given.data.settings())(pixels), normalisation(scale.mean, scale.std)(pixels)
    assert torch.allclose(x, y, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), own.eval()(y), atol=1e-4)
