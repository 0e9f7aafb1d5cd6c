"""What a task's settings may hold: every value is checked by name before anything is created.

SB3, gymnasium and torch load inside the functions, so that the command line can list and explain without them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from sb3_ppo_variants.arguments import check_names, require, require_choice, shown
from sb3_ppo_variants.safe_yaml import load_run_yaml, load_yaml, read_expression

# Settings that rl_zoo3 evaluates as Python where they are strings.
EVALUATED_KEYS = frozenset(
    {"monitor_kwargs", "normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs"}
)
# An example of each setting that is a mapping, for messages.
MAPPINGS = {
    "env_kwargs": "{max_episode_steps: 200}",
    "monitor_kwargs": "{info_keywords: [is_success]}",
    "normalize": "{norm_obs: true, norm_reward: false}",
    "policy_kwargs": "{net_arch: [64, 64], activation_fn: tanh}",
    "replay_buffer_kwargs": "{goal_selection_strategy: future}",
    "rollout_buffer_kwargs": "{<argument>: <value>}",
    "optimizer_kwargs": "{eps: 1.0e-5}",
    "features_extractor_kwargs": "{features_dim: 256}",
}
# Settings that name classes of somebody's code, and what those must be.
NAMED_KEYS = {
    "callback": "a class derived from SB3's BaseCallback",
    "env_wrapper": "a class derived from gymnasium.Wrapper",
    "policy": "a class derived from SB3's BasePolicy",
    "vec_env_wrapper": "a class derived from SB3's VecEnvWrapper",
}
# Those that may name a function in place of a class, and the name of its first argument in somebody else's run.
FUNCTION_KEYS = {"env_wrapper": "env", "vec_env_wrapper": "venv"}
# What rl_zoo3 uses of a run's config.yml when it loads the agent.
RUN_KEYS = frozenset({"env_kwargs", "env_wrapper", "frame_stack", "normalize", "vec_env_wrapper"})
NAME_FORMS = "a dotted name such as package.module.Name, {<dotted name>: {<its arguments>}}, or a list of those"


# ------------------------------------------------------------------ files


def check_settings_file(path: Path) -> None:
    """Check that a config is YAML and holds settings for each of its tasks.

    :raises ValueError: if it does not; names the place
    """
    config = load_yaml(path)
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} must be a mapping from tasks to their settings; got {shown(config)}")
    for task, settings in config.items():
        if not isinstance(settings, Mapping):
            raise ValueError(f"{task} in {path} must be a mapping of settings; got {shown(settings)}")


def read_run_file(path: Path) -> dict[str, Any]:
    """Read ``config.yml`` or ``args.yml`` of a run, for rl_zoo3's scripts that load agents.

    What they would evaluate is read as data, and the wrappers that they would call are checked.

    :return: the settings, in the forms that those scripts expect
    :raises ValueError: for what rl_zoo3 does not write; names the file and the setting
    """
    is_config = path.name != "args.yml"
    used_keys = RUN_KEYS if is_config else {"env_kwargs"}
    settings = load_run_yaml(path, used_keys)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a mapping of settings; got {shown(settings)}")
    try:
        used = {key: value for key, value in settings.items() if key in used_keys}
        used = read_zoo_settings(used, expressions=True)
        check_classes(used, of_a_run=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if is_config:  # rl_zoo3 looks whether a setting is there, not whether it is null
        return {name: value for name, value in {**settings, **used}.items() if value is not None}
    return {"env_kwargs": None, **settings, **used}


# ------------------------------------------------------------------ settings of rl_zoo3


def read_zoo_settings(settings: Mapping[str, Any], *, expressions: bool) -> dict[str, Any]:
    """Check the settings that rl_zoo3 itself reads, and turn text that it would evaluate into objects.

    :param expressions: whether such text is allowed, of the forms that :func:`read_expression` knows: rl_zoo3's own
        configs hold it
    :return: a copy of all settings, the others as they are
    :raises ValueError: for a wrong type or a number out of range; names the setting and what is allowed
    """
    checked = dict(settings)
    for key in sorted(EVALUATED_KEYS):
        if expressions and isinstance(checked.get(key), str):
            checked[key] = read_expression(key, checked[key])
    for key in MAPPINGS:
        if key != "normalize" and checked.get(key) is not None:
            require_mapping(key, checked[key])
    for key, check in _CHECKS.items():
        if key in checked:
            checked[key] = check(key, checked[key])
    return checked


def require_mapping(name: str, value: Any) -> None:
    """Check a setting whose keys are arguments.

    :raises ValueError: unless it is a mapping with strings as keys; shows one
    """
    if isinstance(value, str):
        raise ValueError(f"{name} must be a mapping such as {MAPPINGS[name]}, not text to evaluate; got {shown(value)}")
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping such as {MAPPINGS[name]}; got {shown(value)}")


def _check_timesteps(name: str, value: Any) -> float:
    """YAML 1.1 reads `1e6`, without a dot, as a string."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    require(name, number, "a finite number >= 1", lambda number: 1 <= number < math.inf)
    return number


