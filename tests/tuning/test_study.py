"""Studies in one process, with trainings that pretend: budgets, duplicates, interruptions, the dead, storages."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sb3_ppo_variants.resume.folder import RunFolder
from sb3_ppo_variants.resume.names import BUNDLES
from sb3_ppo_variants.tuning import (
    Job,
    SharedStudy,
    StorageError,
    best,
    describe_best,
    describe_status,
    export,
    run_worker,
    run_workers,
    status,
)
from sb3_ppo_variants.tuning.spaces import paper_params
from sb3_ppo_variants.tuning.storage import LOCK_TIMEOUT, SQLITE_TIMEOUT, Patience
from sb3_ppo_variants.tuning.storage import _JournalLock as JournalLock
from sb3_ppo_variants.tuning.study import NOT_RUN, RETRY_OF, WORKER, make_sampler
from sb3_ppo_variants.tuning.training import POLICY, Score
from tests.tuning.studies import Pretended, job_in, pretend

STORAGES = ("sqlite", "journal")


def job_on(kind: str, folder: Path, trials: int = 4, **keys: Any) -> Job:
    url = f"journal:{folder / 'study.log'}" if kind == "journal" else f"sqlite:///{folder / 'study.db'}"
    keys = {"storage": url, **keys}
    return job_in(folder, trials, **keys)


@pytest.mark.parametrize("kind", STORAGES)
def test_a_worker_runs_the_budget_and_the_paper_comes_first(kind: str, tmp_path: Path) -> None:
    job = job_on(kind, tmp_path)
    assert run_worker(job, "a", pretend) == 4
    trials = SharedStudy(job, create=False).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    first = trials[0]
    assert first.params == paper_params(job.algorithm, job.environment, job.space)
    assert first.user_attrs["origin"] == "paper"
    assert first.intermediate_values.keys() == set(job.boundaries)
    scores = first.user_attrs["scores"]
    assert first.value == pytest.approx(sum(scores["means"]) / 2)
    assert scores["spread"] == pytest.approx(0.1 / 2**0.5)
    assert (scores["episodes"], scores["timesteps"]) == ([10, 10], [160_000, 160_000])
    assert run_worker(job, "b", pretend) == 0  # nothing is left
    now = status(job)
    assert (now.counts.complete, now.counts.finished, now.budget) == (4, 4, 4)
    assert "4 of 4 trials finished" in describe_status(job, now)


def test_more_trials_may_be_asked_for_later(tmp_path: Path) -> None:
    run_worker(job_in(tmp_path, 2), "a", pretend)
    assert run_worker(job_in(tmp_path, 5), "a", pretend) == 3


def test_samplers_of_workers_differ_and_repeat() -> None:
    def draws(worker: str) -> list[float]:
        job = job_in(Path())
        study = optuna.create_study(sampler=make_sampler(job, worker))
        return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]

    assert draws("a") == draws("a")
    assert draws("a") != draws("b")


@pytest.mark.parametrize("kind", STORAGES)
def test_no_parameters_are_tried_twice(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.study.MAX_DRAWS", 20)
    choices = [0.1, 0.2, 0.3]
    space: dict[str, Any] = {each.name: None for each in job_in(tmp_path).space}
    space = {name: None for name in space if name not in ("log_std_start", "log_std_end")}
    job = job_on(kind, tmp_path, 3, space={**space, "clip_range": {"type": "categorical", "choices": choices}})
    assert len(job.space) == 1

    class Flat(Pretended):
        def value(self, timesteps: int) -> float:
            return 0.0

    run_worker(job, "a", Flat)
    shared = SharedStudy(job)
    assert sorted(trial.params["clip_range"] for trial in shared.trials([TrialState.COMPLETE])) == choices
    failed = shared.trials([TrialState.FAIL])
    assert all("same parameters" in trial.user_attrs[NOT_RUN] for trial in failed)
    more = job_on(kind, tmp_path, 4, space={**space, "clip_range": {"type": "categorical", "choices": choices}})
    with pytest.raises(ValueError, match="20 draws in a row gave parameters that other trials have"):
        run_worker(more, "a", Flat)


class StandsStillError(Exception):
    """A worker goes no further."""


@contextmanager
def standing_still(shared: SharedStudy, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker that stands still before it fails the trial that it gives up."""

    def stand_still(*_: Any) -> None:
        raise StandsStillError

    with monkeypatch.context() as context:
        context.setattr(shared, "finish", stand_still)
        with pytest.raises(StandsStillError):
            yield


