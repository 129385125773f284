"""Rule table2: accuracy, invariance error and GCNN barrier of each model type."""

from job import job
from relusym.findings.tables import table2, write_table
from relusym.records import data_notes, read_record

with job(snakemake):
    trained = [read_record(path) for path in snakemake.input.train]
    merged = [read_record(path) for path in snakemake.input.flip_merge]
    frame = table2(trained, merged, snakemake.params.models)
    stem = snakemake.output[0].removesuffix(".csv")
    write_table(
        frame, stem, "Statistics of VGG11 nets", snakemake.params.notes + data_notes(trained + merged)
    )
