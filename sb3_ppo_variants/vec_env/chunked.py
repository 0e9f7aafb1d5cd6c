"""What vectorised environments that are divided into chunks have in common, whatever carries commands and answers."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.vec_env import worker
from sb3_ppo_variants.vec_env.layout import SharedArrays
from sb3_ppo_variants.vec_env.worker import Failure


class Chunk:
    """The parent's side of environments ``first`` … ``first + n_envs − 1``, which one worker steps."""

    def __init__(self, first: int, n_envs: int):
        self.first, self.n_envs = first, n_envs
        self.part = slice(first, first + n_envs)

    def owns(self, index: int) -> bool:
        """Whether the environment ``index`` is one of these."""
        return self.first <= index < self.first + self.n_envs

    @property
    def name(self) -> str:
        """The environments, for a message."""
        last = self.first + self.n_envs - 1
        return f"environment {self.first}" if last == self.first else f"environments {self.first} to {last}"


def require_chunks(env_fns: Sequence[Callable[[], gym.Env]], name: str, n_chunks: Any) -> None:
    """Check that there are environments, and the argument ``name`` that says in how many chunks to divide them.

    :raises ValueError: if there are none, or if they cannot be divided so
    """
    n_envs = len(env_fns)
    if n_envs == 0:
        raise ValueError("env_fns must hold at least one function; got none")
    allowed = f"an integer from 1 to the number of environments, {n_envs}, or None"
    require(name, n_chunks, allowed, lambda value: 1 <= value <= n_envs, integer=True, optional=True)


def raise_failures(answers: Sequence[Any]) -> None:
    """Raise the first failure among the workers' answers, if there is one.

    :raises EnvironmentRaisedError: for an environment that raised something other than an AttributeError
    :raises AttributeError: for one that raised that
    """
    for answer in answers:
        if isinstance(answer, Failure):
            raise answer.to_exception()


class ChunkedVecEnv(VecEnv):
    """Environments in chunks, each stepped by a worker in another process.

    A subclass fills ``_chunks`` and ``_arrays``, which hold what was last received, and carries the messages.
    """

    _chunks: Sequence[Chunk]
    _arrays: SharedArrays
    closed = False
    waiting = False

    def __init__(self, n_envs: int, observation_space: gym.Space, action_space: gym.Space):
        super().__init__(n_envs, observation_space, action_space)
        # As DummyVecEnv: SB3's VecVideoRecorder finds the rate of its films here.
        self.metadata = self.get_attr("metadata", 0)[0]

    def close(self) -> None:
        """Close the environments and end the workers."""
        if not self.closed:
            self._end_workers()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A frame of each environment, where they render to arrays."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return self._ask(None, worker.ask_render)

    def has_attr(self, attr_name: str) -> bool:
        """Whether all environments have an attribute."""
        return all(self._ask(None, worker.ask_has_attribute, attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment."""
        return self._ask(indices, worker.ask_attribute, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment."""
        self._ask(indices, worker.ask_set_attributes, {attr_name: value})

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of each environment."""
        return self._ask(indices, worker.ask_method, method_name, method_args, method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each environment is wrapped in ``wrapper_class``."""
        return self._ask(indices, worker.ask_is_wrapped, wrapper_class)

    def _require_open(self) -> None:
        """Check that the environments are still there.

        :raises RuntimeError: if they were closed, or ended with an error
        """
        if self.closed:
            raise RuntimeError(f"this {type(self).__name__} is closed")

    def _require_actions(self, actions: Any) -> None:
        """Check that each environment has an action.

        :raises ValueError: if there are fewer or more
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"actions must have one row per environment, {self.num_envs}; got {len(actions)}")

    @abstractmethod
    def _call_chunks(self, calls: list[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
        """The answers to ``EnvChunk.call``, Failures among them.

        :param calls: chunks, and the call's arguments for each
        """

    @abstractmethod
    def _end_workers(self) -> None:
        """Close the environments and end the workers, in whatever state they are."""

    def _ask(self, indices: VecEnvIndices, ask: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The environments' answers, in the order of ``indices``; an exception in one of them ends nothing."""
        wanted = list(self._get_indices(indices))
        owned = [(chunk, [index for index in wanted if chunk.owns(index)]) for chunk in self._chunks]
        owned = [(chunk, own) for chunk, own in owned if own]
        answers = self._call_chunks([(chunk, (own, ask, *arguments)) for chunk, own in owned])
        raise_failures(answers)
        by_index: dict[int, Any] = {}
        for (_, own), answer in zip(owned, answers, strict=True):
            by_index.update(zip(own, answer, strict=True))
        return [by_index[index] for index in wanted]

    def _reset_return(self, infos: list[list[dict[str, Any]]]) -> VecEnvObs:
        """What :meth:`reset` returns, from the chunks' infos and the arrays; the seeds and options are used up."""
        self.reset_infos = [info for chunk_infos in infos for info in chunk_infos]
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def _step_return(self, results: list[tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]]) -> VecEnvStepReturn:
        """What :meth:`step_wait` returns, from the chunks' infos and the arrays.

        :param results: each chunk's infos of the step, and of the resets by environment
        """
        infos: list[dict[str, Any]] = []
        for chunk_infos, reset_infos in results:
            infos += chunk_infos
            for index, info in reset_infos.items():
                self.reset_infos[index] = info
        return self._observations(), self._arrays.rewards.copy(), self._arrays.dones.copy(), infos

    def _observations(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, {key: a.copy() for key, a in self._arrays.observations.items()})
