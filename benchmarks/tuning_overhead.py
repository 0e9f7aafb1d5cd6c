"""What a study costs beside its trainings, and what it saves to train a trial's seeds as one stack.

    python benchmarks/tuning_overhead.py [--env Pendulum-v1] [--seeds 3] [--timesteps 30000] [--rounds 3]

Four things are done with the same models, settings and seeds, which `ppo-variants train` would make:

    alone           `learn` of one seed after another, with nothing around it
    together        the seeds as one stack, as in `train_many`, with nothing around it
    trial by turns  a trial of a study, whose seeds take turns: what is done where they cannot be stacked
    trial           a trial of a study, whose seeds are one stack

A trial is judged by the pruner after each of ten chunks, and writes resume bundles, logs and policies; its study is a
SQLite file with a hundred trials before it, whose parameters the sampler looks at. All parameters that vary are such as
cost no time. The study's cost is what a trial takes more than the same trainings, done in the same way, without it.

All four are done at once, in this process, and take turns from iteration to iteration of all seeds, so that each has
the same share of what other programs do to the machine. What is counted is CPU time of the process, all its threads
included. Each line is a round; the verdict is on all of them.
"""

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import torch as th

from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.training import begun, close, iterations
from sb3_ppo_variants.tuning import Job, SharedStudy, read_job, run_worker
from sb3_ppo_variants.tuning.spaces import paper_params, suggest
from sb3_ppo_variants.tuning.stacked import StackedTrainings
from sb3_ppo_variants.tuning.training import SeedTraining
from sb3_ppo_variants.zoo import make_model

BAR = 0.03
"""How much of its trainings' time a study may cost."""
TRIALS_BEFORE = 100
ALONE, TOGETHER, BY_TURNS, TRIAL = WAYS = ("alone", "together", "trial by turns", "trial")
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
    """Lets threads work by turns, and counts the CPU time that each of them takes."""

    def __init__(self, names: Sequence[str]):
        self.seconds = dict.fromkeys(names, 0.0)
        self.errors: list[BaseException] = []
        self._at_work = list(names)
        self._holder, self._since = names[0], time.process_time()
        self._passed = threading.Condition()

    def _pass_on(self, name: str, ends: bool = False) -> None:
        now = time.process_time()
        self.seconds[name] += now - self._since
        self._since = now
        next_one = self._at_work[(self._at_work.index(name) + 1) % len(self._at_work)]
        if ends:
            self._at_work.remove(name)
        self._holder = next_one
        self._passed.notify_all()

    def change(self, name: str) -> None:
        """Called by the one who works: the others go on, until each has called this in its turn or has ended."""
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
                self._pass_on(name, ends=True)


