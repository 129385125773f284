import re

import pytest
import torch
from conftest import refused
from small_nets import LABELS, PIXELS, Images, Wrapped, answers, conv_net, vgg11

from relusym.data.augmentation import normalise
from relusym.evaluation.metrics import Metric
from relusym.merging.merge import METRICS, flip_merge
from relusym.reporting.page import Comparison
from relusym.reporting.report import report
from relusym.reporting.words import verdict, warnings
from relusym.symmetry import HORIZONTAL_FLIP


def test_a_net_that_doesnt_distinguish_images_gets_no_verdict():
    net, images = conv_net(), Images(PIXELS, 16)
    with torch.no_grad():
        net[-1].weight *= 1e-6
    hardly = report(net, images, LABELS, partial_images=0)
    assert "doesn't tell these images apart" in verdict(hardly) and "barrier" not in verdict(hardly)
    assert "vary by" in hardly.notes[0] and "barrier means nothing" in hardly.notes[0]
    assert "vary by" in verdict(hardly) and "apart" not in " ".join(warnings(hardly))
    hardly.name, barriers = "hardly", {"halfway": 0.5, "repaired": 0.5}
    other = report(vgg11(), images, LABELS, partial_images=0, name="other")
    other.layers = hardly.layers  # as if of the same architecture
    comparison = Comparison([hardly, other], {(1, 0): barriers})
    nets, pairs = comparison.in_words()
    assert nets[1][-1] == pairs[1][1] == pairs[1][2] == pairs[2][1] == "–" != pairs[2][2] == nets[2][-1]
    assert comparison.notes[0] == f"hardly: {hardly.notes[0]}" and comparison.matrix()[0][1] == 0.5
    with torch.no_grad():
        net[-1].weight *= 2e6
        net[-1].bias[3] += 20
    assert "it predicts class 3 for all 60 of them" in report(net, images, LABELS, partial_images=0).notes[0]
    with torch.no_grad():
        net[-1].bias[3] -= 20
        net[-1].bias -= net(normalise(PIXELS)).mean(0)
    assert "halfway with itself" in verdict(report(net, images, LABELS, partial_images=0))


@pytest.mark.parametrize("wrap, entry", [
    (lambda logits: (logits, logits.exp(), logits.mean()), "3 entries.* of entry 0 alone"),
    (lambda logits: {"boxes": logits.exp(), "logits": logits}, "2 entries.* of entry 'logits' alone"),
])  # fmt: skip
def test_entries_of_an_output_that_arent_measured_are_a_note(wrap, entry):
    (note,) = report(Wrapped(conv_net(), wrap), Images(PIXELS, 16), LABELS, partial_images=0).notes
    assert re.search(entry, note)


def test_without_a_barrier_the_layers_decide_whether_a_net_is_called_equivariant_layer_by_layer():
    net, images = vgg11(group_convs=8), Images(PIXELS, 16)
    gcnn = report(net, images, answers(net, images), partial_images=0)
    assert verdict(gcnn).endswith("as a group-equivariant CNN does, and encodes the symmetry layer by layer.")
    gcnn.layers[1].equivariance["matched"] = 0.8
    assert "though its layers aren't equivariant (errors up to 0.80; such a CNN's are 0)." in verdict(gcnn)
    for layer in gcnn.layers:
        layer.equivariance["matched"] = None
    assert verdict(gcnn).endswith("as a group-equivariant CNN does.")


def test_a_few_images_are_no_verdict():
    net, images = vgg11(), Images(PIXELS[:9], 9)
    few = report(net, images, partial_images=0)
    assert few.merged.barrier["repaired"] is not None and "no verdict from 9 of 10 images" in verdict(few)
    enough = report(net, Images(PIXELS[:10], 10), partial_images=0)
    assert "no verdict" not in verdict(enough)


