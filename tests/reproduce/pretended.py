"""Results without training."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_ppo_variants.reproduce.results import Row
from sb3_ppo_variants.reproduce.settings import SETTINGS, Run

TASKS = ("Hopper-v5", "InvertedPendulum-v5")


def row_of(run: Run, timesteps: int, score: float | None = None) -> Row:
    """A result; its score tells which run it is of."""
    if score is None:
        score = 100.0 * list(SETTINGS).index(run.setting.name) + 10 * run.seed + len(run.task)
    return Row(
        task=run.task,
        setting=run.setting.name,
        seed=run.seed,
        timesteps=timesteps,
        score=score,
        episodes=120,
        diverged=None,
        algorithm=run.setting.algorithm,
        settings=run.setting.described(run.task),
        versions={"torch": "2.0"},
        curve=[score / 2, None, score, score],
    )


def pretend(runs: Sequence[Run], timesteps: int, folder: Path, _: Any) -> list[Row]:
    """Notes in the folder's parent which runs were trained, in which folder."""
    with open(folder.parent / "trained.txt", "a", encoding="utf-8") as file:
        file.writelines(f"{folder.name} {run.task} {run.setting.name} {run.seed}\n" for run in runs)
    return [row_of(run, timesteps) for run in runs]


def die_once(runs: Sequence[Run], timesteps: int, folder: Path, reached: Any) -> list[Row]:
    """The first process that trains Hopper dies of it."""
    mark = folder.parent / "died"
    if runs[0].task == "Hopper-v5" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pretend(runs, timesteps, folder, reached)
