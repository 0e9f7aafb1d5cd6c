"""How the environments of one agent of many are stepped: as its model alone would step them.

Shapes: ``E`` environments, ``F`` features of an observation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.vec_env import DummyVecEnv


class VecEnvStepper:
    """Steps a model's vectorised environment, whatever it is.

    :param model: whose ``_last_obs``, ``_last_episode_starts`` and ``num_timesteps`` follow
    """

    def __init__(self, model: Any):
        self.model = model

    def begin(self, features: np.ndarray, ends: np.ndarray) -> None:
        """Write the observations that a rollout begins with.

        :param features: written to, ``(E, F)``
        :param ends: written to, ``(E,)``: whether they are the first of an episode
        :raises FloatingPointError: for an observation that is not finite
        """
        model = self.model
        model._require_finite(np.zeros(model.n_envs), model._last_obs)
        features[:] = _features(model, model._last_obs)
        ends[:] = model._last_episode_starts

    def step(self, actions: np.ndarray, features: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
        """Take one step in each environment; those whose episode has ended begin the next.

        :param actions: as the environments are to see them, ``(E, *action_shape)``
        :param features: of the next observations, written to, ``(E, F)``
        :param rewards: written to, ``(E,)``; with γ V(last observation) where a time limit cut
        :param ends: written to, ``(E,)``: whether an episode has ended
        :raises FloatingPointError: for an observation or a reward that is not finite
        """
        model = self.model
        observations, given, dones, infos = model.env.step(actions)
        model.num_timesteps += model.n_envs
        model._require_finite(given, observations)
        rewards[:] = given
        ends[:] = dones
        if dones.any():
            self._end_episodes(rewards, dones, infos)
        features[:] = _features(model, observations)
        model._last_obs, model._last_episode_starts = observations, dones

    def finish(self) -> None:
        """To be called at the end of a rollout."""

    def _end_episodes(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        self.model._update_info_buffer(infos, dones)
        if self.model.bootstrap_on_timeout:
            self.model._credit_timeouts(rewards, dones, infos)


class PlainStepper(VecEnvStepper):
    """Steps the environments inside a ``DummyVecEnv``, without its copies of all that they return.

    Non-finite numbers are looked for by :meth:`check`.
    """

    def __init__(self, model: Any):
        super().__init__(model)
        self._vec_env: DummyVecEnv = model.env
        self._steps = [env.step for env in self._vec_env.envs]
        self._observations: list[Any] = [None] * model.n_envs
        self._dones = self._none_done = np.zeros(model.n_envs, dtype=bool)

    @classmethod
    def can_take(cls, model: Any) -> bool:
        """Whether the model's environments are such, with observations that the networks read as they are."""
        space = model.observation_space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
        return type(model.env) is DummyVecEnv and is_vector

    def step(self, actions: np.ndarray, features: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
        """As the base class's, but for the check."""
        ended: dict[int, dict[str, Any]] = {}
        for place, step in enumerate(self._steps):
            observation, reward, terminated, truncated, info = step(actions[place])
            rewards[place] = reward
            if terminated or truncated:
                info["TimeLimit.truncated"] = truncated and not terminated
                info["terminal_observation"] = observation
                ended[place] = info
                env = self._vec_env.envs[place]
                observation, self._vec_env.reset_infos[place] = env.reset()
            features[place] = observation
            self._observations[place] = observation
        self.model.num_timesteps += len(self._steps)
        if not ended:
            ends[:] = 0.0
            self._dones = self._none_done
            return
        self._dones = np.array([place in ended for place in range(len(ends))])
        ends[:] = self._dones
        if np.isfinite(rewards).all():  # else check() tells
            self._end_episodes(rewards, self._dones, [ended.get(place, {}) for place in range(len(ends))])

    def check(self, rewards: np.ndarray) -> None:
        """Look at what the last step gave.

        :raises FloatingPointError: for an observation or a reward that is not finite
        """
        observations = np.stack([np.asarray(observation) for observation in self._observations])
        self.model._require_finite(rewards, observations)

    def finish(self) -> None:
        """As the base class's: tells the model how the last step ended."""
        dtype = self.model.observation_space.dtype
        self.model._last_obs = np.array([np.asarray(each) for each in self._observations], dtype=dtype)
        self.model._last_episode_starts = self._dones


def stepper_of(model: Any) -> VecEnvStepper:
    """The fastest way to step a model's environments."""
    return PlainStepper(model) if PlainStepper.can_take(model) else VecEnvStepper(model)


def _features(model: Any, observations: np.ndarray) -> np.ndarray:
    """Observations as the networks read them, ``(E, F)``; nothing in here is learned."""
    with th.no_grad():
        tensor = th.as_tensor(observations)
        extractor = model.policy.features_extractor
        features: np.ndarray = BaseModel.extract_features(model.policy, tensor, extractor).numpy()
    return features
