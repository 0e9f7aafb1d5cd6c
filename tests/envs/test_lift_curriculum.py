"""The wrapper that pulls a lying humanoid up."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_ppo_variants.envs.bullet import CONTROL_PERIOD, GRAVITY, Body
from sb3_ppo_variants.envs.quiet import pybullet
from sb3_ppo_variants.envs.wrappers import EpisodePerFlag, LiftCurriculum

HARDER = "RoboschoolHumanoidFlagrunHarder-v1"
LIES: dict[str, Any] = {"pose_probabilities": (0.0, 0.0, 1.0)}
REST = np.zeros(17, np.float32)


def make(pose: tuple[float, float, float] = (0.0, 0.0, 1.0), **arguments: Any) -> LiftCurriculum:
    return LiftCurriculum(gym.make(HARDER, pose_probabilities=pose), **arguments)


def pulls(env: LiftCurriculum, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collects the shares of its weight that the robot is pulled up with."""
    shares: list[float] = []
    monkeypatch.setattr(env.unwrapped.robot, "lift", shares.append)  # type: ignore[attr-defined]
    return shares


def episode(env: gym.Env[Any, Any], steps: int = 1000) -> dict[str, Any]:
    """So many steps without torque, or until the end: the last `info`."""
    info: dict[str, Any] = {}
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(REST)
        if terminated or truncated:
            break
    return info


def upward_momentum(body: Body, client: int) -> float:
    """Of all links, kg·m/s."""
    masses = [pybullet.getDynamicsInfo(body.id, link, client)[0] for link in (-1, *sorted(body.links.values()))]
    assert sum(masses) == pytest.approx(body.mass())
    links = pybullet.getLinkStates(body.id, sorted(body.links.values()), 1, 1, client)
    speeds = [pybullet.getBaseVelocity(body.id, client)[0][2], *(state[6][2] for state in links)]
    return sum(mass * speed for mass, speed in zip(masses, speeds, strict=True))


def test_the_pull_is_a_share_of_the_robots_weight() -> None:
    with gym.make(HARDER, **LIES, roll_over_height=30.0) as env:
        task: Any = env.unwrapped
        body, client = task.robot.body, task._world.client
        for share in (0.0, 0.5, 1.5):
            env.reset(seed=0)  # at rest, as Bullet's damping takes a share of speed
            before = upward_momentum(body, client)
            for _ in range(10):
                task.robot.lift(share)
                env.step(REST)
            gained = upward_momentum(body, client) - before
            expected = (share - 1.0) * body.mass() * GRAVITY * 10 * CONTROL_PERIOD
            assert gained == pytest.approx(expected, rel=0.03), share


def test_a_lying_robot_is_pulled_up_and_a_standing_one_is_not() -> None:
    heights = []
    for start in (0.0, 1.2):
        env = make(start=start)
        env.reset(seed=3)
        episode(env, 60)
        heights.append(env.unwrapped.robot.torso_height)  # type: ignore[attr-defined]
        env.close()
    assert heights[0] < 0.3
    assert heights[1] > 0.7


