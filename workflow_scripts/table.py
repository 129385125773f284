"""The rules of all tables: `relusym.findings.TABLES` says which module makes which."""

from job import job
from relusym.findings import module_of, origins
from relusym.findings.frames import read
from relusym.findings.layout import write_table

with job(snakemake):
    table, about = module_of(snakemake.rule), snakemake.params.about
    inputs = read(table.KINDS, snakemake.input, about)
    notes = getattr(table, "notes", origins.notes)(inputs, about)
    stem = snakemake.output[0].removesuffix(".csv")
    write_table(table.frame(inputs, about), stem, table.LAYOUT, notes, about.get("names"))
