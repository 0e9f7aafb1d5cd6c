"""What vectorised environments that are divided into chunks have in common, whatever carries commands and answers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.vec_env import worker
from sb3_ppo_variants.vec_env.layout import SharedArrays
from sb3_ppo_variants.vec_env.worker import Answer, Arrays, Failure, WorkerDiedError, WorkerLostWarning

# After so many steps of all environments since a worker was last replaced, it may be lost as often as at first.
# Dying again and again at once takes fewer; a run of days with a loss now and then has more between two of them.
HEALTHY_STEPS = 100

# Modules that a warning about a lost worker passes over: whose code brought it to light stands above them.
PASSED_OVER = ("sb3_ppo_variants.vec_env", "stable_baselines3.common.vec_env", "contextlib")


class Chunk:
    """The parent's side of environments ``first`` … ``first + n_envs − 1``, which one worker steps.

    It stays the same when the worker is replaced.
    """

    def __init__(self, first: int, n_envs: int):
        self.first, self.n_envs = first, n_envs
        self.part = slice(first, first + n_envs)
        self.starting = False
        """whether the worker was asked to start, and its answer not seen yet"""
        self.torn = False
        """whether part of a message is sent or read: if Ctrl-C comes then, nobody knows which, and it cannot go on"""
        self.restarts = 0
        """how often the worker was replaced"""
        self.recent_restarts = 0
        """how often without ``HEALTHY_STEPS`` steps between"""
        self.restarted_at = 0
        """the step of all environments that the last restart was in"""
        self.attributes: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        """what :meth:`ChunkedVecEnv.set_attr` gave the environments"""
        self.cut: tuple[Arrays | None, list[dict[str, Any]]] | None = None
        """of a replacement that no step has told of: what its reset gave (None: it is in place), and the infos"""

    def began(self, arrays: Arrays | None, reset_infos: list[dict[str, Any]]) -> None:
        """Take note that the worker has started.

        :param arrays: what a reset gave; None: it is in place, or there was none
        :param reset_infos: empty without a reset
        """
        self.starting = False
        self.cut = (arrays, reset_infos) if reset_infos else None

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


def require_max_restarts(max_restarts: Any) -> None:
    """Check the argument ``max_restarts``.

    :raises ValueError: for anything but an integer >= 0
    """
    require("max_restarts", max_restarts, "an integer >= 0", lambda value: value >= 0, integer=True)


def raise_failures(answers: Sequence[Any]) -> None:
    """Raise the first failure among the workers' answers, if there is one.

    :raises EnvironmentRaisedError: for an environment that raised something other than an AttributeError
    :raises AttributeError: for one that raised that
    """
    for answer in answers:
        if isinstance(answer, Failure):
            raise answer.to_exception()


class Loss(NamedTuple):
    """What is known of a lost worker."""

    what: str
    """which worker was lost, and how, for a message"""
    cause: Exception | None = None
    """what told of it, where that says more"""


class ChunkedVecEnv(VecEnv):
    """Environments in chunks, each stepped by a worker in another process, which is replaced when it is lost.

    A subclass fills ``_chunks``, ``_arrays``, which hold what was last received, and ``_incoming``, where the arrays of
    the next answers lie or are put; and carries the messages.
    """

    lost_workers: int
    """how many workers were lost so far"""

    LOST_WARNING: ClassVar[type[WorkerLostWarning]] = WorkerLostWarning
    """what tells of a lost worker"""
    LOST_KEYS: ClassVar[tuple[str, ...]] = ("worker_lost",)
    """what is True in the infos of a cut episode's last step"""

    _chunks: Sequence[Any]
    _arrays: SharedArrays
    _incoming: SharedArrays
    closed = False
    waiting = False

    def __init__(self, n_envs: int, observation_space: gym.Space, action_space: gym.Space):
        super().__init__(n_envs, observation_space, action_space)
        # As DummyVecEnv: SB3's VecVideoRecorder finds the rate of its films here.
        self.metadata = self.get_attr("metadata", 0)[0]

    def _prepare(self, n_envs: int, max_restarts: int) -> None:
        """What replacing workers needs, before the first is started.

        :param max_restarts: how often each worker may be replaced without ``HEALTHY_STEPS`` steps between
        """
        self.lost_workers = 0
        self._max_restarts = max_restarts
        self._n_steps = 0
        self._pending: dict[Any, Any] = {}  # chunks with a step under way, and what _receive needs for its answer
        self._episodes_begun = False
        self._unsettled = False  # while workers are asked and answer; stays if Ctrl-C ends that
        self._last_seeds: list[int | None] = [None] * n_envs

    def reset(self) -> VecEnvObs:
        """Reset all environments, with the seeds and options that were set.

        :return: observations, ``(N, *obs_shape)`` or a dict or tuple of such
        :raises RuntimeError: if closed, or, over shared memory, during a step
        """
        self._require_ready()
        with self._ending_on_error():
            resets = {chunk: ("reset", self._seeds[chunk.part], self._options[chunk.part]) for chunk in self._chunks}
            infos = list(self._ask_again(resets, cuts=False).values())
            raise_failures(infos)
            for chunk in self._chunks:
                chunk.cut = None
        for index, seed in enumerate(self._seeds):
            if seed is not None:
                self._last_seeds[index] = seed
        self._episodes_begun = True
        self._received()
        return self._reset_return(infos)

    def step_wait(self) -> VecEnvStepReturn:
        """End the step that :meth:`step_async` began.

        :return: observations, rewards ``(N,)``, ends ``(N,)``, infos
        :raises RuntimeError: if closed, or if no step is under way
        """
        self._require_open()
        if not self.waiting:
            raise RuntimeError("no step is under way; begin one with step_async first")
        with self._ending_on_error():
            # The step is over, even if Ctrl-C comes now: half of its answers may be gone.
            pending, self._pending, self.waiting = self._pending, {}, False
            answers, lost = self._receive(pending)
            raise_failures([answer.value for answer in answers.values()])
            self._replace(lost)
        self._n_steps += 1
        results = []
        for chunk in self._chunks:
            if chunk.cut is not None:
                results.append(self._cut(chunk, *chunk.cut))
                chunk.cut = None
            else:
                self._store(chunk, answers[chunk].arrays)
                results.append(answers[chunk].value)
        self._received()
        return self._step_return(results)

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
        """Set an attribute of each environment, and of those that will replace it."""
        self._ask(indices, worker.ask_set_attributes, {attr_name: value})
        for index in self._get_indices(indices):
            for chunk in self._chunks:
                if chunk.owns(index):
                    chunk.attributes[index - chunk.first][attr_name] = value

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

    def _require_ready(self) -> None:
        """Check that the workers can be asked something.

        :raises RuntimeError: if they cannot
        """
        self._require_open()

    def _require_actions(self, actions: Any) -> None:
        """Check that each environment has an action.

        :raises ValueError: if there are fewer or more
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"actions must have one row per environment, {self.num_envs}; got {len(actions)}")

    @abstractmethod
    def _send(self, chunk: Any, command: str, *arguments: Any) -> Any:
        """Send a command to a worker, whether it is still there or not.

        :return: what :meth:`_receive` needs for the answer
        """

    @abstractmethod
    def _receive(self, asked: dict[Any, Any]) -> tuple[dict[Any, Answer], dict[Any, Loss]]:
        """Wait for answers.

        :param asked: the chunks, and for each what :meth:`_send` returned
        :return: the answers, and what is known of the workers that were lost
        """

    def _drop_answers(self) -> None:
        """Wait for answers that Ctrl-C kept from being received, except those to a step under way, and drop them."""

    @abstractmethod
    def _start_anew(self, chunks: list[Any]) -> dict[Any, Loss]:
        """Start workers in place of the ones before, with the same attributes and with :meth:`_new_seeds`.

        :return: what is known of those that were lost meanwhile; of the others, :meth:`Chunk.began` was told
        """

    @abstractmethod
    def _end_workers(self) -> None:
        """Close the environments and end the workers, in whatever state they are."""

    def _ask(self, indices: VecEnvIndices, ask: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The environments' answers, in the order of ``indices``; an exception in one of them ends nothing."""
        wanted = list(self._get_indices(indices))
        owned = [(chunk, [index for index in wanted if chunk.owns(index)]) for chunk in self._chunks]
        owned = [(chunk, own) for chunk, own in owned if own]
        self._require_ready()
        with self._ending_on_error():
            messages = {chunk: ("call", own, ask, *arguments) for chunk, own in owned}
            answers = list(self._ask_again(messages).values())
        raise_failures(answers)
        by_index: dict[int, Any] = {}
        for (_, own), answer in zip(owned, answers, strict=True):
            by_index.update(zip(own, answer, strict=True))
        return [by_index[index] for index in wanted]

    @contextlib.contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        self._require_open()
        try:
            if self._unsettled:
                self._settle()
            self._unsettled = True
            yield
            self._unsettled = False
        except Exception:
            self._end_workers()
            raise

    def _settle(self) -> None:
        """Bring all workers to where they wait for a command, after Ctrl-C."""
        # What they answered to a start was not seen, or half of a message; a step has yet to tell of the cut.
        if interrupted := [chunk for chunk in self._chunks if chunk.starting or chunk.torn]:
            self._replace(self._begin(interrupted))
        self._drop_answers()

    def _step_begun(self, pending: dict[Any, Any]) -> None:
        """Take note of a step under way.

        :param pending: the chunks that were asked to step, and for each what :meth:`_send` returned
        """
        self._episodes_begun = True  # also without a reset: environments made anew could not go on without one
        self._pending, self.waiting = pending, True

    def _ask_again(self, messages: dict[Any, tuple[Any, ...]], *, cuts: bool = True) -> dict[Any, Any]:
        """The values of the workers' answers, in the order of ``messages``; of a lost worker, its replacement's.

        :param messages: to each chunk its command and arguments
        :param cuts: whether a loss cuts the episodes under way
        """
        values: dict[Any, Any] = dict.fromkeys(messages)
        asked = list(messages)
        while asked:
            answers, lost = self._receive({chunk: self._send(chunk, *messages[chunk]) for chunk in asked})
            for chunk, answer in answers.items():
                values[chunk] = answer.value
                self._store(chunk, answer.arrays)
            self._replace(lost, cuts=cuts)
            asked = list(lost)
        return values

    def _replace(self, lost: dict[Any, Loss], *, cuts: bool = True) -> None:
        """Replace lost workers, all at once.

        :param cuts: whether their loss cuts the episodes under way
        :raises WorkerDiedError: if one of them was lost too often
        """
        while lost:
            for chunk, loss in lost.items():
                self._report(chunk, loss, cuts=cuts and self._episodes_begun)
            lost = self._begin(list(lost))

    def _report(self, chunk: Chunk, loss: Loss, *, cuts: bool) -> None:
        self.lost_workers += 1
        why = "" if loss.cause is None else f": {loss.cause}"
        if self._n_steps - chunk.restarted_at >= HEALTHY_STEPS:
            chunk.recent_restarts = 0
        if chunk.recent_restarts >= self._max_restarts:
            raise WorkerDiedError(
                f"{loss.what}, and max_restarts={self._max_restarts} allows no further restart of it{why}"
            ) from loss.cause
        chunk.restarts += 1
        chunk.recent_restarts += 1
        chunk.restarted_at = self._n_steps
        cut = ", and their episodes truncated" if cuts else ""
        warnings.warn(
            f"{loss.what}; its environments are made anew{cut} (restart {chunk.recent_restarts} of at most "
            f"max_restarts={self._max_restarts}){why}",
            self.LOST_WARNING,
            stacklevel=_level_of_the_user(),
        )

    def _begin(self, chunks: list[Any]) -> dict[Any, Loss]:
        """Start workers anew, and reset their environments where episodes are under way.

        :return: those lost meanwhile
        """
        for chunk in chunks:
            self._pending.pop(chunk, None)  # what a step would have given is gone
            chunk.starting = True
        return self._start_anew(chunks)

    def _new_seeds(self, chunk: Chunk) -> list[int | None] | None:
        """Seeds for the environments of a new worker: others than the last, and the same in every run.

        :return: by environment; None: no reset, as no episode is under way
        """
        if not self._episodes_begun:
            return None
        return [
            None if seed is None else int(np.random.SeedSequence([seed, chunk.restarts]).generate_state(1)[0] >> 1)
            for seed in self._last_seeds[chunk.part]
        ]

    def _cut(
        self, chunk: Chunk, arrays: Arrays | None, resets: list[dict[str, Any]]
    ) -> tuple[list[Any], dict[int, Any]]:
        """What the step of a lost worker gives; what the reset of its replacement gave goes into the arrays.

        :return: the infos of the step, and of the resets by environment
        """
        last = self._arrays.rows(chunk.part).observations
        infos = []
        for index in range(chunk.n_envs):
            parts: Any = {key: array[index].copy() for key, array in last.items()}
            if isinstance(self.observation_space, gym.spaces.Tuple):
                parts = tuple(parts.values())
            elif not isinstance(self.observation_space, gym.spaces.Dict):
                parts = parts[None]
            told = dict.fromkeys(self.LOST_KEYS, True)
            infos.append({"TimeLimit.truncated": True, **told, "terminal_observation": parts})
        self._store(chunk, arrays)
        rows = self._incoming.rows(chunk.part)
        rows.rewards[:], rows.dones[:] = 0, True
        return infos, dict(enumerate(resets, chunk.first))

    def _store(self, chunk: Chunk, arrays: Arrays | None) -> None:
        """Put a worker's arrays among the others; None: they lie there already, or there are none."""
        if arrays is None:
            return
        rows = self._incoming.rows(chunk.part)
        for key, array in rows.observations.items():
            array[:] = arrays.observations[key]
        rows.rewards[:] = arrays.rewards
        rows.dones[:] = arrays.dones

    def _received(self) -> None:
        """Take note that all of ``_incoming`` is there, and about to be returned."""

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


def _level_of_the_user() -> int:
    """The ``stacklevel``, for the caller's warning, of the first frame that is in none of ``PASSED_OVER``."""
    frame = inspect.currentframe()
    level = 0
    while frame is not None and (level == 0 or frame.f_globals.get("__name__", "").startswith(PASSED_OVER)):
        frame, level = frame.f_back, level + 1
    return level
