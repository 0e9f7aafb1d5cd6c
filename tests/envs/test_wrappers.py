"""The wrappers for training the humanoids."""

from math import atan2, cos, pi, remainder
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.envs.humanoid import MOTORS
from sb3_ppo_variants.envs.wrappers import EpisodePerFlag, FlagCurriculum, HardStarts, StrideReward

FLAGRUN = "RoboschoolHumanoidFlagrun-v1"
TIMEOUT = 7
STANDS: dict[str, Any] = {"flag_timeout": TIMEOUT, "minimum_height": 0.0}
"""Keywords of a task with many flags in which nobody falls."""


def actions(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (count, 17)).astype(np.float32)


def pair(**keywords: Any) -> tuple[gym.Env[Any, Any], gym.Env[Any, Any]]:
    """The task as it is, and wrapped."""
    return gym.make(FLAGRUN, **keywords), EpisodePerFlag(gym.make(FLAGRUN, **keywords))


def test_a_flag_ends_an_episode_and_the_task_goes_on() -> None:
    plain, wrapped = pair(**STANDS)
    there, told = plain.reset(seed=5)
    here, info = wrapped.reset(seed=5)
    np.testing.assert_array_equal(here, there)
    ends = []
    for step, action in enumerate(actions(40), start=1):
        flag = told["flag"]
        there, reward, *over, told = plain.step(action)
        assert over == [False, False]
        here, same_reward, terminated, truncated, info = wrapped.step(action)
        assert (same_reward, info) == (reward, told)
        assert not terminated
        assert truncated == (told["flag"] != flag)
        if truncated:
            ends.append(step)
            here, info = wrapped.reset()
            assert info == {name: told[name] for name in ("target", "flag", "flags_reached")}
        np.testing.assert_array_equal(here, there)
    assert ends == [6, 13, 20, 27, 34], "the first flag has a step less"


def test_the_last_observation_is_about_the_flag_that_goes() -> None:
    # Without a timeout that comes in between, the task shows what would have been seen.
    wrapped = EpisodePerFlag(gym.make(FLAGRUN, **STANDS, straight_probability=1.0))
    lasting = gym.make(FLAGRUN, minimum_height=0.0, straight_probability=1.0)
    wrapped.reset(seed=5)
    lasting.reset(seed=5)
    for action in actions(TIMEOUT - 1):
        expected, *_ = lasting.step(action)
        last, _, _, truncated, _ = wrapped.step(action)
    assert truncated
    np.testing.assert_allclose(last, expected, atol=1e-6)
    following, _ = wrapped.reset()
    assert not np.allclose(following[1:3], expected[1:3])
    np.testing.assert_array_equal(np.delete(following, (1, 2)), np.delete(last, (1, 2)))


def test_a_fall_and_the_time_limit_are_the_tasks() -> None:
    plain, wrapped = pair(flag_timeout=TIMEOUT, straight_probability=1.0)
    lengths = []
    for env in (plain, wrapped):
        env.reset(seed=1)
        terminated, length = False, 0
        while not terminated:
            _, _, terminated, truncated, _ = env.step(np.zeros(17, np.float32))
            length += 1
            if truncated:
                env.reset()
        lengths.append(length)
        observation, info = env.reset()
        assert observation[0] > 0.0, "after a fall it stands again"
        assert info["flag"] == 0
    assert lengths[0] == lengths[1] > TIMEOUT

    limited = EpisodePerFlag(gym.make(FLAGRUN, max_episode_steps=TIMEOUT - 1, **STANDS))
    limited.reset(seed=1)
    for action in actions(TIMEOUT - 1):
        *_, truncated, info = limited.step(action)
    assert truncated
    assert info["flag"] == 1
    assert limited.reset()[1]["flag"] == 0, "flag and time limit end in the same step: the task begins anew"


@pytest.mark.parametrize("arguments", [{"seed": 3}, {"options": {}}])
def test_a_seed_or_options_start_the_task_anew(arguments: dict[str, Any]) -> None:
    wrapped = EpisodePerFlag(gym.make(FLAGRUN, **STANDS))
    wrapped.reset(seed=3)
    while not wrapped.step(np.zeros(17, np.float32))[3]:
        pass
    assert wrapped.reset(**arguments)[1]["flag"] == 0


