"""Training ResNets: recipes, views, SimSiam, several processes, resuming, ImageNet's files."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from plain_resnet_worker import RECIPE, small_job

from relusym import checkpoint
from relusym.data import image_set
from relusym.data.batches import ImageFiles, ImagesOnDevice
from relusym.data.chiral_shapes import generate
from relusym.data.imagenet import prepare
from relusym.data.views import random_crops, random_views
from relusym.errors import UserError
from relusym.nets.resnet import SimSiam, build, linear_probe, simsiam_loss, spread
from relusym.randomness import generator
from relusym.training.distributed import how_it_ended, launch
from relusym.training.resnet_training import Lars, Recipe
from relusym.training.worker import run

SMALL = {"block": "basic", "layers": [1, 1, 1, 1], "width": 0.125}


def quiet(progress):
    pass


@pytest.fixture(autouse=True)
def worker_is_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


# ---- recipes


def test_the_old_recipe_divides_the_rate_by_ten_every_thirty_epochs():
    recipe = Recipe(90, 1024, 0.1, 0.9, 1e-4, "step")
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 29.9, 30, 59.9, 60, 89.9)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_cosine_and_linear_schedules_end_at_zero_after_their_warm_up():
    for schedule, half in (("cosine", 0.5), ("linear", 0.5)):
        recipe = Recipe(12, 256, 1.0, 0.9, 0, schedule, warmup_epochs=2)
        rates = [recipe.learning_rate_at(epoch) for epoch in (0, 1, 2, 7, 12)]
        assert rates == pytest.approx([0, 0.5, 1, half, 0])


def test_lars_scales_the_rate_by_the_weights_and_gradients_sizes():
    weight = torch.nn.Parameter(torch.full((1, 4), 3.0))
    bias = torch.nn.Parameter(torch.zeros(4))
    optimizer = Lars([weight, bias], lr=2.0, momentum=0.0, weight_decay=0.0, trust=0.01)
    weight.grad, bias.grad = torch.full((1, 4), 5.0), torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((1, 4), 3 - 2 * 0.01 * 3 / 5 * 5))
    torch.testing.assert_close(bias.detach(), torch.full((4,), -2.0))


# ---- SimSiam


def test_simsiams_loss_on_hand_worked_vectors():
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert simsiam_loss(right, right, right, right) == pytest.approx(-1)
    assert simsiam_loss(right, right, up, up) == pytest.approx(0)
    assert simsiam_loss(right, up, up, up) == pytest.approx(-0.5)


def test_no_gradient_flows_through_the_projection():
    net = SimSiam(build(SMALL, 10), 16, 8)
    _, _, z_1, z_2 = net(torch.randn(4, 3, 33, 33), torch.randn(4, 3, 33, 33))
    assert not z_1.requires_grad and not z_2.requires_grad


def test_spread_is_one_of_random_directions_and_zero_of_one():
    assert spread(torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))) == pytest.approx(
        1, abs=0.05
    )
    assert spread(torch.ones(100, 32)) == pytest.approx(0, abs=1e-5)


def test_a_linear_probe_trains_its_linear_layer_alone():
    net = linear_probe(build(SMALL, 10))
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_views_differ_from_image_to_image_and_from_draw_to_draw():
    image = generate(10, 10, 0)[0].images[:1].repeat(6, 1, 1, 1)
    for draw in (random_views, lambda x, random: random_crops(x, random, (0.2, 1.0))):
        views = draw(image, generator(0, "a"))
        assert views.shape == (6, 32, 32, 3) and views.min() >= 0 and views.max() <= 255.01
        assert all((views[0] - view).abs().max() > 10 for view in views[1:])
        assert not torch.equal(views, draw(image, generator(0, "b")))
        assert torch.equal(views, draw(image, generator(0, "a")))


def test_a_crop_of_the_whole_image_is_the_image_or_its_mirror():
    images = torch.randint(0, 256, (8, 17, 17, 3), dtype=torch.uint8)
    crops = random_crops(images, generator(0, "a"), (2.0, 2.0))  # larger than the image: all of it
    same = [(crops - other.float()).abs().amax((1, 2, 3)) < 0.01 for other in (images, images.flip(2))]
    assert (same[0] ^ same[1]).all() and same[0].any() and same[1].any()


# ---- small images of any size


def test_scaling_commutes_with_flipping():
    some = generate(50, 10, 0)[0]
    scaled = image_set.resized(some, 33)
    mirrored = image_set.resized(image_set.ImageSet(some.images.flip(2), some.labels, some.classes, ""), 33)
    assert scaled.images.shape == (50, 33, 33, 3)
    difference = (scaled.images.flip(2).int() - mirrored.images.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01  # halves round to even numbers
    assert image_set.resized(some, 32) is some


@pytest.mark.parametrize("two_views", [False, True])
def test_processes_share_every_batch_of_the_whole(monkeypatch, two_views):
    some = generate(60, 10, 0)[0]

    def epoch(rank, world):
        monkeypatch.setattr("relusym.data.batches.rank", lambda: rank)
        monkeypatch.setattr("relusym.data.batches.world_size", lambda: world)
        batches = ImagesOnDevice(some.images, some.labels, two_views, 20, 2, 0, "a")
        return list(batches.epoch(3))

    whole, shares = epoch(0, 1), [epoch(0, 2), epoch(1, 2)]
    assert len(whole) == 3
    for (views, labels), one, other in zip(whole, *shares, strict=True):
        assert torch.equal(labels[0::2], one[1]) and torch.equal(labels[1::2], other[1])
        for view, a, b in zip(views, one[0], other[0], strict=True):
            assert torch.equal(view[0::2], a) and torch.equal(view[1::2], b)


# ---- one training in this process


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes.safetensors"
    image_set.save(path, *generate(240, 60, 0))
    return path


@pytest.mark.parametrize("stage", ["supervised", "pretraining"])
def test_a_training_learns_and_its_record_says_how_long_it_waited_for_images(data, tmp_path, stage):
    job = small_job(data, tmp_path, stage=stage, epochs=6)
    record = run(job, quiet)
    losses = [epoch["loss"] for epoch in record["history"]]
    assert record["status"] == "ok" and losses[-1] < losses[0]
    assert 0 < record["data_wait_share"] < 1
    assert checkpoint.load(job["to"])[1]["settings"] == job["settings"]


def test_the_invariance_loss_brings_the_logits_together(data, tmp_path):
    losses = []
    for weight in (None, 0.0, 1.0):
        job = small_job(data, tmp_path, epochs=1)
        job["settings"]["invariance_weight"] = weight
        losses.append(run(job, quiet)["history"][0]["loss"])
    assert losses[2] > losses[1]
    assert losses[0] != losses[1]  # batch norm sees the flipped images


def test_a_training_cut_off_goes_on_to_the_same_bytes(data, tmp_path):
    whole = small_job(data, tmp_path, to="whole", epochs=4)
    run(whole, quiet)
    cut = small_job(data, tmp_path, to="cut", epochs=4) | {"state": str(tmp_path / "state.safetensors")}

    class Cut(Exception):
        pass

    def cut_off(progress):
        if progress.epoch > 2:
            raise Cut

    with pytest.raises(Cut):
        run(cut, cut_off)
    assert Path(cut["state"]).exists()
    run(cut, quiet)
    assert not Path(cut["state"]).exists()
    assert_same(checkpoint.load(whole["to"])[0], checkpoint.load(cut["to"])[0], 0)


def test_a_diverged_training_is_a_result(data, tmp_path):
    job = small_job(data, tmp_path, epochs=3)
    job["settings"]["recipe"] |= {"learning_rate": 1e30}
    record = run(job, quiet)
    assert record["status"] == "diverged"
    assert checkpoint.load(job["to"])[1]["status"] == "diverged"


def test_a_linear_layer_of_other_pretraining_is_refused(data, tmp_path):
    before = small_job(data, tmp_path, to="before", stage="pretraining", epochs=1)
    run(before, quiet)
    job = small_job(data, tmp_path, stage="linear", epochs=1) | {"pretrained": before["to"]}
    job["settings"]["pretrained"] = before["settings"] | {"seed": 5}
    with pytest.raises(UserError, match="was trained with other settings"):
        run(job, quiet)
    job["settings"]["pretrained"] = before["settings"]
    assert run(job, quiet)["status"] == "ok"
    encoder, net = checkpoint.load(before["to"])[0], checkpoint.load(job["to"])[0]
    for name, tensor in net.items():
        assert name.startswith("fc.") or torch.equal(tensor, encoder[f"encoder.{name}"]), name


# ---- several processes


def assert_same(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """What one process gets from the batches of which two processes each take a half."""
    from plain_resnet_worker import without_batch_statistics

    job = small_job(data, tmp_path_factory.mktemp("alone"), epochs=3)
    with without_batch_statistics():
        run(job, quiet)
    return checkpoint.load(job["to"])[0]


def test_two_processes_equal_one_on_the_same_global_batch(data, tmp_path, alone):
    job = small_job(data, tmp_path, epochs=3)
    record = launch("plain_resnet_worker", job, 2, 0, say=quiet)
    assert len(record["history"]) == 3
    assert_same(alone, checkpoint.load(job["to"])[0], 1e-5)


def test_a_killed_process_ends_the_job_with_one_line_and_the_next_run_goes_on(data, tmp_path, alone):
    job = small_job(data, tmp_path, epochs=3) | {"state": str(tmp_path / "state.safetensors")}
    (tmp_path / "kill").touch()  # tells the second process to die in the last epoch, once
    with pytest.raises(
        UserError, match=r"one of the 2 training processes was killed \(signal 9\).*goes on"
    ) as told:
        launch("plain_resnet_worker", job, 2, 0, say=quiet)
    assert "\n" not in str(told.value)
    assert len(checkpoint.load(job["state"])[1]["history"]) == 2
    launch("plain_resnet_worker", job, 2, 0, say=quiet)
    assert_same(alone, checkpoint.load(job["to"])[0], 1e-5)


def test_all_processes_start_again_together_after_a_kill(data, tmp_path, alone):
    job = small_job(data, tmp_path, epochs=3) | {"state": str(tmp_path / "state.safetensors")}
    (tmp_path / "kill").touch()
    launch("plain_resnet_worker", job, 2, 1, say=quiet)
    assert not (tmp_path / "kill").exists()
    assert_same(alone, checkpoint.load(job["to"])[0], 1e-5)


def test_a_users_error_in_a_process_is_told_as_it_is():
    output = (
        "[rank1]: relusym.errors.UserError: image a.jpg can't be read: replace it\n exitcode  : 1 (pid: 5)\n"
    )
    assert how_it_ended(output, 2) == "image a.jpg can't be read: replace it"
    assert how_it_ended("exitcode  : 3 (pid: 5)", 2).startswith(
        "one of the 2 training processes failed (3), "
    )


# ---- ImageNet's files


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """ImageNet's layout with three classes of colour, 8 images each, of several sizes."""
    root = tmp_path_factory.mktemp("imagenet")
    random = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label, name in enumerate(("n01", "n02", "n03")):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                noise = torch.randint(0, 60, (40 + 5 * i, 50, 3), generator=random, dtype=torch.uint8)
                noise[..., label] += 150
                Image.fromarray(noise.numpy()).save(root / split / name / f"{i}.png")
    return root


