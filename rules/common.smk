# Paths, and which jobs a run needs. What is current is decided by relusym.records (currency.py for one record, results.py
# for a scale), from what records say and never by the times of files.
import gc
import re
import signal
from functools import cache
from pathlib import Path
from threading import Thread

from relusym.config.measurements import MEASUREMENTS
from relusym.records.results import SUBMITTED, Results
from relusym.config.settings import Settings
from relusym.findings import BEYOND, FIGURES, TABLES, made
from relusym.theory import STATEMENTS

try:
    from relusym.findings import selection
except UserError as error:  # the paper's tables, which it reads
    sys.exit(f"error: {error}")

# Thousands of jobs stay till the end: searching them for garbage takes a fifth of a dry run.
gc.freeze()
gc.set_threshold(100_000)

HOME = Path(str(workflow.current_basedir)).parent  # of this workflow, which may be a module of another one
try:
    SETTINGS = Settings.of(config, ["scales", HOME / "scales"])
except UserError as error:
    sys.exit(f"config error: {error}")
config = {  # for report/workflow.rst
    **config,
    "net": {"width": SETTINGS.common.network.get("width", 1), "epochs": SETTINGS.sections.training.epochs},
}
RESULTS = Results(SETTINGS)
FOLDER = RESULTS.folder

# The wildcard {unit} is a model, or an earlier stage of its training (simsiam.pretraining); {matching} is a folder, or
# empty for the config's own matching.
UNIT, NET_1, NET_2 = ("{unit}", "{seed}"), ("{model_1}", "{seed_1}"), ("{model_2}", "{seed_2}")
CHECKPOINT, TRAIN = RESULTS.checkpoint(UNIT), RESULTS.record("train", UNIT)
FLIP = RESULTS.record("flip_merge", ("{model}", "{seed}")).replace("flip_merge/", "flip_merge/{matching}")
FILTERS = RESULTS.filters(("{model}", "{seed}")).replace("filters/", "filters/{matching}")
PAIR = RESULTS.record("pair_merge", NET_1, NET_2).replace("pair_merge/", "pair_merge/{matching}")
FIGURE_3 = RESULTS.other_record("flipped_training", "flipped_training")
MEASURED = RESULTS.record("{measurement}", ("{nets}", "")).replace("-.json", ".json")
MERGING = "flip_merge", "pair_merge", "measure"
LOGS, BENCHMARKS = f"{FOLDER}/logs", f"{FOLDER}/benchmarks"
ANY_MODEL = "|".join(SETTINGS.models)
renamed = workflow.modifier.modify_rulename  # of a rule, in a workflow that takes this one as a module


wildcard_constraints:
    unit="|".join(unit.replace(".", r"\.") for model in SETTINGS.models.values() for unit in model.units),
    model=ANY_MODEL,
    model_1=ANY_MODEL,
    model_2=ANY_MODEL,
    seed=r"\d+",
    seed_1=r"\d+",
    seed_2=r"\d+",
    measurement="|".join(MEASUREMENTS),
    nets=r"[\w-]+",
    matching="|".join(f"({matching}/)" for matching in SETTINGS.matchings) + "|",


FORCED = set()  # by this file; what else Snakemake has to force, the command line asked for


def is_forced(output, rule_name):
    """Whether the command line wants a job done again, by its rule (-R, -F, --forceall) or by its file."""
    by_file = output in workflow.dag.forcefiles and output not in FORCED
    return by_file or any(rule.name == renamed(rule_name) for rule in workflow.dag.forcerules)


def force(output):
    """Have a job run as by -R. Its old outputs stay until it has ended well, since they are `update` outputs."""
    FORCED.add(output)
    workflow.dag.forcefiles.add(output)
    return True


def is_needed(record):
    """Whether the job of a record has to run. (A process that was started for one job runs that one.)"""
    if not workflow.is_main_process:
        return True
    return force(record) if RESULTS.reason(record) else is_forced(record, RESULTS.jobs[record].rule)


@cache
def retrained():
    """Train records that this run may write anew for the checkpoint that comes with them."""
    asked = [*(rule.name for rule in workflow.dag.targetrules), *workflow.dag.targetfiles]

    @cache
    def is_read(kind):
        read = {"flip_merge", "filters"} if kind == "flip_merge" else {kind}
        others = {renamed(name) for name, (_, kinds) in (TABLES | FIGURES).items() if read.isdisjoint(kinds)}
        return not others.issuperset(asked)

    def is_asked(job):
        if job.targets:
            return any(name in file for name in ("beyond", *job.targets) for file in asked)
        return is_read(job.kind)

    merges = {r: j for r, j in RESULTS.jobs.items() if r in RESULTS.chosen and j.rule in MERGING}
    return RESULTS.retrained(r for r, j in merges.items() if is_asked(j) and is_needed(r))


def inputs_if_needed(record):
    """What the job of a record reads, if it has to run.

    A job that needn't run has no inputs: a fresh clone has neither checkpoints nor images, and asks for none.
    """
    inputs = RESULTS.inputs(record)
    needed = is_made_now(record) or any(is_forced(train, "train") for train in inputs.get("trained", []))
    if needed and "weights" in inputs and workflow.is_main_process:
        force(inputs["weights"])  # read anew from the files, which may be others now; downloads are kept
    if workflow.is_main_process and RESULTS.jobs[record].kind == "train" and record in retrained():
        force(record)  # its checkpoint may be there, and a net of an earlier epoch be missing
    return inputs if needed else {}


def is_made_now(record):
    """Whether this run writes a record: for itself, or since a merge needs the checkpoint that comes with it."""
    return is_needed(record) or record in retrained()


NETS = {net for job in RESULTS.jobs.values() for net in job.nets}
WILDCARDS = {"unit": "seed", "model": "seed", "model_1": "seed_1", "model_2": "seed_2"}


def is_made(file):
    """Whether a file is there, or it can be made of nets that the scale has."""
    if Path(file).exists() or file in RESULTS.jobs:
        return True
    matches = (output.match(file) for each in workflow.rules for output in each.output)
    if found := next(filter(None, matches), None):
        w = found.groupdict()
        nets = {(w[model], int(w[seed])) for model, seed in WILDCARDS.items() if model in w}
        return nets <= NETS and "/records/" not in file
    return False


def merge_params(record):
    """What workflow_scripts/merge.py has to know of the job of a record, whose path has wildcards."""

    def of_job(take):
        return lambda w: take(RESULTS.jobs[record.format(**w)])

    return {
        "names": of_job(lambda job: [list(net) for net in job.nets]),
        "settings": of_job(lambda job: job.settings),
        "label": of_job(lambda job: SETTINGS.label(job.nets[0][0])),
        "batch_size": of_job(lambda job: SETTINGS.models[job.nets[0][0]].merging.batch_size),
        "images_in_use": of_job(lambda job: RESULTS.images_in_use(job.prepared)),
        "device": SETTINGS.run.device,
        "jobs_per_gpu": JOBS_PER_GPU,
    }
