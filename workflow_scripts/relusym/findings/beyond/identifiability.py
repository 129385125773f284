"""Is a layerwise-equivariant net forced? Barriers by activation, with redundant channels, and of two towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from relusym.beyond.identifiability import LARGER_GROUP
from relusym.findings import Drawing, Figure, Inputs, Record, Selection, Table, pd
from relusym.findings.evidence import Evidence, is_higher, paired
from relusym.findings.frames import in_order
from relusym.findings.layout import Layout
from relusym.findings.print_style import empty_drawing, label_rows, legend_above, lines, panels_of
from relusym.findings.selection import beyond
from relusym.findings.tables.claims import COLUMNS, FORMATS, judged_beside, notes_on

SMALL = 0.01  # a negligible barrier
CLOSE = 0.05  # between types, whose barriers vary more
VARIANTS = {
    "activation": "permutations",
    "scaled_activation": "permutations and scales",
    "signed_activation": "permutations and signs",
    "pruned": "without dead channels",
    "silent": "with silent channels",
    "silent_reduced": "with silent channels, pruned",
    "unread": "with unread channels",
    "unread_reduced": "with unread channels, pruned",
    "duplicated": "some channels twice",
    "duplicated_reduced": "some channels twice, merged back",
    "split": "all channels twice",
    "split_reduced": "all channels twice, merged back",
    "towers": "two towers that may swap",
    "towers_apart": "two towers, each by itself",
}
LAYOUT = Layout("Identifiability: the barrier, by what channels are matched over", COLUMNS, FORMATS)
DECLARED = beyond("identifiability", order=8)
TABLE = Table(__name__, LAYOUT, **DECLARED)
FIGURE = Figure(__name__, name="identifiability_figure", csvs=(".csv",), **DECLARED)
KEY = ["model", "seed", "variant"]
TYPES = {"relu": "relu", "leaky": "leaky_relu", "gelu": "gelu", "tanh": "tanh"}
MEASURED = "similarity", "channels", "negative", "spread", "gone"
QUANTITIES = ["barrier", "barrier_no_repair", "accuracy", *MEASURED, "invariance_error"]
# by type of net, the matching over its activation's group
ACTIVATIONS = {type_: LARGER_GROUP.get(activation, "activation") for type_, activation in TYPES.items()}
Claim = tuple[str, Evidence]


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row per variant of each net that is ok: `KEY` and `QUANTITIES`; the accuracy is the net's."""
    rows = [
        {key: record[key] for key in ("model", "seed", "invariance_error")}
        | {quantity: measured[quantity] for quantity in MEASURED}
        | {"variant": name, "accuracy": measured["accuracy"]["net"]}
        | {"barrier": measured["barrier"]["repaired"], "barrier_no_repair": measured["barrier"]["halfway"]}
        for record in records
        if record["status"] == "ok"
        for name, measured in record["variants"].items()
    ]
    return pd.DataFrame(rows, columns=[*KEY, *QUANTITIES])


