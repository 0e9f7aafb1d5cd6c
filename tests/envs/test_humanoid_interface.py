"""The task as gymnasium, SB3 and its users meet it: checks, seeds, errors, pictures, resources."""

import copy
import inspect
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pybullet
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_ppo_variants.envs import TASKS, register_envs
from sb3_ppo_variants.envs.bullet import World
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid

ENV_ID = "RoboschoolHumanoid-v1"
ROOT = Path(__file__).parents[2]


def trajectory(env: gym.Env[Any, Any], seed: int, steps: int = 120) -> NDArray[np.float64]:
    """Observations and rewards, shape (steps, 45), of an episode of random actions that goes on after falls."""
    observation, _ = env.reset(seed=seed)
    rows = []
    for action in np.random.default_rng(seed).uniform(-1.0, 1.0, (steps, 17)):
        observation, reward, *_ = env.step(action)
        rows.append([*observation.tolist(), reward])
    return np.array(rows)


def test_registered_with_roboschools_limits_and_only_once() -> None:
    register_envs()
    spec = gym.spec(ENV_ID)
    register_envs()
    assert gym.registry[ENV_ID] is spec
    assert (spec.max_episode_steps, spec.reward_threshold) == (1000, 3500.0)
    assert set(TASKS) <= set(gym.registry)


def test_make_by_module_and_id() -> None:
    with gym.make("sb3_ppo_variants:RoboschoolHumanoid-v1") as env:
        assert env.observation_space == gym.spaces.Box(-5.0, 5.0, (44,), np.float32)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (17,), np.float32)
        assert isinstance(env.unwrapped, RoboschoolHumanoid)


def test_checkers_find_nothing_to_warn_of() -> None:
    with gym.make(ENV_ID, render_mode="rgb_array") as env:
        gymnasium_check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


def test_time_limit_truncates_at_step_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    with gym.make(ENV_ID) as env:
        env.reset(seed=0)
        monkeypatch.setattr(World, "step", lambda _: None)  # it stays where it is, and the episode goes on
        ends = [env.step(np.zeros(17))[2:4] for _ in range(1000)]
    assert ends == [(False, False)] * 999 + [(False, True)]


@pytest.mark.parametrize("seed", range(4))
def test_used_environment_repeats_a_fresh_one_bit_for_bit(seed: int) -> None:
    fresh, used = RoboschoolHumanoid(), RoboschoolHumanoid()
    for other in range(3):
        trajectory(used, seed=100 + 10 * seed + other, steps=40 + 60 * other)  # lies on the ground at the end
    np.testing.assert_array_equal(trajectory(used, seed), trajectory(fresh, seed))
    fresh.close()
    used.close()


def test_seeds_differ_and_reset_without_one_goes_on() -> None:
    env = RoboschoolHumanoid()
    first, _ = env.reset(seed=0)
    second, _ = env.reset()
    assert not np.array_equal(first, env.reset(seed=1)[0])
    np.testing.assert_array_equal(first, env.reset(seed=0)[0])
    np.testing.assert_array_equal(second, env.reset()[0])
    env.close()


def test_same_trajectory_in_another_process() -> None:
    code = "\n".join(
        [
            "from __future__ import annotations",
            "import sys",
            "import numpy as np",
            "from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid",
            inspect.getsource(trajectory),
            "sys.stdout.buffer.write(trajectory(RoboschoolHumanoid(), 17).tobytes())",
        ]
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True).stdout
    env = RoboschoolHumanoid()
    assert output == trajectory(env, 17).tobytes()
    env.close()


def test_pictures_leave_the_simulation_as_it_is() -> None:
    plain, filmed = RoboschoolHumanoid(), RoboschoolHumanoid(render_mode="rgb_array", width=64, height=48)
    expected = trajectory(plain, 3)
    filmed.reset(seed=3)
    rows = []
    for action in np.random.default_rng(3).uniform(-1.0, 1.0, (120, 17)):
        filmed.render()
        observation, reward, *_ = filmed.step(action)
        rows.append([*observation.tolist(), reward])
    np.testing.assert_array_equal(rows, expected)
    plain.close()
    filmed.close()


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (["a"] * 17, "finite numbers; got an array of <U1"),
        ([b"1"] * 17, "finite numbers"),
        ([None] * 17, "finite numbers"),
        ([10**400] * 17, "finite numbers"),
        ([1e300] * 17, "finite numbers of at most"),
        (np.zeros(17, complex), "finite numbers; got an array of complex128"),
        (np.zeros(17, "timedelta64[s]"), "finite numbers"),
        (np.zeros(16), r"shape \(17,\), got \(16,\)"),
        (None, r"shape \(17,\), got \(\)"),
        ([[1.0]] * 16 + [2.0], "shape .* unequal length"),
    ],
)
def test_what_is_no_action_is_refused(bad: Any, what: str) -> None:
    env = RoboschoolHumanoid()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action must .*{what}"):
        env.step(bad)
    env.close()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.longdouble, np.int8, bool])
def test_any_numbers_are_an_action(kind: Any) -> None:
    env = RoboschoolHumanoid()
    env.reset(seed=0)
    assert type(env.step(np.ones(17, kind))[1]) is float
    env.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_action_is_refused_and_the_episode_goes_on_unharmed(bad: float) -> None:
    env = RoboschoolHumanoid()
    expected = trajectory(env, 2, steps=30)
    env.reset(seed=2)
    rows = []
    for action in np.random.default_rng(2).uniform(-1.0, 1.0, (30, 17)):
        broken = action.copy()
        broken[5] = bad
        with pytest.raises(ValueError, match="action must be finite"):
            env.step(broken)
        observation, reward, *_ = env.step(action)
        rows.append([*observation.tolist(), reward])
    np.testing.assert_array_equal(rows, expected)
    env.close()


