"""Rules flip_merge and pair_merge: merge a net with its flipped self, or two nets; record, and filters of the first."""

from pathlib import Path

from job import job
from relusym.checkpoint import save_arrays
from relusym.experiments.filters import measure_filters
from relusym.experiments.measuring import device_of, measure_merge
from relusym.records import write_record

with job(snakemake):
    nets = [Path(pattern.format(**snakemake.wildcards)) for pattern in snakemake.params.nets]
    names = {key: int(name) if key.startswith("seed") else name for key, name in snakemake.wildcards.items()}
    measured = measure_merge(
        nets,
        snakemake.params.settings,
        Path(snakemake.params.data),
        device=device_of(snakemake.params.device),
    )
    record = {"kind": snakemake.rule, **names, **measured}
    if filters := snakemake.output.get("filters"):
        save_arrays(filters, *measure_filters(nets[0], record, snakemake.params.filters))
    write_record(snakemake.output.record, record)
    print(f"{snakemake.output.record}: {measured['status']}, barrier {measured.get('barrier')}")
