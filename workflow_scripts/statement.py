"""Rules of the statements: demonstrate one statement of the paper, and write its record."""

from job import job
from relusym.records.files import write_record
from relusym.theory import record

with job(snakemake):
    demonstrated = record(snakemake.params.name, snakemake.params.settings)
    write_record(snakemake.output.record, demonstrated)
    holds = "holds" if demonstrated["holds"] else "FAILS"
    print(f"{demonstrated['statement']}: {holds} in {demonstrated['draws']} draws")
