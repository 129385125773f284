"""Table 1: what each type of VGG11 is, and how many parameters its nets have.

about: models (ids, in order), names, descriptions (by id), notes; paper as in `frames.beside_paper`.
"""

import pandas as pd

from relusym.errors import UserError
from relusym.findings import About, Inputs, measurements
from relusym.findings.agreement import check_agreement
from relusym.findings.frames import beside_paper, measured, summary
from relusym.findings.layout import Layout

LAYOUT = Layout(
    "Types of VGG11 nets",
    {"name": "Name", "description": "Description", "parameters": "Parameters"},
    {"paper_parameters": lambda count: f"{count / 1e6:#.3g}M"},  # known to three digits only
    {"description": 0.45},
)


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """model, name, description, parameters (counted in our nets), n, left_out, paper_parameters.

    n counts the nets that trained well, left_out those that diverged, are degenerate or not at hand.

    Raises:
        UserError: a record lacks its parameter count or is given twice, or nets of one type differ in size.
    """
    check_agreement(inputs)
    paths = {"parameters": measurements.TRAIN["parameters"]}
    nets = measured(inputs["train"], ["model", "seed"], paths)
    for model, counts in nets.groupby("model")["parameters"]:
        if counts.nunique() > 1:
            raise UserError(
                f"the train records of {model} count {counts.min():.0f} to {counts.max():.0f} parameters: "
                "they come from different settings; delete those of the other setting"
            )
    models = list(about["models"])
    sizes = nets.groupby("model")["parameters"].first().reindex(models)
    found = beside_paper(summary(nets, ["model"], models, []), 1, ["model"], about)
    return pd.DataFrame(
        {
            "model": models,
            "name": [about["names"].get(model, model) for model in models],
            "description": [about["descriptions"].get(model, "") for model in models],
            "parameters": sizes.astype("Int64").array,
            "n": found["n"],
            "left_out": found["left_out"],
            "paper_parameters": found["paper_parameters"].astype("Int64"),
        }
    )
