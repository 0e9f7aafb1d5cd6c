"""A study as data: what one YAML file of ``tune/`` says, checked by names and ranges before anything is made."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sb3_ppo_variants import ALGORITHMS
from sb3_ppo_variants.arguments import check_names, require, require_choice
from sb3_ppo_variants.safe_yaml import load_yaml
from sb3_ppo_variants.tuning.spaces import Space, is_atari, longest_rollout, read_space, settings_of
from sb3_ppo_variants.zoo import config_path, data_folder

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "percentile", "successive_halving", "hyperband", "none")
# A study's name is also the name of its folder.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# SB3 seeds environment i with seed + i: trainings whose seeds are nearer than their environments are many begin some of
# their episodes alike, and are no independent runs.
SEED_DISTANCE = 1000
FIRST_FRESH_SEED = 1_000_000
SUFFIXES = (".yml", ".yaml")


class StudyError(ValueError):
    """A study cannot go on as its job says; the message says why."""


class Budget(NamedTuple):
    """How much a study may train."""

    trials: int
    """trials that finish: complete and pruned ones"""
    timesteps: int
    """of each seed of a trial, over all of its environments"""


class Objective(NamedTuple):
    """What is maximised: the mean over seeds of the mean raw return of a training's last episodes (Table 1)."""

    episodes: int = 100
    chunks: int = 10
    """parts of a training, after each of which the trial may be pruned; by default fewer where a rollout is longer"""


class Choice(NamedTuple):
    """A sampler or pruner, and its arguments in optuna."""

    name: str
    options: dict[str, Any]


class Rerun(NamedTuple):
    """The end of a study: its best trials, trained again on seeds that chose nothing."""

    best: int = 3
    seeds: int = 5


class Heartbeat(NamedTuple):
    """How it is noticed that a worker died, in seconds."""

    interval: int = 15
    grace: int = 60
    """without a sign of life, after which a trial is taken from its worker"""


@dataclass(frozen=True)
class Job:
    """A study: everything that its workers need to know. :func:`load_job` reads one."""

    name: str
    algorithm: str
    environment: str
    base: dict[str, Any]
    """settings in the form of ``zoo_configs``, with what is ``fixed``; the space replaces some"""
    space: Space
    budget: Budget
    seeds: int
    sampler: Choice
    sampler_seed: int
    pruner: Choice
    objective: Objective
    storage: str | None
    """None: a SQLite file in the folder"""
    folder: Path
    """of all that the study writes"""
    rerun: Rerun
    heartbeat: Heartbeat
    patience: float
    """seconds for which a storage that does not answer is asked again"""
    bundle_interval: float
    """seconds between two resume bundles of a training"""

    @property
    def training_seeds(self) -> list[int]:
        """The seeds of every trial: the same for all, so that trials differ by their settings alone."""
        return [index * SEED_DISTANCE for index in range(self.seeds)]

    @property
    def fresh_seeds(self) -> list[int]:
        """Those of the re-run, none of which a trial has seen."""
        return [FIRST_FRESH_SEED + index * SEED_DISTANCE for index in range(self.rerun.seeds)]

    @property
    def boundaries(self) -> list[int]:
        """The timesteps of each seed at which a trial is judged; the last one is the end."""
        chunks = self.objective.chunks
        return [round(self.budget.timesteps * (index + 1) / chunks) for index in range(chunks)]

    @property
    def url(self) -> str:
        """Where the study is kept."""
        return self.storage or f"sqlite:///{self.folder / 'study.db'}"

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's settings in the form of ``zoo_configs``: plain data, which trains as it is."""
        return settings_of(self.algorithm, self.base, params)

    def identity(self) -> dict[str, Any]:
        """What all trials of a study must have in common, as JSON has it; budgets in trials, samplers may change."""
        return {
            "algorithm": self.algorithm,
            "environment": self.environment,
            "base": self.base,
            "space": [parameter.as_json() for parameter in self.space],
            "timesteps": self.budget.timesteps,
            "seeds": self.seeds,
            "objective": self.objective._asdict(),
        }


# ------------------------------------------------------------------ reading


def jobs_that_ship() -> list[str]:
    """The names of the jobs in ``tune/``."""
    return sorted(path.stem for path in data_folder("tune").glob("*.yml"))


