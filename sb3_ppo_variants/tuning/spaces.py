"""What a study may vary: parameters of each variant, the paper's values among them, and what settings they make.

A parameter is either an argument of the constructor (or ``n_envs``), or one of those below, which make settings
together. Nothing here knows optuna: a trial is whatever has its ``suggest_…`` methods.

- ``one_minus_gamma`` → ``gamma``: what matters is how far it is from 1. rl_zoo3 hands VecNormalize the same
- ``n_minibatches`` → ``batch_size``, which so divides the rollout: where the number does not, the next smaller size
- ``network``, ``activation`` → ``policy_kwargs``
- ``anneal``: ``learning_rate`` and, where there is one, ``clip_range`` fall linearly to 0, as in Table 5
- ``anneal_log_std``, ``log_std_start``, ``log_std_end`` → ``log_std_schedule``; off: it is learned
- ``adapt_stepsize``: whether there is a ``stepsize_kl_target``; ``entropy_bonus``: whether there is an ``ent_coef``
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS
from sb3_ppo_variants.arguments import check_names, require, require_choice, shown

KINDS = ("float", "int", "categorical")
# The settings that each of our own parameters makes.
COMPOSED = {
    "one_minus_gamma": {"gamma"},
    "n_minibatches": {"batch_size"},
    "network": {"policy_kwargs"},
    "activation": {"policy_kwargs"},
    "anneal": {"learning_rate", "clip_range"},
    "anneal_log_std": {"log_std_schedule"},
    "log_std_start": {"log_std_schedule"},
    "log_std_end": {"log_std_schedule"},
    "adapt_stepsize": {"stepsize_kl_target"},
    "entropy_bonus": {"ent_coef"},
}
# Constructor arguments that a study cannot vary: they are no settings of the algorithm, or ours to compose.
NOT_VARIED = frozenset(
    {
        "_init_setup_model",
        "batch_size",
        "device",
        "env",
        "gamma",
        "log_std_schedule",
        "policy",
        "policy_kwargs",
        "rollout_buffer_class",
        "rollout_buffer_kwargs",
        "seed",
        "stats_window_size",
        "stepsize_bounds",
        "tensorboard_log",
        "verbose",
    }
)
LARGEST_ENUMERATION = 100_000
NETWORK_FORM = re.compile(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*")


class Parameter(NamedTuple):
    """One parameter of a space."""

    name: str
    kind: str
    """one of ``KINDS``"""
    low: float | None = None
    """smallest value, of a number"""
    high: float | None = None
    """largest value, of a number"""
    log: bool = False
    """whether a number's logarithm is what is drawn evenly"""
    choices: tuple[Any, ...] = ()
    """values of a categorical one: numbers, strings, booleans and None"""
    when: tuple[tuple[str, Any], ...] = ()
    """names and values of others, at which alone it exists"""

    def exists(self, params: Mapping[str, Any]) -> bool:
        """Whether it does, beside the values of the others."""
        return all(name in params and params[name] == value for name, value in self.when)

    def suggest(self, trial: Any) -> Any:
        """Have a trial choose a value."""
        if self.kind == "categorical":
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.kind == "int":
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether it can take a value, exactly."""
        if self.kind == "categorical":
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else (int, float)):
            return False
        assert self.low is not None
        assert self.high is not None
        return self.low <= value <= self.high

    def nearest(self, value: Any) -> Any:
        """The value that it can take which is nearest to one that it cannot; of choices without order the first."""
        if self.contains(value):
            return value
        numbers = [choice for choice in self.choices if isinstance(choice, (int, float))]
        if self.kind == "categorical":
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and len(numbers) == len(self.choices):
                return min(numbers, key=lambda choice: abs(choice - value))
            return self.choices[0]
        if not isinstance(value, (int, float)):
            return self.low
        assert self.low is not None
        assert self.high is not None
        clipped = min(max(value, self.low), self.high)
        return round(clipped) if self.kind == "int" else float(clipped)

    def extremes(self) -> list[Any]:
        """The values of which the others lie in between, or all of them."""
        return list(self.choices) if self.kind == "categorical" else [self.low, self.high]

    def as_json(self) -> dict[str, Any]:
        """As a mapping of what JSON has."""
        return {**self._asdict(), "choices": list(self.choices), "when": [list(pair) for pair in self.when]}


Space = tuple[Parameter, ...]


def suggest(space: Space, trial: Any) -> dict[str, Any]:
    """Have a trial choose a value for each parameter that exists for it.

    :param trial: optuna's, or what has its methods
    """
    params: dict[str, Any] = {}
    for parameter in space:
        if parameter.exists(params):
            params[parameter.name] = parameter.suggest(trial)
    return params


# ------------------------------------------------------------------ the spaces of the variants


def _log(name: str, low: float, high: float, **when: Any) -> Parameter:
    return Parameter(name, "float", low, high, True, when=tuple(when.items()))


def _linear(name: str, low: float, high: float, **when: Any) -> Parameter:
    return Parameter(name, "float", low, high, when=tuple(when.items()))


def _choose(name: str, *choices: Any, **when: Any) -> Parameter:
    return Parameter(name, "categorical", choices=choices, when=tuple(when.items()))


# Of each variant, beside what all have. With Table 1's grids: ε 0.1 to 0.3, d_targ 0.003 to 0.03, β 0.3 to 10.
OF_VARIANT: dict[str, Space] = {
    "ppo_clip_paper": (_log("clip_range", 0.05, 0.5), _choose("surrogate", "clip", "log_clip")),
    "ppo_adaptive_kl_paper": (_log("kl_target", 1e-3, 0.1), _log("beta_init", 0.1, 10.0)),
    "ppo_fixed_kl_paper": (_log("beta", 0.1, 30.0),),
    "ppo_unclipped_paper": (),
    "vanilla_pg_paper": (_choose("advantage_estimator", "gae", "td", "baseline"),),
}

# Actors N, horizon T, number of minibatches and of epochs, by the table that holds the paper's. Powers of two, and the
# largest number of minibatches is no larger than the smallest rollout: each minibatch size divides its rollout.
ROLLOUTS: dict[str, Space] = {
    "table_3": (
        _choose("n_envs", 1, 2, 4, 8, 16),
        _choose("n_steps", 128, 256, 512, 1024, 2048),
        _choose("n_minibatches", 1, 2, 4, 8, 16, 32, 64),
        Parameter("n_epochs", "int", 1, 30, True),
    ),
    "table_4": (
        _choose("n_envs", 32, 64, 128),
        _choose("n_steps", 64, 128, 256, 512),
        _choose("n_minibatches", 1, 2, 4, 8, 16, 32, 64),
        Parameter("n_epochs", "int", 1, 30, True),
    ),
    "table_5": (
        _choose("n_envs", 4, 8, 16, 32),
        _choose("n_steps", 64, 128, 256),
        _choose("n_minibatches", 1, 2, 4, 8, 16),
        Parameter("n_epochs", "int", 1, 10, True),
    ),
}
COMMON: Space = (
    _log("learning_rate", 1e-5, 1e-2),
    _choose("anneal", False, True),
    _log("one_minus_gamma", 1e-3, 0.2),
    _linear("gae_lambda", 0.8, 1.0),
    _choose("entropy_bonus", False, True),
    _log("ent_coef", 1e-5, 0.05, entropy_bonus=True),
)
STEPSIZE: Space = (
    _choose("adapt_stepsize", False, True),
    _log("stepsize_kl_target", 1e-3, 0.1, adapt_stepsize=True),
)
NETWORK: Space = (
    _choose("network", "64x64", "128x128", "256x256", "64x64x64"),
    _choose("activation", "tanh", "relu"),
)
LOG_STD: Space = (
    _choose("anneal_log_std", False, True),
    _linear("log_std_start", -1.5, 0.5, anneal_log_std=True),
    _linear("log_std_end", -3.0, -0.5, anneal_log_std=True),
)


def table_of(environment: str) -> str:
    """The paper's table whose settings are those of a task's kind: a key of ``ROLLOUTS``."""
    if environment.rpartition(":")[2].startswith("Roboschool"):
        return "table_4"
    return "table_5" if is_atari(environment) else "table_3"


def is_atari(environment: str) -> bool:
    """Whether a task is an Atari game; one that is not registered is known by ``ALE/`` alone."""
    import gymnasium as gym

    plain = environment.rpartition(":")[2]
    spec = gym.registry.get(plain)
    return plain.startswith("ALE/") or (spec is not None and "AtariEnv" in str(spec.entry_point))


def default_space(algorithm: str, environment: str, base: Mapping[str, Any] | None = None) -> Space:
    """The space of a variant on a task.

    :param algorithm: a key of ``ALGORITHMS``
    :param environment: the task's id; one that no table of the paper is about is made, to see its actions
    :param base: settings that hold for all trials, ``env_kwargs``, ``policy`` and ``use_sde`` among them
    """
    base = base or {}
    table = table_of(environment)
    space = [*ROLLOUTS[table], *COMMON]
    if algorithm != "ppo_adaptive_kl_paper":  # whose β would act on the same KL
        space += STEPSIZE
    if base.get("policy", "MlpPolicy") == "MlpPolicy":
        space += NETWORK
    if table != "table_5" and not base.get("use_sde") and (table == "table_4" or _has_box_actions(environment, base)):
        space += LOG_STD
    space += OF_VARIANT[algorithm]
    if algorithm == "vanilla_pg_paper":
        place = next(index for index, parameter in enumerate(space) if parameter.name == "gae_lambda")
        space.append(space.pop(place)._replace(when=(("advantage_estimator", "gae"),)))
    return tuple(space)


def _has_box_actions(environment: str, base: Mapping[str, Any]) -> bool:
    import gymnasium as gym

    env = gym.make(environment, **(base.get("env_kwargs") or {}))
    try:
        return isinstance(env.action_space, gym.spaces.Box)
    finally:
        env.close()


# ------------------------------------------------------------------ overrides in YAML


def read_space(
    algorithm: str,
    environment: str,
    base: Mapping[str, Any],
    fixed: Mapping[str, Any],
    overrides: Mapping[str, Any],
    whole: bool = True,
) -> Space:
    """The space of a study: the variant's, without what is fixed, and with what the job says otherwise.

    :param fixed: settings that no parameter may change
    :param overrides: name → ``{type, low, high, log, choices, when}``, or null, which leaves the parameter out
    :param whole: whether parameters of the variant's space which the job does not name are in it too
    :return: the parameters, each after those that it depends on
    :raises ValueError: for unknown names, a range that is none, or values that the algorithm does not take
    """
    require_choice("algorithm", algorithm, list(ALGORITHMS))
    defaults = {
        parameter.name: parameter
        for parameter in default_space(algorithm, environment, base)
        if not _settings_made_by(parameter.name) & set(fixed)
    }
    space = dict(defaults) if whole else {}
    allowed = {*_constructor_parameters(algorithm), *COMPOSED, "n_envs"} - NOT_VARIED
    check_names("parameter of the space", overrides, allowed)
    for name, override in overrides.items():
        taken = _settings_made_by(name) & set(fixed)
        if taken:
            raise ValueError(f"space: {name} cannot vary while {sorted(taken)[0]!r} is fixed")
        if override is None:
            for other in [name, *_dependents(name, space)]:
                if other == name or other not in overrides:
                    space.pop(other, None)
        else:
            space[name] = _read_parameter(name, override, defaults.get(name))
    _drop_idle_anneal(space, overrides)
    ordered = _ordered(space)
    _check_values(algorithm, environment, base, ordered)
    _check_rollouts(algorithm, base, space)
    return ordered


def _drop_idle_anneal(space: dict[str, Parameter], overrides: Mapping[str, Any]) -> None:
    """Take ``anneal`` out of a space in which there is nothing for it to anneal.

    :raises ValueError: if the job asks for it, or nothing is left
    """
    if "anneal" in space and not {"learning_rate", "clip_range"} & set(space):
        if overrides.get("anneal") is not None:
            raise ValueError("space: anneal needs learning_rate or clip_range in the space, which it anneals")
        space.pop("anneal")
    if not space:
        raise ValueError("space must have a parameter")


def _dependents(name: str, space: Mapping[str, Parameter]) -> list[str]:
    return [other for other, parameter in space.items() if name in dict(parameter.when)]


def _settings_made_by(name: str) -> set[str]:
    return COMPOSED.get(name, {name})


def _constructor_parameters(algorithm: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(sb3_ppo_variants, ALGORITHMS[algorithm])).parameters


_FIELDS = ("type", "low", "high", "log", "choices", "when")


def _read_parameter(name: str, override: Any, default: Parameter | None) -> Parameter:
    """A parameter as a job writes it; where it gives no type, it changes the default's."""
    if not isinstance(override, Mapping):
        raise ValueError(
            f"space: {name} must be null or a mapping such as {{type: float, low: 0.1, high: 1.0}}; got {override!r}"
        )
    check_names(f"key of space: {name}", override, _FIELDS)
    given = dict(override)
    if "type" not in given and default is None:
        raise ValueError(f"space: {name} must have a type: {', '.join(KINDS)}")
    start = default if "type" not in given and default is not None else Parameter(name, given.pop("type"))
    if default is not None and "when" not in given:
        start = start._replace(when=default.when)
    require_choice(f"space: {name}: type", start.kind, KINDS)
    if "choices" in given:
        given["choices"] = _read_choices(name, given["choices"])
    if "when" in given:
        given["when"] = _read_when(name, given["when"])
    return _checked(start._replace(**given))


