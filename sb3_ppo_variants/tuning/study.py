"""A study that many processes share: who may begin a trial, which one, and what becomes of those whose worker died."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants.arguments import check_names
from sb3_ppo_variants.tuning.job import Choice, Job, StudyError
from sb3_ppo_variants.tuning.spaces import has_papers_values, paper_params, suggest
from sb3_ppo_variants.tuning.storage import Storage, StorageError

# User attributes of a trial.
RETRY_OF = "retry_of"
"""number of the trial whose worker died, which this one goes on with"""
FIRST_NUMBER = "first_number"
"""number of the first of those, which names their folder"""
KEEPS_PLACE = "keeps_place"
"""whether that one had begun: this one goes on in its place in the budget"""
WORKER = "worker"
"""who trains it, once it is known that it is to be trained"""
ORIGIN = "origin"
"""where parameters come from that no sampler drew: one of the next two"""
PAPER, NEAREST = "paper", "nearest to the paper"
INTERRUPTED = "interrupted"
"""whether it was put back into the queue by Ctrl-C or SIGTERM"""
NOT_RUN = "not_run"
"""why a trial was given up before it began"""
IDENTITY = "job"
"""user attribute of the study: what all its trials have in common"""

FIXED = "fixed_params"
"""system attribute in which optuna keeps the parameters of a queued trial"""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
AnyTrial = FrozenTrial | optuna.Trial
# Draws in a row that somebody has already had, after which the space is taken to have no others.
MAX_DRAWS = 50
# Those after which parameters are drawn evenly: a sampler that has made up its mind draws the same again and again.
PATIENT_DRAWS = 5
MAX_RETRIES = 1

_SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}
_PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "none": "NopPruner",
}
# Ours to set, deprecated, or code.
_NOT_OPTIONS = frozenset(
    {
        "seed",
        "constant_liar",
        "consider_prior",
        "prior_weight",
        "consider_magic_clip",
        "consider_endpoints",
        "gamma",
        "weights",
        "warn_independent_sampling",
        "constraints_func",
        "self",
    }
)


# ------------------------------------------------------------------ samplers and pruners


def make_sampler(job: Job, worker: str) -> optuna.samplers.BaseSampler:
    """The job's sampler, whose draws are this worker's own.

    :param worker: name of the worker; the same name draws the same
    :raises ValueError: for an argument that it does not have
    """
    kind = getattr(optuna.samplers, _SAMPLERS[job.sampler.name])
    # Where others still train, their parameters count as bad ones, so that workers do not all draw the same.
    own = {"constant_liar": True} if job.sampler.name == "tpe" else {}
    return _make("sampler", kind, job.sampler, {"seed": _seed(job, worker), **own})


def _seed(job: Job, worker: str) -> int:
    """A seed below 2**32 of the job's and the worker's own."""
    return int.from_bytes(hashlib.sha256(f"{job.name}/{job.sampler_seed}/{worker}".encode()).digest()[:4], "big")


def make_pruner(job: Job) -> optuna.pruners.BasePruner:
    """The job's pruner.

    :raises ValueError: for an argument that it does not have
    """
    kind = getattr(optuna.pruners, _PRUNERS[job.pruner.name])
    if job.pruner.name == "percentile" and "percentile" not in job.pruner.options:
        raise ValueError("pruner: percentile must have a 'percentile', of trials to keep")
    return _make("pruner", kind, job.pruner, {})


def _make(what: str, kind: Any, choice: Choice, own: dict[str, Any]) -> Any:
    named = inspect.signature(kind.__init__).parameters.values()
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    allowed = {parameter.name for parameter in named if parameter.kind not in stars} - _NOT_OPTIONS
    check_names(f"argument of {what} {choice.name},", choice.options, allowed)
    try:
        return kind(**choice.options, **own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} {choice.name}: {error}") from error


# ------------------------------------------------------------------ the study


class Counts(NamedTuple):
    """How many trials are in which state."""

    complete: int
    pruned: int
    running: int
    waiting: int
    failed: int

    @property
    def finished(self) -> int:
        """Those that the budget counts."""
        return self.complete + self.pruned


class SharedStudy:
    """A job's study in its storage, as one worker sees it.

    :param job: what to tune
    :param worker: the worker's name, from which its sampler's seed comes
    :param create: whether a study that does not exist is made
    :raises StorageError: if the storage cannot be used
    :raises ValueError: if the study is another job's, or there is none and none is to be made
    """

    def __init__(self, job: Job, worker: str = "", *, create: bool = True):
        self.job, self.worker = job, worker
        sampler, pruner = make_sampler(job, worker), make_pruner(job)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = Storage(job)
        try:
            self.study = optuna.load_study(
                study_name=job.name, storage=self.storage.backend, sampler=sampler, pruner=pruner
            )
        except KeyError:
            if not create:
                raise ValueError(
                    f"there is no study {job.name!r} in {self.storage.name}; tune run begins one"
                ) from None
            self.study = optuna.create_study(
                study_name=job.name,
                storage=self.storage.backend,
                sampler=sampler,
                pruner=pruner,
                direction="maximize",
                load_if_exists=True,  # another worker may have been faster
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(["mean return"])  # for the dashboard
        self._require_same_job(create)
        self._even_sampler = optuna.samplers.RandomSampler(seed=_seed(job, f"{worker}/evenly"))
        self._silence, self._orphans = _Watch(job.heartbeat.grace), _Watch(job.heartbeat.grace)

    def _require_same_job(self, create: bool) -> None:
        ours = self.job.identity()
        trials = self.trials()  # before the other one: its worker writes them down afterwards
        theirs = self.study.user_attrs.get(IDENTITY)
        if theirs is None:
            if trials:
                raise ValueError(
                    f"the study {self.job.name!r} in {self.storage.name} is none of ours: give the job another name"
                )
            if create:
                self.study.set_user_attr(IDENTITY, ours)
            return
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise ValueError(
                    f"the study {self.job.name!r} in {self.storage.name} was begun with another {key!r} "
                    f"({_difference(theirs.get(key), value)}): give the job another name, or its old {key}"
                )

    def trials(self, states: Collection[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials, as they are now."""
        return self.study.get_trials(deepcopy=False, states=None if states is None else tuple(states))

    def ranked(self) -> list[FrozenTrial]:
        """The complete trials, the best first."""
        return ranked(self.trials())

    def counts(self) -> Counts:
        """How many trials are in which state."""
        return count(self.trials())

    def folder_of(self, trial: FrozenTrial) -> Path:
        """The folder of a trial, which those share that go on with it."""
        return self.job.folder / f"trial_{trial.user_attrs.get(FIRST_NUMBER, trial.number):05d}"

    # ------------------------------------------------------------------ beginning a trial

    def next_trial(self, wait: Callable[[float], None] = time.sleep) -> optuna.Trial | None:
        """Begin a trial: one that was left behind, or a new one with parameters that no other has.

        Where the trials under way would use up the budget, waits for what becomes of them.

        :param wait: waits for some seconds
        :return: the trial, its parameters chosen; None if the budget's trials are finished
        :raises StudyError: if the space has no parameters that are new
        """
        draws = 0
        while True:
            self.take_from_the_dead()
            trials = self.trials()
            counts = count(trials)
            if counts.finished >= self.job.budget.trials:
                return None
            taken = counts.finished + counts.running + len(_lost(trials))
            if not counts.waiting and taken >= self.job.budget.trials:
                wait(min(self.job.heartbeat.interval, 1.0))
                continue
            if not trials:
                self.enqueue_paper()
            try:
                trial = self._ask(evenly=draws >= PATIENT_DRAWS)
                refusal = self._reason_not_to_run(trial)
                if refusal is None:
                    trial.set_user_attr(WORKER, self.worker)
                    return trial
                trial.set_user_attr(NOT_RUN, refusal.reason)
            except optuna.exceptions.UpdateFinishedTrialError:  # taken from us: this process had stood still
                continue
            self.finish(trial, TrialState.FAIL)
            draws += refusal.was_drawn_before
            if draws >= MAX_DRAWS:
                raise StudyError(
                    f"space: {MAX_DRAWS} draws in a row gave parameters that other trials have: widen it, or lower "
                    f"the budget to the {counts.finished} trials that are finished"
                )

    def enqueue_paper(self) -> None:
        """Queue a trial of the paper's values, unless there is one that did not end by an error."""
        papers = [trial for trial in self.trials() if trial.user_attrs.get(ORIGIN) in (PAPER, NEAREST)]
        if not all(_is_explained(trial) for trial in papers):
            return
        job = self.job
        params = paper_params(job.algorithm, job.environment, job.space)
        exact = has_papers_values(job.algorithm, job.environment, job.settings(params))
        self.study.enqueue_trial(params, user_attrs={ORIGIN: PAPER if exact else NEAREST})

    def _ask(self, *, evenly: bool) -> optuna.Trial:
        """Begin a trial.

        :param evenly: whether its parameters are drawn evenly from the space, whatever the sampler
        :raises optuna.exceptions.UpdateFinishedTrialError: if it is another worker's already
        """
        sampler = self.study.sampler
        self.study.sampler = self._even_sampler if evenly else sampler
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with", UserWarning)
                trial = self.study.ask()
            self.beat(trial)
            try:
                suggest(self.job.space, trial)
            except StorageError:
                raise
            except (TypeError, ValueError, IndexError) as error:  # of a sampler whose options do not fit
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                self.finish(trial, TrialState.FAIL)
                raise StudyError(f"sampler {self.job.sampler.name} with {self.job.sampler.options}: {error}") from error
        finally:
            self.study.sampler = sampler
        return trial

    def _reason_not_to_run(self, trial: optuna.Trial) -> _Refusal | None:
        """Why a trial that was just begun is given up again; None: it is not.

        Each worker writes its parameters down before it looks at those of others: of two that drew the same, one sees
        the other, at least. What was queued twice, as two workers did so at once, or one did not get the answer to the
        first time, runs once: the first of them.
        """
        trials = self.trials()
        others = [other for other in trials if other.number != trial.number]
        if (first := _earlier_of_its_entry(trial, trials)) is not None:
            return _Refusal(f"trial {first} was queued for the same", False)
        # Without those that are given up, or about to be.
        unfailed = [
            other
            for other in others
            if other.state is not TrialState.FAIL
            and not _is_explained(other)
            and _earlier_of_its_entry(other, trials) is None
        ]
        for other in unfailed:
            if other.params == trial.params:
                return _Refusal(f"trial {other.number} has the same parameters", True)
        if _has_its_place(trial):
            return None
        before = [
            other
            for other in unfailed
            if other.state in (*FINISHED, TrialState.WAITING)
            or (other.state is TrialState.RUNNING and (other.number < trial.number or _has_its_place(other)))
        ]
        if len(before) + len(_lost(trials)) >= self.job.budget.trials:
            return _Refusal("the others use up the budget", False)
        return None

    # ------------------------------------------------------------------ the dead

    def beat(self, trial: optuna.Trial) -> None:
        """Give a sign of life of a trial."""
        if self.storage.signs is None:
            backend: Any = self.storage.backend
            backend.record_heartbeat(trial._trial_id)
        else:
            signs = self.storage.signs
            self.storage.patience.call(lambda: signs.record(trial.number))

    def is_ours(self, trial: optuna.Trial) -> bool:
        """Whether a trial is still this worker's: it is not if its heartbeat was late."""
        return self.storage.backend.get_trial(trial._trial_id).state is TrialState.RUNNING

    def take_from_the_dead(self) -> None:
        """Fail trials whose workers give no signs of life, and put them, once, at the head of the queue again.

        While the storage did not answer, nobody could tell it of his life: nobody is taken for dead soon after.
        """
        trials = self.trials()
        running = {trial.number: trial for trial in trials if trial.state is TrialState.RUNNING}
        stale = self.storage.stale(self.study._study_id) if running else frozenset()
        silent = self._silence.silent({number: self._sign(trial, stale) for number, trial in running.items()})
        lost = {trial.number: trial for trial in _lost(trials)}
        # Whose FAIL was written by a worker that did not live to queue them again, or did not learn that it was.
        orphans = [lost[number] for number in self._orphans.silent(dict.fromkeys(lost, "lost"))]
        if self.storage.patience.seconds_without_trouble() <= self.job.heartbeat.grace:
            return
        at_once = {number for number, trial in running.items() if trial._trial_id in stale and not _was_put_back(trial)}
        for number in sorted({*silent, *at_once}):
            trial = running[number]
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another worker was faster
                if self.storage.backend.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                    orphans.append(self.storage.backend.get_trial(trial._trial_id))
        for trial in orphans:
            self._retry(trial)

    def _sign(self, trial: FrozenTrial, stale: Collection[int]) -> Any:
        """What changes while a trial's worker lives.

        A database knows by its own clock when it was told last. But not of a trial whose worker died before that; and
        one that was put back and has just been taken up again has only the signs of life of long ago.
        """
        if self.storage.signs is not None:
            return self.storage.signs.of(trial.number)
        is_silent = WORKER not in trial.user_attrs or trial._trial_id in stale
        return None if is_silent else time.monotonic()

    def _retry(self, trial: FrozenTrial) -> None:
        """Queue what a dead worker has left."""
        if self.storage.signs is not None:
            self.storage.signs.forget(trial.number)
        trials = self.trials()
        if trial.number not in {lost.number for lost in _lost(trials)}:
            if WORKER in trial.user_attrs and _count_retries(trial, trials) >= MAX_RETRIES:
                print(f"trial {trial.number} has lost its worker again and is given up")
            return
        first = trial.user_attrs.get(FIRST_NUMBER, trial.number)
        kept = {key: value for key, value in trial.user_attrs.items() if key == ORIGIN}
        if _has_its_place(trial):
            kept[KEEPS_PLACE] = True
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**kept, RETRY_OF: trial.number, FIRST_NUMBER: first},
                system_attrs={key: value for key, value in trial.system_attrs.items() if key == FIXED},
                intermediate_values=trial.intermediate_values,
            )
        )
        print(f"trial {trial.number} has lost its worker and is taken up again")

    def put_back(self, trial: optuna.Trial) -> None:
        """Leave a trial to whoever comes next: same number, same parameters, same folder.

        :raises optuna.exceptions.UpdateFinishedTrialError: if it is another worker's by now
        """
        trial.set_user_attr(INTERRUPTED, True)
        self.storage.backend.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)

    def finish(self, trial: optuna.Trial, state: TrialState, value: float | None = None) -> bool:
        """End a trial.

        :return: False if it is another worker's by now
        """
        try:
            self.study.tell(trial, value, state=state)
        except StorageError:
            raise
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            now = self.storage.backend.get_trial(trial._trial_id)
            if not now.state.is_finished():
                raise
            # Told twice, as the answer to the first time was lost; or failed by another worker in the meantime.
            return now.state is state
        finally:
            if self.storage.signs is not None:
                self.storage.signs.forget(trial.number)
        return True


