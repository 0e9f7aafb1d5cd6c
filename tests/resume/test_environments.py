"""Environments tell how their episodes began, and begin them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import sb3_ppo_variants.envs  # noqa: F401  # registers the tasks
from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper
from sb3_ppo_variants.envs.wrappers import EpisodePerFlag, FlagCurriculum, HardStarts, LiftCurriculum
from sb3_ppo_variants.resume import state as run_state
from sb3_ppo_variants.resume.names import bundle_paths
from sb3_ppo_variants.vec_env import record_episodes
from tests.resume.runs import moments, scramble, weights

HUMANOIDS = ["RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrun-v1", "RoboschoolHumanoidFlagrunHarder-v1"]


def episode(env: gym.Env, n_steps: int) -> list[Any]:
    actions = np.random.default_rng(0).uniform(-1, 1, (n_steps, *env.action_space.shape))  # type: ignore[misc]
    return [env.step(action.astype(np.float32))[0].tolist() for action in actions]


def n_successes(env: gym.Env) -> int:
    return sum(each.count(True) for each in env.unwrapped.curriculum.outcomes())  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", HUMANOIDS)
def test_a_humanoid_begins_the_same_episode_again(task: str) -> None:
    first, second = record_episodes(gym.make(task)), record_episodes(gym.make(task))
    first.reset(seed=3)
    for _ in range(3):
        first.reset()
    start = first.resume_start()  # type: ignore[attr-defined]
    steps = episode(first, 20)
    assert first.resume_start() == start  # type: ignore[attr-defined]
    after = first.reset()[0].tolist()

    second.reset(seed=9)
    second.resume_from(start)  # type: ignore[attr-defined]
    second.reset()
    assert episode(second, 20) == steps
    assert second.reset()[0].tolist() == after
    first.close()
    second.close()


def test_the_curriculum_goes_back_to_the_beginning_of_the_episode() -> None:
    envs = [record_episodes(gym.make(HUMANOIDS[2], success_steps=3)) for _ in range(2)]
    for env in envs:
        env.reset(seed=3)
    episode(envs[0], 5)
    envs[0].reset()
    memory = envs[0].unwrapped.curriculum.outcomes()  # type: ignore[attr-defined]
    assert sum(each.count(True) for each in memory) == 1
    start = envs[0].resume_start()  # type: ignore[attr-defined]
    episode(envs[0], 5)
    assert n_successes(envs[0]) == 2

    envs[1].resume_from(start)  # type: ignore[attr-defined]
    envs[1].reset()
    assert envs[1].unwrapped.curriculum.outcomes() == memory  # type: ignore[attr-defined]
    for env in envs:
        env.close()


def test_a_curriculum_of_other_tasks_is_refused() -> None:
    env = gym.make(HUMANOIDS[2])
    with pytest.raises(ValueError, match="outcomes must be of 3 tasks; got 2"):
        env.unwrapped.set_resume_state([[True], []])  # type: ignore[attr-defined]
    env.close()


def test_seeds_and_options_of_a_reset_are_repeated() -> None:
    class Optional(gym.Env):
        observation_space = spaces.Box(-9, 9, (1,))
        action_space = spaces.Discrete(2)
        seen: list[Any]

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            self.seen = [seed, options]
            return self.np_random.normal(size=1).astype(np.float32), {}

    first, second = record_episodes(Optional()), record_episodes(Optional())
    observation = first.reset(seed=4, options={"level": 2})[0]
    second.resume_from(first.resume_start())  # type: ignore[attr-defined]
    assert second.reset()[0] == observation
    assert second.seen == [4, {"level": 2}]  # type: ignore[attr-defined]


def test_environments_that_draw_from_their_spaces(tmp_path: Path) -> None:
    """SB3's identity environments do."""

    def make() -> PPOClipPaper:
        env = DummyVecEnv([lambda: IdentityEnv(dim=3, ep_length=8)] * 2)
        for index, each in enumerate(env.envs):
            each.action_space.seed(index)
        return PPOClipPaper("MlpPolicy", env, n_steps=16, batch_size=32, seed=1)

    unbroken = make().learn(160, run_folder=tmp_path / "a")
    make().learn(64, run_folder=tmp_path / "b")
    scramble()
    resumed = make().learn(160, run_folder=tmp_path / "b", resume=True)
    assert np.array_equal(weights(unbroken), weights(resumed))


@pytest.mark.parametrize("own", [np.random.RandomState(3), "no generator"])
def test_environments_with_a_generator_of_their_own_kind(own: Any) -> None:
    """As ports from the old gym have."""

    class Old(gym.Env):
        observation_space = spaces.Box(-9, 9, (1,))
        action_space = spaces.Discrete(2)

        def __init__(self) -> None:
            self.np_random = own

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            value = self.np_random.normal() if hasattr(self.np_random, "normal") else 0.0
            return np.array([value], np.float32), {}

    env = record_episodes(Old())
    first = env.reset()[0]
    env.resume_from(env.resume_start())  # type: ignore[attr-defined]
    assert env.reset()[0] == first


