"""What is expected beyond the paper (docs/beyond.md), each as a test on the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from relusym.findings import BEYOND, Inputs, Selection, Settings, Table, frames, np, pd
from relusym.findings.beyond import (
    by_layer,
    curves,
    during_training,
    exact_gcnn,
    matchings,
    symmetries,
    universe,
)
from relusym.findings.evidence import Evidence, flipped_against_other, is_higher, paired
from relusym.findings.layout import Layout
from relusym.findings.selection import measured_types, net_notes, of_every_matching
from relusym.findings.tables.claims import COLUMNS, FORMATS, LEVEL, judged

LAYOUT = Layout("Beyond the paper: what was expected, tested", {"question": "Question", **COLUMNS}, FORMATS)


def select(settings: Settings) -> Selection:
    """Models: ids of the types that are measured; which of `LATER` are; notes."""
    models = measured_types(settings)
    later = [question for question in settings.measured if question in LATER]
    return {"models": models, "later": later, "notes": net_notes(settings, models)}


SMALL = 0.01  # a barrier, or an accuracy, that is of no account
FROM_IDENTITY = "weight_identity"  # the weight matching that the claims were written of
THREE = 3  # nets a set, no net in two sets
TYPES = "cnn", "cnn_inv", "cnn_late_inv"  # ordinary nets; GCNNs are exact already
Claim = tuple[str, Evidence]


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row a claim: question (the target), and as in `claims.claims`, corrected for all of these."""
    tested = [
        {"question": question, "claim": claim, "source": "", **vars(evidence)}
        for question, claims in QUESTIONS.items()
        if question not in LATER or question in selection.get("later", ())
        for claim, evidence in claims(inputs, lambda model: selection["names"].get(model, model))
    ]
    return judged(pd.DataFrame(tested), count_untested=True)[[*LAYOUT.headings]]


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    return [
        "Not in the paper; written down before it was measured (docs/beyond.md)",
        f"p is two-sided; corrected for all these claims together after Benjamini and Hochberg. Held or did not hold: "
        f"corrected p below {LEVEL}, or, where all nets are equal, their mean, whatever p is; inconclusive: above",
        *frames.notes(inputs, selection),
    ]


