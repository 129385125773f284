"""As training goes on: is a net nearer to its flipped self than to another, and only if augmented? (docs/laptop.md)

D is the mean over pairs of nets of a pair's barrier less the mean of its two nets' GCNN barriers.
"""

from __future__ import annotations

from dataclasses import replace

from relusym.findings import BEYOND, Inputs, Selection, Settings, Table, agreement, frames
from relusym.findings.evidence import Evidence, higher_by_pairs, pair_differences, paired
from relusym.findings.layout import Layout
from relusym.findings.lazy import pd
from relusym.findings.selection import net_notes
from relusym.findings.tables.claims import FORMATS, HEADINGS, LEVEL, judged

EPOCHS = 10, 30, 100
MODELS = [f"{kind}_{epochs}" for kind in ("cnn", "noaug") for epochs in EPOCHS]
LAYOUT = Layout(
    "As training goes on: nearer to the flipped self than to another net?",
    {column: text for column, text in HEADINGS.items() if column not in ("power", "source")},
    FORMATS,
)


def select(settings: Settings) -> Selection:
    """Models: ids of the types; notes."""
    return {"models": MODELS, "notes": net_notes(settings, MODELS)}


TABLE = Table(
    __name__,
    LAYOUT,
    reads=("train", "flip_merge", "pair_merge"),
    exists=lambda settings: {*MODELS} <= {*settings.models},
    select=select,
    section=BEYOND,
    order=9,
)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row a claim, corrected for the four together, then D of each type and length, which no claim is about."""
    nets, pairs = frames.nets(inputs), frames.pairs(inputs)
    nets, pairs = nets[nets["ok"]], pairs[pairs["ok"]]
    gaps = {model: pair_differences(nets, pairs, model) for model in MODELS}
    with_augmentation, without = gaps["cnn_100"], gaps["noaug_100"]
    claims = {
        "After 100 epochs with augmentation, D > 0": paired(with_augmentation[0], seeds=with_augmentation[1]),
        "After 100 epochs without augmentation, D < 0": paired(-without[0], seeds=without[1]),
        "With augmentation, D is larger after 100 epochs than after 10": higher_by_pairs(
            with_augmentation, gaps["cnn_10"]
        ),
        "After 100 epochs, D is larger with augmentation than without": higher_by_pairs(
            with_augmentation, without
        ),
    }
    described = {
        f"D: {selection['names'].get(model, model)}": _described(paired(differences, seeds=seeds))
        for model, (differences, seeds) in gaps.items()
    }
    rows = [{"claim": text, **vars(evidence)} for text, evidence in (claims | described).items()]
    return pd.concat([judged(pd.DataFrame(rows[:4]), count_untested=True), pd.DataFrame(rows[4:])])[
        [*LAYOUT.headings]
    ]


def _described(evidence: Evidence) -> Evidence:
    """Mean and interval alone: nothing is claimed."""
    return replace(evidence, p_value=float("nan"), p_rank=float("nan"), p_rank_min=float("nan"))


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    return [
        "D: a pair's barrier less the mean of its two nets' GCNN barriers. Claims were written down before they "
        "were measured (docs/laptop.md)",
        "p is two-sided, corrected for the four claims together after Benjamini and Hochberg. Held or did not hold: "
        f"corrected p below {LEVEL}; inconclusive: above. The effect of the claim that D < 0 is −D",
        *agreement.notes(inputs, selection),
    ]
