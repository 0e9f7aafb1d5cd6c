"""``learn`` that keeps resume bundles: the part of an algorithm that knows how a run is interrupted and goes on."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

import numpy as np
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_ppo_variants.arguments import require, require_choice
from sb3_ppo_variants.resume import logs
from sb3_ppo_variants.resume import state as run_state
from sb3_ppo_variants.resume.folder import Bundle, BundleWarning, RunFolder
from sb3_ppo_variants.resume.format import Tree, copied, is_tree
from sb3_ppo_variants.resume.names import BUNDLES, BundleError, bundle_paths

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="ResumableAlgorithm")

BUNDLE_INTERVAL = 60.0
"""seconds between two bundles"""
CLOCK_TOLERANCE = 5.0
"""seconds by which the computer's clock may differ from the time that has passed"""
TERMINATED = 128 + signal.SIGTERM
"""the program's exit code then, as shells have it"""


class ResumableAlgorithm(OnPolicyAlgorithm):
    """SB3's ``OnPolicyAlgorithm`` whose ``learn`` can keep resume bundles, and go on from one.

    Objects with state of their own (the algorithm, its callbacks, environments and their wrappers) take part with two
    methods: ``get_resume_state()``, which returns None, bool, int, float, str, arrays, or lists, tuples and mappings of
    such, and ``set_resume_state(state)``. Attributes of the algorithm and of callbacks that are of those types, and no
    arguments of the constructor, need no such methods.
    """

    schedule_timesteps: int | None = None
    """Timesteps over which schedules run; None: those of ``learn``. Set where a run is extended, and kept with it."""

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        run_folder: str | Path | None = None,
        resume: bool | Literal["auto"] = False,
        bundle_interval: float = BUNDLE_INTERVAL,
        stretch_schedules: bool = False,
    ) -> SelfAlgorithm:
        """Train for ``total_timesteps``, as SB3's ``learn``; with a ``run_folder``, so that nothing is lost.

        A resume bundle is written at intervals, at the end, on SIGTERM, Ctrl-C and any error: always of the state after
        the last complete iteration. The last two are kept, in ``<run_folder>/bundles``. The same program, run again
        with ``resume="auto"``, goes on from the newest one as if nothing had happened; episodes under way begin again.

        :param total_timesteps: of the whole run, also where it is resumed
        :param tb_log_name: name of the TensorBoard run; None: the algorithm's name
        :param run_folder: of this run, for its bundles and ``progress.csv``; None: no bundles
        :param resume: True: go on from the newest bundle; ``"auto"``: the same, or begin where there is none; False:
            begin, in a folder without bundles
        :param bundle_interval: seconds between bundles; 0: one after each iteration
        :param stretch_schedules: where ``total_timesteps`` is another than the resumed run's, let the schedules run
            over the new number; False: they go on as they were, and stay at their ends
        :return: the algorithm itself
        :raises ValueError: for an argument outside its range
        :raises BundleError: if the bundles cannot be read, are of another run, or another process trains in the folder
        """
        require_choice("resume", resume, (True, False, "auto"))
        require("bundle_interval", bundle_interval, "a finite number >= 0", lambda value: 0 <= value < math.inf)
        self._check_rollout_size()
        name = tb_log_name or type(self).__name__
        if run_folder is None:
            if resume or stretch_schedules:
                raise ValueError("run_folder must name the folder of the run that is to be resumed; got None")
            self.schedule_timesteps = None
            return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
        folder = RunFolder(run_folder)
        require_resumable(folder.path, resume)
        names = {"log_interval": log_interval, "tb_log_name": name, "progress_bar": progress_bar}
        with folder.owned():
            run = Run(self, folder, bundle_interval, names)
            run.begin_or_go_on(resume, total_timesteps, callback, reset_num_timesteps, stretch_schedules)
            run.train()
        return self

    def _check_rollout_size(self) -> None:
        """A variant's check of arguments against the environments."""

    def _progress_remaining(self) -> float:
        """How much of the schedules' way is left at this timestep, 1 → 0."""
        if self.schedule_timesteps is None:
            return 1.0 - self.num_timesteps / max(1, self._total_timesteps)
        return max(0.0, 1.0 - self.num_timesteps / max(1, self.schedule_timesteps))

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        if self.schedule_timesteps is None:
            super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        else:
            self._current_progress_remaining = self._progress_remaining()