def _check_count(name: str, value: Any) -> int:
    require(name, value, "an integer >= 1", lambda number: number >= 1, integer=True)
    return value


def _check_frame_stack(name: str, value: Any) -> int | None:
    require(name, value, "an integer >= 1 or null", lambda number: number >= 1, integer=True, optional=True)
    return value


def _check_normalize(name: str, value: Any) -> Any:
    from stable_baselines3.common.vec_env import VecNormalize

    if value is None or isinstance(value, bool):
        return bool(value)
    if not isinstance(value, Mapping):
        words = ", not text to evaluate" if isinstance(value, str) else ""
        raise ValueError(f"{name} must be true, false or a mapping such as {MAPPINGS[name]}{words}; got {shown(value)}")
    check_arguments(name, value, VecNormalize, {"venv"})
    for key in ("clip_obs", "clip_reward", "epsilon"):
        require(f"{name}: {key}", value.get(key, 1), "a number > 0", lambda number: number > 0)
    require(f"{name}: gamma", value.get("gamma", 1), "a number in [0, 1]", lambda number: 0 <= number <= 1)
    return dict(value) or True  # rl_zoo3 takes an empty mapping for false when it loads the agent


def _check_monitor_kwargs(name: str, value: Any) -> dict[str, Any]:
    from stable_baselines3.common.monitor import Monitor

    if value is None:
        return {}
    check_arguments(name, value, Monitor, {"env", "filename"})
    # Monitor adds them to tuples, which a list cannot be added to.
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


def _check_named(name: str, value: Any) -> Any:
    if value is not None:
        for item in value if isinstance(value, list) else [value]:
            _check_one_named(name, item)
    return value


def _check_one_named(name: str, item: Any) -> None:
    entry: Any = item
    if isinstance(item, Mapping):
        (entry, arguments), *others = item.items() or [(None, {})]
        if others or not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
            raise ValueError(f"{name} must be {NAME_FORMS}; got {shown(item)}")
    # A Python config may hold what is named, in place of its name.
    if not _is_dotted_name(entry) and not _is_object_of_python(entry):
        raise ValueError(f"{name} must be {NAME_FORMS}; got {shown(item)}")


def _is_dotted_name(entry: Any) -> TypeGuard[str]:
    return isinstance(entry, str) and "." in entry and all(part.isidentifier() for part in entry.split("."))


def _is_object_of_python(entry: Any) -> bool:
    from stable_baselines3.common.callbacks import BaseCallback

    return isinstance(entry, (type, BaseCallback))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "callback": _check_named,
    "env_wrapper": _check_named,
    "frame_stack": _check_frame_stack,
    "monitor_kwargs": _check_monitor_kwargs,
    "n_envs": _check_count,
    "n_timesteps": _check_timesteps,
    "normalize": _check_normalize,
    "vec_env_wrapper": _check_named,
}


# ------------------------------------------------------------------ classes by name


def check_classes(settings: Mapping[str, Any], *, of_a_run: bool = False) -> None:
    """Import what ``NAMED_KEYS`` name, and check that it is what the setting wants, before rl_zoo3 calls it.

    Importing runs the code of those modules: it is the user's own. But a callback that were any function could be one
    of the standard library that runs the arguments beside it as a command.

    :param of_a_run: whether they may be somebody else's: then a function as a wrapper is known by its first argument
    :raises ValueError: for a name that cannot be imported or stands for something else; says what is wanted
    """
    for key in NAMED_KEYS:
        for name in names_in(settings.get(key)):
            if _is_dotted_name(name):  # else: a policy's alias, None, or an object of a Python config
                _check_class(key, name, of_a_run)


def names_in(value: Any) -> list[Any]:
    """What a setting names: it is one name, or a list of them, and each may have arguments, ``{name: {…}}``."""
    items = value if isinstance(value, list) else [value]
    return [next(iter(item), None) if isinstance(item, Mapping) else item for item in items]


def _check_class(key: str, name: str, of_a_run: bool) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}: {name} cannot be imported: {error}") from error
    if not (_is_class_for(key, found) if isinstance(found, type) else _is_function_for(key, found, of_a_run)):
        argument = FUNCTION_KEYS.get(key)
        which = f"whose first argument is `{argument}`" if of_a_run else "of none of Python's own modules"
        functions = f", or a function {which}" if argument else ""
        raise ValueError(f"{key} must be {NAMED_KEYS[key]}{functions}; got {name}")


def _is_class_for(key: str, found: type) -> bool:
    import gymnasium as gym
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.vec_env import VecEnvWrapper

    bases = {"callback": BaseCallback, "env_wrapper": gym.Wrapper, "policy": BasePolicy}
    return issubclass(found, bases.get(key, VecEnvWrapper))


def _is_function_for(key: str, found: Any, of_a_run: bool) -> bool:
    if key not in FUNCTION_KEYS or not callable(found) or _is_of_python(found):
        return False
    if not of_a_run:
        return True
    return inspect.isfunction(found) and next(iter(inspect.signature(found).parameters), None) == FUNCTION_KEYS[key]


