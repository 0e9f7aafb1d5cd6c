"""The flag tasks: their versions, flags, falls, cubes and start poses, each held against its definition."""

import copy
import inspect
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from math import atan2, degrees, hypot, isfinite, pi
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pybullet
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_ppo_variants.envs import TASKS, register_envs
from sb3_ppo_variants.envs.bullet import World
from sb3_ppo_variants.envs.flagrun import (
    POSES,
    Curriculum,
    RoboschoolHumanoidFlagrun,
    RoboschoolHumanoidFlagrunHarder,
)
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid
from tests.envs.test_humanoid_task import KEYWORDS as HUMANOID_KEYWORDS
from tests.envs.test_humanoid_task import (
    MOTOR_JOINTS,
    PICTURE_KEYWORDS,
    client_of,
    expected_observation,
    feet_on_floor,
    mean_xy,
    random_actions,
)

CONTROL_PERIOD = 0.0165
HUMANOIDS = {
    "RoboschoolHumanoid": RoboschoolHumanoid,
    "RoboschoolHumanoidFlagrun": RoboschoolHumanoidFlagrun,
    "RoboschoolHumanoidFlagrunHarder": RoboschoolHumanoidFlagrunHarder,
}
IDS = [f"{name}-v{version}" for name in HUMANOIDS for version in (0, 1)]
NEWER_VERSION = "ignore:.*The environment RoboschoolHumanoid.*-v0 is out of date:DeprecationWarning"
UPRIGHT, FACE_DOWN, FACE_UP = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)

Harder = RoboschoolHumanoidFlagrunHarder
Making = Callable[..., Any]


@pytest.fixture(name="make")
def _make() -> Iterator[Making]:
    """Makes an environment that is closed after the test; an id stands for its row of the register table."""
    made: list[RoboschoolHumanoid] = []

    def make(task: str, **keywords: Any) -> Any:
        made.append(HUMANOIDS[task[:-3]](**{**TASKS[task].kwargs, **keywords}))
        return made[-1]

    yield make
    for env in made:
        env.close()


def moved_closer(env: RoboschoolHumanoid, before: NDArray[np.float64]) -> float:
    """Speed of approach to the present target, m/s, from one mean position to the present one."""
    distances = [hypot(env.target[0] - x, env.target[1] - y) for x, y in (before, mean_xy(env))]
    return (distances[0] - distances[1]) / CONTROL_PERIOD


def heights(env: RoboschoolHumanoid) -> tuple[float, float]:
    """Of torso and pelvis, m, read one by one."""
    body, client = env.robot.body, client_of(env)
    pelvis = pybullet.getLinkState(body.id, body.links["pelvis"], physicsClientId=client)[0][2]
    return pybullet.getBasePositionAndOrientation(body.id, physicsClientId=client)[0][2], pelvis


def lift(env: RoboschoolHumanoid, height: float = 1.4) -> None:
    """Put the robot upright in the air, so that it is not on the ground for a while."""
    env.robot.body.place([0.0] * 17, (0.0, 0.0, height), (0.0, 0.0, 0.0, 1.0))


# ------------------------------------------------------------------ the six ids


def test_registered_limits() -> None:
    register_envs()
    thresholds = {"RoboschoolHumanoid": 3500.0, "RoboschoolHumanoidFlagrun": 2000.0}
    for env_id in IDS:
        spec = gym.spec(env_id)
        assert (spec.max_episode_steps, spec.reward_threshold) == (1000, thresholds.get(env_id[:-3]))


@pytest.mark.parametrize(
    ("name", "attribute", "v0", "v1"),
    [
        ("RoboschoolHumanoid", "joints_at_limit_cost", -0.1, -0.2),
        ("RoboschoolHumanoid", "yaw_range", 0.0, pi / 16),
        ("RoboschoolHumanoid", "electricity_cost", -8.5, -8.5),
        ("RoboschoolHumanoid", "stall_torque_cost", 4.25 * -0.1, 4.25 * -0.1),
        ("RoboschoolHumanoid", "minimum_height", 0.78, 0.78),
        ("RoboschoolHumanoidFlagrun", "joints_at_limit_cost", -0.1, -0.2),
        ("RoboschoolHumanoidFlagrun", "yaw_range", 3.14, pi / 16),
        ("RoboschoolHumanoidFlagrun", "electricity_cost", -8.5, -4.25),
        ("RoboschoolHumanoidFlagrun", "stall_torque_cost", 4.25 * -0.1, 4.25 * -0.1),
        ("RoboschoolHumanoidFlagrun", "minimum_height", 0.78, 0.78),
        ("RoboschoolHumanoidFlagrun", "flag_timeout", 200, 150),
        ("RoboschoolHumanoidFlagrun", "flag_range", (13.125, 6.25), (13.125, 6.25)),
        ("RoboschoolHumanoidFlagrun", "straight_probability", 0.0, 0.5),
        ("RoboschoolHumanoidFlagrunHarder", "joints_at_limit_cost", -0.1, -0.2),
        ("RoboschoolHumanoidFlagrunHarder", "yaw_range", 3.14, pi / 16),
        ("RoboschoolHumanoidFlagrunHarder", "electricity_cost", -2.125, -1.0),
        ("RoboschoolHumanoidFlagrunHarder", "lying_electricity_cost", -2.125, -0.4),
        ("RoboschoolHumanoidFlagrunHarder", "stall_torque_cost", 4.25 * -0.1, 4.25 * -0.1),
        ("RoboschoolHumanoidFlagrunHarder", "minimum_height", 0.8, 0.8),
        ("RoboschoolHumanoidFlagrunHarder", "flag_timeout", 200, 150),
        ("RoboschoolHumanoidFlagrunHarder", "straight_probability", 0.0, 0.5),
        ("RoboschoolHumanoidFlagrunHarder", "pose_probabilities", (0.5, 0.25, 0.25), None),
        ("RoboschoolHumanoidFlagrunHarder", "walk_ends_on_fall", False, True),
        ("RoboschoolHumanoidFlagrunHarder", "roll_over_height", 0.25, 0.22),
        ("RoboschoolHumanoidFlagrunHarder", "roll_over_pitch", 1.5 * pi, 1.5 * pi - 0.15),
        ("RoboschoolHumanoidFlagrunHarder", "stand_up_height", 0.45, 0.45),
        ("RoboschoolHumanoidFlagrunHarder", "stand_up_pitch", pi / 2, pi / 2),
        ("RoboschoolHumanoidFlagrunHarder", "lying_bonus", 1.0, 0.5),
        ("RoboschoolHumanoidFlagrunHarder", "posture_height", 0.8, 0.7),
        ("RoboschoolHumanoidFlagrunHarder", "posture_pelvis_share", 0.0, 0.3),
    ],
)
def test_versions(make: Making, name: str, attribute: str, v0: Any, v1: Any) -> None:
    assert [getattr(make(f"{name}-v{version}"), attribute) for version in (0, 1)] == [v0, v1]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings(NEWER_VERSION)
