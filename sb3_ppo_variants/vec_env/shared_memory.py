"""``SharedMemoryVecEnv``: a few worker processes step a chunk of environments each, over shared memory."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import time
import weakref
from collections.abc import Callable
from multiprocessing import connection, reduction
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from sb3_ppo_variants.arguments import require_choice
from sb3_ppo_variants.vec_env import worker
from sb3_ppo_variants.vec_env.chunked import (
    Chunk,
    ChunkedVecEnv,
    Loss,
    raise_failures,
    require_chunks,
    require_max_restarts,
)
from sb3_ppo_variants.vec_env.layout import anonymous_file, banks_in, bytes_of_banks
from sb3_ppo_variants.vec_env.worker import Answer, WorkerDiedError

# Seconds that workers have to close their environments before they are ended.
CLOSING_SECONDS = 5.0
FAILED = 1
"""exit code of a process that an exception ended"""


class SharedMemoryVecEnv(ChunkedVecEnv):
    """Environments in worker processes, several to each, with observations and actions in shared memory.

    Gives what SB3's ``DummyVecEnv`` gives for the same seeds, whatever the number of workers, as long as no worker is
    lost. Takes any gymnasium environment whose observations are a Box, Discrete, MultiDiscrete or MultiBinary, or a
    Dict or Tuple of those. As with SB3's ``SubprocVecEnv``, start methods other than ``"fork"`` need the program's
    entry point under ``if __name__ == "__main__":``.

    A worker that is lost (its process ended: a crash in a simulator, the system out of memory, a signal) is replaced:
    its environments are made anew, get the attributes that :meth:`set_attr` gave them, and are reset with seeds drawn
    from their last seeds and the number of replacements. A :class:`WorkerLostWarning` tells of it. What was under way:

    - in a step, or between steps: the episodes are cut. The step gives reward 0, ``done``, and infos with
      ``TimeLimit.truncated``, ``worker_lost`` and, as ``terminal_observation``, the last observation received;
    - in :meth:`reset`: the reset is done again, with the seeds and options that were set;
    - in any other method: the question is asked again of the new environments (a method with an effect may so be
      called twice; its effect on the old ones is gone), and the next step tells of the cut as above.

    A worker that dies while the environments are first made ends the whole. With ``"fork"``, a replacement is a copy of
    the program as it is by then, threads of torch's and all; the others start from a clean process.

    An environment that raises is no lost worker. In a reset or step it ends the whole with an exception that names the
    environment, and nothing stays behind; in any other method, as an answer that cannot be pickled, it ends nothing.

    After a KeyboardInterrupt (Ctrl-C) one can go on, with a reset or without. What it interrupted is over: the
    environments end it, and their answers are dropped. In the few microseconds in which a message is sent or read it
    leaves nobody knowing how much of it: that worker is made anew as if it were lost, without a warning.

    :param env_fns: functions that make the environments, each a new one
    :param n_workers: worker processes; None: as many as the process may use cores, at most one per environment
    :param start_method: ``"forkserver"`` (default where there is one), ``"spawn"`` or ``"fork"``
    :param max_restarts: how often each worker may be replaced without 100 steps of all environments between, which
        tell an accident from a worker that always dies; 0: a worker that dies ends the whole
    :raises ValueError: for an argument outside its range, named in the message
    :raises TypeError: for an observation space with a part that is no array
    :raises EnvironmentRaisedError: if an environment cannot be made, or raises in a reset or step
    :raises WorkerDiedError: if a worker is lost more often than ``max_restarts``
    :raises RuntimeError: if used after :meth:`close`, or asked something during a step
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        n_workers: int | None = None,
        start_method: str | None = None,
        max_restarts: int = 10,
    ):
        require_chunks(env_fns, "n_workers", n_workers)
        require_max_restarts(max_restarts)
        n_envs = len(env_fns)
        methods = multiprocessing.get_all_start_methods()
        if start_method is None:
            start_method = "forkserver" if "forkserver" in methods else "spawn"
        require_choice("start_method", start_method, methods)

        self._prepare(n_envs, max_restarts)
        self._forget_memory: Callable[[], Any] | None = None
        self._bank = 0  # which of the two that _incoming is
        parts = np.array_split(np.arange(n_envs), n_workers or min(n_envs, len(os.sched_getaffinity(0))))
        self._chunks = [_Worker(start_method, [env_fns[index] for index in part], int(part[0])) for part in parts]
        try:
            observation_space, action_space = self._first_spaces()
            size = bytes_of_banks(observation_space, action_space, n_envs)
            descriptor = anonymous_file(size)
            # Open until the end, for workers that replace others; closed too where nobody closes the environments.
            self._forget_memory = weakref.finalize(self, os.close, descriptor)
            self._memory = (descriptor, observation_space, action_space, n_envs)
            banks = banks_in(mmap.mmap(descriptor, size), observation_space, action_space, n_envs)
            self._incoming, self._arrays = banks
            _, lost = self._attach(list(self._chunks))
            _raise_losses(lost)
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self._end_workers()
            raise

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        :param actions: ``(N, *action_shape)``
        :raises ValueError: if there is not one for each environment; nothing has happened then
        :raises RuntimeError: if closed, or during a step
        """
        self._require_ready()
        self._require_actions(actions)
        with self._ending_on_error():
            as_they_are = not self._share(actions)
            # Whoever chose the actions has not seen yet that a worker was replaced: its environments wait.
            stepped = [started for started in self._chunks if started.cut is None]
            self._step_begun(
                {
                    started: self._send(started, "step", list(actions[started.part]) if as_they_are else None)
                    for started in stepped
                }
            )

    def _share(self, actions: Any) -> bool:
        """Put actions into the shared memory.

        :return: False where they are of another type or shape than the space's: each environment gets its row
        """
        shared = self._incoming.actions
        if shared is None or not isinstance(actions, np.ndarray):
            return False
        if actions.dtype != shared.dtype or actions.shape != shared.shape:
            return False
        shared[:] = actions
        return True

    def _require_ready(self) -> None:
        """Check that the next answer of a worker will be to what it is asked now.

        :raises RuntimeError: if closed, or if a step is under way
        """
        self._require_open()
        if self.waiting:
            raise RuntimeError("a step is under way; end it with step_wait first")

    def _send(self, chunk: _Worker, command: str, *arguments: Any) -> Any:
        chunk.send(self._bank, command, *arguments)

    def _receive(self, asked: dict[_Worker, Any]) -> tuple[dict[_Worker, Answer], dict[_Worker, Loss]]:
        answers: dict[_Worker, Answer] = {}
        lost: dict[_Worker, Loss] = {}
        for started in asked:
            try:
                answers[started] = Answer(started.receive())
            except WorkerDiedError as death:
                lost[started] = Loss(str(death))
        return answers, lost

    def _received(self) -> None:
        # What was received stays as it is while the workers write into the other bank. Ctrl-C does not come between.
        self._incoming, self._arrays, self._bank = self._arrays, self._incoming, 1 - self._bank

    def _drop_answers(self) -> None:
        late = {started: None for started in self._chunks if started.asked and started not in self._pending}
        moved = [started for started in late if started.asked != "call"]
        answers, lost = self._receive(late)
        raise_failures([answers[started].value for started in moved if started in answers])
        self._replace(lost)

    def _first_spaces(self) -> tuple[gym.Space, gym.Space]:
        """Start all workers.

        :return: the spaces of the first environment
        :raises WorkerDiedError: if a worker dies meanwhile
        """
        answers, lost = self._start(list(self._chunks))
        _raise_losses(lost)
        return answers[self._chunks[0]].value

    def _start(self, workers: list[_Worker]) -> tuple[dict[_Worker, Answer], dict[_Worker, Loss]]:
        """Start processes, which make their environments and answer with the spaces of the first."""
        for started in workers:
            started.start([other.connection for other in self._chunks if other.connection is not None])
        answers, lost = self._receive(dict.fromkeys(workers))
        raise_failures([answer.value for answer in answers.values()])
        return answers, lost

    def _attach(self, workers: list[_Worker]) -> tuple[dict[_Worker, Answer], dict[_Worker, Loss]]:
        """Hand over the memory; environments under way get their attributes, and begin new episodes."""
        for started in workers:
            started.share(self._bank, *self._memory, started.attributes, self._new_seeds(started))
        answers, lost = self._receive(dict.fromkeys(workers))
        raise_failures([answer.value for answer in answers.values()])
        for started, answer in answers.items():
            started.began(None, answer.value)
        return answers, lost

    def _start_anew(self, chunks: list[_Worker]) -> dict[_Worker, Loss]:
        for started in chunks:
            started.ask_to_end()  # it still lives if an interruption left it half started
            started.end()
        answers, lost = self._start(chunks)
        _, lost_later = self._attach(list(answers))
        return lost | lost_later

    def _end_workers(self) -> None:
        self.closed = True
        self._pending, self.waiting = {}, False
        for started in self._chunks:
            started.ask_to_end()
        for started in self._chunks:
            started.end()
        if self._forget_memory is not None:
            self._forget_memory()


class _Worker(Chunk):
    """The parent's side of a worker process, and of those that replace it."""

    def __init__(self, start_method: str, env_fns: list[Callable[[], gym.Env]], first: int):
        super().__init__(first, len(env_fns))
        self._context: Any = multiprocessing.get_context(start_method)
        self._pickled_env_fns = cloudpickle.dumps(env_fns)
        self.connection: Any = None
        """None: not started, or ended"""
        self._process: Any = None
        self._pidfd: int | None = None
        """of the process, for its end; None where the system has none"""
        self.asked: str | None = None
        """the command that it has not answered yet"""

    def start(self, others: list[connection.Connection]) -> None:
        """Start the process.

        :param others: the parent's ends of connections to other workers
        """
        ours, remote = self._context.Pipe()
        # A forked process inherits the parent's ends; as long as it holds one, its owner would not notice our death.
        inherited = [*others, ours] if self._context.get_start_method() == "fork" else []
        arguments = (remote, inherited, self._pickled_env_fns, self.first, self.name)
        process = self._context.Process(target=worker.run, args=arguments, daemon=True)
        self.connection, self._process, self.asked, self.torn = ours, process, "start", False
        try:
            process.start()
        finally:
            remote.close()
        self._pidfd = _pidfd_of(process.pid)

    def send(self, bank: int, command: str, *arguments: Any) -> None:
        """Send a command to the worker; of one that is no longer there, :meth:`receive` will tell.

        :param bank: where its arrays are to lie
        """
        message = worker.pickled((bank, command, arguments))
        self.torn, self.asked = True, command
        try:  # noqa: SIM105  # contextlib.suppress would cost a microsecond in each step
            self.connection.send_bytes(message)
        except OSError:
            pass
        self.torn = False

    def share(self, bank: int, descriptor: int, *arguments: Any) -> None:
        """Hand over the memory of the arrays.

        :param arguments: both spaces, the number of all environments, and those of ``EnvChunk.begin``
        """
        self.send(bank, "attach", *arguments)
        with contextlib.suppress(OSError):
            reduction.send_handle(self.connection, descriptor, self._process.pid)

    def receive(self) -> Any:
        """The worker's answer.

        :raises WorkerDiedError: if the worker ends instead
        """
        ready = connection.wait([self.connection, self._end])
        # Asked again only where it ended: it may have answered before, after the connection was looked at.
        if self.connection in ready or self.connection.poll():
            self.torn = True
            try:
                message = self.connection.recv_bytes()
            except (EOFError, OSError):
                message = None
            if message is not None:
                self.torn, self.asked = False, None
                return pickle.loads(message)
        raise self._death()

    @property
    def _end(self) -> int:
        """What becomes readable with the process's end."""
        # The sentinel of a process that a fork server made also does with the fork server's end.
        return self._process.sentinel if self._pidfd is None else self._pidfd

    def _runs(self) -> bool:
        return self._process.is_alive() if self._pidfd is None else not connection.wait([self._pidfd], 0)

    def _kill(self) -> None:
        if self._pidfd is None:
            self._process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):  # it has ended by now
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            connection.wait([self._pidfd])

    def _death(self) -> WorkerDiedError:
        self._process.join(CLOSING_SECONDS)
        code = self._process.exitcode
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {signal.Signals(-code).name if -code in {*signal.Signals} else -code}"
        elif code == FAILED and self.asked == "start" and self._context.get_start_method() != "fork":
            how += " while it started; a script makes environments under if __name__ == '__main__': alone"
        return WorkerDiedError(f"the worker process {self._process.pid} of {self.name} ended {how}")

    def ask_to_end(self) -> None:
        """Let the worker close its environments."""
        if self.connection is not None and not self.torn:
            self.send(0, "close")

    def end(self) -> None:
        """Wait for the worker's end, and bring it about where it does not come."""
        if self.connection is None:
            return
        if self._process.pid is not None:  # else it could not be started
            self._end_process()
        self._process.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self.connection.close()
        self.connection = None

    def _end_process(self) -> None:
        # Of a torn message no end might come. If Ctrl-C ends this wait, whoever takes it up again does not wait.
        deadline = time.monotonic() + (0 if self.torn else CLOSING_SECONDS)
        self.torn = True
        while self._runs() and (left := deadline - time.monotonic()) > 0:
            # What it still has to say is read, or it could not go on to its end.
            if self.connection in connection.wait([self.connection, self._end], left):
                try:
                    self.connection.recv_bytes()
                except (EOFError, OSError):
                    connection.wait([self._end], left)
        if self._runs():
            self._kill()
        self._process.join()


def _pidfd_of(pid: int) -> int | None:
    """A descriptor that stands for a process, whoever's child it is; None where the system has none."""
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


def _raise_losses(lost: dict[_Worker, Loss]) -> None:
    """Raise what the first of the lost workers died of.

    :raises WorkerDiedError: if one was lost
    """
    for loss in lost.values():
        raise WorkerDiedError(loss.what)
