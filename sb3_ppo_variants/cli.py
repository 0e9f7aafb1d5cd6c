"""The ``ppo-variants`` command: train, watch, film and plot through rl_zoo3, list what there is, run the demo."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS, zoo
from sb3_ppo_variants.agents.folder import Agent, find_agent, list_agents, require_agent, told_of
from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.files import folder_name
from sb3_ppo_variants.resume.names import BundleError
from sb3_ppo_variants.runs import RunOptions, read_options, without_flags

PROGRAM = "ppo-variants"
DEFAULT_ALGO = "ppo_clip_paper"
DEFAULT_ENV = "CartPole-v1"
DEFAULT_FOLDER = "logs"
FILMS_OF_AGENTS = "videos"
"""where ``record`` writes films of agents that are no run's"""

# The modules of the [zoo] extra that rl_zoo3's scripts and the demo import, some only when they are half done.
DEMO_MODULES = ("matplotlib", "imageio", "imageio_ffmpeg", "tqdm")
ZOO_MODULES = (
    "rl_zoo3",
    "pygame",
    "seaborn",
    "sb3_contrib",
    "requests",
    "yaml",
    "tensorboard",
    "tqdm",
    "rich",
    "moviepy",
    "matplotlib",
)

# Exit codes: argparse's for wrong usage, the shell's for an interrupt.
DIVERGED = 1
WRONG_USAGE = 2
INTERRUPTED = 130

# A curve is smoothed over this many episodes (rl_zoo3's choice), or over a tenth of them in a short run.
CURVE_WINDOW = 100


class Request(NamedTuple):
    """What the command line asks for: the few flags we look at, and all of them for rl_zoo3's own parser."""

    command: str
    algo: str
    env: str
    folder: Path
    flags: argparse.Namespace
    arguments: list[str]
    options: RunOptions | None = None
    """of ``train``"""

    @property
    def program(self) -> str:
        return f"{PROGRAM} {self.command}"


class Command(NamedTuple):
    """A subcommand that runs one of rl_zoo3's scripts."""

    summary: str
    run: Callable[[Request], None]
    folder_flag: str
    ours: str
    """What differs from rl_zoo3's own help, for ``-h``."""


# ------------------------------------------------------------------ commands that run rl_zoo3


def train(request: Request) -> None:
    """Train, with a progress bar and TensorBoard logs unless told otherwise."""
    # Defaults come first: of two values for a flag, argparse takes the last.
    # Networks this small gain nothing from several torch threads, which lose badly where cores are shared.
    arguments = ["--algo", DEFAULT_ALGO, "--num-threads", "1"]
    if not request.flags.no_progress:
        arguments.append("--progress")
    if not request.flags.optimize_hyperparameters:  # a search writes none, and rl_zoo3 warns
        arguments += ["--tensorboard-log", str(request.folder / "tb")]
    arguments += [item for item in request.arguments if item != "--no-progress"]
    zoo.train(request.program, arguments, request.options)
    if not request.flags.optimize_hyperparameters:
        folder = "" if request.folder == Path(DEFAULT_FOLDER) else f" -f {request.folder}"
        modules = request.flags.gym_packages
        packages = f" --gym-packages {' '.join(modules)}" if modules else ""
        task = f"--env {request.flags.env_as_given}{packages}"
        print(f"Next: {PROGRAM} enjoy|record|plot --algo {request.algo} {task}{folder}")


def enjoy(request: Request) -> None:
    """Run a trained agent; without a display, only its scores."""
    agent = _agent_to_play(request)
    arguments = ["--algo", DEFAULT_ALGO, "-f", DEFAULT_FOLDER]
    if not _has_display():
        print(f"No display: scores only. `{PROGRAM} record` makes a film.")
        arguments.append("--no-render")
    with _playing(agent, request) as own:
        zoo.enjoy(request.program, arguments + own)


