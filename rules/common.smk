# Wildcards, paths, and which jobs a run still needs.
import gc
import re
import signal
import sys
import time
from pathlib import Path

# Thousands of jobs stay till the end: searching them for garbage takes a fifth of a dry run.
gc.freeze()
gc.set_threshold(100_000)

from relusym.findings import paper_values
from relusym.experiments import resnet_settings
from relusym.errors import UserError
from relusym.experiments.filters import inputs_of, read_about
from relusym.records import read_record
from relusym.experiments.settings import Settings
from relusym.theory import STATEMENTS

try:
    SETTINGS = Settings.of(config)
    RESNETS = resnet_settings.ResNetSettings.of(SETTINGS)
except UserError as error:  # not raised: Snakemake would add its own lines behind the one that tells
    sys.exit(f"config error: {error}")

RESULTS = f"results/{SETTINGS.scale}"
RECORDS = f"{RESULTS}/records"
DATA = f"data/{SETTINGS.dataset}.safetensors"


wildcard_constraints:
    model="|".join(SETTINGS.models),
    model_1="|".join(SETTINGS.models),
    model_2="|".join(SETTINGS.models),
    seed=r"\d+",
    seed_1=r"\d+",
    seed_2=r"\d+",


LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
CHECKPOINT = f"{RESULTS}/checkpoints/{{model}}-{{seed}}.safetensors"
TRAIN_RECORD = f"{RECORDS}/train/{{model}}-{{seed}}.json"
FLIP_RECORD = f"{RECORDS}/flip_merge/{{model}}-{{seed}}.json"
RESNET_TRAIN_RECORD = f"{RECORDS}/resnet_train/{{row}}-{{stage}}.json"
RESNET_RECORD = f"{RECORDS}/resnet_merge/{{row}}.json"
PAIR_RECORD = f"{RECORDS}/pair_merge/{{model_1}}-{{seed_1}}--{{model_2}}-{{seed_2}}.json"
FILTERS_FILE = f"{RESULTS}/filters/{{model}}-{{seed}}.safetensors"
FLIPPED_TRAINING_RECORD = f"{RECORDS}/flipped_training/flipped_training.json"
THEORY_RECORD = f"{RECORDS}/theory/{{statement}}.json"


def of_net(pattern, net):
    return pattern.format(model=net[0], seed=net[1])


def of_pair(pattern, pair):
    (model_1, seed_1), (model_2, seed_2) = pair
    return pattern.format(model_1=model_1, seed_1=seed_1, model_2=model_2, seed_2=seed_2)


# What has to be done is told by the records themselves: a job is needed if its record is missing or was made with other
# settings. Checkpoints and images are asked for only by jobs that are needed, so a fresh clone with committed records
# builds its tables without them. (Hence `rerun-triggers: mtime` in profiles/default: Snakemake's own notes on params
# are not there in a fresh clone.)
CHANGED = Path(".snakemake/settings_changed")
WHOLE = Settings.of({**config, "seeds": None})  # the scale, of which this run may be a piece

# Every record of the scale, and the settings that it has to be made with.
TRAIN = {of_net(TRAIN_RECORD, net): SETTINGS.train(net[0]) for net in WHOLE.nets}
FLIP = {of_net(FLIP_RECORD, net): SETTINGS.merge([net[0]]) for net in WHOLE.nets}
PAIR = {of_pair(PAIR_RECORD, (a, b)): SETTINGS.merge([a[0], b[0]]) for a, b in WHOLE.pairs}
RESNET_TRAIN = {
    RESNET_TRAIN_RECORD.format(row=row, stage=stage): RESNETS.train(row, stage)
    for row in RESNETS.rows
    for stage in RESNETS.stages(row)
}
RESNET_MERGE = {RESNET_RECORD.format(row=row): RESNETS.merge(row) for row in RESNETS.rows}
ALONE = {FLIPPED_TRAINING_RECORD: SETTINGS.flipped_training()} | {  # of no net
    THEORY_RECORD.format(statement=name): SETTINGS.theory(name) for name in STATEMENTS
}
JOBS = {  # the records of those that may be submitted, by kind
    "train": TRAIN,
    "flip_merge": FLIP,
    "pair_merge": PAIR,
    "resnet_train": RESNET_TRAIN,
    "resnet_merge": RESNET_MERGE,
}
WANTED = TRAIN | FLIP | PAIR | ALONE | RESNET_TRAIN | RESNET_MERGE
CHOSEN = (
    {*ALONE, *RESNET_TRAIN, *RESNET_MERGE}
    | {of_net(pattern, net) for pattern in (TRAIN_RECORD, FLIP_RECORD) for net in SETTINGS.nets}
    | {of_pair(PAIR_RECORD, pair) for pair in SETTINGS.pairs}
)


def read(record, reader=read_record):
    """What `reader` finds in a record (or beside it); None if there is none."""
    try:
        return reader(record) if Path(record).exists() else None
    except UserError as error:
        if Path(record).exists():
            sys.exit(f"error: {error}")
        return None  # the run whose job this is has just removed it, to make it again


READ = {record: read(record) for record in WANTED}
MADE_WITH = {record: found["settings"] if found else None for record, found in READ.items()}
OUTDATED = {record for record in CHOSEN if MADE_WITH[record] not in (None, WANTED[record])}
# Why rows of Table 5 can't be measured now. A dry run lists their jobs all the same. What was absent in an earlier run is
# tried again, unless it still is for the same reason.
ABSENT = {row: None if workflow.output_settings.dryrun else RESNETS.absent(row) for row in RESNETS.rows}
OUTDATED |= {
    record
    for row, record in zip(RESNETS.rows, RESNET_MERGE, strict=True)
    if READ[record] and resnet_settings.absence(READ[record]) not in (None, ABSENT[row])
}


