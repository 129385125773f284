"""Rules flip_merge and pair_merge: merge one net with its flipped self, or two nets, and write the record."""

from pathlib import Path

from job import job
from relusym.measuring import device_of, measure_merge
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
    write_record(snakemake.output.record, {"kind": snakemake.rule, **names, **measured})
    print(f"{snakemake.output.record}: {measured['status']}, barrier {measured.get('barrier')}")
