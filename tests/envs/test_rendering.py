"""What draws frames, and films made of them by gymnasium and by SB3."""

import subprocess
from collections.abc import Callable, Iterator
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pybullet
import pytest
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecVideoRecorder

from sb3_ppo_variants.envs import rendering
from sb3_ppo_variants.envs.flagrun import RoboschoolHumanoidFlagrunHarder
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv

HAIL: dict[str, Any] = {"throw_period": 10, "throw_after": 0, "throw_distance": 1.0, "flag_timeout": 20}
IDS = ["RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrun-v1", "RoboschoolHumanoidFlagrunHarder-v1"]
STEPS = 24


@pytest.fixture(name="egl")
def _egl() -> None:
    if rendering.egl_trouble() is not None:
        pytest.skip("no EGL plugin, or no OpenGL driver for it")


@pytest.fixture(name="make")
def _make() -> Iterator[Callable[..., Any]]:
    made: list[RoboschoolHumanoid] = []

    def make(task: type[RoboschoolHumanoid] = RoboschoolHumanoidFlagrunHarder, **keywords: Any) -> Any:
        made.append(task(render_mode="rgb_array", **keywords))
        return made[-1]

    yield make
    for env in made:
        env.close()


# ------------------------------------------------------------------ renderers


@pytest.mark.slow
@pytest.mark.usefixtures("egl")
def test_egl_draws_what_tiny_renderer_draws_in_two_environments_at_once(make: Callable[..., Any]) -> None:
    small: dict[str, Any] = {"width": 320, "height": 240}
    tiny = make(**HAIL, **small)
    others = [make(**HAIL, **small, renderer="egl") for _ in range(2)]
    frames: list[Any] = []
    for env, seed in ((tiny, 4), (others[0], 4), (others[1], 5)):
        env.reset(seed=seed)
    for steps in (1, 14):
        for env in (tiny, *others):
            env.target = (-3.0, 8.0)
            for _ in range(steps):
                env.step(np.zeros(17))
            frames.append(env.render().astype(int))
        expected, same, different = frames[-3:]
        # They shade otherwise and draw edges otherwise, but nothing is in another place or of another colour.
        assert (expected != same).any()
        assert (abs(expected - same).max(axis=2) > 100).mean() < 0.003
        assert (abs(expected - different).max(axis=2) > 100).mean() > 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("egl")
def test_egl_leaves_the_simulation_as_it_is(make: Callable[..., Any]) -> None:
    plain = RoboschoolHumanoidFlagrunHarder(**HAIL)
    filmed = make(**HAIL, renderer="egl", width=32, height=24)
    for seed in (3, 4):
        np.testing.assert_array_equal(filmed.reset(seed=seed)[0], plain.reset(seed=seed)[0])
        for action in np.random.default_rng(seed).uniform(-1.0, 1.0, (60, 17)):
            filmed.render()
            expected, observed = plain.step(action), filmed.step(action)
            np.testing.assert_array_equal(observed[0], expected[0])
            assert observed[1:] == expected[1:]
    plain.close()


def test_egl_is_refused_where_it_does_not_work(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "egl_trouble", lambda: "No driver.")
    with pytest.raises(RuntimeError, match=r'needs the EGL plugin .*; renderer="tiny" needs neither. No driver.'):
        make(renderer="egl")
    RoboschoolHumanoid(renderer="egl").close()  # without pictures it is not asked for


@pytest.mark.slow
@pytest.mark.usefixtures("egl")
def test_egl_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "EGL_MODULE", "no_such_plugin")
    assert rendering.egl_trouble.__wrapped__() == "There is no module no_such_plugin."
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    assert rendering.egl_trouble.__wrapped__() is None
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nowhere")  # no driver: the plugin would end this process
    assert "ended with" in str(rendering.egl_trouble.__wrapped__())


def test_an_unknown_renderer_is_named() -> None:
    with pytest.raises(ValueError, match=r"renderer must be one of 'tiny', 'egl'; got 'elg' \(did you mean 'egl'\?\)"):
        RoboschoolHumanoid(renderer="elg")


def test_a_mask_hides_the_head_however_the_robot_lies(make: Callable[..., Any]) -> None:
    """Whatever colour the head has below it, the picture is the same."""
    for pose in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        env = make(pose_probabilities=pose)
        env.reset(seed=0)
        body, expected = env.robot.body.id, env.render()
        pybullet.changeVisualShape(body, -1, rendering.HEAD_SHAPE, rgbaColor=(0, 1, 1, 1), physicsClientId=env.client)
        np.testing.assert_array_equal(env.render(), expected)
        pybullet.resetBasePositionAndOrientation(body, (0.0, 0.0, 1.2), (0.0, 0.0, 0.0, 1.0), env.client)
        pybullet.changeVisualShape(env._camera._mask, -1, rgbaColor=(0, 0, 0, 0), physicsClientId=env.client)
        cyan = (env.render() * (1.0, -1.0, -1.0)).sum(axis=2) < -150.0
        assert cyan.sum() > 200  # the head, now that it is bare


# ------------------------------------------------------------------ films


def assert_films(folder: Path, count: int) -> None:
    """The one film in a folder has so many frames of 64 × 48 pixels, and shows motion."""
    (path,) = folder.glob("*.mp4")
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    written = subprocess.run([*read, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True)
    frames = np.frombuffer(written.stdout, np.uint8).reshape(-1, 48, 64, 3).astype(int)
    assert len(frames) == count
    assert (abs(frames[0] - frames[-1]).max(axis=2) > 30).mean() > 0.01


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_films_an_episode(env_id: str, tmp_path: Path) -> None:
    env = gym.make(env_id, render_mode="rgb_array", width=64, height=48, max_episode_steps=STEPS)
    with RecordVideo(env, str(tmp_path / "film")) as filmed:
        filmed.reset(seed=0)
        ends = [filmed.step(np.zeros(17))[2:4] for _ in range(STEPS)]
    assert ends == [(False, False)] * (STEPS - 1) + [(False, True)]
    assert_films(tmp_path / "film", STEPS + 1)


def record(vec_env: VecEnv, folder: Path) -> None:
    filmed = VecVideoRecorder(vec_env, str(folder), record_video_trigger=lambda step: step == 0, video_length=STEPS)
    assert filmed.frames_per_sec == 61  # real time
    filmed.reset()
    for _ in range(STEPS):
        filmed.step(np.zeros((2, 17)))
    filmed.close()


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, pytest.param(SharedMemoryVecEnv, marks=pytest.mark.slow)])
def test_sb3_films_a_vectorised_environment(env_id: str, vec_env_class: Any, tmp_path: Path) -> None:
    def make() -> gym.Env[Any, Any]:
        return gym.make(f"sb3_ppo_variants:{env_id}", render_mode="rgb_array", width=64, height=24)

    record(vec_env_class([make, make]), tmp_path)
    assert_films(tmp_path, STEPS + 1)  # one above the other


@pytest.mark.parametrize(
    ("bearing", "seen"), [(0, True), (20, True), (-20, True), (40, False), (90, False), (180, False)]
)
def test_what_is_in_view_is_ahead_of_the_camera(bearing: float, seen: bool) -> None:
    """A square frame of 45° shows 22.5° to each side of the camera's heading, which is YAW to the left of y.

    At 50 m it matters little that the camera stands 3.3 m behind the robot.
    """
    angle = radians(90 + rendering.YAW + bearing)
    point = (3.0 + 50.0 * cos(angle), -2.0 + 50.0 * sin(angle), rendering.LOOK_AT_HEIGHT)
    assert rendering.is_in_view(point, (3.0, -2.0), 100, 100) == seen