@pytest.mark.parametrize("shape", [(16,), (18,), (), (1, 17)])
def test_action_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    env = RoboschoolHumanoid()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(17,\), got"):
        env.step(np.zeros(shape))
    env.close()


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("render_mode", "ascii", "render_mode must be one of None, 'human', 'rgb_array'; got 'ascii'"),
        ("yaw_range", -0.1, "yaw_range must be a finite number >= 0"),
        ("joint_range", -1.0, "joint_range must be a finite number >= 0"),
        ("initial_height", float("nan"), "initial_height must be a finite number >= 0"),
        ("electricity_cost", 1.0, "electricity_cost must be a finite number <= 0"),
        ("feet_collision_cost", float("-inf"), "feet_collision_cost must be a finite number <= 0"),
        ("alive_bonus", float("inf"), "alive_bonus must be a finite number; got inf"),
        ("target", (0.0, float("nan")), "target must be a finite number; got nan"),
        ("target", 5.0, r"target must be two finite numbers \(x, y\); got 5\.0"),
        ("power", "strong", "power must be a finite number >= 0; got 'strong'"),
        ("width", 0, "width must be an integer >= 1"),
    ],
)
def test_keyword_out_of_range_is_named(keyword: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoboschoolHumanoid(**{keyword: value})  # type: ignore[arg-type]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a window needs no DISPLAY")
def test_window_without_a_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(RuntimeError, match='needs a display; without one use render_mode="rgb_array"'):
        RoboschoolHumanoid(render_mode="human")


def test_frame_shows_the_robot_in_the_middle_wherever_it_is() -> None:
    env = RoboschoolHumanoid(render_mode="rgb_array")
    env.reset(seed=0)
    frames = []
    for x in (0.0, 0.5, 123.4):
        env.robot.body.place([0.0] * 17, (x, -x, 1.2), (0.0, 0.0, 0.0, 1.0))
        frame = env.render()
        assert frame is not None
        assert (frame.shape, frame.dtype) == ((480, 640, 3), np.uint8)
        frames.append(frame.astype(int))
        red, green, blue = np.moveaxis(frames[-1], 2, 0)
        rows, columns = np.nonzero((red > 1.7 * green) & (red > 1.7 * blue))  # the shirt: nothing else is red
        assert len(rows) > 300
        assert 280 < columns.mean() < 360
        assert 120 < rows.mean() < 280
        assert (blue[:50] > green[:50]).all()  # sky above
        assert (green[-50:] > blue[-50:]).all()  # lawn below
    # Half a metre on, the robot looks the same and the lawn has moved: that is how motion shows.
    moved = np.abs(frames[0] - frames[1]).sum(axis=2) > 10
    assert moved[350:].mean() > 0.1
    assert moved[:100].mean() < 0.01
    env.close()


def test_frame_size_is_a_keyword() -> None:
    env = RoboschoolHumanoid(render_mode="rgb_array", width=96, height=64)
    env.reset(seed=0)
    frame = env.render()
    assert frame is not None
    assert frame.shape == (64, 96, 3)
    env.close()


def test_importing_for_the_tasks_does_not_bring_torch_or_sb3() -> None:
    code = (
        "import sys, gymnasium\n"
        f"env = gymnasium.make('sb3_ppo_variants:{ENV_ID}', render_mode='rgb_array')\n"
        "env.reset(seed=0); env.step(env.action_space.sample()); env.render()\n"
        "print([name for name in ('torch', 'stable_baselines3') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts file descriptors in /proc")
def test_resets_and_reopening_leak_no_files() -> None:
    env = RoboschoolHumanoid()
    env.reset(seed=0)
    before = open_files()
    for seed in range(300):
        env.reset(seed=seed)
    assert open_files() == before
    env.close()
    env.close()
    for seed in range(20):
        other = RoboschoolHumanoid()
        other.reset(seed=seed)
        other.close()
    assert open_files() <= before


def test_dropped_environment_frees_its_client() -> None:
    env = RoboschoolHumanoid()
    client = env._world.client
    assert pybullet.isConnected(client)
    del env
    assert not pybullet.isConnected(client)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_has_the_same_settings_and_a_simulation_of_its_own(copied: Any) -> None:
    original = RoboschoolHumanoid(yaw_range=0.0, alive_bonus=3.0)
    expected = trajectory(original, 5)
    observation, _ = original.reset(seed=6)
    copy_of_it = copied(original)
    assert (copy_of_it.yaw_range, copy_of_it.alive_bonus) == (0.0, 3.0)
    assert np.array_equal(trajectory(copy_of_it, 5), expected)
    # The copy's 120 steps have left the original where it was.
    again = RoboschoolHumanoid(yaw_range=0.0, alive_bonus=3.0)
    assert np.array_equal(again.reset(seed=6)[0], observation)
    action = np.full(17, 0.3)
    assert np.array_equal(original.step(action)[0], again.step(action)[0])


def test_constructor_and_spec_can_be_pickled() -> None:
    make = pickle.loads(pickle.dumps(partial(RoboschoolHumanoid, yaw_range=0.0)))
    env = make()
    assert env.yaw_range == 0.0
    env.close()
    spec = pickle.loads(pickle.dumps(gym.spec(ENV_ID)))
    with gym.make(spec) as made:
        assert made.spec is not None
        assert made.spec.id == ENV_ID