def test_in_a_training() -> None:
    def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return EpisodePerFlag(env)

    env = make_vec_env(FLAGRUN, 2, seed=0, env_kwargs=STANDS | {"max_episode_steps": 20}, wrapper_class=wrap)
    model = PPOClipPaper("MlpPolicy", env, n_steps=40, batch_size=80, n_epochs=1, mirror_symmetry=True, seed=0)
    model.learn(80)
    # Flags change after 6, 13 and 20 steps, the last with the episode. Monitor tells of whole episodes.
    starts = model.rollout_buffer.episode_starts.reshape(40, 2)
    np.testing.assert_array_equal(np.flatnonzero(starts[:, 0]), [0, 6, 13, 20, 26, 33])
    assert [episode["l"] for episode in model.ep_info_buffer or ()] == [20, 20, 20, 20]
    _, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [20, 20]


def test_the_harder_task() -> None:
    keywords: dict[str, Any] = {"flag_timeout": TIMEOUT, "pose_probabilities": (0.0, 1.0, 0.0)}
    wrapped = EpisodePerFlag(gym.make("RoboschoolHumanoidFlagrunHarder-v1", **keywords))
    wrapped.reset(seed=2)
    ends = []
    for step, action in enumerate(actions(15), start=1):
        if wrapped.step(action)[3]:
            ends.append(step)
            assert wrapped.reset()[1]["pose"] == "stand_up"
    assert ends == [6, 13]
    assert wrapped.get_wrapper_attr("curriculum").outcomes() == [[], [], []], "no episode of the task has ended"


def test_a_flag_that_is_reached_ends_an_episode_too() -> None:
    wrapped = EpisodePerFlag(gym.make(FLAGRUN, flag_radius=100.0, minimum_height=0.0))
    wrapped.reset(seed=2)
    for reached in (2, 3):
        *_, terminated, truncated, info = wrapped.step(np.zeros(17, np.float32))
        assert (terminated, truncated) == (False, True)
        assert info["flags_reached"] == reached
        assert wrapped.reset()[1]["flag"] == reached


@pytest.mark.parametrize("wrapper", [EpisodePerFlag, FlagCurriculum])
def test_a_broken_simulations_observation_stays_finite(wrapper: type[EpisodePerFlag | FlagCurriculum]) -> None:
    wrapped = wrapper(gym.make(FLAGRUN, flag_timeout=2, straight_probability=1.0))
    wrapped.reset(seed=2)
    task: Any = wrapped.unwrapped
    task.robot.is_finite = lambda: False
    read = task.robot.read

    def broken_read() -> None:
        read()
        task.robot.roll = np.nan

    task.robot.read = broken_read
    observation, _, terminated, _, info = wrapped.step(np.zeros(17, np.float32))
    assert terminated
    assert info["flag"] == 1
    assert np.isfinite(observation).all()


def test_it_belongs_inside_wrappers_that_change_observations() -> None:
    with pytest.raises(ValueError, match="env must have the task's own observations: put EpisodePerFlag inside"):
        EpisodePerFlag(gym.wrappers.FrameStackObservation(gym.make(FLAGRUN), 2))


def test_another_task_is_refused() -> None:
    for name in ("RoboschoolHumanoid-v1", "Pendulum-v1"):
        with pytest.raises(ValueError, match="env must be a flagrun task, such as RoboschoolHumanoidFlagrun-v1; got <"):
            EpisodePerFlag(gym.make(name))


HUMANOID = "RoboschoolHumanoid-v1"
HIPS = [list(MOTORS).index(name) for name in ("right_hip_y", "left_hip_y")]


