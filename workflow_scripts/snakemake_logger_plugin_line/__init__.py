"""What Snakemake prints in this folder (profiles/default): one progress line, and the errors.

Snakemake finds this logger plugin by its name. The whole log is in .snakemake/log, and with `--verbose` also on the
terminal.
"""

import math
import re
import shutil
import sys
import textwrap
import threading
import time
from argparse import ArgumentParser
from collections import defaultdict
from logging import WARNING, LogRecord
from statistics import mean

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from relusym.config.reading import check_file
from relusym.errors import UserError
from relusym.jobs.job_log import last_words
from relusym.whole_files import open_file

EVERY_S = 1  # between two updates of the progress line
EVERY_S_IN_A_FILE = 60  # where no line can be overwritten, such as in a pipe: between two lines that differ
CHATTER = re.compile("Using (workflow|shell)|Config file|Assuming|Building DAG|Adding|Conda env|Singularity")
# how messages on failed jobs begin; each of these jobs has a line already
REPEATED = (
    "RuleException:\nCalledProcessError in",
    "Cannot restore",
    "WorkflowError:\nAt least one job did not",
)
NAMED = 4  # the number of jobs of a rule that a dry run names


class LogHandler(LogHandlerBase):
    """Shows finished and running jobs and the time left: on a terminal in a progress line, elsewhere once a minute."""

    writes_to_stream, writes_to_file = True, False
    has_filter = has_formatter = needs_rulegraph = False  # Snakemake's formatter serves `--verbose`

    def __post_init__(self) -> None:
        settings = self.common_settings
        self.stream = sys.stdout if settings.stdout else sys.stderr
        shows = not settings.dryrun and not settings.quiet
        self.moves = self.stream.isatty() and shows
        self.run = Run()
        self.without_metadata = 0
        self.closed = threading.Event()
        if self.moves or (shows and not settings.verbose):
            threading.Thread(target=self._keep_showing, daemon=True).start()

    def emit(self, record: LogRecord) -> None:
        try:
            with self.lock:
                self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        if self.common_settings.verbose or self.common_settings.debug_dag:
            self._print(self.format(record))
        elif event == LogEvent.JOB_ERROR:
            job, _ = self.run.running.get(record.jobid, (record, None))
            self._print(f"failed: {_name(job)}{_error(record.log)}")
        elif event == LogEvent.GROUP_ERROR:
            jobs = len(record.job_error_info)
            self._print(f"failed: {jobs} jobs that were submitted together{_error(record.aux_logs)}")
        elif str(record.msg).startswith("Missing metadata"):  # from `--report`, for files made elsewhere
            self.without_metadata += 1
        elif (
            event in (None, LogEvent.ERROR)
            and not str(record.msg).startswith(REPEATED)
            and (record.levelno >= WARNING or (not self.run.total and not CHATTER.match(str(record.msg))))
        ):
            self._print(_of_a_config_file(str(record.msg)) or str(record.msg))
        self.run.take(event, record)

    def _print(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self.moves else text, file=self.stream, flush=True)

    def _keep_showing(self) -> None:
        last = ""
        while not self.closed.wait(EVERY_S if self.moves else EVERY_S_IN_A_FILE):
            with self.lock:
                if not self.run.total:  # not planned yet, or closed
                    continue
                line = self.run.line()
                if self.moves:
                    line = line[: shutil.get_terminal_size().columns - 1]
                    print(f"\r{line}\x1b[K", end="", file=self.stream, flush=True)
                elif line != last:
                    self._print(line)
                last = line

    def close(self) -> None:
        """Print the last line: how much was done, or would be."""
        self.closed.set()
        with self.lock:
            if count := self.without_metadata:
                self._print(f"The report lacks the run times of {count} files that were made elsewhere")
                self.without_metadata = 0
            if self.common_settings.dryrun and self.run.total:
                self._print(self.run.plan())
            elif self.run.total and self.run.at_once and not self.common_settings.quiet:
                self._print(f"{self.run.done()}, in {_time(time.monotonic() - self.run.started)}")
            self.run.total = 0  # Snakemake closes twice
        super().close()


def _of_a_config_file(message: str) -> str | None:
    """What is wrong with a file of `--configfile` that Snakemake couldn't read, which happens before our checks."""
    if not ("load_configfile" in message or "Config file is not valid" in message):
        return None
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", default=[])
    for path in parser.parse_known_args()[0].configfile:
        try:
            check_file(path)
        except UserError as error:
            return f"config error: {error}"
    return None


def _name(job: LogRecord) -> str:
    return f"{job.rule_name} {_nets(job)}".rstrip()


