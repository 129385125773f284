"""The claims beyond the paper (docs/beyond.md), each as a test on the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from relusym.findings import Inputs, Selection, Settings, Table, np, pd
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
from relusym.findings.frames import ok
from relusym.findings.layout import Layout
from relusym.findings.selection import OF_ALL_MEASURED, measured_types, net_notes
from relusym.findings.tables.claims import COLUMNS, FORMATS, by_model, judged, notes_on

LAYOUT = Layout("Beyond the paper: what was expected, tested", {"question": "Question", **COLUMNS}, FORMATS)


def select(settings: Settings) -> Selection:
    """`models`: ids of the types that are measured; `later`: those of `LATER` that are; notes."""
    models = measured_types(settings)
    later = [question for question in settings.measured if question in LATER]
    # how nets are merged differs between measurements: it is below their tables
    return {"models": models, "later": later, "notes": net_notes(settings, models, merged=False)}


SMALL = 0.01  # a negligible barrier, or difference in accuracy
FROM_IDENTITY = "weight_identity"  # the weight matching that the claims are about
THREE = 3  # nets per set; no net is in two sets
TYPES = "cnn", "cnn_inv", "cnn_late_inv"  # ordinary nets; GCNNs are exact already
Claim = tuple[str, Evidence]


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per claim: question (the target), then as in `claims.claims`, corrected for all of these."""
    tested = [
        {"question": question, "claim": claim, "source": "", **vars(evidence)}
        for question, claims in QUESTIONS.items()
        if question not in LATER or question in selection.get("later", ())
        for claim, evidence in claims(inputs, lambda model: selection["names"].get(model, model))
    ]
    return judged(pd.DataFrame(tested), count_untested=True)[[*LAYOUT.headings]]


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    first = "Not in the paper; written down before it was measured (docs/beyond.md)"
    return notes_on(inputs, selection, "all these claims", first)