@contextmanager
def _playing(agent: Agent | None, request: Request) -> Iterator[list[str]]:
    """Have rl_zoo3's scripts play an agent of a folder of agents; None: that of a run.

    :return: the arguments for them
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--shipped", nargs="?")
    _, arguments = parser.parse_known_args(request.arguments)
    if agent is None:
        yield arguments
        return
    print(f"Playing {agent.described()} ({agent.folder})")
    exported = zoo.Exported(agent.folder, agent.algo, agent.env_id, agent.env_kwargs, agent.wrapping)
    with zoo.playing(exported):
        yield [*arguments, "--algo", agent.algo]


def _agent_to_play(request: Request) -> Agent | None:
    """The agent of a folder of agents; None: a run's.

    Where nothing says which run, and there is none, it is the agent that ships.

    :raises ValueError: if there is no agent either
    """
    flags = request.flags
    if {"-h", "--help"} & set(request.arguments):
        return None
    if flags.shipped is not None:
        return require_agent(request.env, Path(flags.shipped) if flags.shipped else None)
    # Who names a folder, a run or one of its models means that run.
    means_a_run = request.folder != Path(DEFAULT_FOLDER) or flags.exp_id is not None or flags.model_of_run
    if means_a_run or any((request.folder / request.algo).glob(f"{folder_name(request.env)}_*")):
        return None
    none = f"No model found for {request.algo} on {request.env}: there is no run of it in {request.folder}"
    agent = find_agent(request.env)
    if agent is None or flags.algo not in (None, agent.algo):
        raise ValueError(f"{none}, and none ships: {told_of()}")
    print(f"No run of {request.algo} on {request.env} in {request.folder}: an agent that ships plays.")
    return agent


def record(request: Request) -> None:
    """Film a trained agent, without a display too."""
    _render_without_display()
    agent = _agent_to_play(request)
    # The film takes its own frames; `--no-render` spares rendering each one twice.
    arguments = ["--algo", DEFAULT_ALGO, "-f", DEFAULT_FOLDER, "--no-render"]
    folder = request.flags.output or request.folder / request.algo
    if agent is not None and request.flags.output is None:  # which is no run, and has no folder of films
        folder = FILMS_OF_AGENTS
        arguments += ["-o", folder]
    with _playing(agent, request) as own:
        zoo.record(request.program, arguments + own)
    films = sorted(Path(folder).rglob("*.mp4"), key=lambda film: film.stat().st_mtime)
    print(f"Film: {films[-1]}" if films else f"No film was written to {folder}")


def _render_without_display() -> None:
    if not _has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # gymnasium's classic control
        os.environ.setdefault("MUJOCO_GL", "egl")


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def plot(request: Request) -> None:
    """Draw the training curves of all runs of an algorithm on a task into one PNG."""
    name = folder_name(request.env)
    runs = [path for path in (request.folder / request.algo).glob(f"{name}_*") if path.is_dir()]
    episodes = [count for count in map(_count_episodes, runs) if count > 0]
    if not episodes:
        raise ValueError(f"no finished episode of {request.algo} on {request.env} in {request.folder}")
    picture = Path(request.flags.output or request.folder / request.algo / f"{name}_curve.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    window = max(1, min(CURVE_WINDOW, max(episodes) // 10))
    arguments = ["--algo", DEFAULT_ALGO, "--env", DEFAULT_ENV, "-f", DEFAULT_FOLDER, "-w", str(window)]
    # rl_zoo3's plot does not know our -o, and looks for a task in names of folders.
    arguments += without_flags([("-o", "--output")], request.arguments)
    zoo.plot(request.program, [*arguments, "--env", *map(folder_name, request.flags.env)], picture)
    print(f"Curve: {picture} ({len(episodes)} run{'s' if len(episodes) > 1 else ''})")


def _count_episodes(run: Path) -> int:
    """Episodes in a run's monitor files, each of which begins with two lines of header."""
    return sum(len(path.read_text().splitlines()) - 2 for path in run.glob("*monitor.csv"))


# For the help of the commands that open somebody's run.
SHIPPED = (
    "--shipped [FOLDER] plays the agent that ships for the task, or one of a folder that `package` made; so it is\n"
    "without, where logs has no run of the task.\n"
)
BEST = "--load-best also takes the normaliser of the best model's time, where the run has kept it.\n"
TRUST = (
    "A run's YAML is read as data; its zip and vecnormalize.pkl are unpickled, which runs what code they hold, and\n"
    "env_wrapper and vec_env_wrapper are imported by their names: open runs of people you trust."
)

