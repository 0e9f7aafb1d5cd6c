"""Where a study is kept, and how what is kept there is reached when it does not answer at once."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import importlib.util
import json
import math
import os
import re
import socket
import sys
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar

import optuna
import sqlalchemy
import sqlalchemy.event
import sqlalchemy.exc
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from sb3_ppo_variants.tuning.job import Heartbeat, Job

Result = TypeVar("Result")

JOURNAL = "journal:"
# Seconds between two tries: doubled from the first to the last.
FIRST_WAIT = 0.2
LONGEST_WAIT = 10.0
# Seconds for which nothing is said of a storage that does not answer: longer than one wait for a lock, below.
SILENT = 3.0
# Seconds for which SQLite itself waits for another process's lock, and PostgreSQL's driver for a connection.
SQLITE_TIMEOUT = 2
CONNECT_TIMEOUT = 10
# Seconds for which a journal's lock is waited for at a time; those after which one of another machine's is removed.
LOCK_TIMEOUT = 2.0
LOCK_GRACE = 30.0
# PostgreSQL's driver notices by itself, within about a minute, that a server no longer hears it.
KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
NEEDS_DRIVER = 'needs the [postgresql] extra: pip install "sb3-ppo-variants[postgresql]"'
# Tries to make a new database's tables, where others make them at the same time.
TABLE_TRIES = 10

# SQLSTATE of what fails where another process makes the same tables: duplicate table, duplicate type.
_MADE_BY_ANOTHER = frozenset({"42P07", "42710"})
# What no waiting mends. The server's words, as libpq keeps the code of a refused connection to itself;
# where the server speaks another language, patience has to run out.
_REFUSALS = re.compile(
    r"password authentication failed|no password supplied|authentication failed for user|no pg_hba\.conf entry"
    r'|(database|role) ".*" does not exist|permission denied for database|is not permitted to log in'
)
# MySQL's: access denied, unknown database.
_MYSQL_REFUSALS = frozenset({1044, 1045, 1049})


class StorageError(ValueError):
    """A study's storage cannot be used; the message says which, and why."""


class Patience:
    """Asks again where a storage does not answer: for a while, less and less often.

    :param name: of the storage, for messages
    :param seconds: for which it is asked again; 0: never
    :param longest_wait: seconds between two tries, at most; an answer that comes later is trouble
    """

    def __init__(self, name: str, seconds: float, longest_wait: float = LONGEST_WAIT):
        self._name, self._seconds = name, seconds
        self._longest_wait = min(longest_wait, LONGEST_WAIT)
        self._trouble = -math.inf

    def seconds_without_trouble(self) -> float:
        """Since an answer of the storage last was late; infinity: none was."""
        return time.monotonic() - self._trouble

    def call(self, function: Callable[[], Result]) -> Result:
        """What the function returns, once it does.

        :raises StorageError: if it fails for longer than patience lasts
        """
        asked = time.monotonic()
        began: float | None = None
        wait = FIRST_WAIT
        while True:
            try:
                result = function()
            except (OSError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                if not is_transient(error):
                    raise
                now = time.monotonic()
                self._note(now - asked)
                began = now if began is None else began
                if now - began >= self._seconds:
                    raise StorageError(
                        f"storage {self._name} did not answer for {self._seconds:g} seconds: {_cause(error)}"
                    ) from error
                if now - asked > SILENT:  # counted from the question, as the first try may itself take long
                    print(f"{self._name} does not answer ({_cause(error)}); asking again", file=sys.stderr)
                time.sleep(min(wait, began + self._seconds - now))
                wait = min(2 * wait, self._longest_wait)
            else:
                self._note(time.monotonic() - asked)
                return result

    def _note(self, seconds: float) -> None:
        if seconds > self._longest_wait:
            self._trouble = time.monotonic()


def is_transient(error: BaseException) -> bool:
    """Whether an error may pass: a lock, a server that is away, a file system that is."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        passing = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
        return (isinstance(error, passing) or error.connection_invalidated) and not _is_refusal(error.orig)
    if isinstance(error, (IsADirectoryError, NotADirectoryError, PermissionError)):
        return False
    return isinstance(error, (OSError, sqlalchemy.exc.TimeoutError))


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a server has answered, and will answer the same again."""
    if error is None:
        return False
    return bool(_REFUSALS.search(str(error))) or (bool(error.args) and error.args[0] in _MYSQL_REFUSALS)


def _cause(error: BaseException) -> str:
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        error = error.orig  # the driver's own words, without SQLAlchemy's statement and link
    return " ".join(str(error).split())


def without_password(url: str) -> str:
    """A storage's URL as it may be shown, even where it is no URL."""
    try:
        url = sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        url = re.sub(r"//.*@", "//***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", url)


# ------------------------------------------------------------------ databases


class _PatientDatabase(RDBStorage):
    """Optuna's, each of whose operations is tried again."""

    def __init__(self, patience: Patience, url: str, **arguments: Any):
        self.patience = patience
        try:
            super().__init__(url, **arguments)
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise
        if self.engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(self.engine, "begin", _begin_alone)
        sqlalchemy.event.listen(self.engine, "handle_error", _keep_from_optuna, retval=True)


_BEGIN_ALONE = "BEGIN IMMEDIATE"


def _begin_alone(connection: sqlalchemy.Connection) -> None:
    """Take SQLite's lock before a transaction reads what it will change.

    By itself Python begins a transaction only where it writes, and two workers could take the same trial.
    """
    connection.exec_driver_sql(_BEGIN_ALONE)


def _keep_from_optuna(context: sqlalchemy.engine.ExceptionContext) -> ConnectionError | None:
    """Have a database that cannot be reached, or whose lock another process has, go past optuna to patience.

    Where it makes a trial, optuna would try five times, with up to two seconds between, before anyone hears of it.
    That is left to it for what else may pass, such as deadlocks.
    """
    error = context.sqlalchemy_exception
    if error is None or context.is_pre_ping or not is_transient(error):
        return None
    # Without a statement: of a connection that is made, of COMMIT and ROLLBACK.
    was_away = context.is_disconnect or context.statement in (None, _BEGIN_ALONE)
    return ConnectionError(_cause(error)) if was_away else None


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


def _open_database(name: str, url: str, heartbeat: Heartbeat, patience: Patience) -> RDBStorage:
    parsed = parse_url(url, name)
    arguments = engine_arguments(parsed, name)

    def connect() -> RDBStorage:
        with warnings.catch_warnings():
            # Optuna calls its heartbeat experimental; its interface is checked by our tests.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _PatientDatabase(
                patience,
                parsed.render_as_string(hide_password=False),
                engine_kwargs=arguments,
                heartbeat_interval=heartbeat.interval,
                grace_period=heartbeat.grace,
            )

    try:
        return patience.call(lambda: _make_tables(connect))
    except ImportError as error:
        what = NEEDS_DRIVER if parsed.get_backend_name() == "postgresql" else f"cannot be used: {error}"
        raise StorageError(f"storage {name} {what}") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise StorageError(f"storage {name} cannot be used: {_cause(error)}") from error


