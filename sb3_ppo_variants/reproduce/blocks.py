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

from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.files import atomic_write, folder_name
from sb3_ppo_variants.processes import WorkerError, in_processes
from sb3_ppo_variants.reproduce.progress import Progress
from sb3_ppo_variants.reproduce.results import Results, Row
from sb3_ppo_variants.reproduce.settings import SETTINGS, Run, Selection
from sb3_ppo_variants.reproduce.tables import counted
from sb3_ppo_variants.reproduce.training import Reached, train_runs

RUNS_IN_A_BLOCK = 33
"""at most: Table 1's settings with three seeds, which take less time in one stack than in three"""
LIST = "block.json"
"""in a block's folder: its runs"""
LOCK = "lock"
DONE = ".done"
"""what ends the name of a block's folder that nobody looks into any more"""

TrainRuns = Callable[[Sequence[Run], int, Path, Reached], list[Row]]


@dataclass(frozen=True)
class Block:
    """Runs of one task that are trained in one process.

    :param name: of its folder
    """

    name: str
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Block:
        """Named after its runs: the same for the same ones with the same settings."""
        digest = hashlib.sha256(json.dumps(_listed(runs)).encode()).hexdigest()[:12]
        return cls(f"{folder_name(runs[0].task)}-{digest}", tuple(runs))

    @property
    def task(self) -> str:
        return self.runs[0].task

    def __str__(self) -> str:
        settings = sorted({run.setting.name for run in self.runs})
        seeds = sorted({run.seed for run in self.runs})
        what = settings[0] if len(settings) == 1 else f"{len(settings)} settings"
        return f"{self.task}, {what}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _listed(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the trainings of a block depend on beside their length, as JSON has it."""
    task = runs[0].task
    return {"task": task, "runs": [[run.setting.name, run.seed, run.setting.described(task)] for run in runs]}


def blocks_of(results: Results, runs: Sequence[Run], size: int = RUNS_IN_A_BLOCK) -> list[Block]:
    """The blocks of these runs of which something is missing, in their order.

    How they are cut, and so whose lock keeps a run from being trained twice, does not depend on what is done: two
    machines that begin at different times cut the same. What other cuts have begun stays as it was begun.

    :param size: runs in a block, at most
    """
    missing = set(results.missing(runs))
    # Another selection's stays where it is: it would train what nobody asked for here.
    blocks = [block for block in _begun(results) if set(block.runs) <= set(runs) and missing & set(block.runs)]
    missing -= {run for block in blocks for run in block.runs}
    stacks: dict[Any, list[Run]] = {}
    for index, run in enumerate(runs):
        key = index if run.setting.stack is None else (run.task, run.setting.stack)
        stacks.setdefault(key, []).append(run)
    for stack in stacks.values():
        for start in range(0, len(stack), size):
            cut = Block.of(stack[start : start + size])
            todo = tuple(run for run in cut.runs if run in missing)
            if todo:
                blocks.append(Block(cut.name, todo))
    order = {run: place for place, run in enumerate(runs)}
    first: dict[str, int] = {}
    for block in blocks:  # what is begun in a folder comes before what is missing beside it
        first[block.name] = min(first.get(block.name, len(runs)), *(order[run] for run in block.runs))
    return sorted(blocks, key=lambda block: first[block.name])


def _begun(results: Results) -> list[Block]:
    """The blocks that earlier processes have begun, and whose settings are today's."""
    found = ((path.parent.name, _runs_begun(path.parent)) for path in sorted(results.in_progress.glob(f"*/{LIST}")))
    return [Block(name, runs) for name, runs in found if runs]


def _runs_begun(folder: Path) -> tuple[Run, ...]:
    """The runs that a block's folder lists; none where it has no list, or one whose settings are not today's."""
    try:
        listed = json.loads((folder / LIST).read_bytes())
        runs = tuple(Run(listed["task"], SETTINGS[name], seed) for name, seed, _ in listed["runs"])
        is_todays = _listed(runs) == listed
    except (OSError, ValueError, LookupError, TypeError, ImportError, gym.error.Error):  # as of a task not known here
        return ()
    return runs if is_todays else ()


def run_blocks(
    title: str,
    selection: Selection,
    results: Results,
    workers: int = 1,
    train: TrainRuns = train_runs,
) -> None:
    """Do what is missing of a selection.

    Several calls, on any machines that share the folder, may work on it at the same time; those with the same selection
    and number of workers cut the same blocks, and train no run twice.

    :param title: for messages
    :param workers: number of processes on this machine, with one torch thread each; 1: this one
    :param train: trains the runs of a block; with several workers, a function of a module
    :raises ValueError: if results cannot be read
    :raises WorkerError: if a worker does not end well; its own words are on standard error
    """
    require("workers", workers, "an integer >= 1", lambda value: value >= 1, integer=True)
    runs = selection.runs()
    _remove_done(results, runs)
    blocks = blocks_of(results, runs, min(RUNS_IN_A_BLOCK, math.ceil(len(runs) / workers)))
    if not blocks:
        return
    n_runs = len(results.missing(runs))
    todo = f"{counted(n_runs, 'run')} of {selection.timesteps:,} timesteps to do, in {counted(len(blocks), 'block')}"
    print(f"[{title}] {todo}", flush=True)
    workers = min(workers, len(blocks))
    if workers == 1:
        work(title, results, blocks, train)
    elif in_processes(title, work, [(title, results, blocks, train)] * workers, (ValueError,)):
        raise WorkerError(f"a worker of {title} did not end well; what it has not done, the same command does")


def work(title: str, results: Results, blocks: Sequence[Block], train: TrainRuns = train_runs) -> None:
    """Take one block after another, of those that no other process has, and train what is missing of it."""
    for number, block in enumerate(blocks, 1):
        with _claimed(results, block) as folder:
            if folder is None:
                continue
            runs = _begin(results, block, folder)
            if runs:
                label = f"block {number} of {len(blocks)}"
                what = Block(block.name, runs)
                progress = Progress(f"[{title}] {label}, {what}", results.timesteps)
                results.add(train(runs, results.timesteps, folder, progress.reached))
                print(f"[{title}] {label} is done: {what}", flush=True)
            _remove(folder)


def _begin(results: Results, block: Block, folder: Path) -> tuple[Run, ...]:
    """The runs to train in a block's folder, which this process has; none if they are done.

    A block that has been begun goes on as it is listed, as its bundles are of just those runs. One that has not is
    begun without what others have done meanwhile.
    """
    begun = _runs_begun(folder)
    if begun:
        return begun if results.missing(begun) else ()
    runs = tuple(results.missing(block.runs))
    if runs:
        atomic_write(folder / LIST, json.dumps(_listed(runs)).encode())
    return runs


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
        (folder / LOCK).stat()
    except (Timeout, FileNotFoundError):  # the other one has it, or has just removed it
        lock.release()
        yield None
        return
    try:
        yield folder
    finally:
        with suppress(OSError):
            lock.release()
