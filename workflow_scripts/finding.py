"""The rules of all tables and figures: make a table or figure as its module of `relusym.findings` declares it."""

from pathlib import Path

from job import job
from relusym.findings import Table, declared, frames
from relusym.findings.fingerprint import fingerprint, write_note
from relusym.findings.frames import read
from relusym.findings.layout import csv, write_table
from relusym.findings.print_style import style, write_figure
from relusym.whole_files import write_text

with job(snakemake):
    params, selection = snakemake.params, snakemake.params.selection
    finding, note = declared()[params.name], snakemake.output.get("note")
    module, inputs = finding.load(), read(finding.reads, params.files, selection)
    outputs = [path for path in snakemake.output if path != note]
    if isinstance(finding, Table):
        notes = getattr(module, "notes", frames.notes)(inputs, selection)
        endings = [Path(path).suffix[1:] for path in outputs]
        stem = outputs[0].rpartition(".")[0]
        frame = module.frame(inputs, selection)
        write_table(frame, stem, finding.layout, notes, selection["names"], endings)
    else:
        with style():
            drawing, *frames = module.draw(inputs, selection)
            write_figure(drawing, [path for path in outputs if not path.endswith(".csv")])
        csvs = [path for path in outputs if path.endswith(".csv")]
        for path, frame in zip(csvs, frames, strict=bool(csvs)):
            write_text(path, csv(frame))
    if note:
        committed = [path for path in outputs if not path.endswith(".html")]
        made_from = fingerprint(params.name, selection, params.files)
        write_note(note, params.name, made_from, params.files, committed)
