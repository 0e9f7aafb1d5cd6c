"""Workers: processes that take trials of a study one after another, on any number of machines."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants.resume.folder import RunFolder
from sb3_ppo_variants.resume.format import BundleError
from sb3_ppo_variants.resume.learning import TERMINATED
from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.objective import LostTrialError, MakeTraining, evaluate, make_training
from sb3_ppo_variants.tuning.storage import StorageError
from sb3_ppo_variants.tuning.study import RETRY_OF, SharedStudy
from sb3_ppo_variants.tuning.training import Training

FAILED = 1
"""exit code of a worker that ended by an error"""
SECONDS_TO_HEAR = 2.0
"""for which workers may notice a Ctrl-C by themselves"""


def worker_name() -> str:
    """A name that no other worker has: of this machine, this process and a number drawn at random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def run_worker(job: Job, worker: str | None = None, make: MakeTraining = make_training) -> int:
    """Run trials in this process until the study's budget is used up.

    Ctrl-C and SIGTERM put the running trial back, with its bundles; whoever comes next goes on with it.

    :param worker: its name, from which its sampler's seed comes; None: one that no other has
    :param make: makes the training of one seed
    :return: the number of trials that this worker has finished
    :raises StorageError: if the storage does not answer for too long
    :raises ValueError: if the study is another job's
    :raises Exception: whatever a training raises, except that it diverges: the trial has failed, and tells of it
    """
    shared = SharedStudy(job, worker or worker_name())
    finished = 0
    with _Signals() as signals:

        def wait(seconds: float) -> None:
            with signals.heard():
                time.sleep(seconds)

        while (trial := shared.next_trial(wait)) is not None:
            finished += _run_trial(shared, trial, make, signals)
    return finished


def _run_trial(shared: SharedStudy, trial: optuna.Trial, make: MakeTraining, signals: _Signals) -> bool:
    """Run one trial to its end, whatever that is.

    :param signals: heard while it trains
    :return: whether it counts: it is complete or pruned, and was ours to the end
    """
    job = shared.job
    frozen = next(each for each in shared.trials() if each.number == trial.number)
    folder = _folder_for(shared, frozen)
    settings = job.settings(trial.params)
    trainings: list[Training] = []
    began = time.monotonic()
    try:
        with _Heartbeat(shared, trial), signals.heard():
            for seed in job.training_seeds:
                trainings.append(make(job, settings, seed, folder / f"seed_{seed}"))
            value = evaluate(trial, job, trainings, frozen.intermediate_values, lambda: shared.is_ours(trial))
        state, words = TrialState.COMPLETE, f"{value:.4g}"
    except optuna.TrialPruned as pruned:
        state, value, words = TrialState.PRUNED, None, f"pruned {pruned}"
    except FloatingPointError as error:
        with suppress(UpdateFinishedTrialError):  # finish() tells of that
            trial.set_user_attr("diverged", str(error))
        state, value, words = TrialState.PRUNED, None, f"diverged: {error}"
    except (LostTrialError, UpdateFinishedTrialError):
        _stop(trainings)
        _say_lost(shared, trial)
        return False
    except BaseException as error:
        _stop(trainings)
        try:
            _leave(shared, trial, error)
        except UpdateFinishedTrialError:
            _say_lost(shared, trial)
        raise
    _stop(trainings)
    if not shared.finish(trial, state, value):
        _say_lost(shared, trial)
        return False
    _say(shared, f"trial {trial.number}: {words} ({time.monotonic() - began:.0f} s)")
    return True


