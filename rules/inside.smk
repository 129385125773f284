# Everything that this workflow uses of Snakemake beyond its documented interface: why, and what happens without it. Nothing
# depends on it: `RELUSYM_PUBLIC=1 snakemake …` runs without, only slower and with fewer checks.
import os
import sys
from functools import cache

PUBLIC_ONLY = os.environ.get("RELUSYM_PUBLIC") == "1"


def inside(read, otherwise):
    """The value that `read` returns, or `otherwise` if this version of Snakemake lacks what it reads."""
    if PUBLIC_ONLY:
        return otherwise
    try:
        return read()
    except (AttributeError, ImportError):
        return otherwise


# A process that a scheduler starts for one job reads the Snakefile again; it must see the job's inputs whichever files exist
# by then, and it checks and prints nothing. Without: recognised by a command-line option of such processes.
MAIN = inside(lambda: workflow.is_main_process, "--target-jobs" not in sys.argv)
# A submitted job gets its GPUs from the scheduler. Without: from the workflow's own slots.
REMOTE = inside(lambda: workflow.remote_exec, False)
# A rule's name in a workflow that uses this one as a module. Without: its name here.
renamed = inside(lambda: workflow.modifier.modify_rulename, lambda name: name)
# A module whose config is set by the importing workflow doesn't read our config.yaml. Without: decided by which Snakefile runs.
TAKES_CONFIG_FILE = inside(lambda: not workflow.modifier.skip_configfile, True)
IS_MAIN_SNAKEFILE = inside(
    lambda: workflow.modifier.is_main_snakefile(),
    str(workflow.basedir) == os.path.dirname(str(workflow.current_basedir)),
)
# Keys set by `--config` and files of `--configfile`, so that errors can name them. Without: only config.yaml is checked.
CONFIG_KEYS = inside(lambda: workflow.config_settings.config, {})
CONFIG_FILES = inside(lambda: [*workflow.config_settings.configfiles], [])


def groups():
    """The groups of jobs that the command line or a profile submits together. Without: each training is submitted alone."""
    return inside(lambda: workflow.group_settings.group_components, {})


def runs_here():
    """Whether jobs run on this machine, where Ctrl-C reaches them, and nothing is submitted. Without: true."""
    return inside(lambda: workflow.local_exec, True)


@cache
def _typed():
    """The options of the command line, since Snakemake reads it only after the rules."""
    from snakemake.cli import get_argument_parser

    if os.path.splitext(os.path.basename(sys.argv[0]))[0] not in ("snakemake", "__main__"):
        raise AttributeError
    return get_argument_parser().parse_args(sys.argv[1:])


def _command_line():
    """The targets, what -R names, whether the targets are forced (-f), and whether every job is (-F)."""

    def read():
        if (settings := workflow.dag_settings) is None:
            typed = _typed()
            return {*(typed.targets or ())}, {*(typed.forcerun or ())}, typed.force, typed.forceall
        return {*settings.targets}, {*settings.forcerun}, settings.forcetargets, settings.forceall

    return inside(read, (set(), set(), False, False))


def targets_and_forced():
    """The targets and what -R names. Without: an unknown name is Snakemake's own error, and no table is printed at the end."""
    return _command_line()[:2]


def is_forced(rule_names, files):
    """Whether -R, -f or -F forces a job, by its rule or one before it, or by one of its files.

    Otherwise, a job whose record exists isn't planned. Without: delete a record to have it made again.
    """
    targets, forced, force_targets, force_all = _command_line()
    names = forced | targets if force_targets else forced
    return force_all or not names.isdisjoint([*map(renamed, rule_names), *files])


def jobs_to_run():
    """The jobs of this run, for checks before the first of them, and for importing once the modules that many need.

    Without: each job does its own checks and imports.
    """
    return inside(
        lambda: [
            job
            for job in workflow.dag.needrun_jobs()
            if job.rule.name not in (renamed("all"), renamed("status"))
        ],
        [],
    )


def runs_jobs():
    """Whether this call runs jobs, rather than listing, exporting or reporting them. Without: nothing is printed at the end."""
    return inside(lambda: bool(workflow.scheduler) and not workflow.dryrun and not workflow.touch, False)


