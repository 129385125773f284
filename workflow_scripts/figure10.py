"""Rule figure10: the two classes of images of Example C.2."""

from job import job
from relusym.findings.figure10 import figure10
from relusym.findings.print_style import write_figure

with job(snakemake):
    write_figure(figure10(snakemake.params.seed), snakemake.output)
