"""What is expected beyond the paper (docs/beyond.md), each as a test on the records.

about: models (ids of the types that the claims are about), names, notes.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from relusym.findings import (
    About,
    Inputs,
    agreement,
    by_layer,
    curves,
    during_training,
    exact_gcnn,
    matchings,
    symmetries,
)
from relusym.findings.claims import COLUMNS as OF_CLAIMS
from relusym.findings.claims import LAYOUT as OF_PAPERS_CLAIMS
from relusym.findings.claims import LEVEL, judged
from relusym.findings.evidence import Evidence, is_higher
from relusym.findings.layout import Layout
from relusym.findings.paired import flipped_against_other, paired

LAYOUT = Layout(
    "Beyond the paper: what was expected, tested",
    {**OF_PAPERS_CLAIMS.headings, "question": "Question"},
    OF_PAPERS_CLAIMS.formats,
)
COLUMNS = ["question", *(column for column in OF_CLAIMS if column not in ("power", "source"))]

SMALL = 0.01  # a barrier, or an accuracy, that is of no account
FROM_IDENTITY = "weight_identity"  # the weight matching that the claims were written of
TYPES = "cnn", "cnn_inv", "cnn_late_inv"  # ordinary nets; GCNNs are exact already
Claim = tuple[str, Evidence]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a claim: question (the target), and as in `claims.claims`, corrected for all of these."""
    found = [
        {"question": question, "claim": claim, "source": "", **vars(evidence)}
        for question, claims in QUESTIONS.items()
        for claim, evidence in claims(inputs, lambda model: about["names"].get(model, model))
    ]
    return judged(pd.DataFrame(found), of_all=True)[COLUMNS]


def notes(inputs: Inputs, about: About) -> list[str]:
    return [
        "Not in the paper; written down before it was measured (docs/beyond.md)",
        f"p is two-sided; corrected for all these claims together after Benjamini and Hochberg. Held or did not hold: "
        f"corrected p below {LEVEL}, or, where all nets are equal, their mean, whatever p is; inconclusive: above",
        *agreement.notes(inputs, about),
    ]


