import pytest
import torch
from small_nets import Images, answers, conv_net, smooth_images, vgg11

from relusym.data.augmentation import normalise
from relusym.reporting.report import report
from relusym.reporting.words import verdict
from relusym.symmetry import HORIZONTAL_FLIP

PIXELS = smooth_images(60)
LABELS = torch.arange(60) % 10
CPU = torch.device("cpu")


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
    loss = found.merged.scores["loss"]["repaired"]
    assert found.curve["repaired"]["loss"][1] == pytest.approx(loss, rel=1e-4)