def strides(monkeypatch: pytest.MonkeyPatch, hips: list[tuple[float, float]], **arguments: Any) -> list[float]:
    """What the wrapper adds on successive steps with the right and the left hip at these positions."""
    wrapped = StrideReward(gym.make(HUMANOID, disable_env_checker=True), **arguments)
    task: Any = wrapped.unwrapped
    wrapped.reset(seed=0)
    rewards = []
    for right, left in hips:
        positions = [0.5] * len(MOTORS)
        positions[HIPS[0]], positions[HIPS[1]] = right, left
        task.robot.joint_position = positions
        monkeypatch.setattr(task, "step", lambda _: (np.zeros(44, np.float32), 7.0, False, False, {"told": 1}))
        _, reward, terminated, truncated, info = wrapped.step(np.zeros(17, np.float32))
        added = info.pop("reward_stride")
        assert (reward, terminated, truncated, info) == (7.0 + added, False, False, {"told": 1})
        rewards.append(added)
    wrapped.close()
    return rewards


def test_hips_apart_earn_up_to_half_of_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    hips = [(0.0, 0.0), (0.2, -0.2), (-0.5, 0.5), (0.59, -0.59)]
    for bonus in (1.0, 3.0):
        added = strides(monkeypatch, hips, bonus=bonus)
        assert added == pytest.approx([0.0, 0.4 * bonus, bonus, bonus])


def test_left_and_right_earn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hips = [(0.1, -0.4), (0.9, -0.7), (-0.2, 0.2), (-0.3, 1.01)]
    assert strides(monkeypatch, hips) == strides(monkeypatch, [(left, right) for right, left in hips])


def test_a_leg_that_stays_in_front_earns_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first step brings a leg forward; from the third on it has been there too long, until the other comes.
    ahead, behind, near = (-0.2, 0.2), (0.2, -0.2), (0.1, -0.1)
    hips = [ahead, ahead, ahead, ahead, near, behind, behind, near, behind, ahead]
    added = strides(monkeypatch, hips, patience=2)
    assert added == pytest.approx([0.4, 0.4, 0.0, 0.0, 0.0, 0.4, 0.4, 0.0, 0.0, 0.4])
    # Less than the threshold apart, no leg is in front: what is earned at first ends.
    assert strides(monkeypatch, [near] * 4, patience=3) == pytest.approx([0.2, 0.2, 0.0, 0.0])
    assert strides(monkeypatch, [near] * 4, patience=3, threshold=0.1) == pytest.approx([0.2, 0.2, 0.2, 0.0])


def test_hips_near_their_limits_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    hips = [(0.6, 0.6), (0.8, 0.8), (-1.0, -1.0), (1.0, 0.5)]
    added = strides(monkeypatch, hips, bonus=0.0, limit_start=0.6, limit_cost=-0.5)
    assert added == pytest.approx([0.0, -0.5, -1.0, -0.5])
    assert strides(monkeypatch, hips, bonus=0.0, limit_start=0.5, limit_cost=-0.2)[1] == pytest.approx(-0.24)


def test_all_but_the_reward_is_the_tasks_and_a_fall_is_paid_as_it_is() -> None:
    plain, wrapped = gym.make(HUMANOID), StrideReward(gym.make(HUMANOID))
    np.testing.assert_array_equal(wrapped.reset(seed=3)[0], plain.reset(seed=3)[0])
    added = []
    for action in actions(200):
        there, reward, *over, told = plain.step(action)
        here, more, *same, info = wrapped.step(action)
        np.testing.assert_array_equal(here, there)
        assert same == over
        added.append(info.pop("reward_stride"))
        assert info == told
        assert more == reward + added[-1]
        if over[0]:
            break
    assert over[0]
    assert added[-1] == 0.0
    assert np.ptp(added) > 0.1


def test_an_episode_starts_with_no_leg_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = StrideReward(gym.make(HUMANOID), patience=3)
    task: Any = wrapped.unwrapped
    for _ in range(2):
        wrapped.reset(seed=0)
        monkeypatch.setattr(task, "step", lambda _: (np.zeros(44, np.float32), 0.0, False, False, {}))
        positions = [0.0] * len(MOTORS)
        positions[HIPS[0]] = 0.4
        task.robot.joint_position = positions
        earned = [wrapped.step(np.zeros(17, np.float32))[1] for _ in range(5)]
        assert earned == pytest.approx([0.4, 0.4, 0.4, 0.0, 0.0])
        monkeypatch.undo()


