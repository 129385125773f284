# What this workflow uses of Snakemake beyond its documented interface: each with why, and what a run does without it.
# It is here alone, and everything works without it (`RELUSYM_PUBLIC=1 snakemake …` runs so), only slower or less watched.
import os
import sys
from functools import cache

PUBLIC_ONLY = os.environ.get("RELUSYM_PUBLIC") == "1"


def inside(read, otherwise):
    """What `read` gets of Snakemake, or `otherwise` where this Snakemake has no such thing."""
    if PUBLIC_ONLY:
        return otherwise
    try:
        return read()
    except (AttributeError, ImportError):
        return otherwise


# A process that a scheduler started for one job reads the Snakefile again: there, a job has its inputs whatever is there,
# and nothing is checked or printed. Without: by the option that such processes have.
MAIN = inside(lambda: workflow.is_main_process, "--target-jobs" not in sys.argv)
# A job that was submitted has its GPUs from the scheduler. Without: from the workflow's own slots.
REMOTE = inside(lambda: workflow.remote_exec, False)
# A rule's name in a workflow that takes this one as a module. Without: its own.
renamed = inside(lambda: workflow.modifier.modify_rulename, lambda name: name)
# A module that is given its config reads no file of ours. Without: by whose Snakefile is being run.
TAKES_CONFIG_FILE = inside(lambda: not workflow.modifier.skip_configfile, True)
IS_MAIN_SNAKEFILE = inside(
    lambda: workflow.modifier.is_main_snakefile(),
    str(workflow.basedir) == os.path.dirname(str(workflow.current_basedir)),
)
# Keys of the command line and files of `--configfile`, for errors that name them. Without: config.yaml alone is checked.
CONFIG_WORDS = inside(lambda: workflow.config_settings.config, {})
CONFIG_FILES = inside(lambda: [*workflow.config_settings.configfiles], [])


def groups():
    """What is submitted together, by the command line or a profile. Without: each training alone."""
    return inside(lambda: workflow.group_settings.group_components, {})


def runs_here():
    """Whether jobs run on this machine: they may be interrupted, and nothing is submitted. Without: they do."""
    return inside(lambda: workflow.local_exec, True)


@cache
def _command_line(is_read):
    """Targets, what -R names, whether targets are forced (-f), and whether all is (-F)."""

    def read():
        if is_read:
            settings = workflow.dag_settings
            return {*settings.targets}, {*settings.forcerun}, settings.forcetargets, settings.forceall
        from snakemake.cli import get_argument_parser

        if os.path.splitext(os.path.basename(sys.argv[0]))[0] not in ("snakemake", "__main__"):
            raise AttributeError
        words = get_argument_parser().parse_args(sys.argv[1:])
        return {*(words.targets or ())}, {*(words.forcerun or ())}, words.force, words.forceall

    return inside(read, (set(), set(), False, False))


def words_of_command_line():
    """Targets and -R. Without: an unknown one is Snakemake's own error, and no table is printed at the end."""
    return _command_line(bool(inside(lambda: workflow.dag_settings, None)))[:2]


def forced_words():
    """The rules and files that -R and -f name; `all` for -F."""
    targets, again, targets_too, all_too = _command_line(bool(inside(lambda: workflow.dag_settings, None)))
    return "all" if all_too else again | targets if targets_too else again


def is_forced(rule_name, files):
    """Whether -R, -f or -F wants a job done again, by its rule or by a file of it.

    Else, a record that is there is no part of a plan. Without: it is made again when it has been deleted.
    """
    words = forced_words()
    return words == "all" or renamed(rule_name) in words or not words.isdisjoint(files)


def jobs_to_run():
    """The jobs of this run, for checks before the first of them, and to import once what many need.

    Without: each job checks for itself, and imports for itself.
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
    """Whether this call is one to run jobs, and not to list, export or report them. Without: nothing is printed."""
    return inside(lambda: bool(workflow.scheduler) and not workflow.dryrun and not workflow.touch, False)


def all_rules():
    """Every rule, for a list of what can be asked for by name. Without: unknown ones are Snakemake's own error."""
    return inside(lambda: [*workflow.rules], [])


def lift_default_limit():
    """Take Snakemake's own limit of 100 jobs a second off, which no scheduler is quick enough to meet.

    With a limit, the scheduler looks through all jobs once more a second for each job that was ever started.
    """

    def lift():
        limit = workflow.scheduling_settings.max_jobs_per_timespan
        if limit and (limit.max_jobs, limit.timespan) == (100, 1):
            workflow.scheduler.job_rate_limiter = None

    inside(lift, None)


def read_once():
    """Read a script's source and a function's parameters, and look up a file's rule, once and not for each job again: a
    third of a plan of thousands.

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
            if code is None or vars(function):  # a wrapper, or one whose parameters were overwritten
                return parameters(function)
            if code not in known:
                known[code] = parameters(function)
            return known[code]

        snakemake.script.get_source = get_source
        snakemake.common.get_function_params = snakemake.rules.get_function_params = get_function_params
        index.match_producers = cache(index.match_producers)

    inside(read, None)


def executor_option(name):
    """What the profile sets for the executor's plugin, to check it before jobs are submitted. Without: no check."""
    return inside(lambda: getattr(workflow.executor_settings, name), None)


def submission_of(job):
    """A job as the executor plugin will submit it, alone or with its group, for `sbatch --test-only`."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    whole = workflow.dag.get_job_group(job) or job
    partition, account = (whole.resources.get(f"slurm_{name}") for name in ("partition", "account"))
    words = {
        "run_uuid": "test",
        "slurm_logfile": os.devnull,
        "comment_str": "test",
        "account": f"-A {account}" if account else "",
        "partition": f"-p {partition}" if partition else "",
        "workdir": None,
    }
    call = get_submit_command(whole, words, workflow.executor_settings) + set_gres_string(whole)
    # what grows past a partition's limit in a later attempt would wait in the queue for ever
    attempts = 1 + job.restart_times
    last = job.rule.expand_resources(job.wildcards_dict, job.input, attempts, skip_evaluation={"tmpdir"})
    minutes = max(int(resources.get("runtime") or 0) for resources in (whole.resources, last))
    options = " ".join(call.partition("--comment test ")[2].split())
    return job.rule.name, partition or "", minutes, options


def fork_scripts(jobs):
    """Run scripts as forks of one process that has imported what they need: imports take most of a small job's time.

    Replaces the class with which Snakemake runs a Python script. Without: each starts a Python.
    """
    # beside the library: a workflow that uses this one as a module may lack it
    from forked_script import run_as_forks

    run_as_forks([job.rule.script for job in jobs if job.rule.script])