def _read_choices(name: str, choices: Any) -> tuple[Any, ...]:
    is_list = isinstance(choices, list) and choices
    if not is_list or not all(item is None or isinstance(item, (bool, int, float, str)) for item in choices):
        raise ValueError(
            f"space: {name}: choices must be a list of numbers, strings, booleans or null; got {choices!r}"
        )
    if name == "network" and not all(isinstance(item, str) and NETWORK_FORM.fullmatch(item) for item in choices):
        raise ValueError(f"space: {name}: choices must be widths of layers such as 64x64; got {choices!r}")
    if any(item in choices[:index] for index, item in enumerate(choices)):
        raise ValueError(f"space: {name}: choices must differ; got {choices!r}")
    return tuple(choices)


def _read_when(name: str, when: Any) -> tuple[tuple[str, Any], ...]:
    if when is None:
        return ()
    if not isinstance(when, Mapping):
        raise ValueError(f"space: {name}: when must be a mapping from other parameters to values; got {when!r}")
    return tuple(when.items())


def _checked(parameter: Parameter) -> Parameter:
    """A parameter whose fields fit its type.

    :raises ValueError: if they do not
    """
    what = f"space: {parameter.name}"
    require_choice(f"{what}: log", parameter.log, (True, False))
    _check_kind(parameter)
    if parameter.kind == "categorical":
        if not parameter.choices or parameter.low is not None or parameter.high is not None or parameter.log:
            raise ValueError(f"{what}: a categorical parameter must have choices, and neither low, high nor log")
        return parameter
    if parameter.choices:
        raise ValueError(f"{what}: choices go with type: categorical; got type: {parameter.kind}")
    low, high = (_read_number(f"{what}: {key}", getattr(parameter, key), parameter.kind) for key in ("low", "high"))
    if low > high:
        raise ValueError(f"{what}: low must be at most high; got {low!r} and {high!r}")
    if parameter.log and low <= 0:
        raise ValueError(f"{what}: low must be > 0 on a log scale; got {low!r}")
    return parameter._replace(low=low, high=high)


