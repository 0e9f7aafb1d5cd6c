"""Processes that begin from a fresh one: a fork of the tests' own inherits locks and pools of threads, and hangs."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
from collections.abc import Iterator
from typing import Any

forkserver = multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def ready_server(*modules: str) -> Iterator[None]:
    """Lets processes begin at once, as their parent has imported these modules; others' tests get their own again."""
    server: Any = multiprocessing.forkserver._forkserver
    server._stop()
    forkserver.set_forkserver_preload(list(modules))
    yield
    server._stop()
    forkserver.set_forkserver_preload(["__main__"])