COMMANDS = {
    "train": Command(
        "train an algorithm on a task",
        train,
        "--log-folder",
        "Settings come from our zoo_configs (see `ppo-variants list`); --algo ppo_clip_paper, --progress,\n"
        "--num-threads 1 and --tensorboard-log <log folder>/tb are the defaults; --no-progress shows no bar.\n"
        "YAML and -params are read as data. What callback, env_wrapper, vec_env_wrapper and a dotted policy name is\n"
        "imported, and a --conf-file in Python runs.\n\n"
        "A run of our algorithms keeps resume bundles in <run>/bundles, one a minute (--bundle-interval SECONDS):\n"
        "  --resume RUN          go on with the run in this folder as if nothing had happened\n"
        "  --until N             … and on to N timesteps; its schedules stay as they were\n"
        "  --stretch-schedules   … and run over the new number of timesteps\n\n"
        "--recipe NAME takes other settings of zoo_configs: `paper` has the paper's Table 4 as written.\n"
        "--start-from AGENT begins a run with the weights and the normaliser of an exported or a shipped agent.\n"
        "  --start-statistics INDEX:MEAN:VARIANCE ...\n"
        "                        … but for these components of the observation, which vary more on the new task\n"
        "  --start-rescaled      … with weights that follow them, so that the agent acts as before",
    ),
    "enjoy": Command(
        "run a trained agent and print its scores",
        enjoy,
        "--folder",
        f"--algo ppo_clip_paper and -f logs are the defaults; without a display, so is --no-render.\n"
        f"{BEST}{SHIPPED}{TRUST}",
    ),
    "record": Command(
        "film a trained agent",
        record,
        "--folder",
        f"--algo ppo_clip_paper and -f logs are the defaults.\n{BEST}{SHIPPED}{TRUST}",
    ),
    "plot": Command(
        "draw training curves into a PNG",
        plot,
        "--exp-folder",
        "--algo ppo_clip_paper, --env CartPole-v1 and -f logs are the defaults; -o names the PNG.",
    ),
}

# ------------------------------------------------------------------ commands of our own


def show_list() -> None:
    """Print the algorithms, tasks and configs; needs no extra."""
    print("Algorithms (--algo), besides others of rl_zoo3's own")
    print(_table([(name, source, _description(name)) for name, source in {**ALGORITHMS, **zoo.PEERS}.items()]))
    print("\nTasks (--env), besides every other task that gymnasium knows")
    print(_table([_task_row(spec) for spec in gym.registry.values() if _is_ours(spec)]))
    print("\nConfigs: algorithm and the tasks it has settings for")
    print(_table([(name, ", ".join(zoo.configured_tasks(name))) for name in (*ALGORITHMS, *zoo.PEERS)]))
    print("  (default: any other task; atari: any other Atari game; else rl_zoo3's own)")
    print("\nOther recipes (`train --recipe NAME`): name, algorithm and the tasks it has settings for")
    recipes = [(recipe, algo) for algo in ALGORITHMS for recipe in zoo.recipes_of(algo)[1:]]
    print(_table([(recipe, algo, ", ".join(zoo.configured_tasks(algo, recipe))) for recipe, algo in recipes]))
    print(f"  in {zoo.data_folder('zoo_configs')}")
    print("\nTrained agents that ship (`enjoy --env ID --shipped`)")
    print(_table([_agent_row(agent) for agent in list_agents()] or [("none yet",)]))


def _description(algo: str) -> str:
    """The first line of the algorithm's config, a comment: reading the class would load torch."""
    return zoo.config_text(algo).partition("\n")[0].lstrip("# ")


def _is_ours(spec: gym.envs.registration.EnvSpec) -> bool:
    return str(spec.entry_point).startswith(f"{sb3_ppo_variants.__name__}.")


