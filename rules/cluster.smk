# Around a run: one Snakemake a scale, and a checklist before jobs are submitted.
import atexit
import os
from itertools import chain

from relusym.jobs.checklist import (
    Submission,
    command_problems,
    folder_problems,
    in_the_way,
    slurm_problems,
)
from relusym.data.extent import extent_of
from relusym.config.image_checks import check_images

# The images that a run would make records from, if those there are of others: a line before any job, a run only without mixing.
OTHER_IMAGES = {}
if workflow.is_main_process:
    if line := in_the_way([".snakemake", *RESULTS.folders]):
        sys.exit(f"error: {line}")
    for line in folder_problems(Path(".snakemake")):  # where Snakemake writes even if nothing is to do
        sys.exit(f"error: {line}")
    try:
        # a damaged file is named here: inside of a rule, Snakemake would add lines of its own
        for record in RESULTS.jobs:
            RESULTS.reason(record)
        for prepared in sorted({job.prepared for job in RESULTS.jobs.values() if job.prepared}):
            if line := RESULTS.other_images(prepared):
                OTHER_IMAGES[prepared] = line
                print(f"notice: {line}", file=sys.stderr)
    except UserError as error:
        sys.exit(f"error: {error}")


def jobs_to_run():
    return [
        job for job in workflow.dag.needrun_jobs() if job.rule.name not in (renamed("all"), renamed("status"))
    ]


def unwritable():
    """Why a job couldn't write its outputs, its log or its costs; None if all can."""
    files = {Path(file) for job in jobs_to_run() for file in [*job.output, *job.log, job.benchmark] if file}
    folders = sorted({file.parent for file in files})
    return in_the_way(folders, files) or next(chain(*map(folder_problems, folders)), None)


def unfit():
    """Why a run can't go well with the images or the device that the config names; None if it can."""
    device, run = SETTINGS.run.device, jobs_to_run()
    files = {str(file) for job in run for file in [*job.input, *job.output]}
    try:
        for prepared in sorted({job.prepared for job in RESULTS.jobs.values() if job.prepared} & files):
            for model in SETTINGS.readers(Path(prepared).stem):
                if extent := extent_of(SETTINGS.preparation_for(model)[0], Path(prepared)):
                    check_images(SETTINGS, model, extent)
        if device.startswith("cuda") and workflow.local_exec and any(job.resources.get("gpu") for job in run):
            from relusym.measuring.costs import device_of  # imports PyTorch

            device_of(device)
    except UserError as error:
        return str(error)


def problems():
    """One line a reason why jobs that are submitted elsewhere can't go well, before the first of them is."""
    if workflow.local_exec:
        return []
    print(
        f"Assumed: the compute nodes see {Path.cwd()} and {sys.executable} under the same names (a shared file system).",
        file=sys.stderr,
    )
    found = []
    for option in ("submit_cmd", "cancel_cmd"):  # those of other schedulers
        found += command_problems(getattr(workflow.executor_settings, option, None) or "")
    if hasattr(workflow.executor_settings, "status_command"):  # those of Slurm
        submissions = {submission_of(job) for job in jobs_to_run() if not job.is_local}
        found += slurm_problems(sorted(submissions), workflow.executor_settings.status_command)
    return found


def submission_of(job):
    """A job as the executor plugin will submit it, alone or with its group."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    whole = workflow.dag.get_job_group(job) or job
    partition, account = (whole.resources.get(f"slurm_{name}") for name in ("partition", "account"))
    given = {
        "run_uuid": "test",
        "slurm_logfile": os.devnull,
        "comment_str": "test",
        "account": f"-A {account}" if account else "",
        "partition": f"-p {partition}" if partition else "",
        "workdir": None,
    }
    call = get_submit_command(whole, given, workflow.executor_settings) + set_gres_string(whole)
    # what grows past a partition's limit in a later attempt would wait in the queue for ever
    attempts = 1 + job.restart_times
    last = job.rule.expand_resources(job.wildcards_dict, job.input, attempts, skip_evaluation={"tmpdir"})
    minutes = max(int(resources.get("runtime") or 0) for resources in (whole.resources, last))
    options = " ".join(call.partition("--comment test ")[2].split())
    return Submission(job.rule.name, partition or "", minutes, options)


def mixing():
    """Why a run would put records of other images beside those that are there; None if it wouldn't."""
    read = {file for job in jobs_to_run() for file in job.input if file in OTHER_IMAGES}
    return OTHER_IMAGES[min(read)] if read else None


def lift_default_limit():
    """Take Snakemake's own limit of 100 jobs a second off, which no scheduler is quick enough to meet.

    With a limit, the scheduler looks through all jobs once more a second for each job that was ever started.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


onstart:
    if jobs_to_run():
        if line := mixing() or unwritable() or unfit():
            sys.exit(f"error: {line}")
        from relusym.jobs.job_lock import JobLock  # what a dry run does without

        # in place of Snakemake's own lock, which a kill -9 leaves locked
        running = JobLock(
            f".snakemake/relusym-{SETTINGS.scale}.lock", lambda line: print(line, file=sys.stderr)
        )
        try:
            running.acquire(wait=False)
        except UserError as error:
            sys.exit(f"error: {error}")
        atexit.register(running.release)
        lift_default_limit()
        if workflow.local_exec:
            # beside the library: a workflow that uses this one as a module may lack it
            from forked_script import run_as_forks

            run_as_forks([job.rule.script for job in jobs_to_run() if job.rule.script])
        found = problems()
        if found:
            sys.exit("\n".join(["Nothing was submitted:", *(f"  {problem}" for problem in found)]))