def test_prepared_images_are_torchvisions_evaluation_images(tree, tmp_path):
    from torchvision.transforms import v2

    how = {"train_images": 10, "seed": 0, "source": "mine", "workers": 0}
    prepare(tree / "train", tree / "val", tmp_path / "a.safetensors", resize=36, size=33, **how)
    train, test = (image_set.load(tmp_path / "a.safetensors", split) for split in ("train", "test"))
    assert train.images.shape == (10, 33, 33, 3) and test.images.shape == (24, 33, 33, 3)
    assert test.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and test.classes == ("n01", "n02", "n03")
    assert train.source == "mine, resized to 36, cropped to 33"
    assert (train.images.float().mean((1, 2)).argmax(1) == train.labels).all()
    image = Image.open(tree / "val" / "n02" / "3.png")
    expected = v2.Compose([v2.Resize(36), v2.CenterCrop(33), v2.PILToTensor()])(image)
    assert torch.equal(test.images[11], expected.permute(1, 2, 0))
    prepare(tree / "train", tree / "val", tmp_path / "b.safetensors", resize=40, size=33, **how)
    assert not torch.equal(image_set.load(tmp_path / "b.safetensors", "test").images, test.images)


def test_too_few_images_and_differing_classes_are_told(tree, tmp_path):
    how = {"resize": 36, "size": 33, "seed": 0, "source": "mine", "workers": 0}
    with pytest.raises(UserError, match=r"99 images are asked for, but .* has only 24"):
        prepare(tree / "train", tree / "val", tmp_path / "a", train_images=99, **how)
    (tmp_path / "val" / "n01").mkdir(parents=True)
    (tmp_path / "val" / "n01" / "0.png").write_bytes((tree / "val" / "n01" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"differ in 2 classes, such as n02"):
        prepare(tree / "train", tmp_path / "val", tmp_path / "a", train_images=9, **how)
    with pytest.raises(UserError, match=r"set imagenet\.root"):
        prepare(tmp_path / "none", tree / "val", tmp_path / "a", train_images=9, **how)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("stage", "workers"), [("supervised", 0), ("pretraining", 1)])
