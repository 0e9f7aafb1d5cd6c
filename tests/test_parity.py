"""Set to SB3's choices, our driver gives SB3's PPO bit for bit: weights, optimiser state and rollouts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_variants import PPOClipPaper
from tests.helpers import CountingBuffer

# SB3's choices where ours differ: its defaults for vf_coef, max_grad_norm and normalize_advantage, and Adam not fused.
SB3_CHOICES: dict[str, Any] = {
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "normalize_advantage": True,
    "policy_kwargs": {"optimizer_kwargs": {"fused": False, "eps": 1e-5}},
}


def image_env() -> FakeImageEnv:
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
    env.observation_space.seed(3)  # where its frames come from; reset(seed) does not reach it
    return env


def dict_env() -> SimpleMultiObsEnv:
    np.random.seed(3)  # its states' pictures are drawn from the global generator as it is built
    env = SimpleMultiObsEnv(random_start=False)
    env.action_space.seed(3)
    env.observation_space.seed(3)
    return env


CONFIGURATIONS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "box": ("MlpPolicy", "Pendulum-v1", {}),
    "discrete": ("MlpPolicy", "CartPole-v1", {}),
    "multi-discrete": ("MlpPolicy", lambda: IdentityEnvMultiDiscrete(4), {}),
    "multi-binary": ("MlpPolicy", lambda: IdentityEnvMultiBinary(4), {}),
    "schedules": (
        "MlpPolicy",
        "CartPole-v1",
        {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.1 + 0.1 * left},
    ),
    "gsde": ("MlpPolicy", "Pendulum-v1", {"use_sde": True, "sde_sample_freq": 4}),
    "gsde-squashed": ("MlpPolicy", "Pendulum-v1", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "target-kl": ("MlpPolicy", "Pendulum-v1", {"target_kl": 1e-3, "learning_rate": 3e-3}),
    "clip-range-vf": ("MlpPolicy", "Pendulum-v1", {"clip_range_vf": 0.2, "ent_coef": 0.01}),
    "truncated-minibatch": ("MlpPolicy", "CartPole-v1", {"batch_size": 21}),  # 64 = 21 + 21 + 21 + 1
    "not-normalised": ("MlpPolicy", "CartPole-v1", {"normalize_advantage": False, "batch_size": 1, "n_epochs": 1}),
    "three-normalised": ("MlpPolicy", lambda: VecNormalize(make_vec_env("Pendulum-v1", 3, seed=5)), {}),
    "time-limit": ("MlpPolicy", lambda: TimeLimit(gym.make("Pendulum-v1").unwrapped, 10), {}),
    "custom-buffer": ("MlpPolicy", "CartPole-v1", {"rollout_buffer_class": CountingBuffer}),
    "cnn": ("CnnPolicy", image_env, {}),
    "dict": ("MultiInputPolicy", dict_env, {}),
}


def train(algorithm: type[PPO] | type[PPOClipPaper], name: str, **choices: Any) -> Any:
    policy, env, kwargs = CONFIGURATIONS[name]
    arguments = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "seed": 7, "device": "cpu", **choices, **kwargs}
    arguments["policy_kwargs"] = {**choices.get("policy_kwargs", {}), **kwargs.get("policy_kwargs", {})}
    model = algorithm(policy, env if isinstance(env, str) else env(), **arguments)
    return model.learn(192)


def assert_same_weights(ours: Any, theirs: Any) -> None:
    our_parameters, their_parameters = ours.get_parameters(), theirs.get_parameters()
    for name, tensor in their_parameters["policy"].items():
        assert th.equal(our_parameters["policy"][name], tensor), name
    for index, state in their_parameters["policy.optimizer"]["state"].items():
        for name, tensor in state.items():
            assert th.equal(our_parameters["policy.optimizer"]["state"][index][name], tensor), (index, name)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size of:UserWarning")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equals_sb3_ppo_bit_for_bit(name: str) -> None:
    theirs = train(PPO, name)
    ours = train(PPOClipPaper, name, **SB3_CHOICES)
    assert_same_weights(ours, theirs)
    assert ours.num_timesteps == theirs.num_timesteps
    assert ours._n_updates == theirs._n_updates
    assert np.array_equal(ours.rollout_buffer.returns, theirs.rollout_buffer.returns)


@pytest.mark.parametrize(
    ("choice", "value"),
    [("vf_coef", 1.0), ("max_grad_norm", None), ("normalize_advantage", "batch"), ("surrogate", "log_clip")],
)
def test_each_of_our_choices_changes_the_weights(choice: str, value: Any) -> None:
    # Otherwise the parity above would hold whatever these arguments did.
    # At this learning rate ratios leave 1 ± ε within three updates.
    theirs = train(PPO, "box", learning_rate=3e-3)
    ours = train(PPOClipPaper, "box", **{**SB3_CHOICES, "learning_rate": 3e-3, choice: value})
    with pytest.raises(AssertionError):
        assert_same_weights(ours, theirs)


def test_a_custom_buffer_is_read_through_its_own_get() -> None:
    CountingBuffer.calls = 0
    train(PPOClipPaper, "custom-buffer", **SB3_CHOICES)
    assert CountingBuffer.calls == 9  # 3 updates of 3 epochs


def test_target_kl_stops_updates_early_and_in_the_same_epoch() -> None:
    ours = train(PPOClipPaper, "target-kl", **SB3_CHOICES)
    assert ours._n_updates < 9  # 3 updates of 3 epochs, had none been stopped
