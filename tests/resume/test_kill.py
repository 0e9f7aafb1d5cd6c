"""``kill -9`` at any moment: every resume goes on, and no step is lost beyond the last bundle."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

import sb3_ppo_variants.envs  # noqa: F401  # registers the tasks
from sb3_ppo_variants import PPOAdaptiveKLPaper, files
from sb3_ppo_variants.resume import folder as run_folder
from sb3_ppo_variants.resume.format import from_bytes
from sb3_ppo_variants.resume.names import bundle_paths
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv
from tests.processes import forkserver, ready_server
from tests.resume.runs import progress

TASK = "RoboschoolHumanoidFlagrunHarder-v1"
N_ENVS, N_STEPS = 2, 64
ITERATION = N_ENVS * N_STEPS
N_KILLS = 20
STARTING, ROLLOUT, UPDATE, WRITING, RENAMING = range(5)


class Shared:
    """What the parent sees of the training: its phase, how often it entered one, and what it wrote. A lock could be
    held by who is killed, so there is none."""

    def __init__(self) -> None:
        self.phase = forkserver.RawValue("i", STARTING)
        self.entered = forkserver.RawArray("i", 5)
        self.written = forkserver.RawValue("i", -1)
        self.resumed_at = forkserver.RawValue("i", -1)


def make_env(folder: Path, kind: str) -> VecEnv:
    def make(index: int) -> Any:
        path = folder / f"{index}.monitor.csv"
        return lambda: Monitor(gym.make(TASK), str(path), override_existing=not path.exists())

    fns = [make(index) for index in range(N_ENVS)]
    return DummyVecEnv(fns) if kind == "dummy" else SharedMemoryVecEnv(fns, n_workers=2, start_method="fork")


def train(folder: Path, total: int, shared: Shared, kind: str) -> None:
    """The process that is killed."""

    @contextmanager
    def phase(number: int) -> Iterator[None]:
        before, shared.phase.value = shared.phase.value, number
        shared.entered[number] += 1
        yield
        shared.phase.value = before

    class Watched(PPOAdaptiveKLPaper):
        def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
            if shared.resumed_at.value < 0:
                shared.resumed_at.value = self.num_timesteps
            with phase(ROLLOUT):
                return super().collect_rollouts(*args, **kwargs)

        def train(self) -> None:
            with phase(UPDATE):
                super().train()

    write, replace = run_folder.atomic_write, os.replace

    def watched_write(path: Any, data: bytes) -> None:
        if not path.name.startswith("bundle_"):
            write(path, data)
            return
        with phase(WRITING):
            write(path, data)
        shared.written.value = int(path.name[7:19])

    def watched_replace(*args: Any) -> None:
        with phase(RENAMING):
            replace(*args)

    run_folder.atomic_write = watched_write
    files.os.replace = watched_replace  # type: ignore[assignment]

    env = make_env(folder, kind)
    model = Watched("MlpPolicy", VecNormalize(env), n_steps=N_STEPS, batch_size=32, n_epochs=4, seed=1)
    model.learn(total, run_folder=folder, resume="auto", bundle_interval=0)


def start(folder: Path, total: int, shared: Shared, kind: str) -> Any:
    process = forkserver.Process(target=train, args=(folder, total, shared, kind))
    process.start()
    return process


def kill_at(target: int, shared: Shared, process: Any, generator: random.Random) -> None:
    """Let the training go on for a few iterations, and kill it at a random moment of a phase."""
    wanted = shared.entered[target] + generator.randint(1, 3)
    deadline = time.monotonic() + 120
    while shared.entered[target] < wanted and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0001)
    assert process.is_alive(), "the training ended before it was killed"
    assert shared.entered[target] >= wanted, "the training hangs"
    time.sleep(generator.uniform(0, {ROLLOUT: 0.08, UPDATE: 0.02, WRITING: 0.004, RENAMING: 0}[target]))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dummy", "shared_memory"])
def test_twenty_kills(tmp_path: Path, kind: str) -> None:
    with ready_server("tests.resume.test_kill", "torch"):
        kill_twenty_times(tmp_path, kind)


def kill_twenty_times(tmp_path: Path, kind: str) -> None:
    generator = random.Random(kind)
    moments = [ROLLOUT, UPDATE, WRITING, RENAMING] * (N_KILLS // 4)
    generator.shuffle(moments)
    killed_in = []
    reached = 0
    for target in moments:
        shared = Shared()
        process = start(tmp_path, 10**9, shared, kind)
        kill_at(target, shared, process, generator)
        killed_in.append(shared.phase.value)

        if shared.resumed_at.value >= 0:  # else it was killed while it began
            assert shared.resumed_at.value == reached, "it went on from another timestep than that of the last bundle"
        paths = bundle_paths(tmp_path)
        assert len(paths) <= 3  # two, and one that a killed writer did not get to remove
        steps = [from_bytes(path.read_bytes())["model"]["attributes"]["num_timesteps"] for path in paths]
        before, reached = reached, max(steps, default=0)
        assert reached >= max(before, shared.written.value), "a bundle that was written is gone"
        assert not list((tmp_path / "bundles").glob("*.unreadable"))
    assert {ROLLOUT, UPDATE, WRITING} <= set(killed_in)
    assert reached > N_KILLS * ITERATION // 2

    shared = Shared()
    process = start(tmp_path, reached + 2 * ITERATION, shared, kind)
    process.join()
    assert process.exitcode == 0
    assert shared.resumed_at.value == reached
    rows = [int(row["time/total_timesteps"]) for row in progress(tmp_path)]
    assert rows == list(range(ITERATION, reached + 2 * ITERATION + 1, ITERATION))
    assert [int(row["time/iterations"]) for row in progress(tmp_path)] == list(range(1, len(rows) + 1))
    assert not list((tmp_path / "bundles").glob(".*.tmp"))
