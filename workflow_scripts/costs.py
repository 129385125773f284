"""Rule costs: what each kind of job cost, from Snakemake's benchmark files."""

from pathlib import Path

from job import job
from relusym.findings.tables import costs, write_table

with job(snakemake):
    folders = [Path(snakemake.params.benchmarks) / kind for kind in snakemake.params.kinds]
    frame = costs([file for folder in folders for file in sorted(folder.glob("*.tsv"))])
    write_table(frame, snakemake.output[0].removesuffix(".csv"), "Costs: what each kind of job took", [])
