"""What a resume bundle keeps of a run: the model, its environments, its callbacks, all random generators."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import platform
import random
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
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
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from sb3_ppo_variants.resume.folder import BundleWarning
from sb3_ppo_variants.resume.format import MAX_VALUES, Tree, copied, encode, n_values
from sb3_ppo_variants.resume.names import BundleError
from sb3_ppo_variants.vec_env import WorkersMonitor
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
        "_symmetric_networks",
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
        "seed": model.seed,
        "env_id": _env_id(model.env),
    }


def _env_id(env: Any) -> str | None:
    """The id that gymnasium knows the environments by; None where they tell none.

    SB3's workers are not asked: one whose spec cannot be pickled would end.
    """
    if isinstance(env.unwrapped, SubprocVecEnv) or not _knows(env, "spec"):
        return None
    try:
        return getattr(env.get_attr("spec", 0)[0], "id", None)
    except Exception:  # of somebody's own VecEnv, which says that it has one
        return None


# Of these, one that is not told, by the bundle or here, may be any.
_MAY_BE_UNTOLD = frozenset({"seed", "env_id"})


def require_same_run(model: PaperOnPolicyAlgorithm, state: State) -> None:
    """Check that a bundle is of a run such as this model's.

    :raises BundleError: if it is of another
    """
    identity = state.get("identity")
    for name, value in identity_of(model).items():
        before = identity.get(name) if isinstance(identity, dict) else None
        if name in _MAY_BE_UNTOLD and None in (before, value):
            continue
        if before != value:
            raise BundleError(f"it is of another run: its {name} is {before}, here it is {value}")


def tell_changes(model: PaperOnPolicyAlgorithm, state: State) -> None:
    """Warn of settings and versions that are no longer those of the bundle."""
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


def generators(device: th.device) -> State:
    """The states of the process's random generators, and of the device's where it has one of its own."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_generators(state: State, device: th.device) -> None:
    """The reverse of :func:`generators`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        th.cuda.set_rng_state(state["cuda"], device)


# ------------------------------------------------------------------ plain attributes


@functools.cache  # a callback has them looked up in every iteration
def _constructor_arguments(kind: Any) -> frozenset[str]:
    """The arguments of a class's constructor, and of those that it hands others through to."""
    names: set[str] = set()
    for cls in kind.__mro__[:-1]:
        names.update(inspect.signature(cls).parameters if "__init__" in vars(cls) else ())
    return frozenset(names)


def attributes_of(thing: Any, left_out: Collection[str]) -> State:
    """What an object has beside its constructor's arguments, as far as a bundle can hold it."""
    left_out = {*left_out, *_constructor_arguments(thing.__class__)}
    kept: State = {}
    for name, value in vars(thing).items():
        if name in left_out:
            continue
        count = n_values(value)
        if count is not None and count > MAX_VALUES:
            _warn_of_size(thing.__class__, name)
        elif count is not None:
            kept[name] = copied(value)
    return kept


@functools.cache  # once
def _warn_of_size(kind: Any, name: str) -> None:
    warnings.warn(
        f"the attribute {name!r} of {kind.__name__} holds more than {MAX_VALUES} values and is not kept in resume "
        f"bundles; as a NumPy array it would be",
        BundleWarning,
        stacklevel=3,
    )


def set_attributes(thing: Any, attributes: State, left_out: Collection[str]) -> None:
    """The reverse of :func:`attributes_of`.

    :raises BundleError: for an attribute that no bundle of this object would hold
    """
    left_out = {*left_out, *_constructor_arguments(thing.__class__)}
    for name, value in attributes.items():
        taken = callable(getattr(thing, name, None)) or isinstance(getattr(type(thing), name, None), property)
        if name in left_out or name.startswith("__") or taken:
            raise BundleError(f"its attribute {name!r} is none of a {type(thing).__name__}")
        setattr(thing, name, value)


