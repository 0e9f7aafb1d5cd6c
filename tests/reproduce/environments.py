"""Tasks of tests, registered where this module is imported; an id may name it: ``tests.reproduce.environments:…``."""

from __future__ import annotations

import gymnasium as gym

# 64 divides a rollout of 2048: episodes end with the rollouts, and a resumed run is the unbroken one bit for bit.
gym.register("Reacher64-v0", entry_point="gymnasium.envs.mujoco.reacher_v5:ReacherEnv", max_episode_steps=64)
EVEN = "tests.reproduce.environments:Reacher64-v0"
