"""Results of runs: one JSON line each, in one file per task and number of timesteps.

``<folder>/<timesteps>/<task>.jsonl``; a line has the task, the setting with all its settings, the seed, the timesteps,
the versions of what it was made with, the score, and the curve. A run is done if its line is there: removing a line, or
a file, has it done again. Lines of other timesteps are in other files; a line of the same name whose settings are not
today's is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from sb3_ppo_variants.arguments import is_number, shown
from sb3_ppo_variants.files import atomic_write, folder_name
from sb3_ppo_variants.reproduce.settings import SETTINGS, Run

IN_PROGRESS = "in_progress"
"""the folder, within that of the results, of what is being trained, and of locks; it may be removed when nothing is"""
SIGNIFICANT_DIGITS = 5
"""of returns, in curves"""
PACKAGES = ("sb3-ppo-variants", "stable_baselines3", "sb3_contrib", "torch", "gymnasium", "mujoco", "numpy")
"""whose versions a line has"""


class Row(NamedTuple):
    """The result of one run; the fields of a line, in its order."""

    task: str
    setting: str
    seed: int
    timesteps: int
    """that were asked for; runs end with their rollouts, and so a little later"""
    score: float | None
    """mean raw return of the last 100 episodes, or of all where fewer ended; None: it diverged before one had ended"""
    episodes: int
    """that ended"""
    diverged: int | None
    """timestep at which the training ended because a number was not finite; None: it came to its end"""
    algorithm: str
    settings: dict[str, Any]
    versions: dict[str, str]
    curve: list[float | None]
    """mean raw return of the episodes that ended in each of equal parts of the timesteps; None: none ended"""


def versions() -> dict[str, str]:
    """The versions of what results are made with; packages that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def rounded(value: float) -> float:
    """A number with ``SIGNIFICANT_DIGITS``."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


class Results:
    """The results of trainings of some length.

    :param folder: where results are written; made when there is one
    :param timesteps: of each run
    :param shipped: a folder with more results, which is read only; None: there is none
    """

    def __init__(self, folder: str | Path, timesteps: int, shipped: str | Path | None = None):
        self.folder, self.timesteps = Path(folder), timesteps
        self.shipped = None if shipped is None else Path(shipped)

    @property
    def in_progress(self) -> Path:
        """Where runs of this length are trained."""
        return self.folder / IN_PROGRESS / str(self.timesteps)

    def path(self, task: str, folder: Path | None = None) -> Path:
        """A task's file."""
        return (folder or self.folder) / str(self.timesteps) / f"{folder_name(task)}.jsonl"

    def rows(self, runs: Iterable[Run]) -> dict[Run, Row]:
        """What there is of these runs; where it is in both folders, ``folder``'s.

        :raises ValueError: if a file cannot be read, or has a result of one of them with other settings
        """
        wanted = list(runs)
        files: dict[str, dict[tuple[str, int], tuple[Row, Path]]] = {}
        found = {}
        for run in wanted:
            if run.task not in files:
                files[run.task] = self._read(run.task)
            known = files[run.task].get((run.setting.name, run.seed))
            if known is not None:
                _require_same_settings(run, *known)
                found[run] = known[0]
        return found

    def _read(self, task: str) -> dict[tuple[str, int], tuple[Row, Path]]:
        """A task's rows by setting and seed, each with the file that it is in."""
        paths = [self.path(task, folder) for folder in (self.shipped, self.folder) if folder is not None]
        return {key: (row, path) for path in paths for key, row in _read(path, task, self.timesteps).items()}

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Those of the runs that are still to be done, in their order."""
        wanted = list(runs)
        found = self.rows(wanted)
        return [run for run in wanted if run not in found]

    def add(self, rows: Sequence[Row]) -> None:
        """Add results of one task to its file; those that are there already stay as they are.

        Several processes may do so at the same time.

        :raises ValueError: if the file cannot be read
        """
        task = rows[0].task
        path = self.path(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.in_progress.mkdir(parents=True, exist_ok=True)
        with FileLock(self.in_progress / f"{path.stem}.lock"):
            known = _read(path, task, self.timesteps)
            for row in rows:
                known.setdefault((row.setting, row.seed), row)
            order = {name: place for place, name in enumerate(SETTINGS)}
            keys = sorted(known, key=lambda key: (order.get(key[0], len(order)), *key))
            atomic_write(path, "".join(_line(known[key]) for key in keys).encode())


def _line(row: Row) -> str:
    return json.dumps(row._asdict(), ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path, task: str, timesteps: int) -> dict[tuple[str, int], Row]:
    """The rows of a file, by setting and seed; none where there is no file."""
    if not path.is_file():
        return {}
    found: dict[tuple[str, int], Row] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        row = _parsed(line, where)
        if (row.task, row.timesteps) != (task, timesteps):
            raise ValueError(f"{where} is of {row.task} with {row.timesteps} timesteps, and belongs elsewhere")
        key = row.setting, row.seed
        if found.setdefault(key, row) != row:
            raise ValueError(f"{where} is of {row.setting} with seed {row.seed} once more: remove one of the two")
    return found


def _parsed(line: str, where: str) -> Row:
    try:
        content = json.loads(line)
        row = Row(**content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} is no result ({error}): remove it, and the run will be done again") from error
    may_lack_one = row.diverged is not None and row.episodes == 0
    has_score = is_number(row.score) or (row.score is None and may_lack_one)
    if not has_score or not isinstance(row.curve, list) or not isinstance(row.settings, dict):
        raise ValueError(f"{where} is no result: remove it, and the run will be done again")
    return row


def _require_same_settings(run: Run, row: Row, path: Path) -> None:
    now = {"algorithm": run.setting.algorithm, **run.setting.described(run.task)}
    then = {"algorithm": row.algorithm, **row.settings}
    # Arguments that the constructor has got since, and that nobody has set.
    later = {*run.setting.defaults()} - {*run.setting.arguments(run.task), *then}
    for name in sorted({*now, *then} - later):
        if now.get(name) != then.get(name):
            raise ValueError(
                f"{path} has a result of {run.setting.name} with seed {run.seed}, but with {name} = "
                f"{shown(then.get(name))} in place of {shown(now.get(name))}: give another --results folder, or remove "
                "that line"
            )
