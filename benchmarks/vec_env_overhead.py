"""What a vectorised step costs beyond the environments, over DummyVecEnv, SubprocVecEnv, SharedMemoryVecEnv and Ray.

    python benchmarks/vec_env_overhead.py [--n-envs 8 32] [--workers 2]

The environment does nothing and observes as many numbers as the humanoid, so that what is timed is the carrying of
actions, observations, rewards and infos. SubprocVecEnv has a process per environment; the others have `--workers`
(DummyVecEnv none). All take turns in one run, and the figures are medians over the rounds, so that what slows the
machine down slows all of them. `one step costs` is for all environments together; `× Subproc` is the median of the
rounds' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_ppo_variants.vec_env import RayVecEnv, SharedMemoryVecEnv


class TrivialEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observes zeros, 44 of them, and takes 17 numbers, for ever."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (44,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (17,), np.float32)
        self.observation = np.zeros(44, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation, 0.0, False, False, {}


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
        print(f"  {name:20s}{cost:13.0f} µs{cost / n_envs:15.1f} µs{ratio:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n-envs", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="vectorised steps per round")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for n_envs in arguments.n_envs:
        compare(n_envs, arguments.workers, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
