"""The task held against its definition, by reading PyBullet one joint and one link at a time."""

import inspect
from collections.abc import Iterator
from math import atan2, cos, hypot, isfinite, sin
from typing import Any

import numpy as np
import pybullet
import pytest
from numpy.typing import NDArray

from sb3_ppo_variants.envs.humanoid import FEET, MOTORS
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid

CONTROL_PERIOD = 0.0165
RIGHT_FOOT, LEFT_FOOT = 11, 18
MOTOR_JOINTS = [0, 1, 3, 5, 6, 7, 9, 12, 13, 14, 16, 19, 20, 22, 24, 25, 27]


@pytest.fixture(name="env")
def _env() -> Iterator[RoboschoolHumanoid]:
    env = RoboschoolHumanoid()
    yield env
    env.close()


def client_of(env: RoboschoolHumanoid) -> int:
    return env._world.client


def random_actions(seed: int, steps: int, scale: float = 1.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-scale, scale, (steps, 17))


def mean_xy(env: RoboschoolHumanoid) -> NDArray[np.float64]:
    """Mean centre of mass of the 29 links that are not the root, each read by itself."""
    body, client = env.robot.body.id, client_of(env)
    points = [
        pybullet.getLinkState(body, link, physicsClientId=client)[0]
        for link in range(pybullet.getNumJoints(body, physicsClientId=client))
    ]
    assert len(points) == 29
    return np.mean(points, axis=0)[:2]


def feet_on_floor(env: RoboschoolHumanoid) -> list[float]:
    body, floor, client = env.robot.body.id, env._world.floor, client_of(env)
    return [
        float(bool(pybullet.getContactPoints(body, floor, link, -1, physicsClientId=client)))
        for link in (RIGHT_FOOT, LEFT_FOOT)
    ]


def expected_observation(env: RoboschoolHumanoid, feet: list[float]) -> NDArray[np.float64]:
    """The definition, with rotation matrices and Euler angles from PyBullet instead of our formulas."""
    body, client = env.robot.body.id, client_of(env)
    (_, _, z), quaternion = pybullet.getBasePositionAndOrientation(body, physicsClientId=client)
    velocity, _ = pybullet.getBaseVelocity(body, physicsClientId=client)
    roll, pitch, yaw = pybullet.getEulerFromQuaternion(quaternion)
    x, y = mean_xy(env)
    angle = atan2(env.target[1] - y, env.target[0] - x) - yaw
    turn = np.array([[cos(-yaw), -sin(-yaw), 0.0], [sin(-yaw), cos(-yaw), 0.0], [0.0, 0.0, 1.0]])
    values = [z - 0.8, sin(angle), cos(angle), *(0.3 * turn @ velocity), roll, pitch]
    for joint in MOTOR_JOINTS:
        low, high = pybullet.getJointInfo(body, joint, physicsClientId=client)[8:10]
        position, speed = pybullet.getJointState(body, joint, physicsClientId=client)[:2]
        values += [2.0 * (position - 0.5 * (low + high)) / (high - low), 0.1 * speed]
    return np.clip([*values, *feet], -5.0, 5.0)


def test_motors_are_pybullets_hinges_in_its_order(env: RoboschoolHumanoid) -> None:
    body, client = env.robot.body.id, client_of(env)
    infos = [pybullet.getJointInfo(body, j, physicsClientId=client) for j in range(29)]
    names = [info[1].decode() for info in infos if info[2] == pybullet.JOINT_REVOLUTE]
    assert list(MOTORS) == names
    assert [info[0] for info in infos if info[2] == pybullet.JOINT_REVOLUTE] == MOTOR_JOINTS
    assert [env.robot.body.links[foot] for foot in FEET] == [RIGHT_FOOT, LEFT_FOOT]


def test_torques_are_those_of_one_call_per_motor(env: RoboschoolHumanoid) -> None:
    powers = [100] * 5 + [300, 200] + [100, 100, 300, 200] + [75] * 6
    actions = random_actions(3, 40)
    env.reset(seed=3)
    for action in actions:
        env.step(action)
    expected = env.robot.body.read_hinges()

    env.reset(seed=3)
    body, client = env.robot.body.id, client_of(env)
    for action in actions:
        for joint, power, share in zip(MOTOR_JOINTS, powers, action, strict=True):
            pybullet.setJointMotorControl2(
                body, joint, pybullet.TORQUE_CONTROL, force=0.41 * power * share, physicsClientId=client
            )
        pybullet.stepSimulation(physicsClientId=client)
    for joint, hinge in zip(MOTOR_JOINTS, expected, strict=True):
        assert pybullet.getJointState(body, joint, physicsClientId=client)[:2] == hinge[:2]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_observation_and_progress_by_hand(env: RoboschoolHumanoid, seed: int) -> None:
    feet = [0.0, 0.0]
    observation, _ = env.reset(seed=seed)
    np.testing.assert_allclose(observation, expected_observation(env, feet), atol=2e-6)
    before = hypot(1000.0 - mean_xy(env)[0], mean_xy(env)[1])
    ever = set()
    for action in random_actions(seed, 120):
        observation, _, _, _, info = env.step(action)
        # The flags are those that the step before left behind: one step late.
        np.testing.assert_allclose(observation, expected_observation(env, feet), atol=2e-6)
        feet = feet_on_floor(env)
        ever.update(feet)
        distance = hypot(1000.0 - mean_xy(env)[0], mean_xy(env)[1])
        assert info["reward_progress"] == pytest.approx((before - distance) / CONTROL_PERIOD, abs=1e-8)
        before = distance
    assert ever == {0.0, 1.0}  # otherwise the flags were not tried