def has_its_filters(net):
    """Whether a flip merge's record has its other output, the filters' arrays, beside it, and none of another merge's."""
    filters, record = read(of_net(FILTERS_FILE, net), read_about), READ[of_net(FLIP_RECORD, net)]
    made_from = (filters["settings"], filters["inputs"]) if filters else None
    return made_from == (SETTINGS.filters(net[0]), inputs_of(record))


OUTDATED |= {
    record for net in SETTINGS.nets if READ[record := of_net(FLIP_RECORD, net)] and not has_its_filters(net)
}
MISSING = {record for record in CHOSEN if MADE_WITH[record] is None}
if (OUTDATED or MISSING) and workflow.is_main_process:
    # Newer than any output, so that the jobs that have it as input run again; not touched by these, whose outputs are newer
    # then. Of other content each time: Snakemake takes an input of the same checksum for unchanged.
    CHANGED.parent.mkdir(exist_ok=True)
    CHANGED.write_text(str(time.time_ns()))


def tabulated(records):
    """Those of this run, and those that other pieces of the scale left: pieces in any order end in one whole table."""
    return [record for record in records if record in CHOSEN or MADE_WITH[record] == WANTED[record]]


TRAIN_RECORDS, FLIP_RECORDS, PAIR_RECORDS = tabulated(TRAIN), tabulated(FLIP), tabulated(PAIR)


def is_needed(record):
    return record in OUTDATED or MADE_WITH.get(record) is None


def outdated(record):
    """An input that makes the job of an outdated record run again; that of a missing one does so by itself."""
    return str(CHANGED) if record in OUTDATED else []


def changed(*records):
    """An input that makes what is drawn from records again if some have to be made: a missing input alone doesn't."""
    return str(CHANGED) if any(map(is_needed, records)) else []


MERGED = {net for net in SETTINGS.nets if is_needed(of_net(FLIP_RECORD, net))} | {
    net for pair in SETTINGS.pairs if is_needed(of_pair(PAIR_RECORD, pair)) for net in pair
}


def is_trained_now(net):
    """Whether a net's training may have to run: for its record, or for a checkpoint that a needed merge reads."""
    if is_needed(of_net(TRAIN_RECORD, net)):
        return True
    return net in MERGED and not Path(of_net(CHECKPOINT, net)).exists()


def data_for(job_is_needed):
    return DATA if job_is_needed else []


def checkpoints_to_merge(record, nets):
    # not ancient(): Snakemake would leave out a merge whose only news in this run is the net trained again
    return [of_net(CHECKPOINT, net) for net in nets] if is_needed(record) else []


def flip_records_of(*models):
    """The records of all flip merges of nets of these types, by type and seed."""
    records = [of_net(FLIP_RECORD, (model, seed)) for model in models for seed in WHOLE.seeds]
    return [record for record in records if record in FLIP_RECORDS]


def filters_beside(records):
    """The filters' arrays that are the other output of flip merges, by their records."""
    return [f"{RESULTS}/filters/{Path(record).stem}.safetensors" for record in records]


def figure(stem, title, *endings):
    """A figure's files; the PNG is shown in the report."""
    png = report(
        f"{RESULTS}/figures/{stem}.png",
        caption=f"../report/{stem}.rst",
        category="Figures",
        labels={"figure": title},
    )
    return [png, *(f"{RESULTS}/figures/{stem}{ending}" for ending in (".pdf", *endings))]


def table(stem, category="Tables", labels=None):
    """A table's four files. The report shows the HTML, by the caption `report/<stem>.rst`."""
    page = report(
        f"{RESULTS}/tables/{stem}.html",
        caption=f"../report/{stem}.rst",
        category=category,
        labels=labels or {"table": re.sub(r"\B(?=\d)", " ", stem.capitalize())},  # table2: Table 2
    )
    return [*multiext(f"{RESULTS}/tables/{stem}", ".csv", ".md", ".tex"), page]


def paper_grid(wildcards):
    """What the benchmark has to know of the paper's grid, to say how long it would take."""
    paper = Settings.of({**config, "scale": "paper", "seeds": None})
    training = paper.train(paper.models[0])
    return {
        "width": training["network"]["width"],
        "epochs": training["training"]["epochs"],
        "images": 50_000,
        "seeds": len(paper.seeds),
        "pairs": len(paper.types_paired),
        "invariance_from": [how["invariance_from"] for how in paper.config["models"].values()],
    }


NOTES = SETTINGS.notes()

# ---- what a job asks for

GPU = 0 if SETTINGS.config["device"] == "cpu" else 1
# On a machine of its own (no scheduler behind the executor), a job takes its GPU from relusym/gpu_slots.py.
JOBS_PER_GPU = None if workflow.remote_exec else SETTINGS.config["jobs_per_gpu"]


def growing(amount):
    """A resource that grows with the attempt: what failed for want of memory or time gets more of it."""
    return lambda wildcards, attempt: amount * attempt


if not workflow.is_main_process:
    # A scheduler's warning (relusym/interruption.py) goes to every process of a job. The shell and the Snakemake around
    # the script leave it to the script, which would be killed half-way through saving if they ended first.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    shell.prefix("trap '' TERM USR1; set -euo pipefail; ")
