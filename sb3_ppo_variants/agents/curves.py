"""Learning curves: read from a run's ``progress.csv``, and kept one line per run in ``curves.jsonl``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sb3_ppo_variants.agents.folder import AgentError
from sb3_ppo_variants.arguments import is_number

CURVES_FILE = "curves.jsonl"
PROGRESS_FILE = "progress.csv"
POINTS = 200
"""of a curve at most, at equal distances in timesteps"""


class Curve(NamedTuple):
    """The curve of one run; the fields of a line, in its order."""

    env_id: str
    recipe: str
    seed: int | None
    algo: str
    timesteps: int
    """where the curve ends"""
    wall_clock: float
    """until there, s"""
    mean_return: float
    """there"""
    curve: list[list[float]]
    """points: timesteps, raw mean return of the last 100 training episodes, and wall-clock time in s"""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """Of two curves with one key, the later replaces the earlier."""
        return self.recipe, self.algo, self.seed


def curve_of_run(run: Path, env_id: str, recipe: str, seed: int | None, algo: str, until: int | None = None) -> Curve:
    """The learning curve of a run.

    :param run: its folder, with ``progress.csv``
    :param until: the last timestep to tell of; None: all
    :raises ValueError: if there is no such file, it cannot be read, or no episode ended in it
    """
    path = run / PROGRESS_FILE
    if not path.is_file():
        raise ValueError(f"{run} has no {PROGRESS_FILE}, which the runs of our algorithms keep")
    with open(path, encoding="utf-8", newline="") as file:
        points = [point for row in csv.DictReader(file) if (point := _point(row, path)) is not None]
    points = _thinned([point for point in points if until is None or point[0] <= until])
    if not points:
        raise ValueError(f"{path} has no mean return: no episode ended")
    timesteps, mean_return, wall_clock = points[-1]
    return Curve(env_id, recipe, seed, algo, int(timesteps), wall_clock, mean_return, points)


def _point(row: dict[str, str], path: Path) -> list[float] | None:
    """A row as a point; None where no episode had ended yet."""
    try:
        mean_return = row.get("rollout/ep_rew_mean")  # there is no such column before an episode has ended
        if not mean_return:
            return None
        timesteps, seconds = int(row["time/total_timesteps"]), float(row["time/time_elapsed"])
        return [timesteps, float(f"{float(mean_return):.6g}"), round(seconds, 1)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a row that cannot be read: {error}") from None


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """The last point in each of ``POINTS`` equal parts of the timesteps."""
    last = points[-1][0] if points else 0
    kept = {math.ceil(point[0] * POINTS / last): point for point in points}
    return list(kept.values())


def read_curves(folder: Path) -> list[Curve]:
    """The curves that an agent's folder holds; none where it has no such file.

    :raises AgentError: for a line that is no curve; names it
    """
    path = folder / CURVES_FILE
    if not path.is_file():
        return []
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return [_parsed(line, f"line {number} of {path}") for number, line in lines if line.strip()]


def _parsed(line: str, where: str) -> Curve:
    try:
        curve = Curve(**json.loads(line))
        if not curve.curve or not all(len(point) == 3 and all(map(is_number, point)) for point in curve.curve):
            raise ValueError("its points are not triples of numbers")
    except (TypeError, ValueError) as error:
        raise AgentError(f"{where} is no curve: {error}") from None
    return curve


def curves_jsonl(curves: Iterable[Curve], added: Curve) -> bytes:
    """The content of ``curves.jsonl`` with a curve more; of the same recipe, algorithm and seed it replaces
    the one there."""
    known: dict[Any, Curve] = {curve.key: curve for curve in curves}
    known[added.key] = added
    lines = [json.dumps(curve._asdict(), ensure_ascii=False, allow_nan=False) for curve in known.values()]
    return ("\n".join(lines) + "\n").encode()
