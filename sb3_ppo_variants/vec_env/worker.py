"""The worker: steps a chunk of environments, whatever carries its commands and results.

Needs neither torch nor Stable-Baselines3, so that a worker process with plain environments never imports them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np

from sb3_ppo_variants.vec_env.episode_start import record_episodes
from sb3_ppo_variants.vec_env.layout import SharedArrays, banks_in


class WorkerDiedError(RuntimeError):
    """A worker process ended without being asked to."""


class EnvironmentRaisedError(RuntimeError):
    """An environment raised an exception in its worker."""


class WorkerLostWarning(RuntimeWarning):
    """A worker was lost and is replaced; unless a reset was under way, its episodes are truncated."""


class ActorLostWarning(WorkerLostWarning):
    """A :class:`WorkerLostWarning` whose worker is a Ray actor."""


class Failure(NamedTuple):
    """An exception in a worker, in a form that can always be sent."""

    who: str
    """the environment, by its index among all, or the worker's environments where it may be any of them"""
    kind: str
    """name of the exception's class"""
    trace: str
    """the worker's traceback"""

    def to_exception(self) -> Exception:
        """The exception to raise in the parent process: AttributeErrors stay what they are."""
        message = f"{self.who} raised a {self.kind} in the worker:\n\n{self.trace}"
        return AttributeError(message) if self.kind == "AttributeError" else EnvironmentRaisedError(message)


class Arrays(NamedTuple):
    """What a reset or step gave, over a worker's environments, where it comes in a message."""

    observations: dict[Any, np.ndarray]
    """``(n, *shape)`` of each part of the observation space"""
    rewards: np.ndarray
    """``(n,)``; of no meaning after a reset"""
    dones: np.ndarray
    """``(n,)``; of no meaning after a reset"""


class Answer(NamedTuple):
    """A worker's answer to a command."""

    value: Any
    """what the chunk's method returned, or a ``Failure``"""
    arrays: Arrays | None = None
    """None for a command that neither resets nor steps, and where the arrays lie in shared memory"""


