"""What tests of tuning share."""

from __future__ import annotations

from typing import Any

import sqlalchemy
import sqlalchemy.event

from tests.tuning.postgresql import postgresql as postgresql  # a fixture


# Waiting for the disk takes most of a tiny study's time, and no test switches the machine off.
@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _without_waiting_for_the_disk(connection: Any, _record: Any) -> None:
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous=OFF")
