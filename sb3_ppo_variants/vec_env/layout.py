"""Where observations, actions, rewards and ends of several environments lie in one piece of memory."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

# Each array begins at a multiple of a cache line, in bytes.
ALIGNMENT = 64

_ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class SharedArrays(NamedTuple):
    """Arrays over ``N`` environments, in memory that processes share or in their own."""

    observations: dict[Any, np.ndarray]
    """``(N, *shape)`` of each part of the observation space, by its key; by None where it has no parts"""
    actions: np.ndarray | None
    """``(N, *shape)``; None where the action space is no array"""
    rewards: np.ndarray
    """``(N,)``"""
    dones: np.ndarray
    """whether the episode ended, ``(N,)``"""

    @classmethod
    def over(
        cls,
        memory: mmap.mmap | None,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        n_envs: int,
        start: int = 0,
    ) -> tuple[SharedArrays, int]:
        """The arrays laid out in ``memory``, and the byte after the last of theirs.

        :param memory: None: the arrays get memory of their own
        :param start: where in the memory they begin, in bytes
        """
        end = start

        def place(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            nonlocal end
            begin = math.ceil(end / ALIGNMENT) * ALIGNMENT
            dtype = np.dtype(dtype)
            count = n_envs * math.prod(shape)
            end = begin + count * dtype.itemsize
            if memory is None:
                return np.zeros((n_envs, *shape), dtype)
            return np.frombuffer(memory, dtype, count, begin).reshape(n_envs, *shape)

        observations = {key: place(*_shape_and_dtype(part)) for key, part in parts_of(observation_space).items()}
        actions = place(*_shape_and_dtype(action_space)) if isinstance(action_space, _ARRAY_SPACES) else None
        return cls(observations, actions, place((), np.float32), place((), np.bool_)), max(end, 1)

    def rows(self, part: slice) -> SharedArrays:
        """The same memory, of the environments in ``part`` only."""
        observations = {key: array[part] for key, array in self.observations.items()}
        actions = None if self.actions is None else self.actions[part]
        return SharedArrays(observations, actions, self.rewards[part], self.dones[part])


def banks_in(
    memory: mmap.mmap, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int
) -> tuple[SharedArrays, SharedArrays]:
    """The two sets of arrays in a memory of :func:`bytes_of_banks`.

    Workers write into one, while the other keeps what they wrote before: a worker that dies while it writes spoils
    nothing that was received.
    """
    first, end = SharedArrays.over(memory, observation_space, action_space, n_envs)
    return first, SharedArrays.over(memory, observation_space, action_space, n_envs, end)[0]


def bytes_of_banks(observation_space: spaces.Space, action_space: spaces.Space, n_envs: int) -> int:
    """The bytes that :func:`banks_in` needs."""
    _, end = SharedArrays.over(None, observation_space, action_space, n_envs)
    return SharedArrays.over(None, observation_space, action_space, n_envs, end)[1]


def parts_of(space: spaces.Space) -> dict[Any, spaces.Space]:
    """The parts of an observation space by their keys, as SB3's vectorised environments know them.

    :raises TypeError: for a part that is no array
    """
    if isinstance(space, spaces.Dict):
        parts: dict[Any, spaces.Space] = dict(space.spaces)
    elif isinstance(space, spaces.Tuple):
        parts = dict(enumerate(space.spaces))
    else:
        parts = {None: space}
    for key, part in parts.items():
        if not isinstance(part, _ARRAY_SPACES):
            names = ", ".join(kind.__name__ for kind in _ARRAY_SPACES)
            where = "the observation space" if key is None else f"the observation space's part {key!r}"
            raise TypeError(f"{where} must be one of {names}, or a Dict or Tuple of them; got {part}")
    return parts


def _shape_and_dtype(space: spaces.Space) -> tuple[tuple[int, ...], Any]:
    assert space.shape is not None
    return space.shape, space.dtype


def anonymous_file(size: int) -> int:
    """A file descriptor of ``size`` bytes of memory without a name: nothing of it is left when the last user ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("sb3_ppo_variants")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
