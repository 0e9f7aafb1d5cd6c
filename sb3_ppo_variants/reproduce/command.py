"""``ppo-variants reproduce``: the paper's Table 1 and Figs. 1 to 5."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_ppo_variants.reproduce.places import OUTPUT

DESCRIPTION = """\
Make the paper's Table 1 and Figs. 1 to 5 anew. What has been trained stays in a folder of results, and is not trained
again: a command that is interrupted, or killed, goes on where it was, and with complete results only draws. Any number
of processes, on any machines that share the folder, may work on it at the same time."""
MODULES_TO_DRAW = ("matplotlib",)
"""what figures need for which nothing is trained"""
DRAWN = ("figure1", "figure4", "figure5")
"""those figures"""
MODULES = ("mujoco", "matplotlib", "rliable", "scipy", "filelock", "sb3_contrib")
NEEDS = 'needs the [reproduce] extra: pip install "sb3-ppo-variants[reproduce]"'
QUICK_WORKERS = 2
FAILED = 1
"""exit code if a worker did not end well"""


def main(program: str, arguments: Sequence[str]) -> int:
    """Run the command.

    :param program: its name, for the help
    :param arguments: what follows it on the command line
    :return: 0, or 1 if a worker did not end well
    :raises ValueError: for whatever is wrong with the arguments or the results
    """
    flags = vars(_parser(program).parse_args(arguments))
    needed = MODULES_TO_DRAW if flags["command"] in DRAWN else MODULES
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{program} {NEEDS}; there is no {missing[0]}")
    from sb3_ppo_variants.processes import WorkerError

    try:
        return int(_COMMANDS[flags.pop("command")](flags))
    except WorkerError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        program,
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    summaries = {
        "table1": "eleven surrogate objectives on seven tasks: scores beside the paper's, curves",
        "figure1": "one term of L^CLIP against the probability ratio",
        "figure2": "objectives between the policies before and after the first update on Hopper",
        "figure3": "clip PPO and five other algorithms on seven tasks: curves",
        "figure4": "learning curves on the humanoids, of the runs whose curves are kept with the agents",
        "figure5": "frames of a flagrun agent that reaches a flag and turns to the next",
    }
    for name, summary in summaries.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        # What is not given is left out, so that the functions' own defaults hold.
        command.add_argument(
            "-o", "--output", type=Path, metavar="FOLDER", default=OUTPUT, help="for tables and pictures (%(default)s)"
        )
        if name in ("table1", "figure3"):
            _add_training_flags(command)
        if name in ("figure4", "figure5"):
            _add_agents_flags(command, name)
        if name == "figure2":
            command.add_argument("--seeds", type=int, nargs="+", metavar="SEED", default=argparse.SUPPRESS)
    return parser


def _add_training_flags(command: argparse.ArgumentParser) -> None:
    left_out: Any = argparse.SUPPRESS
    command.add_argument("--quick", action="store_true", help="three settings, two tasks, two seeds, 50,000 timesteps")
    command.add_argument("--tasks", nargs="+", metavar="ID", default=left_out, help="(the paper's seven)")
    command.add_argument("--settings", nargs="+", metavar="NAME", default=left_out, help="(all)")
    command.add_argument("--seeds", type=int, nargs="+", metavar="SEED", default=left_out, help="(0 1 2)")
    command.add_argument("--timesteps", type=int, metavar="N", default=left_out, help="of each run (1,000,000)")
    command.add_argument("--workers", type=int, metavar="N", default=left_out, help="processes (1; with --quick 2)")
    command.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        default=left_out,
        help="of results, to read and to write (those that ship, and new ones in reproduction/results)",
    )


def _add_agents_flags(command: argparse.ArgumentParser, name: str) -> None:
    left_out: Any = argparse.SUPPRESS
    command.add_argument(
        "--agents", type=Path, metavar="FOLDER", default=left_out, help="of trained agents (those that ship)"
    )
    if name == "figure4":
        command.add_argument("--tasks", nargs="+", metavar="ID", default=left_out, help="(the three -v1)")
    else:
        command.add_argument("--task", metavar="ID", default=left_out, help="(RoboschoolHumanoidFlagrun-v1)")
        command.add_argument("--episodes", type=int, metavar="N", default=left_out, help="to search for a turn (20)")


def _with_quick(flags: dict[str, Any], quick: dict[str, Any]) -> dict[str, Any]:
    return {"workers": QUICK_WORKERS, **quick, **flags} if flags.pop("quick") else flags


def _table1(flags: dict[str, Any]) -> int:
    from sb3_ppo_variants.reproduce import table1

    table = table1.table1(**_with_quick(flags, table1.QUICK))
    print(table1.described(table))
    return _told(table.files)


def _figure1(flags: dict[str, Any]) -> int:
    from sb3_ppo_variants.reproduce.figure1 import figure1

    return _told(figure1(**flags))


def _figure2(flags: dict[str, Any]) -> int:
    from sb3_ppo_variants.reproduce import figure2

    computed, files = figure2.figure2(**flags)
    print(figure2.described(computed))
    return _told(files)


def _figure3(flags: dict[str, Any]) -> int:
    from sb3_ppo_variants.reproduce import figure3

    figure = figure3.figure3(**_with_quick(flags, figure3.QUICK))
    print(figure3.described(figure.selection, figure.rows))
    return _told(figure.files)


def _figure4(flags: dict[str, Any]) -> int:
    from sb3_ppo_variants.reproduce import figure4

    figure = figure4.figure4(**flags)
    print(figure4.described(figure))
    return _told(figure.files)


def _figure5(flags: dict[str, Any]) -> int:
    from sb3_ppo_variants.reproduce.figure5 import figure5

    turn, files = figure5(**flags)
    print(f"A flag is reached in step {turn.step} of the episode from seed {turn.seed}.")
    return _told(files)


def _told(files: Sequence[Path]) -> int:
    for path in files:
        print(f"File: {path}")
    return 0


_COMMANDS = {
    "table1": _table1,
    "figure1": _figure1,
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
}
