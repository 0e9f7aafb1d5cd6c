"""Workers: processes that take trials of a study one after another, on any number of machines."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sb3_ppo_variants.processes import Signals, in_processes
from sb3_ppo_variants.resume.folder import RunFolder
from sb3_ppo_variants.resume.format import BundleError
from sb3_ppo_variants.tuning.job import Job, StudyError
from sb3_ppo_variants.tuning.objective import LostTrialError, MakeTraining, evaluate, make_trainings
from sb3_ppo_variants.tuning.storage import StorageError
from sb3_ppo_variants.tuning.study import RETRY_OF, SharedStudy
from sb3_ppo_variants.tuning.training import Trainings, remove_bundles, remove_policy


def worker_name() -> str:
    """A name that no other worker has: of this machine, this process and a number drawn at random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def run_worker(job: Job, worker: str | None = None, make: MakeTraining | None = None) -> int:
    """Run trials in this process until the study's budget is used up.

    Ctrl-C and SIGTERM put the running trial back, with its bundles; whoever comes next goes on with it.

    :param worker: its name, from which its sampler's seed comes; None: one that no other has
    :param make: makes the training of one seed, in place of ours; a trial's seeds then take turns
    :return: the number of trials that this worker has finished
    :raises StorageError: if the storage does not answer for too long
    :raises ValueError: if the study is another job's
    :raises Exception: whatever a training raises, except that it diverges: the trial has failed, and tells of it
    """
    shared = SharedStudy(job, worker or worker_name())
    finished = 0
    with Signals() as signals:

        def wait(seconds: float) -> None:
            with signals.heard():
                time.sleep(seconds)

        while (trial := shared.next_trial(wait)) is not None:
            finished += _run_trial(shared, trial, make, signals)
    return finished


def _run_trial(shared: SharedStudy, trial: optuna.Trial, make: MakeTraining | None, signals: Signals) -> bool:
    """Run one trial to its end, whatever that is.

    :param signals: heard while it trains
    :return: whether it counts: it is complete or pruned, and was ours to the end
    """
    job = shared.job
    frozen = next(each for each in shared.trials() if each.number == trial.number)
    folder = _folder_for(shared, frozen)
    settings = job.settings(trial.params)
    trainings: Trainings | None = None
    began = time.monotonic()
    try:
        with _Heartbeat(shared, trial), signals.heard():
            trainings = make_trainings(job, settings, folder, make)
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
    counts = _finish(shared, trial, folder, state, value)
    if counts:
        _say(shared, f"trial {trial.number}: {words} ({time.monotonic() - began:.0f} s)")
    else:
        _say_lost(shared, trial)
    del trainings
    gc.collect()  # models hold themselves in cycles, and a rollout may be large
    return counts


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


def _finish(shared: SharedStudy, trial: optuna.Trial, folder: Path, state: TrialState, value: float | None) -> bool:
    """End a trial, and remove what no one needs any more: its bundles, and the policies of all but the best trials.

    :return: False if it is another worker's by now
    """
    if not shared.finish(trial, state, value):
        return False
    job = shared.job
    without_policy = [shared.folder_of(worse) for worse in shared.ranked()[job.rerun.best :]]
    if state is not TrialState.COMPLETE:
        without_policy.append(folder)
    for seed in job.training_seeds:
        remove_bundles(folder / f"seed_{seed}")
        for each in without_policy:
            remove_policy(each / f"seed_{seed}")
    return True


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


def _stop(trainings: Trainings | None) -> None:
    if trainings is not None:
        trainings.stop()


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


def run_workers(job: Job, workers: int = 1, worker: str | None = None, make: MakeTraining | None = None) -> int:
    """Run trials until the study's budget is used up, in one or several processes.

    :param workers: number of processes; 1: this one
    :param worker: name of the worker, or what the names of several begin with; None: names that no others have
    :param make: as of :func:`run_worker`; where there are several workers, a function of a module
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
    return in_processes(
        job.name,
        run_worker,
        [(job, f"{name}-{index}", make) for index in range(workers)],
        (StorageError, StudyError),
    )
