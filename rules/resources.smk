# What jobs ask for.
from relusym.errors import hears

GPU = 0 if SETTINGS.run.device == "cpu" else 1
# On a machine of its own (no scheduler behind the executor), a job takes its GPU from relusym/jobs/gpu_slots.py.
JOBS_PER_GPU = None if REMOTE else SETTINGS.run.jobs_per_gpu


def on_imagenet(training_id):
    return SETTINGS.model_of(training_id).data.dataset == "imagenet"


def processes(training_id):
    """How many processes make a net together, each on a GPU of its own."""
    return SETTINGS.running(training_id).get("processes", 1)


def cores(training_id):
    """A core for each process that computes or reads image files."""
    workers = SETTINGS.running(training_id).get("workers", 0)
    return max(SETTINGS.run.threads, workers) * processes(training_id)


if not MAIN:
    # A scheduler's warning (relusym/errors.py) goes to every process of a job. The shell and the Snakemake around
    # the script leave it to the script, which would be killed half-way through saving if they ended first.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    shell.prefix("trap '' TERM USR1; set -euo pipefail; ")
elif runs_here():
    # Ctrl-C goes to the jobs as well, as does the end of their terminal: they end in a line each, trainings with their state
    # saved. Snakemake waits for them as at SIGTERM, and doesn't break off with a traceback; before it has jobs, it stops at once.
    def stop(number, frame):
        waiting = signal.getsignal(signal.SIGTERM)
        if not callable(waiting):
            raise KeyboardInterrupt
        Thread(target=waiting, args=(number, frame)).start()  # it takes a lock that this thread may hold

    for number in filter(hears, (signal.SIGINT, signal.SIGHUP)):
        signal.signal(number, stop)