def _is_of_python(found: Any) -> bool:
    """Whether a callable is a built-in one or of the standard library, or does not tell."""
    while isinstance(found, functools.partial):
        found = found.func
    module = getattr(found, "__module__", None)  # an object has its class's
    return not isinstance(module, str) or module.partition(".")[0] in sys.stdlib_module_names


# ------------------------------------------------------------------ settings of an algorithm


def check_algorithm_settings(algorithm: Any, settings: Mapping[str, Any]) -> None:
    """Check an algorithm's settings: by their types, then by the constructor's own checks of their ranges.

    :param algorithm: the algorithm's class
    :param settings: keys of the constructor among others, with schedules as objects
    :raises ValueError: for the first setting that is not allowed; names it
    """
    parameters = inspect.signature(algorithm).parameters
    check_policy(algorithm, settings["policy"])
    given = {name: value for name, value in settings.items() if name in parameters and name != "policy"}
    for name, value in given.items():
        _check_type(name, value, parameters[name])
    if not hasattr(algorithm, "_check_arguments"):  # SB3's own check nothing before they are set up
        return
    for progress in (1.0, 0.0):  # a line lies between its ends
        numbers = {name: _at(progress, name, value) for name, value in given.items()}
        model = algorithm("MlpPolicy", None, device="cpu", _init_setup_model=False, **numbers)
        model._check_arguments()
        model.n_envs = settings.get("n_envs", 1)
        model._check_rollout_size()


def _at(progress: float, name: str, value: Any) -> Any:
    """A linear schedule's value at a remaining progress; any other value as it is."""
    from stable_baselines3.common.utils import LinearSchedule

    if not isinstance(value, LinearSchedule):
        return value
    number = value(progress)
    # `lin_0.2` ends at 0, which as a number is not allowed here.
    return value(1.0) if name == "clip_range_vf" and number == 0 else number


def check_policy(algorithm: Any, policy: Any) -> None:
    """Check the name of a policy: an alias that the algorithm knows, or a dotted name.

    :raises ValueError: for anything else
    """
    if _is_dotted_name(policy):
        return
    aliases = algorithm.policy_aliases
    if not isinstance(policy, str) or "." in policy:
        names = ", ".join(map(repr, aliases))
        raise ValueError(f"policy must be one of {names} or the dotted name of a class; got {shown(policy)}")
    require_choice("policy", policy, list(aliases))


def check_arguments(
    name: str, arguments: Mapping[str, Any], owner: Callable[..., Any], filled: Collection[str]
) -> None:
    """Check the names of keyword arguments, and the types of those that have a simple one.

    :param name: the setting that holds them, for messages
    :param owner: what they are arguments of
    :param filled: its arguments that a setting cannot give
    :raises ValueError: for the first that is not allowed
    """
    parameters = inspect.signature(owner).parameters
    check_names(f"{name} key", arguments, set(parameters) - set(filled))
    for key, value in arguments.items():
        _check_type(f"{name}: {key}", value, parameters[key])


def _check_type(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Check a value by the annotation of the parameter that takes it, where that is one of a few.

    Numbers that a constructor of ours checks itself pass here.
    """
    annotation = parameter.annotation
    text = annotation.__name__ if isinstance(annotation, type) and "[" not in str(annotation) else str(annotation)
    kind, optional = text.removesuffix(" | None"), text.endswith(" | None")
    if optional and value is None:
        return
    key = name.rpartition(": ")[2]
    if kind == "bool":
        require_choice(name, value, (True, False))
    elif kind.startswith("dict["):
        require_mapping(key, value)
    elif kind.startswith("type["):
        if not isinstance(value, type):
            raise ValueError(f"{name} must be a class, which only a Python config can give; got {shown(value)}")
    else:
        _check_items(name, key, kind, value)


def _check_items(name: str, key: str, kind: str, value: Any) -> None:
    if key in ("sde_sample_freq", "stats_window_size"):
        smallest = -1 if key == "sde_sample_freq" else 1
        require(name, value, f"an integer >= {smallest}", lambda number: number >= smallest, integer=True)
    elif key == "log_std_init":
        require(name, value, "a finite number", math.isfinite)
    elif key == "net_arch":
        _check_net_arch(name, value)
    elif kind.startswith(("list[str]", "tuple[str")) and not _is_list_of(value, lambda item: isinstance(item, str)):
        raise ValueError(f"{name} must be a list of strings; got {shown(value)}")


def _check_net_arch(name: str, value: Any) -> None:
    networks = list(value.values()) if isinstance(value, Mapping) else [value]
    has_keys = not isinstance(value, Mapping) or set(value) <= {"pi", "vf"}
    if not has_keys or not all(_is_list_of(network, _is_width) for network in networks):
        raise ValueError(
            f"{name} must be a list of integers >= 1, or a mapping of such lists {{pi: [64, 64], vf: [64, 64]}}; "
            f"got {shown(value)}"
        )


def _is_width(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_item, value))
