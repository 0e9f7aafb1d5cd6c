"""How one agent's training begins, goes from iteration to iteration and is kept: alone it would be ``learn``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

from sb3_ppo_variants.resume.folder import RunFolder
from sb3_ppo_variants.resume.learning import Run

Resume = bool | Literal["auto"]


class AgentRun(Protocol):
    """One agent's training as the engine drives it; see :class:`~sb3_ppo_variants.resume.learning.Run`."""

    def start(self) -> None:
        """To be called before the first iteration."""

    def before_update(self) -> None:
        """To be called between a rollout and the update on it."""

    def after_update(self) -> None:
        """To be called after the update."""

    def write(self) -> None:
        """Keep what has been reached."""

    def leave(self, error: BaseException) -> None:
        """The same, on the way out with an error."""

    def end(self) -> None:
        """To be called when all is done."""

    def on_termination(self) -> AbstractContextManager[None]:
        """A context in which SIGTERM ends the training by an exception."""


class UnkeptRun:
    """A training of which nothing is kept but the model.

    :param total_timesteps: of the training
    """

    def __init__(self, model: Any, total_timesteps: int):
        self._model, self._iteration = model, 0
        model.schedule_timesteps = None
        _, self._callback = model._setup_learn(total_timesteps, None, True, type(model).__name__, False)

    def start(self) -> None:
        """As :meth:`AgentRun.start`."""
        self._callback.on_training_start({"self": self._model}, {})

    def before_update(self) -> None:
        """As :meth:`AgentRun.before_update`."""
        model = self._model
        self._iteration += 1
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        model.dump_logs(self._iteration)

    def after_update(self) -> None:
        """As :meth:`AgentRun.after_update`."""

    def write(self) -> None:
        """As :meth:`AgentRun.write`."""

    def leave(self, error: BaseException) -> None:
        """As :meth:`AgentRun.leave`."""

    def end(self) -> None:
        """As :meth:`AgentRun.end`."""
        self._callback.on_training_end()

    @contextmanager
    def on_termination(self) -> Iterator[None]:
        """As :meth:`AgentRun.on_termination`; nothing is kept, so nothing is done."""
        yield


def kept_run(model: Any, folder: RunFolder, total_timesteps: int, resume: Resume, interval: float) -> Run:
    """A training in a folder of its own, begun or gone on with.

    :param folder: owned by this process
    :raises BundleError: if its bundles cannot be read or are of another run
    """
    names = {"log_interval": 1, "tb_log_name": type(model).__name__, "progress_bar": False}
    run = Run(model, folder, interval, names)
    run.begin_or_go_on(resume, total_timesteps)
    return run
