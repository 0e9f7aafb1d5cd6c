"""``WorkersMonitor``: one file for the episodes of environments in workers, written by the learner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper


class WorkersMonitor(VecEnvWrapper):
    """Writes the episodes that SB3's ``Monitor`` tells of in the infos, and those that ended with their worker.

    A ``Monitor`` with a file of its own would write it on the worker's machine, and the ``Monitor`` of a worker's
    replacement would begin the file anew: what was in it would be lost. SB3's ``VecMonitor`` would count what wrappers
    outside the ``Monitor`` make of rewards and episodes, which for Atari are signs and lives.

    The row of an episode that ended with its worker has the rewards that the learner received of it and the number of
    their steps; nothing else is known of it.

    :param venv: environments that are each in a ``Monitor`` without a file
    :param path: of the file, which ends in ``monitor.csv``, as SB3's ``load_results`` looks for; None: no file
    :param info_keywords: what else the infos of an episode's last step have for the file
    :param override_existing: False: add to the file, which must be there
    """

    def __init__(
        self,
        venv: VecEnv,
        path: str | Path | None,
        info_keywords: Sequence[str] = (),
        override_existing: bool = True,
    ):
        super().__init__(venv)
        self._begin = time.time()
        self._writer = None
        if path is not None:
            header: dict[str, float | str] = {"t_start": self._begin}
            self._writer = ResultsWriter(str(path), header, tuple(info_keywords), override_existing)
        self._forget()

    def _forget(self) -> None:
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)

    def get_resume_state(self) -> float:
        """For how many seconds it has counted, for a resume bundle."""
        return time.time() - self._begin

    def set_resume_state(self, state: float) -> None:
        """The reverse of :meth:`get_resume_state`."""
        self._begin = time.time() - state

    def shift_clock(self, seconds: float) -> None:
        """Count on as if the computer's clock had not jumped by so many seconds."""
        self._begin += seconds

    def reset(self) -> VecEnvObs:
        """Reset all environments.

        :return: observations, ``(N, *obs_shape)`` or a dict or tuple of such
        """
        self._forget()
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """End a step; a cut episode's info gets ``episode`` as ``Monitor`` would have given it.

        :return: observations, rewards ``(N,)``, ends ``(N,)``, infos
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        self._returns += rewards
        self._lengths += 1
        for index, info in enumerate(infos):
            if info.get("worker_lost"):
                # Its last step is the one that did not take place.
                info["episode"] = {"r": round(float(self._returns[index]), 6), "l": int(self._lengths[index]) - 1}
            if "episode" in info:
                self._end_episode(index, info["episode"])
        return observations, rewards, dones, infos

    def _end_episode(self, index: int, told: dict[str, Any]) -> None:
        # A worker's own time begins with that worker.
        told["t"] = round(time.time() - self._begin, 6)
        if self._writer is not None:
            self._writer.write_row(told)
        self._returns[index] = self._lengths[index] = 0

    def close(self) -> None:
        """Close the file and the environments."""
        if self._writer is not None:
            self._writer.close()
        self.venv.close()


ActorsMonitor = WorkersMonitor
"""Its name from when only ``RayVecEnv`` replaced workers."""
