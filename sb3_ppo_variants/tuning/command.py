"""``ppo-variants tune``: run a study, look at it, take its best."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.tuning.job import Job, jobs_that_ship, load_job

DESCRIPTION = """\
Search for the settings of an algorithm on a task, as a job's file says. FILE is a YAML file, or the name of a job
that ships. Any number of `tune run`, on any machines that reach the job's storage, work on the same study; one that
is interrupted, or killed, leaves its trial to the others, or to the next `tune run`."""
MODULES = ("optuna", "sqlalchemy")
NEEDS = 'needs the [tune] extra: pip install "sb3-ppo-variants[tune]"'


def main(program: str, arguments: Sequence[str]) -> int:
    """Run the command.

    :param program: its name, for the help
    :param arguments: what follows it on the command line
    :return: 0, or the exit code of a worker that failed
    :raises ValueError: for whatever is wrong with the job, its study or its storage
    """
    flags = _parser(program).parse_args(arguments)
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{program} {NEEDS}; there is no {missing[0]}")
    job = load_job(flags.file)
    return _COMMANDS[flags.command](job, flags)


def _parser(program: str) -> argparse.ArgumentParser:
    jobs = f"jobs that ship: {', '.join(jobs_that_ship())}"
    parser = argparse.ArgumentParser(
        program,
        description=DESCRIPTION,
        epilog=jobs,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run trials until the budget is used up", epilog=jobs)
    run.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    run.add_argument("--worker-name", metavar="NAME", help="what the sampler's seed comes from (default: drawn)")
    commands.add_parser("status", help="how many trials are in which state, and the best so far")
    best = commands.add_parser("best", help="train the best again on fresh seeds, and name the best of them")
    best.add_argument("--export", type=Path, metavar="FILE.yml", help="write its settings, in the form of zoo_configs")
    best.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    plot = commands.add_parser("plot", help="history, importances, slices and parallel coordinates")
    plot.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="(default: plots, in the study's folder)")
    dashboard = commands.add_parser("dashboard", help="show the study in the browser, as it goes on")
    dashboard.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)"
    )
    dashboard.add_argument("--port", type=int, default=8080, metavar="N", help="0: one that is free (default: 8080)")
    for command in commands.choices.values():
        command.add_argument("file", metavar="FILE", help="a job: a YAML file, or the name of one that ships")
    return parser


def _run(job: Job, flags: argparse.Namespace) -> int:
    from sb3_ppo_variants.tuning import describe_status, run_workers, status

    _require_workers(flags)
    code = run_workers(job, flags.workers, flags.worker_name)
    print(describe_status(job, status(job)))
    return code


def _require_workers(flags: argparse.Namespace) -> None:
    require("--workers", flags.workers, "an integer >= 1", lambda value: value >= 1, integer=True)


def _status(job: Job, _flags: argparse.Namespace) -> int:
    from sb3_ppo_variants.tuning import describe_status, status

    print(describe_status(job, status(job)))
    return 0


def _best(job: Job, flags: argparse.Namespace) -> int:
    from sb3_ppo_variants.processes import FAILED, WorkerError
    from sb3_ppo_variants.tuning import best, describe_best, export
    from sb3_ppo_variants.tuning.results import require_new_file

    _require_workers(flags)
    if flags.export is not None:
        require_new_file(flags.export)  # before the trainings
    try:
        rated = best(job, flags.workers)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return FAILED
    print(describe_best(job, rated))
    if flags.export is not None:
        print(f"Config: {export(job, rated[0], flags.export)}")
    return 0


def _plot(job: Job, flags: argparse.Namespace) -> int:
    from sb3_ppo_variants.tuning import plot

    for path in plot(job, flags.output or job.folder / "plots"):
        print(f"Figure: {path}")
    return 0


def _dashboard(job: Job, flags: argparse.Namespace) -> int:
    from sb3_ppo_variants.tuning import serve_dashboard

    serve_dashboard(job, flags.host, flags.port)
    return 0


_COMMANDS = {"run": _run, "status": _status, "best": _best, "plot": _plot, "dashboard": _dashboard}