def look_with(shared: SharedStudy, monkeypatch: pytest.MonkeyPatch, others_do: Callable[[], None], when: str) -> None:
    """Have others do something before or after a worker looks at their trials for the first time."""
    look = shared._reason_not_to_run

    def look_once(trial: optuna.Trial) -> Any:
        monkeypatch.setattr(shared, "_reason_not_to_run", look)
        if when == "before":
            others_do()
        reason = look(trial)
        if when == "after":
            others_do()
        return reason

    monkeypatch.setattr(shared, "_reason_not_to_run", look_once)


def papers_queued_by(*workers: SharedStudy) -> None:
    """Each queues the paper's values, having looked before the others wrote."""
    for shared in workers:
        with pytest.MonkeyPatch.context() as context:
            context.setattr(shared, "trials", list)
            shared.enqueue_paper()


@pytest.mark.parametrize(("trials", "when"), [(4, "before"), (1, "after"), (2, "after")])
def test_of_an_entry_that_was_queued_twice_the_first_runs(
    trials: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, trials)
    first, *others = (SharedStudy(job, f"worker {index}") for index in range(min(trials + 1, 3)))
    papers_queued_by(first, *others)

    def are_given_up() -> None:
        for other in others:
            with standing_still(other, monkeypatch):
                other.next_trial()

    look_with(first, monkeypatch, are_given_up, when)
    trial = first.next_trial()
    assert trial is not None
    assert (trial.number, trial.user_attrs[WORKER]) == (0, "worker 0")
    given_up = first.trials()[1:]
    assert [each.user_attrs[NOT_RUN] for each in given_up] == ["trial 0 was queued for the same"] * len(others)


@pytest.mark.parametrize("trials", [1, 4])
def test_of_a_dead_workers_trial_that_was_queued_again_twice_the_first_runs(
    trials: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedStudy(job_in(tmp_path, trials), "a")
    shared.enqueue_paper()
    paper = shared._ask(evenly=False)  # by a worker that dies before it looks at the others
    for _ in range(trials - 1):
        assert shared.next_trial() is not None
    shared.storage.backend.set_trial_state_values(paper._trial_id, state=TrialState.FAIL)
    trials_before = shared.trials()
    dead = trials_before[0]
    shared._retry(dead)
    with monkeypatch.context() as context:
        context.setattr(shared, "trials", lambda: trials_before)
        shared._retry(dead)
    heir = shared.next_trial()
    assert heir is not None
    assert (heir.number, heir.user_attrs[RETRY_OF]) == (trials, 0)


def test_of_an_entry_that_was_queued_twice_a_dead_workers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_in(tmp_path)
    first, second = SharedStudy(job, "first"), SharedStudy(job, "second")
    papers_queued_by(first, second)
    dead = first._ask(evenly=False)
    first.storage.backend.set_trial_state_values(dead._trial_id, state=TrialState.FAIL)
    first._retry(first.trials()[0])
    begun: list[optuna.Trial | None] = []
    look_with(second, monkeypatch, lambda: begun.append(first.next_trial()), "before")
    begun.append(second.next_trial())
    assert [each.number for each in begun if each is not None] == [2, 3]
    assert begun[0] is not None
    assert (begun[0].user_attrs[RETRY_OF], begun[0].user_attrs["origin"]) == (0, "paper")


def test_another_job_of_the_same_name_is_refused(tmp_path: Path) -> None:
    run_worker(job_in(tmp_path, 1), "a", pretend)
    before = status(job_in(tmp_path, 1))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seeds": 3}, "another 'seeds' \\(2 then, 3 now\\)"),
        ({"space": {"n_epochs": {"high": 20}}}, "another 'space' \\(n_epochs: high: 30 then, 20 now\\)"),
        ({"fixed": {"vf_coef": 0.5}}, "another 'base' \\(vf_coef: None then, 0.5 now\\)"),
        ({"environment": "Pendulum-v1"}, "another 'environment'"),
    ]
    for keys, words in cases:
        with pytest.raises(ValueError, match=words):
            run_worker(job_in(tmp_path, 1, **keys), "a", pretend)
    assert status(job_in(tmp_path, 1)) == before
    optuna.create_study(storage=f"sqlite:///{tmp_path}/other.db", study_name="tiny").add_trial(
        optuna.create_trial(value=1.0)
    )
    with pytest.raises(ValueError, match="is none of ours: give the job another name"):
        run_worker(job_in(tmp_path, storage=f"sqlite:///{tmp_path}/other.db"), "a", pretend)


