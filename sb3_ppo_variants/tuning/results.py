"""What has come of a study: how far it is, its best trials trained again on fresh seeds, and the best as a config."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

import sb3_ppo_variants
from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.processes import Signals, WorkerError, in_processes
from sb3_ppo_variants.tuning.job import Job, StudyError
from sb3_ppo_variants.tuning.looking import look_at
from sb3_ppo_variants.tuning.objective import MakeTraining, make_training
from sb3_ppo_variants.tuning.storage import StorageError
from sb3_ppo_variants.tuning.study import FINISHED, NEAREST, NOT_RUN, ORIGIN, PAPER, Counts, count, ranked
from sb3_ppo_variants.tuning.training import remove_bundles

DIVERGED = "diverged"
"""in place of the score of a fresh seed"""

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

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return f"diverged ({self.n} seeds)"
        if math.isnan(self.half_width):
            return f"{self.mean:.4g} ({self.n} seed{'s' if self.n > 1 else ''})"
        return f"{self.mean:.4g} ± {self.half_width:.4g} (95 %, {self.n} seeds)"


def interval_of(values: Sequence[float]) -> Interval:
    """The mean of values, and how well it is known.

    :param values: at least one; where one is NaN, so is the mean
    """
    n = len(values)
    if any(map(math.isnan, values)):  # on which statistics.stdev fails
        return Interval(math.nan, math.nan, n)
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


def status(job: Job) -> Status:
    """How far a job's study is.

    :raises StorageError: if its storage cannot be used
    :raises ValueError: if there is no such study
    """
    trials = look_at(job).trials()
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    complete = ranked(trials)
    return Status(
        count(trials),
        sum(NOT_RUN in trial.user_attrs for trial in failed),
        sum("diverged" in trial.user_attrs for trial in pruned),
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
    if not _is_paper(trial):
        return ""
    return " (the paper's values)" if trial.user_attrs[ORIGIN] == PAPER else " (nearest to the paper's values)"


def _is_paper(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ORIGIN) in (PAPER, NEAREST)


# ------------------------------------------------------------------ the best


class Rated(NamedTuple):
    """A trial and the scores of its fresh seeds."""

    trial: FrozenTrial
    scores: list[float]
    """one per seed, in the order of the job's ``fresh_seeds``; NaN: it diverged"""

    @property
    def interval(self) -> Interval:
        """NaN if a seed diverged."""
        return interval_of(self.scores)

    @property
    def is_paper(self) -> bool:
        """Whether its parameters are the paper's values, or those nearest to them that the job allows."""
        return _is_paper(self.trial)


def best(job: Job, workers: int = 1, make: MakeTraining = make_training) -> list[Rated]:
    """Train the study's best trials again, and the paper's values, on seeds that chose nothing; rank them by that.

    The score by which a trial was the best of many flatters it; the new one does not. What has been trained again is
    kept in the study, and not done twice; a call that is interrupted goes on where it was.

    :param workers: number of processes on this machine; 1: this one
    :param make: makes the training of one seed; where there are several workers, a function of a module
    :return: the best trials of the job's ``rerun`` and, where it is not among them, the one of the paper's values; the
        best first, those that diverged last
    :raises StorageError: if the storage cannot be used
    :raises ValueError: if there is no such study, or no complete trial in it
    :raises StudyError: if all of them diverge on fresh seeds
    :raises WorkerError: if a worker does not end well; its own words are on standard error
    """
    shared = look_at(job)
    chosen = shared.ranked()[: job.rerun.best]
    if not chosen:
        counts = shared.counts()
        more = "tune run goes on with it" if counts.finished < job.budget.trials else "all were pruned"
        raise ValueError(f"the study {job.name!r} has no complete trial among {counts.finished} finished ones: {more}")
    papers = [trial for trial in shared.trials(FINISHED) if _is_paper(trial)]
    if papers and papers[-1].number not in {trial.number for trial in chosen}:
        chosen.append(papers[-1])
    known = shared.study.user_attrs
    missing = [
        (trial.number, seed)
        for seed in job.fresh_seeds
        for trial in chosen
        if _rerun_key(trial.number, seed) not in known
    ]
    if workers == 1 or not missing:
        rerun(job, missing, make)
    else:
        # One after another: each worker gets trainings of all trials, which differ in how long they take.
        shares = [(job, missing[index::workers], make) for index in range(min(workers, len(missing)))]
        if in_processes(job.name, rerun, shares, (StorageError, StudyError)):
            raise WorkerError("a worker of the re-run did not end well; what it has not done, the next tune best does")
    known = shared.study.user_attrs
    rated = [
        Rated(trial, [_score(known[_rerun_key(trial.number, seed)]) for seed in job.fresh_seeds]) for trial in chosen
    ]
    if all(math.isnan(each.interval.mean) for each in rated):
        raise StudyError(f"the best trials of the study {job.name!r} all diverge on fresh seeds: none is to be named")
    return sorted(rated, key=lambda each: (math.isnan(each.interval.mean), -each.interval.mean, each.trial.number))


