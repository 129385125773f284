"""Rules flip_merge and pair_merge: merge a net with its flipped self, or two nets with each other."""

from pathlib import Path

from job import job
from relusym.experiments.costs import device_of
from relusym.experiments.merge import merge_record
from relusym.records import write_record

with job(snakemake):
    w, params = snakemake.wildcards, snakemake.params
    flip = snakemake.output.get("filters") is not None  # of flip_merge, whose name may have a prefix
    names = [(w.model, int(w.seed))] if flip else [(w.model_1, int(w.seed_1)), (w.model_2, int(w.seed_2))]
    record = merge_record(
        names,
        params.settings,
        [Path(path) for path in snakemake.input.nets],
        [Path(path) for path in snakemake.input.trained],
        Path(snakemake.input.data),
        params.label,
        batch_size=params.batch_size,
        device=device_of(params.device),
        in_use=params.images_in_use,
        filters=Path(snakemake.output.filters) if flip else None,
    )
    write_record(snakemake.output.record, record)
    print(f"{snakemake.output.record}: {record['status']}, barrier {record.get('barrier')}")
