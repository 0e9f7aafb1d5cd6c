"""``SharedMemoryVecEnv``: what SB3's ``DummyVecEnv`` gives, from a few processes; and what goes wrong in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.vec_env import EnvironmentRaisedError, SharedMemoryVecEnv, WorkerDiedError
from tests.vec_env_cases import ACTIONS, BOX, OBSERVATIONS, RandomEnv, assert_same, functions, is_running, trajectory


def fork(env_fns: list[Callable[[], gym.Env]], n_workers: int = 2) -> SharedMemoryVecEnv:
    return SharedMemoryVecEnv(env_fns, n_workers=n_workers, start_method="fork")


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_equals_dummy_vec_env_for_every_observation_space(observations: str) -> None:
    ours = trajectory(fork(functions(observations, "box", 5)))
    assert_same(ours, trajectory(DummyVecEnv(functions(observations, "box", 5))))


@pytest.mark.parametrize("actions", ACTIONS)
def test_equals_dummy_vec_env_for_every_action_space(actions: str) -> None:
    ours = trajectory(fork(functions("box", actions, 3)))
    assert_same(ours, trajectory(DummyVecEnv(functions("box", actions, 3))))


@pytest.mark.parametrize("n_workers", [1, 2, 3, 5])
def test_the_number_of_workers_changes_nothing(n_workers: int) -> None:
    ours = trajectory(fork(functions("dict", "discrete", 5), n_workers))
    assert_same(ours, trajectory(DummyVecEnv(functions("dict", "discrete", 5))))


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_other_start_methods_give_the_same(start_method: str) -> None:
    def make() -> gym.Env:
        return gym.make("CartPole-v1")

    ours = trajectory(SharedMemoryVecEnv([make] * 3, n_workers=1, start_method=start_method), 30)
    assert_same(ours, trajectory(DummyVecEnv([make] * 3), 30))


def test_a_worker_with_plain_environments_imports_neither_torch_nor_sb3() -> None:
    env = SharedMemoryVecEnv([partial(gym.make, "CartPole-v1")], start_method="forkserver")
    loaded = env._ask(None, lambda _: {"torch", "stable_baselines3", "numpy"} & set(sys.modules))
    env.close()
    assert loaded == [{"numpy"}]


def test_actions_of_another_type_reach_the_environment_as_they_are() -> None:
    env = fork(functions("box", "box", 3))
    env.reset()
    *_, infos = env.step(np.full((3, 2), 0.1, np.float64))
    assert all(info["action"].dtype == np.float64 for info in infos)
    env.close()


def test_what_is_returned_is_not_overwritten() -> None:
    env = fork(functions("dict", "discrete", 3))
    first: Any = env.reset()
    kept = {key: value.copy() for key, value in first.items()}
    result = env.step(np.array([0, 1, 2]))
    rewards, dones = result[1].copy(), result[2].copy()
    env.step(np.array([3, 3, 3]))
    assert_same(first, kept)
    assert np.array_equal(result[1], rewards)
    assert np.array_equal(result[2], dones)
    env.close()


def test_attributes_methods_wrappers_and_frames() -> None:
    env = fork(functions("box", "discrete", 5))
    env.reset()
    env.step(np.zeros(5, dtype=np.int64))
    assert env.get_attr("n_steps") == [1] * 5
    env.env_method("set_wrapper_attr", "n_steps", 7, indices=[4, 1])
    assert env.get_attr("n_steps") == [1, 7, 1, 1, 7]
    assert env.get_attr("n_steps", indices=[4, 0]) == [7, 1]
    assert env.env_method("add", 10, twice=True, indices=1) == [27]  # 7 + 2·10
    env.set_attr("mark", "here", indices=2)
    assert env.get_attr("mark", indices=2) == ["here"]
    assert env.has_attr("n_steps")
    assert not env.has_attr("mark")  # only one has it
    with pytest.raises(AttributeError, match="environment 0"):
        env.get_attr("nothing")
    assert env.get_attr("n_steps", indices=0) == [1]  # and it goes on
    assert env.env_is_wrapped(TimeLimit) == [True] * 5
    assert env.env_is_wrapped(VecNormalize) == [False] * 5  # type: ignore[arg-type]
    frames = env.get_images()
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 7, 1, 1, 7]  # type: ignore[index]
    picture = env.render()
    assert picture is not None
    assert picture.shape[2] == 3
    env.close()


def test_the_worst_arguments_are_named() -> None:
    fns = functions("box", "box", 2)
    with pytest.raises(ValueError, match="env_fns must hold at least one"):
        SharedMemoryVecEnv([])
    for n_workers in (0, 3, 1.5):
        with pytest.raises(ValueError, match="n_workers must be an integer from 1 to the number of environments, 2"):
            SharedMemoryVecEnv(fns, n_workers=n_workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start_method must be one of"):
        SharedMemoryVecEnv(fns, start_method="thread")
    text = spaces.Text(5)
    with pytest.raises(TypeError, match="observation space must be one of Box"):
        SharedMemoryVecEnv([lambda: RandomEnv(text, BOX)], start_method="fork")


def children() -> set[int]:
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "ps" not in line.split()[1]}


def test_an_environment_that_raises_ends_everything_and_is_named() -> None:
    before = children()
    env = fork(functions("box", "box", 5, troubled=3))
    env.reset()
    actions = np.zeros((5, 2), np.float32)
    env.step(actions)
    env.step(actions)
    with pytest.raises(EnvironmentRaisedError, match="environment 3 raised a ZeroDivisionError") as caught:
        env.step(actions)
    assert "trouble as ordered" in str(caught.value)
    assert "in step" in str(caught.value)  # the worker's traceback
    assert children() == before
    env.close()  # again is no harm


def test_an_environment_that_cannot_be_made_is_named() -> None:
    def impossible() -> gym.Env:
        raise OSError("no such world")

    before = children()
    with pytest.raises(EnvironmentRaisedError, match=r"environment 2 raised a OSError(.|\n)*no such world"):
        fork([*functions("box", "box", 2), impossible])
    assert children() == before


@pytest.mark.parametrize("when", ["between", "during"])
def test_a_worker_that_dies_ends_everything_within_seconds(when: str) -> None:
    before = children()
    env = fork(functions("box", "box", 4))
    env.reset()
    victim = env._chunks[1]._process.pid
    assert victim is not None
    if when == "during":
        os.kill(victim, signal.SIGSTOP)
        env.step_async(np.zeros((4, 2), np.float32))
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    if when == "between":
        env._chunks[1]._process.join()
    go_on = env.step_wait if when == "during" else partial(env.step, np.zeros((4, 2), np.float32))
    with pytest.raises(WorkerDiedError, match="environments 2 to 3 ended by signal SIGKILL"):
        go_on()
    assert time.monotonic() - started < 20  # it does not hang
    assert children() == before


def test_closing_during_a_step_leaves_nothing_behind() -> None:
    before = children()
    env = fork(functions("image", "box", 4))
    env.reset()
    env.step_async(np.zeros((4, 2), np.float32))
    env.close()
    assert children() == before


def test_open_files_do_not_grow() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    fork(functions("box", "box", 2)).close()
    before = descriptors()
    for _ in range(5):
        env = fork(functions("box", "box", 2))
        env.reset()
        env.close()
        del env
    assert descriptors() <= before


PROGRAM = """
import os, sys, time
import gymnasium as gym
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv
if __name__ == "__main__":
    env = SharedMemoryVecEnv([lambda: gym.make("CartPole-v1")] * 4, n_workers=2, start_method=sys.argv[1])
    env.reset()
    print(*[w._process.pid for w in env._chunks], flush=True)
    while True:
        env.step(__import__("numpy").zeros(4, dtype=int))
"""


@pytest.mark.parametrize(("start_method", "end"), [("fork", signal.SIGKILL), ("forkserver", signal.SIGINT)])
def test_nothing_survives_the_parent(end: signal.Signals, start_method: str, tmp_path: Any) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), start_method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(0.2)
        parent.send_signal(end)
        _, errors = parent.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)
    assert "leaked" not in errors  # Python's own complaint about segments and semaphores


def test_training_gives_what_dummy_vec_env_gives() -> None:
    def train(vec_env_cls: Any, **kwargs: Any) -> Any:
        env = make_vec_env("CartPole-v1", 4, seed=1, vec_env_cls=vec_env_cls, vec_env_kwargs=kwargs)
        model = PPOClipPaper("MlpPolicy", VecNormalize(env), n_steps=32, n_epochs=2, seed=1, device="cpu").learn(256)
        env.close()
        return model.get_parameters()["policy"]

    ours, theirs = train(SharedMemoryVecEnv, n_workers=2, start_method="fork"), train(DummyVecEnv)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
