"""What environments take and give back: memory, open files, processes, shared memory. Linux counts them in /proc."""

import ctypes
import gc
import multiprocessing
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_ppo_variants.envs.flagrun import RoboschoolHumanoidFlagrun, RoboschoolHumanoidFlagrunHarder
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="counts in /proc, and trims the heap by glibc"),
]

ROOM = 2**20
"""Bytes that a loop of 50 to 3,000 rounds may grow by; measured: 0.3 MB at most, most often none."""
TASKS = [RoboschoolHumanoid, RoboschoolHumanoidFlagrun, RoboschoolHumanoidFlagrunHarder]


def memory() -> int:
    """Resident memory of this process, bytes, without what is free already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> set[str]:
    """What the descriptors of this process are open on, but for what other tests left to be collected."""
    gc.collect()
    links = Path("/proc/self/fd").iterdir()
    return {f"{link.name} {link.readlink()}" for link in links if link.exists()}


def growth(act: Callable[[int], None], rounds: int, first: int) -> int:
    """Bytes by which the memory is larger after `rounds` more rounds than after the `first` ones."""
    for number in range(first):
        act(number)
    before = memory()
    for number in range(first, first + rounds):
        act(number)
    return memory() - before


@pytest.mark.parametrize("task", TASKS)
def test_3000_resets_take_no_memory_and_no_files(task: Callable[..., RoboschoolHumanoid]) -> None:
    env = task()

    def episode(seed: int) -> None:
        env.reset(seed=seed)
        env.step(np.zeros(17))

    env.reset(seed=0)
    files = open_files()
    assert growth(episode, rounds=3000, first=300) < ROOM
    assert open_files() <= files
    env.close()


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.parametrize("task", TASKS)
def test_200_environments_opened_and_closed_leave_nothing(task: Callable[..., Any], render_mode: str | None) -> None:
    def life(seed: int) -> None:
        env = task(render_mode=render_mode, width=64, height=48)
        env.reset(seed=seed)
        env.step(np.zeros(17))
        if render_mode is not None:
            env.render()
        env.close()

    files = open_files()
    assert growth(life, rounds=200, first=40) < ROOM
    assert open_files() <= files


def test_worlds_that_broke_are_given_back() -> None:
    env = RoboschoolHumanoidFlagrunHarder()

    def break_it(seed: int) -> None:
        env._broken = True
        env.reset(seed=seed)

    files = open_files()
    assert growth(break_it, rounds=100, first=20) < ROOM
    assert open_files() <= files
    env.close()


def test_2000_frames_take_no_memory() -> None:
    env = RoboschoolHumanoidFlagrunHarder(render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)

    def frame(_: int) -> None:
        env.render()

    assert growth(frame, rounds=2000, first=50) < ROOM
    env.close()


def test_50_vectorised_environments_leave_no_files_processes_or_shared_memory() -> None:
    make = partial(gym.make, "sb3_ppo_variants:RoboschoolHumanoidFlagrunHarder-v1")

    def life(_: int) -> None:
        vec_env = SharedMemoryVecEnv([make] * 2, n_workers=2)
        vec_env.reset()
        vec_env.step(np.zeros((2, 17)))
        vec_env.close()

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:")

    life(0)  # starts the fork server, which stays
    files, maps, children = open_files(), mapped(), {*multiprocessing.active_children()}
    assert growth(life, rounds=50, first=1) < ROOM
    assert open_files() <= files
    assert mapped() <= maps
    assert {*multiprocessing.active_children()} <= children
