"""Rule flipped_training: train a net, and its flipped twin on flipped batches, and record how far they come apart."""

from pathlib import Path

from job import job
from relusym.experiments.flipped_training import measure_flipped_training
from relusym.experiments.measuring import device_of
from relusym.records import write_record

with job(snakemake):
    # a few steps of a narrow net, in float64 too: a CPU does as well
    measured = measure_flipped_training(
        snakemake.params.settings, Path(snakemake.params.data), device=device_of("cpu")
    )
    write_record(snakemake.output.record, {"kind": snakemake.rule, **measured})
    print(f"largest difference to the flipped net: {measured['largest_difference']}")
