"""Rule train: make one net, and write its checkpoint and its record."""

from pathlib import Path

from job import job
from relusym.errors import Interruption
from relusym.measuring.train import TrainJob, train_record, weights_record
from relusym.records.files import write_trained
from relusym.training.distributed import launch
from relusym.training.loop import Reporter

with job(snakemake) as lock, Interruption() as warned:
    params = snakemake.params
    plain = params.job | {"to": snakemake.output.checkpoint}
    train_job = TrainJob.of(plain)

    def interrupted():
        lock.check()
        return warned()

    if params.weights:
        record = weights_record(train_job, Path(params.weights))
    elif (processes := train_job.settings["training"]["processes"]) == 1:
        record = train_record(train_job, interrupted=interrupted, report=Reporter(train_job.name))
    else:
        module, gpus = "relusym.measuring.train", train_job.device.type == "cuda"
        record = launch(module, plain, processes, params.restarts, gpus=gpus, interrupted=interrupted)
    write_trained(snakemake.output.record, record)
    train_job.state.unlink(missing_ok=True)  # not earlier: without a record, the training goes on from it
    print(f"{train_job.name}: {record['status']}, accuracy {record['accuracy']}")
