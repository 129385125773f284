"""A scheduler's or a user's warning that a job has to end, taken as a question that the job asks when it suits."""

import signal
from types import FrameType

from relusym.errors import WARNINGS, hears


class Interruption:
    """Within the context, a warning no longer ends the process: calling the object returns whether there was any.

    Main thread only. Before and after, signals do what they did.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> "Interruption":
        heard = filter(hears, WARNINGS)
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
