"""The claims in the paper's text, each as a test on the records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from relusym import paper_values
from relusym.findings import COMPARISON, MERGES, Inputs, Selection, Settings, Table, frames, np, pd, stats
from relusym.findings.evidence import (
    HELD,
    NOT_HELD,
    OPEN,
    UNTESTED,
    Evidence,
    flipped_against_other,
    is_higher,
    is_highest,
    most_have_order_two,
    rank_correlation_of_types,
    some_have_a_higher_order,
)
from relusym.findings.frames import count_zero_filters
from relusym.findings.layout import Layout
from relusym.findings.power import Spread, nets_needed, rank_correlation
from relusym.findings.selection import net_notes
from relusym.findings.tables.comparison import LOSS, RESNET_LOSS

HEADINGS = {  # all columns, in their order
    "claim": "Claim",
    "verdict": "Verdict",
    "effect": "Effect",
    "low": "95% interval, from",
    "high": "to",
    "n": "n",
    "power": "Power for the paper's effect",
    "nets_needed": "Nets of a type that would settle it",
    "test": "Test",
    "p_value": "p",
    "p_corrected": "p, corrected",
    "effect_size": "Effect size",
    "measure": "Measure",
    "p_rank": "p of a rank test",
    "p_rank_min": "Least p of a rank test",
    "source": "Where in the paper",
    "remark": "Remark",
}
# of claims that aren't the paper's
COLUMNS = {column: text for column, text in HEADINGS.items() if column not in ("power", "source")}
FORMATS = {
    **dict.fromkeys(("effect", "low", "high"), "{:+.3g}"),
    "power": "{:.2f}",
    "nets_needed": lambda n: f"{n:.0f}" if math.isfinite(n) else "over 1,000",
    "effect_size": "{:+.2f}",
    **dict.fromkeys(("p_value", "p_corrected", "p_rank", "p_rank_min"), "{:.2g}"),
}
LAYOUT = Layout("The paper's claims, tested", HEADINGS, FORMATS)
LEVEL = 0.05  # of the corrected p-values
FEW = 10  # nets of a type; with fewer, few claims can be settled


def select(settings: Settings) -> Selection:
    """Models; `rows`: ids of ResNets by the row of the paper's Table 5 they are compared with; zero_filter; notes."""
    vgg11s = settings.table("table2")
    rows = {row: model for model in settings.table("table5") if (row := settings.paper_row(model))}
    papers = [model for model in vgg11s if model in paper_values.vgg11s()]
    models = [*(papers or vgg11s), *rows.values()]
    zero_filter = settings.sections.filters.zero_filter
    notes = net_notes(settings, models, invariance=True)
    return {"models": models, "rows": rows, "zero_filter": zero_filter, "notes": notes}


TABLE = Table(__name__, LAYOUT, reads=(*MERGES, "filters"), select=select, section=COMPARISON, order=1)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """The table of `claims`, with the zero-filters counted in the arrays of filters."""
    zero_filters = count_zero_filters(inputs["filters"], selection["zero_filter"])
    return claims(inputs, zero_filters, selection["names"], selection.get("rows"))


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    most = frames.ok(frames.nets(inputs))["model"].value_counts().max()
    few = (
        f"With so few nets ({most} of a type; the paper has 18 to 24) most claims are bound to be inconclusive, which "
        "says nothing against them"
    )
    return [
        correction("all claims"),
        "Power: the probability that as many nets as here settle the claim, at the level that the correction "
        "requires, if their means and spreads are the paper's. It is empty where the paper gives no number or a count "
        "settles the claim; for ResNets, of which the paper has one each, the spread is that observed here. Nets that "
        "would settle it: with a power of 0.8, for the effect and spread observed here",
        "t-tests assume that the nets of a type are normally distributed. A rank test doesn't, but with few nets its "
        "p can't be small; the least that it can be is beside it. It decides only where the nets of each type are all "
        "equal",
        *([few] if most < FEW else []),
        *frames.notes(inputs, selection),
    ]


def notes_on(inputs: Inputs, selection: Selection, which: str, first: str, *more: str) -> list[str]:
    """The notes on claims beyond the paper, some of which have a margin; `which`: those corrected together."""
    where_equal = ", or, where all nets are equal, their mean, whatever p is"
    return [first, correction(which, where_equal), *more, *frames.notes(inputs, selection)]


