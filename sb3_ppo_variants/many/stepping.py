"""How the environments of several agents are stepped: as each agent's model alone would step its own.

Shapes: ``P`` agents of the stack, ``E`` environments of each, ``F`` features of an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants.many.agent import Agent


class VecEnvStepper:
    """Steps the vectorised environments of some agents, whatever they are.

    Each model's ``_last_obs``, ``_last_episode_starts`` and ``num_timesteps`` follow. An agent whose environments give
    what is not finite gets its ``error`` set, and is stepped no more.

    :param agents: all of the stack
    :param indices: those that are stepped here
    """

    def __init__(self, agents: Sequence[Agent], indices: Sequence[int]):
        self._agents = {index: agents[index] for index in indices}

    def begin(self, features: np.ndarray, ends: np.ndarray) -> None:
        """Write the observations that a rollout begins with.

        :param features: written to, ``(P, E, F)``
        :param ends: written to, ``(P, E)``: whether they are the first of an episode
        """
        for index, agent in self._agents.items():
            model = agent.model
            try:
                model._require_finite(np.zeros(model.n_envs), model._last_obs)
            except FloatingPointError as error:
                agent.error = error
                continue
            features[index] = _features(model, model._last_obs)
            ends[index] = model._last_episode_starts

    def step(self, actions: np.ndarray, features: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
        """Take one step in each environment; those whose episode has ended begin the next.

        :param actions: as the environments are to see them, ``(P, E, *action_shape)``
        :param features: of the next observations, written to, ``(P, E, F)``
        :param rewards: written to, ``(P, E)``; with γ V(last observation) where a time limit cut
        :param ends: written to, ``(P, E)``: whether an episode has ended
        """
        for index, agent in self._agents.items():
            if agent.error is None:
                try:
                    self._step(agent.model, actions[index], features[index], rewards[index], ends[index])
                except FloatingPointError as error:
                    agent.error = error

    def finish(self) -> None:
        """To be called at the end of a rollout."""

    def _step(
        self, model: Any, actions: np.ndarray, features: np.ndarray, rewards: np.ndarray, ends: np.ndarray
    ) -> None:
        observations, given, dones, infos = model.env.step(actions)
        model.num_timesteps += model.n_envs
        model._require_finite(given, observations)
        rewards[:], ends[:] = given, dones
        if dones.any():
            _end_episodes(model, rewards, dones, infos)
        features[:] = _features(model, observations)
        model._last_obs, model._last_episode_starts = observations, dones


class PlainStepper(VecEnvStepper):
    """Steps the environments inside of ``DummyVecEnv``, without its copies of all that they return."""

    def __init__(self, agents: Sequence[Agent], indices: Sequence[int]):
        super().__init__(agents, indices)
        self._rows = np.array(indices)
        # Each environment in turn, one agent after the other, and its place within the agent.
        self._places = [(agent, place) for agent in self._agents.values() for place in range(agent.model.n_envs)]
        self._envs = [agent.model.env.envs[place] for agent, place in self._places]
        self._steps = [env.step for env in self._envs]
        self._observations: list[Any] = [None] * len(self._envs)
        self._infos: dict[Agent, dict[int, dict[str, Any]]] = {}

    @classmethod
    def can_take(cls, model: Any) -> bool:
        """Whether a model's environments are such, with observations that the networks read as they are."""
        space = model.observation_space
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
        return type(model.env) is DummyVecEnv and is_vector

    def begin(self, features: np.ndarray, ends: np.ndarray) -> None:
        """As the base class's."""
        super().begin(features, ends)
        observations = [each for agent in self._agents.values() for each in agent.model._last_obs]
        self._observations[:] = observations

    def step(self, actions: np.ndarray, features: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
        """As the base class's."""
        self._infos = {}
        given = self._step_each(actions[self._rows].reshape(len(self._steps), *actions.shape[2:]))
        features[self._rows] = np.array(self._observations).reshape(len(self._rows), *features.shape[1:])
        rewards[self._rows] = np.array(given).reshape(len(self._rows), -1)
        ends[self._rows] = 0.0
        for agent in self._agents.values():
            if agent.error is None:
                agent.model.num_timesteps += agent.model.n_envs
        self._look_for_failures(features, rewards)
        for agent, infos in self._infos.items():
            if agent.error is None:
                self._end(agent, infos, rewards, ends)

    def _step_each(self, actions: np.ndarray) -> list[Any]:
        """Step each environment; the rewards."""
        observations, rewards = self._observations, [0.0] * len(self._steps)
        for number, step in enumerate(self._steps):
            agent = self._places[number][0]
            if agent.error is not None:
                continue
            try:
                observation, rewards[number], terminated, truncated, info = step(actions[number])
            except FloatingPointError as error:
                agent.error = error
                continue
            if terminated or truncated:
                info["TimeLimit.truncated"] = truncated and not terminated
                observation = self._begin_episode(number, observation, info)
            observations[number] = observation
        return rewards

    def finish(self) -> None:
        """As the base class's."""
        at = 0
        for agent in self._agents.values():
            model, infos = agent.model, self._infos.get(agent, {})
            observations = self._observations[at : at + model.n_envs]
            at += model.n_envs
            model._last_obs = np.array(observations, dtype=model.observation_space.dtype)
            model._last_episode_starts = np.array([place in infos for place in range(model.n_envs)])

    def _begin_episode(self, number: int, last_observation: Any, info: dict[str, Any]) -> Any:
        agent, place = self._places[number]
        info["terminal_observation"] = last_observation
        self._infos.setdefault(agent, {})[place] = info
        observation, agent.model.env.reset_infos[place] = self._envs[number].reset()
        return observation

    def _end(self, agent: Agent, infos: dict[int, dict[str, Any]], rewards: np.ndarray, ends: np.ndarray) -> None:
        index = next(index for index, each in self._agents.items() if each is agent)
        n_envs = agent.model.n_envs
        dones = np.array([place in infos for place in range(n_envs)])
        ends[index] = dones
        try:
            _end_episodes(agent.model, rewards[index], dones, [infos.get(place, {}) for place in range(n_envs)])
        except FloatingPointError as error:
            agent.error = error

    def _look_for_failures(self, features: np.ndarray, rewards: np.ndarray) -> None:
        if np.isfinite(features).all() and np.isfinite(rewards).all():
            return
        at = 0
        for index, agent in self._agents.items():
            n_envs = agent.model.n_envs
            observations = np.array(self._observations[at : at + n_envs])
            at += n_envs
            if agent.error is None:
                try:
                    agent.model._require_finite(rewards[index], observations)
                except FloatingPointError as error:
                    agent.error = error


def steppers_of(agents: Sequence[Agent]) -> list[VecEnvStepper]:
    """The fastest way to step each agent's environments."""
    plain = [index for index, agent in enumerate(agents) if PlainStepper.can_take(agent.model)]
    others = [index for index in range(len(agents)) if index not in plain]
    kinds: list[tuple[type[VecEnvStepper], list[int]]] = [(PlainStepper, plain), (VecEnvStepper, others)]
    return [kind(agents, indices) for kind, indices in kinds if indices]


def _end_episodes(model: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
    model._update_info_buffer(infos, dones)
    if model.bootstrap_on_timeout:
        model._credit_timeouts(rewards, dones, infos)


def _features(model: Any, observations: np.ndarray) -> np.ndarray:
    """Observations as the networks read them, ``(E, F)``; nothing in here is learned."""
    with th.no_grad():
        tensor = th.as_tensor(observations)
        extractor = model.policy.features_extractor
        features: np.ndarray = BaseModel.extract_features(model.policy, tensor, extractor).numpy()
    return features
