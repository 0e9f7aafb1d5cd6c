"""The trainings of one trial, one per seed, which take turns: each goes on to where the others are, then waits.

So are trained those that cannot be stacked (:mod:`~sb3_ppo_variants.tuning.stacked`). Each runs ``learn`` once, over
its whole budget, in a thread of its own, of which only one runs at any time; so its schedules, its episodes and its
random numbers are those of a training that was never interrupted, bit for bit.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.resume.names import BUNDLES
from sb3_ppo_variants.resume.state import generators, set_generators
from sb3_ppo_variants.tuning.job import StudyError

SCORES = "scores.json"
IDENTITY = "training.json"
"""of which training a folder is"""
POLICY = ("model.zip", "vecnormalize.pkl")
"""what is kept of a training that has come to its end, in SB3's form; the second where the environment is normalised"""
WAKE_INTERVAL = 0.5
"""seconds within which a signal is noticed"""


class Score(NamedTuple):
    """How well a training did."""

    mean: float
    """mean raw return of its last episodes; NaN where none has ended"""
    episodes: int
    """of how many"""
    timesteps: int
    """where it stood: the first iteration's end at or after the one asked for"""


class Training(Protocol):
    """One seed's training."""

    def advance(self, timesteps: int) -> Score:
        """Train until this timestep, and tell how well it does."""

    def stop(self) -> None:
        """End the training where it is, so that another process can go on with it."""


class Trainings(Protocol):
    """The trainings of a trial's seeds, as :mod:`~sb3_ppo_variants.tuning.objective` sees them."""

    def advance(self, timesteps: int) -> list[Score]:
        """Train each until this timestep, and tell how well it does, in the order of the seeds.

        :raises FloatingPointError: if one diverges; says which, and on the way to which timestep
        """

    def stop(self) -> None:
        """End them where they are, so that another process can go on with them."""


class Turns:
    """Trainings that take turns.

    :param trainings: by seed
    """

    def __init__(self, trainings: Mapping[int, Training]):
        self._trainings = trainings

    def advance(self, timesteps: int) -> list[Score]:
        """As :meth:`Trainings.advance`."""
        return [self._advance(seed, timesteps) for seed in self._trainings]

    def _advance(self, seed: int, timesteps: int) -> Score:
        try:
            return self._trainings[seed].advance(timesteps)
        except FloatingPointError as error:
            raise diverged(seed, timesteps, error) from error

    def stop(self) -> None:
        """As :meth:`Trainings.stop`."""
        for training in self._trainings.values():
            training.stop()


def diverged(seed: int, timesteps: int, error: FloatingPointError) -> FloatingPointError:
    """What a trial says of a seed that diverges before a timestep at which it would have been judged."""
    return FloatingPointError(f"seed {seed} diverged on the way to {timesteps} timesteps: {error}")


class ScoreFile:
    """What a training has reached at each timestep that was asked for, kept in its folder."""

    def __init__(self, folder: Path):
        self._path = folder / SCORES
        self._scores = _read_scores(self._path)

    def __contains__(self, timesteps: int) -> bool:
        return timesteps in self._scores

    def __getitem__(self, timesteps: int) -> Score:
        return self._scores[timesteps]

    def record(self, timesteps: int, model: Any) -> None:
        """Keep how well a model does that has come to this timestep."""
        returns = [episode["r"] for episode in model.ep_info_buffer]
        mean = float(np.mean(returns)) if returns else math.nan
        self._scores[timesteps] = Score(mean, len(returns), model.num_timesteps)
        content = {str(key): score._asdict() for key, score in self._scores.items()}
        atomic_write(self._path, json.dumps(content).encode())


class _StoppedError(BaseException):
    """Ends a ``learn`` from outside; no ``except Exception`` of an environment's holds it up."""


