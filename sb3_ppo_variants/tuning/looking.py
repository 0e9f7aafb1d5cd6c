"""A study that somebody wants to see: opened where there is one, and nothing is made where there is none."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
import sqlalchemy.exc

from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.storage import JOURNAL, Patience, engine_arguments, parse_url, without_password
from sb3_ppo_variants.tuning.study import SharedStudy


def look_at(job: Job) -> SharedStudy:
    """A job's study, if there is one. Opening a storage that does not exist would make its folder, file and tables.

    :raises StorageError: if the storage cannot be used
    :raises ValueError: if there is no such study, or it is another job's
    """
    if job.url.startswith(JOURNAL):
        name, there = job.url, Path(job.url.removeprefix(JOURNAL)).is_file()
    else:
        name, there = _database(job)
    if not there:
        raise ValueError(f"there is no study {job.name!r} in {name}; tune run begins one")
    return SharedStudy(job, create=False)


def _database(job: Job) -> tuple[str, bool]:
    """A database's name, and whether optuna has been in it. What is wrong with one is said when it is opened."""
    name = without_password(job.url)
    try:
        url = parse_url(job.url, name)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return name, False
        engine = sqlalchemy.create_engine(url, **engine_arguments(url, name))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError):
        return name, True
    try:
        return name, Patience(name, job.patience).call(lambda: sqlalchemy.inspect(engine).has_table("studies"))
    except sqlalchemy.exc.SQLAlchemyError:
        return name, True
    finally:
        engine.dispose()
