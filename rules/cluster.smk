# Around a run: one Snakemake a scale, a checklist before jobs are submitted, a summary at the end.
import atexit
import shlex

from relusym.jobs.checklist import Request, data_problems, folder_problems, slurm_problems
from relusym.jobs.job_lock import JobLock
from relusym.jobs.run_summary import Failure, summary

TYPED = shlex.join(["snakemake", *sys.argv[1:]])
# in place of Snakemake's own lock, which a kill -9 leaves locked
RUNNING = JobLock(f".snakemake/relusym-{SETTINGS.scale}.lock")


def jobs_to_run():
    return [job for job in workflow.dag.needrun_jobs() if job.rule.name not in ("all", "status", "estimate")]


def problems():
    """One line a reason why jobs that are submitted elsewhere can't go well, told before the first of them is."""
    if workflow.local_exec:
        return []
    print(
        f"Assumed: the compute nodes see {Path.cwd()} and {sys.executable} under the same names (a shared file system).",
        file=sys.stderr,
    )
    found = [folder_problems(Path(RESULTS))]
    if any(job.rule.name == "prepare_data" for job in jobs_to_run()):
        dataset = SETTINGS.config["scales"][SETTINGS.scale]["data"]["dataset"]
        found.append(data_problems(Path(DATA), dataset, SETTINGS.config["cifar10"]))
    if hasattr(workflow.executor_settings, "status_command"):  # those of Slurm
        requests = {request_of(job) for job in jobs_to_run() if not job.is_local}
        in_order = sorted(requests, key=lambda request: (request.rule, request.minutes))
        found.append(slurm_problems(in_order, workflow.executor_settings.status_command))
    return [problem for some in found for problem in some]


def request_of(job):
    asked, attempts = job.resources, 1 + job.restart_times
    # what grows past a partition's limit in a later attempt would wait in the queue for ever
    last = job.rule.expand_resources(job.wildcards_dict, job.input, attempts, skip_evaluation={"tmpdir"})
    gpu = bool(asked.get("gpu") or asked.get("gpu_model") or asked.get("gres"))
    return Request(job.rule.name, asked.get("slurm_partition"), int(last.get("runtime") or 0), gpu)


onstart:
    if jobs_to_run():
        try:
            RUNNING.acquire(wait=False)
        except UserError as error:
            sys.exit(f"error: {error}")
        atexit.register(RUNNING.release)
        found = problems()
        if found:
            sys.exit("\n".join(["Nothing was submitted:", *(f"  {problem}" for problem in found)]))


onerror:
    failures = []
    for failed in workflow.scheduler.failed:
        for job in failed.jobs if failed.is_group() else [failed]:
            if not all(Path(output).exists() for output in job.output):
                name = " ".join([job.rule.name, *job.wildcards_dict.values()])
                failures.append(Failure(name, Path(job.log[0]) if job.log else None, str(failed.jobid)))
    undone = [job for job in jobs_to_run() if not all(Path(output).exists() for output in job.output)]
    text = "\n".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in log)
    failures.sort(key=lambda failure: failure.job)
    told = summary(failures, max(0, len(undone) - len(failures)), TYPED, text)
    print(f"\n{told}", file=sys.stderr)
