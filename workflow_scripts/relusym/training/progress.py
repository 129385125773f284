"""How far a training is, for a person to read."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO


@dataclass
class Progress:
    """Where a training is: `epoch` of `epochs`, mean loss and accuracy of the epoch so far, speed, time left."""

    epoch: float
    epochs: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float
    epoch_done: bool

    def line(self, name: str) -> str:
        """All of it in one line."""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return (
            f"{name}: epoch {self.epoch:6.2f}/{self.epochs}  loss {self.loss:.3f}  accuracy {self.accuracy:.3f}  "
            f"{self.images_per_second:6.0f} images/s  {minutes}:{seconds:02d} left"
        )


class Reporter:
    """A line that keeps changing in place on a terminal; a plain line an epoch anywhere else, such as in a log."""

    def __init__(self, name: str, *streams: TextIO):
        self.name, self.streams = name, streams or (sys.stdout,)

    def __call__(self, progress: Progress) -> None:
        for stream in self.streams:
            line = progress.line(self.name)
            if stream.isatty():
                end = "\n" if progress.epoch >= progress.epochs else ""
                print(f"\r{line}\x1b[K", end=end, file=stream, flush=True)
            elif progress.epoch_done:
                print(line, file=stream, flush=True)


def report_to(name: str, terminal: TextIO) -> Callable[[Progress], None]:
    """A reporter in the log that stdout is, and on the terminal if it is one."""
    return Reporter(name, sys.stdout, *([terminal] if terminal.isatty() else []))
