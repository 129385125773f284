"""The rules of all tables: `relusym.findings.TABLES` says which module makes which."""

from job import job
from relusym.findings import kinds_of, module_of, origins
from relusym.findings.frames import read
from relusym.findings.layout import write_table
from relusym.findings.made import fingerprint, write_note

with job(snakemake):
    name, about = snakemake.params.name, snakemake.params.about
    table, inputs = module_of(name), read(kinds_of(name), snakemake.input, about)
    notes = getattr(table, "notes", origins.notes)(inputs, about)
    *written, note = snakemake.output
    stem = written[0].rpartition(".")[0]
    write_table(table.frame(inputs, about), stem, table.LAYOUT, notes, about["names"])
    write_note(note, fingerprint(name, about, snakemake.input), written)
