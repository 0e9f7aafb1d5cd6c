"""A small task whose episodes end with the rollouts, and runs on it that are interrupted."""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_ppo_variants import PPOAdaptiveKLPaper
from sb3_ppo_variants.on_policy import PaperOnPolicyAlgorithm
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv, record_episodes

EPISODE = 8
N_STEPS = 16
N_ENVS = 4
ITERATION = N_STEPS * N_ENVS

# Columns of progress.csv that tell how long something took.
TIMES = ("time/fps", "time/time_elapsed")


# Environments that the present test made; closed after it.
OPENED: list[VecEnv] = []


class RandomWalk(gym.Env[np.ndarray, np.ndarray]):
    """Episodes of eight steps, moved by the environment's generator and by the action; a memory outlives them."""

    observation_space = spaces.Box(-100, 100, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self) -> None:
        self.memory: list[int] = []

    def get_resume_state(self) -> list[int]:
        return self.memory

    def set_resume_state(self, state: list[int]) -> None:
        self.memory = state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        self.memory.append(len(self.memory) % 3)
        self.place = self.np_random.normal(self.memory[-1], 1.0, 3).astype(np.float32)
        return self.place, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        push = np.array([*action, 0.0])
        self.place = (self.place + 0.1 * push + 0.05 * self.np_random.normal(size=3)).astype(np.float32)
        return self.place, -float(np.abs(self.place).sum()), False, self.steps >= EPISODE, {}


def make_env(kind: str, folder: Path | None = None, normalize: bool = True, n_envs: int = N_ENVS) -> VecEnv:
    """Walks, each in a ``Monitor`` that appends to its file."""

    def make(index: int) -> Callable[[], gym.Env]:
        path = None if folder is None else str(folder / str(index))
        append = folder is not None and (folder / f"{index}.monitor.csv").exists()
        return lambda: record_episodes(Monitor(RandomWalk(), path, override_existing=not append))

    fns = [make(index) for index in range(n_envs)]
    env: VecEnv
    if kind == "dummy":
        env = DummyVecEnv(fns)
    elif kind == "subproc":
        env = SubprocVecEnv(fns, start_method="fork")
    else:
        env = SharedMemoryVecEnv(fns, n_workers=2, start_method="fork")
    OPENED.append(env)
    return VecNormalize(env) if normalize else env


def make_model(
    algorithm: type[PaperOnPolicyAlgorithm] = PPOAdaptiveKLPaper, env: VecEnv | None = None, **arguments: Any
) -> Any:
    """A model with all that changes between updates."""
    defaults: dict[str, Any] = {
        "n_steps": N_STEPS,
        "seed": 3,
        "device": "cpu",
        "learning_rate": lambda left: 3e-3 * left,
    }
    if algorithm is PPOAdaptiveKLPaper:
        defaults["stepsize_kl_target"] = 0.01
        defaults["log_std_schedule"] = lambda left: -1.0 + 0.5 * left
    return algorithm("MlpPolicy", env or make_env("dummy"), **{**defaults, **arguments})


class Interrupt(BaseCallback):
    """Ctrl-C in the middle of the rollout after ``iterations`` iterations."""

    def __init__(self, iterations: int, error: type[BaseException] = KeyboardInterrupt):
        super().__init__()
        self.iterations = iterations
        self.error = error
        self._rollouts = itertools.count()  # no plain attribute: not kept in bundles
        self._last = False

    def _on_rollout_start(self) -> None:
        self._last = next(self._rollouts) == self.iterations

    def _on_step(self) -> bool:
        if self._last and self.num_timesteps % ITERATION >= ITERATION // 2:
            raise self.error("stopped by the test")
        return True


def scramble() -> None:
    """Leave all of the process's generators somewhere else, as in a new process."""
    random.seed(12)
    np.random.seed(34)
    th.manual_seed(56)


def weights(model: Any) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def moments(model: Any) -> th.Tensor:
    states = model.policy.optimizer.state.values()
    return th.cat([value.flatten() for state in states for value in state.values()])


def progress(folder: Path) -> list[dict[str, str]]:
    """The rows of ``progress.csv``, without what tells how long something took."""
    with open(folder / "progress.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def episodes(folder: Path) -> list[list[list[str]]]:
    """Return and length of each episode in the monitors' files."""
    files = sorted(folder.glob("*monitor.csv"))
    return [[line.split(",")[:2] for line in file.read_text().splitlines()[2:]] for file in files]
