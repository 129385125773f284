"""Our tables beside the paper's: the difference in each cell, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from relusym import paper_values
from relusym.findings import (
    COMPARISON,
    MERGES,
    Inputs,
    Record,
    Selection,
    Settings,
    Table,
    declared,
    frames,
    np,
    pd,
    stats,
)
from relusym.findings.frames import chosen
from relusym.findings.layout import Layout, number, std_of
from relusym.findings.selection import findings, of_all_types, vgg11s
from relusym.findings.selection import select as select_of
from relusym.records.fields import images_of, nets_of
from relusym.records.fingerprint import differences

LAYOUT = Layout(
    "Our tables beside the paper's",
    {
        "in_paper_stds": "In the paper's std",
        "in_standard_errors": "In standard errors (Welch)",
        "p_value": "p",
    },
    {
        **dict.fromkeys(("in_paper_stds", "in_standard_errors"), "{:+.1f}"),
        **{"difference": "{:+.2g}", "p_value": "{:.2g}"},
    },
)

# The paper keeps "18-24 good quality nets of each model type" (Section 4.1) and doesn't say how many of which. We
# reckon with the fewest: the standard errors are then at most 16% too large, never too small.
PAPER_NETS = 18
WITHIN = 2  # of the paper's standard deviations
NOT_COMPARABLE = "not comparable"
DIGITS = 3  # of the values that the paper gives without a standard deviation

PAPER_DATA = {"cifar10": "CIFAR10", "imagenet": "ImageNet"}  # the names of the paper's images in tables
# what the numbers of parameters in Table 1 depend on
COUNTED = {"network.architecture", "network.width", "network.group_convs"}
CHANCE = frozenset({"seed", "projection_seed"})  # settings that may differ from the paper's

# Ratios that are meaningful at any settings: flip barrier to pair barrier; with invariance loss, to without
LOSS = (("cnn_inv", "cnn"), ("cnn_late_inv", "cnn"), ("pgcnn_late_inv", "pgcnn"))
RESNET_LOSS = (("torchvision_old_inv", "torchvision_old"), ("torchvision_old_inv_225", "torchvision_old_225"))
QUANTITIES = {"gcnn_barrier": "GCNN Barrier", "invariance_error": "Invariance Error"}
Part = Sequence[tuple[float, set]]  # values, each with the nets that it was measured on


def select(settings: Settings) -> Selection:
    """`tables`: name → its selection; scale; `paper`: model → settings of its counterpart's flip merge there; notes."""
    paper = {}
    if settings.paper is not None:
        rows = {settings.paper.paper_row(model): model for model in settings.paper.table("table5")}
        others = {model: model for model in settings.table("table2") if model in settings.paper.models}
        others |= {model: rows.get(settings.paper_row(model)) for model in settings.table("table5")}
        paper = {model: settings.paper.flip_merge(other) for model, other in others.items() if other}
    tables = [name for name in findings(settings) if getattr(declared()[name], "paper", None)]
    return {
        "tables": {name: select_of(settings, name) for name in tables},
        "scale": settings.scale,
        "paper": paper,
        "notes": vgg11s(settings)["notes"],
    }


TABLE = Table(__name__, LAYOUT, reads=MERGES, select=select, keys=of_all_types, section=COMPARISON)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """All cells of the tables, as in `compare`; at other scales than `paper`, ratios, and only comparable cells."""
    compared = []
    for name, shown in selection["tables"].items():
        table, of_table = declared()[name], _of_table(inputs, name, shown)
        other: dict[tuple[str, ...], list[str]] = {}
        for record in chain(*of_table.values()):
            keys = other_than_the_papers(record, selection)
            if table.paper == 1:
                keys = [key for key in keys if key in COUNTED]
            other.setdefault(tuple(model for model, _ in nets_of(record)), []).extend(keys)
        ours = table.load().frame(of_table, shown)
        cells = compare(ours, table.paper, other, table.layout, selection["names"])
        compared.append(cells if selection["scale"] == "paper" else cells[cells["verdict"] != NOT_COMPARABLE])
    if selection["scale"] != "paper":
        compared.append(ratios(inputs, selection))
    return pd.concat([cells for cells in compared if len(cells)] or compared[-1:], ignore_index=True)


def _of_table(inputs: Inputs, name: str, selection: Selection) -> Inputs:
    return chosen({kind: inputs[kind] for kind in declared()[name].reads}, selection)


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    keys = (key for record in chain(*inputs.values()) for key in other_than_the_papers(record, selection))
    other = [key for key in dict.fromkeys(keys) if not key.startswith("start.")]  # of an earlier stage
    if selection["scale"] == "paper" or not other:
        how = [
            f"Difference: ours minus the paper's. Standard errors are Welch's, with {PAPER_NETS} nets a type for the "
            "paper, the fewest that it may have",
            f"Verdict: within {WITHIN}σ, higher or lower, in the paper's standard deviations; equal, to three digits, "
            "where the paper gives none. What was made with other data or settings is not comparable",
        ]
    else:
        how = [
            f"Made otherwise than the paper's nets (other {', '.join(other)}), so that directions and ratios are "
            "compared, not values",
            "Value: a ratio of means ± its standard error, by jackknife over nets. Same direction or opposite: its 95% "
            "interval is on the paper's side of 1, or on the other; open: it includes 1",
        ]
    return [*how, *frames.notes(inputs, selection)]


