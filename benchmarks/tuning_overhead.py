"""What a study costs beside its trainings: a trial, and the same trainings without any study.

    python benchmarks/tuning_overhead.py [--env Pendulum-v1] [--timesteps 30000] [--rounds 3]

A trial is three seeds, which take turns in ten chunks, write resume bundles, logs and policies, and are judged by the
pruner; its study is a SQLite file with a hundred trials before it, whose parameters the sampler looks at. All
parameters that vary are such as cost no time. The plain trainings are `learn` of the same models, which
`ppo-variants train` would make, with nothing around it.

Both are done at once, in this process, and take turns from rollout to rollout, so that both have the same share of what
other programs do to the machine. What is counted is CPU time of the process, all its threads included. Each line is a
round; the verdict is on all of them.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch as th

from sb3_ppo_variants.tuning import Job, SharedStudy, read_job, run_worker
from sb3_ppo_variants.tuning.spaces import paper_params, suggest
from sb3_ppo_variants.tuning.training import SeedTraining
from sb3_ppo_variants.zoo import make_model

BAR = 0.03
"""How much of a training's time a study may cost."""
TRIALS_BEFORE = 100
PLAIN, TRIAL = "plain", "trial"
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


class Baton:
    """Lets two threads work by turns, and counts the CPU time that each of them takes."""

    def __init__(self, first: str, second: str):
        self.seconds = {first: 0.0, second: 0.0}
        self._other = {first: second, second: first}
        self.errors: list[BaseException] = []
        self._ended: set[str] = set()
        self._holder, self._since = first, time.process_time()
        self._passed = threading.Condition()

    def _pass_on(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] += now - self._since
        self._since = now
        if self._other[name] not in self._ended:
            self._holder = self._other[name]
            self._passed.notify_all()

    def change(self, name: str) -> None:
        """Called by the one who works: the other goes on, until it calls this in its turn or has ended."""
        with self._passed:
            self._pass_on(name)
            self._passed.wait_for(lambda: self._holder == name)

    def run(self, name: str, function: Callable[[], object]) -> None:
        """Work, when it is this one's turn."""
        with self._passed:
            self._passed.wait_for(lambda: self._holder == name)
        try:
            function()
        except BaseException as error:
            self.errors.append(error)
        finally:
            with self._passed:
                self._ended.add(name)
                self._pass_on(name)


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


def changing(model: Any, baton: Baton, name: str) -> Any:
    """A model that changes turns before each rollout."""

    class Changing(type(model)):  # type: ignore[misc]  # an attribute of the model would be saved with it
        def collect_rollouts(self, *arguments: Any, **keywords: Any) -> bool:
            baton.change(name)
            return bool(super().collect_rollouts(*arguments, **keywords))

    model.__class__ = Changing
    return model


def train_plainly(job: Job, folder: Path, baton: Baton) -> None:
    """The trainings of a trial, of the paper's values, without the study."""
    settings = job.settings(paper_params(job.algorithm, job.environment, job.space))
    for seed in job.training_seeds:
        model = make_model(job.algorithm, job.environment, settings, folder / f"seed_{seed}", seed)
        changing(model, baton, PLAIN).learn(job.budget.timesteps)
        model.env.close()


def run_trial(job: Job, baton: Baton) -> None:
    """A trial of the study, as a worker runs it."""

    def make(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> SeedTraining:
        def make_changing() -> Any:
            return changing(make_model(job.algorithm, job.environment, settings, folder, seed), baton, TRIAL)

        return SeedTraining(make_changing, folder, job.budget.timesteps, job.bundle_interval)

    if run_worker(job, make=make) != 1:
        raise RuntimeError("the trial was not this worker's to the end")


def measure(job: Job, folder: Path) -> dict[str, float]:
    """Seconds of CPU of the trainings alone, and of the trial."""
    baton = Baton(PLAIN, TRIAL)
    threads = [
        threading.Thread(target=baton.run, args=(PLAIN, lambda: train_plainly(job, folder, baton))),
        threading.Thread(target=baton.run, args=(TRIAL, lambda: run_trial(job, baton))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in baton.errors:
        raise error
    return baton.seconds


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="(default: %(default)s)")
    parser.add_argument("--timesteps", type=int, default=30_000, help="of each seed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fill(make_job(folder / "study", arguments.env, arguments.timesteps, TRIALS_BEFORE))
        totals = {PLAIN: 0.0, TRIAL: 0.0}
        for index in range(arguments.rounds):
            job = make_job(folder / "study", arguments.env, arguments.timesteps, TRIALS_BEFORE + 1 + index)
            seconds = measure(job, folder / f"plain_{index}")
            totals = {name: totals[name] + seconds[name] for name in totals}
            print(
                f"round {index + 1}: trainings alone {seconds[PLAIN]:6.2f} s of CPU, "
                f"as a trial {seconds[TRIAL]:6.2f} s: {seconds[TRIAL] / seconds[PLAIN] - 1:+.1%}",
                flush=True,
            )
    overhead = totals[TRIAL] / totals[PLAIN] - 1
    print(f"a study costs {overhead:+.1%} of the trainings' time, at most {BAR:.0%} wanted: ", end="")
    print("holds" if overhead <= BAR else "SHORT")


if __name__ == "__main__":
    main()