def told_by(thing: Any) -> State:
    """What an object tells of itself, if it does."""
    return {"told": copied(getattr(thing, GET)())} if hasattr(type(thing), GET) else {}


def tell(thing: Any, state: State) -> None:
    """The reverse of :func:`told_by`."""
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
    return _knows(env, "resume_start")


def _knows(env: VecEnv, method: str) -> bool:
    """Whether the environments have a method; those of a simulator that cannot be asked have none."""
    try:
        return env.unwrapped.has_attr(method)
    except Exception:
        return False


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
    return {**state, **told_by(wrapper)}


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
    tell(wrapper, state)


def environments_of(env: VecEnv, question: str = "resume_start") -> State:
    """The wrappers' state, and how each environment's episode began, where that is known.

    :param question: ``resume_now`` for environments that are reset before they are used
    """
    base = env.unwrapped
    return {
        "wrappers": [_wrapper_state(wrapper) for wrapper in _wrappers(env)],
        "episodes": base.env_method(question) if _knows(base, question) else None,
        # Those that wait for the first reset.
        "seeds": list(base._seeds),
        "options": copied(base._options),
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
    if state["episodes"] is not None and _knows(base, "resume_from"):
        if len(state["episodes"]) != base.num_envs:
            raise BundleError(f"it tells of {len(state['episodes'])} environments; here are {base.num_envs}")
        for index, episode in enumerate(state["episodes"]):
            base.env_method("resume_from", episode, indices=index)
        base._seeds, base._options = list(state["seeds"]), list(state["options"])


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
        elif isinstance(wrapper, WorkersMonitor):
            wrapper.shift_clock(seconds)
    if _knows(env, "shift_clock"):
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
    """The state of each callback: what it tells, or else its attributes."""
    states = []
    for each in _callbacks(callback):
        state: State = {"class": type(each).__name__, **told_by(each)}
        if "told" not in state:
            state["attributes"] = attributes_of(each, SET_BY_SB3)
        if isinstance(each, EvalCallback):
            state["environments"] = environments_of(each.eval_env, "resume_now")
        states.append(state)
    return states


def set_callbacks(callback: BaseCallback, states: list[State], began: list[State]) -> None:
    """Restore the callbacks: each gets the state of the one of its class, in their order.

    Those that were added begin as they are; what is told of those that are gone is dropped. An attribute that began
    with another value than in the old process keeps it: it comes from settings that were changed, or from the clock.

    :param states: as of :func:`callbacks_of`
    :param began: the same of when the old process began
    """
    waiting = list(zip(states, began, strict=True))
    for each in _callbacks(callback):
        pair = next((pair for pair in waiting if pair[0]["class"] == type(each).__name__), None)
        if pair is None:
            continue
        waiting.remove(pair)
        _set_callback(each, *pair)


def _set_callback(callback: BaseCallback, state: State, began: State) -> None:
    tell(callback, state)
    now = attributes_of(callback, SET_BY_SB3)
    before = began.get("attributes", {})
    kept = {
        name: value
        for name, value in state.get("attributes", {}).items()
        if name not in now or _same(now[name], before.get(name))
    }
    set_attributes(callback, kept, SET_BY_SB3)
    if isinstance(callback, EvalCallback):
        try:
            set_environments(callback.eval_env, state["environments"])
        except BundleError as error:
            warnings.warn(f"the evaluation begins anew: {error}", BundleWarning, stacklevel=2)


def _same(one: Tree, other: Tree) -> bool:
    """Whether two trees are equal, bit for bit."""
    tensors: tuple[dict[str, th.Tensor], dict[str, th.Tensor]] = ({}, {})
    texts = [json.dumps(encode(tree, found)) for tree, found in zip((one, other), tensors, strict=True)]
    pairs = zip(tensors[0].values(), tensors[1].values(), strict=False)
    return texts[0] == texts[1] and all(th.equal(*pair) for pair in pairs)