def _of_matchings(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    found = matchings.by_merge({kind: inputs[kind] for kind in ("flip_merge", "pair_merge")})
    found = found[found["ok"].astype(bool)]
    flips = found[found["model_2"] == ""].pivot_table("barrier", ["model_1", "seed"], "matching")
    flips = flips.reindex(columns=["activation", FROM_IDENTITY, "involution"])

    def less(one: str, other: str, model: str) -> np.ndarray:
        """By how much the first matching's barrier is lower, a number a net."""
        own = flips[flips.index.get_level_values("model_1") == model]
        return (own[other] - own[one]).dropna().to_numpy()

    for model in TYPES[:2]:
        yield (
            f"{name(model)}: activation matching gives a lower GCNN barrier than weight matching from the identity",
            paired(less("activation", FROM_IDENTITY, model)),
        )
    for model in TYPES[:2]:
        yield (
            f"{name(model)}: enforcing P² = 1 raises the GCNN barrier by less than {SMALL}",
            paired(less("involution", "activation", model), SMALL),
        )
    by_weight = found[found["matching"] == FROM_IDENTITY]
    nets = by_weight[by_weight["model_2"] == ""].rename(
        columns={"model_1": "model", "barrier": "gcnn_barrier"}
    )
    for model in TYPES[:2]:
        yield (
            f"By weight matching from the identity too, merging a {name(model)} with its flipped self has a lower "
            "barrier than two",
            flipped_against_other(nets, by_weight[by_weight["model_2"] != ""], model),
        )
    barriers = {model: of.to_numpy() for model, of in nets.groupby("model")["gcnn_barrier"]}
    yield (
        "By weight matching from the identity too, invariance loss lowers the GCNN barrier: "
        f"{name('cnn_inv')} below {name('cnn')}",
        is_higher(barriers, "cnn", "cnn_inv"),
    )


def _of_exact_gcnns(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    nets = exact_gcnn.by_net(inputs["exact_gcnn"])
    nets = nets[nets["ok"].astype(bool)]

    def gained(model: str, one: str, other: str) -> np.ndarray:
        own = nets[nets["model"] == model]
        return (own[one] - own[other]).dropna().to_numpy(float)

    for model in TYPES:
        yield (
            f"{name(model)}: the barrier is negative, its exact GCNN more accurate than the net",
            paired(gained(model, "exact", "net")),
        )
    for model in TYPES:
        yield (
            f"{name(model)}: with the same fine-tuning, its exact GCNN is more accurate than the net",
            paired(gained(model, "exact_fine_tuned", "fine_tuned")),
        )
    for model in TYPES:
        yield (
            f"{name(model)}: fine-tuned, its exact GCNN is at most {SMALL} less accurate than the net over both "
            "orientations",
            paired(gained(model, "exact_fine_tuned", "fine_tuned_test_time"), SMALL),
        )
    yield (
        f"The mixture of a {name('cnn_inv')}, trained from scratch, is more accurate than the net",
        is_higher(exact_gcnn.trained_apart(nets, "cnn_inv"), "from_scratch", "net"),
    )


def _of_symmetries(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    nets = symmetries.by_net(inputs["symmetries"])
    nets = nets[nets["ok"].astype(bool)]

    def by_seed(model: str, symmetry: str) -> pd.Series:
        own = nets[(nets["model"] == model) & (nets["symmetry"] == symmetry)]
        return own.set_index("seed")["whole"].astype(float).dropna()

    def barriers(model: str, symmetry: str) -> np.ndarray:
        return by_seed(model, symmetry).to_numpy()

    shapes = {"horizontal_flip": "horizontal", "vertical_flip": "vertical", "quarter_turn": "turned"}
    for symmetry, place in shapes.items():
        # a distribution that turns leave as it is isn't left so by flips, and the other way round
        others = [barriers(f"shapes_{other}_noaug", symmetry) for other in shapes.values() if other != place]
        of_type = {"invariant": barriers(f"shapes_{place}_noaug", symmetry), "others": np.concatenate(others)}
        yield (
            f"Generated shapes, no augmentation: the barrier under the {symmetry.replace('_', ' ')} is lower where the "
            "images are invariant to it",
            is_higher(of_type, "others", "invariant"),
        )
    flipped = by_seed("cnn_noaug", "horizontal_flip")
    for symmetry in ("vertical_flip", "quarter_turn"):
        yield (
            f"CIFAR10, no augmentation: the barrier under the horizontal flip is lower than under the "
            f"{symmetry.replace('_', ' ')}",
            paired((by_seed("cnn_noaug", symmetry) - flipped).dropna().to_numpy()),
        )
    for symmetry, prefix in {"vertical_flip": "vertical", "quarter_turn": "turned"}.items():
        of_type = {kind: barriers(f"{prefix}_{kind}", symmetry) for kind in ("cnn", "inv")}
        yield (
            f"CIFAR10, {symmetry.replace('_', ' ')}: invariance loss lowers the barrier",
            is_higher(of_type, "cnn", "inv"),
        )


def _of_curves(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    found = curves.by_curve(inputs["curves"])
    found = found[found["ok"].astype(bool) & (found["way"] == "repaired")]
    for model in TYPES[:2]:
        for other, whom in {"": "its flipped self", model: "another"}.items():
            own = found[(found["model_1"] == model) & (found["model_2"] == other)]
            yield (
                f"From a {name(model)} to {whom}, the largest barrier is less than {SMALL} above the halfway one",
                paired(
                    -own["excess"].to_numpy(float),
                    SMALL,
                    own[["seed", "seed_2"]].to_numpy(int) if other else None,
                ),
            )


def _of_training(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    found = during_training.by_epoch(inputs["during_training"])
    nets = found.drop_duplicates(["model", "seed", "epoch"])
    at = nets.pivot_table("barrier", ["model", "seed"], "epoch")
    early, last = (1, at.columns.max()) if 1 in at.columns else (None, None)
    values = at.loc[:, [early, last]] if early is not None else pd.DataFrame(columns=["early", "last"])
    values = values.set_axis(["early", "last"], axis=1)

    def of(model: str) -> pd.DataFrame:
        return values[values.index.get_level_values(0) == model] if len(values) else values

    for model in TYPES[:2]:
        own = of(model)
        yield (
            f"{name(model)}: the GCNN barrier is lower at the end of training than after the first epoch",
            paired((own["early"] - own["last"]).dropna().to_numpy(float)),
        )
    yield (
        f"After one epoch already, the GCNN barrier of a {name('cnn_inv')} is below that of a {name('cnn')}",
        is_higher({model: of(model)["early"].to_numpy(float) for model in TYPES[:2]}, "cnn", "cnn_inv"),
    )
    errors = found[found["epoch"] == early].groupby(["model", "seed"], sort=False)["equivariance_error"]
    deeper = (errors.last() - errors.first()).reset_index()
    yield (
        f"{name('cnn')}: after one epoch the last layer is further from equivariant than the first",
        paired(deeper.loc[deeper["model"] == "cnn", "equivariance_error"].to_numpy(float)),
    )


def _of_layers(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    found = by_layer.by_net(inputs["by_layer"])
    for model in TYPES[:2]:
        own = found[found["model"] == model]
        errors = own[own["measure"] == "equivariance_error"].pivot_table("value", "seed", "layer")
        deeper = errors.iloc[:, -1] - errors.iloc[:, 0] if errors.size else pd.Series(dtype=float)
        yield (
            f"{name(model)}: the last conv layer is further from equivariant than the first",
            paired(deeper.to_numpy(float)),
        )
    for model in TYPES[:2]:
        own = found[(found["model"] == model) & (found["measure"] == "barrier_up_to")]
        barriers = own.pivot_table("value", "seed", "layer")
        half = (len(barriers.columns) + 1) // 2
        rest = (
            barriers.iloc[:, -1] - 2 * barriers.iloc[:, half - 1] if barriers.size else pd.Series(dtype=float)
        )
        yield (
            f"{name(model)}: the first half of the layers carries less than half of the barrier",
            paired(rest.to_numpy(float)),
        )


QUESTIONS = {
    "matchings": _of_matchings,
    "exact_gcnn": _of_exact_gcnns,
    "symmetries": _of_symmetries,
    "curves": _of_curves,
    "during_training": _of_training,
    "by_layer": _of_layers,
}
