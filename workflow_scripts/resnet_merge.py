"""Rule resnet_merge: measure a row of Table 5, and merge its net with its flipped self; record and small arrays."""

from pathlib import Path

from job import job
from relusym import checkpoint
from relusym.experiments.measuring import device_of
from relusym.experiments.resnet_measuring import absent_record, measure_row
from relusym.records import write_record

with job(snakemake):
    row, params = snakemake.wildcards.row, snakemake.params
    if params.absent:
        record, arrays = absent_record(row, params.settings, params.absent), {}
    else:
        record, arrays = measure_row(
            row,
            params.settings,
            Path(snakemake.input.net),
            Path(snakemake.input.data),
            device=device_of(params.device),
        )
    about = {"kind": "resnet_filters", "row": row, "status": record["status"], "reason": record["reason"]}
    checkpoint.save(snakemake.output.filters, arrays, about)
    write_record(snakemake.output.record, record)
    print(
        f"{row}: {record['status']}, {record.get('reason')}, {record.get('accuracy')}, {record.get('barrier')}"
    )
