"""Runs are trained in blocks, which processes take one after another; what is done stays done, whoever is killed.

A block is some runs of one task. Whoever takes it holds the lock in its folder, in ``in_progress``; the system lets go
of it when that process ends, however it does. Its results are added to the task's file in one step, then its folder is
renamed, and what was renamed is removed; killed in between, the next process goes on with that.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from filelock import FileLock, Timeout

from sb3_ppo_variants.agents.folder import folder_name
from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.processes import WorkerError, in_processes
from sb3_ppo_variants.reproduce.results import Results, Row
from sb3_ppo_variants.reproduce.settings import SETTINGS, Run, Selection
from sb3_ppo_variants.reproduce.training import train_runs

RUNS_IN_A_BLOCK = 33
"""at most: Table 1's settings with three seeds, which take less time in one stack than in three"""
LIST = "block.json"
"""in a block's folder: its runs"""
LOCK = "lock"
DONE = ".done"
"""what ends the name of a block's folder that nobody looks into any more"""

TrainRuns = Callable[[Sequence[Run], int, Path], list[Row]]


@dataclass(frozen=True)
class Block:
    """Runs of one task that are trained in one process."""

    runs: tuple[Run, ...]

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def name(self) -> str:
        """Of its folder: the same for the same runs with the same settings."""
        digest = hashlib.sha256(json.dumps(self.listed()).encode()).hexdigest()[:12]
        return f"{folder_name(self.task)}-{digest}"

    def listed(self) -> dict[str, Any]:
        """All that its trainings depend on beside their length, as JSON has it."""
        runs = [[run.setting.name, run.seed, run.setting.described(self.task)] for run in self.runs]
        return {"task": self.task, "runs": runs}

    def __str__(self) -> str:
        settings = sorted({run.setting.name for run in self.runs})
        seeds = sorted({run.seed for run in self.runs})
        what = settings[0] if len(settings) == 1 else f"{len(settings)} settings"
        return f"{self.task}, {what}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def blocks_of(results: Results, runs: Sequence[Run], size: int = RUNS_IN_A_BLOCK) -> list[Block]:
    """The blocks of what is missing of these runs, in their order; those that were begun stay as they were begun.

    :param size: runs in a block, at most
    """
    missing = results.missing(runs)
    blocks = []
    for begun in _begun(results):
        todo = set(begun.runs) & set(missing)
        # Another selection's stays where it is: it would train what nobody asked for here.
        if todo and set(begun.runs) <= set(runs):
            blocks.append(begun)
            missing = [run for run in missing if run not in todo]
    stacks: dict[Any, list[Run]] = {}
    for index, run in enumerate(missing):
        stacks.setdefault(run.task if run.setting.stacked else index, []).append(run)
    for stack in stacks.values():
        blocks += [Block(tuple(stack[start : start + size])) for start in range(0, len(stack), size)]
    order = {run: place for place, run in enumerate(runs)}
    return sorted(blocks, key=lambda block: min(order[run] for run in block.runs))


def _begun(results: Results) -> list[Block]:
    """The blocks that earlier processes have begun, and whose settings are today's."""
    found = []
    for path in sorted(results.in_progress.glob(f"*/{LIST}")):
        try:
            listed = json.loads(path.read_bytes())
            block = Block(tuple(Run(listed["task"], SETTINGS[name], seed) for name, seed, _ in listed["runs"]))
            is_todays = block.name == path.parent.name
        except (OSError, ValueError, KeyError, TypeError, ImportError, gym.error.Error):  # as of a task not known here
            continue
        if is_todays:
            found.append(block)
    return found


def run_blocks(
    title: str,
    selection: Selection,
    results: Results,
    workers: int = 1,
    train: TrainRuns = train_runs,
) -> None:
    """Do what is missing of a selection.

    Several calls, on any machines that share the folder, may work on it at the same time.

    :param title: for messages
    :param workers: number of processes on this machine, with one torch thread each; 1: this one
    :param train: trains the runs of a block; with several workers, a function of a module
    :raises ValueError: if results cannot be read
    :raises WorkerError: if a worker does not end well; its own words are on standard error
    """
    require("workers", workers, "an integer >= 1", lambda value: value >= 1, integer=True)
    _remove_done(results, selection.runs())
    n_runs = len(results.missing(selection.runs()))
    blocks = blocks_of(results, selection.runs(), min(RUNS_IN_A_BLOCK, max(1, math.ceil(n_runs / workers))))
    if not blocks:
        return
    print(f"[{title}] {n_runs} runs of {selection.timesteps:,} timesteps to do, in {len(blocks)} blocks", flush=True)
    workers = min(workers, len(blocks))
    if workers == 1:
        work(title, results, blocks, train)
    elif in_processes(title, work, [(title, results, blocks, train)] * workers, (ValueError,)):
        raise WorkerError(f"a worker of {title} did not end well; what it has not done, the same command does")


def work(title: str, results: Results, blocks: Sequence[Block], train: TrainRuns = train_runs) -> None:
    """Take one block after another, of those that no other process has, and train it."""
    for number, block in enumerate(blocks, 1):
        with _claimed(results, block) as folder:
            if folder is None:
                continue
            if results.missing(block.runs):
                results.add(train(block.runs, results.timesteps, folder))
                print(f"[{title}] block {number} of {len(blocks)} is done: {block}", flush=True)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a block's folder, which this process has: for all others in one step.

    Half of it must not be gone on with, and nobody may put a lock of their own into what is being removed.
    """
    done = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{DONE}")
    folder.rename(done)
    shutil.rmtree(done, ignore_errors=True)


def _remove_done(results: Results, runs: Sequence[Run]) -> None:
    """Remove what is left of blocks of these runs whose results are there: their processes were killed."""
    for path in results.in_progress.glob(f"*{DONE}"):
        shutil.rmtree(path, ignore_errors=True)
    for block in _begun(results):
        if set(block.runs) <= set(runs) and not results.missing(block.runs):
            with _claimed(results, block) as folder:
                if folder is not None:
                    _remove(folder)


@contextmanager
def _claimed(results: Results, block: Block) -> Iterator[Path | None]:
    """The block's folder, for this process alone; None where another one has it."""
    folder = results.in_progress / block.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
        atomic_write(folder / LIST, json.dumps(block.listed()).encode())
    except (Timeout, FileNotFoundError):  # the other one has it, or has just removed it
        lock.release()
        yield None
        return
    try:
        yield folder
    finally:
        with suppress(OSError):
            lock.release()
