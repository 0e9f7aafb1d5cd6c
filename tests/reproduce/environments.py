"""Tasks of tests, registered where this module is imported; an id may name it: ``tests.reproduce.environments:…``."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
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