COUNTS = frozenset({"n_envs", "n_steps", "n_epochs", "n_minibatches"})
SWITCHES = frozenset({"anneal", "anneal_log_std", "adapt_stepsize", "entropy_bonus"})
NUMBERS = frozenset({"one_minus_gamma", "log_std_start", "log_std_end"})


def _check_kind(parameter: Parameter) -> None:
    """Check the kind of a parameter that is counted with, or composed with others, before an algorithm sees it.

    :raises ValueError: if it is another's
    """
    name, choices = f"space: {parameter.name}", parameter.choices
    if parameter.name in SWITCHES and not (choices and all(isinstance(choice, bool) for choice in choices)):
        raise ValueError(f"{name} must have choices true, false or both; got {shown(list(choices))}")
    if parameter.name in ("network", "activation") and not all(isinstance(choice, str) for choice in choices or (0,)):
        raise ValueError(f"{name} must have names as choices; got {shown(list(choices))}")
    if parameter.name in COUNTS:
        if parameter.kind == "float":
            raise ValueError(f"{name}: type must be 'int' or 'categorical'; got 'float'")
        for value in choices or (parameter.low,):
            require(name, value, "integers >= 1", lambda number: number >= 1, integer=True)
    if parameter.name in NUMBERS:
        for value in choices:
            require(name, value, "finite numbers", math.isfinite)


