"""What a resume bundle keeps of a run: the model, its environments, its callbacks, all random generators."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import platform
import random
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_ppo_variants.resume.folder import BundleWarning
from sb3_ppo_variants.resume.format import BundleError, Tree, is_tree
from sb3_ppo_variants.vec_env.episode_start import GET, SET, record_episodes

if TYPE_CHECKING:
    from sb3_ppo_variants.on_policy import PaperOnPolicyAlgorithm

State = dict[str, Tree]

# Settings without influence on what is learned, or that come from elsewhere when a run is resumed.
NOT_COMPARED = frozenset({"env", "verbose", "device", "tensorboard_log", "seed", "policy", "_init_setup_model"})
# Attributes of a model that are made anew, or restored from elsewhere in the bundle.
MADE_ANEW = frozenset(
    {
        "n_envs",
        "start_time",
        "verbose",
        "_cannot_compile",
        "_custom_logger",
        "_knows_kl",
        "_last_episode_starts",
        "_last_obs",
        "_last_original_obs",
        "_stats_window_size",
    }
)
# Attributes of a callback that SB3 sets.
SET_BY_SB3 = frozenset({"globals", "locals", "logger", "model", "parent", "verbose", "training_env"})
# Where on its way from 1 to 0 a schedule is compared.
PROBES = (1.0, 0.75, 0.5, 0.25, 0.0)

PACKAGES = ("sb3-ppo-variants", "stable-baselines3", "gymnasium", "torch", "numpy", "pybullet")


# ------------------------------------------------------------------ what the run is


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def settings_of(model: PaperOnPolicyAlgorithm) -> State:
    """The constructor's arguments in a form that can be compared: schedules by some of their values."""
    names = [name for name in inspect.signature(type(model)).parameters if name not in NOT_COMPARED]
    settings = {name: _describe(getattr(model, name)) for name in names if hasattr(model, name)}
    return {**settings, "policy": _describe(type(model.policy))}


def _describe(value: Any) -> Tree:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    if isinstance(value, type) or not callable(value):
        kind = value if isinstance(value, type) else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    try:
        return [float(value(progress)) for progress in PROBES]
    except Exception:  # no schedule: whatever it is, its name tells
        return getattr(value, "__qualname__", type(value).__qualname__)


def identity_of(model: PaperOnPolicyAlgorithm) -> State:
    """What must be the same where a run goes on."""
    return {
        "algorithm": type(model).__name__,
        "n_envs": model.n_envs,
        "observation_space": repr(model.observation_space),
        "action_space": repr(model.action_space),
    }


def require_same_run(model: PaperOnPolicyAlgorithm, state: State) -> None:
    """Check that a bundle is of this model's run; warn of settings and versions that are no longer the same.

    :raises BundleError: if it is of another
    """
    for name, value in identity_of(model).items():
        if state["identity"].get(name) != value:
            raise BundleError(f"it is of another run: its {name} is {state['identity'].get(name)}, here it is {value}")
    for what, now, before in (
        ("settings", settings_of(model), state["settings"]),
        ("versions", versions(), state["versions"]),
    ):
        changes = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted({*now, *before})
            if now.get(name) != before.get(name)
        ]
        if changes:
            warnings.warn(f"the run goes on with other {what}: {'; '.join(changes)}", BundleWarning, stacklevel=2)


# ------------------------------------------------------------------ random generators


