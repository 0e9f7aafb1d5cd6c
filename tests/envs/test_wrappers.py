"""The wrapper that shows a humanoid no larger angle to its target than it knows."""

from math import atan2, pi
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_ppo_variants.envs.humanoid import MIRROR_SYMMETRY, OBSERVATION_SIZE
from sb3_ppo_variants.envs.wrappers import CompressTargetAngle

FLAGRUN = "RoboschoolHumanoidFlagrun-v1"


class Scripted(gym.Env[np.ndarray, np.ndarray]):
    """A task with a humanoid's observation, whose angle to the target a test sets."""

    observation_space = spaces.Box(-5.0, 5.0, (OBSERVATION_SIZE,))
    action_space = spaces.Box(-1.0, 1.0, (17,))
    angle = 0.0

    def observation(self) -> np.ndarray:
        values = np.linspace(-1.0, 1.0, OBSERVATION_SIZE, dtype=np.float32)
        values[1], values[2] = np.sin(self.angle), np.cos(self.angle)
        return values

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation(), {}

    def step(self, action: np.ndarray) -> Any:
        return self.observation(), 1.5, False, False, {"told": 1}


def seen(angle: float, **arguments: float) -> float:
    env = CompressTargetAngle(Scripted(), **arguments)
    env.unwrapped.angle = angle  # type: ignore[attr-defined]
    observation, _ = env.reset()
    assert np.hypot(observation[1], observation[2]) == pytest.approx(1.0, abs=1e-6)
    return atan2(observation[1], observation[2])


@pytest.mark.parametrize(("angle", "expected"), [(0.0, 0.0), (0.1, 0.1), (0.2, 0.2), (pi - 1e-6, 0.4), (1.0, 0.254393)])
def test_what_is_seen_of_an_angle(angle: float, expected: float) -> None:
    assert seen(angle) == pytest.approx(expected, abs=1e-5)
    assert seen(-angle) == pytest.approx(-expected, abs=1e-5), "left and right are mirror images"


@pytest.mark.parametrize("arguments", [{}, {"knee": 0.0, "limit": 1.0}, {"knee": 0.3, "limit": 0.31}])
def test_no_two_angles_look_the_same(arguments: dict[str, float]) -> None:
    looks = [seen(angle, **arguments) for angle in np.linspace(-pi + 0.01, pi - 0.01, 201)]
    assert (np.diff(looks) > 0.0).all()


@pytest.mark.parametrize("arguments", [{"knee": pi, "limit": pi}, {"knee": 1.0, "limit": pi}])
def test_it_can_be_told_to_change_nothing(arguments: dict[str, float]) -> None:
    for angle in (-3.0, -1.5, 0.0, 0.7, 3.1):
        assert seen(angle, **arguments) == pytest.approx(angle, abs=1e-6)


def test_nothing_but_the_angle_is_changed() -> None:
    env = CompressTargetAngle(Scripted())
    plain = env.unwrapped
    plain.angle = 2.0  # type: ignore[attr-defined]
    before = plain.observation()  # type: ignore[attr-defined]
    observation, *rest = env.step(np.zeros(17, np.float32))
    assert rest == [1.5, False, False, {"told": 1}]
    others = [index for index in range(OBSERVATION_SIZE) if index not in (1, 2)]
    np.testing.assert_array_equal(observation[others], before[others])
    assert observation.dtype == np.float32


def test_on_the_task() -> None:
    env = gym.make(FLAGRUN, straight_probability=0.0)
    wrapped = CompressTargetAngle(gym.make(FLAGRUN, straight_probability=0.0))
    rng = np.random.default_rng(0)
    there, here = env.reset(seed=3)[0], wrapped.reset(seed=3)[0]
    changed = 0
    for _ in range(20):
        angle = atan2(there[1], there[2])
        assert abs(atan2(here[1], here[2])) <= min(0.4, max(abs(angle), 0.2)) + 1e-6
        changed += not np.array_equal(there, here)
        action = rng.uniform(-1.0, 1.0, 17).astype(np.float32)
        there, *others = env.step(action)
        here, *same = wrapped.step(action)
        assert others == same
    assert changed
    assert wrapped.get_wrapper_attr("mirror_symmetry") == MIRROR_SYMMETRY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 4.0}, r"limit must be a number from 0 to π, rad; got 4\.0"),
        ({"limit": -0.1}, "limit must be"),
        ({"limit": "0.4"}, "limit must be"),
        ({"knee": 0.5}, r"knee must be a number from 0 to limit \(0\.4\), rad; got 0\.5"),
        ({"knee": -0.1}, "knee must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressTargetAngle(Scripted(), **arguments)


def test_another_observation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env must be a humanoid's task, with observations of shape \(44,\); got Box"):
        CompressTargetAngle(gym.make("Pendulum-v1"))
