"""``RayVecEnv``: Ray actors, on one machine or many, step a chunk of environments each."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.vec_env.chunked import (
    Chunk,
    ChunkedVecEnv,
    Loss,
    raise_failures,
    require_chunks,
    require_max_restarts,
)
from sb3_ppo_variants.vec_env.layout import SharedArrays
from sb3_ppo_variants.vec_env.worker import ActorLostWarning, Answer

try:
    import ray
except ImportError as error:
    raise ImportError('RayVecEnv needs the [ray] extra: pip install "sb3-ppo-variants[ray]"') from error

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

from sb3_ppo_variants.vec_env.ray_actor import EnvActor, Start, Started

# Seconds that actors have to close their environments before they are ended.
CLOSING_SECONDS = 5.0

# What Ray raises in place of the answer of an actor whose process or node is no longer there.
LOSSES = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError, OutOfMemoryError)


# Ray itself would restart an actor without its environments.
ACTOR_CLASS = ray.remote(max_restarts=0, max_task_retries=0)(EnvActor)


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
      ``TimeLimit.truncated``, ``worker_lost``, ``actor_lost`` and, as ``terminal_observation``, the last observation
      received;
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
    :param max_restarts: how often each actor may be replaced without 100 steps of all environments between
    :param start_timeout: seconds that actors have to find room, start and make their environments
    :raises ValueError: for an argument outside its range, named in the message
    :raises TypeError: for an observation space with a part that is no array
    :raises EnvironmentRaisedError: if an environment cannot be made, or raises in a reset or step
    :raises WorkerDiedError: if an actor is lost more often than ``max_restarts``
    :raises RuntimeError: if used after :meth:`close`, or after somebody else ended the connection to Ray
    :raises TimeoutError: if actors do not start within ``start_timeout``
    """

    LOST_WARNING = ActorLostWarning
    LOST_KEYS = ("worker_lost", "actor_lost")

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
        self._prepare(n_envs, max_restarts)
        self._start_timeout, self._num_cpus = start_timeout, num_cpus
        self._chunks: list[_Actor] = []
        self._connection = _Connection.join(address, math.ceil((n_actors or 1) * num_cpus))
        try:
            if n_actors is None:
                n_actors = min(n_envs, max(1, _room_for(num_cpus or 1)))
            for part in np.array_split(np.arange(n_envs), n_actors):
                self._chunks.append(_Actor([env_fns[index] for index in part], int(part[0]), num_cpus))
            self._spaces: tuple[gym.Space, gym.Space] | None = None
            self._replace(self._begin(self._chunks))
            self._spaces = observation_space, action_space = self._chunks[0].spaces
            self._arrays, _ = SharedArrays.over(None, observation_space, action_space, n_envs)
            self._incoming = self._arrays
            attached = self._ask_again(dict.fromkeys(self._chunks, ("attach", *self._spaces)))
            raise_failures(list(attached.values()))
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self._end_workers()
            raise

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        :param actions: ``(N, *action_shape)``
        :raises ValueError: if there is not one for each environment; nothing has happened then
        """
        self._require_actions(actions)
        with self._ending_on_error():
            # Whoever chose the actions has not seen yet that an actor was replaced: its environments wait.
            stepped = [actor for actor in self._chunks if actor.cut is None]
            self._step_begun({actor: actor.send("step", actions[actor.part]) for actor in stepped})

    @property
    def lost_actors(self) -> int:
        """How many actors were lost so far: ``lost_workers``."""
        return self.lost_workers

    def _require_open(self) -> None:
        super()._require_open()
        if not self._connection.alive:  # any call would make Ray start another, and its actors are not ours
            self._end_workers()
            raise RuntimeError("this RayVecEnv has lost its environments: its connection to Ray was ended")

    def _send(self, chunk: _Actor, command: str, *arguments: Any) -> Any:
        return chunk.send(command, *arguments)

    def _receive(self, asked: dict[_Actor, Any]) -> tuple[dict[_Actor, Answer], dict[_Actor, Loss]]:
        """Wait for answers."""
        try:
            received = dict(zip(asked, ray.get(list(asked.values())), strict=True))
            lost: dict[_Actor, Loss] = {}
        except LOSSES:
            received, lost = _receive_one_by_one(asked)
        return {actor: pickle.loads(answer) for actor, answer in received.items()}, lost

    def _start_anew(self, chunks: list[_Actor]) -> dict[_Actor, Loss]:
        """Start actors.

        :return: those lost meanwhile
        :raises TimeoutError: if one does not start in time
        """
        starting = {actor: actor.start(self._spaces, self._new_seeds(actor)) for actor in chunks}
        _, late = ray.wait(list(starting.values()), num_returns=len(starting), timeout=self._start_timeout)
        if late:
            raise self._no_room([actor for actor, answer in starting.items() if answer in late])
        answers, lost = self._receive(starting)
        raise_failures([answer.value for answer in answers.values()])
        for actor, answer in answers.items():
            actor.started(answer)
        return lost

    def _no_room(self, late: list[_Actor]) -> TimeoutError:
        total, free = _cpus(ray.cluster_resources()), _cpus(ray.available_resources())
        return TimeoutError(
            f"{len(late)} of {len(self._chunks)} Ray actors did not start within start_timeout={self._start_timeout:g} "
            f"seconds: those of {', '.join(actor.name for actor in late)}. Each reserves num_cpus={self._num_cpus:g}; "
            f"the cluster has {total:g} CPUs, {free:g} of them free. Lower n_actors or num_cpus, add nodes, or raise "
            f"start_timeout."
        )

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
        self.running = False
        """whether it made its environments, and was not found lost since"""
        self.spaces: Any = None
        self.place = "not placed yet"

    def start(self, spaces: tuple[gym.Space, gym.Space] | None, seeds: list[int | None] | None) -> Any:
        """Begin to start the actor in place of the one before.

        :param spaces: of all environments, where they are known
        :param seeds: for a reset at once; None: no reset
        :return: the future answer
        """
        self.kill()  # the one before may only have been out of reach
        self._handle = self._class.remote()
        return self.send("start", Start(self._pickled_env_fns, self.first, self.name, spaces, self.attributes, seeds))

    def started(self, answer: Answer) -> None:
        """Take note of what the started actor tells."""
        self.running = True
        started: Started = answer.value
        self.spaces, self.place = started.spaces, started.place
        self.began(answer.arrays, started.reset_infos)

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


def _receive_one_by_one(futures: dict[_Actor, Any]) -> tuple[dict[_Actor, bytes], dict[_Actor, Loss]]:
    received: dict[_Actor, bytes] = {}
    lost: dict[_Actor, Loss] = {}
    for actor, future in futures.items():
        try:
            received[actor] = ray.get(future)
        except LOSSES as loss:
            if getattr(loss, "actor_init_failed", False):
                raise  # no accident: the node lacks this package, and the next actor would fail as well
            lost[actor] = Loss(f"the Ray actor of {actor.name} ({actor.place}) was lost", loss)
    return received, lost


def _cpus(resources: dict[str, float]) -> float:
    return resources.get("CPU", 0.0)


def _room_for(num_cpus: float) -> int:
    """How many actors fit on the cluster's nodes: none spans two."""
    return sum(int(_cpus(node["Resources"]) / num_cpus) for node in ray.nodes() if node["Alive"])


def _require_options(num_cpus: Any, max_restarts: Any, start_timeout: Any) -> None:
    allowed = "a number from 0 to 1 or a larger integer"
    require("num_cpus", num_cpus, allowed, lambda value: 0 <= value <= 1 or (1 < value < math.inf and value % 1 == 0))
    require_max_restarts(max_restarts)
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
