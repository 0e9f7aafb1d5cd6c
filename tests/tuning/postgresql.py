"""A PostgreSQL server of the tests' own, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

REQUIRED = "PPO_VARIANTS_REQUIRE_POSTGRESQL"
"""environment variable: whether it is an error that there is no PostgreSQL"""
OWNER = "postgres"
"""the account that runs the server where the tests run as root, as whom it will not"""
USER, PASSWORD = "tuner", "s3cret/{x}@y"


def find_programs() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``; None: there is no server here."""
    found = shutil.which("pg_ctl")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in candidates if (each / "initdb").exists() and (each / "pg_ctl").exists()), None)


class Server:
    """A server that can be taken away and brought back.

    :param programs: the folder of its programs
    :param folder: for its files; its path is short, for the socket's sake
    """

    def __init__(self, programs: Path, folder: Path):
        self._programs, self._folder = programs, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if os.geteuid() == 0:
            shutil.chown(folder, OWNER, pwd.getpwnam(OWNER).pw_gid)
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(password, OWNER)
        arguments = ["--auth", "scram-sha-256", "--username", USER, "--pwfile", str(password), "--encoding", "UTF8"]
        self._run("initdb", "--pgdata", str(folder / "data"), *arguments, "--no-locale", "--no-sync")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", *command]
        with (self._folder / "output").open("wb") as output:  # a pipe would be held open by the server
            result = subprocess.run(command, stdout=output, stderr=output, check=False, cwd=self._folder)
        assert result.returncode == 0, (self._folder / "output").read_text() + self.log()

    def log(self) -> str:
        """What the server has said."""
        path = self._folder / "log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # It survives what the tests do to it, if not the machine's loss of power.
        options = f"-F -c listen_addresses=127.0.0.1 -p {self.port} -k {self._folder} -c max_connections=50"
        data, log = str(self._folder / "data"), str(self._folder / "log")
        self._run("pg_ctl", "start", "--wait", "--pgdata", data, "--log", log, "--options", options)

    def stop(self) -> None:
        """Stop it at once, as if its machine had been switched off."""
        self._run("pg_ctl", "stop", "--wait", "--pgdata", str(self._folder / "data"), "--mode", "immediate")

    def url(self, database: str = "postgres", **changes: object) -> str:
        """Of a database, with some parts changed."""
        parts = {"username": USER, "password": PASSWORD, "host": "127.0.0.1", "port": self.port, **changes}
        url = sqlalchemy.URL.create("postgresql", database=database, **parts)
        return url.render_as_string(hide_password=False)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"study_{secrets.token_hex(4)}"
        engine = sqlalchemy.create_engine(self.url().replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A server; skips where there is none, unless it is required."""
    programs = find_programs()
    if programs is None:
        reason = "no PostgreSQL server is installed: initdb and pg_ctl are neither in PATH nor in /usr/lib/postgresql"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, but {REQUIRED} is set")
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        server = Server(programs, folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
