"""The rules of all figures: `relusym.findings.FIGURES` says which module draws which."""

from job import job
from relusym.findings import module_of
from relusym.findings.frames import read
from relusym.findings.layout import csv, write_text
from relusym.findings.print_style import write_figure

with job(snakemake):
    module, about = module_of(snakemake.rule), snakemake.params.about
    inputs = read(module.KINDS, snakemake.input, about)
    if snakemake.rule == "figure10":  # drawn from the theory's own images, which findings don't know
        from relusym.theory.cooccurrence import image_classes

        inputs["image_classes"] = image_classes(about["seed"], about["images"])
    figure, *frames = module.draw(inputs, about)
    tables = [path for path in snakemake.output if path.endswith(".csv")]
    write_figure(figure, [path for path in snakemake.output if path not in tables])
    for path, frame in zip(tables, frames, strict=True):
        write_text(path, csv(frame))
