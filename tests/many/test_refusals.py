"""What cannot be stacked is refused in one sentence that names the setting."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants import PPOClipPaper, PPOUnclippedPaper, VanillaPGPaper, train_many
from tests.helpers import CountingBuffer

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32}


class OwnPolicy(ActorCriticPolicy):
    def evaluate_actions(self, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate_actions(*args, **kwargs)


class OwnLoss(PPOClipPaper):
    def _value_loss(self, *args: Any) -> th.Tensor:
        return super()._value_loss(*args)


class OwnLearn(PPOClipPaper):
    def learn(self, *args: Any, **kwargs: Any) -> Any:
        return super().learn(*args, **kwargs)


class OwnFit(VanillaPGPaper):
    def _value_step(self, *args: Any) -> None:
        super()._value_step(*args)


class ManyBits(gym.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.MultiBinary(3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("n_steps", {"n_steps": 64}),
        ("batch_size", {"batch_size": 16}),
        ("n_epochs", {"n_epochs": 3}),
        ("net_arch", {"policy_kwargs": {"net_arch": [32]}}),
        ("activation_fn", {"policy_kwargs": {"activation_fn": th.nn.ReLU}}),
    ],
)
def test_agents_of_different_shapes(name: str, settings: dict[str, Any]) -> None:
    agents: Any = [(PPOClipPaper, {}, 0), (PPOUnclippedPaper, settings, 3)]
    message = rf"^{name} must be the same for all agents .* agent 0 \(PPOClipPaper, seed 0\).* agent 1 \(PPOUncl"
    with pytest.raises(ValueError, match=message):
        train_many(agents, "CartPole-v1", 32, **SMALL)


def test_agents_whose_updates_are_different() -> None:
    agents: Any = [(PPOClipPaper, {}, 0), (VanillaPGPaper, {}, 0)]
    with pytest.raises(ValueError, match=r"^the update must be the same .*: it is PPO's for agent 0 .* and VanillaPG"):
        train_many(agents, "CartPole-v1", 32, **SMALL)


def test_agents_of_different_numbers_of_environments_or_spaces() -> None:
    sizes = iter([1, 2])
    with pytest.raises(ValueError, match=r"^n_envs must be the same"):
        train_many(PPOClipPaper, lambda: make_vec_env("CartPole-v1", next(sizes)), 32, seeds=[0, 1], **SMALL)
    tasks = iter(["CartPole-v1", "Acrobot-v1"])
    with pytest.raises(ValueError, match=r"^the observation space must be the same"):
        train_many(PPOClipPaper, lambda: gym.make(next(tasks)), 32, seeds=[0, 1], **SMALL)


def test_agents_that_would_share_an_environment() -> None:
    env = make_vec_env("CartPole-v1")
    with pytest.raises(ValueError, match="env must make environments anew for each agent: agent 1"):
        train_many(PPOClipPaper, lambda: env, 32, seeds=[0, 1], **SMALL)


@pytest.mark.parametrize(
    ("message", "algorithm", "env", "settings"),
    [
        ("compile must be False", PPOClipPaper, "CartPole-v1", {"compile": True}),
        ("use_sde must be False", PPOClipPaper, "Pendulum-v1", {"use_sde": True}),
        ("rollout_buffer_class must be None", PPOClipPaper, "CartPole-v1", {"rollout_buffer_class": CountingBuffer}),
        ("policy must be 'MlpPolicy'", PPOClipPaper, "CartPole-v1", {"policy": OwnPolicy}),
        ("the action space must be a Box or Discrete", PPOClipPaper, ManyBits, {}),
        ("weight_decay", PPOClipPaper, "CartPole-v1", {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}),
        ("must be Adam", PPOClipPaper, "CartPole-v1", {"policy_kwargs": {"optimizer_class": th.optim.AdamW}}),
        ("'baseline'", VanillaPGPaper, "CartPole-v1", {"advantage_estimator": "baseline"}),
        ("advantage_estimator must be 'gae'", VanillaPGPaper, "CartPole-v1", {"advantage_estimator": "reinforce"}),
        ("OwnFit has a _value_step of its own", OwnFit, "CartPole-v1", {}),
        ("OwnLoss has a _value_loss of its own", OwnLoss, "CartPole-v1", {}),
        ("OwnLearn has a learn of its own", OwnLearn, "CartPole-v1", {}),
    ],
)
def test_what_a_stack_cannot_do(message: str, algorithm: Any, env: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^train_many cannot take agent 0 .*{re.escape(message)}"):
        train_many(algorithm, env, 32, seeds=[0], **{**SMALL, **settings})


def test_a_convolutional_policy() -> None:
    class Image(gym.Env):
        observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        action_space = spaces.Discrete(2)

    with pytest.raises(ValueError, match="policy must be 'MlpPolicy'"):
        train_many(PPOClipPaper, Image, 32, seeds=[0], policy="CnnPolicy", **SMALL)


@pytest.mark.parametrize(
    ("message", "agents", "arguments"),
    [
        ("total_timesteps must be an integer >= 1", PPOClipPaper, {"seeds": [0], "total_timesteps": 0}),
        ("n_envs must be an integer >= 1", PPOClipPaper, {"seeds": [0], "n_envs": 0}),
        ("resume must be one of", PPOClipPaper, {"seeds": [0], "resume": "yes"}),
        ("folder must name", PPOClipPaper, {"seeds": [0], "resume": True}),
        ("bundle_interval must be", PPOClipPaper, {"seeds": [0], "bundle_interval": -1.0}),
        ("seeds must name", PPOClipPaper, {}),
        ("seeds must name at least one", PPOClipPaper, {"seeds": []}),
        ("seed must be an integer >= 0", PPOClipPaper, {"seeds": [None]}),
        ("agents must be at least one", [], {}),
        ("agents must be \\(algorithm, settings, seed\\) each", [PPOClipPaper], {}),
        ("agents must be of the package's algorithms", PPO, {"seeds": [0]}),
        ("seeds must be None", [(PPOClipPaper, {}, 0)], {"seeds": [0]}),
        ("clip_range must be None", PPOUnclippedPaper, {"seeds": [0], "clip_range": 0.2}),
    ],
)
def test_arguments_outside_their_range(message: str, agents: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        train_many(agents, "CartPole-v1", **{"total_timesteps": 32, **SMALL, **arguments})


def test_a_stock_buffer_is_no_reason() -> None:
    (model,) = train_many(PPOClipPaper, "CartPole-v1", 32, seeds=[0], rollout_buffer_class=RolloutBuffer, **SMALL)
    assert model.num_timesteps == 32
