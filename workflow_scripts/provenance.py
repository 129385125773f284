"""Rule provenance: which records, of which code and device, each table and figure was made of."""

from job import job
from relusym.findings.provenance import provenance
from relusym.findings.tables import write_table
from relusym.records import read_record

with job(snakemake):
    records = [read_record(path) for path in snakemake.input.records]
    write_table(
        provenance(records, snakemake.params.made_of),
        snakemake.output[0].removesuffix(".csv"),
        "Provenance: what the tables and figures were made of",
        ["Settings: the beginning of the SHA-256 of all settings in the records", *snakemake.params.notes],
    )
