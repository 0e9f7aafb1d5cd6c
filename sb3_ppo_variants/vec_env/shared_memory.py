"""``SharedMemoryVecEnv``: a few worker processes step a chunk of environments each, over shared memory."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from multiprocessing import connection, reduction
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_ppo_variants.arguments import require_choice
from sb3_ppo_variants.vec_env import worker
from sb3_ppo_variants.vec_env.chunked import Chunk, ChunkedVecEnv, raise_failures, require_chunks
from sb3_ppo_variants.vec_env.layout import SharedArrays, anonymous_file
from sb3_ppo_variants.vec_env.worker import WorkerDiedError

# Seconds that workers have to close their environments before they are ended.
CLOSING_SECONDS = 5.0


class SharedMemoryVecEnv(ChunkedVecEnv):
    """Environments in worker processes, several to each, with observations and actions in shared memory.

    Gives what SB3's ``DummyVecEnv`` gives for the same seeds, whatever the number of workers. Takes any gymnasium
    environment whose observations are a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of those.

    An environment that raises in a reset or step, or a worker that dies, ends the whole with an exception that names
    the environment; nothing stays behind. One that raises in any other method, or an answer that cannot be pickled,
    ends nothing. As with SB3's ``SubprocVecEnv``, start methods other than ``"fork"`` need the program's entry point
    under ``if __name__ == "__main__":``.

    :param env_fns: functions that make the environments, each a new one
    :param n_workers: worker processes; None: as many as the process may use cores, at most one per environment
    :param start_method: ``"forkserver"`` (default where there is one), ``"spawn"`` or ``"fork"``
    :raises ValueError: for an argument outside its range, named in the message
    :raises TypeError: for an observation space with a part that is no array
    :raises EnvironmentRaisedError: if an environment cannot be made
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        n_workers: int | None = None,
        start_method: str | None = None,
    ):
        require_chunks(env_fns, "n_workers", n_workers)
        n_envs = len(env_fns)
        methods = multiprocessing.get_all_start_methods()
        if start_method is None:
            start_method = "forkserver" if "forkserver" in methods else "spawn"
        require_choice("start_method", start_method, methods)

        self._chunks: list[_Worker] = []
        chunks = np.array_split(np.arange(n_envs), n_workers or min(n_envs, len(os.sched_getaffinity(0))))
        try:
            for chunk in chunks:
                fns = [env_fns[index] for index in chunk]
                self._chunks.append(
                    _Worker(start_method, fns, int(chunk[0]), [other.connection for other in self._chunks])
                )
            observation_space, action_space = self._gather()[0]
            _, size = SharedArrays.over(None, observation_space, action_space, n_envs)
            descriptor = anonymous_file(size)
            try:
                for started in self._chunks:
                    started.share(descriptor, observation_space, action_space, n_envs)
                memory = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            self._arrays, _ = SharedArrays.over(memory, observation_space, action_space, n_envs)
            self._gather()
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self._end_workers()
            raise

    def reset(self) -> VecEnvObs:
        """Reset all environments, with the seeds and options that were set.

        :return: observations, ``(N, *obs_shape)`` or a dict or tuple of such
        :raises RuntimeError: if closed, or during a step
        """
        self._require_no_step()
        for started in self._chunks:
            self._send(started, "reset", self._seeds[started.part], self._options[started.part])
        return self._reset_return(self._gather())

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        :param actions: ``(N, *action_shape)``
        :raises ValueError: if there is not one for each environment; nothing has happened then
        :raises RuntimeError: if closed, or during a step
        """
        self._require_no_step()
        self._require_actions(actions)
        shared = self._arrays.actions
        fits = shared is not None and isinstance(actions, np.ndarray) and actions.dtype == shared.dtype
        if shared is not None and fits and actions.shape == shared.shape:
            shared[:] = actions
            for started in self._chunks:
                self._send(started, "step", None)
        else:  # another type or shape: each environment gets its row as it is
            for started in self._chunks:
                self._send(started, "step", list(actions[started.part]))
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """End the step that :meth:`step_async` began.

        :return: observations, rewards ``(N,)``, ends ``(N,)``, infos
        :raises RuntimeError: if closed
        """
        self._require_open()
        results = self._gather()
        self.waiting = False
        return self._step_return(results)

    def _require_no_step(self) -> None:
        """Check that the next answer of a worker will be to what it is asked now.

        :raises RuntimeError: if closed, or if a step is under way
        """
        self._require_open()
        if self.waiting:
            raise RuntimeError("a step is under way; end it with step_wait first")

    def _call_chunks(self, calls: list[tuple[_Worker, tuple[Any, ...]]]) -> list[Any]:
        self._require_no_step()
        try:
            for started, arguments in calls:
                started.send("call", *arguments)
            return [started.receive() for started, _ in calls]
        except WorkerDiedError:
            self._end_workers()
            raise

    def _send(self, started: _Worker, command: str, *arguments: Any) -> None:
        try:
            started.send(command, *arguments)
        except WorkerDiedError:
            self._end_workers()
            raise

    def _gather(self) -> list[Any]:
        """The answers of all workers; a failure ends all of them."""
        try:
            answers = [started.receive() for started in self._chunks]
            raise_failures(answers)
        except Exception:
            self._end_workers()
            raise
        return answers

    def _end_workers(self) -> None:
        self.closed = True
        self.waiting = False
        for started in self._chunks:
            started.ask_to_end()
        for started in self._chunks:
            started.end()


class _Worker(Chunk):
    """The parent's side of a worker process."""

    def __init__(
        self, start_method: str, env_fns: list[Callable[[], gym.Env]], first: int, others: list[connection.Connection]
    ):
        context: Any = multiprocessing.get_context(start_method)
        super().__init__(first, len(env_fns))
        self.connection, remote = context.Pipe()
        # A forked process inherits the parent's ends; as long as it holds one, its owner would not notice our death.
        inherited = [*others, self.connection] if start_method == "fork" else []
        arguments = (remote, inherited, cloudpickle.dumps(env_fns), first, self.name)
        self._process = context.Process(target=worker.run, args=arguments, daemon=True)
        self._process.start()
        remote.close()

    def send(self, command: str, *arguments: Any) -> None:
        """Send a command to the worker.

        :raises WorkerDiedError: if it is no longer there
        """
        try:
            self.connection.send_bytes(worker.pickled((command, arguments)))
        except OSError as error:
            raise self._death() from error

    def share(self, descriptor: int, observation_space: gym.Space, action_space: gym.Space, n_envs: int) -> None:
        """Hand over the memory that the arrays of all ``n_envs`` environments lie in."""
        self.send("attach", observation_space, action_space, n_envs)
        reduction.send_handle(self.connection, descriptor, self._process.pid)

    def receive(self) -> Any:
        """The worker's answer.

        :raises WorkerDiedError: if the worker ends instead
        """
        connection.wait([self.connection, self._process.sentinel])
        try:
            if self.connection.poll():
                return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            pass
        raise self._death()

    def _death(self) -> WorkerDiedError:
        self._process.join(CLOSING_SECONDS)
        code = self._process.exitcode
        how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return WorkerDiedError(f"the worker process {self._process.pid} of {self.name} ended {how}")

    def ask_to_end(self) -> None:
        """Let the worker close its environments."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(worker.pickled(("close", ())))

    def end(self) -> None:
        """Wait for the worker's end, and bring it about where it does not come."""
        deadline = time.monotonic() + CLOSING_SECONDS
        while self._process.is_alive() and (left := deadline - time.monotonic()) > 0:
            # What it still has to say is read, or it could not go on to its end.
            if self.connection in connection.wait([self.connection, self._process.sentinel], left):
                try:
                    self.connection.recv_bytes()
                except (EOFError, OSError):
                    self._process.join(left)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self.connection.close()