def _read_number(name: str, value: Any, kind: str) -> Any:
    """YAML 1.1 reads `1e-3`, without a dot, as a string."""
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = value
    integer = kind == "int"
    require(name, number, "an integer" if integer else "a finite number", math.isfinite, integer=integer)
    return number if integer else float(number)


def _ordered(space: Mapping[str, Parameter]) -> Space:
    """The parameters, each after those that it depends on.

    :raises ValueError: for one that depends on what is not there, on a value that it cannot take, or on itself
    """
    for parameter in space.values():
        for name, value in parameter.when:
            if name not in space:
                raise ValueError(f"space: {parameter.name}: when names {name!r}, which is no parameter of this space")
            if not space[name].contains(value):
                raise ValueError(f"space: {parameter.name}: when wants {value!r} of {name}, which cannot take it")
    done: dict[str, Parameter] = {}
    while len(done) < len(space):
        ready = [
            parameter
            for name, parameter in space.items()
            if name not in done and all(other in done for other, _ in parameter.when)
        ]
        if not ready:
            circle = ", ".join(name for name in space if name not in done)
            raise ValueError(f"space: when must not go in circles: {circle}")
        done.update((parameter.name, parameter) for parameter in ready)
    return tuple(done.values())


def _check_values(algorithm: str, environment: str, base: Mapping[str, Any], space: Space) -> None:
    """Have the algorithm check the settings that the ends of every range make.

    :raises ValueError: for a value that it does not take; names the parameter
    """
    from sb3_ppo_variants.zoo import read_hyperparams

    kind = getattr(sb3_ppo_variants, ALGORITHMS[algorithm])
    read_hyperparams(kind, base)
    first = paper_params(algorithm, environment, space)
    try:
        read_hyperparams(kind, settings_of(algorithm, base, first))
    except ValueError as error:
        raise ValueError(f"space: the first trial's values are refused: {error}") from error
    by_name = {parameter.name: parameter for parameter in space}
    for parameter in space:
        for value in parameter.extremes():
            chosen = _with(first, by_name, parameter.name, value)
            params: dict[str, Any] = {}
            for each in space:
                if each.exists(params):
                    params[each.name] = chosen.get(each.name, each.extremes()[0])
            try:
                read_hyperparams(kind, settings_of(algorithm, base, params))
            except ValueError as error:
                raise ValueError(f"space: {parameter.name} cannot be {value!r}: {error}") from error