def test_there_is_no_study_yet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no study 'tiny' in journal:.*; tune run begins one"):
        status(job_in(tmp_path))
    assert not list(tmp_path.iterdir())  # looking makes nothing


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_goes_on_where_it_was(kind: str, error: type[BaseException], tmp_path: Path) -> None:
    job = job_on(kind, tmp_path, 2)
    made: list[Pretended] = []

    class Interrupted(Pretended):
        def advance(self, timesteps: int) -> Score:
            made.append(self)
            if timesteps == job.boundaries[2]:
                raise error
            return super().advance(timesteps)

    with pytest.raises(error):
        run_worker(job, "a", Interrupted)
    assert all(training.stopped for training in made)
    (trial,) = SharedStudy(job).trials()
    assert trial.state is TrialState.WAITING
    assert list(trial.intermediate_values) == job.boundaries[:2]

    made.clear()

    class GoesOn(Pretended):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            made.append(self)

    assert run_worker(job, "b", GoesOn) == 2
    assert [training.advances for training in made[:2]] == [job.boundaries[2:]] * 2
    assert [trial.state for trial in SharedStudy(job).trials()] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("kind", STORAGES)
def test_a_dead_workers_trial_is_taken_up_once(kind: str, tmp_path: Path) -> None:
    job = job_on(kind, tmp_path, 1)
    for attempt in range(2):
        shared = SharedStudy(job, f"dead {attempt}")
        trial = shared.next_trial()
        assert trial is not None
        assert trial.number == attempt
        if attempt == 0:
            trial.report(1.0, job.boundaries[0])
        frozen = next(each for each in shared.trials() if each.number == attempt)
        assert shared.folder_of(frozen) == job.folder / "trial_00000"
        assert frozen.params == paper_params(job.algorithm, job.environment, job.space)
        assert list(frozen.intermediate_values) == job.boundaries[:1]
    assert run_worker(job, "alive", pretend) == 1
    first, second, third = SharedStudy(job).trials()
    assert (first.state, second.state, third.state) == (TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE)
    assert second.user_attrs[RETRY_OF] == 0
    assert RETRY_OF not in third.user_attrs  # the paper's parameters have failed twice: others are drawn
    assert third.user_attrs[WORKER] == "alive"


def test_a_worker_that_dies_before_its_first_heartbeat_is_noticed_too(tmp_path: Path) -> None:
    job = job_on("sqlite", tmp_path, 1)
    shared = SharedStudy(job, "a")
    trial_id = shared.storage.backend.create_new_trial(shared.study._study_id)
    assert run_worker(job, "b", pretend) == 1
    assert shared.storage.backend.get_trial(trial_id).state is TrialState.FAIL


