# Checks before a run: one Snakemake per scale at a time, and a checklist before jobs are submitted.
import atexit

from relusym.config.checks import check_images
from relusym.data import extent_of
from relusym.jobs.checklist import (
    Submission,
    command_problems,
    in_the_way,
    slurm_problems,
)
from relusym.whole_files import check_writable

PREPARED = sorted({job.prepared for job in RESULTS.jobs.values() if job.prepared})

# Prepared images that differ from those that existing records were made from. They are reported before any job starts, and a
# run that would mix the two is refused.
OTHER_IMAGES = {}
REMEDY = f"name those images in the config, root and label, or move {FOLDER} away to begin anew"
if MAIN:
    if line := in_the_way([".snakemake", *(RESULTS.prefix + folder for folder in RESULTS.folders)]):
        sys.exit(f"error: {line}")
    try:
        check_writable(".snakemake")  # Snakemake writes there even if there is nothing to do
        # a broken record is reported here, and again by the jobs that read it; all other jobs run
        for key in RESULTS.jobs:
            RESULTS.is_there(key)
        for line in dict.fromkeys(RESULTS.broken.values()):
            print(f"notice: {line}", file=sys.stderr)
        for prepared in PREPARED:
            if line := RESULTS.other_images(prepared):
                OTHER_IMAGES[RESULTS.prefix + prepared] = line
    except UserError as error:
        sys.exit(f"error: {error}")


def images_read():
    """The files of prepared images that the jobs of this run read."""
    outputs = (file.removeprefix(RESULTS.prefix) for job in jobs_to_run() for file in job.output)
    prepared = (RESULTS.jobs[key].prepared for key in map(RESULTS.key_of, outputs) if key)
    return {RESULTS.prefix + file for file in prepared if file}


def unwritable():
    """Why some job couldn't write its outputs or its log; None if all can."""
    files = {Path(file) for job in jobs_to_run() for file in [*job.output, *job.log] if file}
    folders = sorted({file.parent for file in files})
    if line := in_the_way(folders, files):
        return line
    try:
        for folder in folders:
            check_writable(folder)
    except UserError as error:
        return str(error)


def unfit():
    """Why a run would fail with the images or the device that the config names; None if it wouldn't."""
    device, run = SETTINGS.run.device, jobs_to_run()
    files = {str(file) for job in run for file in job.output} | images_read()
    try:
        for prepared in sorted({RESULTS.prefix + prepared for prepared in PREPARED} & files):
            for model in SETTINGS.readers(Path(prepared).stem):
                if extent := extent_of(SETTINGS.preparation_for(model)[0], Path(prepared)):
                    check_images(SETTINGS, model, extent)
        if device.startswith("cuda") and runs_here() and any(job.resources.get("gpu") for job in run):
            from relusym.measuring.loading import device_named  # imports PyTorch

            device_named(device)
    except UserError as error:
        return str(error)


def problems():
    """The reasons why submitted jobs would fail, one line each, before the first is submitted."""
    if runs_here():
        return []
    print(
        f"Assumed: the compute nodes see {Path.cwd()} and {sys.executable} under the same names (a shared file system).",
        file=sys.stderr,
    )
    lines = []
    for option in ("submit_cmd", "cancel_cmd"):  # those of other schedulers
        lines += command_problems(executor_option(option) or "")
    if status := executor_option("status_command"):  # of Slurm
        submissions = {Submission(*submission_of(job)) for job in jobs_to_run() if not job.is_local}
        lines += slurm_problems(sorted(submissions), status, profile_files())
    return lines


def mixing():
    """Why a run would mix records of different images; None if it wouldn't."""
    read = images_read() & {*OTHER_IMAGES}
    return f"{OTHER_IMAGES[min(read)]}: {REMEDY}" if read else None


def refusal():
    """Why a run is stopped before its first job; None if it isn't."""
    return mixing() or unwritable() or unfit()


@cache
def notices():
    """Print, once, that tables are made from records of other images, or, in a dry run, that the run would be stopped."""
    if not runs_jobs() and (line := refusal()):
        print(f"notice: this run would be stopped before its first job: {line}", file=sys.stderr)
    elif not mixing():  # a run that mixes images ends with that line
        for line in OTHER_IMAGES.values():
            tables = "tables are made from them all the same; to add records,"
            print(f"notice: {line}: {tables} {REMEDY}", file=sys.stderr)


if OTHER_IMAGES or (MAIN and IS_MAIN_SNAKEFILE):  # a module's onstart isn't run
    when_planned(notices)
if OTHER_IMAGES:
    atexit.register(notices)  # if nothing is planned


RUN = []  # the rules of the jobs of this run


onstart:
    if jobs := jobs_to_run():
        RUN.extend(job.rule.name for job in jobs)
        if line := refusal():
            sys.exit(f"error: {line}")
        from relusym.jobs.job_lock import JobLock  # not needed by a dry run

        # in place of Snakemake's own lock, which stays locked after a kill -9
        running = JobLock(
            f".snakemake/relusym-{SETTINGS.scale}.lock", lambda line: print(line, file=sys.stderr)
        )
        try:
            running.acquire(wait=False)
        except UserError as error:
            sys.exit(f"error: {error}")
        atexit.register(running.release)
        lift_default_limit()
        if runs_here():
            fork_scripts(jobs)
        if lines := problems():
            sys.exit("\n".join(["Nothing was submitted:", *(f"  {line}" for line in lines)]))
