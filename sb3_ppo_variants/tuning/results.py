"""What has come of a study: how far it is, its best trials trained again on fresh seeds, and the best as a config."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

import sb3_ppo_variants
from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.objective import MakeTraining, make_training
from sb3_ppo_variants.tuning.study import NOT_RUN, ORIGIN, Counts, SharedStudy

RERUN = "rerun_"
"""user attributes of the study: the scores of a trial's fresh seeds, by the trial's number"""

# Student's t, two-sided 95 %, by degrees of freedom from 1 on; beyond, the normal distribution's.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL95 = 1.96


class Interval(NamedTuple):
    """A mean with its 95 % interval, by Student's t."""

    mean: float
    half_width: float
    """NaN of fewer than two values"""
    n: int
    """number of values"""

    def __str__(self) -> str:
        if math.isnan(self.half_width):
            return f"{self.mean:.4g} ({self.n} seed{'s' if self.n > 1 else ''})"
        return f"{self.mean:.4g} ± {self.half_width:.4g} (95 %, {self.n} seeds)"


def interval_of(values: Sequence[float]) -> Interval:
    """The mean of values, and how well it is known.

    :param values: at least one
    """
    n = len(values)
    if n < 2:
        return Interval(values[0], math.nan, n)
    t = _T95[n - 2] if n - 2 < len(_T95) else _NORMAL95
    return Interval(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(n), n)


class Status(NamedTuple):
    """How far a study is."""

    counts: Counts
    given_up: int
    """trials among the failed that never ran: others had the same parameters, or used up the budget"""
    diverged: int
    """trials among the pruned"""
    budget: int
    best: FrozenTrial | None
    """the best so far; None: no trial is complete"""


def complete_trials(shared: SharedStudy) -> list[FrozenTrial]:
    """The complete trials, the best first."""
    return sorted(shared.trials([TrialState.COMPLETE]), key=lambda trial: (-(trial.value or 0.0), trial.number))


def status(job: Job) -> Status:
    """How far a job's study is.

    :raises StorageError: if its storage cannot be used
    :raises ValueError: if there is no such study
    """
    shared = SharedStudy(job, create=False)
    trials = shared.trials()
    complete = complete_trials(shared)
    return Status(
        shared.counts(),
        sum(NOT_RUN in trial.user_attrs for trial in trials),
        sum("diverged" in trial.user_attrs for trial in trials),
        job.budget.trials,
        complete[0] if complete else None,
    )


def describe_status(job: Job, now: Status) -> str:
    """A study's state as text: a table, and the best so far."""
    rows = {
        "complete": f"{now.counts.complete}",
        "pruned": f"{now.counts.pruned}" + (f", {now.diverged} of them diverged" if now.diverged else ""),
        "running": f"{now.counts.running}",
        "waiting": f"{now.counts.waiting}",
        "failed": f"{now.counts.failed - now.given_up}",
        "not run": f"{now.given_up}",
    }
    lines = [f"{job.name}: {now.counts.finished} of {now.budget} trials finished"]
    lines += [f"  {name:<9} {value}" for name, value in rows.items()]
    if now.best is None:
        return "\n".join([*lines, "no trial is complete yet"])
    scores = now.best.user_attrs.get("scores", {})
    spread = (
        "" if scores.get("spread") is None else f", standard deviation over {job.seeds} seeds {scores['spread']:.4g}"
    )
    lines.append(f"best so far: trial {now.best.number}, {now.best.value:.4g}{spread}{_origin(now.best)}")
    return "\n".join([*lines, *(f"  {name}: {value}" for name, value in now.best.params.items())])


def _origin(trial: FrozenTrial) -> str:
    return " (the paper's values)" if trial.user_attrs.get(ORIGIN) == "paper" else ""


# ------------------------------------------------------------------ the best


class Rated(NamedTuple):
    """A trial and the scores of its fresh seeds."""

    trial: FrozenTrial
    scores: list[float]

    @property
    def interval(self) -> Interval:
        return interval_of(self.scores)


