"""Rules flip_merge, pair_merge and measure: write the record of a merge, or of another measurement, of trained nets."""

from pathlib import Path

from job import job
from relusym.measuring.merge import MergeJob, measure_record, merge_record
from relusym.records.files import write_record

with job(snakemake) as lock:
    output, beside = snakemake.output, snakemake.output.get("filters")
    measurement = snakemake.wildcards.get("measurement")
    if measurement:  # the checkpoint of a net that the measurement makes
        beside = Path(output.record.replace("/records/", "/checkpoints/")).with_suffix(".safetensors")
    merge_job = MergeJob.of(snakemake.params.job | {"beside": beside})
    record = measure_record(measurement, merge_job) if measurement else merge_record(merge_job)
    lock.check()
    write_record(output.record, record)
    barrier = f", barrier {record['barrier']}" if "barrier" in record else ""
    print(f"{output.record}: {record['status']}{barrier}")
