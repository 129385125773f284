"""Rule status: print how far the scale is, on one screen."""

import sys
from pathlib import Path

from job import job
from relusym.jobs.status import kind_status, screen

terminal = sys.stdout
with job(snakemake):
    params = snakemake.params
    records, logs, benchmarks = Path(params.records), Path(params.logs), Path(params.benchmarks)
    kinds = [kind_status(kind, wanted, logs, benchmarks, records) for kind, wanted in params.wanted.items()]
    text = screen(params.title, kinds)
    print(text)
    print(text, file=terminal, flush=True)
