"""Table 1: what each type of VGG11 is, and how many parameters its nets have."""

from __future__ import annotations

from relusym.errors import UserError
from relusym.findings import Inputs, Selection, Settings, Table, pd
from relusym.findings.frames import TRAIN, beside_paper, measured, summary
from relusym.findings.layout import Layout
from relusym.findings.selection import vgg11s

LAYOUT = Layout(
    "Types of VGG11 nets",
    {"name": "Name", "description": "Description", "parameters": "Parameters"},
    {"paper_parameters": lambda count: f"{count / 1e6:#.3g}M"},  # known to three digits only
    {"description": 0.45},
)


def select(settings: Settings) -> Selection:
    """Models (ids, in order), their descriptions by id, and notes."""
    descriptions = {model: settings.models[model].entry.description for model in settings.table("table2")}
    return {**vgg11s(settings, merged=False), "descriptions": descriptions}


TABLE = Table(__name__, LAYOUT, reads=("train",), select=select, paper=1)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """model, name, description, parameters (counted in our nets), n, left_out, paper_parameters.

    n counts the nets that trained well, left_out those that diverged, are degenerate or not available. UserError if a
    record lacks its parameter count or occurs twice, or if nets of one type differ in size.
    """
    nets = measured(inputs["train"], ["model", "seed"], {"parameters": TRAIN["parameters"]})
    for model, counts in nets.groupby("model")["parameters"]:
        if counts.nunique() > 1:
            raise UserError(
                f"the train records of {model} count {counts.min():.0f} to {counts.max():.0f} parameters: "
                "they come from different settings; delete those of the other setting"
            )
    models = list(selection["models"])
    sizes = nets.groupby("model")["parameters"].first().reindex(models)
    counted = beside_paper(summary(nets, ["model"], models, []), 1, ["model"])
    return counted.assign(
        name=[selection["names"].get(model, model) for model in models],
        description=[selection["descriptions"].get(model, "") for model in models],
        parameters=sizes.astype("Int64").array,
        paper_parameters=counted["paper_parameters"].astype("Int64"),
    )[["model", "name", "description", "parameters", "n", "left_out", "paper_parameters"]]
