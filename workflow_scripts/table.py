"""The rules of all tables: `relusym.findings.TABLES` says which module makes which."""

from job import job
from relusym.findings import kinds_of, module_of, origins
from relusym.findings.frames import read
from relusym.findings.layout import write_table
from relusym.findings.made import fingerprint, write_note

with job(snakemake):
    table, about = module_of(snakemake.rule), snakemake.params.about
    inputs = read(kinds_of(snakemake.rule), snakemake.input, about)
    notes = getattr(table, "notes", origins.notes)(inputs, about)
    *written, note = snakemake.output
    stem = written[0].rpartition(".")[0]
    write_table(table.frame(inputs, about), stem, table.LAYOUT, notes, about["names"])
    write_note(note, fingerprint(snakemake.rule, about, snakemake.input), written)