def test_checkers_find_nothing_to_warn_of(env_id: str) -> None:
    with gym.make(env_id, render_mode="rgb_array", width=64, height=48) as env:
        gymnasium_check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_terms_in_info_sum_to_the_reward(make: Making, env_id: str) -> None:
    env = make(env_id)
    env.reset(seed=2)
    for action in random_actions(2, 150):
        _, reward, _, _, info = env.step(action)
        terms = [name for name in info if name.startswith("reward_")]
        assert tuple(terms) == env.REWARD_TERMS
        total = 0.0
        for name in terms:
            total += info[name]
        assert total == reward


@pytest.mark.parametrize("env_id", [env_id for env_id in IDS if "Flagrun" in env_id])
@pytest.mark.parametrize("seed", range(2))
def test_used_environment_repeats_a_fresh_one_bit_for_bit(make: Making, env_id: str, seed: int) -> None:
    hail = {"throw_period": 7, "throw_after": 0, "ground_limit": 10**6, "walk_ends_on_fall": False}
    keywords = hail if "Harder" in env_id else {}
    used, fresh = make(env_id, **keywords), make(env_id, **keywords)
    for other in range(2):
        trajectory(used, 100 + 10 * seed + other, 20 + 60 * other)
    np.testing.assert_array_equal(trajectory(used, seed, 100), trajectory(fresh, seed, 100))
    # What an episode leaves behind, the next one's random numbers and start pose included, is the same as well.
    np.testing.assert_array_equal(trajectory(used, None, 20), trajectory(fresh, None, 20))


def trajectory(env: RoboschoolHumanoid, seed: int | None, steps: int) -> NDArray[np.float64]:
    """Observations, rewards and targets, shape (steps + 1, 47), of random actions that go on after falls."""
    observation, info = env.reset(seed=seed)
    rows = [[*observation.tolist(), 0.0, *info.get("target", (0.0, 0.0))]]
    for action in random_actions(seed or 0, steps):
        observation, reward, _, _, info = env.step(action)
        rows.append([*observation.tolist(), reward, *info.get("target", (0.0, 0.0))])
    return np.array(rows)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_has_the_same_settings_and_a_simulation_of_its_own(make: Making, copied: Any) -> None:
    original = make("RoboschoolHumanoidFlagrunHarder-v0", flag_timeout=40, alive_bonus=3.0, pose_probabilities=FACE_UP)
    copy_of_it = copied(original)
    assert (copy_of_it.flag_timeout, copy_of_it.alive_bonus, copy_of_it.lying_bonus) == (40, 3.0, 1.0)
    assert copy_of_it.client != original.client
    np.testing.assert_array_equal(trajectory(copy_of_it, 5, 60), trajectory(original, 5, 60))
    copy_of_it.close()


@pytest.mark.parametrize("env_id", [*IDS, "GridWorld-v0"])
@pytest.mark.filterwarnings(NEWER_VERSION)
def test_a_constructor_and_what_it_makes_can_be_sent_to_a_worker(env_id: str) -> None:
    make = pickle.loads(cloudpickle.dumps(lambda: gym.make(f"sb3_ppo_variants:{env_id}")))
    with make() as env, pickle.loads(pickle.dumps(env)) as sent, gym.make(env_id) as expected:
        assert env.spec is not None
        assert env.spec.id == env_id
        action = expected.action_space.sample()
        for made in (env, sent):
            np.testing.assert_equal(made.reset(seed=1), expected.reset(seed=1))
            np.testing.assert_equal(made.step(action), expected.step(action))