def _rerun_key(number: int, seed: int) -> str:
    """Of a user attribute of the study: the score of a trial's fresh seed; "diverged" if it did."""
    return f"rerun_{number}_{seed}"


def _score(kept: float | str) -> float:
    return math.nan if isinstance(kept, str) else kept


def rerun(job: Job, pairs: Sequence[tuple[int, int]], make: MakeTraining = make_training) -> None:
    """Train trials of a study again, and keep their scores in the study.

    :param pairs: number of the trial, seed
    :param make: makes the training of one seed
    :raises StorageError: if the storage cannot be used
    """
    shared = look_at(job)
    params = {trial.number: trial.params for trial in shared.trials()}
    with Signals() as signals:
        for number, seed in pairs:
            folder = job.folder / "rerun" / f"trial_{number:05d}" / f"seed_{seed}"
            training = make(job, job.settings(params[number]), seed, folder)
            score: float | str
            try:
                with signals.heard():
                    score = training.advance(job.budget.timesteps).mean
                if math.isnan(score):
                    raise StudyError(f"trial {number}, seed {seed}: no episode has ended, as in none of the study's")
            except FloatingPointError:
                score = DIVERGED
            finally:
                training.stop()
            shared.study.set_user_attr(_rerun_key(number, seed), score)
            remove_bundles(folder)
            del training
            gc.collect()  # models hold themselves in cycles, and a rollout may be large
            print(f"[{job.name}] trial {number}, seed {seed}: {_number(score)}", flush=True)


def _number(score: float | str) -> str:
    return score if isinstance(score, str) else f"{score:.4g}"


def describe_best(job: Job, rated: Sequence[Rated]) -> str:
    """The best trials as text, beside the paper's values."""
    lines = [f"{job.name}: the best trials, and the paper's values, again on {job.rerun.seeds} fresh seeds"]
    for each in rated:
        pruned = each.trial.state is not TrialState.COMPLETE
        found = "pruned in the study" if pruned else f"in the study {each.trial.value:.4g}"
        lines.append(f"  trial {each.trial.number}: {each.interval}; {found}{_origin(each.trial)}")
    first = rated[0]
    lines.append(f"best: trial {first.trial.number}, {first.interval}{_origin(first.trial)}")
    lines += [f"  {name}: {value}" for name, value in first.trial.params.items()]
    paper = next((each for each in rated if each.is_paper), None)
    if paper is not None and paper is not first:
        words = "the paper's values" if paper.trial.user_attrs[ORIGIN] == PAPER else "what is nearest to the paper's"
        if math.isnan(paper.interval.mean):
            lines.append(f"{words} diverge on fresh seeds")
        else:
            apart = first.interval.low > paper.interval.high
            lines.append(f"the 95 % intervals of the best and of {words} {'do not overlap' if apart else 'overlap'}")
    return "\n".join(lines)


def _in_the_study(job: Job, trial: FrozenTrial) -> str:
    if trial.state is not TrialState.COMPLETE:
        return "It was pruned in the study."
    return f"In the study, by which it was chosen, on {job.seeds} seeds: {trial.value:.4g}."


def require_new_file(file: Path) -> None:
    """Check where :func:`export` is to write.

    :raises ValueError: as it does
    """
    if file.suffix not in (".yml", ".yaml") or not file.parent.is_dir():
        raise ValueError(f"--export must name a .yml file in a folder that exists; got {file}")
    if file.exists():
        raise ValueError(f"--export must name a new file; {file} exists")


def export(job: Job, rated: Rated, path: str | Path) -> Path:
    """Write a trial's settings as a file of ``zoo_configs``' form, which trains as it is.

    :param rated: what :func:`best` gave
    :param path: of a YAML file that does not exist yet, in a folder that does
    :return: the path
    :raises ValueError: for another path
    """
    import yaml

    file = Path(path)
    require_new_file(file)
    trial = rated.trial
    comment = [
        f"{job.algorithm} on {job.environment}: trial {trial.number} of the study {job.name}{_origin(trial)}",
        "",
        f"Mean raw return of the last {job.objective.episodes} episodes of {job.budget.timesteps} timesteps, on fresh "
        f"seeds {job.fresh_seeds[0]} to {job.fresh_seeds[-1]}:",
        f"{rated.interval}. {_in_the_study(job, trial)}",
        f"sb3-ppo-variants {sb3_ppo_variants.__version__}. To train with it:",
        f"ppo-variants train --algo {job.algorithm} --env {job.environment} --conf-file {file.name}",
    ]
    settings: dict[str, Any] = {job.environment: job.settings(trial.params)}
    text = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    text += yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120)
    atomic_write(file, text.encode())
    return file
