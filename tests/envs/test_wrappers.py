"""The wrapper that ends a training episode of flagrun with each flag."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.envs.wrappers import EpisodePerFlag

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


def test_a_broken_simulations_observation_stays_finite() -> None:
    wrapped = EpisodePerFlag(gym.make(FLAGRUN, flag_timeout=2, straight_probability=1.0))
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