@pytest.mark.parametrize("kind", STORAGES)
def test_a_worker_that_was_too_late_gives_its_trial_up(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_on(kind, tmp_path, 1)

    class Late(Pretended):
        def advance(self, timesteps: int) -> Score:
            if timesteps == job.boundaries[1] and self.seed == 0 and not (tmp_path / "late").exists():
                (tmp_path / "late").touch()
                other = SharedStudy(job, "other")
                (trial,) = other.trials()
                other.storage.backend.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
                other._retry(SharedStudy(job).trials()[0])
            return super().advance(timesteps)

    assert run_worker(job, "a", Late) == 1
    assert "was given to another worker" in capsys.readouterr().out
    assert [trial.state for trial in SharedStudy(job).trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_divergence_is_named_and_every_other_error_ends_the_worker(tmp_path: Path) -> None:
    job = job_in(tmp_path, 2)

    class Diverges(Pretended):
        def advance(self, timesteps: int) -> Score:
            if self.settings["learning_rate"] == 3e-4:
                raise FloatingPointError("the loss is NaN")
            return super().advance(timesteps)

    assert run_worker(job, "a", Diverges) == 2
    first = SharedStudy(job).trials()[0]
    assert first.state is TrialState.PRUNED
    assert first.user_attrs["diverged"] == "seed 0 diverged on the way to 40000 timesteps: the loss is NaN"
    assert "1, 1 of them diverged" in describe_status(job, status(job))

    for error in (ValueError("a bug"), AssertionError("a bug"), RuntimeError("a bug")):

        def fails(*_: Any, error: Exception = error) -> Any:
            raise error

        with pytest.raises(type(error), match="a bug"):
            run_worker(job_in(tmp_path, 20), "a", fails)
        last = SharedStudy(job).trials()[-1]
        assert last.state is TrialState.FAIL
        assert last.user_attrs["error"] == f"{type(error).__name__}: a bug"


def test_the_papers_trial_is_run_again_after_an_error(tmp_path: Path) -> None:
    job = job_in(tmp_path, 2)

    def fails(*_: Any) -> Any:
        raise RuntimeError("no display")

    with pytest.raises(RuntimeError, match="no display"):
        run_workers(job, 1, "a", fails)
    assert run_workers(job, 1, "a", pretend) == 0
    failed, paper, other = SharedStudy(job).trials()
    assert failed.state is TrialState.FAIL
    assert paper.params == failed.params
    assert (paper.state, other.state) == (TrialState.COMPLETE, TrialState.COMPLETE)


@pytest.mark.slow
def test_pruning_compares_all_seeds_at_the_same_step(tmp_path: Path) -> None:
    job = job_in(tmp_path, 6, pruner={"name": "median", "n_startup_trials": 1, "n_warmup_steps": 0})
    order: list[tuple[int, int]] = []

    class Worse(Pretended):
        def advance(self, timesteps: int) -> Score:
            order.append((timesteps, self.seed))
            return super().advance(timesteps)

        def value(self, timesteps: int) -> float:
            return 1.0 if self.settings["learning_rate"] == 3e-4 else -1.0 + self.seed / 1000

    run_worker(job, "a", Worse)
    trials = SharedStudy(job).trials()
    assert order[:8] == [(step, seed) for step in job.boundaries for seed in (0, 1000)]
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.intermediate_values == {job.boundaries[0]: -0.5}  # after both seeds, not after the first


def test_a_budget_too_small_for_an_episode_is_named(tmp_path: Path) -> None:
    class Endless(Pretended):
        def advance(self, timesteps: int) -> Score:
            return Score(float("nan"), 0, timesteps)

    with pytest.raises(
        ValueError, match="timesteps must be enough for an episode of every seed; none ended within 160000"
    ):
        run_worker(job_in(tmp_path), "a", Endless)


# ------------------------------------------------------------------ the best


@pytest.mark.slow
def test_the_best_are_trained_again_on_fresh_seeds_once(tmp_path: Path) -> None:
    job = job_in(tmp_path, 5)
    run_worker(job, "a", pretend)
    made: list[tuple[int, Path]] = []

    def make(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> Pretended:
        made.append((seed, folder))
        return Pretended(job, settings, seed, folder)

    rated = best(job, make=make)
    assert [seed for seed, _ in made] == [1_000_000] * 3 + [1_001_000] * 3
    assert len({folder for _, folder in made}) == 6
    assert len({each.trial.number for each in rated}) == 3  # the best two, and the paper's
    assert [each.is_paper for each in rated].count(True) == 1
    assert rated[0].interval.mean >= rated[1].interval.mean >= rated[2].interval.mean
    assert rated[0].interval.half_width == pytest.approx(12.706 * 0.1 / 2**0.5 / 2**0.5, rel=1e-3)
    assert best(job, make=make) == rated
    assert len(made) == 6
    words = describe_best(job, rated)
    assert f"best: trial {rated[0].trial.number}, {rated[0].interval}" in words
    assert "the 95 % intervals of the best and of the paper's values overlap" in words

    path = export(job, rated[0], tmp_path / "tuned.yml")
    text = path.read_text()
    assert f"trial {rated[0].trial.number} of the study tiny" in text
    assert str(rated[0].interval) in text
    from sb3_ppo_variants.safe_yaml import load_yaml

    assert load_yaml(path) == {"CartPole-v1": job.settings(rated[0].trial.params)}
    with pytest.raises(ValueError, match=r"--export must name a .yml file in a folder that exists"):
        export(job, rated[0], tmp_path / "no" / "tuned.yml")


@pytest.mark.slow
def test_a_seed_that_diverges_ranks_its_trial_last_and_the_papers_values_are_there_though_pruned(
    tmp_path: Path,
) -> None:
    class Study(Pretended):
        def value(self, timesteps: int) -> float:
            return -9.0 if self.settings["learning_rate"] == 3e-4 else self.settings["vf_coef"]

    space = {"vf_coef": {"type": "float", "low": 0, "high": 1}}
    pruner = {"name": "median", "n_startup_trials": 1, "n_warmup_steps": 0}
    job = job_in(tmp_path, 3, space=space, pruner=pruner)
    shared = SharedStudy(job)
    shared.study.enqueue_trial({"vf_coef": 0.5, "learning_rate": 1e-3})
    shared.study.enqueue_trial({"vf_coef": 0.7, "learning_rate": 1e-3})
    shared.enqueue_paper()
    run_worker(job, "a", Study)
    assert [trial.state for trial in shared.trials()] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED]

    class Again(Study):
        def advance(self, timesteps: int) -> Score:
            if self.settings["vf_coef"] == 0.7 and self.seed == 1_001_000:
                raise FloatingPointError("the loss is NaN")
            return super().advance(timesteps)

    rated = best(job, make=Again)
    assert [each.trial.number for each in rated] == [0, 2, 1]
    words = describe_best(job, rated)
    assert "trial 1: diverged (2 seeds); in the study 0.7" in words
    assert "trial 2: -9 ± 0 (95 %, 2 seeds); pruned in the study (the paper's values)" in words
    assert "do not overlap" in words
    diverged = rated[1]._replace(scores=[float("nan")] * 2)
    assert "the paper's values diverge on fresh seeds" in describe_best(job, [rated[0], diverged])
    path = export(job, rated[1], tmp_path / "paper.yml")
    assert "It was pruned in the study." in path.read_text()


@pytest.mark.slow
def test_policies_of_the_best_are_kept_and_bundles_of_trials_that_ended_are_not(tmp_path: Path) -> None:
    class Saves(Pretended):
        def advance(self, timesteps: int) -> Score:
            (self.folder / BUNDLES).mkdir(parents=True, exist_ok=True)
            if timesteps == self.job.budget.timesteps:
                (self.folder / POLICY[0]).touch()
            return super().advance(timesteps)

    job = job_in(tmp_path, 6)
    run_worker(job, "a", Saves)
    ranked = SharedStudy(job).ranked()
    with_policy = {path.parent.parent.name for path in job.folder.glob(f"trial_*/*/{POLICY[0]}")}
    assert with_policy == {f"trial_{trial.number:05d}" for trial in ranked[: job.rerun.best]}
    assert not list(job.folder.rglob(BUNDLES))
    assert len(list(job.folder.glob("trial_*/*/progress.json"))) == 12  # the logs of all


def test_the_best_of_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    SharedStudy(job)
    with pytest.raises(ValueError, match="has no complete trial among 0 finished ones: tune run goes on"):
        best(job, make=pretend)


# ------------------------------------------------------------------ storages


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense:x", "storage must be journal:<file> or a URL such as"),
        ("nosql://localhost/x", "cannot be used: Can't load plugin"),
        ("sqlite:////proc/no/study.db", "cannot be used: .*No such file"),
        ("journal:/proc/no/study.log", "cannot be used: .*No such file"),
    ],
)
def test_a_wrong_storage_is_named(storage: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=message):
        SharedStudy(job_in(tmp_path, storage=storage, patience=0))


