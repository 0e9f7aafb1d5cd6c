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
from sb3_ppo_variants.tuning.job import Choice, Job
from sb3_ppo_variants.tuning.spaces import has_papers_values, paper_params, suggest
from sb3_ppo_variants.tuning.storage import Storage

# User attributes of a trial.
RETRY_OF = "retry_of"
"""number of the trial whose worker died, which this one goes on with"""
FIRST_NUMBER = "first_number"
"""number of the first of those, which names their folder"""
WORKER = "worker"
ORIGIN = "origin"
"""where parameters come from that no sampler drew: one of the next two"""
PAPER, NEAREST = "paper", "nearest to the paper"
INTERRUPTED = "interrupted"
"""whether it was put back into the queue by Ctrl-C or SIGTERM"""
NOT_RUN = "not_run"
"""why a trial was given up before it began"""
IDENTITY = "job"
"""user attribute of the study: what all its trials have in common"""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
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
    allowed = set(inspect.signature(kind.__init__).parameters) - _NOT_OPTIONS
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
        self.storage = Storage(job, lambda _study, trial: self._retry(trial))
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
        self._require_same_job(create)
        self._even_sampler = optuna.samplers.RandomSampler(seed=_seed(job, f"{worker}/evenly"))
        self._watch = _Watch(job.heartbeat.grace)

    def _require_same_job(self, create: bool) -> None:
        ours = self.job.identity()
        theirs = self.study.user_attrs.get(IDENTITY)
        if theirs is None:
            if self.trials():
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
        return sorted(self.trials([TrialState.COMPLETE]), key=lambda trial: (-(trial.value or 0.0), trial.number))

    def counts(self) -> Counts:
        """How many trials are in which state."""
        states = [trial.state for trial in self.trials()]
        order = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)
        return Counts(*map(states.count, order))

    def folder_of(self, trial: FrozenTrial) -> Path:
        """The folder of a trial, which those share that go on with it."""
        return self.job.folder / f"trial_{trial.user_attrs.get(FIRST_NUMBER, trial.number):05d}"

    # ------------------------------------------------------------------ beginning a trial

    def next_trial(self, wait: Callable[[float], None] = time.sleep) -> optuna.Trial | None:
        """Begin a trial: one that was left behind, or a new one with parameters that no other has.

        Where the trials under way would use up the budget, waits for what becomes of them.

        :param wait: waits for some seconds
        :return: the trial, its parameters chosen; None if the budget's trials are finished
        :raises ValueError: if the space has no parameters that are new
        """
        draws = 0
        while True:
            self.take_from_the_dead()
            counts = self.counts()
            if counts.finished >= self.job.budget.trials:
                return None
            taken = counts.finished + counts.running
            if not counts.waiting and taken >= self.job.budget.trials:
                wait(min(self.job.heartbeat.interval, 1.0))
                continue
            if not self.trials():
                self.enqueue_paper()
            try:
                trial = self._ask(evenly=draws >= PATIENT_DRAWS)
                reason = self._reason_not_to_run(trial)
                if reason is None:
                    return trial
                trial.set_user_attr(NOT_RUN, reason)
            except optuna.exceptions.UpdateFinishedTrialError:  # taken from us: this process had stood still
                continue
            self.finish(trial, TrialState.FAIL)
            draws += 1
            if draws >= MAX_DRAWS:
                raise ValueError(
                    f"space: {MAX_DRAWS} draws in a row gave parameters that other trials have: widen it, or lower "
                    f"the budget to the {counts.finished} trials that are finished"
                )

    def enqueue_paper(self) -> None:
        """Queue a trial of the paper's values, unless there is one that did not end by an error."""
        papers = [trial for trial in self.trials() if trial.user_attrs.get(ORIGIN) in (PAPER, NEAREST)]
        if not all("error" in trial.user_attrs or NOT_RUN in trial.user_attrs for trial in papers):
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
            # One that was put back may look dead, by its last heartbeat, until it has the first new one: the next line
            # tells if somebody has taken it for that.
            self.beat(trial)
            trial.set_user_attr(WORKER, self.worker)
            try:
                suggest(self.job.space, trial)
            except (TypeError, ValueError, IndexError) as error:  # of a sampler whose options do not fit
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                self.finish(trial, TrialState.FAIL)
                raise ValueError(f"sampler {self.job.sampler.name} with {self.job.sampler.options}: {error}") from error
        finally:
            self.study.sampler = sampler
        return trial

    def _reason_not_to_run(self, trial: optuna.Trial) -> str | None:
        """Why a trial that was just begun is given up again; None: it is not.

        Each worker writes its parameters down before it looks at those of others: of two that drew the same, one sees
        the other, at least.
        """
        if {RETRY_OF, INTERRUPTED} & set(trial.user_attrs):
            return None
        others = [other for other in self.trials() if other.number != trial.number]
        for other in others:
            if other.state in (*FINISHED, TrialState.RUNNING) and other.params == trial.params:
                return f"trial {other.number} has the same parameters"
        before = [
            other
            for other in others
            if other.state in (*FINISHED, TrialState.WAITING)
            or (other.state is TrialState.RUNNING and other.number < trial.number)
        ]
        if len(before) >= self.job.budget.trials:
            return "the others use up the budget"
        return None

    # ------------------------------------------------------------------ the dead

    def beat(self, trial: optuna.Trial) -> bool:
        """Give a sign of life of a trial.

        :return: whether it is still this worker's
        """
        if self.storage.signs is None:
            backend: Any = self.storage.backend
            backend.record_heartbeat(trial._trial_id)
        else:
            signs = self.storage.signs
            self.storage.patience.call(lambda: signs.record(trial.number))
        return self.storage.backend.get_trial(trial._trial_id).state is TrialState.RUNNING

    def take_from_the_dead(self) -> None:
        """Fail trials whose workers give no signs of life, and put them, once, at the head of the queue again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # does nothing for a journal
        running = {trial.number: trial for trial in self.trials([TrialState.RUNNING])}
        for number in self._watch.silent({number: self._sign(trial) for number, trial in running.items()}):
            trial = running[number]
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another worker was faster
                if self.storage.backend.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                    self._retry(trial)

    def _sign(self, trial: FrozenTrial) -> Any:
        """What changes while a trial's worker lives.

        A database knows by its own clock when it was told last, but not of a trial whose worker died before that.
        """
        if self.storage.signs is not None:
            return self.storage.signs.of(trial.number)
        return time.monotonic() if WORKER in trial.user_attrs else None

    def _retry(self, trial: FrozenTrial) -> None:
        """Queue what a dead worker has left."""
        if self.storage.signs is not None:
            self.storage.signs.forget(trial.number)
        if _count_retries(trial, {each.number: each for each in self.trials()}) >= MAX_RETRIES:
            print(f"trial {trial.number} has lost its worker again and is given up")
            return
        if not trial.params and "fixed_params" not in trial.system_attrs:
            return  # nothing had been chosen yet
        first = trial.user_attrs.get(FIRST_NUMBER, trial.number)
        kept = {key: value for key, value in trial.user_attrs.items() if key == ORIGIN}
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**kept, RETRY_OF: trial.number, FIRST_NUMBER: first},
                system_attrs={key: value for key, value in trial.system_attrs.items() if key == "fixed_params"},
                intermediate_values=trial.intermediate_values,
            )
        )
        print(f"trial {trial.number} has lost its worker and is taken up again")

    def put_back(self, trial: optuna.Trial) -> None:
        """Leave a trial to whoever comes next: same number, same parameters, same folder."""
        trial.set_user_attr(INTERRUPTED, True)
        self.storage.backend.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)

    def finish(self, trial: optuna.Trial, state: TrialState, value: float | None = None) -> bool:
        """End a trial.

        :return: False if it is another worker's by now
        """
        try:
            self.study.tell(trial, value, state=state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
            now = self.storage.backend.get_trial(trial._trial_id)
            if not now.state.is_finished():
                raise
            # Told twice, as the answer to the first time was lost; or failed by another worker in the meantime.
            del error
            return now.state is state
        finally:
            if self.storage.signs is not None:
                self.storage.signs.forget(trial.number)
        return True


def _count_retries(trial: FrozenTrial, by_number: dict[int, FrozenTrial]) -> int:
    def ancestors() -> Iterator[int]:
        number = trial.user_attrs.get(RETRY_OF)
        while number is not None and number in by_number:
            yield number
            number = by_number[number].user_attrs.get(RETRY_OF)

    return sum(1 for _ in ancestors())


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
