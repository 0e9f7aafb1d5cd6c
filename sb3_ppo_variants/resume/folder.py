"""The folder of a run: its resume bundles on disk, the newest of them, and whose it is."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.resume.format import Tree, from_bytes, to_bytes
from sb3_ppo_variants.resume.names import BUNDLES, BundleError, bundle_name, bundle_paths

KEPT = 2
"""how many bundles are kept"""
UNREADABLE = ".unreadable"
"""what is added to the name of a bundle that cannot be used"""
RUN_ID = "run_id"
"""name of the file, beside the bundles, with a number drawn for the run"""

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
        :raises TypeError: if the state holds what a bundle cannot
        """
        self.bundles.mkdir(parents=True, exist_ok=True)
        data = to_bytes({**state, "run": self.run_id()})
        self._remove_older()  # one that was killed before it could remove its own leaves one more
        atomic_write(self.bundles / bundle_name(num_timesteps), data)
        self._remove_older()

    def _remove_older(self) -> None:
        for path in bundle_paths(self.path)[KEPT:]:
            with suppress(OSError):
                path.unlink()

    def run_id(self) -> str:
        """What tells this run's bundles from those of others; made where there is none."""
        path = self.bundles / RUN_ID
        if not path.is_file():
            atomic_write(path, uuid.uuid4().hex.encode())
        return path.read_text(encoding="utf-8", errors="replace")

    def newest(self, check: Callable[[dict[str, Tree]], None] = lambda _state: None) -> Bundle | None:
        """The newest bundle that can be used; None where there is none at all.

        Newer ones that cannot are renamed, with a warning.

        :param check: raises a BundleError for a bundle of another run
        :raises BundleError: if there are bundles, but none can be used; they stay as they are
        """
        refused: dict[Path, str] = {}
        for path in bundle_paths(self.path):
            try:
                state = from_bytes(path.read_bytes())
                if state.get("run") != self.run_id():
                    raise BundleError("it is of another run")
                check(state)
            except (BundleError, OSError) as error:
                refused[path] = str(error)
                continue
            self._set_aside(refused)
            return Bundle(path, state)
        if refused:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in refused.items())
            raise BundleError(
                f"no resume bundle in {self.bundles} can be used: {reasons}. Start anew in another folder"
            )
        return None

    def _set_aside(self, refused: Mapping[Path, str]) -> None:
        for path, reason in refused.items():
            warnings.warn(f"{path} is not used: {reason}", BundleWarning, stacklevel=2)
            with suppress(OSError):
                path.rename(path.with_name(path.name + UNREADABLE))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other processes from training in this folder; removes what a killed one left half-written.

        :raises BundleError: if another process trains here
        """
        self.bundles.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.bundles / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor)
            for path in [*self.bundles.glob(".*.tmp"), *self.path.glob(".*.tmp")]:
                path.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BundleError(f"{self.path} is in use: another process trains in it") from None
                time.sleep(0.1)
            except OSError as error:  # some file systems of networks know no locks
                warnings.warn(f"{self.path} cannot be locked ({error}): train in it once at a time", BundleWarning, 2)
                return
