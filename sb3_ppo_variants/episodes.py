"""Complete episodes out of rollouts that cut them: what Monte-Carlo returns need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_ppo_variants.rollout_data import split_rows, take_rows


class Steps(NamedTuple):
    """Successive steps of one environment."""

    samples: Any
    """(Dict)RolloutBufferSamples of ``T`` rows"""
    rewards: np.ndarray
    """``(T,)``"""
    ends: np.ndarray
    """whether an episode ended with the step, ``(T,)``"""


def steps_of_each(samples: Any, rewards: np.ndarray, ends: np.ndarray) -> list[Steps]:
    """A rollout as the steps of each of its ``N`` environments.

    :param samples: ``N·T`` rows, one environment after the other, as SB3's buffer lays them out
    :param rewards: ``(T, N)``
    :param ends: ``(T, N)``
    """
    n_steps, n_envs = rewards.shape
    parts = zip(*(split_rows(field, n_steps) for field in samples), strict=True)
    return [
        Steps(type(samples)(*part), rewards[:, env].copy(), ends[:, env].astype(bool))
        for env, part in zip(range(n_envs), parts, strict=True)
    ]


def join(first: Steps | None, second: Steps) -> Steps:
    """The steps of ``first`` and then those of ``second``, on the device of ``second``."""
    if first is None:
        return second
    earlier = _each_tensor(first.samples, lambda tensor: tensor.to(second.samples.advantages.device))
    rewards = np.concatenate([first.rewards, second.rewards])
    return Steps(concatenate_samples([earlier, second.samples]), rewards, np.append(first.ends, second.ends))


def to_keep(steps: Steps) -> Steps:
    """A copy in memory of its own, on the CPU: a part of a rollout would keep, and save, the whole of it."""
    return steps._replace(samples=_each_tensor(steps.samples, lambda tensor: tensor.to("cpu", copy=True)))


def cut_after_last_end(steps: Steps) -> tuple[Steps, Steps]:
    """The complete episodes, and the beginning of the one that still runs; either may hold no step."""
    n_complete = int(np.flatnonzero(steps.ends)[-1]) + 1 if steps.ends.any() else 0
    return _part(steps, slice(0, n_complete)), _part(steps, slice(n_complete, len(steps.rewards)))


def discounted_returns(rewards: np.ndarray, ends: np.ndarray, gamma: float) -> np.ndarray:
    """The return G of each step: ``G_t = r_t + γ G_{t+1}`` within its episode (eq. 10 with λ = 1 and no value).

    :param rewards: ``(T,)``
    :param ends: whether an episode ended with the step, ``(T,)``; the last must have
    :param gamma: γ in [0, 1]
    :return: ``(T,)``
    """
    returns = np.zeros(len(rewards), dtype=np.float32)
    following = 0.0
    for step in reversed(range(len(rewards))):
        following = float(rewards[step]) + (0.0 if ends[step] else gamma * following)
        returns[step] = following
    return returns


def concatenate_samples(parts: list[Any]) -> Any:
    """(Dict)RolloutBufferSamples of the rows of all ``parts``, in their order."""

    def concatenate(column: tuple[Any, ...]) -> Any:
        if isinstance(column[0], dict):
            return {key: th.cat([part[key] for part in column]) for key in column[0]}
        return th.cat(column)

    return type(parts[0])(*(concatenate(column) for column in zip(*parts, strict=True)))


def _each_tensor(samples: Any, function: Callable[[th.Tensor], th.Tensor]) -> Any:
    def apply(field: Any) -> Any:
        if isinstance(field, dict):
            return {key: function(tensor) for key, tensor in field.items()}
        return function(field)

    return type(samples)(*(apply(field) for field in samples))


def _part(steps: Steps, rows: slice) -> Steps:
    samples = type(steps.samples)(*(take_rows(field, rows) for field in steps.samples))
    return Steps(samples, steps.rewards[rows], steps.ends[rows])
