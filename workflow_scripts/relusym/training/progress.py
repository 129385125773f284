"""How far a training is, for a person to read."""

import sys
import time
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
    """A line in the log every half minute and after each epoch; Snakemake's line shows the last of them."""

    def __init__(self, name: str, stream: TextIO | None = None, every_s: float = 30):
        self.name, self.stream, self.every_s = name, stream, every_s
        self.last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.epoch_done or now - self.last >= self.every_s:
            self.last = now
            print(progress.line(self.name), file=self.stream or sys.stdout, flush=True)
