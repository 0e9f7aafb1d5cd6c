"""The humanoids' mirror image: right and left exchanged."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from sb3_ppo_variants.envs.humanoid import MIRROR_SYMMETRY, MOTORS

Array = NDArray[np.float64]


def mirrored(kind: str, values: Any) -> Any:
    indices, signs = MIRROR_SYMMETRY[kind]
    return np.asarray(values)[..., indices] * np.asarray(signs)


def test_twice_mirrored_is_as_it_was() -> None:
    for kind, size in (("observation", 44), ("action", 17)):
        numbers = np.arange(1.0, size + 1)
        assert mirrored(kind, mirrored(kind, numbers)).tolist() == numbers.tolist()
        assert mirrored(kind, numbers).tolist() != numbers.tolist()


def test_what_is_exchanged_and_what_turns() -> None:
    """Worked out from the robot's axes: legs and elbows are mirror images, the spine and the shoulders are not."""
    indices, signs = MIRROR_SYMMETRY["action"]
    assert indices == [0, 1, 2, 7, 8, 9, 10, 3, 4, 5, 6, 14, 15, 16, 11, 12, 13]
    assert [number for number, sign in enumerate(signs) if sign < 0] == [0, 2, 11, 12, 14, 15]
    indices, signs = MIRROR_SYMMETRY["observation"]
    assert indices == [*range(14), *range(22, 30), *range(14, 22), *range(36, 42), *range(30, 36), 43, 42]
    assert [number for number, sign in enumerate(signs) if sign < 0] == [
        1,
        4,
        6,
        8,
        9,
        12,
        13,
        *range(30, 34),
        *range(36, 40),
    ]


def placed(env: Any, joints: Array, yaw: float, bearing: float) -> Any:
    env.robot.place(joints.tolist(), 1.4, 0.1, yaw)
    env.target = (100 * np.cos(bearing), 100 * np.sin(bearing))
    env.robot.read()
    return env._observe()


@pytest.mark.parametrize("env_id", ["RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrun-v1"])
def test_the_robot_moves_in_the_mirror_as_outside_of_it(env_id: str) -> None:
    envs: list[Any] = [gym.make(env_id).unwrapped for _ in range(2)]
    generator = np.random.default_rng(0)
    differences, movements = [], []
    for seed in range(20):
        for env in envs:
            env.reset(seed=seed)
        joints, yaw, bearing = generator.uniform(-0.3, 0.3, len(MOTORS)), *generator.uniform(-1, 1, 2)
        before = placed(envs[0], joints, yaw, bearing)
        image = placed(envs[1], mirrored("action", joints), -yaw, -bearing)
        np.testing.assert_allclose(image, mirrored("observation", before), atol=1e-6)
        for _ in range(3):
            action = generator.uniform(-1, 1, len(MOTORS))
            after, reward, *_ = envs[0].step(action)
            image, reward_of_image, *_ = envs[1].step(mirrored("action", action))
        # Where several contacts act, Bullet's solver depends on their order: hence the median.
        differences.append(max(np.abs(image - mirrored("observation", after)).max(), abs(reward - reward_of_image)))
        movements.append(np.abs(after - before).max())
    for env in envs:
        env.close()
    assert np.median(differences) < 1e-5
    assert np.median(movements) > 0.1