def make_job(folder: Path, env: str, seeds: int, timesteps: int, trials: int) -> Job:
    """A study of what costs no time, without pruning."""
    job: dict[str, Any] = {
        "name": "overhead",
        "algorithm": ALGORITHM,
        "environment": env,
        "base": BASE,
        "budget": {"trials": trials, "timesteps": timesteps},
        "seeds": seeds,
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


def changing(model: Any, baton: Baton, name: str, rollouts: Iterator[int], every: int) -> Any:
    """A model that changes turns before each rollout whose number, among those of all seeds, ``every`` divides."""

    class Changing(type(model)):  # type: ignore[misc]  # an attribute of the model would be saved with it
        def collect_rollouts(self, *arguments: Any, **keywords: Any) -> bool:
            if next(rollouts) % every == 0:
                baton.change(name)
            return bool(super().collect_rollouts(*arguments, **keywords))

    model.__class__ = Changing
    return model


def paper_settings(job: Job) -> dict[str, Any]:
    """The settings of the paper's values."""
    return job.settings(paper_params(job.algorithm, job.environment, job.space))


def train_alone(job: Job, folder: Path, baton: Baton) -> None:
    """The trainings of a trial, of the paper's values, one after another without the study."""
    rollouts = itertools.count()
    for seed in job.training_seeds:
        model = make_model(job.algorithm, job.environment, paper_settings(job), folder / f"seed_{seed}", seed)
        changing(model, baton, ALONE, rollouts, job.seeds).learn(job.budget.timesteps)
        model.env.close()


def train_together(job: Job, folder: Path, baton: Baton) -> None:
    """The same as one stack."""
    agents = [
        Agent(make_model(job.algorithm, job.environment, paper_settings(job), folder / f"seed_{seed}", seed), f"{seed}")
        for seed in job.training_seeds
    ]
    with (
        begun(agents, [None] * job.seeds, job.budget.timesteps) as runs,
        closing(iterations(agents, runs)) as training,
    ):
        for _ in training:
            baton.change(TOGETHER)
    close(agents)


def run_by_turns(job: Job, baton: Baton) -> None:
    """A trial of the study, as a worker runs it where its seeds cannot be stacked."""
    rollouts = itertools.count()

    def make(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> SeedTraining:
        def make_changing() -> Any:
            model = make_model(job.algorithm, job.environment, settings, folder, seed)
            return changing(model, baton, BY_TURNS, rollouts, job.seeds)

        return SeedTraining(make_changing, folder, job.budget.timesteps, job.bundle_interval)

    if run_worker(job, make=make) != 1:
        raise RuntimeError("the trial was not this worker's to the end")


def run_stacked(job: Job, baton: Baton) -> None:
    """A trial of the study, as a worker runs it."""

    class Changing(StackedTrainings):
        def _train(self) -> Any:
            for _ in super()._train():
                baton.change(TRIAL)
                yield

    with mock.patch("sb3_ppo_variants.tuning.stacked.StackedTrainings", Changing):
        if run_worker(job) != 1:
            raise RuntimeError("the trial was not this worker's to the end")


def measure(jobs: Mapping[str, Job], folder: Path) -> dict[str, float]:
    """Seconds of CPU of each way.

    :param jobs: those of the two kinds of trials, of studies of their own
    """
    job = jobs[TRIAL]
    functions: dict[str, Callable[[Baton], None]] = {
        ALONE: lambda baton: train_alone(job, folder / ALONE, baton),
        TOGETHER: lambda baton: train_together(job, folder / TOGETHER, baton),
        BY_TURNS: lambda baton: run_by_turns(jobs[BY_TURNS], baton),
        TRIAL: lambda baton: run_stacked(job, baton),
    }
    baton = Baton(WAYS)
    threads = [
        threading.Thread(target=baton.run, args=(name, partial(function, baton)))
        for name, function in functions.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in baton.errors:
        raise error
    return baton.seconds


def shown(seconds: Mapping[str, float]) -> str:
    """How long each way took, and what that makes."""
    times = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    ratio = seconds[BY_TURNS] / seconds[TRIAL]
    return f"{times} s of CPU; a study costs {cost(seconds):+.1%}, a stack is {ratio:.2f} times as fast"


def cost(seconds: Mapping[str, float]) -> float:
    """Of a study whose trials are stacked, as a part of the same trainings in a stack."""
    return seconds[TRIAL] / seconds[TOGETHER] - 1


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of a trial (default: %(default)s)")
    parser.add_argument("--timesteps", type=int, default=30_000, help="of each seed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def jobs(trials: int) -> dict[str, Job]:
            size = (arguments.env, arguments.seeds, arguments.timesteps, trials)
            return {name: make_job(folder / name, *size) for name in (BY_TURNS, TRIAL)}

        for job in jobs(TRIALS_BEFORE).values():
            fill(job)
        # What rl_zoo3 imports would be the first way's time.
        make_model(ALGORITHM, arguments.env, paper_settings(job), folder / "imports", 0).env.close()
        totals = dict.fromkeys(WAYS, 0.0)
        for index in range(arguments.rounds):
            seconds = measure(jobs(TRIALS_BEFORE + 1 + index), folder / f"plain_{index}")
            totals = {name: totals[name] + seconds[name] for name in totals}
            print(f"round {index + 1}: {shown(seconds)}", flush=True)
    print(f"all: {shown(totals)}")
    by_turns = totals[BY_TURNS] / totals[ALONE] - 1
    print(f"by turns a study costs {by_turns:+.1%}")
    print(f"at most {BAR:.0%} wanted: {'holds' if max(by_turns, cost(totals)) <= BAR else 'SHORT'}")


if __name__ == "__main__":
    main()
