"""Says how far the training of a block is."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL = 60.0
"""seconds between two lines"""


class Progress:
    """Prints a line about a training, at most once in an interval; the first one after the first.

    :param label: what is trained, for the line
    :param total: timesteps of each run
    :param interval: in seconds
    :param clock: tells the time, in seconds
    """

    def __init__(self, label: str, total: int, interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic):
        self._label, self._total, self._interval, self._clock = label, total, interval, clock
        self._last = clock()
        self._began: tuple[float, int] | None = None
        """when it was first told how far the training was, and how far: what was done before took no time of ours"""

    def reached(self, timesteps: int) -> None:
        """Take note of how far the training is.

        :param timesteps: of each run, from its beginning
        """
        now = self._clock()
        if self._began is None:
            self._began = now, timesteps
        if now - self._last < self._interval:
            return
        self._last = now
        since, first = self._began
        line = f"{self._label}: {timesteps:,} of {self._total:,} timesteps"
        if timesteps > first:
            line += f", {shown((now - since) * (self._total - timesteps) / (timesteps - first))} to go"
        print(line, flush=True)


def shown(seconds: float) -> str:
    """A time that nobody knows to the second, as text."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
