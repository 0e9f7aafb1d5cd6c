"""The folder of a run: its resume bundles on disk, the newest of them, and whose it is."""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.resume.format import BundleError, Tree, from_bytes, to_bytes
from sb3_ppo_variants.resume.names import BUNDLES, bundle_name, bundle_paths

KEPT = 2
"""how many bundles are kept"""
UNREADABLE = ".unreadable"
"""what is added to the name of a bundle that cannot be read"""

# Seconds for which the process that died a moment ago may still hold the folder: its forked workers have it open too.
LOCK_PATIENCE = 5.0


class BundleWarning(RuntimeWarning):
    """A resume bundle could not be written or read, or does not restore everything; the training goes on."""


class Bundle(NamedTuple):
    """A resume bundle that was read."""

    path: Path
    state: dict[str, Tree]


class RunFolder:
    """A run's folder; its bundles lie in ``bundles/``.

    :param path: made where it does not exist
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.bundles = self.path / BUNDLES

    def write(self, num_timesteps: int, state: Mapping[str, Tree]) -> None:
        """Write a bundle, and remove those that are older than the last ``KEPT``.

        :param num_timesteps: where the run stands
        :raises OSError: if it cannot be written; those before it are as they were
        """
        self.bundles.mkdir(parents=True, exist_ok=True)
        atomic_write(self.bundles / bundle_name(num_timesteps), to_bytes(state))
        for path in bundle_paths(self.path)[KEPT:]:
            path.unlink(missing_ok=True)

    def newest(self) -> Bundle | None:
        """The newest bundle that can be read; None where there is none at all.

        One that cannot be read is renamed, with a warning, and the one before it is taken.

        :raises BundleError: if there are bundles, but none can be read
        """
        reasons = []
        for path in bundle_paths(self.path):
            try:
                return Bundle(path, from_bytes(path.read_bytes()))
            except BundleError as error:
                reasons.append(f"{path}: {error}")
                path.rename(path.with_name(path.name + UNREADABLE))
                warnings.warn(f"{path} is not used: {error}", BundleWarning, stacklevel=2)
        if reasons:
            raise BundleError(
                f"no resume bundle in {self.bundles} can be read: {'; '.join(reasons)}. Start anew in another folder"
            )
        return None

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other processes from training in this folder; removes what a killed one left half-written.

        :raises BundleError: if another process trains here
        """
        self.bundles.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.bundles / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor)
            for path in self.bundles.glob(".bundle_*.tmp"):
                path.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BundleError(f"{self.path} is in use: another process trains in it") from None
                time.sleep(0.1)
            else:
                return
