"""Rule flipped_training: train a net, and another from flipped filters on flipped batches; record their differences."""

from pathlib import Path

from job import job
from relusym.measuring.flipped_training import flipped_training_record
from relusym.measuring.loading import device_named
from relusym.records.files import write_record

with job(snakemake):
    params, device = snakemake.params, device_named("cpu")  # fast enough for a few steps of a narrow net
    record = flipped_training_record(params.settings, Path(params.data), params.label, device=device)
    write_record(snakemake.output.record, record)
    print(f"largest difference to the flipped net: {record['largest_difference']}")