def test_another_environment_is_refused() -> None:
    told = record_episodes(gym.make(HUMANOIDS[2]))
    told.reset(seed=1)
    other = record_episodes(gym.make("CartPole-v1"))
    other.resume_from(told.resume_start())  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="is another environment than that of the bundle"):
        other.reset()
    told.close()


def test_wrappers_come_and_go() -> None:
    """A training may go on in other wrappers (``train --resume RUN -params "env_wrapper:…"``)."""
    told = record_episodes(EpisodePerFlag(LiftCurriculum(HardStarts(gym.make(HUMANOIDS[2])))))
    told.unwrapped.curriculum.remember(1, True)  # type: ignore[attr-defined]
    told.reset()
    other = FlagCurriculum(gym.make(HUMANOIDS[2]), start=0.7)
    record_episodes(other)
    other.resume_from(told.resume_start())  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"what \['0 HardStarts', '0 LiftCurriculum'\] had learned is dropped"):
        other.reset()
    assert other.unwrapped.curriculum.outcomes() == [[], [True], []]  # type: ignore[attr-defined]
    assert other.get_resume_state() == 0.7
    told.close()
    other.close()


def older_start(task: str) -> dict[str, Any]:
    """As of bundles that do not name the innermost environment."""
    env = record_episodes(gym.make(task))
    start = env.resume_start()  # type: ignore[attr-defined]
    del start["before"]["base"]
    env.close()
    return start


def test_an_older_bundle_is_taken() -> None:
    env = record_episodes(FlagCurriculum(gym.make(HUMANOIDS[2])))
    env.resume_from(older_start(HUMANOIDS[2]))  # type: ignore[attr-defined]
    env.reset()
    env.close()


@pytest.mark.parametrize(("of", "here"), [(HUMANOIDS[1], HUMANOIDS[2]), (HUMANOIDS[2], HUMANOIDS[1])])
def test_an_older_bundle_of_another_environment_is_refused(of: str, here: str) -> None:
    env = record_episodes(gym.make(here))
    env.resume_from(older_start(of))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="is another environment than that of the bundle"):
        env.reset()
    env.close()


def test_settings_of_a_wrapper_bound_what_it_had_learned() -> None:
    flags = FlagCurriculum(gym.make(HUMANOIDS[1]), start=1.0)
    flags.set_resume_state(0.8)
    assert flags.get_resume_state() == 1.0
    lift = LiftCurriculum(gym.make(HUMANOIDS[2]), start=(0.3, 0.1))
    shares = {"walk": 0.0, "stand_up": 0.2, "roll_over": 0.2}
    lift.set_resume_state(shares)
    assert lift.get_resume_state() == {**shares, "roll_over": 0.1}
    flags.close()
    lift.close()


def falls(env: gym.Env, n_episodes: int) -> list[Any]:
    """The last observations of episodes of random actions."""
    random = np.random.default_rng(0)
    ends = []
    for _ in range(n_episodes):
        env.reset()
        done = False
        while not done:
            action = random.uniform(-1, 1, env.action_space.shape)
            observation, _, terminated, truncated, _ = env.step(action.astype(np.float32))
            done = terminated or truncated
        ends.append(observation.tolist())
    return ends


def with_flags_in_front() -> gym.Env:
    env = FlagCurriculum(gym.make(HUMANOIDS[1]), narrow=0.1)
    env.set_resume_state(1.5)
    return env


def with_hard_starts() -> gym.Env:
    return HardStarts(gym.make(HUMANOIDS[0]), share=0.8, within=1000, tries=5)


def with_a_lift() -> gym.Env:
    task = gym.make(HUMANOIDS[2], max_episode_steps=40)
    env = LiftCurriculum(task, start=0.2, weaken=0.01, strengthen=0.003)
    env.set_resume_state({"walk": 0.0, "stand_up": 0.1, "roll_over": 0.1})
    return env


@pytest.mark.parametrize("make", [with_flags_in_front, with_hard_starts, with_a_lift])
def test_what_the_wrappers_for_training_have_learned_goes_on(make: Callable[[], gym.Env]) -> None:
    """From the beginning of the episode under way."""
    first, second = make(), make()
    learner, other = (cast(Any, env).get_resume_state for env in (first, second))
    first.np_random = np.random.default_rng(3)  # a seed would let it forget
    nothing = learner()
    record_episodes(first)
    record_episodes(second)
    falls(first, 6)
    learned = learner()
    assert learned != nothing
    first.reset()
    episode(first, 5)
    start = first.resume_start()  # type: ignore[attr-defined]
    after = falls(first, 6)
    assert learner() != learned

    second.resume_from(start)  # type: ignore[attr-defined]
    second.reset()
    assert other() != nothing
    episode(second, 5)
    assert falls(second, 6) == after
    assert other() == learner()
    first.close()
    second.close()


