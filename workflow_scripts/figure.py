"""The rules of all figures: `relusym.findings.FIGURES` says which module draws which."""

from job import job
from relusym.findings import kinds_of, module_of
from relusym.findings.fingerprint import fingerprint, write_note
from relusym.findings.frames import read
from relusym.findings.layout import csv, write_text
from relusym.findings.print_style import write_figure

with job(snakemake):
    params = snakemake.params
    name, about, shown = params.name, params.about, params.shown
    module, inputs = module_of(name), read(kinds_of(name), shown, about)
    if name == "figure10":  # drawn from the theory's own images, which findings don't know
        from relusym.theory.cooccurrence import image_classes

        inputs["image_classes"] = image_classes(about["seed"], about["images"])
    figure, *frames = module.draw(inputs, about)
    *written, note = (*snakemake.output,) if snakemake.output.get("note") else (*snakemake.output, None)
    tables = [path for path in written if path.endswith(".csv")]
    write_figure(figure, [path for path in written if path not in tables])
    for path, frame in zip(tables, frames, strict=True):
        write_text(path, csv(frame))
    if note:
        write_note(note, name, fingerprint(name, about, shown), written)
