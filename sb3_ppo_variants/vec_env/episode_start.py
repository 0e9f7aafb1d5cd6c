"""Where each environment's episode began: enough to begin the same one again in a new process.

Needs neither torch nor Stable-Baselines3 (see ``worker.py``), though it knows SB3's ``Monitor`` when it meets one.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np

State = dict[str, Any]

GET, SET = "get_resume_state", "set_resume_state"
"""Methods by which an environment, or a wrapper, gives and takes back what outlives its episodes beside its random
generators: None, bool, int, float, str, arrays; lists, tuples and mappings of such."""


class EpisodeRecorder:
    """Remembers what an environment's last reset began with: its random generators, and the reset's arguments.

    Its public methods are found in the environment under the same names.
    """

    def __init__(self, env: gym.Env):
        self._env = env
        self._reset = env.reset
        self._start: State = {"before": state_of(env), "arguments": {}}
        self._again: State | None = None

    def reset(self, **arguments: Any) -> Any:
        """As the environment's; after :meth:`resume_from`, the reset that is to be repeated."""
        again, self._again = self._again, None
        if again is not None:
            set_state(self._env, again["before"])
            arguments = arguments if again["arguments"] is None else again["arguments"]
        start = {"before": state_of(self._env), "arguments": deepcopy(arguments)}
        result = self._reset(**arguments)
        self._start = start
        return result

    def resume_start(self) -> State:
        """What the episode under way began with, and what goes on across episodes."""
        return {**self._start, "monitor": _monitor_state(self._env)}

    def resume_now(self) -> State:
        """The same for an environment that will be reset, by arguments that are not known yet, before it is stepped."""
        return {"before": state_of(self._env), "arguments": None, "monitor": _monitor_state(self._env)}

    def resume_from(self, state: State) -> None:
        """Let the next reset be the one that :meth:`resume_start` told of."""
        self._again = state
        monitor = _monitor_of(self._env)
        if monitor is not None and state["monitor"] is not None:
            monitor.t_start = time.time() - state["monitor"]["seconds"]
            monitor.total_steps = state["monitor"]["total_steps"]

    def shift_clock(self, seconds: float) -> None:
        """Let an SB3 ``Monitor`` count on as if the computer's clock had not jumped by so many seconds."""
        monitor = _monitor_of(self._env)
        if monitor is not None:
            monitor.t_start += seconds


METHODS = ("reset", "resume_start", "resume_now", "resume_from", "shift_clock")


def record_episodes(env: gym.Env) -> gym.Env:
    """Let an environment remember how its episodes began, so that a resumed run can begin the same ones again.

    Our own vectorised environments and SB3's ``DummyVecEnv`` need no such call. Those of a ``SubprocVecEnv`` do, each
    in its own process: ``SubprocVecEnv([lambda: record_episodes(gym.make(…)), …])``.

    :param env: the outermost wrapper; ``reset`` and a few ``resume_…`` methods are set on it
    :return: the same environment
    """
    if "resume_start" not in vars(env):
        recorder = EpisodeRecorder(env)
        for name in METHODS:
            setattr(env, name, getattr(recorder, name))
    return env


def state_of(env: gym.Env) -> State:
    """The random generators of an environment, and what it and its wrappers tell of themselves."""
    base = env.unwrapped
    own = getattr(base, "np_random", None)
    return {
        "own": _state_of_generator(own),
        # Asked for, a space's generator would be made, and its parts' made anew: only those that are there count.
        "spaces": [_state_of_generator(space._np_random) for space in _spaces(base)],
        "layers": {name: deepcopy(getattr(layer, GET)()) for name, layer in _telling(env)},
        "base": _name_of_base(env),
    }


def set_state(env: gym.Env, state: State) -> None:
    """The reverse of :func:`state_of`.

    Wrappers that the bundle does not know begin as they are; what those had learned that are gone is dropped, with a
    warning.

    :raises ValueError: if the environment inside them is another
    """
    base, spaces = _name_of_base(env), list(_spaces(env.unwrapped))
    gone = set(state["layers"]) - set(dict(_telling(env)))
    # Of when wrappers told nothing, a bundle has no "base": whatever it tells of, the environment must have.
    is_another = base != state["base"] if "base" in state else bool(gone) or base not in {None, *state["layers"]}
    if is_another or len(spaces) != len(state["spaces"]):
        raise ValueError(
            f"{env} is another environment than that of the bundle: it has {len(spaces)} spaces and the layers "
            f"{sorted(dict(_telling(env)))}; the bundle has {len(state['spaces'])} and {sorted(state['layers'])}"
        )
    if gone:
        warnings.warn(f"what {sorted(gone)} had learned is dropped: the environment has none of it now", stacklevel=2)
    _set_generator(getattr(env.unwrapped, "np_random", None), state["own"])
    for space, before in zip(spaces, state["spaces"], strict=True):
        if before is not None:
            _set_generator(space.np_random, before)
    for name, layer in _telling(env):
        if name in state["layers"]:
            getattr(layer, SET)(state["layers"][name])


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """The environment, and what it wraps."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _telling(env: gym.Env) -> Iterator[tuple[str, gym.Env]]:
    """Those layers that tell of themselves, each with a name of its own, whatever other layers there are."""
    met: Counter[str] = Counter()
    for layer in _layers(env):
        if hasattr(type(layer), GET):
            name = type(layer).__name__
            yield f"{met[name]} {name}", layer
            met[name] += 1


def _name_of_base(env: gym.Env) -> str | None:
    """The name that the innermost environment has among those that tell of themselves; None if it does not."""
    return next((name for name, layer in _telling(env) if layer is env.unwrapped), None)


def _spaces(base: gym.Env) -> Iterator[gym.Space]:
    """The environment's spaces, from which some draw their episodes: each before its parts."""
    for space in (base.action_space, base.observation_space):
        yield from _space_and_parts(space)


def _space_and_parts(space: gym.Space) -> Iterator[gym.Space]:
    yield space
    parts: Any = getattr(space, "spaces", ())
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from _space_and_parts(part)


def _state_of_generator(generator: Any) -> Any:
    """None for what is no generator of NumPy's: some environments keep something else under that name."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else None


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)


def _monitor_of(env: gym.Env) -> Any:
    module = sys.modules.get("stable_baselines3.common.monitor")
    if module is None:
        return None
    return next((layer for layer in _layers(env) if isinstance(layer, module.Monitor)), None)


def _monitor_state(env: gym.Env) -> State | None:
    """For how long an SB3 ``Monitor`` has run, and for how many steps."""
    monitor = _monitor_of(env)
    if monitor is None:
        return None
    return {"seconds": time.time() - monitor.t_start, "total_steps": monitor.total_steps}
