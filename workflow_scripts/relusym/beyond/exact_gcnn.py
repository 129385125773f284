"""Exact GCNNs made from trained nets: their accuracy at once, after fine-tuning, and when trained from scratch."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from relusym import checkpoint
from relusym.beyond import declaration
from relusym.errors import UserError
from relusym.record_types import Count, Fields, NotNegative, Share, Shares
from relusym.schema import Count as CountOption
from relusym.schema import Positive, Section, key, remark
from relusym.symmetry import SYMMETRIES
from relusym.training.recipe import Recipe
from relusym.whole_files import sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

    from relusym.nets.tied import TiedNet

Record = dict[str, Any]


class FineTuning(Section):
    """Fine-tuning of the exact GCNN and of the net itself."""

    epochs: CountOption = key("over the training images")
    learning_rate: Positive = key("the peak, at the start")


class Options(declaration.Options):
    """A net turned into an exact GCNN, and fine-tuned."""

    matching: Literal["involution"] = key("the only matching whose halfway net is a GCNN", "involution")
    fine_tuning: FineTuning = key("of both nets", FineTuning(epochs=2, learning_rate=0.005))
    from_scratch: declaration.Parts = key(
        "which of `models` also have their mixture trained from scratch", []
    )


class Accuracy(Shares):
    """Accuracies of the exact GCNN and of everything it is compared with.

    `test_time`: the net's logits averaged over all orientations; `halfway`: with REPAIR; `fine_tuned`: the net trained
    further; `from_scratch`: the GCNN's mixture of representations trained by the net's recipe, if the options list the
    model; None if that training diverged or ended no better than chance.
    """

    net: Share
    test_time: Share
    halfway: Share
    exact: Share
    fine_tuned: Share
    fine_tuned_test_time: Share
    exact_fine_tuned: Share
    from_scratch: Share | None = None


class Errors(Fields):
    """Invariance errors over the test images."""

    __pydantic_extra__: dict[str, NotNegative] = Field(init=False)
    net: NotNegative
    exact: NotNegative


class Parameters(Fields):
    """Numbers of parameters, of free ones for the exact GCNN."""

    net: Count
    exact: Count


class Representation(Fields):
    """How many channels of a group are fixed, and how many swapped."""

    fixed: Annotated[int, Field(ge=0)]
    swapped: Annotated[int, Field(ge=0)]

    @field_validator("swapped")
    @classmethod
    def _has_channels(cls, swapped: int, info: ValidationInfo) -> int:
        if swapped % 2 or not swapped + info.data.get("fixed", 1):
            raise remark("allowed is an even number, and at least one channel in all")
        return swapped


class Body(Fields):
    """`kernel_constraint`: the largest entry of any kernel's ψ − P₁ᵀτ(ψ)P₀, equation (3), after fine-tuning."""

    accuracy: Accuracy
    invariance_error: Errors
    kernel_constraint: NotNegative
    parameters: Parameters
    representations: Annotated[dict[str, Representation], Field(min_length=1)]


def settings(section: dict, model: str, upstream: Record, snapshots: list[int]) -> Record:
    return {"from_scratch": model in section["from_scratch"]}


