"""Rules flip_merge, pair_merge and measure: from trained nets to the record of a merge or of another measurement."""

from functools import partial
from pathlib import Path

from job import job
from relusym.measuring.costs import device_of
from relusym.measuring.measure import measure_record
from relusym.measuring.merge import merge_record
from relusym.records.files import write_record

with job(snakemake) as lock:
    params, filters = snakemake.params, snakemake.output.get("filters")
    reads = params.reads
    if measurement := snakemake.wildcards.get("measurement"):
        # of a net that the measurement makes
        to = Path(snakemake.output.record.replace("/records/", "/checkpoints/")).with_suffix(".safetensors")
        make = partial(measure_record, measurement, to=to)
    else:
        make = partial(merge_record, filters=Path(filters) if filters else None)
    record = make(
        [(model, seed) for model, seed in params.names],
        params.settings,
        [Path(path) for path in reads["nets"]],
        [Path(path) for path in reads["trained"]],
        Path(reads["data"]),
        params.label,
        batch_size=params.batch_size,
        device=device_of(params.device),
        in_use=params.images_in_use,
    )
    lock.check()
    write_record(snakemake.output.record, record)
    barrier = f", barrier {record['barrier']}" if "barrier" in record else ""
    print(f"{snakemake.output.record}: {record['status']}{barrier}")