def test_the_pull_fades_above_the_minimum_height(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(start=0.5, fade=0.4)
    shares = pulls(env, monkeypatch)
    env.reset(seed=0)
    task: Any = env.unwrapped
    for above, expected in ((-0.3, 0.5), (0.0, 0.5), (0.1, 0.375), (0.3, 0.125), (0.4, None), (0.5, None)):
        shares.clear()
        task.robot.torso_height = task.minimum_height + above
        env.step(REST)
        assert shares == ([] if expected is None else [pytest.approx(expected)])


def test_an_episode_that_begins_upright_is_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    upright = (1.0, 0.0, 0.0)
    plain, env = gym.make(HARDER, pose_probabilities=upright), make(upright)
    shares = pulls(env, monkeypatch)
    np.testing.assert_array_equal(env.reset(seed=1)[0], plain.reset(seed=1)[0])
    over = False
    while not over:
        there, reward, over, _, told = plain.step(REST)
        here, same_reward, same_over, _, info = env.step(REST)
        np.testing.assert_array_equal(here, there)
        assert info.pop("lift") == 0.0
        assert (same_reward, same_over, info) == (reward, over, told)
    assert shares == []


def rise(env: LiftCurriculum) -> None:
    """From now on the torso is read to be 2 m up."""
    robot: Any = env.unwrapped.robot  # type: ignore[attr-defined]
    read = robot.read

    def read_up() -> None:
        read()
        robot.torso_height = 2.0

    robot.read = read_up


def lie(env: LiftCurriculum) -> None:
    """The reverse of `rise`."""
    vars(env.unwrapped.robot).pop("read", None)  # type: ignore[attr-defined]


def test_who_gets_up_is_pulled_less_and_who_does_not_more() -> None:
    env = make(start=0.5, weaken=0.2, strengthen=0.05, up_steps=3)
    env.reset(seed=0)
    for before, after in ((0.5, 0.3), (0.3, 0.1), (0.1, 0.0), (0.0, 0.0)):
        episode(env, 5)
        rise(env)
        assert episode(env, 2)["lift"] == pytest.approx(before)
        assert episode(env, 1)["lift"] == pytest.approx(after)
        lie(env)
        info = episode(env)
        assert info["reward_alive"] == -1.0, "it goes on to its end"
        assert info["lift"] == pytest.approx(after), "one try an episode"
        env.reset()
    for after in (0.05, 0.1):
        assert episode(env, 169)["lift"] == pytest.approx(after - 0.05)
        assert episode(env, 1)["lift"] == pytest.approx(after), "after 170 steps on the ground the episode ends"
        env.reset()
    for _ in range(10):
        episode(env)
        env.reset()
    assert episode(env, 1)["lift"] == 0.5, "and never more than at first"


def test_a_moment_is_not_up_and_an_episode_cut_short_is_a_failure() -> None:
    env = make(start=0.5, weaken=0.2, strengthen=0.05, up_steps=3)
    env.reset(seed=0)
    rise(env)
    assert episode(env, 3)["lift"] == pytest.approx(0.3)
    env.reset()
    for _ in range(3):
        rise(env)
        assert episode(env, 2)["lift"] == pytest.approx(0.3)
        lie(env)
        assert episode(env, 1)["lift"] == pytest.approx(0.3)
    env.reset()
    assert episode(env, 1)["lift"] == pytest.approx(0.35)


def test_with_a_bonus_getting_up_ends_the_episode() -> None:
    plain, env = gym.make(HARDER, **LIES), make(start=0.0, bonus=50.0, up_steps=4)
    for each in (plain, env):
        each.reset(seed=0)
    for step in range(1, 11):
        if step == 7:
            for each in (plain, env):
                rise(each)  # type: ignore[arg-type]
        _, reward, *_ = plain.step(REST)
        _, more, terminated, truncated, info = env.step(REST)
        assert (terminated, truncated) == (step == 10, False)
        assert more == float(reward) + (50.0 if step == 10 else 0.0)
    assert info["lift"] == 0.0
    assert env.get_wrapper_attr("curriculum").outcomes() == [[], [], []], "the task does not see it"


def test_either_pose_has_a_share_of_its_own() -> None:
    env = make((0.0, 0.5, 0.5), start=(0.4, 0.7), weaken=0.2, up_steps=1)
    shares = {"stand_up": 0.4, "roll_over": 0.7}
    env.reset(seed=0)
    poses = []
    for _ in range(8):
        _, info = env.reset()
        poses.append(info["pose"])
        assert episode(env, 1)["lift"] == pytest.approx(shares[poses[-1]])
        if poses[-1] == "stand_up":
            rise(env)
            shares["stand_up"] = max(shares["stand_up"] - 0.2, 0.0)
        assert episode(env, 1)["lift"] == pytest.approx(shares[poses[-1]])
        lie(env)
    assert set(poses) == set(shares)


def test_a_seed_begins_anew() -> None:
    env = make(start=0.5, weaken=0.2, up_steps=1)
    env.reset(seed=0)
    rise(env)
    assert episode(env, 1)["lift"] == pytest.approx(0.3)
    lie(env)
    env.reset(seed=0)
    assert episode(env, 1)["lift"] == 0.5


def test_with_an_episode_per_flag_outside() -> None:
    inside = LiftCurriculum(gym.make(HARDER, **LIES, flag_timeout=20), start=0.5, weaken=0.2, up_steps=1)
    env = EpisodePerFlag(inside)
    env.reset(seed=0)
    rise(inside)
    assert episode(env, 1)["lift"] == pytest.approx(0.3)
    lie(inside)
    env.reset(options={})
    lifts = [episode(env, 19)["lift"]]
    for _ in range(3):
        env.reset()
        lifts.append(episode(env, 20)["lift"])
    assert lifts == [pytest.approx(0.3)] * 4, "a flag's end is not the try's, which failed would have more"


def test_what_the_lift_takes() -> None:
    for name in ("RoboschoolHumanoidFlagrun-v1", "Pendulum-v1"):
        with pytest.raises(ValueError, match="env must be RoboschoolHumanoidFlagrunHarder-v1 or -v0; got <"):
            LiftCurriculum(gym.make(name))
    wrong: list[tuple[str, Any, str]] = [
        ("start", -0.1, "start must be a finite number >= 0"),
        ("start", (0.1, 0.2, 0.3), r"start must be two finite numbers \(face down, face up\) >= 0, or one for both"),
        ("weaken", 0.0, "weaken must be a finite number > 0"),
        ("strengthen", -0.1, "strengthen must be a finite number >= 0"),
        ("up_height", -1.0, "up_height must be a finite number >= 0"),
        ("up_steps", 0, "up_steps must be an integer >= 1"),
        ("bonus", float("nan"), "bonus must be a finite number"),
        ("fade", float("inf"), "fade must be a finite number > 0"),
    ]
    with gym.make(HARDER) as env:
        for name, value, message in wrong:
            with pytest.raises(ValueError, match=message):
                LiftCurriculum(env, **{name: value})
        with pytest.raises(ValueError, match="env must have whole episodes: put LiftCurriculum inside EpisodePerFlag"):
            LiftCurriculum(EpisodePerFlag(env))
