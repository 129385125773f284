"""Rule train: train one net, and write its checkpoint and its record."""

import hashlib
import json
import sys
from pathlib import Path

from job import job
from relusym.experiments.measuring import device_of, train_net
from relusym.jobs.interruption import Interruption
from relusym.records import write_record
from relusym.training.progress import report_to

terminal = sys.stderr
with job(snakemake) as lock, Interruption() as interrupted:
    wildcards, settings = snakemake.wildcards, snakemake.params.settings
    name = f"{wildcards.model}-{wildcards.seed}"
    # another config never goes on from this state
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    tell = report_to(name, terminal)

    def report(progress):
        lock.check()
        tell(progress)

    record = train_net(
        wildcards.model,
        int(wildcards.seed),
        settings,
        Path(snakemake.params.data),
        Path(snakemake.output.checkpoint),
        device=device_of(snakemake.params.device),
        state=Path(f"{snakemake.params.state}-{key}.safetensors"),
        interrupted=interrupted,
        report=report,
    )
    write_record(snakemake.output.record, record)
    print(
        f"{name}: {record['status']}, accuracy {record['accuracy']}, invariance error {record['invariance_error']}"
    )