class _Refusal(NamedTuple):
    """Why a trial is not run."""

    reason: str
    was_drawn_before: bool
    """whether another trial has its parameters"""


def ranked(trials: Collection[FrozenTrial]) -> list[FrozenTrial]:
    """The complete ones of these trials, the best first."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def count(trials: Collection[FrozenTrial]) -> Counts:
    """How many of these trials are in which state."""
    states = [trial.state for trial in trials]
    order = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)
    return Counts(*map(states.count, order))


def _was_put_back(trial: AnyTrial) -> bool:
    return INTERRUPTED in trial.user_attrs


def _has_its_place(trial: AnyTrial) -> bool:
    """Whether it was found, of this trial or of the one that it goes on with, that the budget has a place for it."""
    return WORKER in trial.user_attrs or KEEPS_PLACE in trial.user_attrs


def _is_same_entry(one: AnyTrial, other: AnyTrial) -> bool:
    """Whether two trials are the same entry of the queue, made twice."""
    if RETRY_OF in one.user_attrs or RETRY_OF in other.user_attrs:
        return one.user_attrs.get(RETRY_OF) == other.user_attrs.get(RETRY_OF)
    are_papers = {one.user_attrs.get(ORIGIN), other.user_attrs.get(ORIGIN)} <= {PAPER, NEAREST}
    return are_papers and not _is_explained(one) and not _is_explained(other)


def _earlier_of_its_entry(trial: AnyTrial, trials: Collection[FrozenTrial]) -> int | None:
    """Number of the first trial before this one that is of the same entry of the queue; None: there is none."""
    if RETRY_OF not in trial.user_attrs and trial.user_attrs.get(ORIGIN) not in (PAPER, NEAREST):
        return None  # it was drawn, not queued
    return next((each.number for each in trials if each.number < trial.number and _is_same_entry(each, trial)), None)


def _is_explained(trial: AnyTrial) -> bool:
    """Whether a trial says why it has failed, or is about to: its worker did not die of it."""
    return "error" in trial.user_attrs or NOT_RUN in trial.user_attrs


def _lost(trials: Collection[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that dead workers have left, and that nobody has queued again yet: their places are taken, still.

    Of one that was just drawn, nothing is lost.
    """
    taken_up = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [
        trial
        for trial in trials
        if trial.state is TrialState.FAIL
        and trial.number not in taken_up
        and not _is_explained(trial)
        and (WORKER in trial.user_attrs or RETRY_OF in trial.user_attrs or FIXED in trial.system_attrs)
        and _count_retries(trial, trials) < MAX_RETRIES
    ]


