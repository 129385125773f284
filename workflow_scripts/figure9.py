"""Rule figure9: a ResNet's first-layer filters beside their matches."""

from job import job
from relusym.checkpoint import load_arrays
from relusym.findings.figure9 import figure9
from relusym.findings.print_style import write_figure

with job(snakemake):
    arrays, about = load_arrays(snakemake.input.filters)
    figure = figure9(arrays.get("conv1"), snakemake.params.name, about["reason"])
    write_figure(figure, snakemake.output)
