"""As training goes on: is a net nearer to its flipped self than to another, and only if augmented? (docs/laptop.md)

D is the mean, over pairs of nets, of the pair's barrier minus the mean of its two nets' GCNN barriers.
"""

from __future__ import annotations

from relusym.findings import BEYOND, MERGES, Inputs, Selection, Settings, Table, frames, pd
from relusym.findings.evidence import higher_by_pairs, pair_differences, paired
from relusym.findings.layout import Layout
from relusym.findings.selection import net_notes
from relusym.findings.tables.claims import COLUMNS, FORMATS, correction, judged_beside

MODELS = [f"{kind}_{epochs}" for kind in ("cnn", "noaug") for epochs in (10, 30, 100)]
LAYOUT = Layout("As training goes on: nearer to the flipped self than to another net?", COLUMNS, FORMATS)


def select(settings: Settings) -> Selection:
    return {"models": MODELS, "notes": net_notes(settings, MODELS)}


TABLE = Table(
    __name__,
    LAYOUT,
    reads=MERGES,
    exists=lambda settings: {*MODELS} <= {*settings.models},
    select=select,
    section=BEYOND,
    order=9,
)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per claim, corrected for the four together; then, without claims, D of each type and length."""
    nets, pairs = map(frames.ok, (frames.nets(inputs), frames.pairs(inputs)))
    gaps = {model: pair_differences(nets, pairs, model) for model in MODELS}
    augmented, without = gaps["cnn_100"], gaps["noaug_100"]
    longer, larger = higher_by_pairs(augmented, gaps["cnn_10"]), higher_by_pairs(augmented, without)
    claims = {
        "After 100 epochs with augmentation, D > 0": paired(augmented[0], seeds=augmented[1]),
        "After 100 epochs without augmentation, D < 0": paired(-without[0], seeds=without[1]),
        "With augmentation, D is larger after 100 epochs than after 10": longer,
        "After 100 epochs, D is larger with augmentation than without": larger,
    }
    described = {
        f"D: {selection['names'].get(model, model)}": paired(differences, seeds=seeds)
        for model, (differences, seeds) in gaps.items()
    }
    return judged_beside(claims.items(), described.items())


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    return [
        "D: a pair's barrier less the mean of its two nets' GCNN barriers. Claims were written down before they "
        "were measured (docs/laptop.md)",
        f"{correction('the four claims')}. The effect of the claim that D < 0 is −D",
        *frames.notes(inputs, selection),
    ]
