"""Exact GCNNs made of trained nets: how good they are, at once, after fine-tuning, and trained from the start."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from relusym import checkpoint, nets
from relusym.channels.groups import has_batch_norm
from relusym.channels.traced import TracedNet, channel_groups
from relusym.data.batches import ImagesOnDevice
from relusym.errors import UserError
from relusym.evaluation.barrier import accuracy as accuracy_of
from relusym.evaluation.images import Images
from relusym.evaluation.invariance import Averaged, invariance_error
from relusym.measuring.loading import least_accuracy, normalise_of
from relusym.merging.aligned import align
from relusym.merging.exact_gcnn import exact_gcnn, orbits
from relusym.merging.identities import hold
from relusym.merging.layers import filters_and_matches
from relusym.merging.repair import repaired, reset_batch_norm
from relusym.nets.tied import TiedNet
from relusym.randomness import stream
from relusym.symmetry import SYMMETRIES, Symmetry
from relusym.training.loop import precision_name, train
from relusym.training.recipe import Recipe
from relusym.whole_files import sha256

if TYPE_CHECKING:
    from relusym.measuring.measure import Subject

Record = dict[str, Any]


def measure(subject: Subject, settings: Record) -> Record:
    """The exact GCNN of one net, kept beside the checkpoints, and the accuracies of all that it is compared with.

    Returns:
        accuracy: "net", "test_time" (the net's logits averaged over all orientations), "halfway" (with REPAIR), "exact"
            (the GCNN), "fine_tuned", "fine_tuned_test_time" (the net trained on), "exact_fine_tuned"; "from_scratch"
            (the GCNN's mixture of representations trained by the net's recipe), if the settings say so: None if that
            diverged, or came out no better than chance.
        invariance_error: "net", "halfway", "exact", "exact_fine_tuned", "from_scratch", over the test images.
        parameters: "net", and "exact", the free ones.
        representations: channel group → "fixed" and "swapped", numbers of channels.
        kernel_constraint: the largest entry of any kernel's ψ − P₁ᵀτ(ψ)P₀, equation (3), after fine-tuning.
        precision: of the trainings.

    Raises:
        UserError: a fine-tuning diverged; the exact GCNN isn't one.
    """
    (net,), (plain,) = subject.nets, subject.plain
    symmetry, how = SYMMETRIES[settings["symmetry"]], settings["fine_tuning"]
    own = Recipe(**settings["trained"][0]["training"])
    tuning = own.but(
        epochs=how["epochs"],
        learning_rate=how["learning_rate"],
        schedule="linear",
        warmup_epochs=0,
        invariance_from=None,
    )
    aligned = align(
        *(plain, symmetry.transform(plain), subject.images),
        matching=settings["merging"]["matching"],
        order=symmetry.order,
    )
    halfway = corrected(aligned.interpolate(0.5), aligned.targets(), subject.images)
    exact = exact_gcnn(halfway, symmetry, aligned.groups, aligned.permutations)
    tested = {"net": net, "halfway": halfway, "exact": deepcopy(exact)}
    tested["fine_tuned"] = trained(deepcopy(net), tuning, subject, settings, "fine-tuning")
    tested["exact_fine_tuned"] = tuned = trained(exact, tuning, subject, settings, "fine-tuning")
    if tested["fine_tuned"] is None or tuned is None:
        raise UserError(
            f"exact_gcnn: fine-tuning {subject.names[0][0]} diverged: make its learning rate smaller, "
            "beyond.exact_gcnn.fine_tuning.learning_rate"
        )
    if settings["from_scratch"]:
        seed, model = subject.names[0][1], subject.names[0][0]
        torch.manual_seed(stream(seed, model, "mixture", "weights"))
        fresh = initial(plain, settings, symmetry)
        start = TiedNet(fresh, orbits(plain, symmetry, aligned.groups, aligned.permutations))
        # its invariance loss is zero whatever its weights are
        mixture = trained(start, own.but(invariance_from=None), subject, settings, "mixture")
        if mixture is not None:
            tested["from_scratch"] = mixture
    accuracy = {name: accuracy_of(one, subject.test, subject.labels) for name, one in tested.items()}
    if settings["from_scratch"] and accuracy.get("from_scratch", 0.0) <= least_accuracy(subject.labels):
        accuracy["from_scratch"] = None
    for name, averaged in {"net": "test_time", "fine_tuned": "fine_tuned_test_time"}.items():
        accuracy[averaged] = accuracy_of(Averaged(tested[name], symmetry), subject.test, subject.labels)
    measured = [name for name in tested if name != "fine_tuned"]
    permutations = {name: of.tolist() for name, of in aligned.permutations.items()}
    save(subject.to, tuned, settings["trained"][0], permutations, subject.images.shape)
    fixed = {name: int((of == torch.arange(len(of))).sum()) for name, of in aligned.permutations.items()}
    kernels = filters_and_matches(tuned.to_plain(), symmetry, aligned.groups, aligned.permutations)
    constraint = {"kernel_constraint": max(float((a - b).abs().max()) for a, b in kernels.values())}
    hold(constraint)
    return constraint | {
        "accuracy": accuracy,
        "invariance_error": {
            name: invariance_error(tested[name], subject.test, symmetry) for name in measured
        },
        "parameters": {
            "net": sum(parameter.numel() for parameter in net.parameters()),
            "exact": tuned.free_parameters,
        },
        "representations": {
            name: {"fixed": count, "swapped": len(permutations[name]) - count}
            for name, count in fixed.items()
        },
        "precision": precision_name(own.precision, subject.images.pixels.device),
        "outputs": {"exact_gcnn": sha256(subject.to)},
    }


def corrected(halfway: TracedNet, targets: dict, images: Images) -> nn.Module:
    """The merged net with REPAIR; one with batch norm, which REPAIR would add layers to, is reset."""
    if has_batch_norm(halfway.net):
        return reset_batch_norm(halfway.net, images)
    return repaired(halfway, targets, images)[0]


def initial(plain: nn.Module, settings: Record, symmetry: Symmetry) -> nn.Module:
    """An ordinary net of the same shapes with its architecture's initial weights."""
    network = settings["trained"][0]["network"] | {"group_convs": 0}
    network = {key: value for key, value in network.items() if key in nets.options(network["architecture"])
               or key == "architecture"}  # fmt: skip
    classes = getattr(plain, plain.head).out_features
    return nets.build(network, classes, symmetry).to(next(plain.parameters()).device)


def trained(
    net: nn.Module, recipe: Recipe, subject: Subject, settings: Record, name: str
) -> nn.Module | None:
    """The net, trained in place on batches that depend on the seed and `name` alone; None if the training diverged."""
    images, symmetry = subject.train, SYMMETRIES[settings["symmetry"]]
    batches = ImagesOnDevice(
        *(images.images, images.labels, len(images.classes)),
        batch_size=recipe.batch_size,
        seed=subject.names[0][1],
        name=f"{subject.names[0][0]}, {name}",
        views=recipe.views,
        crop_padding=recipe.crop_padding,
        symmetry=symmetry if recipe.augmentation else None,
        normalise=normalise_of(settings["trained"][0]["data"]),
    )
    result = train(net, batches, recipe, device=images.images.device, symmetry=symmetry)
    return None if result.diverged else result.net.eval()


def save(
    path: Path, net: TiedNet, settings: Record, permutations: dict[str, list[int]], shape: tuple[int, ...]
) -> None:
    """Keep an exact GCNN, with all that `load` needs: no ordinary net beside it."""
    classes = getattr(net.plain, net.plain.head).out_features
    about = {"kind": "exact_gcnn", "settings": settings, "classes": classes}
    kept = ("free.", *(f"plain.{name}" for name, _ in net.plain.named_buffers()))
    tensors = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(kept)}
    checkpoint.save(path, tensors, about | {"permutations": permutations, "image_shape": list(shape)})


def load(path: Path, device: torch.device) -> TiedNet:
    """An exact GCNN, in evaluation mode.

    Raises:
        UserError: the checkpoint is truncated, foreign, or of something else.
    """
    tensors, about = checkpoint.load(path, device)
    try:
        settings, symmetry = about["settings"], SYMMETRIES[about["settings"]["symmetry"]]
        plain = nets.plain(nets.build(settings["network"], about["classes"], symmetry))
        permutations = {name: torch.tensor(of) for name, of in about["permutations"].items()}
        groups = channel_groups(plain, tuple(about["image_shape"]))
        net = TiedNet(plain, orbits(plain, symmetry, groups, permutations))
        missing = net.load_state_dict(tensors, strict=False)
        if missing.unexpected_keys or any(key.startswith("free.") for key in missing.missing_keys):
            raise KeyError("free parameters")
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} doesn't hold an exact GCNN: delete its record, in records/exact_gcnn, and it is made "
            "again"
        ) from error
    return net.eval().to(device)
