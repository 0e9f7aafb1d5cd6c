"""Closes the environments that a test made: their monitors' files are open."""

from collections.abc import Iterator

import pytest

from tests.resume.runs import OPENED


@pytest.fixture(autouse=True)
def _closed_environments() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()
