"""Rules of the statements: demonstrate a statement of the paper, and write its record."""

from job import job
from relusym.records.files import write_record
from relusym.theory import record

with job(snakemake):
    statement = record(snakemake.params.name, snakemake.params.settings)
    write_record(snakemake.output.record, statement)
    verdict = "holds" if statement["holds"] else "FAILS"
    print(f"{statement['statement']}: {verdict} in {statement['draws']} draws")
