"""Rules table3 and table5: all that was measured of each ResNet, beside the paper's values."""

from job import job
from relusym.findings.tables import table5, write_table
from relusym.records import data_notes, read_record

with job(snakemake):
    records = [read_record(path) for path in snakemake.input.records]
    params = snakemake.params
    frame = table5(records, params.rows)
    trained = [read_record(path) for path in snakemake.input.trained]
    waits = [record["data_wait_share"] for record in trained if record["data_wait_share"] is not None]
    waited = [f"Trainings waited for images {max(waits):.1%} of the time at most"] if waits else []
    notes = [f"{r['row']} is left out: {r['reason']}" for r in records if r["status"] != "ok"]
    write_table(
        frame,
        snakemake.output[0].removesuffix(".csv"),
        "ResNets merged with their flipped selves",
        [*params.notes, *data_notes(records), *waited, *notes],
    )