def when_planned(tell):
    """Call `tell` when the jobs are planned, before a dry run lists them: a dry run calls no handler. Without: never."""

    def add():
        from snakemake.logging import logger
        from snakemake_interface_logger_plugins.common import LogEvent

        def is_logged(record):
            if getattr(record, "event", None) == LogEvent.RUN_INFO:
                tell()
            return True

        logger.addFilter(is_logged)

    inside(add, None)


def all_rules():
    """Every rule, to list the possible targets. Without: an unknown target is Snakemake's own error."""
    return inside(lambda: [*workflow.rules], [])


def lift_default_limit():
    """Lift Snakemake's default limit of 100 jobs per second, which no scheduler is quick enough to reach.

    With a limit, the scheduler scans all jobs once more per second for each job that was ever started.
    """

    def lift():
        limit = workflow.scheduling_settings.max_jobs_per_timespan
        if limit and (limit.max_jobs, limit.timespan) == (100, 1):
            workflow.scheduler.job_rate_limiter = None

    inside(lift, None)


def read_once():
    """Cache scripts' sources, functions' parameters and files' rules, which Snakemake looks up anew for each job: a third of
    the time to plan thousands of jobs.

    Without: slower.
    """

    def read():
        import snakemake.common
        import snakemake.output_index
        import snakemake.rules
        import snakemake.script

        source, parameters = snakemake.script.get_source, snakemake.common.get_function_params
        index, sources, known = snakemake.output_index.OutputIndex, {}, {}

        def get_source(path, sourcecache, basedir=None, wildcards=None, params=None):
            if "{" in str(path):
                return source(path, sourcecache, basedir, wildcards, params)
            if (key := (str(path), str(basedir))) not in sources:
                sources[key] = source(path, sourcecache, basedir)
            return sources[key]

        def get_function_params(function):
            code = getattr(function, "__code__", None)
            if code is None or vars(function):  # a wrapper, or a function whose parameters were overwritten
                return parameters(function)
            if code not in known:
                known[code] = parameters(function)
            return known[code]

        snakemake.script.get_source = get_source
        snakemake.common.get_function_params = snakemake.rules.get_function_params = get_function_params
        index.match_producers = cache(index.match_producers)

    inside(read, None)


def executor_option(name):
    """A setting of the profile for the executor plugin, checked before jobs are submitted. Without: no check."""
    return inside(lambda: getattr(workflow.executor_settings, name), None)


def profile_files():
    """The files of the profiles given by `--profile`, for messages. Without: "the profile"."""

    def read():
        from snakemake.cli import get_profile_dir

        found = map(get_profile_dir, _typed().profile or ())
        return " and ".join(str(file) for _, file in filter(None, found))

    return inside(read, "") or "the profile"


def submission_of(job):
    """A job as the executor plugin will submit it, alone or with its group, for `sbatch --test-only`."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    whole = workflow.dag.get_job_group(job) or job
    partition, account = (whole.resources.get(f"slurm_{name}") for name in ("partition", "account"))
    fields = {
        "run_uuid": "test",
        "slurm_logfile": os.devnull,
        "comment_str": "test",
        "account": f"-A {account}" if account else "",
        "partition": f"-p {partition}" if partition else "",
        "workdir": None,
    }
    call = get_submit_command(whole, fields, workflow.executor_settings) + set_gres_string(whole)
    # a later attempt that asks for more than a partition's time limit would wait in the queue for ever
    attempts = 1 + job.restart_times
    last = job.rule.expand_resources(job.wildcards_dict, job.input, attempts, skip_evaluation={"tmpdir"})
    minutes = max(int(resources.get("runtime") or 0) for resources in (whole.resources, last))
    options = " ".join(call.partition("--comment test ")[2].split())
    return job.rule.name, partition or "", minutes, options


def fork_scripts(jobs):
    """Run scripts as forks of one process that has imported their modules, since imports take most of a small job's time.

    Replaces the class with which Snakemake runs Python scripts. Without: each script starts its own Python.
    """
    # imported here since it isn't part of the library: a workflow that uses this one as a module may lack it
    from forked_script import run_as_forks

    run_as_forks([job.rule.script for job in jobs if job.rule.script])
