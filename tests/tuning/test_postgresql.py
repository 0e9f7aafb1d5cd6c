"""Studies on real storages that are killed at, taken away and asked in vain: PostgreSQL, SQLite and the journal."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
import sqlalchemy.orm
from optuna.trial import TrialState

from sb3_ppo_variants import cli
from sb3_ppo_variants.resume.format import from_bytes
from sb3_ppo_variants.resume.names import bundle_paths
from sb3_ppo_variants.tuning import Job, SharedStudy, StorageError, run_worker, run_workers
from sb3_ppo_variants.tuning.objective import make_training
from sb3_ppo_variants.tuning.study import RETRY_OF, WORKER
from sb3_ppo_variants.tuning.training import Training
from tests.processes import forkserver, ready_server
from tests.tuning.killing import check, kill_once, run_under_fire, start_worker, wait_until, workers_of
from tests.tuning.postgresql import PASSWORD, Server
from tests.tuning.studies import job_in, pretend, pretend_slowly

KINDS = ("postgresql", "sqlite", "journal")
HEARTBEAT = {"interval": 1, "grace": 8}  # on a busy machine a process may stand still
AWAY = 20.0
"""seconds for which storages are"""

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module", autouse=True)
def processes_begin_at_once() -> Iterator[None]:
    with ready_server("tests.tuning.killing", "torch", "psycopg", "optuna.samplers"):
        yield


@pytest.fixture
def job_on(tmp_path: Path, request: pytest.FixtureRequest) -> MakeJob:
    """Makes the jobs of one study on a storage of a kind; the server starts for the first that asks for it."""
    urls = {
        "sqlite": lambda: f"sqlite:///{tmp_path}/storage/study.db",
        "journal": lambda: f"journal:{tmp_path}/storage/study.log",
        "postgresql": lambda: request.getfixturevalue("postgresql").new_database(),
    }
    made: dict[str, str] = {}

    def make(kind: str, trials: int, **keys: Any) -> Job:
        made.setdefault(kind, urls[kind]())
        return job_in(tmp_path, trials, **{"storage": made[kind], "heartbeat": HEARTBEAT, "patience": 60, **keys})

    return make


# ------------------------------------------------------------------ workers


@pytest.mark.slow
def test_two_then_four_workers_on_a_server(job_on: MakeJob) -> None:
    assert run_workers(job_on("postgresql", 10), 2, "two", pretend_slowly) == 0
    assert check(job_on("postgresql", 10))["dead"] == 0
    job = job_on("postgresql", 30)
    assert run_workers(job, 4, "four", pretend_slowly) == 0
    assert check(job)["dead"] == 0
    assert len({trial.user_attrs.get("worker") for trial in SharedStudy(job).trials()} - {None}) == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_killed_at_random(kind: str, job_on: MakeJob, record_property: Callable[[str, object], None]) -> None:
    job = job_on(kind, 25)
    seed = random.randrange(2**32)
    record_property("seed", seed)
    print(f"seed {seed}")
    assert run_under_fire(job, seed, kills=6) == 6
    check(job)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trials"), [("sqlite", 60), ("journal", 200)])  # of about the same time
def test_many_short_trials_of_four_workers(kind: str, trials: int, job_on: MakeJob) -> None:
    job = job_on(kind, trials, seeds=1, objective={"episodes": 10, "chunks": 1})
    with workers_of(job, 4, pretend):
        pass
    assert check(job)["dead"] == 0


def _open(job: Job) -> None:
    SharedStudy(job).enqueue_paper()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_storage_that_all_open_at_once(kind: str, job_on: MakeJob) -> None:
    job = job_on(kind, 1)
    processes = [forkserver.Process(target=_open, args=(job,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert run_worker(job, "a", pretend) == 1
    (complete,) = SharedStudy(job).trials([TrialState.COMPLETE])
    assert complete.user_attrs["origin"] == "paper"


# ------------------------------------------------------------------ storages that go away


@contextmanager
def _server_away(_job: Job, request: pytest.FixtureRequest) -> Iterator[None]:
    server: Server = request.getfixturevalue("postgresql")
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def _file_locked(job: Job, _request: pytest.FixtureRequest) -> Iterator[None]:
    lock = sqlite3.connect(job.url.removeprefix("sqlite:///"), isolation_level=None, timeout=60)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        lock.close()


@contextmanager
def _journal_locked(job: Job, _request: pytest.FixtureRequest) -> Iterator[None]:
    link = Path(job.url.removeprefix("journal:") + ".lock")
    while True:
        try:
            link.symlink_to("another machine")
            break
        except FileExistsError:
            time.sleep(0.001)
    try:
        yield
    finally:
        link.unlink(missing_ok=True)


@contextmanager
def _folder_away(job: Job, _request: pytest.FixtureRequest) -> Iterator[None]:
    folder = Path(job.url.removeprefix("journal:")).parent
    away = folder.with_name("away")
    folder.rename(away)
    try:
        yield
    finally:
        away.rename(folder)


def _begun_by(job: Job) -> set[str]:
    return {trial.user_attrs[WORKER] for trial in SharedStudy(job).trials() if WORKER in trial.user_attrs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "away"),
    [
        ("postgresql", _server_away),
        ("sqlite", _file_locked),
        ("journal", _journal_locked),
        ("journal", _folder_away),
    ],
)
def test_a_storage_that_is_away_for_a_while(
    kind: str, away: Any, job_on: MakeJob, request: pytest.FixtureRequest
) -> None:
    job = job_on(kind, 40 if kind == "journal" else 14)  # of about the same time
    with workers_of(job, 2):
        wait_until(lambda: len(_begun_by(job)) == 2)  # one that opens a journal now would make its folder anew
        with away(job, request):
            time.sleep(AWAY)
    found = check(job)
    assert found["begun"] == 0  # nobody was taken for dead, as nobody could give signs of life
    for index in range(2):
        assert "does not answer" in (output := (job.folder / f"w-{index}.output").read_text())
        assert "asking again" in output


@pytest.mark.slow
def test_a_server_that_is_away_while_a_trial_is_made_is_told_of_by_us(
    job_on: MakeJob,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = SharedStudy(job_on("postgresql", 2, patience=5))
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.SILENT", 0.5)
    monkeypatch.delattr("optuna.storages._rdb.storage.time")  # with which optuna would wait, and say nothing
    with (
        _server_away(shared.job, request),
        pytest.raises(StorageError, match="did not answer for 5 seconds"),
    ):
        shared.storage.backend.create_new_trial(shared.study._study_id)
    assert "does not answer" in capsys.readouterr().err
    shared.storage.backend.create_new_trial(shared.study._study_id)
    assert len(shared.trials()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, 7])
def test_answers_that_are_lost(every: int, job_on: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends after the database has done what it was told, and before it says so."""
    job = job_on("sqlite", 4, heartbeat={"interval": 1, "grace": 2})
    SharedStudy(job)
    commit = sqlalchemy.orm.Session.commit
    commits = 0

    def lose(session: sqlalchemy.orm.Session) -> None:
        nonlocal commits
        commits += 1
        commit(session)
        if commits % every == 0:
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(sqlalchemy.orm.Session, "commit", lose)
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.FIRST_WAIT", 0.001)
    monkeypatch.setattr("optuna.storages._rdb.storage.random.random", lambda: 0.0)
    for worker in ("a", "b"):
        run_worker(job, worker, pretend)
    monkeypatch.setattr(sqlalchemy.orm.Session, "commit", commit)
    assert commits > 100
    check(job)


