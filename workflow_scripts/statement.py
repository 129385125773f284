"""Rules of the statements: demonstrate one statement of the paper, and write its record."""

from job import job
from relusym.records.files import write_record
from relusym.theory import record

with job(snakemake):
    found = record(snakemake.params.name, snakemake.params.settings)
    write_record(snakemake.output.record, found)
    print(f"{found['statement']}: {'holds' if found['holds'] else 'FAILS'} in {found['draws']} draws")
