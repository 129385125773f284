"""Rule zero_filters: how many filters are zero, by layer and model type, as a figure and as numbers."""

from job import job
from relusym.experiments.filters import read_filters
from relusym.findings.print_style import write_figure
from relusym.findings.zero_filters import count_by_net, count_by_type, zero_filter_figure
from relusym.records import write_whole

with job(snakemake):
    models, zero = snakemake.params.models, snakemake.params.zero_filter
    by_net = count_by_net(map(read_filters, snakemake.input.filters), zero)
    by_type = count_by_type(by_net, models)
    *figures, table, table_by_net = snakemake.output
    write_figure(zero_filter_figure(by_type, models, zero), figures)
    for path, frame in ((table, by_type), (table_by_net, by_net)):
        with write_whole(path) as part:
            frame.to_csv(part, index=False)
