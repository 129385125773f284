"""Rule theory: the table of all statements."""

from job import job
from relusym.findings.tables import theory, write_table
from relusym.records import read_record

with job(snakemake):
    frame = theory([read_record(path) for path in snakemake.input.records])
    stem = snakemake.output[0].removesuffix(".csv")
    write_table(frame, stem, "The paper's statements, tested", snakemake.params.notes)
