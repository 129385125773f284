# Paths, and which jobs a run needs: those whose records are missing. relusym.records (fingerprint.py, results.py) decides where
# a record is and whether it is complete, from its settings and never from modification times.
import gc
import re
import signal
from functools import cache
from pathlib import Path
from threading import Thread

from relusym.beyond import MEASUREMENTS
from relusym.config.settings import Settings
from relusym.findings import Table, declared, fingerprint
from relusym.findings.layout import page
from relusym.records.results import SUBMITTED, Results
from relusym.theory import STATEMENTS
from relusym.whole_files import write_text

try:
    from relusym.findings import selection
    from relusym.findings.figures import filter_pairs
except UserError as error:  # in the paper's tables, which are read on import
    sys.exit(f"error: {error}")

# Thousands of jobs live until the end: searching them for garbage takes a fifth of a dry run.
gc.freeze()
gc.set_threshold(100_000)
read_once()

try:
    SETTINGS = Settings.of(config, ["scales", ROOT / "scales"])
except UserError as error:
    sys.exit("\n".join(f"config error: {line}" for line in str(error).split("\n")))
if MAIN and TAKES_CONFIG_FILE:
    for name in SETTINGS.unread(CONFIG_KEYS):
        print(
            f"notice: nothing at scale {SETTINGS.scale} reads {name}; add 'data={{dataset: {name}}}' to train the "
            "scale's nets on it",
            file=sys.stderr,
        )
config = {  # for report/workflow.rst
    **config,
    "net": {"width": SETTINGS.common.network.get("width", 1), "epochs": SETTINGS.sections.training.epochs},
}
RESULTS = Results(SETTINGS, retry=MAIN)
FOLDER = RESULTS.folder
LOGS = f"{FOLDER}/logs"

# The wildcard {training_id} is a model, or an earlier stage of its training (simsiam.pretraining). A seed gets a number (0.1)
# where another record has its name.
NET = "{training_id}-{fingerprint}/{seed}"
MODEL = NET.replace("training_id", "model")
TWO_NETS = "{model_1}--{model_2}-{fingerprint}/{seed_1}--{seed_2}"
NETS = "{nets}-{fingerprint}/{seeds}"
TRAIN, CHECKPOINT = f"{FOLDER}/records/train/{NET}.json", f"{FOLDER}/checkpoints/{NET}.safetensors"
FLIP, FILTERS = f"{FOLDER}/records/flip_merge/{MODEL}.json", f"{FOLDER}/filters/{MODEL}.safetensors"
PAIR = f"{FOLDER}/records/pair_merge/{TWO_NETS}.json"
MEASURED = f"{FOLDER}/records/{{measurement}}/{NETS}.json"
ANY_MODEL = "|".join(SETTINGS.models)


wildcard_constraints:
    training_id="|".join(
        training_id.replace(".", r"\.")
        for model in SETTINGS.models.values()
        for training_id in model.training_ids
    ),
    model=ANY_MODEL,
    model_1=ANY_MODEL,
    model_2=ANY_MODEL,
    fingerprint="|".join(sorted({Path(key).parent.name.rpartition("-")[2] for key in RESULTS.jobs})),
    seed=r"\d+(\.\d+)?",
    seed_1=r"\d+",
    seed_2=r"\d+(\.\d+)?",
    measurement="|".join(MEASUREMENTS),
    nets=rf"({ANY_MODEL})(--({ANY_MODEL}))*",
    seeds=r"\d+(--\d+)*(\.\d+)?",


def job_of(path, w):
    """The key of the job that makes the file at `path`, a path with wildcards."""
    return RESULTS.key_of(path.format(**w))


def is_asked_again(key):
    """Whether the command line forces a finished job, or a training that it depends on."""
    rule_name = RESULTS.jobs[key].rule
    rule_names = [rule_name, "train"] if rule_name in ("flip_merge", "pair_merge", "measure") else [rule_name]
    return is_forced(rule_names, [RESULTS.prefix + file for file in RESULTS.outputs(key)])


def is_to_do(key):
    return not RESULTS.is_there(key) or is_asked_again(key)


@cache
def file_to_wait_for(key):
    """One output of a job that is to do: all its outputs are complete when this one is."""
    outputs = RESULTS.outputs(key)
    return next((file for file in outputs if not RESULTS.exists(file)), outputs[0])


@cache
def waits_for(key):
    """The files that a job reads and that have to be made first.

    A finished job waits for nothing: a fresh clone has neither checkpoints nor images, and needs none as long as no job is to
    run. The modification time of a complete file is ignored.
    """
    job, inputs = RESULTS.jobs[key], RESULTS.inputs(key)
    net = job.kind == "train" and not RESULTS.exists(RESULTS.checkpoint(job.nets[0]))
    if not (net or is_to_do(key)):
        return []
    files = [inputs["weights"]] if "weights" in inputs else []
    if "data" in inputs and not RESULTS.exists(inputs["data"]):
        files.append(inputs["data"])
    for checkpoint, record in zip(inputs.get("nets", []), inputs.get("trained", []), strict=True):
        if not RESULTS.exists(checkpoint) or not RESULTS.exists(record) or is_to_do(RESULTS.key_of(record)):
            files += [checkpoint, record]
    return files


def read_by(key):
    """The files that a job reads, by the names of `Results.inputs`."""
    inputs = RESULTS.inputs(key)
    return {
        name: RESULTS.prefix + files if isinstance(files, str) else [RESULTS.prefix + file for file in files]
        for name, files in inputs.items()
    }


def train_job(w):
    """The arguments of `measuring.train.TrainJob.of` for a net, except its checkpoint's path."""
    key = job_of(TRAIN, w)
    job, files = RESULTS.jobs[key], read_by(key)
    running = SETTINGS.running(w.training_id)
    return {
        "training_id": w.training_id,
        "seed": job.nets[0][1],
        "settings": job.settings,
        "data": files["data"],
        "label": SETTINGS.label(SETTINGS.model_of(w.training_id).id),
        "in_use": RESULTS.images_in_use(job.prepared),
        "device": SETTINGS.run.device,
        **{name: running[name] for name in ("save_every", "workers", "snapshots") if running},
        "folder": SETTINGS.imagenet["train"] if on_imagenet(w.training_id) else None,
        "start": next(iter(files.get("nets", [])), None),
        "started": next(iter(files.get("trained", [])), None),
        "state": RESULTS.prefix + f"{FOLDER}/states/{'-'.join(Path(NET).parts)}.safetensors".format(**w),
    }


def merge_job(path):
    """The arguments of `measuring.merge.MergeJob.of` for the record at `path` (with wildcards), except its outputs."""

    def merge_job(w):
        key = job_of(path, w)
        job, files = RESULTS.jobs[key], read_by(key)
        model = job.nets[0][0]
        return {
            "names": [list(net) for net in job.nets],
            "settings": job.settings,
            "checkpoints": files["nets"],
            "trained": files["trained"],
            "data": files["data"],
            "label": SETTINGS.label(model),
            "batch_size": SETTINGS.models[model].merging.batch_size,
            "in_use": RESULTS.images_in_use(job.prepared),
            "device": SETTINGS.run.device,
        }

    return merge_job


@cache
def counted_by_status():
    """The trainings and merges for the paper's tables; of a scale without any, all trainings, merges and measurements."""
    of_nets = {key: job for key, job in RESULTS.jobs.items() if key in RESULTS.chosen and job.nets}
    return [
        key
        for key, job in of_nets.items()
        if not job.is_beyond and all(SETTINGS.model_of(type_).is_in_paper for type_, _ in job.nets)
    ] or [*of_nets]