def _with(params: Mapping[str, Any], space: Mapping[str, Parameter], name: str, value: Any) -> dict[str, Any]:
    """Values at which a parameter exists and has this value."""
    changed = {**params, name: value}
    for other, needed in space[name].when:
        changed = _with(changed, space, other, needed)
    return changed


def _check_rollouts(algorithm: str, base: Mapping[str, Any], space: Mapping[str, Parameter]) -> None:
    """Check that no rollout is longer than a training, and that a minibatch size of the job divides them all.

    :raises ValueError: if one is, or it does not
    """
    n_envs, n_steps = (_values(name, algorithm, base, space) for name in ("n_envs", "n_steps"))
    largest, timesteps = longest_rollout(algorithm, base, tuple(space.values())), base["n_timesteps"]
    if largest > timesteps:
        raise ValueError(
            f"space: n_envs * n_steps must be at most the budget's timesteps, {timesteps}; it can be {largest}"
        )
    if "n_minibatches" in space or len(n_envs) * len(n_steps) > LARGEST_ENUMERATION:
        return
    size = base.get("batch_size", _default(algorithm, "batch_size"))
    for envs in n_envs:
        for steps in n_steps:
            if envs * steps % size:
                raise ValueError(
                    f"batch_size must divide every rollout where it is fixed; {size} does not divide {envs} * {steps}"
                )


def longest_rollout(algorithm: str, base: Mapping[str, Any], space: Space) -> int:
    """The largest N × T that a space can draw, in timesteps."""
    by_name = {parameter.name: parameter for parameter in space}
    return _largest("n_envs", algorithm, base, by_name) * _largest("n_steps", algorithm, base, by_name)


