"""What a random policy's return is: the zero of Table 1's scale (§6.1).

The paper does not say which policy that is. Ours draws each action uniformly from the action space.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from filelock import FileLock

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.reproduce.results import IN_PROGRESS, rounded, versions

EPISODES = 500
SEED = 0
FILE = "random_policy.jsonl"


class RandomReturn(NamedTuple):
    """A random policy's return on a task; the fields of a line, in its order."""

    task: str
    episodes: int
    mean: float
    """raw return"""
    standard_error: float
    seed: int
    versions: dict[str, str]


def measure(task: str, episodes: int = EPISODES) -> RandomReturn:
    """Play episodes with actions drawn uniformly.

    :param episodes: at least two
    """
    env = gym.make(task)
    env.action_space.seed(SEED)
    returns = []
    for episode in range(episodes):
        env.reset(seed=SEED if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    error = float(np.std(returns, ddof=1)) / math.sqrt(episodes)
    return RandomReturn(task, episodes, rounded(float(np.mean(returns))), rounded(error), SEED, versions())


def random_returns(tasks: tuple[str, ...], folder: Path, shipped: Path | None = None) -> dict[str, RandomReturn]:
    """Random returns of tasks; those that are in neither folder's file are measured and added to ``folder``'s.

    :raises ValueError: if a file cannot be read
    """
    path = folder / FILE
    known = {**(_read(shipped / FILE) if shipped else {}), **_read(path)}
    for task in tasks:
        if task not in known:
            known[task] = measure(task)
            _add(path, known[task])
    return {task: known[task] for task in tasks}


def _add(path: Path, measured: RandomReturn) -> None:
    locks = path.parent / IN_PROGRESS
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{path.stem}.lock"):
        known = {**_read(path), measured.task: measured}
        lines = (json.dumps(known[task]._asdict(), ensure_ascii=False) + "\n" for task in sorted(known))
        atomic_write(path, "".join(lines).encode())


def _read(path: Path) -> dict[str, RandomReturn]:
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            content: Any = json.loads(line)
            row = RandomReturn(**content)
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no result ({error}): remove it") from error
        found[row.task] = row
    return found
