# The resources that jobs ask for.
from relusym.errors import hears

GPU = 0 if SETTINGS.run.device == "cpu" else 1
# Without a scheduler, a job gets its GPU from relusym/jobs/gpu_slots.py.
JOBS_PER_GPU = None if REMOTE else SETTINGS.run.jobs_per_gpu


def on_imagenet(training_id):
    return SETTINGS.model_of(training_id).data.dataset == "imagenet"


def processes(training_id):
    """How many processes train a net together, each on its own GPU."""
    return SETTINGS.running(training_id).get("processes", 1)


def cores(training_id):
    """One core for each process that computes or reads image files."""
    workers = SETTINGS.running(training_id).get("workers", 0)
    return max(SETTINGS.run.threads, workers) * processes(training_id)


if not MAIN:
    # A scheduler's warning (relusym/errors.py) goes to every process of a job. The shell and the Snakemake around
    # the script ignore it: if they ended first, the script would be killed half-way through saving.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    shell.prefix("trap '' TERM USR1; set -euo pipefail; ")
elif runs_here():
    # Ctrl-C, or closing the terminal, also signals the jobs: each ends with one line, trainings after saving their state.
    # Snakemake waits for them as after SIGTERM, without a traceback; before any job has started, it stops at once.
    def stop(number, frame):
        handler = signal.getsignal(signal.SIGTERM)
        if not callable(handler):
            raise KeyboardInterrupt
        # in another thread, since the handler takes a lock that this thread may hold
        Thread(target=handler, args=(number, frame)).start()

    for number in filter(hears, (signal.SIGINT, signal.SIGHUP)):
        signal.signal(number, stop)
