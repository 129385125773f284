"""Rule prepare_data: generate, download or read the images of a data set, and write them as one file."""

import sys
from pathlib import Path

from job import job
from relusym import data

terminal = sys.stderr
with job(snakemake):
    spec, key = snakemake.params.spec, snakemake.params.key
    for note in data.prepare(spec, Path(snakemake.output[0]), workers=snakemake.threads, key=key):
        print(note)
        print(f"notice: {note}", file=terminal)
    print(f"{snakemake.output[0]}: {data.digest(snakemake.output[0])}")