def require_resumable(folder: Path, resume: bool | str) -> None:
    """Check that a run's folder has bundles where it must, and none where it must not.

    :raises BundleError: if not
    """
    if resume is True and not bundle_paths(folder):
        raise BundleError(f"there is no resume bundle in {folder / BUNDLES}; resume='auto' would begin a run")
    if not resume and bundle_paths(folder):
        raise BundleError(f"{folder} holds the bundles of a run: resume='auto' goes on with it")


class _ProgressBar(ProgressBarCallback):
    """SB3's progress bar, of the whole run: it begins where the run stands."""

    def _on_training_start(self) -> None:
        self.pbar = callbacks.tqdm(total=self.model._total_timesteps, initial=self.model.num_timesteps)


@contextmanager
def _reading(bundle: Bundle) -> Iterator[None]:
    """Tell of a bundle that does not fit.

    :raises BundleError: for whatever goes wrong
    """
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{bundle.path} cannot be resumed: {error}") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{bundle.path} cannot be resumed: it does not fit this run ({type(error).__name__}: {error})"
        ) from error


class Run:
    """One ``learn`` with resume bundles.

    :param names: what else callbacks find in ``locals`` when the training starts, as in SB3's ``learn``
    """

    def __init__(self, model: Any, folder: RunFolder, interval: float, names: dict[str, Any]):
        self._model, self._folder, self._interval, self._names = model, folder, interval, names
        self._iteration = 0
        self._callback: BaseCallback = CallbackList([])
        self._began: list[dict[str, Tree]] = []
        self._bar: _ProgressBar | None = None
        self._latest: tuple[int, dict[str, Tree]] | None = None
        self._written: int | None = None
        self._changed = False
        self._last_write = time.monotonic()
        self._clock = time.time() - time.monotonic()
        self._terminated = self._leaving = False
        self._constants = {
            "identity": run_state.identity_of(model),
            "settings": run_state.settings_of(model),
            "versions": run_state.versions(),
        }

    # ------------------------------------------------------------------ beginning

    def check(self, state: dict[str, Tree]) -> None:
        """Check that a bundle is of such a run.

        :raises BundleError: if it is not
        """
        run_state.require_same_run(self._model, state)

    def begin(self, total: int, callback: MaybeCallback, reset: bool) -> None:
        """Set up a new run."""
        model = self._model
        model.schedule_timesteps = None
        self._prepare_environments()
        logger = None
        if not model._custom_logger:
            arguments = (model.verbose, model.tensorboard_log, self._names["tb_log_name"], reset)
            logger = logs.new_logger(self._folder.path, *arguments)
        self._set_up(total, callback, reset, logger)
        self._start()

    def go_on(self, bundle: Bundle, total: int, callback: MaybeCallback, stretch: bool) -> None:
        """Set up a run that goes on from a bundle.

        :raises BundleError: if the bundle does not fit; the model may then be changed in part
        """
        model, state = self._model, bundle.state
        self._prepare_environments()
        with _reading(bundle):
            run_state.tell_changes(model, state)
            run_state.set_environments(model.env, state["environments"])
            model.set_parameters(state["parameters"], exact_match=True, device=model.device)
        model._last_obs = run_state.reset_as_before(model.env)
        with _reading(bundle):
            self._compare_observations(state)
            logger = None
            if not model._custom_logger:
                arguments = (model.verbose, model.tensorboard_log, self._names["tb_log_name"], state["logs"])
                logger = logs.resumed_logger(self._folder.path, *arguments)
        self._set_up(total, callback, False, logger)
        with _reading(bundle):
            self._restore_counters(state)
            self._changed = self._set_total(model._num_timesteps_at_start + total, stretch)
        self._start()
        with _reading(bundle):
            run_state.set_callbacks(self._callback, state["callbacks"], state["callbacks_began"])
            logs.restore_waiting(model.logger, state["logs"])
            logs.cut_monitors(self._folder.path, state["logs"]["monitors"])
            run_state.set_generators(state["generators"], model.device)
        self._written = model.num_timesteps
        if model.verbose >= 1:
            print(f"Resumed at {model.num_timesteps} of {model._total_timesteps} timesteps")
            if model.num_timesteps >= model._total_timesteps:
                print("Nothing is left to do: a larger number of timesteps would extend the run")

    def _restore_counters(self, state: dict[str, Tree]) -> None:
        model = self._model
        run_state.set_attributes(model, state["model"]["attributes"], run_state.MADE_ANEW)
        run_state.tell(model, state["model"])
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
        for name in ("ep_info_buffer", "ep_success_buffer"):
            setattr(model, name, deque(state[name], maxlen=model._stats_window_size))
        model.start_time = time.time_ns() - state["elapsed_ns"]
        self._iteration = state["iteration"]

    def _set_total(self, total: int, stretch: bool) -> bool:
        """Set the end of the run; the schedules go on as they were unless they are to be stretched.

        :return: whether that is a change
        """
        model = self._model
        before = model._total_timesteps, model.schedule_timesteps
        if stretch:
            model.schedule_timesteps = None
        elif model.schedule_timesteps is None and total != model._total_timesteps:
            model.schedule_timesteps = model._total_timesteps
        model._total_timesteps = total
        return before != (total, model.schedule_timesteps)

    def _set_up(self, total: int, callback: MaybeCallback, reset: bool, logger: Any | None) -> None:
        model = self._model
        if self._names["progress_bar"]:
            if not isinstance(callback, BaseCallback):
                callback = CallbackList(callback) if isinstance(callback, list) else ConvertCallback(callback)
            self._bar = _ProgressBar()
            callback = CallbackList([callback, self._bar])
        self._names["reset_num_timesteps"] = reset
        custom = model._custom_logger
        if logger is not None:
            model.set_logger(logger)  # or SB3 would make another
        try:
            _, self._callback = model._setup_learn(total, callback, reset)
        finally:
            model._custom_logger = custom
        run_state.prepare_callbacks(self._callback)

    def _prepare_environments(self) -> None:
        if not run_state.prepare(self._model.env):
            kind = type(self._model.env.unwrapped).__name__
            warnings.warn(
                f"the environments of this {kind} do not tell how their episodes began: a resumed run will begin "
                f"others. Wrap each with sb3_ppo_variants.vec_env.record_episodes",
                BundleWarning,
                stacklevel=5,
            )

    def _compare_observations(self, state: dict[str, Tree]) -> None:
        """Warn of environments whose episodes had just begun, and now begin otherwise."""
        before, now = _rows(state["observations"]), _rows(self._model._last_obs)
        if state["environments"]["episodes"] is None:
            return
        others = [
            index
            for index in np.flatnonzero(state["episode_starts"])
            if any(not np.array_equal(before[key][index], now[key][index], equal_nan=True) for key in before)
        ]
        if others:
            warnings.warn(
                f"environments {', '.join(map(str, others))} begin otherwise than before: their resets depend on more "
                f"than their random generator (see get_resume_state)",
                BundleWarning,
                stacklevel=6,
            )

    def _start(self) -> None:
        total = self._model._total_timesteps
        names = {"self": self._model, "total_timesteps": total, "iteration": self._iteration, **self._names}
        names["callback"] = self._callback
        self._callback.on_training_start(names, globals())
        self._began = run_state.callbacks_of(self._callback)

    # ------------------------------------------------------------------ training

    def begin_or_go_on(
        self,
        resume: bool | str,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        stretch_schedules: bool = False,
    ) -> None:
        """Begin the training, or go on from the newest bundle if that is asked for and there is one.

        :raises BundleError: if bundles cannot be read or are of another run
        """
        bundle = self._folder.newest(self.check) if resume else None
        if bundle is None:
            self.begin(total_timesteps, callback, reset_num_timesteps)
        else:
            self.go_on(bundle, total_timesteps, callback, stretch_schedules)

    def train(self) -> None:
        """Train to the end, and leave a bundle behind whatever happens."""
        model = self._model
        self.start()
        with self.on_termination():
            try:
                self.write()
                while model.num_timesteps < model._total_timesteps:
                    if not self._iterate():
                        break
                self.write()
            except BaseException as error:
                self.leave(error)
                raise
        self.end()

    def start(self) -> None:
        """To be called before the first iteration: remembers the state that it begins with."""
        self._snapshot()

    def end(self) -> None:
        """To be called when all is done."""
        self._callback.on_training_end()

    def _iterate(self) -> bool:
        """One iteration, as in SB3's ``learn``; False if a callback ended the training."""
        model = self._model
        if not model.collect_rollouts(model.env, self._callback, model.rollout_buffer, n_rollout_steps=model.n_steps):
            return False
        self.before_update()
        model.train()
        self.after_update()
        return True

    def before_update(self) -> None:
        """What comes between a rollout and the update on it."""
        model, log_interval = self._model, self._names["log_interval"]
        self._iteration += 1
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        self._follow_clock()
        if log_interval is not None and self._iteration % log_interval == 0:
            model.dump_logs(self._iteration)

    def after_update(self) -> None:
        """What ends an iteration: the state is remembered, and written if it is time.

        :raises SystemExit: if the process has been told to end
        """
        self._snapshot()
        if time.monotonic() - self._last_write >= self._interval:
            self.write()
        if self._terminated:  # the exception was lost in somebody's destructor
            raise SystemExit(TERMINATED)

    def _snapshot(self) -> None:
        """Remember the state after this iteration, in memory."""
        model = self._model
        self._latest = (
            model.num_timesteps,
            {
                **self._constants,
                "iteration": self._iteration,
                "elapsed_ns": time.time_ns() - model.start_time,
                "model": {
                    "attributes": run_state.attributes_of(model, run_state.MADE_ANEW),
                    **run_state.told_by(model),
                },
                "parameters": copied(model.get_parameters()),
                "observations": copied(model._last_obs),
                "episode_starts": model._last_episode_starts.copy(),
                "environments": run_state.environments_of(model.env),
                "ep_info_buffer": [_kept(info) for info in model.ep_info_buffer],
                "ep_success_buffer": [success for success in model.ep_success_buffer if is_tree(success)],
                "callbacks": run_state.callbacks_of(self._callback),
                "callbacks_began": self._began,
                "logs": logs.logs_of(self._folder.path, model.logger, model.num_timesteps),
                "generators": run_state.generators(model.device),
            },
        )

    def write(self) -> None:
        """Write the latest snapshot; the training goes on if that fails."""
        assert self._latest is not None
        num_timesteps, state = self._latest
        if num_timesteps == self._written and not self._changed:
            return
        self._last_write = time.monotonic()
        try:
            self._folder.write(num_timesteps, state)
        except Exception as error:  # whatever users' objects told of themselves
            warnings.warn(
                f"no resume bundle could be written at {num_timesteps} timesteps: {error}. The training goes on; the "
                f"last bundle is {_name(self._written)}",
                BundleWarning,
                stacklevel=4,
            )
        else:
            self._written, self._changed = num_timesteps, False

    def leave(self, error: BaseException) -> None:
        """Write what the run has reached before the error, and tell in it how to go on."""
        self._leaving = True
        if self._bar is not None:
            self._bar.on_training_end()
        self.write()
        if self._written is not None and hasattr(error, "add_note"):  # Python 3.11
            error.add_note(
                f"The run in {self._folder.path} can go on from {self._written} timesteps: learn(…, resume='auto')"
            )

    @contextmanager
    def on_termination(self) -> Iterator[None]:
        """End the training on SIGTERM as Ctrl-C does: by an exception."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
            yield
            return

        def terminate(number: int, frame: FrameType | None) -> None:
            self._terminated = True
            if self._leaving:
                return
            if callable(before):
                before(number, frame)
            raise SystemExit(TERMINATED)

        signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _follow_clock(self) -> None:
        """Take jumps of the computer's clock out of the logged times, which count from a start."""
        clock = time.time() - time.monotonic()
        jump = clock - self._clock
        if abs(jump) < CLOCK_TOLERANCE:
            return
        self._clock = clock
        model = self._model
        model.start_time += int(jump * 1e9)
        run_state.shift_clock(model.env, jump)
        warnings.warn(
            f"the computer's clock jumped by {jump:.0f} seconds; logged times leave that out",
            BundleWarning,
            stacklevel=5,
        )


def _name(num_timesteps: int | None) -> str:
    return "none" if num_timesteps is None else f"that of {num_timesteps} timesteps"


def _rows(observations: Any) -> dict[Any, np.ndarray]:
    return observations if isinstance(observations, dict) else {None: observations}


def _kept(info: dict[str, Any]) -> dict[str, Tree]:
    """Of an episode's record what a bundle can hold: a Monitor's ``info_keywords`` may be anything."""
    return {name: value for name, value in info.items() if is_tree(value)}