def other_than_the_papers(record: Record, selection: Selection) -> list[str]:
    """The settings in which a record differs from the paper's, as keys of the config: ["data", "network.width", …]."""
    papers = [selection["paper"].get(model) for model, _ in nets_of(record)]
    if None in papers:
        return ["type of net"]
    ours = record["settings"]
    compared: list[tuple[Any, Any]] = [
        *zip(ours.get("trained", [ours]), (paper["trained"][0] for paper in papers), strict=True)
    ]
    if "trained" in ours:
        keys = [key for key in papers[0] if key == "merging" or (key != "trained" and len(papers) == 1)]
        mine = {key: ours[key] for key in keys if key in ours}
        compared.append((mine, {key: papers[0][key] for key in keys}))
    other = [key for mine, paper in compared for key, *_ in differences(mine, paper, without=CHANCE)]
    data = PAPER_DATA.get(papers[0]["trained"][0]["data"]["dataset"])
    if images_of(record) not in (None, data):
        other.insert(0, "data")
    return list(dict.fromkeys("data" if key == "data.dataset" else key for key in other))


def compare(
    table: pd.DataFrame,
    paper_number: int,
    other: Mapping[tuple[str, ...], Iterable[str]] | None = None,
    layout: Layout | None = None,
    names: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Every cell of one of our tables that has a counterpart in the paper's Table `paper_number`, beside it.

    One row per cell: table, row, quantity, value_mean, value_std, n, paper_value_mean, paper_value_std, paper_n;
    difference (ours − the paper's), in_paper_stds and in_standard_errors (Welch), p_value (two-sided Welch test);
    verdict and reason. The verdict is "within 2σ", "higher" or "lower", in σ of the paper; where the paper has no σ,
    "equal" to three digits, "higher" or "lower"; "not comparable" with its reason. What can't be computed, such as
    Welch's test on one net, is NaN.

    Args:
        table: as from `table2.frame`: means with their `…_std`, or plain numbers, each with its `paper_…`; n nets.
        other: by row (its ids), the settings in which ours differs from the paper's; if any, it isn't comparable.
    """
    keys = [column for column in ("model", "model_1", "model_2", "method") if column in table]
    columns = [column for column in table if f"paper_{column}" in table and not column.endswith("_std")]
    ids = [tuple(row) for row in table[keys].itertuples(index=False)]
    named = [" with ".join((names or {}).get(model, model) for model in row) for row in ids]
    rows = table.get("name", pd.Series(named, table.index, dtype=object))
    layout = layout or Layout("")
    parts = [_cells(table, rows, column, layout).assign(ids=ids) for column in columns]
    cells = pd.concat(parts, ignore_index=True)
    cells.insert(0, "table", paper_number)
    cells = cells[cells["paper_value_mean"].notna()].reset_index(drop=True)
    cells["difference"] = cells["value_mean"] - cells["paper_value_mean"]
    cells["in_paper_stds"] = cells["difference"] / cells["paper_value_std"]
    sides = ([f"{side}value_mean", f"{side}value_std", f"{side}n"] for side in ("", "paper_"))
    ours, papers = (cells[names].to_numpy(float, na_value=np.nan).T for names in sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        welch = stats.ttest_ind_from_stats(*ours, *papers, equal_var=False)
    cells["in_standard_errors"], cells["p_value"] = welch.statistic, welch.pvalue
    others = [list(dict.fromkeys((other or {}).get(row, ()))) for row in cells.pop("ids")]
    verdicts = [_verdict(cell, its) for (_, cell), its in zip(cells.iterrows(), others, strict=True)]
    cells[["verdict", "reason"]] = pd.DataFrame(verdicts, columns=["verdict", "reason"], dtype=object)
    return cells


def _cells(table: pd.DataFrame, rows: pd.Series, column: str, layout: Layout) -> pd.DataFrame:
    """The cells of one column of a table, ours and the paper's."""
    nothing = pd.Series(np.nan, table.index)
    std, paper_std = (std_of(table, name) for name in (column, f"paper_{column}"))
    std, paper_std = (nothing if stds is None else stds.astype(float) for stds in (std, paper_std))
    return pd.DataFrame(
        {
            "row": rows,
            "quantity": layout.heading(column.removesuffix("_mean")),
            "value_mean": table[column].astype(float),
            "value_std": std,
            "n": table.get("n", pd.Series(1, table.index)),
            "paper_value_mean": table[f"paper_{column}"].astype(float),
            "paper_value_std": paper_std,
            "paper_n": pd.Series(PAPER_NETS, table.index, "Int64").where(paper_std.notna()),
        }
    )


def _verdict(cell: pd.Series, other: list[str]) -> tuple[str, str]:
    if pd.isna(cell["difference"]):
        return NOT_COMPARABLE, "no net of ours"
    if other:
        return NOT_COMPARABLE, "other " + ", ".join(other)
    if pd.isna(cell["paper_value_std"]):
        equal = number(cell["value_mean"], DIGITS) == number(cell["paper_value_mean"], DIGITS)
        verdict = "equal" if equal else None
    else:
        verdict = f"within {WITHIN}σ" if abs(cell["in_paper_stds"]) <= WITHIN else None
    return verdict or ("higher" if cell["difference"] > 0 else "lower"), ""


def ratios(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per ratio for which there are nets; `selection` as in `select`.

    paper_value_mean is the paper's ratio; value_std is the standard error, by jackknife over nets; n counts the nets of
    the type that has fewer. The verdict is "same direction" or "opposite direction" if the ratio's 95% interval is on
    the paper's side of 1 or on the other, else "open".
    """
    names, tables, rows = selection["names"], selection["tables"], []
    columns = ["table", "row", "quantity", "value_mean", "value_std", "n", "paper_value_mean"]

    def add(table: int, row: str, quantity: str, top: Part, bottom: Part, paper: float) -> None:
        if top and bottom:
            value, error, n = ratio(top, bottom)
            rows.append((table, row, quantity, value, error, n, paper, *_direction(value, error, n, paper)))

    merged = {
        table: frames.nets(_of_table(inputs, table, tables[table]), [], list(QUANTITIES))
        for table in ("table2", "table5")
        if table in tables
    }

    def flips(table: str, model: str, quantity: str) -> Part:
        nets = merged[table][merged[table]["ok"] & (merged[table]["model"] == model)]
        return [(value, {(model, seed)}) for seed, value in zip(nets["seed"], nets[quantity], strict=True)]

    two, five = paper_values.table(2).set_index("model"), paper_values.table(5).set_index("method")
    two.columns = two.columns.str.removesuffix("_mean")
    if "table4" in tables:
        pairs, four = frames.pairs(_of_table(inputs, "table4", tables["table4"])), paper_values.table(4)
        of_a_type = four.query("model_1 == model_2").set_index("model_1")["barrier_mean"]
        for model, paper in of_a_type.items():
            both = [
                (barrier, {(model, first), (model, second)})
                for model_1, model_2, first, second, barrier, ok in pairs.itertuples(index=False)
                if ok and model_1 == model_2 == model
            ]
            flip = flips("table2", model, "gcnn_barrier")
            expected = two.loc[model, "gcnn_barrier"] / paper
            add(4, names.get(model, model), "GCNN Barrier / Barrier of two", flip, both, expected)
    for table, loss, paper in (("table2", LOSS, two), ("table5", RESNET_LOSS, five)):
        models = tables.get(table, {}).get("models", {})
        is_by_row = isinstance(models, dict)
        ours = {models[model]["paper"] if is_by_row else model: model for model in models}  # by paper's row
        for top, bottom in (pair for pair in loss if {*pair} <= {*ours}):
            row = " / ".join(names.get(ours[model], ours[model]) for model in (top, bottom))
            for quantity, heading in QUANTITIES.items():
                expected = paper.loc[top, quantity] / paper.loc[bottom, quantity]
                parts = (flips(table, ours[model], quantity) for model in (top, bottom))
                add(declared()[table].paper, row, heading, *parts, expected)
    return pd.DataFrame(rows, columns=[*columns, "verdict", "reason"])


def ratio(top: Part, bottom: Part) -> tuple[float, float, int]:
    """The ratio of two means, its standard error, and the number of nets of the type that has fewer.

    The error is by jackknife over the nets of each type: with each net, everything measured on it is left out. It is
    NaN for fewer than three nets; the ratio is NaN if the divisor isn't above zero.
    """

    def without(net: Any = None) -> float:
        means = [np.mean([value for value, nets in part if net not in nets]) for part in (top, bottom)]
        return float(means[0] / means[1]) if means[1] > 0 else math.nan

    nets = sorted(set().union(*(nets for _, nets in (*top, *bottom))))
    types = [[net for net in nets if net[0] == model] for model in dict.fromkeys(model for model, _ in nets)]
    fewest = min(map(len, types))
    if fewest < 3:
        return without(), math.nan, fewest
    left_out = [np.array([without(net) for net in of_type]) for of_type in types]
    variance = sum((len(values) - 1) * values.var() for values in left_out)
    return without(), math.sqrt(variance), fewest


def _direction(value: float, error: float, n: int, paper: float) -> tuple[str, str]:
    """The verdict on a ratio beside the paper's, and why it is open."""
    if n < 3:
        return "open", "three nets or more of a type are needed"
    if math.isnan(error):
        return "open", "what it is divided by isn't above zero"
    if abs(value - 1) <= stats.t.ppf(0.975, n - 1) * error:
        return "open", "the 95% interval includes 1"
    return ("same" if (value < 1) == (paper < 1) else "opposite") + " direction", ""