def best(job: Job, make: MakeTraining = make_training) -> list[Rated]:
    """Train the study's best trials again, on seeds that chose nothing, and rank them by that.

    The score by which a trial was the best of many flatters it; the new one does not. What has been trained again is
    kept in the study, and not done twice; a call that is interrupted goes on where it was.

    :param make: makes the training of one seed
    :return: the best trials of the job's ``rerun``, the best first
    :raises StorageError: if the storage cannot be used
    :raises ValueError: if there is no such study, or no complete trial in it
    """
    shared = SharedStudy(job, create=False)
    chosen = complete_trials(shared)[: job.rerun.best]
    if not chosen:
        raise ValueError(f"the study {job.name!r} has no complete trial yet: tune run goes on with it")
    rated = [Rated(trial, _rerun(shared, trial, make)) for trial in chosen]
    return sorted(rated, key=lambda each: (-each.interval.mean, each.trial.number))


def _rerun(shared: SharedStudy, trial: FrozenTrial, make: MakeTraining) -> list[float]:
    """The scores of a trial's settings with each of the fresh seeds."""
    job, key = shared.job, f"{RERUN}{trial.number}"
    known: dict[str, float] = dict(shared.study.user_attrs.get(key, {}))
    for seed in job.fresh_seeds:
        if str(seed) in known:
            continue
        folder = job.folder / "rerun" / f"trial_{trial.number:05d}" / f"seed_{seed}"
        training = make(job, job.settings(trial.params), seed, folder)
        try:
            known[str(seed)] = training.advance(job.budget.timesteps).mean
        finally:
            training.stop()
        shared.study.set_user_attr(key, known)
        print(f"[{job.name}] trial {trial.number}, seed {seed}: {known[str(seed)]:.4g}", flush=True)
    return [known[str(seed)] for seed in job.fresh_seeds]


def describe_best(job: Job, rated: Sequence[Rated]) -> str:
    """The best trials as text."""
    lines = [f"{job.name}: the best {len(rated)} trials, again on {job.rerun.seeds} fresh seeds"]
    for each in rated:
        lines.append(f"  trial {each.trial.number}: {each.interval}; in the study {each.trial.value:.4g}")
    first = rated[0]
    lines.append(f"best: trial {first.trial.number}, {first.interval}{_origin(first.trial)}")
    return "\n".join([*lines, *(f"  {name}: {value}" for name, value in first.trial.params.items())])


def export(job: Job, rated: Rated, path: str | Path) -> Path:
    """Write a trial's settings as a file of ``zoo_configs``' form, which trains as it is.

    :param rated: what :func:`best` gave
    :param path: a YAML file in a folder that exists; it is replaced
    :return: the path
    :raises ValueError: for a path that is no YAML file's, or whose folder does not exist
    """
    import yaml

    file = Path(path)
    if file.suffix not in (".yml", ".yaml") or not file.parent.is_dir():
        raise ValueError(f"--export must name a .yml file in a folder that exists; got {file}")
    require("scores", len(rated.scores), "an integer >= 1", lambda value: value >= 1)
    trial = rated.trial
    comment = [
        f"{job.algorithm} on {job.environment}: trial {trial.number} of the study {job.name}{_origin(trial)}",
        "",
        f"Mean raw return of the last {job.objective.episodes} episodes of {job.budget.timesteps} timesteps, on fresh "
        f"seeds {job.fresh_seeds[0]} to {job.fresh_seeds[-1]}:",
        f"{rated.interval}. In the study, on {job.seeds} seeds of which it was the choice: {trial.value:.4g}.",
        f"sb3-ppo-variants {sb3_ppo_variants.__version__}. To train with it:",
        f"ppo-variants train --algo {job.algorithm} --env {job.environment} --conf-file {file.name}",
    ]
    settings: dict[str, Any] = {job.environment: job.settings(trial.params)}
    text = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    text += yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120)
    atomic_write(file, text.encode())
    return file
