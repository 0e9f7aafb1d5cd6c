"""The package's tasks as gymnasium environments: the Roboschool humanoids on PyBullet, and a grid world.

This module only knows the names: `register_envs` tells gymnasium where each task lives, and PyBullet is
imported when the first humanoid is made. Nothing here needs torch or Stable-Baselines3.
"""

from typing import Any, NamedTuple

import gymnasium as gym

__all__ = ["TASKS", "TaskEntry", "register_envs"]


class TaskEntry(NamedTuple):
    """One row of the register table: everything that makes an id, versions included, is data."""

    entry_point: str
    reward_threshold: float
    """Mean return at which the task counts as solved."""
    max_episode_steps: int
    """Steps after which gymnasium truncates an episode."""
    kwargs: dict[str, Any]
    """Constructor keywords in which this id differs from the defaults of its class."""


TASKS: dict[str, TaskEntry] = {
    # Threshold and limit (16.5 s of simulated time) are those of Roboschool's registration.
    "RoboschoolHumanoid-v1": TaskEntry("sb3_ppo_variants.envs.tasks:RoboschoolHumanoid", 3500.0, 1000, {}),
    # The best return is 1, by a way around the obstacles; through one it is 0.
    "GridWorld-v0": TaskEntry("sb3_ppo_variants.envs.gridworld:GridWorld", 0.95, 100, {}),
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
                max_episode_steps=task.max_episode_steps,
                kwargs=dict(task.kwargs),
            )
