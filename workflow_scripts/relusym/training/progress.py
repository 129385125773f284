"""Telling a person how far a training is."""

import sys
from collections.abc import Callable
from typing import TextIO

from relusym.training.loop import Progress


def progress_line(name: str, progress: Progress) -> str:
    """Name, epoch, loss, accuracy, speed and time left, in one line."""
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return (
        f"{name}: epoch {progress.epoch:6.2f}/{progress.epochs}  loss {progress.loss:.3f}  "
        f"accuracy {progress.accuracy:.3f}  {progress.images_per_second:6.0f} images/s  "
        f"{minutes}:{seconds:02d} left"
    )


class Reporter:
    """A line that keeps changing in place on a terminal; a plain line an epoch anywhere else, such as in a log."""

    def __init__(self, name: str, stream: TextIO):
        self.name, self.stream = name, stream

    def __call__(self, progress: Progress) -> None:
        line = progress_line(self.name, progress)
        if self.stream.isatty():
            print(f"\r{line}\x1b[K", end="", file=self.stream, flush=True)
            if progress.epoch >= progress.epochs:
                print(file=self.stream)
        elif progress.epoch_done:
            print(line, file=self.stream, flush=True)


def report_to(name: str, terminal: TextIO) -> Callable[[Progress], None]:
    """What tells of a training's progress in the log that stdout is, and on the terminal if it is one."""
    streams = [sys.stdout, *([terminal] if terminal.isatty() else [])]
    reporters = [Reporter(name, stream) for stream in streams]

    def report(progress: Progress) -> None:
        for reporter in reporters:
            reporter(progress)

    return report
