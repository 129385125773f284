"""Rule train: make one net, and write its checkpoint and its record."""

from pathlib import Path

from job import job
from relusym.jobs.interruption import Interruption
from relusym.measuring.costs import device_of
from relusym.measuring.train import train_record, weights_record
from relusym.measuring.train_process import as_job
from relusym.records.files import write_trained
from relusym.training.distributed import launch
from relusym.training.progress import Reporter

with job(snakemake) as lock, Interruption() as warned:
    w, params, reads = snakemake.wildcards, snakemake.params, snakemake.params.reads
    settings, device = params.settings, device_of(params.device)
    given = {
        "unit": w.unit,
        "seed": int(w.seed.partition(".")[0]),
        "settings": settings,
        "data": Path(reads["data"]),
        "label": params.label,
        "to": Path(snakemake.output.checkpoint),
        "device": device,
        "in_use": params.images_in_use,
    }

    def interrupted():
        lock.check()
        return warned()

    if weights := reads.get("weights"):
        given["model"] = given.pop("unit")
        record = weights_record(**given, weights=Path(weights))
    else:
        given |= {
            **{key: params.running[key] for key in ("save_every", "workers", "snapshots")},
            "folder": Path(params.folder) if params.folder else None,
            "start": Path(reads["nets"][0]) if reads.get("nets") else None,
            "started": Path(reads["trained"][0]) if reads.get("trained") else None,
            "state": Path(params.state),
        }
        processes = settings["training"]["processes"]
        if processes == 1:
            report = Reporter(f"{w.unit}-{w.seed}")
            record = train_record(**given, interrupted=interrupted, report=report)
        else:
            module, restarts = "relusym.measuring.train_process", params.running["restarts"]
            gpus = device.type == "cuda"
            record = launch(module, as_job(given), processes, restarts, gpus=gpus, interrupted=interrupted)
    write_trained(snakemake.output.record, record)
    print(f"{w.unit}-{w.seed}: {record['status']}, accuracy {record['accuracy']}")