def test_monitors_and_evaluations_tell_the_tasks_own_return() -> None:
    env = make_vec_env(HUMANOID, 1, wrapper_class=StrideReward, wrapper_kwargs={"bonus": 100.0})
    plain = make_vec_env(HUMANOID, 1)
    returns = []
    for vec_env in (env, plain):
        vec_env.seed(0)
        model = PPOClipPaper("MlpPolicy", vec_env, seed=0)
        returns.append(evaluate_policy(model, vec_env, n_eval_episodes=2))
    assert returns[0] == returns[1]


def test_what_the_stride_reward_takes() -> None:
    with pytest.raises(ValueError, match="env must be a humanoid task, such as RoboschoolHumanoid-v1"):
        StrideReward(gym.make("Pendulum-v1"))
    wrong: list[tuple[str, Any, str]] = [
        ("bonus", -1.0, "bonus must be a finite number >= 0"),
        ("threshold", 0.0, "threshold must be a finite number > 0"),
        ("patience", 0, "patience must be an integer >= 1"),
        ("limit_start", 1.0, "limit_start must be a number >= 0 and < 1"),
        ("limit_cost", 0.1, "limit_cost must be a finite number <= 0"),
    ]
    with gym.make(HUMANOID) as env:
        for name, value, message in wrong:
            with pytest.raises(ValueError, match=message):
                StrideReward(env, **{name: value})


def test_flags_lie_in_front_and_widen_with_those_faced() -> None:
    start, widen, narrow, facing = 0.3, 0.5, 0.2, 1.0
    env = FlagCurriculum(gym.make(FLAGRUN, **STANDS), start, widen, narrow, facing, (2.0, 3.0))
    task: Any = env.unwrapped
    _, info = env.reset(seed=5)
    angle, target, successes, turns = start, info["target"], [], []
    for action in actions(400):
        flag = info["flag"]
        observation, _, terminated, _, info = env.step(action)
        assert not terminated
        robot = task.robot
        if info["flag"] != flag:
            successes.append(cos(atan2(target[1] - robot.mean_y, target[0] - robot.mean_x) - robot.yaw) > cos(facing))
            angle = min(pi, max(start, angle + (widen if successes[-1] else -narrow)))
            target = info["target"]
            turn = remainder(atan2(target[1] - robot.mean_y, target[0] - robot.mean_x) - robot.yaw, 2 * pi)
            if angle < pi:
                turns.append(turn / angle)
                away = np.hypot(target[0] - robot.mean_x, target[1] - robot.mean_y)
                assert 2.0 <= away <= 3.0
            assert observation[1:3] == pytest.approx([np.sin(turn), np.cos(turn)], abs=1e-6)
        assert info["target"] == task.target == target
        assert info["flag_angle"] == pytest.approx(angle)
    assert 0 < sum(successes) < len(successes)
    assert -1.0 <= min(turns) < -0.5
    assert 0.5 < max(turns) <= 1.0


def test_only_the_flags_direction_is_observed_otherwise() -> None:
    plain, wrapped = gym.make(FLAGRUN, **STANDS), FlagCurriculum(gym.make(FLAGRUN, **STANDS))
    observations = [plain.reset(seed=5)[0], wrapped.reset(seed=5)[0]]
    for action in actions(60):
        there, here = (np.delete(observation, [1, 2]) for observation in observations)
        np.testing.assert_array_equal(here, there)
        observations = [env.step(action)[0] for env in (plain, wrapped)]


def test_a_flag_that_the_wrapper_plants_brings_no_progress_by_itself() -> None:
    wrapped = FlagCurriculum(gym.make(FLAGRUN, **STANDS))
    wrapped.reset(seed=5)
    progress = []
    for action in actions(60):
        *_, info = wrapped.step(action)
        progress.append(abs(info["reward_progress"]))
    assert 0.0 < max(progress) < 8.0, "m/s of a robot that falls over, and no jump of a flag"


def test_the_widest_angle_has_the_tasks_own_flags() -> None:
    plain, wrapped = gym.make(FLAGRUN, **STANDS), FlagCurriculum(gym.make(FLAGRUN, **STANDS), start=pi)
    np.testing.assert_array_equal(plain.reset(seed=5)[0], wrapped.reset(seed=5)[0])
    for action in actions(60):
        there, reward, *over, told = plain.step(action)
        here, same_reward, *same_over, info = wrapped.step(action)
        np.testing.assert_array_equal(here, there)
        assert info.pop("flag_angle") == pi
        assert (same_reward, same_over, info) == (reward, over, told)


