"""What a trial is worth: the mean return of several seeds, which reach each judgement at the same timestep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.training import Score, SeedTraining, Training, Trainings, Turns, claim

MakeTraining = Callable[[Job, Mapping[str, Any], int, Path], Training]
"""makes the training of a job's trial with these settings and this seed, in this folder"""


def make_training(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> SeedTraining:
    """The training of one seed, bit for bit as ``ppo-variants train`` would run it.

    :raises ValueError: if the folder holds another training
    """
    make_model = _claimed(job, settings, {seed: folder})
    return SeedTraining(lambda: make_model(seed, folder), folder, job.budget.timesteps, job.bundle_interval)


def make_trainings(job: Job, settings: Mapping[str, Any], folder: Path, make: MakeTraining | None = None) -> Trainings:
    """The trainings of a trial's seeds: one stack of them where that can be, or else they take turns.

    :param folder: of the trial
    :param make: makes the training of one seed, which takes turns with the others; None: ours
    :raises ValueError: if a folder holds another training
    """
    folders = {seed: folder / f"seed_{seed}" for seed in job.training_seeds}
    if make is None and len(folders) > 1 and _can_be_stacked(job, settings):
        from sb3_ppo_variants.tuning.stacked import StackedTrainings

        make_model = _claimed(job, settings, folders)
        return StackedTrainings(make_model, folders, job.boundaries, job.bundle_interval)
    return Turns({seed: (make or make_training)(job, settings, seed, path) for seed, path in folders.items()})


def _can_be_stacked(job: Job, settings: Mapping[str, Any]) -> bool:
    from sb3_ppo_variants.tuning.stacked import can_be_stacked
    from sb3_ppo_variants.zoo import VEC_ENV_KEY, make_model

    # How environments are stepped decides nothing, and worker processes would be started in vain.
    plain = {name: value for name, value in settings.items() if name != VEC_ENV_KEY}
    return can_be_stacked(lambda folder: make_model(job.algorithm, job.environment, plain, folder, 0))


def _claimed(job: Job, settings: Mapping[str, Any], folders: Mapping[int, Path]) -> Callable[[int, Path], Any]:
    """What makes the model of a seed in a folder, once the folders of these seeds are known to be theirs."""
    from sb3_ppo_variants.zoo import make_model

    # The mean is taken over as many episodes as the algorithm remembers.
    counted = {**settings, "stats_window_size": job.objective.episodes}
    for seed, folder in folders.items():
        claim(folder, {"algorithm": job.algorithm, "environment": job.environment, "seed": seed, "settings": counted})
    return lambda seed, folder: make_model(job.algorithm, job.environment, counted, folder, seed)


def evaluate(
    trial: optuna.Trial,
    job: Job,
    trainings: Trainings,
    reported: Collection[int] = (),
    still_ours: Callable[[], bool] = lambda: True,
) -> float:
    """Train all seeds of a trial, chunk by chunk, and judge it after each.

    A judgement compares like with like: the mean over all seeds at the same timestep of each, reported under the
    nominal one, which all trials of the study share. Where a seed has not finished an episode yet, there is none.

    :param trainings: of its seeds
    :param reported: timesteps at which an earlier process has judged the trial
    :param still_ours: whether the trial is still this worker's; it is not if its heartbeat was late
    :return: the mean over seeds of the mean return of the last episodes
    :raises optuna.TrialPruned: if the study's pruner says so
    :raises LostTrialError: if the trial was given to another worker
    :raises FloatingPointError: if a training diverges; says which
    :raises ValueError: if no episode ends within the budget
    """
    for timesteps in job.boundaries:
        scores = trainings.advance(timesteps)
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
