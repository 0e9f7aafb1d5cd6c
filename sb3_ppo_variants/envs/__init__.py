"""The package's tasks as gymnasium environments: the Roboschool humanoids on PyBullet, and a grid world.

This module only knows the names: `register_envs` tells gymnasium where each task lives, and PyBullet is
imported when the first humanoid is made. Nothing here needs torch or Stable-Baselines3.
"""

from math import pi
from typing import Any, NamedTuple

import gymnasium as gym

__all__ = ["TASKS", "TaskEntry", "register_envs"]


class TaskEntry(NamedTuple):
    """One row of the register table: everything that makes an id, versions included, is data."""

    entry_point: str
    reward_threshold: float | None
    """Mean return at which the task counts as solved; None where nobody has said."""
    max_episode_steps: int
    """Steps after which gymnasium truncates an episode."""
    kwargs: dict[str, Any]
    """Constructor keywords in which this id differs from the defaults of its class."""


_HUMANOID = "sb3_ppo_variants.envs.tasks:RoboschoolHumanoid"
_FLAGRUN = "sb3_ppo_variants.envs.flagrun:RoboschoolHumanoidFlagrun"
_HARDER = "sb3_ppo_variants.envs.flagrun:RoboschoolHumanoidFlagrunHarder"
# Roboschool of July 2017 (v1) is what the classes have by default; these are its ways of May 2017 (v0), which
# are the tasks of the PPO paper's Fig. 4.
_HUMANOID_V0: dict[str, Any] = {"joints_at_limit_cost": -0.1, "yaw_range": 0.0}
_FLAGRUN_V0: dict[str, Any] = {
    "joints_at_limit_cost": -0.1,
    "yaw_range": 3.14,
    "straight_probability": 0.0,
    "flag_timeout": 200,
    "electricity_cost": -8.5,
}
_HARDER_V0: dict[str, Any] = {
    **_FLAGRUN_V0,
    "electricity_cost": -8.5 / 4.0,
    "lying_electricity_cost": -8.5 / 4.0,
    "pose_probabilities": (0.5, 0.25, 0.25),
    "walk_ends_on_fall": False,
    "cube_friction": 0.5,
    "roll_over_height": 0.25,
    "roll_over_pitch": pi * 3.0 / 2.0,
    "lying_bonus": 1.0,
    "posture_height": 0.8,
    "posture_pelvis_share": 0.0,
}

TASKS: dict[str, TaskEntry] = {
    # Thresholds and limits (16.5 s of simulated time) are those of Roboschool's registration.
    "RoboschoolHumanoid-v0": TaskEntry(_HUMANOID, 3500.0, 1000, _HUMANOID_V0),
    "RoboschoolHumanoid-v1": TaskEntry(_HUMANOID, 3500.0, 1000, {}),
    "RoboschoolHumanoidFlagrun-v0": TaskEntry(_FLAGRUN, 2000.0, 1000, _FLAGRUN_V0),
    "RoboschoolHumanoidFlagrun-v1": TaskEntry(_FLAGRUN, 2000.0, 1000, {}),
    "RoboschoolHumanoidFlagrunHarder-v0": TaskEntry(_HARDER, None, 1000, _HARDER_V0),
    "RoboschoolHumanoidFlagrunHarder-v1": TaskEntry(_HARDER, None, 1000, {}),
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
