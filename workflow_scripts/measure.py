"""Rule measure: one measurement beyond the paper, on one net or two."""

from pathlib import Path

from job import job
from relusym.experiments.costs import device_of
from relusym.experiments.measure import measure_record
from relusym.records import write_record

with job(snakemake):
    params = snakemake.params
    record = measure_record(
        snakemake.wildcards.measurement,
        [(model, seed) for model, seed in params.names],
        params.settings,
        [Path(path) for path in snakemake.input.nets],
        [Path(path) for path in snakemake.input.trained],
        Path(snakemake.input.data),
        params.label,
        batch_size=params.batch_size,
        device=device_of(params.device),
        in_use=params.images_in_use,
    )
    write_record(snakemake.output.record, record)
    print(f"{snakemake.output.record}: {record['status']}")
