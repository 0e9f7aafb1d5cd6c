"""Runs of the command line that can be resumed: what was asked for, kept in the run's folder as ``run.json``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sb3_ppo_variants.arguments import require, shown
from sb3_ppo_variants.files import atomic_write

RUN_FILE = "run.json"
FORMAT = "sb3-ppo-variants run"
VERSION = 1

# What may be given together with --resume: everything else belongs to the run.
RESUME_FLAGS = (
    "--until",
    "--stretch-schedules",
    "--bundle-interval",
    "--no-progress",
    "--device",
    "--num-threads",
    "-params",
)
# What is kept among the settings instead.
CONFIG_FLAG = ("-conf", "--conf-file")
SETTINGS_FLAGS = (CONFIG_FLAG, ("-params", "--hyperparams"))
PLACE_FLAGS = (
    ("-f", "--log-folder"),
    ("-tb", "--tensorboard-log"),
    ("-i", "--trained-agent"),
    ("-optim-log", "--optimization-log-path"),
    ("--storage",),
    CONFIG_FLAG,
)
LENGTH_FLAGS = (("-n", "--n-timesteps"),)
SEED_FLAG = (("--seed",),)
# Ours, of a new run alone.
START_FLAG, RECIPE_FLAG = "--start-from", "--recipe"
STATISTICS_FLAG, RESCALE_FLAG = "--start-statistics", "--start-rescaled"
OUR_RECIPE = "ours"
"""the settings that train without a flag; other recipes are folders of ``zoo_configs``"""


class RunOptions(NamedTuple):
    """Flags of ours for ``train``."""

    folder: Path | None
    """of the run to resume; None: a new run"""
    until: int | None
    stretch_schedules: bool
    bundle_interval: float | None
    settings: dict[str, Any] | None
    """of the run to resume; None: as the config says"""
    kept: list[str]
    """the arguments of which a later process makes the same run"""
    start_from: Path | None = None
    """an agent whose weights a new run begins with"""
    start_statistics: Mapping[int, tuple[float, float]] = MappingProxyType({})
    """mean and variance of components of the observation, in place of that agent's"""
    start_rescaled: bool = False
    """whether that agent's first layers follow them, so that it acts as before"""
    recipe: str | None = None
    """the shipped settings to take; None: :data:`OUR_RECIPE`, or what ``--conf-file`` names"""


class Run(NamedTuple):
    """What a ``run.json`` tells."""

    arguments: list[str]
    settings: dict[str, Any] | None


