"""Wrappers of the humanoids' tasks."""

from math import atan2, cos, pi, sin

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_ppo_variants.arguments import require, shown
from sb3_ppo_variants.envs.humanoid import OBSERVATION_SIZE, TARGET_ANGLE


class CompressTargetAngle(
    gym.ObservationWrapper[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], RecordConstructorArgs
):
    """Shows a humanoid no larger angle to its target than one that has run straight ahead knows.

    Angles up to ``knee`` stay as they are; larger ones are compressed linearly, so that π is seen as ``limit``. It is
    one-to-one: no information is lost, and left and right stay mirror images. With it an agent of
    `RoboschoolHumanoid-v1` runs towards the flags of `RoboschoolHumanoidFlagrun-v1` before any training there; without
    it, a flag that is not ahead brings it down.

    The task is the same: reward, termination and `info` are left alone.

    :param env: a humanoid's task, whose observation, shape (44,), has sine and cosine of the angle as components 1, 2.
    :param knee: the largest angle that stays as it is, rad.
    :param limit: what an angle of π is seen as, rad.
    :raises ValueError: if not 0 <= `knee` <= `limit` <= π, or the observation has another shape.
    """

    def __init__(
        self,
        env: gym.Env[NDArray[np.float32], NDArray[np.float32]],
        *,
        knee: float = 0.2,
        limit: float = 0.4,
    ) -> None:
        require("limit", limit, "a number from 0 to π, rad", lambda value: 0.0 <= value <= pi)
        require("knee", knee, f"a number from 0 to limit ({limit}), rad", lambda value: 0.0 <= value <= limit)
        if env.observation_space.shape != (OBSERVATION_SIZE,):
            raise ValueError(
                f"env must be a humanoid's task, with observations of shape ({OBSERVATION_SIZE},); "
                f"got {shown(env.observation_space)}"
            )
        RecordConstructorArgs.__init__(self, knee=knee, limit=limit)
        super().__init__(env)
        self.knee, self.limit = float(knee), float(limit)
        # With a knee of π no angle is beyond it.
        self._slope = (self.limit - self.knee) / (pi - self.knee) if self.knee < pi else 1.0

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """The observation, shape (44,), with sine and cosine of the compressed angle."""
        sine, cosine = TARGET_ANGLE
        angle = atan2(observation[sine], observation[cosine])
        beyond = abs(angle) - self.knee
        if beyond <= 0.0:
            return observation
        seen = self.knee + self._slope * beyond
        observation = observation.copy()
        observation[sine], observation[cosine] = sin(seen) if angle > 0.0 else -sin(seen), cos(seen)
        return observation