def _task_row(spec: gym.envs.registration.EnvSpec) -> tuple[str, ...]:
    solved = "" if spec.reward_threshold is None else f"solved at {spec.reward_threshold:g}"
    return spec.id, f"{spec.max_episode_steps} steps", solved


def _agent_row(agent: Agent) -> tuple[str, ...]:
    return agent.env_id, agent.algo, f"mean return {agent.score['mean']:.0f} ± {agent.score['std']:.0f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in padded)


def demo(argv: list[str]) -> int:
    """Run the walk-through: train, evaluate, plot and film the humanoid."""
    from sb3_ppo_variants.demo import main as run_demo

    return run_demo(argv)


def export(arguments: list[str]) -> int:
    """Export a trained run as files that run no code; opens its zip and pickle, which do."""
    from sb3_ppo_variants.export_command import main as run_export

    return run_export(f"{PROGRAM} export", arguments, DEFAULT_ALGO, DEFAULT_ENV, DEFAULT_FOLDER)


def package(arguments: list[str]) -> int:
    """Make an agent's folder from a trained run; opens its zip and pickle."""
    from sb3_ppo_variants.agents.command import main as run_package

    _render_without_display()
    return run_package(f"{PROGRAM} package", arguments)


def push_to_hub(arguments: list[str]) -> int:
    """Upload a trained run to the Hugging Face Hub by rl_zoo3's own script."""
    _render_without_display()
    zoo.push_to_hub(f"{PROGRAM} push-to-hub", arguments)
    return 0


def tune(arguments: list[str]) -> int:
    """Search for settings with optuna, as a job's file says."""
    from sb3_ppo_variants.tuning.command import main as run_tune

    return run_tune(f"{PROGRAM} tune", arguments)


def reproduce(arguments: list[str]) -> int:
    """Make tables and figures of the paper anew."""
    from sb3_ppo_variants.reproduce.command import main as run_reproduce

    return run_reproduce(f"{PROGRAM} reproduce", arguments)


# ------------------------------------------------------------------ the command line