def find_job(name: str | Path) -> Path:
    """A job's file: a path, or the name of a job that ships.

    :raises ValueError: if there is none
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = data_folder("tune") / f"{path.stem if path.suffix in SUFFIXES else path.name}.yml"
    if shipped.is_file():
        return shipped
    check_names("job", [str(name)], jobs_that_ship())
    return shipped  # pragma: no cover  # the line above has raised


def load_job(path: str | Path) -> Job:
    """Read a job's file.

    :param path: a YAML file, or the name of a job that ships with the package
    :raises ValueError: for whatever is wrong in it; names the file, the key and what is allowed
    """
    file = find_job(path)
    content = load_yaml(file, named_levels=4)
    try:
        return read_job(content, file.parent)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_job(content: Any, folder: Path | None = None) -> Job:
    """As :func:`load_job`, of a file's content.

    :param folder: what a relative ``base`` is relative to; None: the current one
    :raises ValueError: as :func:`load_job`
    """
    job = _mapping("a job", content)
    check_names("key of a job", job, KEYS)
    for key in ("name", "algorithm", "environment", "budget"):
        if key not in job:
            raise ValueError(f"a job must have {key!r}")
    name = _name(job["name"])
    require_choice("algorithm", job["algorithm"], list(ALGORITHMS))
    algorithm, environment = job["algorithm"], _environment(job["environment"])
    budget = _read(Budget, "budget", job["budget"], _at_least(1))
    fixed = _mapping("fixed", job.get("fixed") or {})
    base = read_base(algorithm, environment, job.get("base"), folder)
    for setting, instead in (("n_timesteps", "budget: timesteps"), ("stats_window_size", "objective: episodes")):
        if setting in fixed:
            raise ValueError(f"fixed: {setting} is what {instead!r} says; leave it out")
    base = {**base, **fixed, "n_timesteps": budget.timesteps}
    sampler = dict(_choice("sampler", job.get("sampler", "tpe"), SAMPLERS))
    sampler_options = dict(sampler["options"])
    seed = sampler_options.pop("seed", 0)
    require("sampler: seed", seed, "an integer >= 0", lambda value: value >= 0, integer=True)
    overrides = _mapping("space", job.get("space") or {})
    heartbeat = _read(Heartbeat, "heartbeat", job.get("heartbeat") or {}, _at_least(1))
    if heartbeat.grace <= heartbeat.interval:
        raise ValueError(
            f"heartbeat: grace must be larger than its interval {heartbeat.interval}; got {heartbeat.grace}"
        )
    space = read_space(algorithm, environment, base, fixed, overrides, _truth("whole_space", job))
    return Job(
        name=name,
        algorithm=algorithm,
        environment=environment,
        base=base,
        space=space,
        budget=budget,
        seeds=_count("seeds", job.get("seeds", 3)),
        sampler=Choice(sampler["name"], sampler_options),
        sampler_seed=seed,
        pruner=Choice(**_choice("pruner", job.get("pruner", "median"), PRUNERS)),
        objective=_read_objective(job.get("objective") or {}, budget, longest_rollout(algorithm, base, space)),
        storage=_storage(job.get("storage")),
        folder=Path(_text("folder", job.get("folder", f"logs/tune/{name}"))),
        rerun=_read(Rerun, "rerun", job.get("rerun") or {}, _check_rerun),
        heartbeat=heartbeat,
        patience=_seconds("patience", job.get("patience", 120.0)),
        bundle_interval=_seconds("bundle_interval", job.get("bundle_interval", 60.0)),
    )


KEYS = frozenset(
    {
        "algorithm",
        "base",
        "budget",
        "bundle_interval",
        "environment",
        "fixed",
        "folder",
        "heartbeat",
        "name",
        "objective",
        "patience",
        "pruner",
        "rerun",
        "sampler",
        "seeds",
        "space",
        "storage",
        "whole_space",
    }
)


def read_base(algorithm: str, environment: str, base: Any, folder: Path | None) -> dict[str, Any]:
    """The settings that a study varies: by default the task's entry in ``zoo_configs``, or the one for all tasks.

    :param base: None, a file in the form of ``zoo_configs``, or the settings themselves
    :raises ValueError: if the file has no settings for the task
    """
    if isinstance(base, Mapping):
        return deepcopy(dict(base))
    if base is None:
        path = config_path(algorithm)
    else:
        given = Path(_text("base", base))
        path = given if given.is_absolute() or folder is None else folder / given
    config = _mapping(str(path), load_yaml(path))
    # A network for vectors, as 'default' has it, is none for pictures.
    general = "atari" if is_atari(environment) else "default"
    for name in (environment, environment.rpartition(":")[2], general):
        if name in config:
            return deepcopy(_mapping(f"{name} in {path}", config[name]))
    raise ValueError(f"base: {path} has settings neither for {environment} nor for {general!r}")


# ------------------------------------------------------------------ single keys

Fields = TypeVar("Fields", Budget, Objective, Rerun, Heartbeat)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping with strings as keys; got {value!r}")
    return dict(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a string that is not empty; got {value!r}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(
            f"name must be 1 to 100 letters, digits, '_', '-' or '.', a letter or digit first; got {value!r}"
        )
    return value


def _environment(value: Any) -> str:
    import gymnasium as gym

    environment = _text("environment", value)
    module, _, plain = environment.rpartition(":")
    if plain.startswith("ALE/") and module in ("", "ale_py"):
        if importlib.util.find_spec("ale_py") is None:
            raise ValueError(f'environment: {plain} needs the [atari] extra: pip install "sb3-ppo-variants[atari]"')
        gym.register_envs(importlib.import_module("ale_py"))
        module = ""
    if module in ("", "sb3_ppo_variants"):
        check_names("task", [plain], gym.registry, list_allowed=False)
        return plain
    return environment


def _read_objective(value: Any, budget: Budget, longest: int) -> Objective:
    """The objective; a chunk holds the longest rollout, or trials would be judged at other timesteps than they say.

    :param longest: rollout that the space can draw, in timesteps
    """
    most = budget.timesteps // longest
    given = _mapping("objective", value)
    objective = _read(Objective, "objective", {"chunks": min(Objective().chunks, most), **given}, _at_least(1))
    if objective.chunks > most:
        raise ValueError(
            f"objective: chunks must be at most {most}, so that each holds the longest rollout, {longest} of "
            f"{budget.timesteps} timesteps; got {objective.chunks}"
        )
    return objective


def _storage(value: Any) -> str | None:
    if value is None:
        return None
    storage = _text("storage", value)
    if ":" not in storage or storage == "journal:":
        raise ValueError(
            f"storage must be journal:<file> or a URL such as sqlite:///study.db or postgresql://user@host/database; "
            f"got {storage!r}"
        )
    return storage


def _count(name: str, value: Any) -> int:
    require(name, value, "an integer >= 1", lambda number: number >= 1, integer=True)
    return value


def _truth(name: str, job: Mapping[str, Any]) -> bool:
    require_choice(name, job.get(name, True), (True, False))
    return bool(job.get(name, True))


def _seconds(name: str, value: Any) -> float:
    require(name, value, "a finite number of seconds >= 0", lambda number: 0 <= number < math.inf)
    return float(value)


def _at_least(smallest: int) -> Callable[[str, str, Any], None]:
    def check(name: str, key: str, value: Any) -> None:
        allowed = f"an integer >= {smallest}"
        require(f"{name}: {key}", value, allowed, lambda number: number >= smallest, integer=True)

    return check


def _check_rerun(name: str, key: str, value: Any) -> None:
    _at_least(2 if key == "seeds" else 1)(name, key, value)  # an interval needs two


def _read(kind: type[Fields], name: str, value: Any, check: Callable[[str, str, Any], None]) -> Fields:
    """A mapping as a tuple with the same names."""
    given = _mapping(name, value)
    check_names(f"key of {name}", given, kind._fields)
    for key in kind._fields:
        if key not in given and key not in kind._field_defaults:
            raise ValueError(f"{name} must have {key!r}")
    for key, item in given.items():
        check(name, key, item)
    return kind(**given)


def _choice(name: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """A name, or a mapping of ``name`` and arguments."""
    given = _mapping(name, {"name": value} if isinstance(value, str) else value)
    if "name" not in given:
        raise ValueError(f"{name} must be a name or a mapping with a name; got {value!r}")
    chosen = given.pop("name")
    require_choice(name, chosen, names)
    return {"name": chosen, "options": given}
