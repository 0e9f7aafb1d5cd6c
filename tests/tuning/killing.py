"""Workers that are killed at random moments, and what must be true of a study after that."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants.tuning import Job, SharedStudy, run_worker
from sb3_ppo_variants.tuning.objective import MakeTraining
from sb3_ppo_variants.tuning.study import KEEPS_PLACE, NOT_RUN, RETRY_OF, WORKER, _lost
from tests.processes import forkserver
from tests.tuning.studies import pretend_slowly


def _work(job: Job, worker: str, make: MakeTraining | None) -> None:
    import torch as th

    th.set_num_threads(1)
    job.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(job.folder / f"{worker}.output", "w", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(output))
        run_worker(job, worker, make)


def start_worker(job: Job, name: str, make: MakeTraining | None = pretend_slowly) -> Any:
    """A worker in a process of its own, which writes what it says into ``<name>.output`` in the job's folder."""
    process = forkserver.Process(target=_work, args=(job, name, make), name=name)
    process.start()
    return process


def kill_once(process: Any, is_ready: Callable[[], bool]) -> None:
    """Kill a worker soon after something has come to be, and not when it has ended."""
    try:
        wait_until(is_ready)
        time.sleep(0.1)
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


@contextlib.contextmanager
def workers_of(job: Job, number: int, make: MakeTraining = pretend_slowly) -> Iterator[None]:
    """Workers that run a study to its end; what is done inside begins once some trials are finished."""
    processes = [start_worker(job, f"w-{index}", make) for index in range(number)]
    try:
        wait_until(lambda: SharedStudy(job).counts().finished >= number)
        yield
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * number
    finally:
        for process in processes:
            process.kill()


def wait_until(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something; fails if it does not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def run_under_fire(job: Job, seed: int, kills: int, workers: int = 3) -> int:
    """Run a study, some of whose workers are killed; most are replaced.

    :param seed: of the moments
    :return: how many were killed
    """
    generator = random.Random(seed)
    processes = [start_worker(job, f"first {index}") for index in range(workers)]
    killed = 0
    try:
        wait_until(lambda: SharedStudy(job).counts().finished > 0)
        while killed < kills and (alive := [process for process in processes if process.is_alive()]):
            os.kill(generator.choice(alive).pid, signal.SIGKILL)
            killed += 1
            if len(alive) == 1 or generator.random() < 0.7:
                processes.append(start_worker(job, f"next {killed}"))
            time.sleep(generator.expovariate(2.0))
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    codes = Counter(process.exitcode for process in processes)
    assert codes[-signal.SIGKILL] <= killed
    assert codes.keys() <= {0, -signal.SIGKILL}
    assert codes[0]
    return killed


def check(job: Job) -> Counter[str]:
    """Check that a study has come to its end with nothing lost, nothing doubled, and its budget met exactly.

    :return: how often what has happened
    """
    shared = SharedStudy(job, create=False)
    trials = shared.trials()
    counts = shared.counts()
    assert (counts.finished, counts.running, counts.waiting) == (job.budget.trials, 0, 0), counts
    assert not _lost(trials)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == len(complete)
    for trial in complete:
        _check_complete(job, shared, trial)
    papers = [trial for trial in complete if trial.user_attrs.get("origin") == "paper"]
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    assert not [trial for trial in failed if "error" in trial.user_attrs]
    dead = [trial for trial in failed if NOT_RUN not in trial.user_attrs]
    heirs = [trial for trial in trials if NOT_RUN not in trial.user_attrs and RETRY_OF in trial.user_attrs]
    taken_up = {trial.user_attrs[RETRY_OF] for trial in heirs}
    assert all(trials[number] in dead for number in taken_up)
    begun_heirs = Counter(trial.user_attrs[RETRY_OF] for trial in heirs if WORKER in trial.user_attrs)
    assert set(begun_heirs.values()) <= {1}
    begun = [trial for trial in dead if WORKER in trial.user_attrs]
    given_up = [trial for trial in begun if trial.number not in taken_up]
    for trial in given_up:  # dead twice
        assert RETRY_OF in trial.user_attrs
        assert KEEPS_PLACE in trial.user_attrs
    assert len(papers) == 1 or any(trial.user_attrs.get("origin") == "paper" for trial in given_up), "\n".join(
        f"{trial.number} {trial.state.name} {trial.user_attrs}" for trial in trials if "origin" in trial.user_attrs
    )
    return Counter(
        finished=counts.finished,
        dead=len(dead),
        begun=len(begun),
        taken_up=len(taken_up),
        given_up=len(given_up),
        not_run=len(failed) - len(dead),
    )


def _check_complete(job: Job, shared: SharedStudy, trial: FrozenTrial) -> None:
    assert list(trial.intermediate_values) == job.boundaries
    assert trial.value == trial.intermediate_values[job.boundaries[-1]]
    for seed in job.training_seeds:  # no chunk was trained twice
        path = shared.folder_of(trial) / f"seed_{seed}" / "progress.json"
        assert json.loads(path.read_text()) == job.boundaries