def _nets(job: LogRecord) -> str:
    """What a job is called among those of its rule: cnn-0, or cnn-0-gcnn-1 for a pair."""
    # a record of an error has no wildcards
    words = {key: word for key, word in getattr(job, "wildcards", {}).items() if key != "fingerprint"}
    return "-".join(words[key] for key in sorted(words, key=lambda key: key.rpartition("_")[2]))


class Run:
    """The progress of a run, from its events."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.jobs: dict[str, int] = {}  # how many, by rule
        self.total = self.at_once = 0
        self.failed: set[int] = set()
        self.running: dict[int, tuple[LogRecord, float]] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)  # by rule, the times of finished jobs
        self.planned: dict[str, list[str]] = defaultdict(list)

    def take(self, event: str | None, record: LogRecord) -> None:
        if event == LogEvent.RUN_INFO and not self.total:
            self.jobs = {rule: number for rule, number in record.stats.items() if rule != "total"}
            self.total = record.stats["total"]
        elif event == LogEvent.JOB_INFO:
            self.running[record.jobid] = record, time.monotonic()
            self.at_once = max(self.at_once, len(self.running))
            self.planned[record.rule_name].append(_nets(record))
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.running:
            job, began = self.running.pop(record.job_id)
            self.seconds[job.rule_name].append((time.monotonic() - began) / (1 - _share_before(job)))
            self.failed.discard(record.job_id)  # an earlier attempt may have failed
        elif event == LogEvent.JOB_ERROR:
            self.failed.add(record.jobid)
            self.running.pop(record.jobid, None)

    def line(self) -> str:
        """The number of finished jobs, the time left, and the running jobs."""
        left = self._seconds_left()
        running = ", ".join(_name(job) + _epoch(job) for job, _ in self.running.values())
        return " | ".join(filter(None, [self.done(), left and f"about {_time(left)} left", running]))

    def done(self) -> str:
        done = sum(map(len, self.seconds.values()))
        failures = f", {len(self.failed)} failed" if self.failed else ""
        return f"{done} of {self.total} jobs done{failures}"

    def plan(self) -> str:
        """The jobs of a dry run: for each rule their number, and the names of the first few."""
        single = [rule for rule, number in self.jobs.items() if number == 1 and self.planned[rule] == [""]]
        lines = []
        for rule in self.jobs.keys() - single:
            names = sorted(self.planned[rule])
            first = names[:NAMED] + ["…"] * (len(names) > NAMED)
            lines.append(f"{self.jobs[rule]:8,} {rule}: {', '.join(first)}")
        indents = {"initial_indent": "       1 of each: ", "subsequent_indent": " " * 18}
        lines = [*sorted(lines, reverse=True), *textwrap.wrap(", ".join(single), 90, **indents)]
        jobs = "1 job" if self.total == 1 else f"{self.total:,} jobs"
        return "\n".join([f"Planned: {jobs} (the full list: --verbose)", *lines])

    def _seconds_left(self) -> float | None:
        """The unfinished jobs of each rule times the rule's mean time so far; None until a job has finished."""
        every = [seconds for some in self.seconds.values() for seconds in some]
        if not every:
            return None
        usual = {rule: mean(self.seconds[rule] or every) for rule in self.jobs}
        work = sum((number - len(self.seconds[rule])) * usual[rule] for rule, number in self.jobs.items())
        for job, began in self.running.values():
            whole = usual[job.rule_name]
            work -= min(time.monotonic() - began + _share_before(job) * whole, whole)
        return work / max(1, self.at_once)


def _error(logs: list[str]) -> str:
    for path in logs:
        if words := last_words(path):
            return f": {words} ({path})"
    return f"; see {', '.join(logs) or 'above'}"


def _epochs(job: LogRecord) -> list[tuple[str, str]]:
    """The epochs, each with their number, at the start and at the end of a training's log (training/loop.py)."""
    try:
        with open_file(job.log[0]) as log:
            start = log.read(4000)
            log.seek(max(0, log.seek(0, 2) - 400))
            lines = start + b"\n" + log.read()
    except (IndexError, OSError):
        return []
    return re.findall(r"epoch +([\d.]+)/(\d+)", lines.decode(errors="replace"))


def _epoch(job: LogRecord) -> str:
    """The epoch that a training has reached, as text."""
    return "".join(f" (epoch {epoch} of {epochs})" for epoch, epochs in _epochs(job)[-1:])


def _share_before(job: LogRecord) -> float:
    """The share of a resumed training that an earlier run did: the first epoch in the log is the first of this run."""
    return sum(max(0, math.ceil(float(epoch)) - 1) / int(epochs) for epoch, epochs in _epochs(job)[:1])


def _time(seconds: float) -> str:
    (hours, minutes), seconds = divmod(round(seconds) // 60, 60), round(seconds) % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