def test_terms_sum_to_the_reward_exactly(env: RoboschoolHumanoid) -> None:
    env.reset(seed=4)
    for action in random_actions(4, 200, scale=1.5):
        _, reward, _, _, info = env.step(action)
        assert tuple(info) == env.REWARD_TERMS
        alive, progress, electricity, limits, feet = info.values()
        assert alive + progress + electricity + limits + feet == reward


def test_electricity_is_charged_on_the_action_as_given(env: RoboschoolHumanoid) -> None:
    env.reset(seed=5)
    for action in random_actions(5, 30, scale=4.0):
        *_, info = env.step(action)
        speeds = [
            0.1 * pybullet.getJointState(env.robot.body.id, j, physicsClientId=client_of(env))[1] for j in MOTOR_JOINTS
        ]
        # 4.25·(−2.0) = −8.5 and 4.25·(−0.1) = −0.425
        expected = -8.5 * np.mean(np.abs(action * speeds)) - 0.425 * np.mean(action**2)
        assert info["reward_electricity"] == pytest.approx(expected, rel=1e-12)


def test_torque_is_clipped(env: RoboschoolHumanoid) -> None:
    """Beyond ±1 the robot moves no otherwise than at ±1."""
    actions = random_actions(6, 20, scale=3.0)
    trajectories = []
    for given in (actions, np.clip(actions, -1.0, 1.0)):
        env.reset(seed=6)
        trajectories.append([env.step(action)[0] for action in given])
    np.testing.assert_array_equal(trajectories[0], trajectories[1])


def test_joints_at_limit_and_fall_by_hand(env: RoboschoolHumanoid) -> None:
    env.reset(seed=7)
    counts, fallen = set(), False
    for action in random_actions(7, 120):
        observation, _, terminated, _, info = env.step(action)
        count = int(np.sum(np.abs(expected_observation(env, [0.0, 0.0])[8:42:2]) > 0.99))
        assert info["reward_joints_at_limit"] == pytest.approx(-0.2 * count)
        counts.add(count)
        # Height is the observation's first number + 0.8.
        assert terminated == (observation[0] + 0.8 <= 0.78)
        assert info["reward_alive"] == (-1.0 if terminated else 2.0)
        fallen |= terminated
    assert fallen
    assert len(counts) > 2


def test_feet_collision_counts_the_foot_that_bullet_names_first(env: RoboschoolHumanoid) -> None:
    """Roboschool asked for each foot's contacts, and got those in which it came first: of two feet, the right one."""
    seen = set()
    body, client = env.robot.body.id, client_of(env)
    inward = np.zeros(17)
    inward[[3, 7]] = 1.0  # both hips' x hinges
    for sign in (1.0, -1.0):
        env.reset(seed=0)
        for _ in range(25):
            *_, info = env.step(sign * inward)
            charged = 0
            for foot in (RIGHT_FOOT, LEFT_FOOT):
                charged += bool(pybullet.getContactPoints(body, body, foot, physicsClientId=client))
            assert info["reward_feet_collision"] == -1.0 * charged
            points = pybullet.getContactPoints(body, body, physicsClientId=client)
            assert all(point[3] < point[4] for point in points)
            seen.add((charged, any({point[3], point[4]} == {RIGHT_FOOT, LEFT_FOOT} for point in points)))
    assert {(0, False), (1, True)} <= seen


PICTURE_KEYWORDS = {"render_mode", "width", "height", "renderer"}
"""What changes pictures alone; `test_rendering.py` and `test_humanoid_interface.py` try them."""
KEYWORDS: dict[str, Any] = {
    "alive_bonus": 5.0,
    "fall_penalty": -7.0,
    "minimum_height": 1.0,
    "progress_weight": 2.0,
    "electricity_cost": -1.0,
    "stall_torque_cost": -1.0,
    "joints_at_limit_cost": -3.0,
    "feet_collision_cost": -4.0,
    "power": 0.2,
    "initial_height": 1.5,
    "yaw_range": 1.0,
    "restitution": 0.0,
    "joint_range": 0.3,
    "target": (0.0, 1000.0),
}


def rewards_and_ends(**keywords: Any) -> list[tuple[float, bool]]:
    env = RoboschoolHumanoid(**keywords)
    env.reset(seed=11)
    hips = np.zeros(17)
    hips[[3, 7]] = 1.0  # brings the feet together, so that their cost is among the rewards
    results = [env.step(hips)[1:3] for _ in range(20)]
    results += [env.step(action)[1:3] for action in random_actions(11, 60)]
    env.close()
    return results


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_keyword_has_an_effect(keyword: str) -> None:
    assert rewards_and_ends(**{keyword: KEYWORDS[keyword]}) != rewards_and_ends()


def test_keywords_are_all_tried() -> None:
    parameters = set(inspect.signature(RoboschoolHumanoid).parameters)
    assert parameters - PICTURE_KEYWORDS == set(KEYWORDS)


def test_non_finite_state_terminates_and_the_next_episode_is_sound(env: RoboschoolHumanoid) -> None:
    env.reset(seed=8)
    expected = [env.step(action)[0] for action in random_actions(8, 40)]
    env.reset(seed=9)
    pybullet.resetBaseVelocity(env.robot.body.id, [float("nan")] * 3, [0.0] * 3, physicsClientId=client_of(env))
    observation, reward, terminated, _, info = env.step(np.zeros(17))
    assert terminated
    assert env.observation_space.contains(observation)
    assert isfinite(reward)
    assert sum(info.values()) == reward == -1.0
    env.reset(seed=8)
    np.testing.assert_array_equal([env.step(action)[0] for action in random_actions(8, 40)], expected)
