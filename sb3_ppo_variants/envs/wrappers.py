"""A wrapper of the flagrun tasks, for training."""

from math import atan2
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_ppo_variants.arguments import shown

Observation = NDArray[np.float32]


class EpisodePerFlag(gym.Wrapper[Observation, Observation, Observation, Observation], RecordConstructorArgs):
    """Ends a training episode of flagrun with each flag; the next one goes on where the robot is, with the next flag.

    Where the next flag comes is chance, and worth much: without the errors of the steps that bring one, the variance of
    an agent's advantages is smaller by three quarters (`benchmarks/flag_changes.py`). With this wrapper a flag's last
    step is truncated, as by a time limit, with the observation that it would have had without the next flag, so that an
    algorithm credits it with γ V of that one. It is to a flag what SB3's ``EpisodicLifeEnv`` is to a life in an Atari
    game. What comes after the flag is then left out of what a step is credited with, reaching it included.

    Everything else is the task's: the robot falls, and the time limit is reached, after as many steps as without, and
    the observations between the ends are the same, so that an agent needs no wrapper to play. SB3's ``Monitor`` between
    task and wrapper, where ``make_vec_env`` puts it, counts whole episodes. A training that is resumed from a bundle
    starts the task anew, as without the wrapper.

    :param env: a flagrun task, whose observations no other wrapper changes.
    :raises ValueError: if it is none.
    """

    def __init__(self, env: gym.Env[Observation, Observation]) -> None:
        if not (hasattr(env.unwrapped, "flag_timeout") and hasattr(env.unwrapped, "robot")):
            raise ValueError(f"env must be a flagrun task, such as RoboschoolHumanoidFlagrun-v1; got {shown(env)}")
        if env.observation_space != env.unwrapped.observation_space:
            raise ValueError("env must have the task's own observations: put EpisodePerFlag inside other wrappers")
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._goes_on: tuple[Observation, dict[str, Any]] | None = None
        self._terms: tuple[str, ...] = env.unwrapped.REWARD_TERMS  # type: ignore[attr-defined]
        self._flag = 0
        self._target = (0.0, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """After a flag's last step, go on from there; otherwise, and with a seed or options, start the task anew.

        :return: The observation, shape (44,), and the task's `info`.
        """
        goes_on, self._goes_on = self._goes_on, None
        if goes_on is None or seed is not None or options is not None:
            goes_on = self.env.reset(seed=seed, options=options)
        self._read(goes_on[1])
        return goes_on

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As the task's; the last step of a flag is truncated."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        flag, target = self._flag, self._target
        self._read(info)
        if self._flag != flag and not terminated:
            if not truncated:
                self._goes_on = observation, {name: told for name, told in info.items() if name not in self._terms}
                truncated = True
            robot = self.unwrapped.robot  # type: ignore[attr-defined]  # the constructor has seen it
            observation = robot.observation(atan2(target[1] - robot.mean_y, target[0] - robot.mean_x))
        return observation, float(reward), terminated, truncated, info

    def _read(self, info: dict[str, Any]) -> None:
        self._flag, self._target = info["flag"], info["target"]