@pytest.mark.parametrize("name", [name for name in HUMANOIDS if name != "RoboschoolHumanoid"])
def test_non_finite_state_terminates_and_the_next_episode_is_sound(make: Making, name: str) -> None:
    env = make(f"{name}-v1")
    expected = trajectory(env, 8, 40)
    env.reset(seed=9)
    pybullet.resetBaseVelocity(env.robot.body.id, [float("nan")] * 3, [0.0] * 3, physicsClientId=client_of(env))
    observation, reward, terminated, _, info = env.step(np.zeros(17))
    assert terminated
    assert env.observation_space.contains(observation)
    assert reward == -1.0
    assert [info[term] for term in env.REWARD_TERMS] == [-1.0] + [0.0] * (len(env.REWARD_TERMS) - 1)
    np.testing.assert_array_equal(trajectory(env, 8, 40), expected)


# ------------------------------------------------------------------ progress


TURMOIL: dict[str, dict[str, Any]] = {
    "RoboschoolHumanoid": {},
    "RoboschoolHumanoidFlagrun": {"flag_timeout": 9, "flag_radius": 2.5},
    "RoboschoolHumanoidFlagrunHarder": {
        "flag_timeout": 9,
        "flag_radius": 2.5,
        "throw_period": 5,
        "throw_after": 0,
        "throw_distance": 1.5,
        "ground_limit": 10**6,
        "walk_ends_on_fall": False,
    },
}
"""Settings under which flags, cubes and falls come in quick succession."""


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("seed", range(2))
def test_progress_is_never_more_than_the_robot_moved(make: Making, env_id: str, seed: int) -> None:
    """Whatever happens: flags reached and missed, targets set from outside, cubes, falls, getting up by hand."""
    env = make(env_id, **TURMOIL[env_id[:-3]])
    flag = env.reset(seed=seed)[1].get("flag")
    rng = np.random.default_rng(seed)
    lying, seen = heights(env)[0] < 0.8, Counter[str]()
    for step in range(180):
        before = mean_xy(env)
        if rng.random() < 0.1:
            near = rng.uniform(-1.5, 1.5, 2) + before  # mostly within the radius of a flag
            env.target = tuple((near if step % 2 else rng.uniform(-20.0, 20.0, 2)).tolist())
        if "Harder" in env_id and rng.random() < 0.1:
            env._cube.place((), (before[0] + 0.6, before[1], heights(env)[0]), (0.0, 0.0, 0.0, 1.0), (-15.0, 0.0, 0.0))
        if step == 120:
            lift(env)  # as if the robot got up at once, after falling
        info = env.step(rng.uniform(-1.0, 1.0, 17))[4]
        was_lying, lying = lying, heights(env)[0] < 0.8
        kind = "new flag" if info.get("flag") != flag else "crawl" if was_lying and lying else "step"
        flag = info.get("flag")
        seen[kind] += 1
        seen["hit"] += any(point[2] == env._world.bodies[-1].id for point in env.robot.body.read_contacts())
        if kind == "new flag":
            assert info["reward_progress"] == info.get("reward_posture", 0.0) == 0.0
        elif kind == "crawl" and "Harder" in env_id:
            assert info["reward_progress"] == 0.0
        else:
            assert info["reward_progress"] == pytest.approx(moved_closer(env, before), abs=1e-8)
    assert min(seen["step"], seen["crawl"]) > 10
    assert (seen["new flag"] > 10) == ("Flagrun" in env_id)
    assert (info.get("flags_reached", 0) > 0) == ("Flagrun" in env_id)
    if "Harder" in env_id:
        assert seen["hit"] > 5