class EnvChunk:
    """Environments ``first`` … ``first + len(env_fns) − 1`` of a vectorised environment, stepped one after another.

    What happens to an environment is what SB3's ``DummyVecEnv`` does to it: it is reset at the end of an episode, and
    the infos then hold ``terminal_observation``; they always hold ``TimeLimit.truncated``.

    :param env_fns: make the environments, which must be different objects
    :param first: index of the first among all environments
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], first: int):
        self.first = first
        self.envs: list[gym.Env] = []
        for index, make in enumerate(env_fns):
            self._call(index, lambda make=make: self.envs.append(record_episodes(_patched(make()))))
        self.arrays: SharedArrays | None = None  # of these environments only

    def spaces(self) -> tuple[gym.Space, gym.Space]:
        """The spaces of the first environment."""
        return self.envs[0].observation_space, self.envs[0].action_space

    def begin(self, attributes: Sequence[dict[str, Any]], seeds: Sequence[int | None] | None) -> list[dict[str, Any]]:
        """Bring new environments to where those that they replace can be gone on from.

        :param attributes: those to set before anything else, by environment
        :param seeds: for a reset, by environment; None: no reset
        :return: the infos of the resets
        """
        for index, values in enumerate(attributes, self.first):
            self.call([index], ask_set_attributes, values)
        return [] if seeds is None else self.reset(seeds, [{}] * len(seeds))

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Reset all environments; their observations go into the arrays.

        :return: the infos of the resets
        """
        infos = []
        for index, (seed, option) in enumerate(zip(seeds, options, strict=True)):
            arguments = {"options": option} if option else {}
            observation, info = self._call(index, self.envs[index].reset, seed=seed, **arguments)
            self._call(index, self._store, index, observation)
            infos.append(info)
        return infos

    def step(self, actions: Any) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
        """Step all environments; observations, rewards and ends go into the arrays.

        :param actions: one for each environment; None: those in the arrays
        :return: the infos of the steps, and of the resets by environment
        :raises ValueError: if there are not as many actions as environments
        """
        assert self.arrays is not None
        if actions is None:
            assert self.arrays.actions is not None
            actions = self.arrays.actions
        infos, reset_infos = [], {}
        for index, action in zip(range(len(self.envs)), actions, strict=True):
            info, reset_info = self._call(index, self._step_one, index, action)
            infos.append(info)
            if reset_info is not None:
                reset_infos[self.first + index] = reset_info
        return infos, reset_infos

    def _step_one(self, index: int, action: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        assert self.arrays is not None
        env = self.envs[index]
        # A copy: the memory of the actions is used again.
        action = action.copy() if isinstance(action, np.ndarray) else action
        observation, self.arrays.rewards[index], terminated, truncated, info = env.step(action)
        done = bool(terminated or truncated)
        self.arrays.dones[index] = done
        info["TimeLimit.truncated"] = bool(truncated and not terminated)
        reset_info = None
        if done:
            info["terminal_observation"] = observation
            observation, reset_info = env.reset()
        self._store(index, observation)
        return info, reset_info

    def _store(self, index: int, observation: Any) -> None:
        assert self.arrays is not None
        for key, array in self.arrays.observations.items():
            array[index] = observation if key is None else observation[key]

    def call(self, indices: Sequence[int], ask: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Ask some environments something.

        :param indices: indices among all environments
        :param ask: one of the functions below, given the environment and ``arguments``
        """
        return [self._call(index - self.first, ask, self.envs[index - self.first], *arguments) for index in indices]

    def _call(self, index: int, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            raise _InEnvironment(_failure(f"environment {self.first + index}", error)) from error

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()


class _InEnvironment(Exception):  # noqa: N818  # carries a Failure to where it is sent
    pass


def _failure(who: str, error: Exception) -> Failure:
    return Failure(who, type(error).__name__, traceback.format_exc())


def failure_of(error: Exception, name: str) -> Failure:
    """The failure that ``error``, raised by a chunk or over its answer, stands for.

    :param name: the chunk's environments, to name where the error tells of no single one
    """
    return error.args[0] if isinstance(error, _InEnvironment) else _failure(name, error)


def ask_attribute(env: gym.Env, name: str) -> Any:
    """The environment's attribute, through its wrappers."""
    return env.get_wrapper_attr(name)


def ask_has_attribute(env: gym.Env, name: str) -> bool:
    """Whether the environment or one of its wrappers has it."""
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


def ask_set_attributes(env: gym.Env, values: dict[str, Any]) -> None:
    """Set attributes of the outermost wrapper, as SB3's environments do."""
    for name, value in values.items():
        setattr(env, name, value)


def ask_method(env: gym.Env, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The result of the environment's method."""
    return env.get_wrapper_attr(name)(*arguments, **keywords)


def ask_is_wrapped(env: gym.Env, wrapper_class: type[gym.Wrapper]) -> bool:
    """Whether the environment is wrapped in ``wrapper_class``."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, wrapper_class):
            return True
        env = env.env
    return False


def ask_render(env: gym.Env) -> Any:
    """A frame."""
    return env.render()


def _patched(env: Any) -> gym.Env:
    if isinstance(env, gym.Env):
        return env
    from stable_baselines3.common.vec_env.patch_gym import _patch_env  # old gym's environments

    return _patch_env(env)


def run(remote: Any, inherited: list[Any], pickled_env_fns: bytes, first: int, name: str) -> None:
    """The worker process: makes the environments and obeys commands until the connection ends.

    :param inherited: connections that are not this worker's, to close
    :param first: index of the first environment among all
    :param name: the environments, for messages
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    for other in inherited:
        other.close()
    try:
        chunk = EnvChunk(pickle.loads(pickled_env_fns), first)
        answer: bytes | None = pickled(chunk.spaces())
    except Exception as error:
        remote.send_bytes(pickled(failure_of(error, name)))
        return
    memory = _Memory(chunk)
    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        while answer is not None:
            remote.send_bytes(answer)
            answer = _answer(memory, remote, name, remote.recv_bytes())
    chunk.close()


def _answer(memory: _Memory, remote: Any, name: str, message: bytes) -> bytes | None:
    """The answer to a command, in bytes: what cannot be pickled fails here, and is told. None: to ``"close"``."""
    try:
        bank, command, arguments = pickle.loads(message)
        return None if command == "close" else pickled(memory.obey(remote, bank, command, arguments))
    except Exception as error:
        return pickled(failure_of(error, name))


class _Memory:
    """A chunk whose arrays lie in memory that the parent shares."""

    def __init__(self, chunk: EnvChunk):
        self._chunk = chunk
        self._banks: tuple[SharedArrays, ...] = ()  # of the chunk's environments only

    def obey(self, remote: Any, bank: int, command: str, arguments: tuple[Any, ...]) -> Any:
        if command == "attach":
            self._attach(reduction.recv_handle(remote), *arguments[:3])
            command, arguments = "begin", arguments[3:]
        self._chunk.arrays = self._banks[bank]
        return getattr(self._chunk, command)(*arguments)

    def _attach(self, descriptor: int, observation_space: gym.Space, action_space: gym.Space, n_envs: int) -> None:
        try:
            memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        own = slice(self._chunk.first, self._chunk.first + len(self._chunk.envs))
        self._banks = tuple(bank.rows(own) for bank in banks_in(memory, observation_space, action_space, n_envs))


def pickled(message: Any) -> bytes:
    """A message as bytes, by reference where it can be."""
    try:
        return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):  # functions and classes defined on the spot
        return cloudpickle.dumps(message)
