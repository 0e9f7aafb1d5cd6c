"""What a vectorised step costs beyond the environments, over DummyVecEnv, SubprocVecEnv, SharedMemoryVecEnv and Ray.

    python benchmarks/vec_env_overhead.py [--n-envs 8 32] [--workers 2]
    python benchmarks/vec_env_overhead.py --memory

The environment does nothing, observes as many numbers as the humanoid and tells as many terms of its reward, so that
what is timed is the carrying of actions, observations, rewards and infos. SubprocVecEnv has a process per environment;
the others have `--workers` (DummyVecEnv none). All take turns in one run, and the figures are medians over the rounds,
so that what slows the machine down slows all of them. `one step costs` is for all environments together; `× Subproc` is
the median of the rounds' ratios.

`--memory` gives instead the memory of a worker that has one humanoid, and of one that has nine: its proportional set
size, in which what several processes share is divided among them. An actor of Ray imports what its environments need,
a worker of SharedMemoryVecEnv also what the program imports at its top: here SB3, and with it torch.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from env_throughput import SEED, play_vectorised, playing, resident_memory
from recording import untrained_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid
from sb3_ppo_variants.vec_env import RayVecEnv, SharedMemoryVecEnv

REWARD_TERMS = RoboschoolHumanoid.REWARD_TERMS
MEMORY_TASK = "sb3_ppo_variants:RoboschoolHumanoid-v1"
MEMORY_SIZES = (1, 9)
"""Humanoids in a worker."""
MEMORY_STEPS = 200


class TrivialEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observes zeros, 44 of them, takes 17 numbers and tells the humanoid's terms of the reward, for ever."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (44,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (17,), np.float32)
        self.observation = np.zeros(44, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation, 0.0, False, False, dict.fromkeys(REWARD_TERMS, 0.0)


class Located(gym.Wrapper):
    """Knows the process that it is in."""

    def process(self) -> int:
        return os.getpid()


def located_humanoid() -> gym.Env[Any, Any]:
    return Located(gym.make(MEMORY_TASK))


def seconds_per_step(env: VecEnv, steps: int) -> float:
    actions = np.zeros((env.num_envs, 17), np.float32)
    started = time.perf_counter()
    for _ in range(steps):
        env.step(actions)
    return (time.perf_counter() - started) / steps


def compare(n_envs: int, workers: int, steps: int, rounds: int) -> None:
    fns: list[Callable[[], gym.Env]] = [TrivialEnv] * n_envs
    makers: dict[str, Callable[[], VecEnv]] = {
        "DummyVecEnv": partial(DummyVecEnv, fns),
        "SubprocVecEnv": partial(SubprocVecEnv, fns),
        "SharedMemoryVecEnv": partial(SharedMemoryVecEnv, fns, workers),
        "RayVecEnv": partial(RayVecEnv, fns, workers),
    }
    envs = {name: make() for name, make in makers.items()}
    for env in envs.values():
        env.reset()
        seconds_per_step(env, steps)  # warms up
    times: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(rounds):
        for name, env in envs.items():
            times[name].append(seconds_per_step(env, steps))
    for env in envs.values():
        env.close()
    print(f"\n{n_envs} environments, {workers} workers, {rounds} rounds of {steps} steps each")
    print(f"  {'':20s}{'one step costs':>16s}{'per environment':>18s}{'× Subproc':>12s}")
    for name, seconds in times.items():
        cost = 1e6 * statistics.median(seconds)
        ratio = statistics.median(s / t for s, t in zip(seconds, times["SubprocVecEnv"], strict=True))
        print(f"  {name:20s}{cost:13.0f} µs{cost / n_envs:15.1f} µs{ratio:12.2f}", flush=True)


def memory_per_worker(env: VecEnv) -> float:
    """MB of a worker, the mean over the workers, once the environments have fallen and been reset a few times."""
    play_vectorised(env, playing(untrained_policy(SEED)), MEMORY_STEPS)
    processes = set(env.env_method("process"))
    return statistics.mean(1e-6 * 2**30 * resident_memory(process) for process in processes)


def measure_memory(workers: int) -> None:
    """Print the memory of workers with humanoids, over Ray and over shared memory."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("This system has no /proc/self/smaps_rollup, so the memory is not measured.")
        return
    few, many = MEMORY_SIZES
    print(f"{MEMORY_TASK}, {workers} workers, after {MEMORY_STEPS} steps of each environment", flush=True)
    for vec_env in (RayVecEnv, SharedMemoryVecEnv):
        megabytes = []
        for size in MEMORY_SIZES:
            with closing(vec_env([located_humanoid] * (size * workers), workers)) as env:
                megabytes.append(memory_per_worker(env))
        each = (megabytes[1] - megabytes[0]) / (many - few)
        print(
            f"  {vec_env.__name__:20s}a worker with {few}: {megabytes[0]:.0f} MB, with {many}: {megabytes[1]:.0f} MB, ",
            end="",
        )
        print(f"so {each:.0f} MB per environment and {megabytes[0] - few * each:.0f} MB per worker", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n-envs", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="vectorised steps per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="measure the memory instead")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.workers)
        return
    for n_envs in arguments.n_envs:
        compare(n_envs, arguments.workers, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
