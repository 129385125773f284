"""The rules of all tables: `relusym.findings.TABLES` says which module makes which."""

from job import job
from relusym.findings import agreement, kinds_of, module_of
from relusym.findings.fingerprint import fingerprint, write_note
from relusym.findings.frames import read
from relusym.findings.layout import write_table

with job(snakemake):
    params = snakemake.params
    name, about, shown = params.name, params.about, params.shown
    table, inputs = module_of(name), read(kinds_of(name), shown, about)
    notes = getattr(table, "notes", agreement.notes)(inputs, about)
    *written, note = snakemake.output
    stem = written[0].rpartition(".")[0]
    write_table(table.frame(inputs, about), stem, table.LAYOUT, notes, about["names"])
    write_note(note, name, fingerprint(name, about, shown), written)
