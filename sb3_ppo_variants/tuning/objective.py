"""What a trial is worth: the mean return of several seeds, which reach each judgement at the same timestep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.training import Score, SeedTraining, Training, claim

MakeTraining = Callable[[Job, Mapping[str, Any], int, Path], Training]
"""makes the training of a job's trial with these settings and this seed, in this folder"""


def make_training(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> Training:
    """The training of one seed, as ``ppo-variants train`` would run it.

    :raises ValueError: if the folder holds another training
    """
    from sb3_ppo_variants.zoo import make_model

    # The mean is taken over as many episodes as the algorithm remembers.
    counted = {**settings, "stats_window_size": job.objective.episodes}
    claim(folder, {"algorithm": job.algorithm, "environment": job.environment, "seed": seed, "settings": counted})
    return SeedTraining(
        lambda: make_model(job.algorithm, job.environment, counted, folder, seed),
        folder,
        job.budget.timesteps,
        job.bundle_interval,
    )


def evaluate(
    trial: optuna.Trial,
    job: Job,
    trainings: Sequence[Training],
    reported: Collection[int] = (),
    still_ours: Callable[[], bool] = lambda: True,
) -> float:
    """Train all seeds of a trial, chunk by chunk, and judge it after each.

    A judgement compares like with like: the mean over all seeds at the same timestep of each, reported under the
    nominal one, which all trials of the study share. Where a seed has not finished an episode yet, there is none.

    :param trainings: one per seed
    :param reported: timesteps at which an earlier process has judged the trial
    :param still_ours: whether the trial is still this worker's; it is not if its heartbeat was late
    :return: the mean over seeds of the mean return of the last episodes
    :raises optuna.TrialPruned: if the study's pruner says so
    :raises LostTrialError: if the trial was given to another worker
    :raises FloatingPointError: if a training diverges; says which
    :raises ValueError: if no episode ends within the budget
    """
    for timesteps in job.boundaries:
        pairs = zip(job.training_seeds, trainings, strict=True)
        scores = [_advance(training, seed, timesteps) for seed, training in pairs]
        if not still_ours():
            raise LostTrialError(f"trial {trial.number} was given to another worker")
        describe(trial, scores)
        mean = statistics.fmean(score.mean for score in scores)
        if math.isnan(mean):
            continue
        if timesteps in reported:
            continue
        trial.report(mean, timesteps)
        if timesteps < job.budget.timesteps and trial.should_prune():
            raise optuna.TrialPruned(f"at {timesteps} timesteps with a mean return of {mean:.4g}")
    if math.isnan(mean):
        raise ValueError(
            f"budget: timesteps must be enough for an episode of every seed; none ended within {job.budget.timesteps}"
        )
    return mean


class LostTrialError(RuntimeError):
    """A trial is another worker's by now."""


def _advance(training: Training, seed: int, timesteps: int) -> Score:
    try:
        return training.advance(timesteps)
    except FloatingPointError as error:
        raise FloatingPointError(f"seed {seed} diverged on the way to {timesteps} timesteps: {error}") from error


def describe(trial: optuna.Trial, scores: Sequence[Score]) -> None:
    """Keep what a trial's mean is made of: each seed's, their spread, how many episodes, and where they stood."""
    means = [score.mean for score in scores]
    known = all(map(math.isfinite, means))
    spread = statistics.stdev(means) if known and len(means) > 1 else None
    # One write, not four, per chunk: NaN is not JSON.
    trial.set_user_attr(
        "scores",
        {
            "means": [mean if math.isfinite(mean) else None for mean in means],
            "spread": spread,
            "episodes": [score.episodes for score in scores],
            "timesteps": [score.timesteps for score in scores],
        },
    )
