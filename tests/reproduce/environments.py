"""Tasks of tests, registered where this module is imported; an id may name it: ``tests.reproduce.environments:…``."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

# 64 divides a rollout of 2048: episodes end with the rollouts, and a resumed run is the unbroken one bit for bit.
gym.register("Reacher64-v0", entry_point="gymnasium.envs.mujoco.reacher_v5:ReacherEnv", max_episode_steps=64)
EVEN = "tests.reproduce.environments:Reacher64-v0"


class Breaking(ReacherEnv):
    """Its rewards are no numbers from the 300th step on."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, *rest = super().step(action)
        return observation, reward if self.steps < 300 else math.nan, *rest


gym.register("Breaking-v0", entry_point=Breaking, max_episode_steps=64)
BREAKING = "tests.reproduce.environments:Breaking-v0"


class Echo(gym.Env):
    """Rewards a step by how far its action is from 0; 0.1 is the bound. Five steps an episode."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # which SB3 asks for
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), float(abs(action).max()), False, False, {}


gym.register("Echo-v0", entry_point="tests.reproduce.environments:Echo", max_episode_steps=5)
ECHO = "tests.reproduce.environments:Echo-v0"
gym.register("tests/Echo-v0", entry_point="tests.reproduce.environments:Echo", max_episode_steps=5)
NAMESPACED = "tests.reproduce.environments:tests/Echo-v0"
