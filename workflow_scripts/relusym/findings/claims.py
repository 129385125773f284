"""What the paper says in words of VGG11 nets, each as a test on the records.

about: models (ids of the VGG11 types), names, zero_filter (a share, see `filters.are_zero`), notes.
"""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd
from scipy import stats

from relusym import paper_values
from relusym.findings import About, Inputs, frames, origins
from relusym.findings.evidence import (
    HELD,
    NOT_HELD,
    OPEN,
    UNTESTED,
    Evidence,
    flipped_against_other,
    is_higher,
    is_highest,
    more_zero_filters,
    most_have_order_two,
    rank_correlation_of_types,
    some_have_a_higher_order,
)
from relusym.findings.filters import count_zero_filters
from relusym.findings.layout import Layout
from relusym.findings.ratios import LOSS

LAYOUT = Layout(
    "The paper's claims, tested",
    {
        "claim": "Claim",
        "verdict": "Verdict",
        "effect": "Effect",
        "effect_size": "Effect size",
        "measure": "Measure",
        "test": "Test",
        "p_value": "p",
        "p_corrected": "p, corrected",
        "p_rank": "p of a rank test",
        "p_rank_min": "Least p of a rank test",
        "source": "Where in the paper",
        "remark": "Remark",
    },
    {
        "effect": "{:+.3g}",
        "effect_size": "{:+.2f}",
        **dict.fromkeys(("p_value", "p_corrected", "p_rank", "p_rank_min"), "{:.2g}"),
    },
)
LEVEL = 0.05  # of the corrected p-values
COLUMNS = ["claim", "verdict", "effect", "effect_size", "measure", "n", "test"]
COLUMNS += ["p_value", "p_corrected", "p_rank", "p_rank_min", "source", "remark"]


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """As `claims`, with the zero-filters counted in the arrays of filters."""
    return claims(inputs, count_zero_filters(inputs["filters"], about["zero_filter"]), about["names"])


def notes(inputs: Inputs, about: About) -> list[str]:
    return [
        "p is two-sided; corrected for all claims together after Benjamini and Hochberg. Held or did not hold: "
        f"corrected p below {LEVEL}; inconclusive: above",
        "t-tests take the nets of a type to be normally distributed. A rank test doesn't, but with few nets it "
        "can't come to a small p: the least that it can come to stands beside it. It decides only where all nets "
        "of a type are equal",
        *origins.notes(inputs, about),
    ]


def claims(inputs: Inputs, zero_filters: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The paper's claims about VGG11 nets, tested.

    Args:
        inputs: train, flip_merge and pair_merge records.
        zero_filters: one row a net and layer: model, seed, layer, zero_filters (how many).

    Returns:
        One row a claim: claim, verdict, effect, effect_size with its measure, n, test, p_value (two-sided), p_corrected
        (Benjamini–Hochberg over all claims; some share nets, see docs/comparison.md for what that does to its level),
        p_rank and p_rank_min (see `Evidence`), source (where the paper says it) and remark. The verdict is "held"
        or "did not hold" if p_corrected is below 0.05, by the effect's direction, else "inconclusive"; "cannot be
        tested here" if nets or measurements are missing.

    Raises:
        UserError: an ok record lacks a measurement (named), is given twice, or doesn't go with the others.
    """
    nets, merged = (found[found["ok"]] for found in (frames.nets(inputs), frames.pairs(inputs)))
    named = {model: names.get(model, model) for model in paper_values.table(2)["model"]}
    nets = nets[nets["model"].isin(named)]  # the claims are about no other types
    rows = []

    def say(claim: str, source: str, evidence: Evidence) -> None:
        rows.append({"claim": claim, "source": source, **asdict(evidence)})

    for model in ("cnn", "cnn_inv", "gcnn"):
        say(
            f"Merging a {named[model]} with its flipped self has a lower barrier than merging two of them",
            "Section 4.1, Tables 2 and 4",
            flipped_against_other(nets, merged, model),
        )
    say(
        "Types with a lower invariance error have a lower GCNN barrier",
        "Section 4.1, Table 2",
        rank_correlation_of_types(nets, "invariance_error", "gcnn_barrier"),
    )
    barrier, accuracy = (
        {model: group.to_numpy() for model, group in nets.groupby("model")[quantity]}
        for quantity in ("gcnn_barrier", "accuracy")
    )
    for with_loss, without in LOSS:
        say(
            f"Invariance loss lowers the GCNN barrier: {named[with_loss]} below {named[without]}",
            "Sections 4.1 and 5, Table 2",
            is_higher(barrier, without, with_loss),
        )
    margin = lost_by_early_invariance_loss()
    for with_loss, without in LOSS[1:]:
        say(
            f"Late invariance loss keeps accuracy: {named[with_loss]} at most {margin:.3f} below {named[without]}",
            "Table 2",
            is_higher(accuracy, with_loss, without, margin),
        )
    best = "pgcnn_late_inv"
    say(f"{named[best]} is the most accurate type", "Table 2", is_highest(accuracy, best, names))
    say(
        f"A {named['gcnn']} has more zero-filters than a {named['cnn']}",
        "Appendix A.1, Figures 6 and 8",
        more_zero_filters(zero_filters, "gcnn", "cnn"),
    )
    gcnns = [record for record in inputs["flip_merge"] if record["model"] == "gcnn"]
    ordered = [record for record in gcnns if record["status"] == "ok"]
    say(
        f"Most {named['gcnn']} channels found by matching have order at most 2",
        "Section 4.1, Figure 4",
        most_have_order_two(ordered),
    )
    say(
        f"Not all {named['gcnn']} channels found by matching have order at most 2",
        "Section 4.1, Figure 4",
        some_have_a_higher_order(ordered),
    )

    found = pd.DataFrame(rows)
    tested = found["p_value"].notna()
    found["p_corrected"] = np.nan
    if tested.any():
        corrected = stats.false_discovery_control(found.loc[tested, "p_value"], method="bh")
        found.loc[tested, "p_corrected"] = corrected
    found["verdict"] = [_verdict(row) for _, row in found.iterrows()]
    return found[COLUMNS]


def _verdict(row: pd.Series) -> str:
    if row["settled"]:
        return row["settled"]
    if pd.isna(row["p_value"]):
        return UNTESTED
    if row["p_corrected"] >= LEVEL:
        return OPEN
    return HELD if row["direction"] > 0 else NOT_HELD


def lost_by_early_invariance_loss() -> float:
    """What invariance loss from the start costs in accuracy in the paper's Table 2: the most that late loss may."""
    accuracy = paper_values.table(2).set_index("model")["accuracy_mean"]
    return float(accuracy["cnn"] - accuracy["cnn_inv"])
