"""Rule status: print on one screen how much of the scale is done."""

import sys
from pathlib import Path

from job import job
from relusym.jobs.status import kind_status, screen

terminal = sys.stdout
with job(snakemake):
    params = snakemake.params
    kinds = [kind_status(kind, jobs, Path(params.folder)) for kind, jobs in params.jobs.items()]
    text = screen(params.title, kinds)
    print(text)
    print(text, file=terminal, flush=True)
