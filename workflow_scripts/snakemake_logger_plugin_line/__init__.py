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
from collections import Counter, defaultdict
from itertools import zip_longest
from logging import WARNING, LogRecord
from pathlib import Path

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
        self.run.take(event, record)
        if self.common_settings.verbose or self.common_settings.debug_dag:
            self._print(self.format(record))
        elif event == LogEvent.JOB_ERROR:
            self._print(f"failed: {_name(record)}{_error(record.log)}")
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

    def _print(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self.moves else text, file=self.stream, flush=True)

    def _keep_showing(self) -> None:
        last = ""
        while not self.closed.wait(EVERY_S if self.moves else EVERY_S_IN_A_FILE):
            with self.lock:
                if not self.run.total or self.closed.is_set():
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
                self._print(self.run.summary())
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


def _name(record: LogRecord) -> str:
    net = _net(Path(record.log[0])) if record.log else ""
    return " ".join(dict.fromkeys([record.rule_name, net or record.rule_name]))


def _net(log: Path) -> str:
    """A job's nets by its log's path: cnn-0 for train/cnn-0.log and for train/cnn-3f9a1c2b/0.log."""
    types, of_settings, _ = re.sub(r"-[0-9a-f]{8}$", "\0", log.parent.name).partition("\0")
    if not of_settings:
        return log.stem
    nets = zip_longest(types.split("--"), log.stem.split("--"), fillvalue="")
    return "--".join(f"{model}-{seed}" for model, seed in nets)


class Run:
    """The progress of a run, from its events."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.to_do: Counter[str] = Counter()  # by rule, the number of unfinished jobs
        self.total = self.done = self.at_once = 0
        self.failed: set[int] = set()
        self.running: dict[int, tuple[LogRecord, float]] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)  # by rule, the times of finished jobs
        self.planned: dict[str, list[str]] = defaultdict(list)

    def take(self, event: str | None, record: LogRecord) -> None:
        if event == LogEvent.RUN_INFO and not self.total:
            self.to_do = Counter({rule: number for rule, number in record.stats.items() if rule != "total"})
            self.total = self.to_do.total()
        elif event == LogEvent.JOB_INFO:
            self.running[record.jobid] = record, time.monotonic()
            self.at_once = max(self.at_once, len(self.running))
            self.planned[record.rule_name].append(_name(record).rpartition(" ")[2])
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.running:
            job, began = self.running.pop(record.job_id)
            self.seconds[job.rule_name].append((time.monotonic() - began) / (1 - _share_before(job)))
            self.to_do[job.rule_name] -= 1
            self.done += 1
            self.failed.discard(record.job_id)  # an earlier attempt may have failed
        elif event == LogEvent.JOB_ERROR:
            self.failed.add(record.jobid)
            self.running.pop(record.jobid, None)

    def line(self) -> str:
        """The number of finished jobs, the time left, and the running jobs."""
        left = self._seconds_left()
        running = ", ".join(_name(job) + _epoch(job) for job, _ in self.running.values())
        done = f"{self.done} of {self.total} jobs done{self._failures()}"
        return " | ".join(filter(None, [done, left and f"about {_time(left)} left", running]))

    def summary(self) -> str:
        what = f"{self.done} of {self.total} jobs"
        if self.total == 1 and not self.failed:
            ((rule, (name, *_)),) = self.planned.items()
            what = rule if name == rule else f"{rule} {name}"
        return f"{what} done{self._failures()}, in {_time(time.monotonic() - self.started)}"

    def _failures(self) -> str:
        return f", {len(self.failed)} failed" if self.failed else ""

    def plan(self) -> str:
        """The jobs of a dry run: for each rule their number, and the names of the first few."""
        single = [rule for rule, number in self.to_do.items() if number == 1 and self.planned[rule] == [rule]]
        jobs = "1 job" if self.total == 1 else f"{self.total:,} jobs"
        lines = [f"Would run {jobs} (the full list: --verbose):"]
        for rule in self.to_do.keys() - single:
            names = sorted(self.planned[rule])
            first = names[:NAMED] + ["…"] * (len(names) > NAMED)
            lines.append(f"{self.to_do[rule]:8,} {rule}: {', '.join(first)}")
        indents = {"initial_indent": "       1 of each: ", "subsequent_indent": " " * 18}
        others = textwrap.wrap(", ".join(single), 90, **indents)
        return "\n".join([lines[0], *sorted(lines[1:], reverse=True), *others])

    def _seconds_left(self) -> float | None:
        """The unfinished jobs of each rule times the rule's mean time so far; None until a job has finished."""
        every = [seconds for some in self.seconds.values() for seconds in some]
        if not every:
            return None
        means = defaultdict(lambda: sum(every) / len(every))
        means |= {rule: sum(some) / len(some) for rule, some in self.seconds.items()}
        work = sum(number * means[rule] for rule, number in self.to_do.items())
        now = time.monotonic()
        for job, began in self.running.values():
            mean = means[job.rule_name]
            work -= min(now - began + _share_before(job) * mean, mean)
        return work / max(1, self.at_once)


def _error(logs: list[str]) -> str:
    for path in logs:
        if words := last_words(path):
            return f": {words} ({path})"
    return f"; see {', '.join(logs) or 'above'}"


def _epochs(job: LogRecord) -> tuple[list[tuple[bytes, bytes]], ...]:
    """The first and the last epoch in a training's log (training/loop.py), each with their number; empty if none."""
    try:
        with open_file(job.log[0]) as log:
            head = log.read(4000)
            log.seek(max(0, log.seek(0, 2) - 400))
            first, last = (re.findall(rb"epoch +([\d.]+)/(\d+)", end) for end in (head, log.read()))
    except (IndexError, OSError):
        return [], []
    return first[:1], last[-1:]


def _epoch(job: LogRecord) -> str:
    """The epoch that a training has reached, as text."""
    return "".join(f" (epoch {epoch.decode()} of {epochs.decode()})" for epoch, epochs in _epochs(job)[1])


def _share_before(job: LogRecord) -> float:
    """The share of a resumed training that an earlier run did: the first epoch in the log is the first of this run."""
    return sum(max(0, math.ceil(float(epoch)) - 1) / int(epochs) for epoch, epochs in _epochs(job)[0])


def _time(seconds: float) -> str:
    (hours, minutes), seconds = divmod(round(seconds) // 60, 60), round(seconds) % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
