"""The Roboschool humanoids on PyBullet, as gymnasium environments.

This module only knows the names: `register_envs` tells gymnasium where each task lives, and PyBullet is
imported when the first one is made. Nothing here needs torch or Stable-Baselines3.
"""

from typing import Any, NamedTuple

import gymnasium as gym

__all__ = ["TASKS", "TaskEntry", "register_envs"]

EPISODE_STEPS = 1000
"""Control steps in an episode, 16.5 s of simulated time. Source: Roboschool's registration."""


class TaskEntry(NamedTuple):
    """One row of the register table: everything that makes an id, versions included, is data."""

    entry_point: str
    reward_threshold: float
    """Mean return at which Roboschool calls the task solved."""
    kwargs: dict[str, Any]
    """Constructor keywords in which this id differs from the defaults of its class."""


TASKS: dict[str, TaskEntry] = {
    "RoboschoolHumanoid-v1": TaskEntry("sb3_ppo_variants.envs.tasks:RoboschoolHumanoid", 3500.0, {}),
}
"""Every task of this package by its gymnasium id."""


def register_envs() -> None:
    """Register every task of `TASKS` with gymnasium; ids that are registered already are left as they are.

    Importing `sb3_ppo_variants` calls this, because gymnasium 1.x no longer loads entry-point plugins.
    """
    for env_id, task in TASKS.items():
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=task.entry_point,
                reward_threshold=task.reward_threshold,
                max_episode_steps=EPISODE_STEPS,
                kwargs=dict(task.kwargs),
            )
