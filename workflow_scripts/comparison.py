"""Rule comparison: every cell of our tables beside the paper's."""

import pandas as pd

from job import job
from relusym.findings.comparison import PAPER_NETS, WITHIN, compare, other_than_the_papers
from relusym.findings.tables import write_table
from relusym.records import data_notes, read_record

with job(snakemake):
    records = [read_record(path) for path in snakemake.input.records]
    frames = []
    for path, (table, kinds) in zip(snakemake.input.tables, snakemake.params.made_of.items(), strict=True):
        made_of = [record for record in records if record["kind"] in kinds]
        frames.append(compare(pd.read_csv(path), table, other_than_the_papers(made_of, table)))
    write_table(
        pd.concat(frames, ignore_index=True),
        snakemake.output[0].removesuffix(".csv"),
        "Our tables beside the paper's",
        [
            "Difference: ours less the paper's. Standard errors are Welch's, with the "
            f"{PAPER_NETS} nets a type that the paper has at least",
            f"Verdict: within {WITHIN}σ, higher or lower, in the paper's standard deviations; equal, to three digits, "
            "where the paper gives none. Nothing is called comparable that was made with other data or settings",
            *snakemake.params.notes,
            *data_notes(records),
        ],
    )
