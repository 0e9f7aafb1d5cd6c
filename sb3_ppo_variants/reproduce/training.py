"""Trains the runs of a block: stacked by ``train_many``, or one that nothing is stacked with."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_ppo_variants.reproduce.monitor import read_episodes
from sb3_ppo_variants.reproduce.results import Row, rounded, versions
from sb3_ppo_variants.reproduce.settings import Run

BUNDLE_INTERVAL = 60.0
"""seconds between two bundles of a stacked run: what a killed process loses of it at most"""

Reached = Callable[[int], object]
"""is told the timesteps that each run has reached: after each iteration, step of the environments or episode"""


def train_runs(runs: Sequence[Run], timesteps: int, folder: Path, reached: Reached) -> list[Row]:
    """Train runs of one task. Stacked ones go on where an earlier process has left them; one alone begins anew.

    :param runs: several, if all of their settings are of one ``stack``; else one
    :param timesteps: of each
    :param folder: for what is kept until they are done
    :param reached: see :data:`Reached`
    :return: their results
    :raises ValueError: if the timesteps are too few for an episode to end of a run that has not diverged
    """
    import torch as th

    threads = th.get_num_threads()
    th.set_num_threads(1)  # networks this small gain nothing from more
    try:
        if runs[0].setting.stack is not None:
            ends = _train_stacked(runs, timesteps, folder, reached)
        else:
            (run,) = runs
            ends = [_train_alone(run, timesteps, _own_folder(folder, 0), reached)]
    finally:
        th.set_num_threads(threads)
    return [
        _row(run, timesteps, _own_folder(folder, index), end)
        for index, (run, end) in enumerate(zip(runs, ends, strict=True))
    ]


def _own_folder(folder: Path, index: int) -> Path:
    """As ``train_many`` names them."""
    return folder / f"agent_{index:03}"


def _train_stacked(runs: Sequence[Run], timesteps: int, folder: Path, reached: Reached) -> list[int | None]:
    """:return: of each run the timestep at which it diverged, or None"""
    from sb3_ppo_variants.many.training import DivergenceWarning, train_agents

    task = runs[0].task
    specs = [(run.setting.algorithm_class, run.setting.arguments(task), run.seed) for run in runs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # it is in the row
        agents = train_agents(
            specs,
            task,
            timesteps,
            folder=folder,
            resume="auto",
            bundle_interval=BUNDLE_INTERVAL,
            reached=reached,
        )
    for agent in agents:
        agent.model.env.close()
    return [None if agent.error is None else agent.model.num_timesteps for agent in agents]


def _train_alone(run: Run, timesteps: int, folder: Path, reached: Reached) -> int | None:
    """:return: the timestep at which it diverged, or None"""
    from stable_baselines3.common.env_util import make_vec_env

    algorithm, arguments = run.setting.algorithm_class, run.setting.arguments(run.task)
    n_envs = run.setting.n_envs(run.task)
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process has left
    env = make_vec_env(
        run.task,
        n_envs,
        monitor_dir=str(folder),
        wrapper_class=UnboundedActions if run.setting.unbounded else None,
    )

    def callback(names: dict[str, Any], _: dict[str, Any]) -> bool:
        reached(names["self"].num_timesteps)
        return True

    try:
        model = algorithm("MlpPolicy", env, seed=run.seed, device="cpu", **arguments)
        model.learn(timesteps, callback)
    except (FloatingPointError, ValueError) as error:
        if not _tells_of_divergence(error):
            raise
        return int(model.num_timesteps)
    finally:
        env.close()
    return None


class UnboundedActions(gym.Wrapper):
    """Shows bounds of actions that no action reaches, so that SB3's and contrib's algorithms clip none.

    :param env: with a ``Box`` of actions
    """

    def __init__(self, env: Any):
        super().__init__(env)
        largest = np.full(env.action_space.shape, np.finfo(np.float32).max, dtype=np.float32)
        self.action_space = gym.spaces.Box(-largest, largest)  # finite, as SB3 wants them


def _tells_of_divergence(error: Exception) -> bool:
    # torch's distributions say so of NaN parameters: SB3's and contrib's own algorithms look no further.
    return isinstance(error, FloatingPointError) or "invalid values" in str(error)


def _row(run: Run, timesteps: int, folder: Path, diverged: int | None) -> Row:
    episodes = read_episodes(folder)
    score = episodes.score()
    if math.isnan(score) and diverged is None:
        raise ValueError(f"timesteps must be enough for an episode of {run.task} to end; got {timesteps}")
    settings: dict[str, Any] = run.setting.described(run.task)
    return Row(
        task=run.task,
        setting=run.setting.name,
        seed=run.seed,
        timesteps=timesteps,
        score=None if math.isnan(score) else round(score, 6),
        episodes=len(episodes.returns),
        diverged=diverged,
        algorithm=run.setting.algorithm,
        settings=settings,
        versions=versions(),
        curve=[None if value is None else rounded(value) for value in episodes.curve(timesteps)],
    )