def _count_retries(trial: FrozenTrial, trials: Collection[FrozenTrial]) -> int:
    """How often a trial was taken up again before; where its worker died before it said so, that does not count."""

    if RETRY_OF not in trial.user_attrs:
        return 0
    by_number = {each.number: each for each in trials}

    def ancestors() -> Iterator[FrozenTrial]:
        number = trial.user_attrs.get(RETRY_OF)
        while number is not None and number in by_number:
            yield by_number[number]
            number = by_number[number].user_attrs.get(RETRY_OF)

    retries = sum(1 for each in ancestors() if WORKER in each.user_attrs)
    return retries if WORKER in trial.user_attrs else 0


def _difference(theirs: Any, ours: Any) -> str:
    """The first place where two values differ, for a message."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            if theirs.get(key) != ours.get(key):
                return f"{key}: {_difference(theirs.get(key), ours.get(key))}"
    if isinstance(theirs, list) and isinstance(ours, list):
        for one, other in zip(theirs, ours, strict=False):
            if one != other:
                name = f"{one['name']}: " if isinstance(one, dict) and "name" in one else ""
                return f"{name}{_difference(one, other)}"
        return f"{len(theirs)} of them then, {len(ours)} now"
    return f"{theirs!r} then, {ours!r} now"


class _Watch:
    """Notices what no longer changes, by this process's own clock: clocks of other machines do not matter."""

    def __init__(self, grace: float):
        self._grace = grace
        self._seen: dict[int, tuple[Any, float]] = {}

    def silent(self, signs: dict[int, Any]) -> list[int]:
        """Which numbers have shown the same sign for longer than the grace period.

        :param signs: number → what changes while it lives
        """
        now = time.monotonic()
        before = self._seen
        self._seen = {
            number: before[number] if number in before and before[number][0] == sign else (sign, now)
            for number, sign in signs.items()
        }
        return [number for number, (_, since) in self._seen.items() if now - since > self._grace]