# ------------------------------------------------------------------ mistakes


def _shown(path: Path, job: Mapping[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``tune run`` says of a mistake: one sentence, in one line."""
    path.write_text(json.dumps(job))
    assert cli.main(["tune", "run", str(path)]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert PASSWORD not in told
    assert "s3cret" not in told
    return told


def _as_file(folder: Path, **keys: Any) -> dict[str, Any]:
    job = {
        "name": "tiny",
        "algorithm": "ppo_clip_paper",
        "environment": "CartPole-v1",
        "budget": {"trials": 1, "timesteps": 40_000},
        "folder": str(folder / "study"),
        "patience": 60,
    }
    return {**job, **keys}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": "s3cret-wrong"}, 'password authentication failed for user "tuner"'),
        ({"username": "nobody"}, 'authentication failed for user "nobody"'),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"password": None}, "no password supplied"),
    ],
)
def test_what_a_server_refuses_is_said_at_once(
    changes: dict[str, Any],
    words: str,
    postgresql: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage.time.sleep", pytest.fail)  # nothing is tried again
    told = _shown(tmp_path / "job.yml", _as_file(tmp_path, storage=postgresql.url(**changes)), capsys)
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"host": "no.such.host.invalid"}, "no.such.host.invalid"), ({"port": 1}, "Connection refused")],
)
def test_a_server_that_is_not_there(
    changes: dict[str, Any], words: str, postgresql: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = _as_file(tmp_path, storage=postgresql.url(**changes), patience=0.3)
    told = _shown(tmp_path / "job.yml", job, capsys)
    assert "did not answer for 0.3 seconds" in told
    assert words in told


def test_without_a_driver_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_ppo_variants.tuning.storage._is_installed", lambda _driver: False)
    job = _as_file(tmp_path, storage="postgresql://tuner:s3cret@localhost/x")
    told = _shown(tmp_path / "job.yml", job, capsys)
    assert 'postgresql://tuner:***@localhost/x needs the [postgresql] extra: pip install "sb3-ppo-variants[post' in told
    job = _as_file(tmp_path, storage="postgresql+asyncpg://tuner:s3cret@localhost/x")
    assert "needs the [postgresql] extra" in _shown(tmp_path / "job.yml", job, capsys)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@host:port/x", "got 'postgresql://***@host:port/x'"),
        ("postgresql+psycopg://localhost:1/x?user=me&password=s3cret", "password=***"),
    ],
)
def test_no_password_is_told(url: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown in _shown(tmp_path / "job.yml", _as_file(tmp_path, storage=url, patience=0), capsys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"space": {"learning_rat": {"low": 1e-5}}}, "learning_rat"),
        ({"space": {"clip_range": {"low": -1.0}}}, "clip_range"),
        ({"space": {"n_epochs": {"low": 5, "high": 2}}}, "n_epochs"),
    ],
)
def test_a_wrong_space_makes_no_study(
    keys: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in _shown(tmp_path / "job.yml", _as_file(tmp_path, **keys), capsys)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_another_space_is_left_as_it_is(
    kind: str, job_on: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_on(kind, 1)
    run_worker(job, "a", pretend)
    before = SharedStudy(job).trials()
    other = _as_file(tmp_path, storage=job.url, space={"n_epochs": {"high": 20}})
    told = _shown(tmp_path / "job.yml", other, capsys)
    assert "begun with another" in told
    assert told.count("\n") == 1
    assert SharedStudy(job).trials() == before


# ------------------------------------------------------------------ a real training


def notes_where_it_begins(job: Job, settings: Mapping[str, Any], seed: int, folder: Path) -> Training:
    """A real training, which writes down at which timesteps processes have begun with it."""
    training: Any = make_training(job, settings, seed, folder)
    make_model = training._make_model

    def make() -> Any:
        model = make_model()
        collect = model.collect_rollouts

        def note_once(*arguments: Any, **keywords: Any) -> bool:
            del model.collect_rollouts  # an attribute of the model would be saved with it
            with open(folder / "began", "a") as file:
                file.write(f"{model.num_timesteps}\n")
            return collect(*arguments, **keywords)

        model.collect_rollouts = note_once
        return model

    training._make_model = make
    return training


@pytest.mark.slow
def test_a_real_training_that_is_killed_ends_as_if_it_was_not(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "environment": "Pendulum-v1",
        "budget": {"trials": 2, "timesteps": 6400},
        "objective": {"episodes": 10, "chunks": 4},
        "space": {
            "n_steps": {"choices": [200, 400]},  # episodes, of 200 steps each, end with the rollouts
            "n_minibatches": {"choices": [1, 2, 4]},
            "n_envs": {"choices": [1, 2]},
            "n_epochs": {"high": 2},
            "network": {"choices": ["8x8"]},
        },
        "heartbeat": HEARTBEAT,
        "bundle_interval": 0,
    }
    undisturbed, killed = job_in(tmp_path / "undisturbed", **keys), job_in(tmp_path / "killed", **keys)
    first = start_worker(killed, "a", notes_where_it_begins)
    run = killed.folder / "trial_00001" / "seed_1000"
    kill_once(first, (run / "scores.json").exists)  # each seed has come to the first judgement
    steps = [from_bytes(path.read_bytes())["model"]["attributes"]["num_timesteps"] for path in bundle_paths(run)]
    for job, name in ((killed, "b"), (undisturbed, "a")):
        other = start_worker(job, name, notes_where_it_begins)
        other.join()
        assert other.exitcode == 0
    assert [int(line) for line in (run / "began").read_text().split()] == [0, max(steps)]
    assert max(steps) >= killed.boundaries[0]
    expected = SharedStudy(undisturbed).trials()
    (paper, lost, retried) = SharedStudy(killed).trials()
    assert (lost.state, retried.user_attrs[RETRY_OF]) == (TrialState.FAIL, 1)
    for trial, reference in zip((paper, retried), expected, strict=True):
        assert trial.params == reference.params
        assert trial.value == reference.value
        assert trial.intermediate_values == reference.intermediate_values
        assert trial.user_attrs["scores"] == reference.user_attrs["scores"]
