"""Rule table4: the barrier between nets that were trained in different manners."""

from job import job
from relusym.findings.tables import table4, write_table
from relusym.records import data_notes, read_record

with job(snakemake):
    merged = [read_record(path) for path in snakemake.input.pair_merge]
    frame = table4(merged, snakemake.params.pairs)
    stem = snakemake.output[0].removesuffix(".csv")
    write_table(
        frame,
        stem,
        "Merging VGG11 nets trained in different manners",
        snakemake.params.notes + data_notes(merged),
    )