SUMMARIES = {
    **{name: command.summary for name, command in COMMANDS.items()},
    "export": "export a trained agent as files that run no code (opens its zip, which does)",
    "package": "make a trained run the folder of an agent: exported, scored, filmed (opens its zip)",
    "push-to-hub": "upload a trained run to the Hugging Face Hub, by rl_zoo3's own script",
    "tune": "search for settings with optuna, in any number of processes",
    "reproduce": "make the paper's Table 1 and Figs. 1 to 5 anew",
    "list": "show algorithms, tasks and configs",
    "demo": "train, evaluate, plot and film the humanoid in a few minutes",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    :param argv: the arguments after the program's name; None: those of the process
    :return: 0, or 1 for a training that diverged, 2 for wrong usage, 130 after Ctrl-C
    """
    argv = sys.argv[1:] if argv is None else argv
    command, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        print(f"{PROGRAM} {sb3_ppo_variants.__version__}")
        return 0
    try:
        return _dispatch(command, arguments)
    except KeyboardInterrupt:
        print(f"{PROGRAM} {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not is_users_mistake(error):
            raise
        print(f"{PROGRAM} {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return DIVERGED if isinstance(error, FloatingPointError) else WRONG_USAGE


def _help() -> str:
    commands = _table(list(SUMMARIES.items()))
    return (
        f"usage: {PROGRAM} <command> [flags]\n\n{sb3_ppo_variants.__doc__.splitlines()[0]}\n\n"
        f"commands:\n{commands}\n\n`{PROGRAM} <command> -h` shows the flags of a command; --version the version.\n\n"
        f"example: {PROGRAM} train --algo {DEFAULT_ALGO} --env {DEFAULT_ENV} -n 20000"
    )


def _dispatch(command: str, arguments: list[str]) -> int:
    zoo.check_names("command", [command], SUMMARIES)
    if command == "list":
        argparse.ArgumentParser(f"{PROGRAM} list", description=SUMMARIES["list"]).parse_args(arguments)
        show_list()
        return 0
    if command in ("export", "reproduce"):
        return {"export": export, "reproduce": reproduce}[command](arguments)
    if any(_is_missing(module) for module in (DEMO_MODULES if command == "demo" else ZOO_MODULES)):
        print(f'{PROGRAM} {command} needs the [zoo] extra: pip install "sb3-ppo-variants[zoo]"', file=sys.stderr)
        return WRONG_USAGE
    if command in ("demo", "package", "tune"):
        return {"demo": demo, "package": package, "tune": tune}[command](arguments)
    zoo.register()
    if command == "push-to-hub":
        return push_to_hub(arguments)
    options = None
    if command == "train":
        options, arguments = read_options(f"{PROGRAM} train", arguments)
    request = read_request(command, arguments)._replace(options=options)
    if {"-h", "--help"} & set(arguments):
        print(f"{COMMANDS[command].ours}\nAll else is rl_zoo3's:\n")
    else:
        zoo.check_names("algorithm", [request.algo], zoo.algorithm_names())
        zoo.check_names("task", request.flags.env, gym.registry, list_allowed=False)
    COMMANDS[command].run(request)
    return 0


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # of the package that it would be in; of a name that can be no module's
        return True


def read_request(command: str, arguments: list[str]) -> Request:
    """Read the few flags that we need to know, and import the user's own task packages."""
    parser = argparse.ArgumentParser(f"{PROGRAM} {command}", add_help=False, allow_abbrev=False)
    short = ("-a", "-e") if command == "plot" else ()
    parser.add_argument("--algo", *short[:1])
    parser.add_argument("--env", *short[1:], default=[DEFAULT_ENV], nargs="+")
    parser.add_argument("-f", COMMANDS[command].folder_flag, dest="folder", default=DEFAULT_FOLDER, type=Path)
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("-o", "--output-folder", "--output", dest="output")
    parser.add_argument("-n", "--n-timesteps", type=int)
    parser.add_argument("--shipped", nargs="?", const="")
    parser.add_argument("--exp-id", type=int)
    for flag in ("--load-best", "--load-last-checkpoint"):
        parser.add_argument(flag, action="store_true", dest="model_of_run")
    parser.add_argument("--load-checkpoint", dest="model_of_run")
    flags, _ = parser.parse_known_args(arguments)
    if flags.n_timesteps is not None and flags.n_timesteps != -1:  # -1: what the settings say
        require("--n-timesteps", flags.n_timesteps, "an integer >= 1", lambda value: value >= 1, integer=True)
    _import_packages("--gym-packages", flags.gym_packages)
    if command in ("record", "plot"):  # of which rl_zoo3's know no such flag
        arguments = without_flags([("--gym-packages",)], arguments)
    flags.env_as_given = flags.env[0]
    # As gymnasium.make, module:id; rl_zoo3 looks for the id alone.
    _import_packages("--env", [module for env in flags.env if (module := env.rpartition(":")[0])])
    if any(":" in env for env in flags.env):
        flags.env = [env.rpartition(":")[2] for env in flags.env]
        arguments = [*arguments, "--env", *flags.env]
    return Request(command, flags.algo or DEFAULT_ALGO, flags.env[0], flags.folder, flags, arguments)


def _import_packages(flag: str, names: Sequence[str]) -> None:
    """Import what registers the user's own tasks.

    :raises ValueError: if there is no such module
    """
    for name in names:
        if _is_missing(name):
            raise ValueError(f"{flag}: there is no module {name} that can be imported")
        importlib.import_module(name)


def is_users_mistake(error: Exception) -> bool:
    """Whether an error is somebody's deliberate word about an argument, to be shown without a traceback.

    That is: raised by a ``raise`` or ``assert`` with a message, before the training began. What fails by
    itself, or later, is a bug and keeps its traceback; a training that diverged is neither, and says so.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not str(error) or not (frames[-1].line or "").startswith(("raise ", "assert ")):
        return False
    if isinstance(error, (FloatingPointError, BundleError)):
        return True
    about_arguments = isinstance(error, (ValueError, TypeError, AssertionError, gym.error.Error))
    return about_arguments and all(frame.name != "learn" for frame in frames)


if __name__ == "__main__":
    sys.exit(main())
