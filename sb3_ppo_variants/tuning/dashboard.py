"""A study in the browser: optuna-dashboard on the study's own storage, to look at and not to change."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.looking import look_at

MODULE = "optuna_dashboard"
HOST = "127.0.0.1"
PORT = 8080
LARGEST_PORT = 65535

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class DashboardServer(ThreadingMixIn, WSGIServer):
    """Answers each request in a thread of its own, so that a slow one holds up no other."""

    daemon_threads = True
    host = HOST
    path = "/dashboard"
    """of the study's page"""

    @property
    def address(self) -> str:
        """Of the study's page."""
        return f"http://{self.host}:{self.server_port}{self.path}"


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Say nothing: an open page asks every few seconds."""


def serve_dashboard(job: Job, host: str = HOST, port: int = PORT) -> None:
    """Show a job's study, and the others of its storage, in the browser; Ctrl-C ends it.

    Running studies are followed. Who reaches the address can read all of the storage; nobody can change it.

    :param host: address of this machine to listen at; the default is reached from this machine alone
    :param port: 0: one that is free
    :raises StorageError: if the storage cannot be used
    :raises ValueError: if there is no such study, optuna-dashboard is not installed, or the address cannot be had
    """
    with make_dashboard_server(job, host, port) as server:
        print(f"Dashboard: {server.address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def make_dashboard_server(job: Job, host: str = HOST, port: int = PORT) -> DashboardServer:
    """What :func:`serve_dashboard` runs, for programs that serve it from a thread of their own.

    :raises StorageError: as :func:`serve_dashboard`
    :raises ValueError: as :func:`serve_dashboard`
    """
    if importlib.util.find_spec(MODULE) is None:
        raise ValueError(
            'the dashboard needs the [tune] extra: pip install "sb3-ppo-variants[tune]"; no optuna_dashboard'
        )
    require(
        "port", port, f"an integer from 0 to {LARGEST_PORT}", lambda value: 0 <= value <= LARGEST_PORT, integer=True
    )
    shared = look_at(job)
    from optuna_dashboard import wsgi

    try:
        server = make_server(host, port, _read_only(wsgi(shared.storage.backend)), DashboardServer, _QuietHandler)
    except OSError as error:
        raise ValueError(
            f"the dashboard cannot listen at host {host!r}, port {port} ({error.strerror}): choose another port, or an "
            "address of this machine as host"
        ) from error
    study_id = shared.storage.backend.get_study_id_from_name(job.name)
    server.host, server.path = host, f"/dashboard/studies/{study_id}"
    return server


def _read_only(application: Any) -> Application:
    """The pages and what they ask for; but none of what would rename or delete a study, or end a trial."""

    def call(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] in ("GET", "HEAD"):
            answer: Iterable[bytes] = application(environment, start)
            return answer
        start("405 Method Not Allowed", [("Content-Type", "application/json"), ("Allow", "GET, HEAD")])
        return [json.dumps({"reason": "tune dashboard only shows a study"}).encode()]

    return call
