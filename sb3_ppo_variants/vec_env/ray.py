"""``RayVecEnv``: Ray actors, on one machine or many, step a chunk of environments each."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.vec_env.chunked import Chunk, ChunkedVecEnv, raise_failures, require_chunks
from sb3_ppo_variants.vec_env.layout import SharedArrays
from sb3_ppo_variants.vec_env.worker import ActorLostWarning, WorkerDiedError

try:
    import ray
except ImportError as error:
    raise ImportError('RayVecEnv needs the [ray] extra: pip install "sb3-ppo-variants[ray]"') from error

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from sb3_ppo_variants.vec_env.ray_actor import Answer, Arrays, EnvActor, Start, Started

# Seconds that actors have to close their environments before they are ended.
CLOSING_SECONDS = 5.0

# What Ray raises in place of the answer of an actor whose process or node is no longer there.
LOSSES = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError, OutOfMemoryError)


# Ray itself would restart an actor without its environments.
ACTOR_CLASS = ray.remote(max_restarts=0, max_task_retries=0)(EnvActor)

# Modules that a warning about a lost actor passes over: whose code brought it to light stands above them.
PASSED_OVER = ("sb3_ppo_variants.vec_env", "stable_baselines3.common.vec_env", "contextlib")


class RayVecEnv(ChunkedVecEnv):
    """Environments in Ray actors, several to each, on all the machines of a Ray cluster.

    Gives what SB3's ``DummyVecEnv`` gives for the same seeds, whatever the number of actors, as long as no actor is
    lost. Takes any gymnasium environment whose observations are a Box, Discrete, MultiDiscrete or MultiBinary, or a
    Dict or Tuple of those. Uses the Ray that the process is connected to; else connects to ``address``, else to the
    ``RAY_ADDRESS`` of the process's environment, else starts Ray on this machine. What it connected or started ends
    with the last ``RayVecEnv`` of the process.

    An actor that is lost (its process or its node ended) is replaced, on whatever node has room: its environments are
    made anew, get the attributes that :meth:`set_attr` gave them, and are reset with seeds drawn from their last seeds
    and the number of replacements. An :class:`ActorLostWarning` tells of it. What was under way:

    - in a step, or between steps: the episodes are cut. The step gives reward 0, ``done``, and infos with
      ``TimeLimit.truncated``, ``actor_lost`` and, as ``terminal_observation``, the last observation received;
    - in :meth:`reset`: the reset is done again, with the seeds and options that were set;
    - in any other method: the question is asked again of the new environments (a method with an effect may so be
      called twice; its effect on the old ones is gone), and the next step tells of the cut as above.

    An environment that raises is no lost actor. In a reset or step it ends the whole with an exception that names the
    environment; in any other method, as an answer that cannot be pickled, it ends nothing.

    :param env_fns: functions that make the environments, each a new one; they must be picklable, and what they import
        installed on every node
    :param n_actors: Ray actors; None: as many as fit on the cluster's nodes, at most one per environment; CPUs that
        others use count as free
    :param address: of a Ray cluster, ``"<host>:<port>"`` or ``"auto"``; not of a Ray Client, ``"ray://…"``
    :param num_cpus: CPUs that each actor reserves on its node
    :param max_restarts: how often each actor may be replaced
    :param start_timeout: seconds that actors have to find room, start and make their environments
    :raises ValueError: for an argument outside its range, named in the message
    :raises TypeError: for an observation space with a part that is no array
    :raises EnvironmentRaisedError: if an environment cannot be made, or raises in a reset or step
    :raises WorkerDiedError: if an actor is lost more often than ``max_restarts``
    :raises RuntimeError: if used after :meth:`close`, or after somebody else ended the connection to Ray
    :raises TimeoutError: if actors do not start within ``start_timeout``
    """

    lost_actors: int
    """how many actors were lost so far"""

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        n_actors: int | None = None,
        address: str | None = None,
        *,
        num_cpus: float = 1,
        max_restarts: int = 10,
        start_timeout: float = 120.0,
    ):
        require_chunks(env_fns, "n_actors", n_actors)
        _require_options(num_cpus, max_restarts, start_timeout)
        n_envs = len(env_fns)
        self.lost_actors = 0
        self._max_restarts, self._start_timeout, self._num_cpus = max_restarts, start_timeout, num_cpus
        self._chunks: list[_Actor] = []
        self._pending: dict[_Actor, Any] = {}  # answers to the step under way
        self._episodes_begun = False
        self._last_seeds: list[int | None] = [None] * n_envs
        self._connection = _Connection.join(address, math.ceil((n_actors or 1) * num_cpus))
        try:
            if n_actors is None:
                n_actors = min(n_envs, max(1, _room_for(num_cpus or 1)))
            for part in np.array_split(np.arange(n_envs), n_actors):
                self._chunks.append(_Actor([env_fns[index] for index in part], int(part[0]), num_cpus))
            self._spaces: tuple[gym.Space, gym.Space] | None = None
            self._start(self._chunks)
            self._spaces = observation_space, action_space = self._chunks[0].spaces
            self._arrays, _ = SharedArrays.over(None, observation_space, action_space, n_envs)
            attached = self._ask_again(dict.fromkeys(self._chunks, ("attach", *self._spaces)))
            raise_failures(list(attached.values()))
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self._end_workers()
            raise

    def reset(self) -> VecEnvObs:
        """Reset all environments, with the seeds and options that were set.

        :return: observations, ``(N, *obs_shape)`` or a dict or tuple of such
        """
        with self._ending_on_error():
            resets = {a: ("reset", self._seeds[a.part], self._options[a.part]) for a in self._chunks}
            infos = list(self._ask_again(resets, cuts=False).values())
            raise_failures(infos)
            for actor in self._chunks:
                actor.cut = None
        for index, seed in enumerate(self._seeds):
            if seed is not None:
                self._last_seeds[index] = seed
        self._episodes_begun = True
        return self._reset_return(infos)

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        :param actions: ``(N, *action_shape)``
        :raises ValueError: if there is not one for each environment; nothing has happened then
        """
        self._require_actions(actions)
        with self._ending_on_error():
            # Whoever chose the actions has not seen yet that an actor was replaced: its environments wait.
            stepped = [actor for actor in self._chunks if actor.cut is None]
            self._pending = {actor: actor.send("step", actions[actor.part]) for actor in stepped}
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """End the step that :meth:`step_async` began.

        :return: observations, rewards ``(N,)``, ends ``(N,)``, infos
        """
        with self._ending_on_error():
            answers, lost = _receive(self._pending)
            raise_failures([answer.value for answer in answers.values()])
            self._replace(lost)
        self._pending, self.waiting = {}, False
        results = []
        for actor in self._chunks:
            if actor.cut is not None:
                results.append(self._cut(actor, *actor.cut))
                actor.cut = None
            else:
                self._store(actor, answers[actor].arrays)
                results.append(answers[actor].value)
        return self._step_return(results)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment, and of those that will replace it."""
        super().set_attr(attr_name, value, indices)
        for index in self._get_indices(indices):
            for actor in self._chunks:
                if actor.owns(index):
                    actor.attributes[index - actor.first][attr_name] = value

    def _call_chunks(self, calls: list[tuple[_Actor, tuple[Any, ...]]]) -> list[Any]:
        with self._ending_on_error():
            return list(self._ask_again({actor: ("call", *arguments) for actor, arguments in calls}).values())

    def _require_open(self) -> None:
        super()._require_open()
        if not self._connection.alive:  # any call would make Ray start another, and its actors are not ours
            self._end_workers()
            raise RuntimeError("this RayVecEnv has lost its environments: its connection to Ray was ended")

    @contextlib.contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        self._require_open()
        try:
            # Ctrl-C came while they started: what they answered was not seen, and a step has yet to tell of the cut.
            if interrupted := [actor for actor in self._chunks if actor.starting]:
                self._start(interrupted)
            yield
        except Exception:
            self._end_workers()
            raise

    def _ask_again(self, messages: dict[_Actor, tuple[Any, ...]], *, cuts: bool = True) -> dict[_Actor, Any]:
        """The values of the actors' answers, in the order of ``messages``; of a lost actor, its replacement's.

        :param messages: to each actor its command and arguments
        :param cuts: whether a loss cuts the episodes under way
        """
        values: dict[_Actor, Any] = dict.fromkeys(messages)
        asked = list(messages)
        while asked:
            answers, lost = _receive({actor: actor.send(*messages[actor]) for actor in asked})
            for actor, answer in answers.items():
                values[actor] = answer.value
                if answer.arrays is not None:
                    self._store(actor, answer.arrays)
            self._replace(lost, cuts=cuts)
            asked = list(lost)
        return values

    def _replace(self, lost: dict[_Actor, RayError], *, cuts: bool = True) -> None:
        """Replace lost actors, all at once.

        :param cuts: whether their loss cuts the episodes under way
        :raises WorkerDiedError: if one of them was lost too often
        """
        while lost:
            for actor, cause in lost.items():
                self._report(actor, cause, cuts=cuts and self._episodes_begun)
            lost = self._begin(list(lost))

    def _report(self, actor: _Actor, cause: RayError, *, cuts: bool) -> None:
        self.lost_actors += 1
        what = f"the Ray actor of {actor.name} ({actor.place}) was lost"
        if actor.restarts == self._max_restarts:
            raise WorkerDiedError(
                f"{what}, and max_restarts={self._max_restarts} allows no further restart of it: {cause}"
            ) from cause
        actor.restarts += 1
        cut = ", and their episodes truncated" if cuts else ""
        warnings.warn(
            f"{what}; its environments are made anew{cut} (restart {actor.restarts} of at most "
            f"max_restarts={self._max_restarts}): {cause}",
            ActorLostWarning,
            stacklevel=_level_of_the_user(),
        )

    def _start(self, actors: list[_Actor]) -> None:
        self._replace(self._begin(actors))

    def _begin(self, actors: list[_Actor]) -> dict[_Actor, RayError]:
        """Start actors, and reset their environments where episodes are under way.

        :return: those lost meanwhile, and why
        :raises TimeoutError: if one does not start in time
        """
        starting = {}
        for actor in actors:
            self._pending.pop(actor, None)  # what a step would have given is gone
            starting[actor] = actor.start(self._spaces, self._new_seeds(actor) if self._episodes_begun else None)
        _, late = ray.wait(list(starting.values()), num_returns=len(starting), timeout=self._start_timeout)
        if late:
            raise self._no_room([actor for actor, answer in starting.items() if answer in late])
        answers, lost = _receive(starting)
        raise_failures([answer.value for answer in answers.values()])
        for actor, answer in answers.items():
            actor.began(answer)
        return lost

    def _new_seeds(self, actor: _Actor) -> list[int | None]:
        """Seeds for an actor's environments: others than the last, and the same in every run."""
        return [
            None if seed is None else int(np.random.SeedSequence([seed, actor.restarts]).generate_state(1)[0] >> 1)
            for seed in self._last_seeds[actor.part]
        ]

    def _no_room(self, late: list[_Actor]) -> TimeoutError:
        total, free = _cpus(ray.cluster_resources()), _cpus(ray.available_resources())
        return TimeoutError(
            f"{len(late)} of {len(self._chunks)} Ray actors did not start within start_timeout={self._start_timeout:g} "
            f"seconds: those of {', '.join(actor.name for actor in late)}. Each reserves num_cpus={self._num_cpus:g}; "
            f"the cluster has {total:g} CPUs, {free:g} of them free. Lower n_actors or num_cpus, add nodes, or raise "
            f"start_timeout."
        )

    def _cut(self, actor: _Actor, arrays: Arrays, resets: list[dict[str, Any]]) -> tuple[list[Any], dict[int, Any]]:
        """What the step of a lost actor gives; the observations of its replacement go into the arrays.

        :return: the infos of the step, and of the resets by environment
        """
        last = self._arrays.rows(actor.part).observations
        infos = []
        for index in range(actor.n_envs):
            parts: Any = {key: array[index].copy() for key, array in last.items()}
            if isinstance(self.observation_space, gym.spaces.Tuple):
                parts = tuple(parts.values())
            elif not isinstance(self.observation_space, gym.spaces.Dict):
                parts = parts[None]
            infos.append({"TimeLimit.truncated": True, "actor_lost": True, "terminal_observation": parts})
        self._store(actor, arrays._replace(rewards=np.zeros(actor.n_envs), dones=np.ones(actor.n_envs, np.bool_)))
        return infos, dict(enumerate(resets, actor.first))

    def _store(self, actor: _Actor, arrays: Arrays | None) -> None:
        assert arrays is not None
        rows = self._arrays.rows(actor.part)
        for key, array in rows.observations.items():
            array[:] = arrays.observations[key]
        rows.rewards[:] = arrays.rewards
        rows.dones[:] = arrays.dones

    def _end_workers(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._pending, self.waiting = {}, False
        try:
            if self._connection.alive:  # else whoever ended Ray ended the actors
                closing = [actor.send("close") for actor in self._chunks if actor.running]
                if closing:
                    ray.wait(closing, num_returns=len(closing), timeout=CLOSING_SECONDS)
                for actor in self._chunks:
                    actor.kill()
        finally:
            self._connection.leave()


class _Actor(Chunk):
    """The learner's side of an actor, and of those that replace it."""

    def __init__(self, env_fns: list[Callable[[], gym.Env]], first: int, num_cpus: float):
        super().__init__(first, len(env_fns))
        self._pickled_env_fns = cloudpickle.dumps(env_fns)
        self._class: Any = ACTOR_CLASS.options(num_cpus=num_cpus)
        self._handle: Any = None
        self.starting = False
        """whether it was asked to start, and its answer not seen yet"""
        self.running = False
        """whether it made its environments, and was not found lost since"""
        self.spaces: Any = None
        self.place = "not placed yet"
        self.restarts = 0
        self.attributes: list[dict[str, Any]] = [{} for _ in env_fns]
        self.cut: tuple[Arrays, list[dict[str, Any]]] | None = None
        """of a replacement that no step has told of: what its reset gave, and the infos"""

    def start(self, spaces: tuple[gym.Space, gym.Space] | None, seeds: list[int | None] | None) -> Any:
        """Begin to start the actor in place of the one before.

        :param spaces: of all environments, where they are known
        :param seeds: for a reset at once; None: no reset
        :return: the future answer
        """
        self.kill()  # the one before may only have been out of reach
        self.starting = True
        self._handle = self._class.remote()
        return self.send("start", Start(self._pickled_env_fns, self.first, self.name, spaces, self.attributes, seeds))

    def began(self, answer: Answer) -> None:
        """Take note of what the started actor tells."""
        self.starting, self.running = False, True
        started: Started = answer.value
        self.spaces, self.place = started.spaces, started.place
        self.cut = None if answer.arrays is None else (answer.arrays, started.reset_infos)

    def send(self, command: str, *arguments: Any) -> Any:
        """Send a command; by value what other machines cannot import.

        :return: the future answer
        """
        return self._handle.obey.remote(cloudpickle.dumps((command, arguments)))

    def kill(self) -> None:
        """End the actor's process, if there is one."""
        self.running = False
        if self._handle is not None:
            ray.kill(self._handle)


def _receive(futures: dict[_Actor, Any]) -> tuple[dict[_Actor, Answer], dict[_Actor, RayError]]:
    """Wait for the actors' answers.

    :return: the answers, and of the actors that were lost why
    """
    try:
        received = dict(zip(futures, ray.get(list(futures.values())), strict=True))
        lost: dict[_Actor, RayError] = {}
    except LOSSES:
        received, lost = _receive_one_by_one(futures)
    return {actor: pickle.loads(answer) for actor, answer in received.items()}, lost


def _receive_one_by_one(futures: dict[_Actor, Any]) -> tuple[dict[_Actor, bytes], dict[_Actor, RayError]]:
    received: dict[_Actor, bytes] = {}
    lost: dict[_Actor, RayError] = {}
    for actor, future in futures.items():
        try:
            received[actor] = ray.get(future)
        except LOSSES as loss:
            if getattr(loss, "actor_init_failed", False):
                raise  # no accident: the node lacks this package, and the next actor would fail as well
            lost[actor] = loss
    return received, lost


def _cpus(resources: dict[str, float]) -> float:
    return resources.get("CPU", 0.0)


def _room_for(num_cpus: float) -> int:
    """How many actors fit on the cluster's nodes: none spans two."""
    return sum(int(_cpus(node["Resources"]) / num_cpus) for node in ray.nodes() if node["Alive"])


def _level_of_the_user() -> int:
    """The ``stacklevel``, for the caller's warning, of the first frame that is in none of ``PASSED_OVER``."""
    frame = inspect.currentframe()
    level = 0
    while frame is not None and (level == 0 or frame.f_globals.get("__name__", "").startswith(PASSED_OVER)):
        frame, level = frame.f_back, level + 1
    return level


def _require_options(num_cpus: Any, max_restarts: Any, start_timeout: Any) -> None:
    allowed = "a number from 0 to 1 or a larger integer"
    require("num_cpus", num_cpus, allowed, lambda value: 0 <= value <= 1 or (1 < value < math.inf and value % 1 == 0))
    require("max_restarts", max_restarts, "an integer >= 0", lambda value: value >= 0, integer=True)
    require("start_timeout", start_timeout, "a finite number of seconds > 0", lambda value: 0 < value < math.inf)


class _Connection:
    """A connection of this process to Ray, which ends with its last user unless somebody else made it."""

    current: _Connection | None = None

    def __init__(self, *, asked: str | None):
        self._asked = asked  # None: somebody else made the connection
        self._users = 0
        self.session = _session()

    @classmethod
    def join(cls, address: str | None, n_cpus: int) -> _Connection:
        """Connect to Ray, or start it on this machine, unless that was done.

        :param n_cpus: CPUs that a Ray started here must have at least
        :raises ValueError: if the process is connected to another cluster than ``address``, or for a Ray Client's
        """
        own = cls.current if cls.current is not None and cls.current.alive else None
        if not ray.is_initialized():
            where = address or os.environ.get("RAY_ADDRESS") or "local"
            if where.startswith("ray://"):
                source = "address" if address else "RAY_ADDRESS"
                raise ValueError(
                    f"{source} must not be that of a Ray Client; got {where!r}. Run the program on a machine of the "
                    f"cluster, with address='auto'."
                )
            ray.init(where, num_cpus=max(n_cpus, len(os.sched_getaffinity(0))) if where == "local" else None)
            own = cls(asked=where)
        elif address not in (None, "auto", connected := ray.get_runtime_context().gcs_address, own and own._asked):
            raise ValueError(
                f"address must be None, 'auto' or {connected!r}, the cluster that this process is connected to; "
                f"got {address!r}"
            )
        cls.current = own or cls(asked=None)
        cls.current._users += 1
        return cls.current

    @property
    def alive(self) -> bool:
        """Whether the process is still connected so."""
        return ray.is_initialized() and self.session == _session()

    def leave(self) -> None:
        """Take one user away."""
        self._users -= 1
        if self._users == 0 and self._asked is not None and self.alive:
            ray.shutdown()


def _session() -> tuple[str, str]:
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()