def test_a_hard_start_under_way_gives_the_tasks_generator_back() -> None:
    """With an episode for each flag, a bundle may be of the middle of one of the task's."""
    envs: list[Any] = []
    for _ in range(2):
        task = gym.make(HUMANOIDS[1], flag_timeout=5)
        envs.append(record_episodes(EpisodePerFlag(HardStarts(task, share=1.0, within=1000, tries=9))))
    first, second = envs
    first.np_random = np.random.default_rng(3)
    falls(first, 12)
    while first.env.get_resume_state()["goes_on"] is None:
        falls(first, 1)
    first.reset()
    state = first.resume_start()["before"]["layers"]["0 HardStarts"]
    expected = np.random.default_rng()
    expected.bit_generator.state = state["goes_on"]
    expected.random()
    expected.integers(len(state["hard"]))

    second.resume_from(first.resume_start())
    second.reset()
    assert second.env.get_resume_state()["goes_on"] == expected.bit_generator.state
    first.close()
    second.close()


def test_a_try_under_way_is_not_counted() -> None:
    def make() -> Any:
        task = gym.make(HUMANOIDS[2], pose_probabilities=(0.0, 1.0, 0.0), flag_timeout=5)
        return record_episodes(EpisodePerFlag(LiftCurriculum(task, start=0.5, strengthen=0.1)))

    first, second = make(), make()
    first.env.set_resume_state({"walk": 0.0, "stand_up": 0.2, "roll_over": 0.2})
    first.reset()
    episode(first, 4)
    first.reset()  # the next flag
    second.resume_from(first.resume_start())
    second.reset()
    assert second.env.get_resume_state()["stand_up"] == 0.2
    first.close()
    second.close()


def test_recording_leaves_the_environment_as_it_is() -> None:
    env = Monitor(gym.make("CartPole-v1"))
    assert record_episodes(env) is env
    reset = env.reset
    record_episodes(env)
    assert env.reset == reset
    other = gym.make("CartPole-v1")
    assert np.array_equal(env.reset(seed=5)[0], other.reset(seed=5)[0])


def test_times_of_monitors_go_on() -> None:
    def make() -> Any:
        with pytest.warns(UserWarning, match="already wrapped"):
            return VecMonitor(DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))]))

    env = make()
    run_state.prepare(env)
    env.reset()
    env.t_start -= 1000
    env.venv.envs[0].t_start -= 500
    env.venv.envs[0].total_steps = 77
    other = make()
    run_state.prepare(other)
    run_state.set_environments(other, run_state.environments_of(env))
    other.reset()
    assert other.t_start == pytest.approx(env.t_start, abs=5)
    assert other.venv.envs[0].t_start == pytest.approx(env.venv.envs[0].t_start, abs=5)
    assert other.venv.envs[0].total_steps == 77
    run_state.shift_clock(other, -300)
    assert other.t_start == pytest.approx(env.t_start - 300, abs=5)
    assert other.venv.envs[0].t_start == pytest.approx(env.venv.envs[0].t_start - 300, abs=5)


def test_on_a_humanoid_all_but_the_episode_under_way_is_restored(tmp_path: Path) -> None:
    def make() -> PPOAdaptiveKLPaper:
        fns = [lambda: gym.make(HUMANOIDS[2]) for _ in range(2)]
        env = VecNormalize(DummyVecEnv(fns))
        return PPOAdaptiveKLPaper(
            "MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=1, stepsize_kl_target=0.01
        )

    first = make()
    first.learn(256, run_folder=tmp_path)
    generators = run_state.generators(first.device)
    scramble()
    second = make()
    second.learn(256, run_folder=tmp_path, resume=True)
    assert run_state._same(run_state.generators(second.device), generators)
    assert np.array_equal(weights(first), weights(second))
    assert np.array_equal(moments(first), moments(second))
    assert (first.beta, first.stepsize_factor) == (second.beta, second.stepsize_factor)
    one: Any = first.env
    other: Any = second.env
    assert np.array_equal(one.obs_rms.mean, other.obs_rms.mean)
    assert one.ret_rms.var == other.ret_rms.var
    starts = one.env_method("resume_start")
    assert starts == other.env_method("resume_start")
    assert len(bundle_paths(tmp_path)) == 2
    one.close()
    other.close()
