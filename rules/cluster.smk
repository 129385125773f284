# Around a run: one Snakemake a scale, and a checklist before jobs are submitted.
import atexit
import os

from relusym.jobs.checklist import Submission, data_problems, folder_problems, slurm_problems
from relusym.jobs.job_lock import JobLock

# in place of Snakemake's own lock, which a kill -9 leaves locked
RUNNING = JobLock(f".snakemake/relusym-{SETTINGS.scale}.lock", lambda line: print(line, file=sys.stderr))


# The images that a run would make records from, if those there are of others: a line before any job, a run only without mixing.
OTHER_IMAGES = {}
if workflow.is_main_process:
    try:
        # a damaged record is named here: inside of a rule, Snakemake would add lines of its own
        for record in RESULTS.jobs:
            RESULTS.read(record)
    except UserError as error:
        sys.exit(f"error: {error}")
    for prepared in sorted({job.prepared for job in RESULTS.jobs.values() if job.prepared}):
        if line := RESULTS.other_images(prepared):
            OTHER_IMAGES[prepared] = line
            print(f"notice: {line}", file=sys.stderr)


def jobs_to_run():
    return [
        job for job in workflow.dag.needrun_jobs() if job.rule.name not in (renamed("all"), renamed("status"))
    ]


def problems():
    """One line a reason why jobs that are submitted elsewhere can't go well, before the first of them is."""
    if workflow.local_exec:
        return []
    print(
        f"Assumed: the compute nodes see {Path.cwd()} and {sys.executable} under the same names (a shared file system).",
        file=sys.stderr,
    )
    found = folder_problems(Path(FOLDER))
    for job in jobs_to_run():
        if job.rule.name == renamed("prepare_data"):
            found += data_problems(Path(job.output[0]), *SETTINGS.preparation(job.wildcards.dataset))
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


onstart:
    if jobs_to_run():
        if line := mixing():
            sys.exit(f"error: {line}")
        try:
            RUNNING.acquire(wait=False)
        except UserError as error:
            sys.exit(f"error: {error}")
        atexit.register(RUNNING.release)
        found = problems()
        if found:
            sys.exit("\n".join(["Nothing was submitted:", *(f"  {problem}" for problem in found)]))
