"""Rule filters: keep the filters of one net, and of its permuted flipped net, as small arrays."""

from pathlib import Path

from job import job
from relusym.checkpoint import save_arrays
from relusym.filters import measure_filters
from relusym.records import read_record

with job(snakemake):
    record = read_record(snakemake.input.record)
    arrays, about = measure_filters(Path(snakemake.input.net), record, snakemake.params.settings)
    save_arrays(snakemake.output[0], arrays, about)
    print(f"{snakemake.output[0]}: {about['status']}, {about.get('kernel_constraint')}")
