"""Rule figure4: how many channels have which permutation order, by layer and model type."""

from job import job
from relusym.findings.permutation_order import figure4, order_counts
from relusym.findings.print_style import write_figure
from relusym.records import read_record, write_whole

with job(snakemake):
    counts = order_counts([read_record(path) for path in snakemake.input.flip_merge])
    *figures, table = snakemake.output
    write_figure(figure4(counts, snakemake.params.models), figures)
    with write_whole(table) as part:
        counts.to_csv(part, index=False)