def claims(nets: pd.DataFrame, name: Callable[[str], str]) -> Iterator[Claim]:
    by_variant = nets.pivot_table("barrier", ["model", "seed"], "variant").reindex(columns=[*VARIANTS])

    def barriers_of(model: str, variant: str) -> pd.Series:
        """Barriers of a type's nets, by seed."""
        barriers = by_variant[variant].astype(float)
        return barriers[barriers.index.get_level_values("model") == model].droplevel("model").dropna()

    def above(model: str, high: str, low: str = "activation", margin: float = 0.0) -> Evidence:
        """Test that one variant's barrier is above another's; with a margin, that it is above by less than that."""
        differences = (barriers_of(model, high) - barriers_of(model, low)).dropna().to_numpy()
        return paired(-differences, margin) if margin else paired(differences)

    def types(high: str, low: str, margin: float = 0.0) -> Evidence:
        """Test that one type's barrier is above another's, each matched over its activation's group."""
        groups = {model: ACTIVATIONS[model.removesuffix("_inv")] for model in (high, low)}
        return is_higher(
            {model: barriers_of(model, group) for model, group in groups.items()}, high, low, margin
        )

    small = f"by less than {SMALL}"
    for model in ("tanh", "tanh_inv"):
        evidence = above(model, "activation", "signed_activation")
        yield f"{name(model)}: without signs the barrier is higher", evidence
    for model in ("relu", "relu_inv"):
        evidence = above(model, "activation", "scaled_activation", SMALL)
        yield f"{name(model)}: without scales the barrier is higher {small}", evidence
    for model in ACTIVATIONS:
        loss = f"{model}_inv"
        yield f"Invariance loss lowers the barrier: {name(loss)} below {name(model)}", types(model, loss)
    for model in ("leaky_inv", "gelu_inv", "tanh_inv"):
        higher = f"above that of {name('relu_inv')} by less than {CLOSE}"
        yield f"The barrier of {name(model)} is {higher}", types("relu_inv", model, CLOSE)
    lower = f"The barrier of {name('tanh_inv')} is below that of {name('gelu_inv')}"
    yield lower, types("gelu_inv", "tanh_inv")
    for model in ("relu_inv", "gcnn"):
        yield f"{name(model)}: silent channels raise it {small}", above(model, "silent", margin=SMALL)
        yield f"{name(model)}: all channels twice raise it {small}", above(model, "split", margin=SMALL)
        yield f"{name(model)}: some channels twice raise it", above(model, "duplicated")
    yield f"{name('relu_inv')}: unread channels raise it", above("relu_inv", "unread")
    yield f"{name('gcnn')}: unread channels raise it {small}", above("gcnn", "unread", margin=SMALL)
    for model in ("relu", "relu_inv"):
        zero = paired(-barriers_of(model, "towers").to_numpy(), SMALL)
        yield f"{name(model)}: with two towers that may swap it is above zero {small}", zero
        yield f"{name(model)}: if they may not, it is higher", above(model, "towers_apart", "towers")


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per claim, corrected for all together; then, without claims, each type's barrier by variant."""
    nets = in_order(by_net(inputs["identifiability"]), selection["models"])

    def name(model: str) -> str:
        return selection["names"].get(model, model)

    described = (
        (f"{name(model)}, {VARIANTS[variant]}: barrier", replace(paired(barriers), test="", remark=""))
        for (model, variant), barriers in nets.groupby(["model", "variant"], sort=False)["barrier"]
    )
    return judged_beside(claims(nets, name), described)


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    first = "Not in the paper; written down before it was measured (docs/identifiability.md)"
    lower = (
        "Where a claim is that a barrier is higher by less than a margin, the effect is how much lower it is"
    )
    return notes_on(inputs, selection, "these claims", first, lower)


def draw(inputs: Inputs, selection: Selection) -> tuple[Drawing, pd.DataFrame]:
    """Each net's barrier: above by type and matching, below for edited nets; and the numbers."""
    nets = in_order(by_net(inputs["identifiability"]), selection["models"])
    if nets.empty:
        return empty_drawing("no nets"), nets
    matchings = [*dict.fromkeys(["activation", *ACTIVATIONS.values()])]
    named = nets.assign(type=nets["model"].map(lambda model: selection["names"].get(model, model)))
    is_matching = named["variant"].isin(matchings)
    by_matching, others = named[is_matching], named[~is_matching]
    types = [*by_matching["type"].unique()]
    edited = others.groupby(["type", "variant"], sort=False)["barrier"]
    height = 1.2 + 0.17 * (len(types) + len(edited))
    drawing, panels = panels_of(height, 2, sharex=True, height_ratios=[len(types), max(len(edited), 1)])
    above, below = panels[:, 0]
    for matching, (colour, marker) in zip(sorted(matchings, key=[*VARIANTS].index), lines(2), strict=False):
        some = by_matching[by_matching["variant"] == matching]
        style = {"s": 14, "color": colour, "marker": marker, "alpha": 0.7, "linewidth": 0}
        above.scatter(some["barrier"], some["type"].map(types.index), label=VARIANTS[matching], **style)
    for row, (_, barriers) in enumerate(edited):
        below.scatter(barriers, [row] * len(barriers), s=14, color="0.3", alpha=0.7, linewidth=0)
    label_rows(above, types)
    label_rows(below, [f"{of_type}, {VARIANTS[variant]}" for (of_type, variant), _ in edited])
    below.set_xlabel("Barrier with REPAIR")
    legend_above(drawing, above, 3)
    return drawing, nets