def test_a_fall_narrows_and_a_seed_begins_anew() -> None:
    env = FlagCurriculum(gym.make(FLAGRUN), start=0.4, widen=1.0, narrow=0.25)
    env.reset(seed=0)
    env._angle = 2.0  # as after flags that were faced
    over = False
    info: dict[str, Any] = {}
    for action in actions(200):
        _, _, over, _, info = env.step(action)
        if over:
            break
    assert over
    assert info["flag_angle"] == 1.75
    env.reset()
    assert env.step(actions(1)[0])[4]["flag_angle"] == 1.75
    first = env.reset(seed=0)[1]["target"]
    assert env.step(actions(1)[0])[4]["flag_angle"] == 0.4
    assert env.reset(seed=0)[1]["target"] == first


def test_what_the_curriculum_takes() -> None:
    with pytest.raises(ValueError, match="env must be a flagrun task, such as RoboschoolHumanoidFlagrun-v1"):
        FlagCurriculum(gym.make(HUMANOID))
    with pytest.raises(ValueError, match="env must have the task's own observations: put FlagCurriculum inside"):
        FlagCurriculum(gym.wrappers.FrameStackObservation(gym.make(FLAGRUN), 2))
    wrong: list[tuple[str, Any, str]] = [
        ("start", 0.0, "start must be a number > 0 and <= π"),
        ("facing", 4.0, "facing must be a number > 0 and <= π"),
        ("widen", 0.0, "widen must be a finite number > 0"),
        ("narrow", -0.1, "narrow must be a finite number >= 0"),
        ("distance", (1.0,), "distance must be two finite numbers"),
        ("distance", (3.0, 2.0), "distance must be two numbers 0 <= nearest <= farthest"),
    ]
    with gym.make(FLAGRUN) as env:
        for name, value, message in wrong:
            with pytest.raises(ValueError, match=message):
                FlagCurriculum(env, **{name: value})


def play(env: gym.Env[Any, Any], steps: int, **keywords: Any) -> list[bool]:
    """An episode of at most so many steps without torque: what it begins with, and whether it ends in a fall."""
    first, _ = env.reset(**keywords)
    for _ in range(steps):
        *_, terminated, _, _ = env.step(np.zeros(17, np.float32))
        if terminated:
            break
    return [*first.tolist(), terminated]


def test_a_hard_start_is_begun_again_until_it_is_given_up() -> None:
    plain, env = gym.make(HUMANOID), HardStarts(gym.make(HUMANOID), share=1.0, within=200, tries=3)
    assert play(env, 200, seed=5) == play(plain, 200, seed=5)  # a fall, as all are without torque; of a seed, not kept
    fresh = play(plain, 200)
    assert fresh[-1]
    assert [play(env, 200) for _ in range(3)] == [fresh] * 3, "once by chance, twice again"
    assert len(env._hard) == 0, "given up"
    assert play(env, 1)[:-1] != fresh[:-1]


def test_a_start_that_the_robot_gets_through_is_hard_no_longer() -> None:
    env = HardStarts(gym.make(HUMANOID), share=1.0, within=200, tries=10)
    env.reset(seed=5)
    hard = play(env, 200)
    again = play(env, 200)
    assert again == hard
    assert len(env._hard) == 1
    env.unwrapped.minimum_height = 0.0  # type: ignore[attr-defined]  # now nobody falls
    assert play(env, 199)[:-1] == hard[:-1]
    assert len(env._hard) == 1, "a step too few"
    assert play(env, 200)[:-1] == hard[:-1]
    assert len(env._hard) == 0
    assert play(env, 1)[:-1] != hard[:-1]


def test_a_start_may_have_to_be_passed_several_times_in_a_row() -> None:
    env = HardStarts(gym.make(HUMANOID), share=1.0, within=200, tries=10, passes=2)
    task: Any = env.unwrapped
    env.reset(seed=5)
    hard = play(env, 200)
    for minimum_height, kept in ((0.0, 1), (0.78, 1), (0.0, 1), (0.0, 0)):
        task.minimum_height = minimum_height
        assert play(env, 200)[:-1] == hard[:-1]
        assert len(env._hard) == kept