def correction(which: str, or_where: str = "") -> str:
    """The note on p-values and verdicts; `which`: the claims that are corrected together."""
    return (
        f"p is two-sided; corrected for {which} together after Benjamini and Hochberg. Held or did not hold: "
        f"corrected p below {LEVEL}{or_where}; inconclusive: above"
    )


def claims(
    inputs: Inputs,
    zero_filters: pd.DataFrame,
    names: Mapping[str, str],
    rows: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The paper's claims, tested; those about ResNets if there are any.

    One row per claim, as `HEADINGS`: effect with its 95% interval (low, high); power for the paper's effect and spread,
    at the level that the correction requires; nets_needed of a type, for the effect and spread observed here, if the
    claim is inconclusive; p_value (two-sided); p_corrected (Benjamini–Hochberg over all claims; some share nets, whose
    effect on its level is in docs/comparison.md). The verdict is "held" or "did not hold" if p_corrected is below 0.05,
    by the effect's direction, else "inconclusive"; "cannot be tested here" if nets or measurements are missing.
    UserError as in `frames.nets` and `pairs`.

    Args:
        zero_filters: one row per net and layer: model, seed, layer, zero_filters (a count).
        names, rows: names of types by id; ids of ResNets by the row of the paper's Table 5 they are compared with.
    """
    tested = [
        {"claim": claim, "source": source, **vars(evidence)}
        for claim, source, evidence in _evidence(inputs, zero_filters, names, rows or {})
    ]
    return judged(pd.DataFrame(tested))[[*HEADINGS]]


def _evidence(
    inputs: Inputs, zero_filters: pd.DataFrame, names: Mapping[str, str], rows: Mapping[str, str]
) -> Iterator[tuple[str, str, Evidence]]:
    nets, merged = map(frames.ok, (frames.nets(inputs), frames.pairs(inputs)))
    vgg11s = paper_values.vgg11s()
    resnets = nets[nets["model"].isin([model for row, model in rows.items() if row not in vgg11s])]
    nets = nets[nets["model"].isin(vgg11s)]  # the claims are about no other types
    rows = {model: model for model in vgg11s} | dict(rows)
    named = {row: names.get(model, model) for row, model in rows.items()}

    def easier(row: str) -> str:
        return f"Merging a {named[row]} with its flipped self has a lower barrier than merging two of them"

    def lowers(with_loss: str, without: str) -> str:
        return f"Invariance loss lowers the GCNN barrier: {named[with_loss]} below {named[without]}"

    errors, barriers, accuracies = (
        _spreads(2, "model", quantity) for quantity in ("invariance_error", "gcnn_barrier", "accuracy")
    )
    pairs = _spreads(4, ["model_1", "model_2"], "barrier")
    for model in ("cnn", "cnn_inv", "gcnn"):
        tested = flipped_against_other(nets, merged, model, (pairs[model, model], barriers[model]))
        yield easier(model), "Section 4.1, Tables 2 and 4", tested
    power_paper = rank_correlation(errors, barriers)
    tested = rank_correlation_of_types(nets, "invariance_error", "gcnn_barrier", power_paper)
    yield "Types with a lower invariance error have a lower GCNN barrier", "Section 4.1, Table 2", tested
    barrier, accuracy = by_model(nets, "gcnn_barrier"), by_model(nets, "accuracy")
    for pair in LOSS:
        lower = is_higher(barrier, *reversed(pair), paper=barriers)
        yield lowers(*pair), "Sections 4.1 and 5, Table 2", lower
    margin = lost_by_early_invariance_loss()
    for with_loss, without in LOSS[1:]:
        claim = f"Late invariance loss keeps accuracy: {named[with_loss]} at most {margin:.3f} below {named[without]}"
        yield claim, "Table 2", is_higher(accuracy, with_loss, without, margin, accuracies)
    best = "pgcnn_late_inv"
    yield f"{named[best]} is the most accurate type", "Table 2", is_highest(accuracy, best, names, accuracies)
    claim = f"A {named['gcnn']} has more zero-filters than a {named['cnn']}"
    counts = zero_filters.groupby(["model", "seed"])["zero_filters"].sum().reset_index()
    more = is_higher(by_model(counts, "zero_filters"), "gcnn", "cnn")
    yield claim, "Appendix A.1, Figures 6 and 8", more
    flips = (record for record in inputs["flip_merge"] if record["status"] == "ok")
    gcnns = [record for record in flips if record["model"] == "gcnn"]
    orders = f"{named['gcnn']} channels found by matching have order at most 2"
    yield f"Most {orders}", "Section 4.1, Figure 4", most_have_order_two(gcnns)
    yield f"Not all {orders}", "Section 4.1, Figure 4", some_have_a_higher_order(gcnns)
    for row in chain(*zip(*RESNET_LOSS, strict=True)):
        if row in rows:
            tested = flipped_against_other(resnets, merged, rows[row])
            yield easier(row), "Section 4.2, Table 5", tested
    barrier, spread = by_model(resnets, "gcnn_barrier"), resnets.groupby("model")["gcnn_barrier"].std()
    in_paper = paper_values.table(5).set_index("method")["gcnn_barrier"]
    for pair in (pair for pair in RESNET_LOSS if {*pair} <= {*rows}):
        # the paper has one net of each: its effect, with the spread observed here
        paper = {rows[row]: (float(in_paper[row]), spread.get(rows[row], math.nan)) for row in pair}
        lower = is_higher(barrier, *(rows[row] for row in reversed(pair)), paper=paper)
        yield lowers(*pair), "Section 4.2, Table 5", lower


def judged(claims: pd.DataFrame, count_untested: bool = False) -> pd.DataFrame:
    """The claims with p_corrected, verdict, power and nets_needed; `count_untested`: correct for untested ones too."""
    tested = claims["p_value"].notna()
    number = len(claims) if count_untested else int(tested.sum())
    claims["p_corrected"] = np.nan
    if tested.any():
        p = np.append(claims.loc[tested, "p_value"], np.ones(number - tested.sum()))
        claims.loc[tested, "p_corrected"] = stats.false_discovery_control(p, method="bh")[: tested.sum()]
    claims["verdict"] = [_verdict(row) for _, row in claims.iterrows()]
    settled = int((claims["p_corrected"] < LEVEL).sum())
    claims["power"], claims["nets_needed"] = math.nan, math.nan
    for i, row in claims[tested].iterrows():
        is_open = row["verdict"] == OPEN
        level = LEVEL * (settled + is_open) / number  # the bound on p if one more claim is settled
        if row["power_paper"]:
            claims.loc[i, "power"] = row["power_paper"](row["nets"], level)
        if is_open and row["power_observed"]:
            claims.loc[i, "nets_needed"] = nets_needed(row["power_observed"], level)
    return claims


def judged_beside(
    claims: Iterable[tuple[str, Evidence]], described: Iterable[tuple[str, Evidence]]
) -> pd.DataFrame:
    """The claims, all corrected together; then, without claims, means with their intervals."""
    tested, others = (
        [{"claim": text, **vars(evidence)} for text, evidence in rows] for rows in (claims, described)
    )
    judgements = judged(pd.DataFrame(tested), count_untested=True)
    rows = pd.DataFrame(others, columns=judgements.columns).assign(measure="")
    rows[["effect_size", "p_value", "p_rank", "p_rank_min"]] = math.nan
    return pd.concat([judgements, rows])[[*COLUMNS]]


def _spreads(number: int, key: str | list[str], quantity: str) -> dict[Any, Spread]:
    """The paper's means and standard deviations in one of its tables."""
    table = paper_values.table(number).set_index(key)
    return {
        row: (mean, std) for row, mean, std in table[[f"{quantity}_mean", f"{quantity}_std"]].itertuples()
    }


def by_model(nets: pd.DataFrame, quantity: str) -> dict[str, np.ndarray]:
    """The values of a quantity over each type's nets, without NaN, float64."""
    return {model: group.dropna().to_numpy(float) for model, group in nets.groupby("model")[quantity]}


def _verdict(row: pd.Series) -> str:
    if row["settled"]:
        return row["settled"]
    if pd.isna(row["p_value"]):
        return UNTESTED
    if row["p_corrected"] >= LEVEL:
        return OPEN
    return HELD if row["direction"] > 0 else NOT_HELD


def lost_by_early_invariance_loss() -> float:
    """The accuracy that invariance loss from the start costs in the paper's Table 2: the limit for late loss."""
    accuracy = paper_values.table(2).set_index("model")["accuracy_mean"]
    return float(accuracy["cnn"] - accuracy["cnn_inv"])
