"""Rule figure3: how the flipped net's training mirrors the net's."""

from job import job
from relusym.findings.figure3 import figure3
from relusym.findings.print_style import write_figure
from relusym.records import read_record

with job(snakemake):
    write_figure(figure3(read_record(snakemake.input.record)), snakemake.output)