def read_options(program: str, arguments: Sequence[str]) -> tuple[RunOptions, list[str]]:
    """Take our flags out of the arguments of ``train``; with ``--resume``, put in those that the run began with.

    :return: the flags, and all arguments for rl_zoo3
    :raises ValueError: for a flag outside its range, a run that cannot be resumed, or a flag that is the run's
    """
    parser = argparse.ArgumentParser(program, parents=[_flags_of_beginnings()], add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--until", type=int)
    parser.add_argument("--stretch-schedules", action="store_true")
    parser.add_argument("--bundle-interval", type=float)
    flags, rest = parser.parse_known_args(list(arguments))
    require("--until", flags.until, "an integer >= 1", lambda value: value >= 1, integer=True, optional=True)
    allowed = "a number of seconds >= 0"
    require("--bundle-interval", flags.bundle_interval, allowed, lambda value: 0 <= value < 1e9, optional=True)
    if flags.recipe is not None and len(without_flags([CONFIG_FLAG], rest)) < len(rest):
        raise ValueError(f"{RECIPE_FLAG} and --conf-file both name a file of settings: give one of them")
    begun = [] if flags.start_from is None else [START_FLAG, str(flags.start_from.absolute())]
    begun += _statistics_flags(flags)
    begun += [] if flags.recipe is None else [RECIPE_FLAG, flags.recipe]
    settings, kept = None, [*rest, *begun]
    if flags.resume is not None:
        _require_resume_flags(program, [*begun, *rest])
        run = read_run(flags.resume)
        settings, kept = run.settings, run.arguments
        flags_of_run, rest_of_run = parser.parse_known_args(kept)
        flags.start_from, flags.recipe = flags_of_run.start_from, flags_of_run.recipe
        flags.start_statistics, flags.start_rescaled = flags_of_run.start_statistics, flags_of_run.start_rescaled
        rest = rest_of_run + rest
    elif flags.until is not None or flags.stretch_schedules:
        flag = "--until" if flags.until is not None else "--stretch-schedules"
        raise ValueError(f"{flag} goes with --resume; a new run's length is -n")
    if flags.until is not None:
        length = ["-n", str(flags.until)]
        kept, rest = without_flags(LENGTH_FLAGS, kept) + length, rest + length
    if flags.start_statistics and flags.start_from is None:
        raise ValueError(f"{STATISTICS_FLAG} goes with {START_FLAG}, whose statistics it replaces")
    if flags.start_rescaled and not flags.start_statistics:
        raise ValueError(f"{RESCALE_FLAG} goes with {STATISTICS_FLAG}, which the weights follow")
    options = RunOptions(
        flags.resume,
        flags.until,
        flags.stretch_schedules,
        flags.bundle_interval,
        settings,
        kept,
        flags.start_from,
        _read_statistics(flags.start_statistics),
        flags.start_rescaled,
        flags.recipe,
    )
    return options, rest


def _flags_of_beginnings() -> argparse.ArgumentParser:
    """The flags of ours that are a new run's alone."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(START_FLAG, type=Path)
    parser.add_argument(STATISTICS_FLAG, nargs="+", default=[])
    parser.add_argument(RESCALE_FLAG, action="store_true")
    parser.add_argument(RECIPE_FLAG)
    return parser


def _statistics_flags(flags: argparse.Namespace) -> list[str]:
    """The arguments that tell what a run did with the statistics of the agent that it began with."""
    statistics = [STATISTICS_FLAG, *flags.start_statistics] if flags.start_statistics else []
    return statistics + ([RESCALE_FLAG] if flags.start_rescaled else [])


def _read_statistics(values: Sequence[str]) -> dict[int, tuple[float, float]]:
    """Components of an observation and their statistics, as the command line has them.

    :raises ValueError: for one that is not ``INDEX:MEAN:VARIANCE``, or twice the same index
    """
    read: dict[int, tuple[float, float]] = {}
    for value in values:
        try:
            index, mean, variance = value.split(":")
            component, statistics = int(index), (float(mean), float(variance))
        except ValueError:
            raise ValueError(f"{STATISTICS_FLAG} must be INDEX:MEAN:VARIANCE ...; got {shown(value)}") from None
        if component in read or not (math.isfinite(statistics[0]) and 0 < statistics[1] < math.inf):
            allowed = "each index once, with a finite mean and a variance > 0"
            raise ValueError(f"{STATISTICS_FLAG} must have {allowed}; got {' '.join(values)}")
        read[component] = statistics
    return read


def begun_with(arguments: Sequence[str]) -> tuple[str, Path | None]:
    """The recipe that a run began with, and the agent whose weights it began with or None, by its arguments."""
    flags, _ = _flags_of_beginnings().parse_known_args(list(arguments))
    return flags.recipe or OUR_RECIPE, flags.start_from


def modules_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The modules that register a run's task, by its arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("--env", default="")
    flags, _ = parser.parse_known_args(list(arguments))
    module = flags.env.rpartition(":")[0]
    return (*flags.gym_packages, *([module] if module else []))


def without_places(arguments: Sequence[str]) -> list[str]:
    """A run's arguments without where things lie on its machine: an agent that it began with by its name alone."""
    begun = start_flags(arguments)
    return [*without_flags([*PLACE_FLAGS, (START_FLAG,), (STATISTICS_FLAG,), (RESCALE_FLAG,)], arguments), *begun]


def start_flags(arguments: Sequence[str]) -> list[str]:
    """Those of a run's arguments that tell the agent that it began with, by its name alone."""
    flags, _ = _flags_of_beginnings().parse_known_args(list(arguments))
    if flags.start_from is None:
        return []
    return [START_FLAG, flags.start_from.name, *_statistics_flags(flags)]


def _require_resume_flags(program: str, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--num-threads")
    parser.add_argument("-params", "--hyperparams", nargs="+")
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(
            f"{unknown[0]} cannot be given with --resume: the run goes on as it began. Allowed: "
            f"{', '.join(RESUME_FLAGS)}"
        )


def read_run(folder: Path) -> Run:
    """What a run's folder tells of how it began.

    :raises ValueError: if it is no such folder
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise ValueError(f"--resume must name the folder of a run, which has a {RUN_FILE}; got {folder}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} is none of a {FORMAT}, version {VERSION}")
    arguments, settings = content.get("arguments"), content.get("settings")
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError(f"'arguments' in {path} must be a list of strings; got {arguments!r}")
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"'settings' in {path} must be a mapping or null; got {settings!r}")
    return Run(arguments, settings)


def write_run(folder: Path, options: RunOptions, seed: int, settings: Mapping[str, Any]) -> None:
    """Keep what a later process needs to make the same run: settings too, as configs change.

    Settings of a config in Python that JSON does not have are read from that config again.

    :param seed: of the run; it may have been drawn
    """
    arguments = list(options.kept)
    if options.folder is None:
        arguments = [*without_flags(SEED_FLAG, arguments), "--seed", str(seed)]
    kept: dict[str, Any] | None = dict(settings)
    try:
        json.dumps(kept)
    except (TypeError, ValueError):
        kept = None
    content = {
        "format": FORMAT,
        "version": VERSION,
        "arguments": arguments if kept is None else without_flags(SETTINGS_FLAGS, arguments),
        "settings": kept,
    }
    atomic_write(folder / RUN_FILE, json.dumps(content, indent=2).encode())


def without_flags(flags: Sequence[Sequence[str]], arguments: Sequence[str]) -> list[str]:
    """The arguments without some flags and their values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in flags:
        parser.add_argument(*names, nargs="*", dest=names[0])
    return parser.parse_known_args(list(arguments))[1]
