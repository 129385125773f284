"""Rules figure1, figure5 to figure8 and filter_pairs: filters of a layer beside their matches."""

from job import job
from relusym.experiments.filters import first_kept
from relusym.findings.filter_pairs import filter_pairs
from relusym.findings.print_style import write_figure

with job(snakemake):
    about = snakemake.params
    nets = [first_kept(files) for files in about.files]
    write_figure(filter_pairs(nets, about.layer, about.flipped_back, about.zero_filter), snakemake.output)
