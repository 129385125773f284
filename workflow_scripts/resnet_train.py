"""Rule resnet_train: one training of a row of Table 5, in one process or several; its checkpoint and its record."""

import hashlib
import json
import sys

from relusym.training.worker import run

from job import job
from relusym.records import write_record
from relusym.training.distributed import launch
from relusym.training.progress import report_to

terminal = sys.stderr
with job(snakemake) as lock:
    row, stage = snakemake.wildcards.row, snakemake.wildcards.stage
    params = snakemake.params
    # another config never goes on from this state
    key = hashlib.sha256(json.dumps(params.settings, sort_keys=True).encode()).hexdigest()[:12]
    training = {
        "row": row,
        "stage": stage,
        "settings": params.settings,
        "images": params.images,
        "to": snakemake.output.checkpoint,
        "pretrained": snakemake.input.get("pretrained") or None,
        "workers": params.workers,
        "state": f"{params.state}-{key}.safetensors",
        "device": params.device,
    }
    tell = report_to(f"{row} {stage}", terminal)

    def report(progress):
        lock.check()
        tell(progress)

    def say(line):
        lock.check()
        print(line)

    if params.settings["processes"] == 1:
        record = run(training, report)
    else:
        processes = params.settings["processes"]
        record = launch("relusym.training.worker", training, processes, params.restarts, say)
    write_record(snakemake.output.record, record)
    print(f"{row} {stage}: {record['status']}, waited for data {record['data_wait_share']} of the time")
