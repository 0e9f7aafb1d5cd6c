"""Models of every kind that can be exported, for the tests of the export."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_ppo_variants import PPOClipPaper

BOX = spaces.Box(-np.inf, np.inf, (3,))
ACTION = spaces.Box(np.array([-1, -0.2], np.float32), np.array([0.05, 3], np.float32))
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)  # channel last, as environments have it


class Sampling(gym.Env[Any, Any]):
    """Observations drawn from a space, rewards from the actions; ten steps an episode."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = action_space
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self._steps >= 10, {}


class Case(NamedTuple):
    observations: spaces.Space = BOX
    actions: spaces.Space = ACTION
    policy: str = "MlpPolicy"
    arguments: Mapping[str, Any] = MappingProxyType({})
    policy_kwargs: Mapping[str, Any] = MappingProxyType({})
    normalize: dict[str, Any] | None = None
    algorithm: Any = PPOClipPaper


SMALL_IMAGE = {"features_extractor_kwargs": {"features_dim": 8}}
SDE = {"use_sde": True}
DICT = spaces.Dict(
    OrderedDict(  # not in the order of the alphabet
        {
            "speed": spaces.Box(-2, 2, (2,)),
            "camera": IMAGE,
            "cell": spaces.Discrete(4),
            "gear": spaces.MultiDiscrete([2, 3]),
            "lamps": spaces.MultiBinary((2, 2)),
        }
    )
)
SMALL_DICT = {"features_extractor_kwargs": {"cnn_output_dim": 8}}

CASES: dict[str, Case] = {
    "box": Case(),
    "box matrix, double": Case(spaces.Box(-5, 5, (2, 2), np.float64), spaces.Box(-1, 1, (2, 2), np.float64)),
    "box of integers": Case(spaces.Box(-3, 100, (2,), np.int32), spaces.Discrete(3)),
    "unclipped": Case(arguments={"clip_actions": False}),
    "actions of one number": Case(actions=spaces.Box(-1, 1, (1,))),
    "gsde": Case(arguments=SDE),
    "gsde squashed": Case(arguments=SDE, policy_kwargs={"squash_output": True, "full_std": False}),
    "gsde expln": Case(arguments=SDE, policy_kwargs={"use_expln": True, "log_std_init": -2.0}),
    "discrete": Case(actions=spaces.Discrete(4)),
    "multidiscrete": Case(actions=spaces.MultiDiscrete([3, 2, 4])),
    "multibinary": Case(actions=spaces.MultiBinary(3)),
    "from discrete": Case(spaces.Discrete(7), spaces.Discrete(2)),
    "from multidiscrete": Case(spaces.MultiDiscrete([3, 5]), spaces.MultiDiscrete([2])),
    "from multibinary": Case(spaces.MultiBinary((2, 3)), spaces.MultiBinary(3)),
    "image": Case(IMAGE, spaces.Discrete(3), "CnnPolicy", policy_kwargs=SMALL_IMAGE),
    "image, two extractors": Case(
        IMAGE, ACTION, "CnnPolicy", policy_kwargs={**SMALL_IMAGE, "share_features_extractor": False}
    ),
    "image, not divided": Case(
        spaces.Box(0, 1, (3, 36, 36)),
        ACTION,
        "CnnPolicy",
        policy_kwargs={**SMALL_IMAGE, "normalize_images": False, "net_arch": [4]},
    ),
    "flattened image": Case(IMAGE, ACTION, policy_kwargs={"net_arch": [4]}),
    "dict": Case(DICT, ACTION, "MultiInputPolicy", policy_kwargs=SMALL_DICT),
    "relu, other nets": Case(
        policy_kwargs={"activation_fn": nn.ReLU, "net_arch": {"pi": [5], "vf": []}, "ortho_init": False}
    ),
    "linear": Case(policy_kwargs={"net_arch": []}),
    "normalized": Case(normalize={"clip_obs": 1.5}),
    "normalized double": Case(spaces.Box(900, 1000, (3,), np.float64), normalize={}),
    "normalized dict": Case(
        DICT,
        spaces.Discrete(3),
        "MultiInputPolicy",
        policy_kwargs=SMALL_DICT,
        normalize={"norm_obs_keys": ["speed"], "clip_obs": np.inf},
    ),
    "normalized rewards only": Case(normalize={"norm_obs": False}),
    "normalized image": Case(
        spaces.Box(0, 255, (3, 36, 36), np.uint8),
        ACTION,
        "CnnPolicy",
        policy_kwargs={**SMALL_IMAGE, "normalize_images": False},
        normalize={},
    ),
}


def make_env(case: Case, n_envs: int = 2) -> Any:
    def make() -> gym.Env[Any, Any]:
        return Monitor(Sampling(case.observations, case.actions))

    env: Any = DummyVecEnv([make] * n_envs)
    env.seed(3)
    return env if case.normalize is None else VecNormalize(env, **case.normalize)


def make_model(case: Case) -> Any:
    """A model that has seen a few steps and whose weights are spread, so that its actions differ and reach bounds."""
    env = make_env(case)
    kwargs = {"net_arch": {"pi": [8, 6], "vf": [7]}, **case.policy_kwargs}
    arguments: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "seed": 0, "device": "cpu", **case.arguments}
    model = case.algorithm(case.policy, env, policy_kwargs=kwargs, **arguments)
    if case.normalize is not None:
        env.reset()
        for _ in range(20):
            env.step([case.actions.sample() for _ in range(env.num_envs)])
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter += 0.5 * th.randn(parameter.shape, generator=generator) / fan_in**0.5
    return model


def observations(space: Any, count: int, seed: int = 5) -> Any:
    """A batch of raw observations, ``(B, *shape)``."""
    space.seed(seed)
    samples = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)
