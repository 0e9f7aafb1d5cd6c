"""The episodes of a run, from the files that SB3's ``Monitor`` writes: its score and its learning curve."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

LAST_EPISODES = 100
"""over which a run is scored (§6.1)"""
CURVE_POINTS = 100
"""parts of the timesteps, each with a mean in the curve"""


class Episodes(NamedTuple):
    """The episodes of a run, in the order of their ends."""

    ends: np.ndarray
    """timestep at which each ended, over all environments, ``(n,)``"""
    returns: np.ndarray
    """raw, ``(n,)``"""

    def score(self) -> float:
        """Mean return of the last 100, or of all where fewer ended; NaN where none did."""
        return float(np.mean(self.returns[-LAST_EPISODES:])) if len(self.returns) else float("nan")

    def curve(self, timesteps: int) -> list[float | None]:
        """Mean return of those that ended in each of ``CURVE_POINTS`` equal parts of the timesteps; None: none did.

        Those that ended in the last rollout, after ``timesteps``, belong to the last part.
        """
        parts = np.minimum((self.ends - 1) * CURVE_POINTS // timesteps, CURVE_POINTS - 1)
        return [
            float(np.mean(self.returns[parts == part])) if (parts == part).any() else None
            for part in range(CURVE_POINTS)
        ]


def read_episodes(folder: Path) -> Episodes:
    """The episodes of a run.

    A run that was interrupted begins the episodes under way again, and the timesteps of those are not in the files:
    what follows seems to have ended earlier by as many. An episode whose return is not finite is left out.

    :param folder: of the run, with a monitor file for each of its environments
    :raises ValueError: if there is none, or one cannot be read
    """
    files = sorted(folder.glob("*monitor.csv"))
    if not files:
        raise ValueError(f"{folder} has no monitor.csv of an environment")
    ends: list[np.ndarray] = []
    returns: list[np.ndarray] = []
    for path in files:
        with open(path, encoding="utf-8", newline="") as file:
            lengths, values = _columns((line for line in file if not line.startswith("#")), path)
        ends.append(np.cumsum(lengths) * len(files))
        returns.append(values)
    all_ends, all_returns = np.concatenate(ends), np.concatenate(returns)
    order = np.argsort(all_ends, kind="stable")
    order = order[np.isfinite(all_returns[order])]
    return Episodes(all_ends[order], all_returns[order])


def _columns(lines: Iterable[str], path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        rows = [(int(row["l"]), float(row["r"])) for row in csv.DictReader(lines)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of a Monitor: {error}") from error
    return np.array([length for length, _ in rows], dtype=np.int64), np.array([value for _, value in rows])