def _on_matchings(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    merges = matchings.by_merge({kind: inputs[kind] for kind in ("flip_merge", "pair_merge")})
    merges = merges[merges["ok"].astype(bool)]
    flips = merges[merges["model_2"] == ""].pivot_table("barrier", ["model_1", "seed"], "matching")
    flips = flips.reindex(columns=["activation", FROM_IDENTITY, "involution"])

    def less(first: str, second: str, model: str) -> np.ndarray:
        """By how much the first matching's barrier is lower, a number a net."""
        barriers = flips[flips.index.get_level_values("model_1") == model]
        return (barriers[second] - barriers[first]).dropna().to_numpy()

    for model in TYPES[:2]:
        claim = f"{name(model)}: activation matching gives a lower GCNN barrier than weight matching from the identity"
        yield claim, paired(less("activation", FROM_IDENTITY, model))
    for model in TYPES[:2]:
        claim = f"{name(model)}: enforcing P² = 1 raises the GCNN barrier by less than {SMALL}"
        yield claim, paired(less("involution", "activation", model), SMALL)
    by_weight = merges[merges["matching"] == FROM_IDENTITY]
    nets = by_weight[by_weight["model_2"] == ""]
    nets = nets.rename(columns={"model_1": "model", "barrier": "gcnn_barrier"})
    for model in TYPES[:2]:
        claim = (
            f"By weight matching from the identity too, merging a {name(model)} with its flipped self has a lower "
            "barrier than two"
        )
        yield claim, flipped_against_other(nets, by_weight[by_weight["model_2"] != ""], model)
    barriers = {model: group.to_numpy() for model, group in nets.groupby("model")["gcnn_barrier"]}
    claim = (
        "By weight matching from the identity too, invariance loss lowers the GCNN barrier: "
        f"{name('cnn_inv')} below {name('cnn')}"
    )
    yield claim, is_higher(barriers, "cnn", "cnn_inv")


def _on_exact_gcnns(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    nets = exact_gcnn.by_net(inputs["exact_gcnn"])
    nets = nets[nets["ok"].astype(bool)]
    both = "fine_tuned_test_time"
    compared = {
        ("exact", "net"): "the barrier is negative, its exact GCNN more accurate than the net",
        (
            "exact_fine_tuned",
            "fine_tuned",
        ): "with the same fine-tuning, its exact GCNN is more accurate than the net",
        (
            "exact_fine_tuned",
            both,
        ): f"fine-tuned, its exact GCNN is at most {SMALL} less accurate than the net over both orientations",
    }
    for (first, second), text in compared.items():
        for model in TYPES:
            accuracies = nets[nets["model"] == model]
            gained = (accuracies[first] - accuracies[second]).dropna().to_numpy(float)
            yield f"{name(model)}: {text}", paired(gained, SMALL if second == both else 0.0)
    claim = f"The mixture of a {name('cnn_inv')}, trained from scratch, is more accurate than the net"
    yield claim, is_higher(exact_gcnn.trained_apart(nets, "cnn_inv"), "from_scratch", "net")


def _on_symmetries(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    nets = symmetries.by_net(inputs["symmetries"])
    nets = nets[nets["ok"].astype(bool)]

    def by_seed(model: str, symmetry: str) -> pd.Series:
        barriers = nets[(nets["model"] == model) & (nets["symmetry"] == symmetry)]
        return barriers.set_index("seed")["whole"].astype(float).dropna()

    def barriers(model: str, symmetry: str) -> np.ndarray:
        return by_seed(model, symmetry).to_numpy()

    shapes = {"horizontal_flip": "horizontal", "vertical_flip": "vertical", "quarter_turn": "turned"}
    for symmetry, place in shapes.items():
        # a distribution that turns leave as it is isn't left so by flips, and the other way round
        others = [barriers(f"shapes_{other}_noaug", symmetry) for other in shapes.values() if other != place]
        invariant = barriers(f"shapes_{place}_noaug", symmetry)
        claim = (
            f"Generated shapes, no augmentation: the barrier under the {symmetry.replace('_', ' ')} is lower where the "
            "images are invariant to it"
        )
        yield (
            claim,
            is_higher({"invariant": invariant, "others": np.concatenate(others)}, "others", "invariant"),
        )
    flipped = by_seed("cnn_noaug", "horizontal_flip")
    for symmetry in ("vertical_flip", "quarter_turn"):
        claim = (
            f"CIFAR10, no augmentation: the barrier under the horizontal flip is lower than under the "
            f"{symmetry.replace('_', ' ')}"
        )
        yield claim, paired((by_seed("cnn_noaug", symmetry) - flipped).dropna().to_numpy())
    for symmetry, prefix in {"vertical_flip": "vertical", "quarter_turn": "turned"}.items():
        by_type = {kind: barriers(f"{prefix}_{kind}", symmetry) for kind in ("cnn", "inv")}
        claim = f"CIFAR10, {symmetry.replace('_', ' ')}: invariance loss lowers the barrier"
        yield claim, is_higher(by_type, "cnn", "inv")


def _on_curves(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    merged = curves.by_curve(inputs["curves"])
    merged = merged[merged["ok"].astype(bool) & (merged["way"] == "repaired")]
    for model in TYPES[:2]:
        for other, whom in {"": "its flipped self", model: "another"}.items():
            lines = merged[(merged["model_1"] == model) & (merged["model_2"] == other)]
            seeds = lines[["seed", "seed_2"]].to_numpy(int) if other else None
            claim = f"From a {name(model)} to {whom}, the largest barrier is less than {SMALL} above the halfway one"
            yield claim, paired(-lines["excess"].to_numpy(float), SMALL, seeds)


def _on_training(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    by_layer = during_training.by_epoch(inputs["during_training"])
    nets = by_layer.drop_duplicates(["model", "seed", "epoch"])
    by_epoch = nets.pivot_table("barrier", ["model", "seed"], "epoch")
    early = 1 if 1 in by_epoch.columns else None
    barriers = pd.DataFrame(columns=["early", "last"])
    if early:
        barriers = by_epoch.loc[:, [early, by_epoch.columns.max()]].set_axis(["early", "last"], axis=1)

    def of_type(model: str) -> pd.DataFrame:
        return barriers[barriers.index.get_level_values(0) == model] if len(barriers) else barriers

    for model in TYPES[:2]:
        claim = f"{name(model)}: the GCNN barrier is lower at the end of training than after the first epoch"
        yield claim, paired((of_type(model)["early"] - of_type(model)["last"]).dropna().to_numpy(float))
    claim = (
        f"After one epoch already, the GCNN barrier of a {name('cnn_inv')} is below that of a {name('cnn')}"
    )
    yield (
        claim,
        is_higher({model: of_type(model)["early"].to_numpy(float) for model in TYPES[:2]}, "cnn", "cnn_inv"),
    )
    errors = by_layer[by_layer["epoch"] == early].groupby(["model", "seed"], sort=False)["equivariance_error"]
    deeper = (errors.last() - errors.first()).reset_index()
    claim = f"{name('cnn')}: after one epoch the last layer is further from equivariant than the first"
    yield claim, paired(deeper.loc[deeper["model"] == "cnn", "equivariance_error"].to_numpy(float))


def _on_layers(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    measured = by_layer.by_net(inputs["by_layer"])

    def of_type(model: str, measure: str) -> pd.DataFrame:
        """A row a net, a column a layer."""
        values = measured[(measured["model"] == model) & (measured["measure"] == measure)]
        return values.pivot_table("value", "seed", "layer")

    for model in TYPES[:2]:
        errors = of_type(model, "equivariance_error")
        deeper = errors.iloc[:, -1] - errors.iloc[:, 0] if errors.size else pd.Series(dtype=float)
        claim = f"{name(model)}: the last conv layer is further from equivariant than the first"
        yield claim, paired(deeper.to_numpy(float))
    for model in TYPES[:2]:
        barriers = of_type(model, "barrier_up_to")
        half, rest = (len(barriers.columns) + 1) // 2, pd.Series(dtype=float)
        if barriers.size:
            rest = barriers.iloc[:, -1] - 2 * barriers.iloc[:, half - 1]
        claim = f"{name(model)}: the first half of the layers carries less than half of the barrier"
        yield claim, paired(rest.to_numpy(float))


def _on_universes(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    sets = universe.by_set(inputs["universe"])
    sets = sets[sets["ok"].astype(bool) & (sets["count"] == THREE)].astype(
        {"universe": float, "pairwise": float}
    )
    for model in TYPES[:2]:
        of_type = sets[sets["model"] == model]
        yield (
            f"{name(model)}: of three nets, one universe gives a lower barrier than matching each to the first",
            paired((of_type["pairwise"] - of_type["universe"]).dropna().to_numpy()),
        )
    barriers = {model: group.dropna().to_numpy() for model, group in sets.groupby("model")["universe"]}
    yield (
        f"Invariance loss lowers the barrier of three nets in one universe: {name('cnn_inv')} below {name('cnn')}",
        is_higher(barriers, "cnn", "cnn_inv"),
    )


QUESTIONS = {
    "matchings": _on_matchings,
    "exact_gcnn": _on_exact_gcnns,
    "symmetries": _on_symmetries,
    "curves": _on_curves,
    "during_training": _on_training,
    "by_layer": _on_layers,
    "universe": _on_universes,
}
# Written down when others were measured: a scale without them corrects for the others alone, as it did.
LATER = {"universe"}
TABLE = Table(
    __name__,
    LAYOUT,
    name="beyond_claims",
    reads=("flip_merge", "pair_merge", *(name for name in QUESTIONS if name != "matchings")),
    exists=lambda settings: settings.measured,
    select=select,
    keys=of_every_matching,
    section=BEYOND,
    order=len(QUESTIONS),
)
