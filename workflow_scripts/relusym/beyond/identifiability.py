"""Barriers by the transformations allowed between layers, of redundant nets, and of nets made invariant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from relusym.beyond import declaration
from relusym.record_types import Fields, FlipAccuracy, FlipMerged, NotNegative, Similarity
from relusym.schema import key

if TYPE_CHECKING:
    from torch import nn

    from relusym.merging.merge import Merge

# activation → the matching by the group that commutes with it, where that is larger than permutations
LARGER_GROUP = {"relu": "scaled_activation", "leaky_relu": "scaled_activation", "tanh": "signed_activation"}
EDITS = "silent", "unread", "duplicated", "split"  # of `channels.redundancy`, which imports PyTorch
TOWERS = "towers", "towers_apart"


class Options(declaration.Options):
    """Nets by their activation, made redundant, and made invariant as two towers."""

    redundant: declaration.Parts = key("which of `models` are also measured with redundant channels", [])
    towers: declaration.Parts = key("which of `models` are also made invariant by two towers", [])


class Variant(FlipMerged):
    """A net merged with its flipped self.

    `similarity`: mean over all channels; `gone`: the number of redundant channels removed, None for variants that keep
    all; `negative`: the number of channels matched to another's negative; `spread`: standard deviation of log |factor|.
    """

    similarity: Similarity
    channels: Annotated[int, Field(ge=1)]
    negative: Annotated[int, Field(ge=0)]
    spread: NotNegative
    gone: Annotated[int, Field(ge=0)] | None = None


class Body(Fields):
    settings: dict[str, Any]
    invariance_error: NotNegative
    variants: Annotated[dict[str, Variant], declaration.AsInSettings]


def settings(section: dict, model: str, upstream: dict[str, Any], snapshots: list[int]) -> dict[str, Any]:
    """The variants of a net that are measured, in order."""
    activation = upstream["trained"][0]["network"].get("activation", "relu")
    variants = ["activation", *([LARGER_GROUP[activation]] if activation in LARGER_GROUP else [])]
    if model in section["redundant"]:
        variants += ["pruned", *(f"{edit}{state}" for edit in EDITS for state in ("", "_reduced"))]
    variants += TOWERS if model in section["towers"] else ()
    return {"variants": variants}


def measure(job: declaration.Job) -> dict[str, Any]:
    """Merge the net by each matching, with redundant channels added and removed, and made invariant by two towers.
    UserError if an edit that should preserve the net's function changed it."""
    import torch

    from relusym.channels.redundancy import reduced, redundant, towers
    from relusym.channels.traced import as_traced
    from relusym.evaluation.invariance import Averaged, Ensemble, invariance_error
    from relusym.merging.aligned import joint_statistics
    from relusym.merging.identities import CHECK_IMAGES, answers, hold, largest_difference
    from relusym.merging.merge import flip_merge
    from relusym.randomness import generator, stream

    (plain,), (model, seed), symmetry = job.plain, job.names[0], job.symmetry
    groups = as_traced(plain, job.images.shape).groups
    x = job.images.first(CHECK_IMAGES, job.device)

    def same(net: nn.Module, expected: nn.Module) -> nn.Module:
        net = net.to(memory_format=torch.channels_last).eval()
        with torch.no_grad():
            hold({"edited_net": largest_difference(answers(expected, x), answers(net, x))})
        return net

    variants = {}
    for name in job.settings["variants"]:
        net, gone, matching = plain, None, "activation"
        if name in ("activation", *LARGER_GROUP.values()):
            matching = name
        elif name == "pruned":  # channels that are dead on these images, which include `x`
            deviations = joint_statistics([plain, plain], job.images, groups).deviations
            silent = {group: both[0] == 0 for group, both in deviations.items()}
            net, gone = reduced(plain, groups, silent)
            net = same(net, plain)
        elif name in EDITS:
            draw = generator(stream(seed, model, "redundant"), name)
            net = wide = same(redundant(plain, groups, name, draw), plain)
        elif name.endswith("_reduced"):
            net, gone = reduced(wide, as_traced(wide, job.images.shape).groups)
            net = same(net, wide)
        else:
            flipped = symmetry.transform(plain)
            both = towers(plain, flipped, groups) if name == "towers" else Ensemble(plain, flipped)
            net = same(both, Averaged(plain, symmetry))
        how = {"symmetry": symmetry, "matching": matching}
        merge = flip_merge(net, job.images, job.test, job.labels, **how)
        variants[name] = _variant(merge, gone and sum(gone.values()))
    return {"invariance_error": invariance_error(job.nets[0], job.test, symmetry), "variants": variants}


def _variant(merge: Merge, gone: int | None) -> dict[str, Any]:
    import torch

    sizes = {name: len(permutation) for name, permutation in merge.permutations.items()}
    factors = torch.cat([*merge.aligned.factors.values(), torch.zeros(0)])
    channels = sum(sizes.values())
    return {
        "accuracy": {name: merge.accuracy[name] for name in FlipAccuracy.model_fields},
        "barrier": {name: merge.barrier[name] for name in ("halfway", "repaired")},
        "similarity": sum(merge.similarity[name] * size for name, size in sizes.items()) / channels,
        "channels": channels,
        "negative": int((factors < 0).sum()),
        "spread": float(factors.abs().log().std(correction=0)) if len(factors) else 0.0,
        "gone": gone,
    }


MEASUREMENT = declaration.Measurement(Options, Body, measure, settings, flips_alone=True)
