"""Several nets of a type merged into one: barriers by type and number, in one universe and each to the first."""

from __future__ import annotations

from collections.abc import Sequence

from relusym.findings import Inputs, Record, Selection, Table, pd
from relusym.findings.frames import in_order, summary
from relusym.findings.layout import Layout
from relusym.findings.selection import beyond

QUANTITIES = {
    "mean": "Accuracy, mean of the nets",
    "ensemble": "Accuracy of their mean logits",
    "universe": "Barrier, one universe",
    "pairwise": "Barrier, each to the first",
    "universe_no_repair": "One universe, no REPAIR",
    "pairwise_no_repair": "Each to the first, no REPAIR",
    "cycles": "Channels that pairwise matchings bring back",
}
LAYOUT = Layout("Several nets merged to one", {"count": "Nets", **QUANTITIES, "n": "Sets of nets"})
TABLE = Table(__name__, LAYOUT, **beyond("universe", order=6))
KEY = ["model", "count"]


def by_set(records: Sequence[Record]) -> pd.DataFrame:
    """One row per set of nets and number of nets: model, count, seed (of the first), ok, `QUANTITIES`.

    Each set of nets occurs once, whatever its order: with as many nets as seeds, all sets are the same.
    """
    rows, sets = [], set()
    for record in records:
        about = {"model": record["model"], "seed": record["seeds"][0], "ok": record["status"] == "ok"}
        for count in record["settings"].get("counts", ()):
            nets = record["model"], frozenset(record["seeds"][:count])
            if nets in sets:
                continue
            sets.add(nets)
            merged = record["merged"][str(count)] if about["ok"] else {"barrier": {}}
            measured = merged | merged["barrier"] | {"cycles": record.get("cycles")}
            rows.append(measured | about | {"count": count})  # these override a record's other fields
    return pd.DataFrame(rows, columns=[*KEY, "seed", "ok", *QUANTITIES])


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """One row per type and number of nets, mean and standard deviation over sets of nets, n, left_out."""
    sets = in_order(by_set(inputs["universe"]), selection["models"])
    return summary(sets, KEY, sets.drop_duplicates(KEY)[KEY], list(QUANTITIES))
