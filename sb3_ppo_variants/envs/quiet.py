"""PyBullet without its greeting: importing it writes its build time to stderr, once in every worker process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _stderr_to_nowhere() -> Iterator[None]:
    try:
        saved = os.dup(2)
    except OSError:  # a daemon that has closed it hears no greeting anyway
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


with _stderr_to_nowhere():
    import pybullet

__all__ = ["pybullet"]
