"""Logs that go on where a run stood: ``progress.csv``, TensorBoard's events, and the files of SB3's monitors."""

from __future__ import annotations

import csv
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import (
    HumanOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)
from stable_baselines3.common.utils import configure_logger

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.resume.folder import BundleWarning
from sb3_ppo_variants.resume.format import Tree, copied, is_tree
from sb3_ppo_variants.resume.names import BundleError

State = dict[str, Tree]

PROGRESS = "progress.csv"
MONITORS = "*monitor.csv"


class ProgressWriter(KVWriter):
    """Writes ``progress.csv`` as SB3's CSV format does, but can go on with one: a row per dump, a column per name.

    Where the disk is full, rows wait in memory.

    :param path: the file
    :param n_rows: how many of its rows to keep; 0: begin anew
    """

    def __init__(self, path: Path, n_rows: int = 0):
        self._path = path
        self._waiting: list[dict[str, str]] = []
        kept = self._read()[:n_rows] if n_rows else []
        if len(kept) < n_rows:
            warnings.warn(f"{path} has lost {n_rows - len(kept)} of {n_rows} rows", BundleWarning, stacklevel=2)
        self.n_rows = len(kept)
        self._names: list[str] = list(kept[0]) if kept else []
        self._rewrite(kept)

    def _read(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        return list(csv.DictReader(io.StringIO(self._path.read_text(encoding="utf-8"))))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        # Never without the rows that there are.
        atomic_write(self._path, self._lines(rows, with_names=bool(self._names)).encode())

    def _lines(self, rows: list[dict[str, str]], *, with_names: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._names, lineterminator="\n")
        if with_names:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a row of what is a number or a text."""
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        scalars = (bool, int, float, str, np.generic)
        self._waiting.append({name: str(value) for name, value in sorted(values.items()) if isinstance(value, scalars)})
        self.n_rows += 1
        try:
            self._write_waiting()
        except OSError as error:
            warnings.warn(f"{self._path} could not be written: {error}", BundleWarning, stacklevel=2)
        else:
            self._waiting.clear()

    def _write_waiting(self) -> None:
        new = [name for row in self._waiting for name in row if name not in self._names]
        if new:
            rows = self._read()
            self._names += dict.fromkeys(new)
            try:
                self._rewrite(rows + self._waiting)
            except OSError:
                self._names = [name for name in self._names if name not in new]
                raise
            return
        size = self._path.stat().st_size
        try:
            with open(self._path, "a", encoding="utf-8", newline="") as file:
                file.write(self._lines(self._waiting, with_names=False))
        except OSError:
            os.truncate(self._path, size)  # no half of a row
            raise

    def close(self) -> None:
        """Nothing is open between rows."""


def new_logger(run_folder: Path, verbose: int, tensorboard_log: str | None, name: str, reset: bool) -> Logger:
    """The logger of a run that begins: SB3's, and ``progress.csv`` in its folder."""
    logger = configure_logger(verbose, tensorboard_log, name, reset)
    logger.output_formats.append(ProgressWriter(run_folder / PROGRESS))
    return logger


def resumed_logger(run_folder: Path, verbose: int, tensorboard_log: str | None, name: str, state: State) -> Logger:
    """The logger of a run that goes on: what was logged after the bundle is taken back."""
    formats: list[KVWriter] = []
    if verbose >= 1:
        formats.append(HumanOutputFormat(sys.stdout))
    directory = None
    if tensorboard_log is not None:
        known = state["tensorboard"]
        if isinstance(known, str) and known == Path(known).name and Path(tensorboard_log, known).is_dir():
            directory = str(Path(tensorboard_log, known))
            formats.append(_ResumedTensorBoard(directory, state["step"]))
        else:
            warnings.warn(f"{tensorboard_log} has no curves of this run: others begin", BundleWarning, stacklevel=2)
            new = configure_logger(0, tensorboard_log, name)
            directory = new.dir
            formats += new.output_formats
    formats.append(ProgressWriter(run_folder / PROGRESS, state["n_rows"]))
    return Logger(directory, formats)


def restore_waiting(logger: Logger, state: State) -> None:
    """Let the logger have the values that waited to be written."""
    waiting = state["waiting"]
    logger.name_to_value.update(waiting["values"])
    logger.name_to_count.update(waiting["counts"])
    logger.name_to_excluded.update(waiting["excluded"])


class _ResumedTensorBoard(TensorBoardOutputFormat):
    """SB3's format; hides events after ``step``, which were written after the bundle."""

    def __init__(self, directory: str, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=directory, purge_step=step + 1)
        self._is_closed = False


def logs_of(run_folder: Path, logger: Logger, step: int) -> State:
    """Where the logs stand, and what waits to be written."""
    rows = next((each.n_rows for each in logger.output_formats if isinstance(each, ProgressWriter)), 0)
    writes_events = any(isinstance(each, TensorBoardOutputFormat) for each in logger.output_formats)
    names = [name for name, value in logger.name_to_value.items() if is_tree(value)]
    return {
        "step": step,
        "n_rows": rows,
        "tensorboard": Path(logger.dir).name if writes_events and logger.dir else None,
        "waiting": {
            "values": {name: copied(logger.name_to_value[name]) for name in names},
            "counts": {name: logger.name_to_count[name] for name in names if name in logger.name_to_count},
            "excluded": {name: logger.name_to_excluded[name] for name in names if name in logger.name_to_excluded},
        },
        "monitors": {path.name: path.stat().st_size for path in sorted(run_folder.glob(MONITORS))},
    }


def cut_monitors(run_folder: Path, sizes: dict[str, int]) -> None:
    """Take back the episodes that ended after the bundle: they will be run again."""
    for name, size in sizes.items():
        path = run_folder / name
        if name != path.name or not path.match(MONITORS):
            raise BundleError(f"its log {name!r} is no monitor's file")
        now = path.stat().st_size if path.is_file() else 0
        if now < size:
            warnings.warn(
                f"{path} is shorter than it was: its monitor began it anew (Monitor takes override_existing=False)",
                BundleWarning,
                stacklevel=2,
            )
        elif now > size:
            os.truncate(path, size)