def measure(job: declaration.Job) -> Record:
    """The fields of `Body` for one net, whose exact GCNN is kept beside the checkpoints. UserError if fine-tuning
    diverged, or if the exact GCNN breaks the kernel constraint.
    """
    import torch

    from relusym.evaluation.invariance import Averaged, invariance_error
    from relusym.evaluation.metrics import accuracy as accuracy_of
    from relusym.merging.aligned import align
    from relusym.merging.exact_gcnn import corrected_halfway, exact_gcnn, orbits, representations
    from relusym.merging.identities import hold
    from relusym.merging.layers import filters_and_matches
    from relusym.nets.tied import TiedNet
    from relusym.randomness import stream
    from relusym.training.loop import precision_name

    (net,), (plain,), symmetry = job.nets, job.plain, job.symmetry
    (model, seed), how = job.names[0], job.settings["fine_tuning"]
    recipe = Recipe(**job.settings["trained"][0]["training"])
    tuning = recipe.but(
        epochs=how["epochs"],
        learning_rate=how["learning_rate"],
        schedule="linear",
        warmup_epochs=0,
        invariance_from=None,
    )
    flipped, matching = symmetry.transform(plain), job.settings["merging"]["matching"]
    aligned = align(plain, flipped, job.images, matching=matching, order=symmetry.order)
    halfway = corrected_halfway(aligned, job.images)
    exact = exact_gcnn(halfway, symmetry, aligned.groups, aligned.permutations)
    tested = {"net": net, "halfway": halfway, "exact": deepcopy(exact)}
    tested["fine_tuned"] = trained(deepcopy(net), tuning, job, "fine-tuning")
    tested["exact_fine_tuned"] = tuned = trained(exact, tuning, job, "fine-tuning")
    if tested["fine_tuned"] is None or tuned is None:
        raise UserError(
            f"exact_gcnn: fine-tuning {model} diverged: lower its learning rate, "
            "beyond.exact_gcnn.fine_tuning.learning_rate"
        )
    if job.settings["from_scratch"]:
        torch.manual_seed(stream(seed, model, "mixture", "weights"))
        groups = orbits(plain, symmetry, aligned.groups, aligned.permutations)
        start = TiedNet(initial(plain, job), groups)
        # its invariance loss is zero whatever its weights are
        if mixture := trained(start, recipe.but(invariance_from=None), job, "mixture"):
            tested["from_scratch"] = mixture
    accuracy = {name: accuracy_of(each, job.test, job.labels) for name, each in tested.items()}
    if job.settings["from_scratch"] and accuracy.get("from_scratch", 0.0) <= job.least_accuracy:
        accuracy["from_scratch"] = None
    for name, averaged in {"net": "test_time", "fine_tuned": "fine_tuned_test_time"}.items():
        accuracy[averaged] = accuracy_of(Averaged(tested[name], symmetry), job.test, job.labels)
    measured = [name for name in tested if name != "fine_tuned"]
    permutations = {name: order.tolist() for name, order in aligned.permutations.items()}
    save(job.beside, tuned, job.settings["trained"][0], permutations, job.images.shape)
    kernels = filters_and_matches(tuned.to_plain(), symmetry, aligned.groups, aligned.permutations)
    constraint = {"kernel_constraint": max(float((a - b).abs().max()) for a, b in kernels.values())}
    hold(constraint)
    return constraint | {
        "accuracy": accuracy,
        "invariance_error": {name: invariance_error(tested[name], job.test, symmetry) for name in measured},
        "parameters": {
            "net": sum(parameter.numel() for parameter in net.parameters()),
            "exact": tuned.free_parameters,
        },
        "representations": representations(aligned.permutations),
        "precision": precision_name(recipe.precision, job.device),
        "outputs": {"exact_gcnn": sha256(job.beside)},
    }


def initial(plain: nn.Module, job: declaration.Job) -> nn.Module:
    """An ordinary net of the same shapes with its architecture's initial weights."""
    from relusym import nets

    network = job.settings["trained"][0]["network"] | {"group_convs": 0}
    known = {"architecture", *nets.options(network["architecture"])}
    network = {key: value for key, value in network.items() if key in known}
    classes = getattr(plain, plain.head).out_features
    return nets.build(network, classes, job.symmetry).to(next(plain.parameters()).device)


def trained(net: nn.Module, recipe: Recipe, job: declaration.Job, name: str) -> nn.Module | None:
    """The net, trained in place on batches that depend on the seed and `name` alone; None if the training diverged."""
    from relusym.data.batches import ImagesOnDevice
    from relusym.training.loop import train

    (model, seed), images = job.names[0], job.train
    batches = ImagesOnDevice(
        *(images.images, images.labels, len(images.classes)),
        batch_size=recipe.batch_size,
        seed=seed,
        name=f"{model}, {name}",
        views=recipe.views,
        crop_padding=recipe.crop_padding,
        symmetry=job.symmetry if recipe.augmentation else None,
        normalise=job.images.normalise,
    )
    result = train(net, batches, recipe, device=images.images.device, symmetry=job.symmetry)
    return None if result.diverged else result.net.eval()


def save(
    path: Path, net: TiedNet, settings: Record, permutations: dict[str, list[int]], shape: tuple[int, ...]
) -> None:
    """Save an exact GCNN with everything that `load` needs, without the ordinary net."""
    classes = getattr(net.plain, net.plain.head).out_features
    about = {"kind": "exact_gcnn", "settings": settings, "classes": classes}
    kept = ("free.", *(f"plain.{name}" for name, _ in net.plain.named_buffers()))
    tensors = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(kept)}
    checkpoint.save(path, tensors, about | {"permutations": permutations, "image_shape": list(shape)})


def load(path: Path, device: torch.device) -> TiedNet:
    """An exact GCNN, in evaluation mode. UserError if the checkpoint is truncated, or doesn't hold an exact GCNN."""
    import torch

    from relusym import nets
    from relusym.channels.traced import channel_groups
    from relusym.merging.exact_gcnn import orbits
    from relusym.nets.tied import TiedNet

    tensors, about = checkpoint.load(path, device)
    try:
        settings, symmetry = about["settings"], SYMMETRIES[about["settings"]["symmetry"]]
        plain = nets.plain(nets.build(settings["network"], about["classes"], symmetry))
        permutations = {name: torch.tensor(order) for name, order in about["permutations"].items()}
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


MEASUREMENT = declaration.Measurement(Options, Body, measure, settings, flips_alone=True)