def _on_matchings(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    merges = ok(matchings.by_merge(inputs))
    flips = merges[merges["model_2"] == ""].pivot_table("barrier", ["model_1", "seed"], "matching")
    flips = flips.reindex(columns=["activation", FROM_IDENTITY, "involution"])

    def less(first: str, second: str, model: str) -> np.ndarray:
        """The second matching's barrier minus the first's, one per net."""
        barriers = flips[flips.index.get_level_values("model_1") == model]
        return (barriers[second] - barriers[first]).dropna().to_numpy()

    for model in TYPES[:2]:
        claim = "activation matching gives a lower GCNN barrier than weight matching from the identity"
        yield f"{name(model)}: {claim}", paired(less("activation", FROM_IDENTITY, model))
    for model in TYPES[:2]:
        claim = f"{name(model)}: enforcing P² = 1 raises the GCNN barrier by less than {SMALL}"
        yield claim, paired(less("involution", "activation", model), SMALL)
    by_weight = merges[merges["matching"] == FROM_IDENTITY]
    start = "By weight matching from the identity too,"
    nets = by_weight[by_weight["model_2"] == ""]
    nets = nets.rename(columns={"model_1": "model", "barrier": "gcnn_barrier"})
    for model in TYPES[:2]:
        claim = f"{start} merging a {name(model)} with its flipped self has a lower barrier than two"
        yield claim, flipped_against_other(nets, by_weight[by_weight["model_2"] != ""], model)
    claim = f"{start} invariance loss lowers the GCNN barrier: {name('cnn_inv')} below {name('cnn')}"
    yield claim, is_higher(by_model(nets, "gcnn_barrier"), "cnn", "cnn_inv")


def _on_exact_gcnns(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    nets = ok(exact_gcnn.by_net(inputs["exact_gcnn"]))
    more = "its exact GCNN is more accurate than the net"
    at_most = f"its exact GCNN is at most {SMALL} less accurate than the net over both orientations"
    compared = {
        ("exact", "net"): (0.0, "the barrier is negative, its exact GCNN more accurate than the net"),
        ("exact_fine_tuned", "fine_tuned"): (0.0, f"with the same fine-tuning, {more}"),
        ("exact_fine_tuned", "fine_tuned_test_time"): (SMALL, f"fine-tuned, {at_most}"),
    }
    for (first, second), (margin, text) in compared.items():
        for model in TYPES:
            accuracies = nets[nets["model"] == model]
            gained = (accuracies[first] - accuracies[second]).dropna().to_numpy(float)
            yield f"{name(model)}: {text}", paired(gained, margin)
    claim = f"The mixture of a {name('cnn_inv')}, trained from scratch, is more accurate than the net"
    yield claim, is_higher(exact_gcnn.trained_apart(nets, "cnn_inv"), "from_scratch", "net")


def _on_symmetries(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    nets = ok(symmetries.by_net(inputs["symmetries"]))

    def barriers(model: str, symmetry: str) -> pd.Series:
        """Barriers by seed."""
        merged = nets[(nets["model"] == model) & (nets["symmetry"] == symmetry)]
        return merged.set_index("seed")["whole"].astype(float).dropna()

    shapes = {"horizontal_flip": "horizontal", "vertical_flip": "vertical", "quarter_turn": "turned"}
    words = {symmetry: symmetry.replace("_", " ") for symmetry in shapes}
    for symmetry, place in shapes.items():
        # a distribution that is invariant to turns isn't invariant to flips, and vice versa
        others = [barriers(f"shapes_{other}_noaug", symmetry) for other in shapes.values() if other != place]
        by_images = {"invariant": barriers(f"shapes_{place}_noaug", symmetry), "others": pd.concat(others)}
        claim = f"the barrier under the {words[symmetry]} is lower where the images are invariant to it"
        tested = is_higher(by_images, "others", "invariant")
        yield f"Generated shapes, no augmentation: {claim}", tested
    flipped, (_, *others) = barriers("cnn_noaug", "horizontal_flip"), shapes
    for symmetry in others:
        claim = f"the barrier under the horizontal flip is lower than under the {words[symmetry]}"
        more = (barriers("cnn_noaug", symmetry) - flipped).dropna().to_numpy()
        yield f"CIFAR10, no augmentation: {claim}", paired(more)
    for symmetry in others:
        by_loss = {loss: barriers(f"{shapes[symmetry]}_{loss}", symmetry) for loss in ("cnn", "inv")}
        claim = f"CIFAR10, {words[symmetry]}: invariance loss lowers the barrier"
        yield claim, is_higher(by_loss, "cnn", "inv")


def _on_curves(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    merged = ok(curves.by_curve(inputs["curves"]))
    merged = merged[merged["way"] == "repaired"]
    for model in TYPES[:2]:
        for other, whom in {"": "its flipped self", model: "another"}.items():
            lines = merged[(merged["model_1"] == model) & (merged["model_2"] == other)]
            seeds = lines[["seed", "seed_2"]].to_numpy(int) if other else None
            claim = f"From a {name(model)} to {whom}, the largest barrier is less than {SMALL} above the halfway one"
            yield claim, paired(-lines["excess"].to_numpy(float), SMALL, seeds)


def _on_training(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    by_layer = during_training.by_epoch(inputs["during_training"])
    nets = by_layer.drop_duplicates(["model", "seed", "epoch"]).set_index(["model", "seed"])
    early, last = nets.loc[nets["epoch"] == 1, "barrier"], nets.groupby(level=[0, 1])["barrier"].tail(1)
    early, less = (by_model(each.reset_index(), "barrier") for each in (early, early - last))
    for model in TYPES[:2]:
        claim = f"{name(model)}: the GCNN barrier is lower at the end of training than after the first epoch"
        yield claim, paired(less.get(model, []))
    claim = f"the GCNN barrier of a {name('cnn_inv')} is below that of a {name('cnn')}"
    yield f"After one epoch already, {claim}", is_higher(early, "cnn", "cnn_inv")
    errors = by_layer[by_layer["epoch"] == 1].groupby(["model", "seed"], sort=False)["equivariance_error"]
    deeper = by_model((errors.last() - errors.first()).reset_index(), "equivariance_error")
    claim = f"{name('cnn')}: after one epoch the last layer is further from equivariant than the first"
    yield claim, paired(deeper.get("cnn", []))


def _on_layers(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    measured = by_layer.by_net(inputs["by_layer"])

    def of_type(model: str, measure: str) -> np.ndarray:
        """The values of a type's nets, (nets, layers)."""
        values = measured[(measured["model"] == model) & (measured["measure"] == measure)]
        layers = values.pivot_table("value", "seed", "layer").to_numpy(float)
        return layers if layers.size else np.zeros((0, 1))

    for model in TYPES[:2]:
        errors = of_type(model, "equivariance_error")
        claim = f"{name(model)}: the last conv layer is further from equivariant than the first"
        yield claim, paired(errors[:, -1] - errors[:, 0])
    for model in TYPES[:2]:
        barriers = of_type(model, "barrier_up_to")
        half = (barriers.shape[1] + 1) // 2
        claim = f"{name(model)}: the first half of the layers carries less than half of the barrier"
        yield claim, paired(barriers[:, -1] - 2 * barriers[:, half - 1])


def _on_universes(inputs: Inputs, name: Callable[[str], str]) -> Iterator[Claim]:
    sets = ok(universe.by_set(inputs["universe"]))
    sets = sets[sets["count"] == THREE].astype({"universe": float, "pairwise": float})
    less = by_model(sets.assign(less=sets["pairwise"] - sets["universe"]), "less")

    def of_sets(evidence: Evidence) -> Evidence:
        """The same test; what it counts are sets of nets."""
        words = {key: getattr(evidence, key).replace("net", "set") for key in ("n", "remark")}
        return replace(evidence, **words)

    for model in TYPES[:2]:
        claim = "of three nets, one universe gives a lower barrier than matching each to the first"
        yield f"{name(model)}: {claim}", of_sets(paired(less.get(model, [])))
    claim = "Invariance loss lowers the barrier of three nets in one universe: "
    below = f"{name('cnn_inv')} below {name('cnn')}"
    yield claim + below, of_sets(is_higher(by_model(sets, "universe"), "cnn", "cnn_inv"))


QUESTIONS = {
    "matchings": _on_matchings,
    "exact_gcnn": _on_exact_gcnns,
    "symmetries": _on_symmetries,
    "curves": _on_curves,
    "during_training": _on_training,
    "by_layer": _on_layers,
    "universe": _on_universes,
}
# Registered after the others had been measured: a scale without them corrects for the others alone, as before.
LATER = {"universe"}
READS = ("flip_merge", "pair_merge", *(name for name in QUESTIONS if name != "matchings"))
NAMED = {"name": "beyond_claims", "order": len(QUESTIONS), **OF_ALL_MEASURED}
TABLE = Table(__name__, LAYOUT, reads=READS, select=select, **NAMED)
