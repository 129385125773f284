"""Other symmetries: merging a net with its transformed selves, by data set, symmetry and training.

about: models (ids, in order), names, notes.
"""

from collections.abc import Sequence

import pandas as pd

from relusym.findings import About, Inputs, Record
from relusym.findings.frames import summary
from relusym.findings.layout import Layout
from relusym.findings.origins import check_agreement

QUANTITIES = {
    "accuracy": "Accuracy",
    "invariance_error": "Invariance error",
    "pairwise": "Barrier, pairwise",
    "whole": "Barrier, whole orbit",
    "whole_no_repair": "Whole orbit, no REPAIR",
    "accuracy_orbit": "Accuracy, mean over the orbit",
    "accuracy_whole": "Accuracy, whole orbit merged",
}
LAYOUT = Layout(
    "Other symmetries: barriers of nets with their transformed selves",
    {"symmetry": "Symmetry", "data": "Data", **QUANTITIES},
)
KEY = ["model", "symmetry"]


def by_net(records: Sequence[Record]) -> pd.DataFrame:
    """One row a net and symmetry: model, seed, symmetry, data, ok, `QUANTITIES`."""
    rows = []
    for record in records:
        for symmetry in record["settings"]["symmetries"]:
            row = {
                **{key: record[key] for key in ("model", "seed")},
                **{"symmetry": symmetry, "data": record["inputs"]["source"], "ok": record["status"] == "ok"},
            }
            if row["ok"]:
                found = record["symmetries"][symmetry]
                barriers = {name: found["barrier"][name] for name in ("pairwise", "whole", "whole_no_repair")}
                row |= {"accuracy": found["accuracy"]["net"], "invariance_error": found["invariance_error"]}
                row |= barriers | {f"accuracy_{of}": found["accuracy"][of] for of in ("orbit", "whole")}
            rows.append(row)
    return pd.DataFrame(rows, columns=[*KEY, "seed", "data", "ok", *QUANTITIES])


def frame(inputs: Inputs, about: About) -> pd.DataFrame:
    """One row a type and symmetry: data, mean and standard deviation over nets, n, left_out."""
    check_agreement(inputs)
    nets = by_net(inputs["symmetries"])
    order = {model: place for place, model in enumerate(about["models"])}
    rows = nets.drop_duplicates(KEY).sort_values("model", key=lambda of: of.map(order), kind="stable")
    wanted = list(rows[KEY].itertuples(index=False, name=None))
    found = summary(nets, KEY, wanted, list(QUANTITIES))
    found.insert(2, "data", rows["data"].to_list())
    return found.assign(symmetry=found["symmetry"].str.replace("_", " "))