def test_observation_is_about_the_new_flag(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrun-v1", flag_timeout=3)
    env.reset(seed=0)
    feet = [0.0, 0.0]
    for action in random_actions(0, 20):
        observation, *_ = env.step(action)
        np.testing.assert_allclose(observation, expected_observation(env, feet), atol=2e-6)
        feet = feet_on_floor(env)


# ------------------------------------------------------------------ flags


@pytest.mark.parametrize(("env_id", "timeout"), [(IDS[2], 200), (IDS[3], 150), (IDS[4], 200), (IDS[5], 150)])
def test_flags_last_their_time_and_the_first_one_step_less(
    make: Making, monkeypatch: pytest.MonkeyPatch, env_id: str, timeout: int
) -> None:
    env = make(env_id, flag_radius=0.0)
    targets = [env.reset(seed=4)[1]["target"]]
    monkeypatch.setattr(World, "step", lambda _: None)  # flags come whether it moves or not
    for _ in range(2 * timeout):
        info = env.step(np.zeros(17))[4]
        targets.append(info["target"])
        assert info["target"] == env.target
    changes = [step for step, (old, new) in enumerate(pairwise(targets), start=1) if old != new]
    assert changes == [timeout - 1, 2 * timeout - 1]
    assert (info["flag"], info["flags_reached"]) == (2, 0)


def test_a_flag_is_reached_within_a_metre(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrun-v1")
    env.reset(seed=1)
    x, y = mean_xy(env)
    env.target = (x + 1.05, y)
    info = env.step(np.zeros(17))[4]
    assert (info["flag"], info["flags_reached"], info["target"]) == (0, 0, (x + 1.05, y))
    env.target = (x + 0.95, y)
    info = env.step(np.zeros(17))[4]
    assert (info["flag"], info["flags_reached"]) == (1, 1)
    assert info["target"] != (x + 0.95, y)
    assert info["reward_progress"] == 0.0
    assert env.reset()[1]["flags_reached"] == 0


def first_flags(env: RoboschoolHumanoidFlagrun, count: int = 400) -> NDArray[np.float64]:
    """The first flags of as many episodes; shape (count, 2)."""
    env.reset(seed=0)
    return np.array([env.reset()[1]["target"] for _ in range(count)])


def later_flags(env: RoboschoolHumanoidFlagrun, count: int = 400) -> NDArray[np.float64]:
    """The flags of an episode after its first; shape (count, 2)."""
    env.reset(seed=0)
    return np.array([env.step(np.zeros(17))[4]["target"] for _ in range(count)])


def assert_uniform(values: NDArray[np.float64], low: float, high: float) -> None:
    """Kolmogorov and Smirnov: the largest gap between the two distribution functions, at 0.1 %."""
    assert low <= values.min()
    assert values.max() <= high
    share = (np.sort(values) - low) / (high - low)
    gap = np.abs(share - (np.arange(len(share)) + 0.5) / len(share)).max()
    assert gap < 1.95 / len(share) ** 0.5


def test_first_flag_is_straight_ahead_in_half_of_the_episodes(make: Making) -> None:
    first = first_flags(make("RoboschoolHumanoidFlagrun-v1"))
    straight = first[first[:, 1] == 0.0]
    assert abs(len(straight) / 400 - 0.5) < 0.083  # 3.3 standard deviations
    assert_uniform(straight[:, 0], 13.125, 26.25)
    others = first[first[:, 1] != 0.0]
    assert_uniform(others[:, 0], -13.125, 13.125)
    assert_uniform(others[:, 1], -6.25, 6.25)


def test_flags_are_anywhere_otherwise(make: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    first = first_flags(make("RoboschoolHumanoidFlagrun-v0"))
    env = make("RoboschoolHumanoidFlagrun-v1", flag_timeout=1)
    monkeypatch.setattr(World, "step", lambda _: None)  # flags come whether it moves or not
    for targets in (first, later_flags(env)):
        assert_uniform(targets[:, 0], -13.125, 13.125)
        assert_uniform(targets[:, 1], -6.25, 6.25)
        assert abs(np.asarray(np.corrcoef(targets.T))[0, 1]) < 0.17


def test_the_target_is_no_keyword_of_the_flag_tasks() -> None:
    for task in (RoboschoolHumanoidFlagrun, Harder):
        with pytest.raises(TypeError, match="target"):
            task(target=(1.0, 2.0))


# ------------------------------------------------------------------ starts


@pytest.mark.parametrize(("env_id", "yaw"), [*zip(IDS, (0.0, pi / 16, 3.14, pi / 16, 3.14, pi / 16), strict=True)])
def test_yaw_and_joints_at_the_start_are_uniform(make: Making, env_id: str, yaw: float) -> None:
    env = make(env_id, **({"pose_probabilities": UPRIGHT} if "Harder" in env_id else {}))
    yaws, angles = [], []
    env.reset(seed=0)
    for _ in range(150):
        env.reset()
        assert env.robot.torso_height == 1.4
        assert not any(env.robot.torso_velocity)
        (_, quaternion), client = pybullet.getBasePositionAndOrientation(env.robot.body.id, env.client), env.client
        yaws.append(pybullet.getEulerFromQuaternion(quaternion)[2])
        angles.append([s[0] for s in pybullet.getJointStates(env.robot.body.id, MOTOR_JOINTS, physicsClientId=client)])
    if yaw:
        assert_uniform(np.array(yaws), -yaw, yaw)
    else:
        assert not any(yaws)
    assert_uniform(np.ravel(angles), -0.1, 0.1)
    for hinge in np.array(angles).T:
        assert_uniform(hinge, -0.1, 0.1)


# ------------------------------------------------------------------ getting up and falling


@pytest.mark.parametrize(
    ("env_id", "low", "full", "pelvis_share"),
    [("RoboschoolHumanoidFlagrunHarder-v0", 1.0, 0.8, 0.0), ("RoboschoolHumanoidFlagrunHarder-v1", 0.5, 0.7, 0.3)],
)
def test_alive_posture_and_electricity_by_hand(
    make: Making, env_id: str, low: float, full: float, pelvis_share: float
) -> None:
    env = make(env_id, pose_probabilities=FACE_DOWN)
    env.reset(seed=3)
    costs = {"RoboschoolHumanoidFlagrunHarder-v0": (-2.125, -2.125), "RoboschoolHumanoidFlagrunHarder-v1": (-0.4, -1.0)}
    seen = set()

    def leak() -> float:
        torso, pelvis = heights(env)
        height = (1.0 - pelvis_share) * torso + pelvis_share * pelvis
        return low + (2.0 - low) * float(np.clip(height, 0.0, full)) / full

    before = leak()
    for step, action in enumerate(random_actions(3, 120, scale=2.0)):
        if step == 60:
            lift(env)
        info = env.step(action)[4]
        lying = heights(env)[0] < 0.8
        seen.add(lying)
        assert info["reward_alive"] == pytest.approx(leak(), abs=1e-12)
        assert info["reward_posture"] == pytest.approx(100.0 * (leak() - before), abs=1e-9)
        before = leak()
        speeds = np.array(env.robot.joint_speed)
        cost = costs[env_id][0 if lying else 1]
        expected = cost * np.mean(np.abs(action * speeds)) - 0.425 * np.mean(action**2)
        assert info["reward_electricity"] == pytest.approx(expected, rel=1e-12)
    assert seen == {False, True}


def test_getting_up_pays_through_posture_alone(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=FACE_UP)
    env.reset(seed=0)
    env.step(np.zeros(17))
    x, y = mean_xy(env)
    env.target = (float(x), float(y + 1e6))  # so far that rising, and the arms' swing, bring it hardly closer
    height = env.robot.torso_height
    env.robot.body.place([0.0] * 17, (0.0, 0.0, 1.2), (0.0, 0.0, 0.0, 1.0))
    info = env.step(np.zeros(17))[4]
    assert info["reward_alive"] == 2.0
    assert info["reward_posture"] == pytest.approx(100.0 * 1.5 * (0.7 - height) / 0.7, rel=0.1)
    assert info["reward_progress"] == pytest.approx(moved_closer(env, np.array([x, y])), abs=1e-4)


def test_ground_steps_end_the_episode_at_170_and_steps_up_count_back(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=FACE_UP, throw_period=0)
    env.reset(seed=5)
    count = 0
    for step in range(400):
        if step == 100:
            lift(env)
        _, reward, terminated, _, info = env.step(np.zeros(17))
        count = count + 1 if heights(env)[0] < 0.8 else max(count - 1, 0)
        assert terminated == (count == 170)
        assert (info["reward_alive"] == -1.0) == terminated
        if terminated:
            break
    assert 200 < step < 300  # a lift of some 20 steps
    assert isfinite(reward)


@pytest.mark.parametrize("version", [0, 1])
def test_a_walk_ends_on_the_ground_at_once_in_v1(make: Making, version: int) -> None:
    env = make(f"RoboschoolHumanoidFlagrunHarder-v{version}", pose_probabilities=UPRIGHT)
    assert env.reset(seed=6)[1]["pose"] == "walk"
    lying, steps = False, 0
    while not lying:
        _, _, terminated, _, info = env.step(np.zeros(17))
        lying, steps = heights(env)[0] < 0.8, steps + 1
        assert terminated == (lying and version == 1)
        assert (info["reward_alive"] == -1.0) == terminated
    assert 20 < steps < 140


# ------------------------------------------------------------------ cubes


def cube_state(env: RoboschoolHumanoidFlagrunHarder) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cube's position, m, and velocity, m/s."""
    number, client = env._world.bodies[1].id, client_of(env)
    position, _ = pybullet.getBasePositionAndOrientation(number, physicsClientId=client)
    return np.array(position), np.array(pybullet.getBaseVelocity(number, physicsClientId=client)[0])


def test_cube_is_the_one_of_roboschool(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1")
    env.reset(seed=0)
    number, client = env._world.bodies[1].id, client_of(env)
    dynamics = pybullet.getDynamicsInfo(number, -1, client)
    assert dynamics[0] == 1.2
    assert dynamics[2] == (0.002, 0.002, 0.002)
    assert dynamics[1] == 0.8
    assert pybullet.getCollisionShapeData(number, -1, client)[0][3] == (0.1, 0.1, 0.1)
    np.testing.assert_array_equal(cube_state(env), [[-1.5, 0.0, 0.05], [0.0, 0.0, 0.0]])


def test_cube_flies_in_step_121_and_every_30_while_the_robot_is_up(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=UPRIGHT, walk_ends_on_fall=False)
    env.reset(seed=7)
    thrown = []
    for step in range(1, 302):
        lift(env, 1.2)
        env.step(np.zeros(17))
        if np.linalg.norm(cube_state(env)[1]) > 18.0 and cube_state(env)[0][2] > 1.5:
            thrown.append(step)
        if step == 200:
            env._ground_steps = 20  # as if it had been on the ground: in step 211 some are still to be made up for
    flight = [step for step in thrown if step - 1 not in thrown]
    assert flight == [121, 151, 181, 241, 271, 301]


def test_no_cube_flies_while_steps_on_the_ground_are_to_be_made_up_for(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=FACE_DOWN)
    env.reset(seed=7)
    for _ in range(125):
        env.step(np.zeros(17))
    assert 0 < env._ground_steps < 170
    assert cube_state(env)[0][2] < 0.1
    owing, steps = env._ground_steps, 125
    while np.linalg.norm(cube_state(env)[1]) < 18.0:
        lift(env, 1.2)
        owing = env._ground_steps
        env.step(np.zeros(17))
        steps += 1
    assert owing == 0
    assert steps == 271  # 125 on the ground and as many to make up for them, and then the next multiple of 30


def test_throws_by_their_definition(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=UPRIGHT, throw_period=1, throw_after=0)
    env.reset(seed=0)
    angles, speeds, spreads = [], [], []
    lift(env)
    env.step(np.zeros(17))
    for k in range(600):
        lift(env)
        pybullet.resetBaseVelocity(env.robot.body.id, [k % 7, 2.0, 0.5], physicsClientId=client_of(env))
        env.step(np.zeros(17))
        position, velocity = cube_state(env)
        torso_speed = np.array(pybullet.getBaseVelocity(env.robot.body.id, physicsClientId=client_of(env))[0])
        here = np.array([*mean_xy(env), heights(env)[0]])
        # It starts 1 m above where the torso will be, and the torso rises: that gives away the time of flight.
        rise = position[2] - here[2] - 1.0
        flight = rise / torso_speed[2]
        aim = here + torso_speed * flight
        away = position - aim
        assert hypot(away[0], away[1]) == pytest.approx(4.0, abs=1e-6)
        speeds.append(4.0 / flight)
        angles.append(atan2(away[1], away[0]))
        spreads.append(velocity + away / np.linalg.norm(away) * speeds[-1])
    assert_uniform(np.array(speeds), 20.0, 30.0)
    assert_uniform(np.array(angles), -pi, pi)
    for axis in np.array(spreads).T:
        assert_uniform(axis, -1.0 - 1e-6, 1.0 + 1e-6)


def test_a_cube_hits_and_counts_as_a_collision_of_the_feet(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=UPRIGHT)
    env.reset(seed=0)
    foot = pybullet.getLinkState(env.robot.body.id, 11, physicsClientId=client_of(env))[0]
    env._world.bodies[1].place((), (foot[0] + 0.16, foot[1], foot[2]), (0.0, 0.0, 0.0, 1.0), (-1.0, 0.0, 0.0))
    infos = [env.step(np.zeros(17))[4] for _ in range(8)]
    assert min(info["reward_feet_collision"] for info in infos) == -1.0


# ------------------------------------------------------------------ start poses


def test_start_poses(make: Making) -> None:
    for version, face_up in ((0, (0.25, 90.0)), (1, (0.22, 90.0 - degrees(0.15)))):
        expected = {UPRIGHT: ("walk", 1.4, 0.0), FACE_DOWN: ("stand_up", 0.45, -90.0), FACE_UP: ("roll_over", *face_up)}
        for probabilities, (pose, height, tilt) in expected.items():
            env = make(f"RoboschoolHumanoidFlagrunHarder-v{version}", pose_probabilities=probabilities)
            yaws = []
            for seed in range(100):
                assert env.reset(seed=seed)[1]["pose"] == pose
                (_, _, z), quaternion = pybullet.getBasePositionAndOrientation(env.robot.body.id, client_of(env))
                front, _, up = np.array(pybullet.getMatrixFromQuaternion(quaternion)).reshape(3, 3).T
                assert z == pytest.approx(height, abs=1e-12)
                assert front[2] == pytest.approx(np.sin(np.radians(tilt)), abs=1e-9)
                # Which way its head is when it lies: ahead of its feet face down, behind them face up.
                head = up if tilt < 0 else -up if tilt > 0 else front
                yaws.append(atan2(head[1], head[0]))
            assert_uniform(np.array(yaws), *((-3.14, 3.14) if version == 0 else (-pi / 16, pi / 16)))


def test_half_the_episodes_of_v0_start_upright(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v0")
    env.reset(seed=0)
    counts = Counter(env.reset()[1]["pose"] for _ in range(600))
    assert set(counts) == set(POSES)
    for pose, share in zip(POSES, (0.5, 0.25, 0.25), strict=True):
        assert abs(counts[pose] / 600 - share) < 3.3 * (share * (1.0 - share) / 600) ** 0.5


@pytest.mark.parametrize(
    ("successes", "weights"),
    [
        ([[], [], []], [1.0, 1.0, 1.0]),
        # 10 of 10: 1 − 10/11; 1 of 3: 1 − 1/4
        ([[True] * 10, [True, False, False], [False] * 4], [1 / 11, 3 / 4, 1.0]),
        # the oldest of eleven is forgotten
        ([[True] + [False] * 10, [False] + [True] * 10, []], [1.0, 1 / 11, 1.0]),
    ],
)
def test_curriculum(make: Making, successes: list[list[bool]], weights: list[float]) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1")
    env.reset(seed=1)
    for number, outcomes in enumerate(successes):
        for success in outcomes:
            env.curriculum.remember(number, success)
    np.testing.assert_allclose(env.curriculum.weights(), weights, rtol=1e-12)
    counts = Counter(env.reset()[1]["pose"] for _ in range(600))
    for pose, weight in zip(POSES, weights, strict=True):
        share = weight / sum(weights)
        assert abs(counts[pose] / 600 - share) < 3.3 * (share * (1.0 - share) / 600) ** 0.5
    env.reset(seed=1)
    assert env.curriculum.weights() == [1.0, 1.0, 1.0]


def remembered(curriculum: Curriculum) -> list[list[bool]]:
    return [list(episodes) for episodes in curriculum._episodes]


def test_what_an_episode_leaves_in_the_memory(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=FACE_UP, success_steps=20, ground_limit=20)
    env.reset(seed=0)
    for _ in range(19):
        env.step(np.zeros(17))
    assert remembered(env.curriculum) == [[], [], []]
    assert env.step(np.zeros(17))[2]  # it ends on its last step: that counts as reached, as in Roboschool
    assert remembered(env.curriculum) == [[], [], [True]]
    env.step(np.zeros(17))
    assert remembered(env.curriculum) == [[], [], [True]]

    env.reset()
    env.step(np.zeros(17))
    env.reset()  # cut short: neither
    assert remembered(env.curriculum) == [[], [], [True]]

    failing = make("RoboschoolHumanoidFlagrunHarder-v1", pose_probabilities=FACE_UP, ground_limit=5)
    failing.reset(seed=0)
    assert [failing.step(np.zeros(17))[2] for _ in range(6)] == [False] * 4 + [True] * 2
    assert remembered(failing.curriculum) == [[], [], [False]]


@pytest.mark.filterwarnings(NEWER_VERSION)
def test_success_is_the_time_limit_of_the_registered_id() -> None:
    for env_id in IDS[4:]:
        with gym.make(env_id) as env:
            assert env.spec is not None
            assert isinstance(env.unwrapped, Harder)
            assert env.unwrapped.success_steps == env.spec.max_episode_steps


# ------------------------------------------------------------------ keywords

FLAG_KEYWORDS: dict[str, Any] = {
    "flag_range": (2.0, 20.0),
    "straight_probability": 0.0,
    "straight_range": (30.0, 40.0),
    "flag_radius": 30.0,
    "flag_timeout": 20,
}
HAIL: dict[str, Any] = {"throw_period": 10, "throw_after": 0, "throw_distance": 1.0, "pose_probabilities": UPRIGHT}
HARDER_KEYWORDS: dict[str, tuple[Any, dict[str, Any]]] = {
    # keyword: another value, and the settings under which it shows
    "pose_probabilities": (FACE_UP, {}),
    "curriculum_memory": (1, {"success_steps": 3}),
    "success_steps": (3, {}),
    "walk_ends_on_fall": (False, {"pose_probabilities": UPRIGHT}),
    "minimum_height": (0.9, {"pose_probabilities": UPRIGHT}),
    "ground_limit": (20, {"pose_probabilities": FACE_UP}),
    "stand_up_height": (0.6, {"pose_probabilities": FACE_DOWN}),
    "stand_up_pitch": (1.4, {"pose_probabilities": FACE_DOWN}),
    "roll_over_height": (0.4, {"pose_probabilities": FACE_UP}),
    "roll_over_pitch": (4.4, {"pose_probabilities": FACE_UP}),
    "lying_bonus": (0.7, {"pose_probabilities": FACE_UP}),
    "posture_weight": (50.0, {"pose_probabilities": FACE_UP}),
    "posture_height": (0.8, {"pose_probabilities": FACE_UP}),
    "posture_pelvis_share": (0.5, {"pose_probabilities": FACE_UP}),
    "lying_electricity_cost": (-3.0, {"pose_probabilities": FACE_UP}),
    "cube_edge": (0.2, HAIL),
    "cube_mass": (5.0, HAIL),
    "cube_inertia": (0.01, HAIL),
    "cube_friction": (0.1, HAIL),
    "throw_period": (7, HAIL),
    "throw_after": (20, HAIL),
    "throw_distance": (0.8, HAIL),
    "throw_height": (0.5, HAIL),
    "throw_speed": ((5.0, 6.0), HAIL),
    "throw_spread": (2.0, HAIL),
    "electricity_cost": (-3.0, {"pose_probabilities": UPRIGHT}),
}
INHERITED = {**{name: value for name, value in HUMANOID_KEYWORDS.items() if name != "target"}, **FLAG_KEYWORDS}


@cache
def episodes(task: Callable[..., RoboschoolHumanoid], settings: tuple[tuple[str, Any], ...]) -> list[Any]:
    """What comes of a few short episodes, and of a longer one in which both feet meet and the robot falls."""
    env = task(**dict(settings))
    env.reset(seed=12)
    poses = []
    for _ in range(12):
        poses.append(env.reset()[1].get("pose"))
        for _ in range(3):
            env.step(np.zeros(17))
    hips = np.zeros(17)
    hips[[3, 7]] = 1.0
    env.reset(seed=12)
    results = [env.step(action)[1:3] for action in [*[hips] * 20, *random_actions(11, 60)]]
    env.close()
    return [poses, results]


def has_effect(task: Callable[..., RoboschoolHumanoid], keyword: str, value: Any, settings: dict[str, Any]) -> bool:
    changed = {**settings, keyword: value}
    return episodes(task, tuple(changed.items())) != episodes(task, tuple(settings.items()))


@pytest.mark.parametrize("keyword", INHERITED)
def test_every_keyword_of_flagrun_has_an_effect(keyword: str) -> None:
    settings = {"straight_probability": 0.0} if keyword == "flag_range" else {}
    assert has_effect(RoboschoolHumanoidFlagrun, keyword, INHERITED[keyword], settings)


@pytest.mark.parametrize("keyword", [*HARDER_KEYWORDS, *sorted({*INHERITED} - {*HARDER_KEYWORDS})])
def test_every_keyword_of_the_harder_task_has_an_effect(keyword: str) -> None:
    upright: dict[str, Any] = {"pose_probabilities": UPRIGHT}
    if keyword == "flag_range":
        upright["straight_probability"] = 0.0
    value, settings = HARDER_KEYWORDS.get(keyword) or (INHERITED[keyword], upright)
    assert has_effect(Harder, keyword, value, settings)


def test_keywords_are_all_tried() -> None:
    for task, tried in ((RoboschoolHumanoidFlagrun, {*INHERITED}), (Harder, {*INHERITED, *HARDER_KEYWORDS})):
        assert {*inspect.signature(task).parameters} - PICTURE_KEYWORDS == tried


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("flag_range", (1.0, -2.0), "flag_range must be a finite number >= 0"),
        ("flag_range", 3.0, r"flag_range must be two finite numbers \(x, y\) >= 0; got 3\.0"),
        ("straight_range", (2.0, 1.0), r"straight_range must be two finite numbers \(smallest, largest\)"),
        ("straight_probability", 1.5, "straight_probability must be a finite number >= 0 and <= 1"),
        ("flag_timeout", 0, "flag_timeout must be an integer >= 1; got 0"),
        ("flag_timeout", 10.5, "flag_timeout must be an integer >= 1; got 10.5"),
        ("flag_radius", float("nan"), "flag_radius must be a finite number >= 0"),
        ("pose_probabilities", (0.5, 0.2, 0.2), "pose_probabilities must be None or 3 numbers that sum to 1"),
        ("pose_probabilities", (0.5, 0.5), "pose_probabilities must be None or 3 numbers that sum to 1"),
        ("pose_probabilities", (1.5, -0.5, 0.0), "pose_probabilities must be a finite number >= 0 and <= 1"),
        ("curriculum_memory", 0, "curriculum_memory must be an integer >= 1"),
        ("ground_limit", "long", "ground_limit must be an integer >= 1; got 'long'"),
        ("throw_period", -1, "throw_period must be an integer >= 0"),
        ("cube_mass", 0.0, "cube_mass must be a finite number > 0; got 0.0"),
        ("cube_edge", float("inf"), "cube_edge must be a finite number > 0"),
        ("posture_height", 0, "posture_height must be a finite number > 0"),
        ("throw_speed", (0.0, 1.0), "throw_speed must be a finite number > 0; got 0.0"),
        ("throw_speed", (3.0, 1.0), "throw_speed must be two finite numbers"),
        ("lying_electricity_cost", 1.0, "lying_electricity_cost must be a finite number <= 0"),
        ("alive_bonus", float("inf"), "alive_bonus must be a finite number; got inf"),
    ],
)
def test_keyword_out_of_range_is_named(keyword: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Harder(**{keyword: value})


# ------------------------------------------------------------------ pictures


def test_pictures_leave_the_simulation_as_it_is(make: Making) -> None:
    hail = {"throw_period": 5, "throw_after": 0, "throw_distance": 1.0, "flag_timeout": 20}
    plain = make("RoboschoolHumanoidFlagrunHarder-v1", **hail)
    filmed = make("RoboschoolHumanoidFlagrunHarder-v1", **hail, render_mode="rgb_array", width=64, height=48)
    for seed in (3, 4):
        plain.reset(seed=seed)
        filmed.reset(seed=seed)
        for action in random_actions(3, 120):
            filmed.render()
            expected, observed = plain.step(action), filmed.step(action)
            np.testing.assert_array_equal(observed[0], expected[0])
            assert observed[1:] == expected[1:]


def pixels(env: Any, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.int64]:
    """Rows and columns of the pixels whose colour is within a range, shape (2, count)."""
    frame = env.render()
    return np.array(np.nonzero(((frame >= low) & (frame <= high)).all(axis=2)))


def test_frames_show_the_flag_where_it_is_and_an_arrow_to_it(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrun-v1", render_mode="rgb_array")
    env.reset(seed=0)
    yellow = (140, 100, 0), (255, 215, 40)
    counts = {}
    # The camera looks along (−0.4, 0.9): one flag stands before it, one behind, and two beside the robot.
    for name, target in {"before": (-3.0, 8.0), "behind": (3.0, -8.0), "left": (-8.0, -3.0), "right": (8, 3)}.items():
        env.target = target
        rows, columns = pixels(env, *yellow)
        counts[name] = len(rows)
        assert len(rows) > 50
        if name == "before":
            assert rows.min() < 200  # the cloth stands out above the horizon's haze
        else:
            assert rows.min() > 200  # nothing but the arrow, on the ground
        assert (columns.mean() < 280) if name == "left" else (columns.mean() > 360) if name == "right" else True
    frames = []
    for target in ((-3.0, 8.0), (-5.0, 8.0)):
        env.target = target
        frames.append(env.render())
    assert not np.array_equal(*frames)


def test_frames_show_the_cube(make: Making) -> None:
    env = make("RoboschoolHumanoidFlagrunHarder-v1", render_mode="rgb_array")
    env.reset(seed=0)
    purple = (80, 20, 100), (230, 90, 255)
    cube = env._world.bodies[1]
    cube.place((), (0.5, 0.0, 0.05), (0.0, 0.0, 0.0, 1.0))
    rows, right = pixels(env, *purple)
    assert len(rows) > 100
    cube.place((), (-0.5, 0.0, 1.5), (0.0, 0.0, 0.0, 1.0))
    higher, left = pixels(env, *purple)
    assert len(higher) > 100
    assert higher.mean() < rows.mean()
    assert left.mean() < right.mean()


def test_no_flag_without_one(make: Making) -> None:
    env = make("RoboschoolHumanoid-v1", render_mode="rgb_array")
    env.reset(seed=0)
    assert pixels(env, (140, 100, 0), (255, 215, 40)).size == 0


def test_make_warns_of_nothing_but_the_newer_version() -> None:
    for env_id in IDS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gym.make(env_id).close()
        assert len(caught) == (env_id.endswith("v0"))
