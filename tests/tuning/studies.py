"""Tiny studies, and trainings that only pretend to train."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.tuning import Job, read_job
from sb3_ppo_variants.tuning.training import Score


def job_in(folder: Path, trials: int = 4, **keys: Any) -> Job:
    """A job on CartPole whose study is kept in this folder; in a journal, which takes a quarter of SQLite's time."""
    job = {
        "name": "tiny",
        "algorithm": "ppo_clip_paper",
        "environment": "CartPole-v1",
        "budget": {"trials": trials, "timesteps": 160_000},
        "seeds": 2,
        "objective": {"episodes": 10, "chunks": 4},
        "folder": str(folder / "study"),
        "storage": f"journal:{folder / 'study' / 'study.log'}",
        "heartbeat": {"interval": 1, "grace": 2},
        "patience": 10,
        "pruner": "none",
        "rerun": {"best": 2, "seeds": 2},
        **keys,
    }
    return read_job(job)


class Pretended:
    """A training whose return is best at a stepsize of 1e-3; it remembers where it was as a real one does."""

    seconds = 0.0
    """of one chunk"""

    def __init__(self, job: Job, settings: Mapping[str, Any], seed: int, folder: Path):
        self.job, self.settings, self.seed, self.folder = job, settings, seed, folder
        self.advances: list[int] = []
        self.stopped = False

    def value(self, timesteps: int) -> float:
        rate = self.settings["learning_rate"]
        start = rate["start"] if isinstance(rate, dict) else rate
        return -abs(math.log10(start) + 3) + self.seed / 10_000 + timesteps / 4e6

    def advance(self, timesteps: int) -> Score:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "progress.json"
        done = json.loads(path.read_text()) if path.is_file() else []
        if timesteps not in done:
            time.sleep(self.seconds)
            self.advances.append(timesteps)
            atomic_write(path, json.dumps([*done, timesteps]).encode())
        return Score(self.value(timesteps), 10, timesteps)

    def stop(self) -> None:
        self.stopped = True


class Slow(Pretended):
    """Takes long enough for several workers to meet."""

    seconds = 0.02


class KillsItsWorker(Slow):
    """The first process that comes to the third chunk of the second seed of the paper's values dies of it."""

    def advance(self, timesteps: int) -> Score:
        mark = self.job.folder / "killed"
        if timesteps == self.job.boundaries[2] and self.seed == 1000 and not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().advance(timesteps)


def pretend(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> Pretended:
    return Pretended(job, settings, seed, folder)


def pretend_slowly(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> Slow:
    return Slow(job, settings, seed, folder)


def die_once(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> KillsItsWorker:
    return KillsItsWorker(job, settings, seed, folder)
