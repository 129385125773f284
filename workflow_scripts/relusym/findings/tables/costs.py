"""The table of costs: time and memory of each kind of job, from its records."""

from __future__ import annotations

from relusym.findings import MERGES, Inputs, Selection, Table, pd
from relusym.findings.layout import Layout
from relusym.findings.selection import OF_EVERY_JOB

LAYOUT = Layout(
    "Costs: what each kind of job took",
    {
        "kind": "Kind of job",
        "hours": "Hours in all",
        "median_s": "Median (s)",
        "max_s": "Longest (s)",
        "max_memory_mb": "Most memory (MB)",
    },
    {"hours": "{:.3f}", "median_s": "{:.1f}", "max_s": "{:.1f}", "max_memory_mb": "{:.0f}"},
)
TABLE = Table(__name__, LAYOUT, reads=MERGES, select=lambda settings: {}, **OF_EVERY_JOB)


def frame(inputs: Inputs, selection: Selection) -> pd.DataFrame:
    """Time and memory of each kind of job, from the start of its process to its record; memory: peak resident set (MB).

    The time of a resumed training includes that up to the state it resumed from, if its record has it.
    """
    rows = [
        (kind, cost["job_seconds"], cost.get("job_memory_mb"))
        for kind, records in inputs.items()
        for cost in (record["cost"] for record in records)
        if "job_seconds" in cost
    ]
    jobs = pd.DataFrame(rows, columns=["kind", "s", "memory"]).astype({"s": float, "memory": float})
    table = jobs.groupby("kind", sort=False).agg(
        jobs=("s", "size"),
        hours=("s", "sum"),
        median_s=("s", "median"),
        max_s=("s", "max"),
        max_memory_mb=("memory", "max"),
    )
    table["hours"] /= 3600
    return table.reset_index()


def notes(inputs: Inputs, selection: Selection) -> list[str]:
    silent = sum("earlier_seconds" not in record["cost"] for record in inputs["train"])
    line = f"Of {silent} trainings, those that were resumed count from their last start alone"
    return [line] if silent else []