def test_a_net_trains_on_image_files(tree, tmp_path, stage, workers):
    job = small_job(tree / "train", tmp_path, stage=stage, epochs=2) | {"workers": workers}
    job["settings"]["images"] = {"dataset": "ImageNet", "size": 33}
    job["settings"]["recipe"]["batch_size"] = 8
    record = run(job, quiet)
    assert record["status"] == "ok" and record["inputs"]["source"] == "ImageNet"
    assert checkpoint.load(job["to"])[1]["classes"] == 3


def test_processes_read_different_files_and_each_epoch_another_order(tree, monkeypatch):
    def labels(rank, number):
        monkeypatch.setattr("relusym.data.batches.rank", lambda: rank)
        monkeypatch.setattr("relusym.data.batches.world_size", lambda: 2)
        batches = ImageFiles(tree / "train", 33, False, 8, 0, 0, "a", torch.device("cpu"))
        assert batches.steps == 3
        return torch.cat([batch[1] for batch in batches.epoch(number)])

    both = torch.cat([labels(0, 0), labels(1, 0)])
    assert sorted(both.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    assert not torch.equal(labels(0, 0), labels(0, 1))


def test_an_unreadable_image_is_named(tree, tmp_path):
    (tmp_path / "train" / "n01").mkdir(parents=True)
    for i in range(8):
        (tmp_path / "train" / "n01" / f"{i}.jpg").write_bytes(b"no image")
    batches = ImageFiles(tmp_path / "train", 33, False, 4, 0, 0, "a", torch.device("cpu"))
    with pytest.raises(UserError, match=r"image .*\.jpg can't be read"):
        next(batches.epoch(0))


def test_the_recipe_of_the_tests_is_a_whole_recipe():
    assert math.isfinite(Recipe(**RECIPE).peak_rate)
