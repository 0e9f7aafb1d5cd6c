"""Environments and checks for the tests of vectorised environments; workers import this module, so it is light."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

BOX = spaces.Box(-1, 1, (3,), np.float32)
OBSERVATIONS: dict[str, spaces.Space] = {
    "box": BOX,
    "image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(5),
    "dict": spaces.Dict({"a": BOX, "b": spaces.Box(0, 255, (4, 4, 1), np.uint8), "c": spaces.Discrete(3)}),
    "tuple": spaces.Tuple([BOX, spaces.Discrete(3)]),
}
ACTIONS: dict[str, spaces.Space] = {
    "box": spaces.Box(-2, 2, (2,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
    "scalar-box": spaces.Box(-1, 1, (), np.float32),
}


class RandomEnv(gym.Env):
    """Random observations from the environment's own generator; ends, and is cut, at random."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, trouble_at: int = -1):
        self.observation_space, self.action_space = deepcopy(observation_space), deepcopy(action_space)
        self.render_mode = "rgb_array"
        self.trouble_at = trouble_at
        self.n_steps = 0

    def _observation(self) -> Any:
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self._observation(), {"options": options, "drawn": self.np_random.random()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.n_steps == self.trouble_at:
            raise ZeroDivisionError("trouble as ordered")
        reward = float(np.sum(action)) + self.np_random.random()
        ends, cut = self.np_random.random(2) < 0.2
        return self._observation(), reward, bool(ends), bool(cut), {"steps": self.n_steps, "action": action}

    def render(self) -> Any:
        return np.full((2, 2, 3), self.n_steps, np.uint8)

    def add(self, number: int, *, twice: bool = False) -> int:
        return self.n_steps + number * (2 if twice else 1)


def functions(observations: str, actions: str, n_envs: int, troubled: int = -1) -> list[Callable[[], gym.Env]]:
    def make(index: int) -> Callable[[], gym.Env]:
        trouble_at = 3 if index == troubled else -1
        return lambda: TimeLimit(RandomEnv(OBSERVATIONS[observations], ACTIONS[actions], trouble_at), 9)

    return [make(index) for index in range(n_envs)]


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal values of equal types, in any nesting."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    else:
        assert ours == theirs


def trajectory(env: Any, n_steps: int = 40) -> list[Any]:
    env.seed(3)
    env.set_options({"speed": 2})
    env.action_space.seed(0)
    seen = [env.metadata, env.reset(), list(env.reset_infos)]
    for _ in range(n_steps):
        actions = np.stack([env.action_space.sample() for _ in range(env.num_envs)])
        seen += [env.step(actions), list(env.reset_infos)]
    env.close()
    return seen


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class DyingEnv(RandomEnv):
    """Kills its process, the first time only where ``marker`` is a file to remember it by.

    :param where: ``"make"``, ``"method"``, ``"step <n>"``, ``"reset <n>"``, or anything else for nowhere
    """

    def __init__(self, where: str, marker: str = ""):
        super().__init__(BOX, ACTIONS["box"])
        self.where, self.marker = where, marker
        self.n_resets = 0
        self.level = 0
        self._die("make")

    def _die(self, here: str) -> None:
        if here == self.where and not Path(self.marker).is_file():
            if self.marker:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.n_resets += 1
        self._die(f"reset {self.n_resets}")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._die(f"step {self.n_steps + 1}")
        observation, reward, *_, info = super().step(action)
        return observation, reward, False, False, info

    def die_or_add(self, number: int) -> int:
        self._die("method")
        return number
