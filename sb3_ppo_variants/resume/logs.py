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
from sb3_ppo_variants.resume.format import BundleError, Tree, is_tree

State = dict[str, Tree]

PROGRESS = "progress.csv"
MONITORS = "*monitor.csv"


class ProgressWriter(KVWriter):
    """Writes ``progress.csv`` as SB3's CSV format does, but can go on with one: a row per dump, a column per name.

    :param path: the file
    :param n_rows: how many of its rows to keep; 0: begin anew
    """

    def __init__(self, path: Path, n_rows: int = 0):
        self._path = path
        self.rows = list(csv.DictReader(io.StringIO(path.read_text())))[:n_rows] if n_rows and path.is_file() else []
        self._names: list[str] = list(self.rows[0]) if self.rows else []
        self._rewrite()

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        # A column was added: never without the rows that there are.
        atomic_write(self._path, text.getvalue().encode() if self._names else b"")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a row of what is a number or a text."""
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        scalars = (bool, int, float, str, np.generic)
        row = {name: str(value) for name, value in sorted(values.items()) if isinstance(value, scalars)}
        self.rows.append(row)
        if new := [name for name in row if name not in self._names]:
            self._names += new
            self._rewrite()
            return
        with open(self._path, "a", newline="") as file:
            csv.DictWriter(file, self._names, lineterminator="\n").writerow(row)

    def close(self) -> None:
        """Nothing is open between rows."""


def new_logger(run_folder: Path, verbose: int, tensorboard_log: str | None, name: str, reset: bool) -> Logger:
    """The logger of a run that begins: SB3's, and ``progress.csv`` in its folder."""
    logger = configure_logger(verbose, tensorboard_log, name, reset)
    logger.output_formats.append(ProgressWriter(run_folder / PROGRESS))
    return logger


def resumed_logger(run_folder: Path, verbose: int, state: State) -> Logger:
    """The logger of a run that goes on: what was logged after the bundle is taken back.

    :raises BundleError: if the bundle's positions make no sense
    """
    formats: list[KVWriter] = []
    if verbose >= 1:
        formats.append(HumanOutputFormat(sys.stdout))
    directory = None
    if state["tensorboard"] is not None:
        directory = os.path.normpath(run_folder / state["tensorboard"])
        formats.append(_ResumedTensorBoard(directory, state["step"]))
    formats.append(ProgressWriter(run_folder / PROGRESS, state["n_rows"]))
    logger = Logger(directory, formats)
    pending = state["pending"]
    logger.name_to_value.update(pending["values"])
    logger.name_to_count.update(pending["counts"])
    logger.name_to_excluded.update(pending["excluded"])
    _cut_monitors(run_folder, state["monitors"])
    return logger


class _ResumedTensorBoard(TensorBoardOutputFormat):
    """SB3's format; hides events after ``step``, which were written after the bundle."""

    def __init__(self, directory: str, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=directory, purge_step=step + 1)
        self._is_closed = False


def logs_of(run_folder: Path, logger: Logger, step: int) -> State:
    """Where the logs stand, and what waits to be written."""
    rows = next((len(each.rows) for each in logger.output_formats if isinstance(each, ProgressWriter)), 0)
    writes_events = any(isinstance(each, TensorBoardOutputFormat) for each in logger.output_formats)
    names = [name for name, value in logger.name_to_value.items() if is_tree(value)]
    return {
        "step": step,
        "n_rows": rows,
        "tensorboard": os.path.relpath(logger.dir, run_folder) if writes_events and logger.dir else None,
        "pending": {
            "values": {name: logger.name_to_value[name] for name in names},
            "counts": {name: logger.name_to_count[name] for name in names if name in logger.name_to_count},
            "excluded": {name: logger.name_to_excluded[name] for name in names if name in logger.name_to_excluded},
        },
        "monitors": {path.name: path.stat().st_size for path in sorted(run_folder.glob(MONITORS))},
    }


def _cut_monitors(run_folder: Path, sizes: dict[str, int]) -> None:
    """Take back the episodes that ended after the bundle: they will be run again."""
    for name, size in sizes.items():
        path = run_folder / name
        if name != path.name or not path.match(MONITORS):
            raise BundleError(f"its log {name!r} is no monitor's file")
        now = path.stat().st_size if path.is_file() else 0
        if now < size:
            warnings.warn(
                f"{path} was begun anew, and its earlier episodes are gone: use Monitor(…, override_existing=False)",
                BundleWarning,
                stacklevel=2,
            )
        elif now > size:
            os.truncate(path, size)