def generators() -> State:
    """The states of the process's random generators."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }


def set_generators(state: State) -> None:
    """The reverse of :func:`generators`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    if state["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(state["cuda"])


# ------------------------------------------------------------------ plain attributes


@functools.cache  # a callback has them looked up in every iteration
def _constructor_arguments(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


def attributes_of(thing: Any, left_out: Collection[str]) -> State:
    """What an object has beside its constructor's arguments, as far as a bundle can hold it; and what it tells."""
    left_out = {*left_out, *_constructor_arguments(thing.__class__)}
    state = {
        "attributes": {
            name: deepcopy(value) for name, value in vars(thing).items() if name not in left_out and is_tree(value)
        }
    }
    if hasattr(thing, GET):
        state["told"] = getattr(thing, GET)()
    return state


def set_attributes(thing: Any, state: State) -> None:
    """The reverse of :func:`attributes_of`.

    :raises BundleError: for an attribute that the object's class defines as something else
    """
    for name, value in state["attributes"].items():
        if callable(getattr(thing, name, None)) or isinstance(getattr(type(thing), name, None), property):
            raise BundleError(f"its attribute {name!r} is none of a {type(thing).__name__}")
        setattr(thing, name, value)
    if "told" in state:
        getattr(thing, SET)(state["told"])


# ------------------------------------------------------------------ environments


def prepare(env: VecEnv) -> bool:
    """Let environments remember how their episodes begin.

    :return: whether they do
    """
    if isinstance(env.unwrapped, DummyVecEnv):
        for each in env.unwrapped.envs:
            record_episodes(each)
    return env.unwrapped.has_attr("resume_start")


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    inner: Any = env
    while isinstance(inner, VecEnvWrapper):
        yield inner
        inner = inner.venv


def _statistics(moments: RunningMeanStd) -> State:
    return {"mean": moments.mean.copy(), "var": moments.var.copy(), "count": moments.count}


def _set_statistics(moments: RunningMeanStd, state: State) -> None:
    if np.shape(state["mean"]) != moments.mean.shape or np.shape(state["var"]) != moments.var.shape:
        raise BundleError("its normaliser is of another shape")
    moments.mean, moments.var, moments.count = np.array(state["mean"]), np.array(state["var"]), state["count"]


def _wrapper_state(wrapper: VecEnvWrapper) -> State:
    state: State = {"class": type(wrapper).__name__}
    if isinstance(wrapper, VecNormalize):
        state["returns"] = _statistics(wrapper.ret_rms)
        if wrapper.norm_obs:
            of: Any = wrapper.obs_rms
            several = isinstance(of, dict)
            state["observations"] = {key: _statistics(each) for key, each in of.items()} if several else _statistics(of)
    if isinstance(wrapper, VecMonitor):
        state["seconds"], state["episodes"] = time.time() - wrapper.t_start, wrapper.episode_count
    if hasattr(type(wrapper), GET):
        state["told"] = getattr(wrapper, GET)()
    return state


def _set_wrapper_state(wrapper: VecEnvWrapper, state: State) -> None:
    if state["class"] != type(wrapper).__name__:
        raise BundleError(f"its environments are in a {state['class']}, here in a {type(wrapper).__name__}")
    if isinstance(wrapper, VecNormalize):
        _set_statistics(wrapper.ret_rms, state["returns"])
        observed: Any = wrapper.obs_rms if wrapper.norm_obs else {}
        if isinstance(observed, dict):
            for key, moments in observed.items():
                _set_statistics(moments, state["observations"][key])
        else:
            _set_statistics(observed, state["observations"])
    if isinstance(wrapper, VecMonitor):
        wrapper.t_start, wrapper.episode_count = time.time() - state["seconds"], state["episodes"]
    if "told" in state:
        getattr(wrapper, SET)(state["told"])


def environments_of(env: VecEnv, question: str = "resume_start") -> State:
    """The wrappers' state, and how each environment's episode began, where that is known.

    :param question: ``resume_now`` for environments that are reset before they are used
    """
    known = env.unwrapped.has_attr(question)
    return {
        "wrappers": [_wrapper_state(wrapper) for wrapper in _wrappers(env)],
        "episodes": env.unwrapped.env_method(question) if known else None,
    }


def set_environments(env: VecEnv, state: State) -> None:
    """Restore the wrappers, and let the next reset begin the same episodes.

    :raises BundleError: if these are other environments
    """
    wrappers = list(_wrappers(env))
    if len(wrappers) != len(state["wrappers"]):
        names = [each["class"] for each in state["wrappers"]]
        raise BundleError(f"its environments are in {names}, here in {[type(each).__name__ for each in wrappers]}")
    for wrapper, each in zip(wrappers, state["wrappers"], strict=True):
        _set_wrapper_state(wrapper, each)
    base = env.unwrapped
    if state["episodes"] is not None and base.has_attr("resume_from"):
        if len(state["episodes"]) != base.num_envs:
            raise BundleError(f"it tells of {len(state['episodes'])} environments; here are {base.num_envs}")
        for index, episode in enumerate(state["episodes"]):
            base.env_method("resume_from", episode, indices=index)
        # Seeds that wait for the first reset would undo it.
        base._reset_seeds()
        base._reset_options()


def reset_as_before(env: VecEnv) -> Any:
    """Reset environments without letting the normalisers learn from it: they have seen these observations.

    :return: the observations
    """
    learning = [wrapper for wrapper in _wrappers(env) if isinstance(wrapper, VecNormalize) and wrapper.training]
    for normalizer in learning:
        normalizer.training = False
    try:
        return env.reset()
    finally:
        for normalizer in learning:
            normalizer.training = True


def shift_clock(env: VecEnv, seconds: float) -> None:
    """Let monitors count on as if the computer's clock had not jumped by so many seconds."""
    for wrapper in _wrappers(env):
        if isinstance(wrapper, VecMonitor):
            wrapper.t_start += seconds
        elif "shift_clock" in vars(type(wrapper)):
            wrapper.shift_clock(seconds)
    if env.unwrapped.has_attr("shift_clock"):
        env.unwrapped.env_method("shift_clock", seconds)


# ------------------------------------------------------------------ callbacks


def _callbacks(callback: BaseCallback) -> Iterator[BaseCallback]:
    """A callback and those that it calls; progress bars aside, which have no state and come and go."""
    if isinstance(callback, ProgressBarCallback):
        return
    yield callback
    if isinstance(callback, CallbackList):
        for child in callback.callbacks:
            yield from _callbacks(child)
    if isinstance(callback, EventCallback) and callback.callback is not None:
        yield from _callbacks(callback.callback)
    if isinstance(callback, EvalCallback) and callback.callback_on_new_best is not None:
        yield from _callbacks(callback.callback_on_new_best)


def prepare_callbacks(callback: BaseCallback) -> None:
    """Let the environments of evaluations remember how their episodes begin."""
    for each in _callbacks(callback):
        if isinstance(each, EvalCallback):
            prepare(each.eval_env)


def callbacks_of(callback: BaseCallback) -> list[State]:
    """The state of each callback."""
    states = []
    for each in _callbacks(callback):
        state = {"class": type(each).__name__, **attributes_of(each, SET_BY_SB3)}
        if isinstance(each, EvalCallback):
            state["environments"] = environments_of(each.eval_env, "resume_now")
        states.append(state)
    return states


def set_callbacks(callback: BaseCallback, states: list[State]) -> None:
    """The reverse of :func:`callbacks_of`: each callback gets the state of the one of its class, in their order.

    Those that were added begin as they are; what is told of those that are gone is dropped.
    """
    waiting = list(states)
    for each in _callbacks(callback):
        state = next((state for state in waiting if state["class"] == type(each).__name__), None)
        if state is None:
            continue
        waiting.remove(state)
        set_attributes(each, state)
        if isinstance(each, EvalCallback):
            set_environments(each.eval_env, state["environments"])
