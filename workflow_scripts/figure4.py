"""Rule figure4: how many channels have which permutation order, by layer and model type."""

from job import job
from relusym.permutation_order import figure4, order_counts
from relusym.records import read_record, write_whole

with job(snakemake):
    counts = order_counts([read_record(path) for path in snakemake.input.flip_merge])
    png, pdf, table = snakemake.output
    figure = figure4(counts, snakemake.params.models)
    for path, metadata in (
        (png, None),
        (pdf, {"CreationDate": None}),
    ):  # the same bytes from the same records
        with write_whole(path) as part:
            figure.savefig(part, dpi=200, metadata=metadata)
    with write_whole(table) as part:
        counts.to_csv(part, index=False)