def _leave(shared: SharedStudy, trial: optuna.Trial, error: BaseException) -> None:
    """Say in the study what has ended this worker.

    :raises optuna.exceptions.UpdateFinishedTrialError: if the trial is another worker's by now
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        shared.put_back(trial)
        _say(shared, f"trial {trial.number} is put back; tune run goes on with it")
    elif not isinstance(error, StorageError):  # which could not be told
        trial.set_user_attr("error", "".join(traceback.format_exception_only(error)).strip())
        shared.finish(trial, TrialState.FAIL)


def _folder_for(shared: SharedStudy, trial: FrozenTrial) -> Path:
    """Where to train a trial: where a dead worker has left it, unless that one trains there still."""
    folder = shared.folder_of(trial)
    if RETRY_OF not in trial.user_attrs:
        return folder
    for seed in shared.job.training_seeds:
        run = RunFolder(folder / f"seed_{seed}")
        if not run.bundles.is_dir():
            continue
        try:
            with run.owned():
                pass
        except BundleError:  # it only stood still: suspended, or cut off from the storage
            return folder.with_name(f"{folder.name}_again_{trial.number}")
    return folder


def _say(shared: SharedStudy, words: str) -> None:
    print(f"[{shared.job.name}] {words}", flush=True)


def _say_lost(shared: SharedStudy, trial: optuna.Trial) -> None:
    _say(shared, f"trial {trial.number} was given to another worker: this one's heartbeat was late")


def _stop(trainings: Sequence[Training]) -> None:
    for training in trainings:
        training.stop()


class _Heartbeat:
    """Gives signs of life of a trial, from a thread of its own."""

    def __init__(self, shared: SharedStudy, trial: optuna.Trial):
        self._shared, self._trial = shared, trial
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._shared.job.heartbeat.interval):
            try:
                self._shared.beat(self._trial)
            except StorageError as error:  # the worker itself will notice, when it next needs the storage
                print(error, file=sys.stderr)


# ------------------------------------------------------------------ several


def run_workers(job: Job, workers: int = 1, worker: str | None = None, make: MakeTraining = make_training) -> int:
    """Run trials until the study's budget is used up, in one or several processes.

    :param workers: number of processes; 1: this one
    :param worker: name of the worker, or what the names of several begin with; None: names that no others have
    :param make: makes the training of one seed; where there are several workers, a function of a module
    :return: 0, or the exit code of the first worker that did not end well
    :raises StorageError: as :func:`run_worker`
    :raises ValueError: as :func:`run_worker`
    """
    # Made once, before all want to; and what is wrong is said once.
    SharedStudy(job).enqueue_paper()
    name = worker or worker_name()
    if workers == 1:
        run_worker(job, name, make)
        return 0
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(job, f"{name}-{index}", make), name=f"worker {index}")
        for index in range(workers)
    ]
    try:
        with _Signals() as signals, signals.heard():
            for process in processes:
                process.start()
            for process in processes:
                process.join()
    except (KeyboardInterrupt, SystemExit):
        _end(processes)
        raise
    failed = [process for process in processes if process.exitcode]
    for process in failed:
        code = process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(f"[{job.name}] {process.name} {how}", file=sys.stderr)
    return (failed[0].exitcode or FAILED) if failed else 0


def _end(processes: Sequence[Any]) -> None:
    """Have workers put back their trials, and wait for them."""
    started = [process for process in processes if process.pid is not None]
    with _undisturbed():
        for process in started:  # Ctrl-C in a terminal has reached them, a signal to this process alone has not
            process.join(SECONDS_TO_HEAR)
            process.terminate()
        for process in started:
            process.join()


def _work(job: Job, worker: str, make: MakeTraining) -> None:
    """A worker in a process of its own."""
    import torch as th

    th.set_num_threads(1)  # networks this small lose by more, and the workers share the cores
    try:
        run_worker(job, worker, make)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except StorageError as error:
        print(f"[{job.name}] {error}", file=sys.stderr)
        sys.exit(FAILED)


class _Signals:
    """Ctrl-C and SIGTERM, which are heard only where a trial can be put back, and kept until then.

    In a thread other than the main one, which gets none, nothing changes.
    """

    def __init__(self) -> None:
        self._kept: BaseException | None = None
        self._are_heard = self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self._kept is not None:
            raise self._kept

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._raised:  # what it asks for is under way
            return
        again = self._kept is not None
        self._kept = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(TERMINATED)
        if self._are_heard or again:  # one who asks twice does not want to wait for a storage that is away
            self._raise()

    def _raise(self) -> None:
        error, self._kept, self._raised = self._kept, None, True
        assert error is not None
        raise error

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let them end what runs inside, by an exception."""
        self._are_heard = True
        try:
            if self._kept is not None:
                self._raise()
            yield
        finally:
            self._are_heard = False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM: what they ask for is under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