def parse_url(url: str, name: str) -> sqlalchemy.URL:
    """A URL with a driver that is installed, where it leaves the choice: SQLAlchemy's own depends on its version."""
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StorageError(
            "storage must be journal:<file> or a URL such as sqlite:///study.db or postgresql://user@host/database; "
            f"got {name!r}"
        ) from None
    if parsed.drivername != "postgresql":
        return parsed
    for driver in ("psycopg", "psycopg2"):
        if _is_installed(driver):
            return parsed.set(drivername=f"postgresql+{driver}")
    raise StorageError(f"storage {name} {NEEDS_DRIVER}")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def engine_arguments(url: sqlalchemy.URL, name: str) -> dict[str, Any]:
    """What SQLAlchemy's engine of a storage is made with; a SQLite file's folder is made.

    :param name: of the storage, for messages
    :raises StorageError: if that folder cannot be made
    """
    if url.get_backend_name() == "sqlite":
        if url.database and url.database != ":memory:":
            _make_folder(Path(url.database).parent, name)
        return {"connect_args": {"timeout": SQLITE_TIMEOUT, "isolation_level": None}}
    arguments: dict[str, Any] = {"pool_pre_ping": True}  # connections that a restarted server has forgotten
    if url.get_backend_name() == "postgresql":
        options = {"connect_timeout": CONNECT_TIMEOUT, **KEEPALIVES}
        arguments["connect_args"] = {key: value for key, value in options.items() if key not in url.query}
    return arguments


def _make_tables(connect: Callable[[], RDBStorage]) -> RDBStorage:
    """Open a database, whose tables others may be making at the same time."""
    for tries_left in reversed(range(TABLE_TRIES)):
        try:
            return connect()
        except sqlalchemy.exc.IntegrityError:  # the version of the tables was written twice
            if not tries_left:
                raise
            time.sleep(FIRST_WAIT)
        except sqlalchemy.exc.ProgrammingError as error:
            code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
            if code not in _MADE_BY_ANOTHER or not tries_left:
                raise
            time.sleep(FIRST_WAIT)
    raise AssertionError("unreachable")


