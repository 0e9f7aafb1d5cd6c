"""PyBullet without its greeting: importing it writes its build time to stderr, once in every worker process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(descriptor: int) -> Iterator[None]:
    """Send what is written to a file descriptor nowhere, also by code that is not Python."""
    try:
        saved = os.dup(descriptor)
    except OSError:  # a daemon that has closed it hears nothing anyway
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
        os.close(nowhere)


with silenced(2):
    import pybullet

__all__ = ["pybullet", "silenced"]
