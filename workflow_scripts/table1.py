"""Rule table1: what each model type is, and how many parameters its nets have."""

from job import job
from relusym.findings.tables import table1, write_table
from relusym.records import data_notes, read_record

with job(snakemake):
    records = [read_record(path) for path in snakemake.input.train]
    frame = table1(records, snakemake.params.models)
    write_table(
        frame,
        snakemake.output[0].removesuffix(".csv"),
        "Types of VGG11 nets",
        snakemake.params.notes + data_notes(records),
    )
