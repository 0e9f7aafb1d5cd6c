"""How the environments of several agents are stepped: as each agent's model alone would step its own.

Shapes: ``P`` agents of the stack, ``E`` environments of each, ``F`` features of an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.mujoco_tasks import Task, task_of


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
        self._observations: Any = [None] * len(self._envs)
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
        if self._infos:
            for index, agent in self._agents.items():
                if agent in self._infos and agent.error is None:
                    self._end(agent, self._infos[agent], rewards[index], ends[index])

    def _step_each(self, actions: np.ndarray) -> Any:
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
        n_envs = agent.model.n_envs
        dones = np.array([place in infos for place in range(n_envs)])
        ends[:] = dones
        try:
            _end_episodes(agent.model, rewards, dones, [infos.get(place, {}) for place in range(n_envs)])
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


class MujocoStepper(PlainStepper):
    """Steps gymnasium's MuJoCo tasks by the simulator itself, past the environments and the usual wrappers.

    Observations, rewards and ends are computed for all environments at once. The last step of an episode is told to the
    wrappers, as if the environment had made it; what they count of the others is counted for them. All that they and
    the environments hold is as after their own steps, but for the simulator's accelerations and forces of bodies
    (``cacc``, ``cfrc_int`` and ``cfrc_ext``), which these tasks do not use: those are only so at a rollout's end.

    :param indices: of agents with environments of one kind
    """

    def __init__(self, agents: Sequence[Agent], indices: Sequence[int]):
        import mujoco  # installed where there are such environments

        super().__init__(agents, indices)
        self._simulate, self._complete = mujoco.mj_step, mujoco.mj_rnePostConstraint
        self._bases: list[Any] = [env.unwrapped for env in self._envs]
        self._observations = np.zeros((len(self._envs), *self._envs[0].observation_space.shape))
        kind: Any = task_of(self._bases[0])
        self._task: Task = kind[0](self._bases)
        counting = [_wrappers(env) for env in self._envs]
        self._monitors: list[Any] = [_only(Monitor, wrappers) for wrappers in counting]
        self._limits: list[Any] = [_time_limit(wrappers) for wrappers in counting]
        # Each environment's controls are copied from a row of this.
        self._controls = np.zeros((len(self._envs), self._bases[0].model.nu))
        self._worlds = [
            (agent, base.data.ctrl, controls, base.model, base.data, base.frame_skip)
            for (agent, _), base, controls in zip(self._places, self._bases, self._controls, strict=True)
        ]

    @classmethod
    def kind_of(cls, model: Any) -> Any:
        """What the environments of a model have to have in common with others to be stepped with them.

        :return: None if they cannot be stepped so at all
        """
        if not cls.can_take(model):
            return None
        kinds = {_task_inside(env) for env in model.env.envs}
        return kinds.pop() if len(kinds) == 1 else None

    def begin(self, features: np.ndarray, ends: np.ndarray) -> None:
        """As the base class's."""
        super().begin(features, ends)
        self._task.read()

    def finish(self) -> None:
        """As the base class's."""
        super().finish()
        for base, (agent, place) in zip(self._bases, self._places, strict=True):
            if place not in self._infos.get(agent, {}):
                self._complete(base.model, base.data)

    def _step_each(self, actions: np.ndarray) -> np.ndarray:
        self._controls[:] = actions
        simulate = self._simulate
        for agent, control, wanted, model, data, frame_skip in self._worlds:
            if agent.error is None:
                control[:] = wanted
                simulate(model, data, frame_skip)
        rewards, ends = self._task.after_step(actions, self._observations)
        self._count(rewards.tolist(), ends.tolist())
        return rewards

    def _count(self, rewards: list[float], ends: list[bool]) -> None:
        counting = zip(rewards, ends, self._monitors, self._limits, self._places, strict=True)
        for number, (reward, end, monitor, limit, (agent, _)) in enumerate(counting):
            if agent.error is not None:
                continue
            elapsed = limit._elapsed_steps + 1
            if end or elapsed >= limit._max_episode_steps:
                self._end_episode(number, reward, end)
            else:
                limit._elapsed_steps = elapsed
                monitor.rewards.append(reward)
                monitor.total_steps += 1

    def _end_episode(self, number: int, reward: float, end: bool) -> None:
        """Let the wrappers make the last step of an episode, which the simulator has made, and begin the next."""
        base, last = self._bases[number], self._observations[number].copy()
        base.step = lambda _: (last, reward, end, False, {})
        try:
            _, _, terminated, truncated, info = self._steps[number](None)
        finally:
            del base.step
        info["TimeLimit.truncated"] = truncated and not terminated
        self._observations[number] = self._begin_episode(number, last, info)
        self._task.read_one(number)


def steppers_of(agents: Sequence[Agent]) -> list[VecEnvStepper]:
    """The fastest way to step each agent's environments."""
    kinds: dict[tuple[type[VecEnvStepper], Any], list[int]] = {}
    for index, agent in enumerate(agents):
        mujoco_kind = MujocoStepper.kind_of(agent.model)
        other = PlainStepper if PlainStepper.can_take(agent.model) else VecEnvStepper
        kind = (other, None) if mujoco_kind is None else (MujocoStepper, mujoco_kind)
        kinds.setdefault(kind, []).append(index)
    return [stepper(agents, indices) for (stepper, _), indices in kinds.items()]


def _wrappers(env: gym.Env) -> list[gym.Env]:
    """An environment's wrappers, and what they wrap, from the outside in."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _only(kind: type, layers: Sequence[gym.Env]) -> Any:
    """The layer of a class, where there is just one; else None."""
    found = [layer for layer in layers if type(layer) is kind]
    return found[0] if len(found) == 1 else None


def _is_time_limit(layer: gym.Env) -> bool:
    """Whether a wrapper is gymnasium's, or the one that rl_zoo3 puts in its place as soon as it is imported.

    The latter differs at the last step of an episode alone, which the wrappers make themselves.
    """
    kind = type(layer)
    return kind is TimeLimit or (kind.__module__, kind.__name__) == ("rl_zoo3.gym_patches", "PatchedTimeLimit")


def _time_limit(layers: Sequence[gym.Env]) -> Any:
    """The layer that limits an episode's length, where there is just one; else None."""
    found = [layer for layer in layers if _is_time_limit(layer)]
    return found[0] if len(found) == 1 else None


def _task_inside(env: gym.Env) -> Any:
    """The kind of MuJoCo task in wrappers all of whose doings are known; None for any other environment."""
    *wrappers, base = _wrappers(env)
    monitor = _only(Monitor, wrappers)
    if monitor is None or monitor.info_keywords or _time_limit(wrappers) is None:
        return None
    known = all(
        type(wrapper) in (Monitor, OrderEnforcing, PassiveEnvChecker) or _is_time_limit(wrapper) for wrapper in wrappers
    )
    if not known or any("step" in vars(layer) for layer in (*wrappers, base)):
        return None
    return task_of(base)


def _end_episodes(model: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
    model._update_info_buffer(infos, dones)
    if model.bootstrap_on_timeout and any(info.get("TimeLimit.truncated", False) for info in infos):
        model._credit_timeouts(rewards, dones, infos)


def _features(model: Any, observations: np.ndarray) -> np.ndarray:
    """Observations as the networks read them, ``(E, F)``; nothing in here is learned."""
    with th.no_grad():
        tensor = th.as_tensor(observations)
        extractor = model.policy.features_extractor
        features: np.ndarray = BaseModel.extract_features(model.policy, tensor, extractor).numpy()
    return features
