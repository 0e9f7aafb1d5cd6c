"""The worker behind a Ray actor. Needs neither torch nor SB3, so that an actor with plain environments has neither."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import ray

from sb3_ppo_variants.vec_env.layout import SharedArrays
from sb3_ppo_variants.vec_env.worker import Answer, Arrays, EnvChunk, failure_of, pickled


class Start(NamedTuple):
    """What an actor needs to make its environments; the last three are for one that replaces another."""

    pickled_env_fns: bytes
    first: int
    """index of its first environment among all"""
    name: str
    """its environments, for messages"""
    spaces: tuple[gym.Space, gym.Space] | None = None
    """of all environments; None: not known yet"""
    attributes: Sequence[dict[str, Any]] = ()
    """those to set before anything else, by environment"""
    seeds: Sequence[int | None] | None = None
    """for a reset at once, by environment; None: no reset"""


class Started(NamedTuple):
    """What a started actor tells of itself."""

    spaces: tuple[gym.Space, gym.Space]
    place: str
    """the process and the node that it runs on, for a message"""
    reset_infos: list[dict[str, Any]]
    """empty without a reset"""


class EnvActor:
    """Steps a chunk of environments. Messages and answers are bytes, so that nothing fails outside :meth:`obey`."""

    def __init__(self) -> None:
        self._chunk: EnvChunk | None = None
        self._name = "an environment"

    def obey(self, message: bytes) -> bytes:
        """Carry out a command.

        :param message: pickled: the name of a method of ``EnvChunk``, ``"start"`` or ``"attach"``, and its arguments
        :return: a pickled :class:`Answer`
        """
        try:
            command, arguments = pickle.loads(message)
            return pickled(self._obey(command, arguments))
        except Exception as error:
            return pickled(Answer(failure_of(error, self._name)))

    def _obey(self, command: str, arguments: tuple[Any, ...]) -> Answer:
        if command == "start":
            return self._start(*arguments)
        assert self._chunk is not None
        if command == "attach":
            self._attach(self._chunk, *arguments)
            return Answer(None)
        value = getattr(self._chunk, command)(*arguments)
        return Answer(value, self._arrays(self._chunk) if command in ("reset", "step") else None)

    def _start(self, start: Start) -> Answer:
        self._name = start.name
        self._chunk = chunk = EnvChunk(pickle.loads(start.pickled_env_fns), start.first)
        if start.spaces is not None:
            self._attach(chunk, *start.spaces)
        infos = chunk.begin(start.attributes, start.seeds)
        arrays = None if start.seeds is None else self._arrays(chunk)
        return Answer(Started(chunk.spaces(), _place(), infos), arrays)

    def _attach(self, chunk: EnvChunk, observation_space: gym.Space, action_space: gym.Space) -> None:
        chunk.arrays, _ = SharedArrays.over(None, observation_space, action_space, len(chunk.envs))

    def _arrays(self, chunk: EnvChunk) -> Arrays:
        assert chunk.arrays is not None
        return Arrays(chunk.arrays.observations, chunk.arrays.rewards, chunk.arrays.dones)


def _place() -> str:
    node = ray.get_runtime_context().get_node_id()
    return f"process {os.getpid()} on node {ray.util.get_node_ip_address()}, id {node}"