def test_a_fall_after_those_steps_makes_no_start_hard() -> None:
    env = HardStarts(gym.make(HUMANOID), share=1.0, within=3)
    env.reset(seed=5)
    assert play(env, 200)[-1]
    assert len(env._hard) == 0


def test_the_end_of_a_shorter_episode_counts_and_chance_goes_on_after_it() -> None:
    env = HardStarts(gym.make(HUMANOID, max_episode_steps=100), share=1.0, within=200)
    env.reset(seed=5)
    hard = play(env, 100)
    assert hard[-1]
    env.reset()
    assert env._goes_on is not None
    env.unwrapped.minimum_height = 0.0  # type: ignore[attr-defined]  # now nobody falls
    play(env, 100)
    assert env._goes_on is None, "a bundle that is written now has the task's own generator"
    assert len(env._hard) == 0


@pytest.mark.parametrize("wrapper", [HardStarts, FlagCurriculum])
def test_a_flags_end_is_none_of_an_episode(wrapper: type[HardStarts | FlagCurriculum]) -> None:
    with pytest.raises(ValueError, match=f"put {wrapper.__name__} inside EpisodePerFlag"):
        wrapper(EpisodePerFlag(gym.make(FLAGRUN)))
    EpisodePerFlag(wrapper(gym.make(FLAGRUN)))


@pytest.mark.parametrize("task", [FLAGRUN, "RoboschoolHumanoidFlagrunHarder-v1"])
def test_hard_starts_go_with_the_curriculum(task: str) -> None:
    env = HardStarts(FlagCurriculum(gym.make(task)), share=1.0, within=1000, tries=2)
    env.reset(seed=5)
    for _ in range(6):
        observation, info = env.reset()
        assert info["target"] == env.unwrapped.target  # type: ignore[attr-defined]
        for _ in range(1000):
            observation, _, terminated, truncated, info = env.step(np.zeros(17, np.float32))
            assert np.isfinite(observation).all()
            if terminated or truncated:
                break
        assert terminated
        assert info["flag_angle"] == 0.5


def test_without_a_hard_start_all_is_the_tasks() -> None:
    plain, env = gym.make(HUMANOID), HardStarts(gym.make(HUMANOID), within=1)
    assert play(env, 200, seed=5) == play(plain, 200, seed=5)
    for _ in range(3):
        plain.reset()
        env.reset()
        for action in actions(60):
            there, reward, *over, told = plain.step(action)
            here, same_reward, *same_over, info = env.step(action)
            np.testing.assert_array_equal(here, there)
            assert (same_reward, same_over, info) == (reward, over, told)
            if over[0]:
                break


def test_a_share_of_the_starts_is_hard_and_a_seed_begins_anew() -> None:
    env = HardStarts(gym.make(HUMANOID), share=0.25, within=200, tries=10**6)
    env.reset(seed=5)
    hard = play(env, 200)
    starts = [env.reset()[0].tolist() for _ in range(200)]
    assert 30 <= sum(start == hard[:-1] for start in starts) <= 70
    assert len({tuple(start) for start in starts if start != hard[:-1]}) == len(starts) - starts.count(hard[:-1])
    env.reset(seed=5)
    assert len(env._hard) == 0
    assert play(env, 200) == hard
    assert [env.reset()[0].tolist() for _ in range(200)] == starts


def test_what_hard_starts_take() -> None:
    with pytest.raises(ValueError, match="env must be a humanoid task, such as RoboschoolHumanoid-v1"):
        HardStarts(gym.make("Pendulum-v1"))
    wrong: list[tuple[str, Any, str]] = [
        ("share", 0.0, "share must be a number > 0 and <= 1"),
        ("within", 0, "within must be an integer >= 1"),
        ("passes", 0, "passes must be an integer >= 1"),
        ("tries", 1, "tries must be an integer >= 2"),
    ]
    with gym.make(HUMANOID) as env:
        for name, value, message in wrong:
            with pytest.raises(ValueError, match=message):
                HardStarts(env, **{name: value})