def test_a_file_that_is_no_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database " * 100)
    (tmp_path / "study.log").write_text("not a journal\n" * 3)
    for storage in (f"sqlite:///{tmp_path / 'study.db'}", f"journal:{tmp_path / 'study.log'}"):
        with pytest.raises(StorageError, match=r"storage .*study.(db|log) "):
            SharedStudy(job_in(tmp_path, storage=storage, patience=0))


def test_no_password_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as told:
        SharedStudy(job_in(tmp_path, storage="nosql://me:secret@localhost/x", patience=0))
    assert "secret" not in str(told.value)


def test_a_locked_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.SQLITE_TIMEOUT", 0.1)
    job = job_on("sqlite", tmp_path, 2, patience=20)
    SharedStudy(job)
    lock = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.5, lambda: lock.execute("ROLLBACK"))
    timer.start()
    began = time.monotonic()
    assert run_worker(job, "a", pretend) == 2
    assert time.monotonic() - began > 1
    timer.join()

    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match=r"did not answer for 0\.3 seconds: database is locked"):
        SharedStudy(job_on("sqlite", tmp_path, 2, patience=0.3))
    lock.close()


@pytest.mark.parametrize("others_do", ["BEGIN EXCLUSIVE", "BEGIN; SELECT * FROM trials"])  # met at BEGIN, at COMMIT
def test_a_lock_that_lasts_is_told_of_while_a_trial_is_made(
    others_do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Optuna itself tries five times to make a trial, with up to two seconds between them, and says nothing."""
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.SQLITE_TIMEOUT", 0.1)
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.SILENT", 0.2)
    monkeypatch.setattr("optuna.storages._rdb.storage.random.random", lambda: 1.0)
    shared = SharedStudy(job_on("sqlite", tmp_path, 2, patience=20))
    shared.study.enqueue_trial({})
    lock = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    for statement in others_do.split("; "):
        lock.execute(statement)
    timer = threading.Timer(1.5, lock.close)
    timer.start()
    assert capsys.readouterr().err == ""
    shared.storage.backend.create_new_trial(shared.study._study_id)
    assert "does not answer (database is locked); asking again" in capsys.readouterr().err
    assert len(shared.trials()) == 2
    timer.join()


class Clock:
    """Time that passes only while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.time", clock)
    return clock


def test_patience_that_ends_in_a_transaction_leaves_a_storage_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.SQLITE_TIMEOUT", 0.1)
    shared = SharedStudy(job_on("sqlite", tmp_path, 2, patience=0.3))
    lock = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match=r"did not answer for 0\.3 seconds: database is locked"):
        shared.storage.backend.create_new_trial(shared.study._study_id)
    lock.close()
    shared.storage.backend.create_new_trial(shared.study._study_id)
    assert len(shared.trials()) == 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(10.0, "a server does not answer (timed out); asking again\n"), (max(SQLITE_TIMEOUT, LOCK_TIMEOUT), "")],
)
def test_a_first_try_is_told_of_if_it_takes_longer_than_a_wait_for_a_lock(
    seconds: float, told: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_once() -> str:
        if clock.now == 0.0:
            clock.sleep(seconds)
            raise ConnectionError("timed out")
        return "answer"

    assert Patience("a server", 60).call(fails_once) == "answer"
    assert capsys.readouterr().err == told


def test_a_server_that_is_away_is_asked_again(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    from sqlalchemy.exc import IntegrityError, OperationalError

    def away(until: float) -> str:
        if clock.now < until:
            try:
                raise OperationalError("SELECT 1", {}, Exception("connection refused"))
            except OperationalError as error:
                raise optuna.exceptions.StorageInternalError("commit") from error
        return "answer"

    assert Patience("a server", 60).call(lambda: away(20)) == "answer"
    assert 20 <= clock.now < 60
    assert "a server does not answer (connection refused); asking again" in capsys.readouterr().err
    with pytest.raises(StorageError, match="storage a server did not answer for 30 seconds: connection refused"):
        Patience("a server", 30).call(lambda: away(1000))

    def wrong() -> None:
        raise IntegrityError("INSERT", {}, Exception("twice"))

    with pytest.raises(IntegrityError):  # is no matter of patience
        Patience("a server", 30).call(wrong)


def test_a_folder_that_is_still_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_variants.resume.folder.LOCK_PATIENCE", 0.1)
    job = job_in(tmp_path, 1)
    shared = SharedStudy(job, "suspended")
    assert shared.next_trial() is not None
    (trial,) = shared.trials()
    shared.storage.backend.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    shared._retry(shared.trials()[0])
    with RunFolder(shared.folder_of(trial) / "seed_1000").owned():
        assert run_worker(job, "other", pretend) == 1
    assert (job.folder / "trial_00000_again_1" / "seed_1000" / "progress.json").is_file()
    assert not (job.folder / "trial_00000" / "seed_0").exists()


def test_half_a_line_of_a_killed_writer_is_mended(tmp_path: Path) -> None:
    job = job_on("journal", tmp_path, 2)
    SharedStudy(job)
    path = tmp_path / "study.log"
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert run_worker(job, "a", pretend) == 2
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_journals_lock_has_one_holder_though_it_was_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.LOCK_TIMEOUT", 0.05)
    path = tmp_path / "study.log"
    holder = JournalLock(path)
    assert holder.acquire()
    holder.release()
    (local,) = tmp_path.glob("study.log.lock.*")
    with open(local, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a holder has it before and after the link is there
        with pytest.raises(TimeoutError, match="another process writes to it"):
            JournalLock(path).acquire()
    assert holder.acquire()
    with pytest.raises(TimeoutError, match="another process writes to it"):
        JournalLock(path).acquire()
    assert holder.acquire()  # a signal came before it was released
    holder.release()


def test_each_machine_has_a_file_of_its_own_for_the_kernels_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may carry that lock to other machines."""
    for machine in ("one", "another"):
        monkeypatch.setattr("sb3_ppo_variants.tuning.storage._machine", machine.strip)
        lock = JournalLock(tmp_path / "study.log")
        assert lock.acquire()
        lock.release()
    assert len(list(tmp_path.glob("study.log.lock.*"))) == 2


def test_sigterm_puts_the_trial_back(tmp_path: Path) -> None:
    job = job_in(tmp_path, 1)

    class Terminated(Pretended):
        def advance(self, timesteps: int) -> Score:
            if timesteps == job.boundaries[1]:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().advance(timesteps)

    with pytest.raises(SystemExit):
        run_workers(job, 1, "a", Terminated)
    assert [trial.state for trial in SharedStudy(job).trials()] == [TrialState.WAITING]


def test_options_of_samplers_and_pruners_are_checked(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sampler": {"name": "tpe", "n_startup_trails": 3}}, "argument of sampler tpe, 'n_startup_trails', did you"),
        ({"pruner": {"name": "median", "n_warmup": 3}}, "argument of pruner median, 'n_warmup', did you mean"),
        ({"pruner": "percentile"}, "percentile must have a 'percentile'"),
    ]
    for keys, message in cases:
        with pytest.raises(ValueError, match=message):
            SharedStudy(job_in(tmp_path, **keys))
    job = job_in(tmp_path, sampler={"name": "tpe", "n_startup_trials": "x"})  # which optuna notices when it draws
    with pytest.raises(ValueError, match=r"sampler tpe with {'n_startup_trials': 'x'}: "):
        run_worker(job, "a", pretend)
    assert TrialState.RUNNING not in {trial.state for trial in SharedStudy(job).trials()}
    make: Callable[..., Job] = job_in
    for name in ("median", "successive_halving", "hyperband", "none"):
        SharedStudy(make(tmp_path, pruner=name, storage=f"sqlite:///{tmp_path}/{name}.db"))