def _largest(name: str, algorithm: str, base: Mapping[str, Any], space: Mapping[str, Parameter]) -> int:
    values = _values(name, algorithm, base, space)
    return values[-1] if isinstance(values, range) else max(values)


def _values(name: str, algorithm: str, base: Mapping[str, Any], space: Mapping[str, Parameter]) -> Sequence[int]:
    if name not in space:
        return [base.get(name, _default(algorithm, name))]
    parameter = space[name]
    if parameter.kind == "categorical":
        return parameter.choices
    return range(int(parameter.low or 0), int(parameter.high or 0) + 1)


def _default(algorithm: str, name: str) -> Any:
    return 1 if name == "n_envs" else _constructor_parameters(algorithm)[name].default


# ------------------------------------------------------------------ parameters → settings


def settings_of(algorithm: str, base: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that parameters make, in the form of ``zoo_configs``: plain data.

    :param algorithm: a key of ``ALGORITHMS``
    :param base: the settings that the parameters change
    :param params: values by the parameters' names
    :return: a new mapping
    """
    settings = deepcopy(dict(base))
    settings.update({name: value for name, value in params.items() if name not in COMPOSED})
    for compose in (_compose_gamma, _compose_batch_size, _compose_network, _compose_log_std, _compose_switches):
        compose(settings, params, partial(_default, algorithm))
    for name in ("anneal_log_std", "log_std_start", "log_std_end"):
        settings.pop(name, None)
    return settings


def _compose_gamma(settings: dict[str, Any], params: Mapping[str, Any], _default_of: Callable[[str], Any]) -> None:
    if "one_minus_gamma" in params:
        settings["gamma"] = 1 - params["one_minus_gamma"]
    if isinstance(settings.get("normalize"), dict) and "gamma" in settings:
        settings["normalize"].pop("gamma", None)  # rl_zoo3 hands the agent's to VecNormalize


def _compose_batch_size(settings: dict[str, Any], params: Mapping[str, Any], default_of: Callable[[str], Any]) -> None:
    if "n_minibatches" not in params:
        return
    rollout = settings.get("n_envs", default_of("n_envs")) * settings.get("n_steps", default_of("n_steps"))
    size = max(1, rollout // params["n_minibatches"])
    settings["batch_size"] = next(divisor for divisor in range(size, 0, -1) if rollout % divisor == 0)


def _compose_network(settings: dict[str, Any], params: Mapping[str, Any], _default_of: Callable[[str], Any]) -> None:
    arguments = dict(settings.get("policy_kwargs") or {})
    if "network" in params:
        layers = [int(width) for width in params["network"].split("x")]
        arguments["net_arch"] = {"pi": layers, "vf": list(layers)}
    if "activation" in params:
        arguments["activation_fn"] = params["activation"]
    if arguments:
        settings["policy_kwargs"] = arguments


def _compose_log_std(settings: dict[str, Any], params: Mapping[str, Any], _default_of: Callable[[str], Any]) -> None:
    if "anneal_log_std" not in params:
        return
    settings["log_std_schedule"] = None
    if params["anneal_log_std"]:
        ends = {"start": params["log_std_start"], "end": params["log_std_end"]}
        settings["log_std_schedule"] = {"schedule": "linear", **ends}


def _compose_switches(settings: dict[str, Any], params: Mapping[str, Any], _default_of: Callable[[str], Any]) -> None:
    if params.get("adapt_stepsize") is False:
        settings["stepsize_kl_target"] = None
    if params.get("entropy_bonus") is False:
        settings["ent_coef"] = 0.0
    if params.get("anneal"):
        for name in ("learning_rate", "clip_range"):
            if name in params:
                settings[name] = {"schedule": "linear", "start": params[name], "end": 0.0}


# ------------------------------------------------------------------ the paper's values


def paper_settings(algorithm: str, environment: str) -> dict[str, Any]:
    """The settings of the paper's table for a task of this kind, with the variant's defaults for what it leaves out.

    :return: arguments of the constructor, ``n_envs`` besides; schedules as objects
    """
    from sb3_ppo_variants import presets

    preset = {"table_3": presets.MUJOCO, "table_4": presets.ROBOSCHOOL_LOCOMOTION, "table_5": presets.ATARI}
    chosen = preset[table_of(environment)]
    if "Flagrun" in environment:
        chosen = presets.ROBOSCHOOL_FLAGRUN
    elif algorithm == "vanilla_pg_paper" and chosen is presets.MUJOCO:
        chosen = presets.FIG3_VANILLA_PG
    parameters = _constructor_parameters(algorithm)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    given = {name: value for name, value in chosen.items() if name in parameters}
    if defaults["clip_range"] is None:
        given.pop("clip_range", None)
    return {**defaults, "n_envs": chosen.run["n_envs"], **given}


def paper_params(algorithm: str, environment: str, space: Space) -> dict[str, Any]:
    """The paper's values of a space's parameters, for the first trial.

    Exact in every default space; where a job's space leaves the paper's value out, the nearest that it has.

    :return: values of those parameters that exist at them
    """
    settings = paper_settings(algorithm, environment)
    params: dict[str, Any] = {}
    for parameter in space:
        if parameter.exists(params):
            read = _READERS.get(parameter.name, partial(_read_plain, parameter.name))
            params[parameter.name] = parameter.nearest(read(settings))
    return params


# Not settings of the algorithm; or, the last two, of which the paper says nothing and its tasks' configs something.
NOT_COMPARED = frozenset(
    {
        *("_init_setup_model", "device", "env", "policy", "policy_kwargs", "rollout_buffer_class", "seed"),
        *("rollout_buffer_kwargs", "stats_window_size", "tensorboard_log", "verbose", "clip_actions", "weight_init"),
    }
)


def has_papers_values(algorithm: str, environment: str, settings: Mapping[str, Any]) -> bool:
    """Whether an algorithm's settings, its network's among them, are the paper's for a task of this kind.

    :param settings: in the form of ``zoo_configs``
    """
    from sb3_ppo_variants.zoo import read_hyperparams

    paper = paper_settings(algorithm, environment)
    ours = {**paper, **read_hyperparams(getattr(sb3_ppo_variants, ALGORITHMS[algorithm]), settings)}
    are_same = all(_same(ours[name], paper[name]) for name in paper.keys() - NOT_COMPARED)
    return are_same and _network_of(ours["policy_kwargs"]) == _network_of(paper["policy_kwargs"])


def _network_of(policy_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """A policy's arguments, with SB3's defaults of those that §6.1 is about."""
    from torch import nn

    return {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": nn.Tanh, **(policy_kwargs or {})}


def _same(one: Any, other: Any) -> bool:
    """Whether two values, or two schedules, are the same but for rounding."""
    for progress in (1.0, 0.5, 0.0):
        values = [value(progress) if callable(value) else value for value in (one, other)]
        if all(isinstance(value, (int, float)) for value in values):
            if not math.isclose(*values, rel_tol=1e-9, abs_tol=1e-12):
                return False
        elif values[0] != values[1]:
            return False
    return True


def _read_plain(name: str, settings: Mapping[str, Any]) -> Any:
    value = settings[name]
    return value(1.0) if callable(value) else value


def _read_network(settings: Mapping[str, Any]) -> str:
    arguments = settings["policy_kwargs"] or {}
    return "x".join(map(str, arguments["net_arch"]["pi"])) if arguments else "64x64"  # SB3's default


def _read_log_std(progress: float, settings: Mapping[str, Any]) -> Any:
    schedule = settings["log_std_schedule"]
    return round(schedule(progress), 12) if callable(schedule) else schedule


_READERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "one_minus_gamma": lambda settings: 1 - settings["gamma"],
    "n_minibatches": lambda settings: settings["n_envs"] * settings["n_steps"] // settings["batch_size"],
    "network": _read_network,
    "activation": lambda settings: "tanh",  # of §6.1, and SB3's default
    "anneal": lambda settings: callable(settings["learning_rate"]),
    "anneal_log_std": lambda settings: settings["log_std_schedule"] is not None,
    "log_std_start": partial(_read_log_std, 1.0),
    "log_std_end": partial(_read_log_std, 0.0),
    "adapt_stepsize": lambda settings: settings["stepsize_kl_target"] is not None,
    "entropy_bonus": lambda settings: settings["ent_coef"] != 0,
}
