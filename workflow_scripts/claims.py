"""Rule claims: what the paper says in words, tested on the records."""

from itertools import chain

import pandas as pd

from job import job
from relusym.findings.claims import LEVEL, claims
from relusym.findings.tables import write_table
from relusym.records import data_notes, read_record

with job(snakemake):
    kinds = ("train", "flip_merge", "pair_merge")
    records = {kind: [read_record(path) for path in snakemake.input.get(kind)] for kind in kinds}
    write_table(
        claims(*records.values(), pd.read_csv(snakemake.input.zero_filters)),
        snakemake.output[0].removesuffix(".csv"),
        "The paper's claims, tested",
        [
            "p is two-sided; corrected for all claims together after Benjamini and Yekutieli. Held or did not hold: "
            f"corrected p below {LEVEL}; inconclusive: above",
            "t-tests take the nets of a type to be normally distributed. A rank test doesn't, but with few nets it "
            "can't come to a small p: the least that it can come to stands beside it. It decides only where all nets "
            "of a type are equal",
            *snakemake.params.notes,
            *data_notes(list(chain(*records.values()))),
        ],
    )
