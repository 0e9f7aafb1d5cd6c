"""Where a study is kept, and how what is kept there is reached when it does not answer at once."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
import sqlalchemy.event
import sqlalchemy.exc
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from sb3_ppo_variants.tuning.job import Heartbeat, Job

Result = TypeVar("Result")

JOURNAL = "journal:"
# Seconds between two tries: doubled from the first to the last.
FIRST_WAIT = 0.2
LONGEST_WAIT = 10.0
# Seconds for which SQLite itself waits for another process's lock.
SQLITE_TIMEOUT = 30


class StorageError(ValueError):
    """A study's storage cannot be used; the message says which, and why."""


class Patience:
    """Asks again where a storage does not answer: for a while, less and less often.

    :param name: of the storage, for messages
    :param seconds: for which it is asked again; 0: never
    """

    def __init__(self, name: str, seconds: float):
        self._name, self._seconds = name, seconds

    def call(self, function: Callable[[], Result]) -> Result:
        """What the function returns, once it does.

        :raises StorageError: if it fails for longer than patience lasts
        """
        deadline: float | None = None
        wait = FIRST_WAIT
        while True:
            try:
                return function()
            except (OSError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                if not is_transient(error):
                    raise
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self._seconds
                elif wait > 1:  # the first few tries are nobody's concern
                    print(f"{self._name} does not answer ({_cause(error)}); asking again", file=sys.stderr)
                if now >= deadline:
                    raise StorageError(
                        f"storage {self._name} did not answer for {self._seconds:g} seconds: {_cause(error)}"
                    ) from error
                time.sleep(min(wait, max(0.0, deadline - now)))
                wait = min(2 * wait, LONGEST_WAIT)


def is_transient(error: BaseException) -> bool:
    """Whether an error may pass: a lock, a server that is away, a file system that is."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        passing = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
        return isinstance(error, passing) or error.connection_invalidated
    return isinstance(error, (OSError, sqlalchemy.exc.TimeoutError))


def _cause(error: BaseException) -> str:
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig  # the driver's own words, without SQLAlchemy's statement and link
    return " ".join(str(error).split())


# ------------------------------------------------------------------ databases


class _PatientDatabase(RDBStorage):
    """Optuna's, each of whose operations is tried again."""

    def __init__(self, patience: Patience, url: str, **arguments: Any):
        self.patience = patience
        super().__init__(url, **arguments)
        if self.engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(self.engine, "begin", _begin_alone)


def _begin_alone(connection: sqlalchemy.Connection) -> None:
    """Take SQLite's lock before a transaction reads what it will change.

    By itself Python begins a transaction only where it writes, and two workers could take the same trial.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _patient(method: Callable[..., Result]) -> Callable[..., Result]:
    @functools.wraps(method)
    def call(self: _PatientDatabase, *arguments: Any, **keywords: Any) -> Result:
        return self.patience.call(lambda: method(self, *arguments, **keywords))

    return call


# Those that a study and its heartbeat use; each is one transaction, or reads.
_OPERATIONS = (
    "create_new_study",
    "create_new_trial",
    "get_all_studies",
    "get_all_trials",
    "get_best_trial",
    "get_n_trials",
    "get_study_directions",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "record_heartbeat",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_intermediate_value",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_system_attr",
    "set_trial_user_attr",
    "_create_new_trial",  # the rest: what the cache in front of it calls
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
)
for _name in _OPERATIONS:
    if hasattr(RDBStorage, _name):
        setattr(_PatientDatabase, _name, _patient(getattr(RDBStorage, _name)))


def _open_database(url: str, heartbeat: Heartbeat, patience: Patience, on_stale: Any) -> RDBStorage:
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StorageError(
            "storage must be journal:<file> or a URL such as sqlite:///study.db or postgresql://user@host/database; "
            f"got {url!r}"
        ) from None
    name = parsed.render_as_string(hide_password=True)
    arguments: dict[str, Any] = {"pool_pre_ping": True}  # connections that a restarted server has forgotten
    if parsed.get_backend_name() == "sqlite":
        arguments = {"connect_args": {"timeout": SQLITE_TIMEOUT, "isolation_level": None}}
        if parsed.database and parsed.database != ":memory:":
            _make_folder(Path(parsed.database).parent, name)

    def connect() -> RDBStorage:
        with warnings.catch_warnings():
            # Optuna calls its heartbeat experimental; its interface is checked by our tests.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _PatientDatabase(
                patience,
                url,
                engine_kwargs=arguments,
                heartbeat_interval=heartbeat.interval,
                grace_period=heartbeat.grace,
                heartbeat_stale_trial_callback=on_stale,
            )

    try:
        return patience.call(connect)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        raise StorageError(f"storage {name} cannot be used: {_cause(error)}") from error


def _make_folder(folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage {name} cannot be used: {error}") from error


# ------------------------------------------------------------------ the journal


class _MendedJournal(JournalFileBackend):
    """Optuna's file of operations, which a writer that is killed cannot spoil for the others.

    Optuna appends to whatever there is; half a line of a killed writer would make the next one unreadable.
    """

    def __init__(self, path: Path, patience: Patience):
        self._path, self._patience = path, patience
        self._writing = JournalFileSymlinkLock(str(path.resolve()))
        super().__init__(str(path), lock_obj=self._writing)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """As optuna's, all at once, so that it can be tried again."""
        try:
            yield from self._patience.call(lambda: list(super(_MendedJournal, self).read_logs(log_number_from)))
        except json.JSONDecodeError as error:
            raise StorageError(f"storage {JOURNAL}{self._path} cannot be read: {error}") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """As optuna's, in the place of what was written by half."""
        self._patience.call(lambda: self._append(logs))

    def _append(self, logs: list[dict[str, Any]]) -> None:
        self._writing.acquire()
        try:
            whole = _length_of_whole_lines(self._path)
            if whole < self._path.stat().st_size:
                os.truncate(self._path, whole)
        finally:
            self._writing.release()
        super().append_logs(logs)


def _length_of_whole_lines(path: Path) -> int:
    """The number of bytes up to the end of the last line that has one."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


class SignsOfLife:
    """Heartbeats of a journal's trials: one small file each, beside the journal, whose time of change is the sign.

    :param folder: for the files
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def record(self, number: int) -> None:
        """Give a sign of life of a trial.

        :raises OSError: if the file cannot be changed
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{number}").touch()

    def of(self, number: int) -> int | None:
        """A number that changes with each sign; None where there was none."""
        try:
            return (self._folder / f"{number}").stat().st_mtime_ns
        except OSError:
            return None

    def forget(self, number: int) -> None:
        """Remove what is kept of a trial that has ended."""
        (self._folder / f"{number}").unlink(missing_ok=True)


def _open_journal(path: Path, patience: Patience) -> JournalStorage:
    _make_folder(path.parent, f"{JOURNAL}{path}")

    def connect() -> JournalStorage:
        return JournalStorage(_MendedJournal(path, patience))

    try:
        return patience.call(connect)
    except (ValueError, KeyError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"storage {JOURNAL}{path} is no journal of optuna's: {error}") from error


# ------------------------------------------------------------------ both


class Storage:
    """A job's storage, opened.

    :param on_stale: called by optuna with the study and a trial whose worker's heartbeats have ended
    :raises StorageError: if it cannot be
    """

    def __init__(self, job: Job, on_stale: Callable[[optuna.Study, optuna.trial.FrozenTrial], None]):
        url = job.url
        is_journal = url.startswith(JOURNAL)
        path = Path(url.removeprefix(JOURNAL))
        self.name = url if is_journal else _without_password(url)
        self.patience = Patience(self.name, job.patience)
        self.signs: SignsOfLife | None = None
        """of a journal; None: the database's own heartbeats"""
        if is_journal:
            self.signs = SignsOfLife(path.with_name(f"{path.name}.alive") / job.name)
            self.backend: BaseStorage = _open_journal(path, self.patience)
        else:
            self.backend = _open_database(url, job.heartbeat, self.patience, on_stale)


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url
