"""Gymnasium's MuJoCo tasks, stepped past their wrappers, are what they are through them: every number, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit, TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants import DivergenceWarning, PPOClipPaper, train_many
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.stepping import MujocoStepper, PlainStepper, VecEnvStepper, steppers_of
from sb3_ppo_variants.vec_env import record_episodes
from tests.many.cases import alone, assert_same, distance

Settings = dict[str, Any]

RUNNERS: list[Settings] = [
    {},
    {"forward_reward_weight": 3, "ctrl_cost_weight": 0.7, "frame_skip": 2, "reset_noise_scale": 0.3},
]
UPRIGHT: list[Settings] = [
    {"terminate_when_unhealthy": False, "healthy_reward": 2},
    {"healthy_z_range": (1.2, 1.25), "healthy_angle_range": (-5, 5), "ctrl_cost_weight": 0.3},
    {"healthy_z_range": (0, math.inf), "healthy_angle_range": (-0.03, 0.04), "forward_reward_weight": 0.1},
]
WITH_POSITIONS: Settings = {"exclude_current_positions_from_observation": False}
CASES: list[tuple[str, list[Settings]]] = [
    ("HalfCheetah-v5", RUNNERS),
    ("HalfCheetah-v5", [WITH_POSITIONS]),
    ("Hopper-v5", [*RUNNERS, *UPRIGHT, {"healthy_state_range": (-3, 2.5), "healthy_angle_range": (-9, 9)}]),
    ("Hopper-v5", [{**WITH_POSITIONS, "healthy_state_range": [-0.1, 100.0]}]),
    ("InvertedDoublePendulum-v5", [{}, {"healthy_reward": 3, "frame_skip": 3, "reset_noise_scale": 0.4}]),
    ("InvertedPendulum-v5", [{}, {"frame_skip": 1, "reset_noise_scale": 0.15}]),
    ("Reacher-v5", [{}, {"reward_dist_weight": 0.7, "reward_control_weight": 3, "frame_skip": 4}]),
    ("Swimmer-v5", RUNNERS),
    ("Swimmer-v5", [WITH_POSITIONS]),
    ("Walker2d-v5", [*RUNNERS, *UPRIGHT]),
    ("Walker2d-v5", [WITH_POSITIONS]),
]


def agents_of(env_id: str, settings: list[Settings], limit: int, folder: Path) -> list[Agent]:
    """Agents at the beginning of a training, two environments each."""
    agents = []
    for index, own in enumerate(settings):
        kwargs = {**own, "max_episode_steps": limit}
        env = make_vec_env(env_id, 2, monitor_dir=str(folder / str(index)), env_kwargs=kwargs)
        for each in env.envs:
            record_episodes(each)
        model = PPOClipPaper("MlpPolicy", env, seed=index, n_steps=64, device="cpu")
        model._setup_learn(10**6)
        agents.append(Agent(model, f"agent {index}"))
    return agents


def episodes_of(folder: Path) -> list[list[str]]:
    """Returns and lengths in the monitors' files."""
    return [
        [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()[1:]] for path in sorted(folder.rglob("*.csv"))
    ]


def wrappers_state(env: gym.Env) -> Any:
    """What the wrappers and the environment hold, times of the clock aside."""
    monitor: Any = env
    limit: Any = env.unwrapped
    while not isinstance(env, TimeLimit):
        assert isinstance(env, gym.Wrapper)
        env = env.env
    limit, base = env, env.unwrapped
    data = base.data  # type: ignore[attr-defined]
    names = ("qpos", "qvel", "ctrl", "qacc_warmstart", "qfrc_constraint", "cacc", "cfrc_int", "cfrc_ext", "time")
    counted = [monitor.rewards, monitor.needs_reset, monitor.episode_returns, monitor.episode_lengths]
    return (
        [np.array(getattr(data, name)).tolist() for name in names],
        [*counted, monitor.total_steps, limit._elapsed_steps, base.np_random.bit_generator.state],
        [key for key in vars(base) if key == "step"],
    )


def assert_steps_equal(env_id: str, settings: list[Settings], limit: int, n_steps: int, folder: Path) -> None:
    """Step the same environments in both ways, by the same actions."""
    together, expected = (agents_of(env_id, settings, limit, folder / name) for name in ("fast", "slow"))
    indices = range(len(settings))
    (fast,) = steppers_of(together)
    assert type(fast) is MujocoStepper
    steppers: list[VecEnvStepper] = [fast, VecEnvStepper(expected, indices)]
    shape = together[0].model.observation_space.shape
    n_actions = together[0].model.action_space.shape[0]
    results = [
        (
            np.zeros((len(settings), 2, *shape), dtype=np.float32),
            np.zeros((len(settings), 2), dtype=np.float32),
            np.zeros((len(settings), 2), dtype=np.float32),
        )
        for _ in steppers
    ]
    rng, n_ends = np.random.default_rng(0), 0
    for step in range(n_steps):
        if step % 64 == 0:  # rollouts
            for stepper, (features, _, ends) in zip(steppers, results, strict=True):
                stepper.begin(features, ends)
        scale = rng.choice([0.3, 1.0, 20.0])  # most beyond the bounds of the action space
        actions = (scale * rng.normal(size=(len(settings), 2, n_actions))).astype(np.float32)
        for stepper, (features, rewards, ends) in zip(steppers, results, strict=True):
            stepper.step(actions, features, rewards, ends)
        for found, wanted in zip(*results, strict=True):
            assert np.array_equal(found, wanted)
        n_ends += int(results[0][2].sum())
        if step % 64 == 63:
            for stepper in steppers:
                stepper.finish()
            for agent, other in zip(together, expected, strict=True):
                assert np.array_equal(agent.model._last_obs, other.model._last_obs)  # of double precision
                assert np.array_equal(agent.model._last_episode_starts, other.model._last_episode_starts)
                for env, twin in zip(agent.model.env.envs, other.model.env.envs, strict=True):
                    assert wrappers_state(env) == wrappers_state(twin)
    assert n_ends >= 2 * len(settings)
    for agent, other in zip(together, expected, strict=True):
        assert agent.model.num_timesteps == other.model.num_timesteps == 2 * n_steps
        kept, kept_other = (list(each.model.ep_info_buffer) for each in (agent, other))
        assert [(info["r"], info["l"]) for info in kept] == [(info["r"], info["l"]) for info in kept_other]
        for each in (agent, other):
            each.model.env.close()
    assert episodes_of(folder / "fast") == episodes_of(folder / "slow") != []


@pytest.mark.parametrize(("env_id", "settings"), CASES)
def test_steps_are_those_of_the_environments(env_id: str, settings: list[Settings], tmp_path: Path) -> None:
    assert_steps_equal(env_id, settings, 40, 128, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "settings"), CASES)
def test_thousands_of_steps_are_those_of_the_environments(
    env_id: str, settings: list[Settings], tmp_path: Path
) -> None:
    assert_steps_equal(env_id, settings, 1000, 5000 // 64 * 64, tmp_path)
