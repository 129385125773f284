"""Rule figure2: the four steps that align flipped filters, for three filters of a trained net."""

from job import job
from relusym.experiments.filters import first_kept
from relusym.findings.figure2 import figure2
from relusym.findings.print_style import write_figure

with job(snakemake):
    write_figure(figure2(first_kept(snakemake.input.filters)), snakemake.output)