class SeedTraining:
    """One seed's training.

    :param make_model: makes the model on its environments; called in the thread that trains
    :param folder: of the run: its resume bundles and ``scores.json``
    :param total_timesteps: of the whole training
    :param bundle_interval: seconds between two bundles
    """

    def __init__(
        self,
        make_model: Callable[[], Any],
        folder: Path,
        total_timesteps: int,
        bundle_interval: float,
    ):
        self.folder = folder
        self._make_model, self._total = make_model, total_timesteps
        self._interval = bundle_interval
        self._scores = ScoreFile(folder)
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._target = 0
        self._error: BaseException | None = None
        self._ended = self._stopping = False
        self._generators: Any = None
        self._thread: threading.Thread | None = None
        self._model: Any = None

    def advance(self, timesteps: int) -> Score:
        """Train until the end of the first iteration at or after this timestep.

        What an earlier process has reached is not done again.

        :raises FloatingPointError: if the training diverges
        :raises BaseException: whatever else ends it
        """
        if timesteps not in self._scores:
            self._target = timesteps
            if not self._ended and (self._model is None or self._model.num_timesteps < timesteps):
                self._take_turn()
            self._scores.record(timesteps, self._model)
        return self._scores[timesteps]

    def stop(self) -> None:
        """End the training after its last whole iteration, with a bundle; environments are closed."""
        self._stopping = True
        if self._thread is not None and not self._ended:
            with suppress(_StoppedError):
                self._take_turn()

    def _take_turn(self) -> None:
        """Let the thread run until it waits or ends, with the random generators of its own."""
        device = _device()
        with own_generators():
            if self._generators is not None:
                set_generators(self._generators, device)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(th.get_num_threads(),), daemon=True)
                self._thread.start()
            self._turn.release()
            self._wait()
            self._generators = generators(device)
        if self._ended:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wait(self) -> None:
        try:
            self._wait_for_the_thread()
        except BaseException:  # Ctrl-C, which only this thread gets: the other one ends at its next step
            self._stopping = True
            self._wait_for_the_thread()
            if not self._ended:  # it had just come to the end of its turn
                self._turn.release()
                self._wait_for_the_thread()
            raise

    def _wait_for_the_thread(self) -> None:
        # Waking now and then, as a signal that another thread was given does not wake this one.
        while not self._done.acquire(timeout=WAKE_INTERVAL):
            pass

    # ------------------------------------------------------------------ in the thread

    def _run(self, n_threads: int) -> None:
        self._turn.acquire()
        try:
            th.set_num_threads(n_threads)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._model = self._make_model()
            try:
                self._model.learn(
                    self._total,
                    callback=_TakesTurns(self),
                    run_folder=self.folder,
                    resume="auto",
                    bundle_interval=self._interval,
                )
                save_policy(self._model, self.folder)
            finally:
                with suppress(EOFError):
                    self._model.env.close()
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._done.release()

    def wait_for_turn(self, num_timesteps: int) -> None:
        """Called between two iterations."""
        while num_timesteps >= self._target and not self._stopping:
            self._done.release()
            self._turn.acquire()
        self.go_on()

    def go_on(self) -> None:
        """Called at every step.

        :raises _StoppedError: if the training is to end
        """
        if self._stopping:
            raise _StoppedError


class _TakesTurns(BaseCallback):
    def __init__(self, training: SeedTraining):
        super().__init__()
        self._training = training

    def _on_rollout_start(self) -> None:
        self._training.wait_for_turn(self.model.num_timesteps)

    def _on_step(self) -> bool:
        self._training.go_on()
        return True


def _device() -> th.device:
    return th.device("cuda" if th.cuda.is_available() else "cpu")


@contextmanager
def own_generators() -> Iterator[None]:
    """Give the caller's random generators back as they were."""
    before = generators(_device())
    try:
        yield
    finally:
        set_generators(before, _device())


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write down whose a folder is, or check that it is this training's: its scores and bundles would be used.

    :param identity: all that decides what the training gives, as JSON has it
    :raises StudyError: if it is another's
    """
    path = folder / IDENTITY
    ours = json.loads(json.dumps(identity))
    try:
        theirs = json.loads(path.read_bytes())
    except FileNotFoundError:
        if (folder / SCORES).exists() or (folder / BUNDLES).exists():
            raise StudyError(
                f"{folder} holds a training, and does not say which: give this one another folder, or remove that"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(ours).encode())
        return
    except ValueError:
        theirs = None
    if theirs != ours:
        raise StudyError(
            f"{folder} holds another training, of an earlier study or another job: give this one another folder, or "
            "remove that"
        )


def save_policy(model: Any, folder: Path) -> None:
    """Save a model, and the statistics of its VecNormalize if there is one, as SB3 does."""
    model_file, normalizer_file = POLICY
    model.save(folder / model_file)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.save(folder / normalizer_file)


def remove_policy(folder: Path) -> None:
    """Remove what :func:`save_policy` has saved, if anything."""
    for name in POLICY:
        (folder / name).unlink(missing_ok=True)


def remove_bundles(folder: Path) -> None:
    """Remove the resume bundles of a training, if there are any: it has ended."""
    shutil.rmtree(folder / BUNDLES, ignore_errors=True)


def _read_scores(path: Path) -> dict[int, Score]:
    """What an earlier process has reached; nothing if that cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        return {int(key): Score(**score) for key, score in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
