"""What a study costs beside its trainings: a trial, and the same trainings without any study, one after another.

    python benchmarks/tuning_overhead.py [--env Pendulum-v1] [--timesteps 30000] [--rounds 5]

A trial is three seeds, which take turns in ten chunks, write resume bundles, logs and policies, and are judged by the
pruner; its study is a SQLite file with a hundred trials before it, whose parameters the sampler looks at. All
parameters that vary are such as cost no time. The plain trainings are `learn` of the same models, which
`ppo-variants train` would make, with nothing around it.

They take turns, in this process. Each line is a round; the verdict is on the median of the rounds' ratios, by CPU time
of the process, all threads included, because other programs of the machine change what a clock shows.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch as th

from sb3_ppo_variants.tuning import Job, SharedStudy, read_job, run_worker
from sb3_ppo_variants.tuning.spaces import paper_params, suggest
from sb3_ppo_variants.zoo import make_model

BAR = 0.03
"""How much of a training's time a study may cost."""
TRIALS_BEFORE = 100
ALGORITHM = "ppo_clip_paper"
BASE = {"policy": "MlpPolicy", "n_envs": 8, "n_steps": 256, "batch_size": 64}
COSTS_NO_TIME: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-3},
    "one_minus_gamma": {"low": 0.005, "high": 0.05},
    "gae_lambda": {"low": 0.9, "high": 1.0},
    "clip_range": {"low": 0.1, "high": 0.3},
    "vf_coef": {"type": "float", "low": 0.5, "high": 1.0},
    "max_grad_norm": {"type": "float", "low": 0.3, "high": 1.0},
}


class Seconds(NamedTuple):
    """What something took."""

    wall: float
    cpu: float


def timed(function: Callable[[], object]) -> Seconds:
    """Call it."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def make_job(folder: Path, env: str, timesteps: int, trials: int) -> Job:
    """A study of what costs no time, without pruning."""
    job: dict[str, Any] = {
        "name": "overhead",
        "algorithm": ALGORITHM,
        "environment": env,
        "base": BASE,
        "budget": {"trials": trials, "timesteps": timesteps},
        "pruner": {"name": "median", "n_startup_trials": 100_000},
        "folder": str(folder),
        "space": COSTS_NO_TIME,
        "whole_space": False,
    }
    return read_job(job)


def fill(job: Job) -> None:
    """Give the study trials that nobody has trained, the paper's values first."""
    shared = SharedStudy(job)
    distributions_of = optuna.create_study()
    values = paper_params(job.algorithm, job.environment, job.space)
    for index in range(TRIALS_BEFORE):
        drawn = distributions_of.ask()
        suggest(job.space, drawn)
        params = drawn.params if index else values
        shared.study.add_trial(
            optuna.create_trial(
                params=params,
                distributions=drawn.distributions,
                value=float(index % 17),
                intermediate_values={step: float(index % 17) for step in job.boundaries},
                user_attrs={} if index else {"origin": "paper"},
            )
        )


def train_plainly(job: Job, folder: Path) -> None:
    """The trainings of a trial, of the paper's values, without the study."""
    settings = job.settings(paper_params(job.algorithm, job.environment, job.space))
    for seed in job.training_seeds:
        model = make_model(job.algorithm, job.environment, settings, folder / f"seed_{seed}", seed)
        model.learn(job.budget.timesteps)
        model.env.close()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="(default: %(default)s)")
    parser.add_argument("--timesteps", type=int, default=30_000, help="of each seed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fill(make_job(folder / "study", arguments.env, arguments.timesteps, TRIALS_BEFORE))
        ratios: list[Seconds] = []
        for index in range(arguments.rounds):
            job = make_job(folder / "study", arguments.env, arguments.timesteps, TRIALS_BEFORE + 1 + index)

            def plain(job: Job = job, runs: Path = folder / f"plain_{index}") -> None:
                train_plainly(job, runs)

            def trial(job: Job = job) -> None:
                assert run_worker(job) == 1

            order = [plain, trial] if index % 2 else [trial, plain]
            seconds = {function.__name__: timed(function) for function in order}
            ratios.append(Seconds(*(seconds["trial"][clock] / seconds["plain"][clock] - 1 for clock in (0, 1))))
            print(
                f"round {index + 1}: trainings alone {seconds['plain'].cpu:6.2f} s, as a trial "
                f"{seconds['trial'].cpu:6.2f} s of CPU: {ratios[-1].cpu:+.1%} (by the clock {ratios[-1].wall:+.1%})",
                flush=True,
            )
    overhead = statistics.median(ratio.cpu for ratio in ratios)
    print(f"a study costs {overhead:+.1%} of the trainings' time, at most {BAR:.0%} wanted: ", end="")
    print("holds" if overhead <= BAR else "SHORT")


if __name__ == "__main__":
    main()
