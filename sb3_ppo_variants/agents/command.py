"""``ppo-variants package``: a run as the folder of an agent, scored there and then."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_ppo_variants.agents.folder import AGENTS
from sb3_ppo_variants.agents.scoring import EPISODES
from sb3_ppo_variants.files import folder_name

DESCRIPTION = """\
Make the folder of a trained agent from a run: the policy as an export that runs no code, its settings, its score over
100 episodes measured on that export, its learning curve, a model card and a film. `ppo-variants enjoy --shipped FOLDER`
plays it. While it is at work nothing in the folder changes; then all of it does, or nothing.

Careful: to do so, this command opens the run's zip and vecnormalize.pkl, and these run whatever code is in them.
Package your own runs only."""


def main(program: str, arguments: Sequence[str]) -> int:
    """Run the command.

    :param program: its name, for the help
    :param arguments: what follows it on the command line
    :return: 0
    :raises ValueError: if the run cannot be packaged
    """
    parser = argparse.ArgumentParser(
        program, description=DESCRIPTION, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, help="the run's folder, <logs>/<algo>/<task>_<number>")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(AGENTS), help="folder of agents (default: %(default)s)"
    )
    parser.add_argument(
        "--recipe", help="name of the run's settings in curves (default: the recipe that ships and has them, or custom)"
    )
    parser.add_argument("--load-best", action="store_true", help="the best model of the evaluations, not the last")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of the score (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that score (default: %(default)s)")
    parser.add_argument("--no-film", action="store_true", help="write no film")
    parser.add_argument(
        "--curve-only", action="store_true", help="keep the run's learning curve alone, for reproduce figure4"
    )
    flags = parser.parse_args(arguments)
    from sb3_ppo_variants.agents import package

    if flags.curve_only:
        print(f"Curve: {package.add_curve(flags.run, flags.output, recipe=flags.recipe)}")
        return 0
    agent = package.package(
        flags.run,
        flags.output,
        recipe=flags.recipe,
        load_best=flags.load_best,
        episodes=flags.episodes,
        workers=flags.workers,
        with_film=not flags.no_film,
    )
    print(f"Agent: {agent.described()}")
    print(f"Folder: {flags.output / folder_name(agent.env_id)}")
    print(f"Next: ppo-variants enjoy|record --env {agent.env_id} --shipped {flags.output}")
    return 0
