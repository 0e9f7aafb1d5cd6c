"""Milliseconds per gradient step and microseconds per environment step: ours, SB3's PPO, and SBX's (JAX).

    python benchmarks/update_throughput.py [--shapes table_3 table_4] [--threads 1 2] [--repetitions 5]

- **update**: the whole of `model.train()`, divided by its K · T · N / M gradient steps. What is done once per update is
  so spread over as many steps as in the paper.
- **rollout**: `collect_rollouts` with one environment, less that environment's own step, per step: the policy, SB3's
  Monitor and DummyVecEnv, the buffer. Each update is measured on the rollout collected just before it.

Every contestant runs with its own defaults apart from the shape: all have networks of 2 × 64 tanh, SB3 and SBX clip
gradients and ours does not, ours logs the exact KL after the update. They take turns in one process, and each line
gives medians over the rounds, so that what slows the machine down slows all of them; the first update, which compiles
what is to be compiled, is not among them. Each number of threads has a process of its own, bound to as many cores.

SBX is for this comparison only: pip install sbx-rl
"""

import argparse
import importlib
import importlib.util
import inspect
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import sb3_ppo_variants
from sb3_ppo_variants import PPOClipPaper

KL_VARIANTS = ("PPOAdaptiveKLPaper", "PPOFixedKLPaper")
SB3, SBX = "SB3 PPO", "SBX PPO"
EPISODE_STEPS = 1000


class Shape(NamedTuple):
    """Sizes of an update, by the names of the constructor's arguments; `n_envs` is the paper's N."""

    n_steps: int
    n_envs: int
    batch_size: int
    n_epochs: int

    @property
    def gradient_steps(self) -> int:
        return self.n_epochs * self.n_steps * self.n_envs // self.batch_size


SHAPES = {"table_3": Shape(2048, 1, 64, 10), "table_4": Shape(512, 32, 4096, 15)}


class RandomEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Random observations (44,) and rewards of the humanoid's shape, drawn beforehand: a step costs next to nothing."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (44,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (17,), np.float32)
        rng = np.random.default_rng(0)
        self._observations = rng.standard_normal((EPISODE_STEPS + 1, 44), np.float32)
        self._rewards = rng.standard_normal(EPISODE_STEPS + 1).tolist()
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._observations[0], {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._observations[self._step], self._rewards[self._step], self._step == EPISODE_STEPS, False, {}


def contestants() -> dict[str, Callable[..., Any]]:
    """Constructors by the name to print; a note says what is left out."""
    entries: dict[str, Callable[..., Any]] = {"PPOClipPaper": PPOClipPaper}
    if "compile" in inspect.signature(PPOClipPaper).parameters:
        entries["PPOClipPaper, compile=True"] = partial(PPOClipPaper, compile=True)
    else:
        print("PPOClipPaper has no argument `compile`, so that row is left out.")
    known = sb3_ppo_variants.ALGORITHMS.values()
    entries.update({name: getattr(sb3_ppo_variants, name) for name in KL_VARIANTS if name in known})
    entries[SB3] = PPO
    if importlib.util.find_spec("sbx"):
        entries[SBX] = importlib.import_module("sbx").PPO
    else:
        print("sbx is not installed, so it is left out (pip install sbx-rl).")
    return entries


class Contestant:
    """A model with its environments, ready to collect and to train."""

    def __init__(self, algorithm: Callable[..., Any], shape: Shape) -> None:
        env = make_vec_env(RandomEnv, shape.n_envs)
        sizes = {name: value for name, value in shape._asdict().items() if name != "n_envs"}
        self.model = algorithm("MlpPolicy", env, **sizes, seed=0, device="cpu")
        _, self._callback = self.model._setup_learn(10**9)
        self.rollouts: list[float] = []
        self.updates: list[float] = []
        """Seconds, a value per round; the first is the warm-up's."""

    def run(self) -> None:
        """One iteration of `learn()`: a rollout and an update."""
        model = self.model
        started = time.perf_counter()
        model.collect_rollouts(model.env, self._callback, model.rollout_buffer, model.n_steps)
        self.rollouts.append(time.perf_counter() - started)
        started = time.perf_counter()
        model.train()
        self._wait()
        self.updates.append(time.perf_counter() - started)

    def _wait(self) -> None:
        """JAX returns before it has computed: wait for the weights."""
        if hasattr(self.model.policy, "actor_state"):
            policy = self.model.policy
            importlib.import_module("jax").block_until_ready((policy.actor_state.params, policy.vf_state.params))


def environment_step() -> float:
    """Seconds that a step of the environment itself takes."""
    env, action = RandomEnv(), np.zeros(17, np.float32)
    env.reset()
    started = time.perf_counter()
    for _ in range(20):
        env.reset()
        for _ in range(EPISODE_STEPS):
            env.step(action)
    return (time.perf_counter() - started) / (20 * EPISODE_STEPS)


def report(quantity: str, unit: str, times: dict[str, list[float]], warm_up: dict[str, float]) -> None:
    """Print a table: medians of `times`, and of their ratios within a round to the two peers.

    :param times: by contestant, a value per round, in the unit
    :param warm_up: by contestant, s of the first time; left out where empty
    """
    peers = [peer for peer in (SB3, SBX) if peer in times]
    print(f"  {quantity:28s}{unit:>9s}" + "".join(f"   / {peer}" for peer in peers) + "   the first" * bool(warm_up))
    for name, values in times.items():
        ratios = [statistics.median(a / b for a, b in zip(values, times[peer], strict=True)) for peer in peers]
        line = f"  {name:28s}{statistics.median(values):9.3f}" + "".join(f"{ratio:12.2f}" for ratio in ratios)
        print(line + (f"{warm_up[name]:10.2f} s" if warm_up else ""))


def compare(name: str, repetitions: int) -> None:
    """Measure and print one shape in this process."""
    shape = SHAPES[name]
    threads = th.get_num_threads()
    print(f"\n{name}: T={shape.n_steps}, N={shape.n_envs}, M={shape.batch_size}, K={shape.n_epochs}; ", end="")
    print(f"threads: {threads}; medians of {repetitions} rounds")
    runs = {who: Contestant(algorithm, shape) for who, algorithm in contestants().items()}
    for _ in range(1 + repetitions):
        for run in runs.values():
            run.run()
    steps = shape.gradient_steps
    updates = {who: [1e3 * seconds / steps for seconds in run.updates[1:]] for who, run in runs.items()}
    report("update, per gradient step", "ms", updates, {who: run.updates[0] for who, run in runs.items()})
    if shape.n_envs == 1:
        own = environment_step()
        rollouts = {who: [1e6 * (s / shape.n_steps - own) for s in run.rollouts[1:]] for who, run in runs.items()}
        report(f"rollout, per step (less {1e6 * own:.1f})", "µs", rollouts, {})


def run_with(threads: int, arguments: argparse.Namespace) -> None:
    """Measure in a process of its own, bound to as many cores as threads: JAX takes its number of threads from them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        print(f"\nThere are {len(cores)} cores, so {threads} threads are left out.")
        return
    command = [sys.executable, __file__, "--in-this-process", "--threads", str(threads)]
    command += ["--repetitions", str(arguments.repetitions), "--shapes", *arguments.shapes]
    settings = {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    os.sched_setaffinity(0, cores[:threads])  # the child inherits it, and has it before it loads torch and JAX
    try:
        with tempfile.TemporaryDirectory() as cache:  # else torch finds on the disk what an earlier run compiled
            settings["TORCHINDUCTOR_CACHE_DIR"] = cache
            subprocess.run(command, env={**os.environ, **settings}, check=True)
    finally:
        os.sched_setaffinity(0, cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.in_this_process:
        for threads in arguments.threads:
            run_with(threads, arguments)
        return
    th.set_num_threads(arguments.threads[0])
    for name in arguments.shapes:
        compare(name, arguments.repetitions)


if __name__ == "__main__":
    main()
