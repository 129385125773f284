"""Rule status: print how far the scale is, on one screen."""

import sys
from pathlib import Path

from job import job
from relusym.jobs.status import kind_status, screen

terminal = sys.stdout
with job(snakemake):
    params = snakemake.params
    folders = Path(params.logs), Path(params.benchmarks), Path(params.records)
    kinds = [kind_status(kind, reasons, *folders) for kind, reasons in params.reasons.items()]
    text = screen(params.title, kinds)
    print(text)
    print(text, file=terminal, flush=True)