def _make_folder(folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage {name} cannot be used: {error}") from error


# ------------------------------------------------------------------ the journal


class _JournalLock(BaseJournalFileLock):
    """Whoever holds it may write: a link beside the journal, which is made or not made on any file system.

    What a killed holder leaves is removed at once by the next process of the same machine, and after a while by those
    of others. Optuna's own has all wait for that while, whoever was killed.

    :param path: of the journal
    """

    def __init__(self, path: Path):
        self._link = path.with_name(f"{path.name}.lock")
        # One for each machine: a file system may carry the kernel's lock to others.
        machine = hashlib.sha256(_machine().encode()).hexdigest()[:8]
        self._local = path.with_name(f"{path.name}.lock.{machine}")
        self._file: IO[bytes] | None = None
        self._seen: tuple[int, float] | None = None

    def acquire(self) -> bool:
        """Wait for the lock, for a while.

        :raises TimeoutError: if another process has it all that time
        """
        deadline = time.monotonic() + LOCK_TIMEOUT
        if self._file is not None:  # interrupted by a signal before it was given up
            self._file.close()
            self._file = None
        with ExitStack() as stack:
            file = stack.enter_context(open(self._local, "ab"))
            # The kernel's lock excludes processes of this machine only, but knows when one is dead: while it is held,
            # no other of this machine's makes or removes a link, and one that is there is a dead one's.
            if not (_until(deadline, lambda: _lock_file(file)) and _until(deadline, self._make_link)):
                raise TimeoutError(errno.ETIMEDOUT, "another process writes to it", str(self._link))
            self._file, self._seen = file, None
            stack.pop_all()  # closed by release()
        return True

    def _make_link(self) -> bool:
        try:
            self._link.symlink_to(_machine())
            return True
        except FileExistsError:
            if self._is_left_behind():
                self._link.unlink(missing_ok=True)
            return False

    def _is_left_behind(self) -> bool:
        try:
            holder, made = str(self._link.readlink()), self._link.lstat().st_mtime_ns
        except FileNotFoundError:
            return False
        if holder == _machine():
            return True
        now = time.monotonic()
        if self._seen is None or self._seen[0] != made:
            self._seen = made, now
        return now - self._seen[1] > LOCK_GRACE

    def release(self) -> None:
        """Give it up; it may be another's already, if this process stood still."""
        assert self._file is not None
        try:
            if str(self._link.readlink()) == _machine():
                self._link.unlink()
        except FileNotFoundError:
            pass
        finally:
            self._file.close()
            self._file = None


def _until(deadline: float, succeeds: Callable[[], bool]) -> bool:
    """Whether something succeeds before a time of the monotonic clock, or at once."""
    wait = 0.001
    while not succeeds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(wait)
        wait = min(2 * wait, 0.05)
    return True


def _lock_file(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@functools.cache
def _machine() -> str:
    """What no two running machines have in common, and all processes of one do, in whatever container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


class _MendedJournal(JournalFileBackend):
    """Optuna's file of operations, which a writer that is killed cannot spoil for the others.

    Optuna appends to whatever there is; half a line of a killed writer would make the next one unreadable.
    """

    def __init__(self, path: Path, patience: Patience):
        self._path, self._patience = path, patience
        self._writing = _JournalLock(path.resolve())
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
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._writing.acquire()
        try:
            with open(self._path, "a+b", opener=_open_existing) as file:
                whole = _length_of_whole_lines(file)
                if whole < file.seek(0, os.SEEK_END):
                    file.truncate(whole)
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._writing.release()


def _open_existing(path: str, flags: int) -> int:
    """As :func:`os.open`, but no new journal is begun where the old one is away."""
    return os.open(path, flags & ~os.O_CREAT)


def _length_of_whole_lines(file: IO[bytes]) -> int:
    """The number of bytes up to the end of the last line that has one."""
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
        for folder in (self._folder.parent, self._folder):  # but not the journal's, which may be away for a while
            folder.mkdir(exist_ok=True)
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

    :raises StorageError: if it cannot be
    """

    def __init__(self, job: Job):
        url = job.url
        is_journal = url.startswith(JOURNAL)
        path = Path(url.removeprefix(JOURNAL))
        self.name = url if is_journal else without_password(url)
        self.patience = Patience(self.name, job.patience, job.heartbeat.interval)
        self.signs: SignsOfLife | None = None
        """of a journal; None: the database's own heartbeats"""
        if is_journal:
            self.signs = SignsOfLife(path.with_name(f"{path.name}.alive") / job.name)
            self.backend: BaseStorage = _open_journal(path, self.patience)
        else:
            database = _open_database(self.name, url, job.heartbeat, self.patience)
            self.backend = database
            weakref.finalize(self, database.engine.dispose)  # closes its connections

    def stale(self, study_id: int) -> frozenset[int]:
        """Ids of a study's trials that a database, by its own clock, has not heard of for longer than the grace period.

        Those of which it has never heard are not among them. Of a journal: none.
        """
        return frozenset(self.backend._get_stale_trial_ids(study_id) if isinstance(self.backend, RDBStorage) else ())