def test_baselines_and_classes_are_as_documented():
    net, images, x = vgg11(), Images(PIXELS, 16), normalise(PIXELS)
    labels = answers(net, images)
    labels[::3] = (labels[::3] + 1) % 10
    reported = report(net, images, labels, partial_images=0, curve_points=3)
    flipped = HORIZONTAL_FLIP.transform(net)
    with torch.no_grad():
        logits = {"net": net(x), "ensemble": net(x) + flipped(x), "flips": net(x) + net(x.flip(-1))}
    right = {name: of.argmax(1) == labels for name, of in logits.items()}
    assert reported.merged.accuracy["net"] == pytest.approx(float(right["net"].double().mean()))
    for name in ("ensemble", "flips"):
        assert reported.baselines[name]["accuracy"] == pytest.approx(float(right[name].double().mean()))
    for i, share in enumerate(reported.merged.by_class["net"]):
        of = right["net"][labels == i].double()
        assert share == (float(of.mean()) if len(of) else None)  # in float64
    for way in ("plain", "repaired"):
        ends = [reported.merged.accuracy[name] for name in ("net", "flipped")]
        assert reported.curve[way]["accuracy"][::2] == pytest.approx(ends)
    assert reported.curve["plain"]["accuracy"][1] == pytest.approx(reported.merged.accuracy["halfway"])
    loss = reported.merged.scores["loss"]["repaired"]
    assert reported.curve["repaired"]["loss"][1] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("labels, line", [
    (LABELS[:-1], "59 given for 60 images"), (LABELS + 0.5, "0.5 given; allowed are whole numbers from 0"),
    (LABELS + 5, "labels up to 14"), (torch.tensor(3), "shape ()"),
])  # fmt: skip
def test_labels_of_another_kind_are_refused(labels, line):
    refused(lambda: flip_merge(conv_net(), Images(PIXELS, 16), test_labels=labels), line)
    batches = list(normalise(PIXELS).split(16))
    line = line.replace("59 given for 60 images", "11 for a batch of 12")
    refused(lambda: flip_merge(conv_net(), batches, test_labels=labels), line)


def test_without_labels_accuracy_is_agreement_with_the_net_itself():
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(net, images)
    assert merged.accuracy == flip_merge(net, images, test_labels=answers(net, images)).accuracy
    assert merged.accuracy["net"] == 1 > merged.accuracy["halfway"]


def test_where_no_prediction_is_right_the_reason_is_given():
    images = Images(PIXELS, 16)
    some = flip_merge(vgg11(), images, test_labels=LABELS)
    wrong = flip_merge(conv_net(), images, test_labels=(answers(conv_net(), images) + 1) % 10)
    assert some.note is None and 0 < some.accuracy["net"] < 0.5
    assert set(wrong.barrier.values()) == {None} and "right on none of the 60 test images" in wrong.note


def test_a_custom_metric_is_averaged_over_images_for_all_nets():
    margin = Metric(lambda logits, labels: logits.gather(1, labels[:, None])[:, 0] - logits.mean(1))
    net, images = vgg11(), Images(PIXELS, 16)
    merged = flip_merge(net, images, test_labels=LABELS, metrics={"margin": margin})
    logits = net(normalise(PIXELS)).detach()
    mean = float(margin.function(logits, LABELS).mean())
    assert merged.scores["margin"]["net"] == pytest.approx(mean, rel=1e-4)
    of = merged.scores["margin"]
    fall = (of["net"] + of["flipped"]) / 2 - of["halfway"]
    assert merged.barriers["margin"]["halfway"] == pytest.approx(fall)
    assert set(merged.scores) == {"accuracy", "margin"}


def test_the_barrier_of_a_loss_is_its_rise():
    of = flip_merge(vgg11(), Images(PIXELS, 16), test_labels=LABELS)
    loss = of.scores["loss"]
    rise = loss["repaired"] - (loss["net"] + loss["flipped"]) / 2
    assert of.barriers["loss"]["repaired"] == pytest.approx(rise)


@pytest.mark.parametrize("metric, line", [
    (lambda logits, labels: logits.mean(), "one number per image"),
    (lambda logits, labels: 0.5, "returns float"), (lambda logits, labels: logits[:, 99], "fails on logits"),
    (lambda logits, labels: {}["key"], "KeyError: 'key' (test_report.py, line"),
])  # fmt: skip
def test_a_metric_that_isnt_one_number_per_image_is_refused(metric, line):
    mine = {"mine": Metric(metric)}
    refused(lambda: flip_merge(vgg11(), Images(PIXELS, 16), metrics=mine), "metric mine", line)


def test_metrics_need_distinct_names_and_change_nothing():
    net, images = conv_net(), Images(PIXELS, 16)

    def changes(logits, labels):
        labels.zero_()
        return logits.zero_().sum(1)

    metrics = {"changes": Metric(changes)} | METRICS
    plain = flip_merge(net, images, test_labels=LABELS)
    merged = flip_merge(net, images, test_labels=LABELS, metrics=metrics)
    assert (merged.accuracy, merged.scores["loss"]) == (plain.accuracy, plain.scores["loss"])
    for metrics, line in (
        ({"accuracy": Metric(changes)}, "another name"), ({"mine": changes}, "relusym.Metric(function)"),
        ([Metric(changes)], "a dict"),
    ):  # fmt: skip
        refused(lambda metrics=metrics: flip_merge(net, images, metrics=metrics), line)
