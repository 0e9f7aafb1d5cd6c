"""Timesteps per second of a whole training, Table 4's settings: ours, and SB3's PPO on pybullet_envs_gymnasium.

    python benchmarks/train_throughput.py [--env RoboschoolHumanoid-v1 ...] [--updates 1] [--rounds 2]

An iteration is a rollout of 16,384 timesteps and an update of 15 epochs on it in minibatches of 4096, networks of
2 × 64 tanh.

- **ours** is `PPOClipPaper` with `presets.ROBOSCHOOL_LOCOMOTION`, its 32 actors under `SharedMemoryVecEnv` with as many
  workers as there are cores. Every task takes this preset: flagrun's differs by 128 actors and the length of the run.
- **ours, environments alone** is what such a `SharedMemoryVecEnv` gives when it is played the actions of the rollout
  that ours has just collected, without a policy or SB3's Monitor.
- **SB3** is its `PPO` with the same settings as far as it has them (not the adapted stepsize; the deviation is learned,
  from Table 4's first; its own defaults otherwise), under `SubprocVecEnv`, where an actor is a process. It gets the
  best of 2, 8 and 32 actors: as many as let it collect its rollouts fastest, which is measured here first, on rollouts
  of a quarter of the length. Its horizon makes the same 16,384 timesteps.

Ours keeps torch to one thread while workers step, and takes all that it is given for the update. SB3 keeps one number
of threads throughout; here it has the best of both: one thread in the rollout, as ours, and for the update, which both
run with one thread and with all (`--threads`), what is faster in the end. An update that follows another on the same
rollout finds the buffer flattened, so the order changes from round to round. All are faster on idle cores; where other
programs use the cores too, threads wait for one another and can be many times slower than one: `--threads 1` then
gives the same result in a fraction of the time.

They take turns, and each line gives medians over the rounds, and ratios the medians of the ratios within a round; the
first iteration of each, which warms it up, is not among them. Both train from the beginning, so their robots fall
after some 20 steps and resets count.

The peer is for this comparison only: pip install --no-deps pybullet_envs_gymnasium
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from env_throughput import (
    PEER_MODULE,
    PEER_SIZES,
    PEERS,
    SEED,
    Played,
    Results,
    cores,
    has_peer,
    make_quiet_peer,
    our_id,
    play_vectorised,
    verdict,
)
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_ppo_variants import PPOClipPaper, presets
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv

PRESET = presets.ROBOSCHOOL_LOCOMOTION
N_ENVS: int = PRESET.run["n_envs"]
ALONE = "ours, environments alone"
ALONE_BAR, PEER_BAR = 0.65, 2.5
"""What ours is to reach, end to end, of its environments alone and over SB3."""
CHOICE_ROUNDS = 2
"""In which the best number of SB3's actors is found."""


class Sizes(NamedTuple):
    """How much is measured."""

    horizon: int
    """Timesteps of each of the 32 actors in a rollout."""
    batch_size: int
    updates: int
    """Iterations in a round."""
    rounds: int
    workers: int
    threads: list[int]
    """Numbers of torch threads in the update; each is measured."""


class Iterations(NamedTuple):
    """Seconds of a round."""

    rollout: float
    update: float
    steps: int


def monitored(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """An environment as SB3's `make_vec_env` makes it."""
    return Monitor(make())


class Training:
    """A model with its environments, ready to collect and to train."""

    def __init__(self, algorithm: Callable[..., Any], env: VecEnv, **settings: Any) -> None:
        self.model = algorithm(PRESET.run["policy"], env, **settings, seed=SEED, device="cpu")
        # As in the midst of `learn`, at the beginning of the schedules.
        _, self._callback = self.model._setup_learn(PRESET.run["n_timesteps"])

    def collect(self) -> float:
        """Seconds of a rollout."""
        model = self.model
        started = time.perf_counter()
        model.collect_rollouts(model.env, self._callback, model.rollout_buffer, model.n_steps)
        return time.perf_counter() - started

    def update(self) -> float:
        """Seconds of an update."""
        started = time.perf_counter()
        self.model.train()
        return time.perf_counter() - started


def iterate(training: Training, sizes: Sizes, order: list[int]) -> tuple[dict[int, Iterations], NDArray[np.float32]]:
    """Iterations with one thread in the rollout.

    :param order: the numbers of threads in the update, as they take turns
    :return: what they take by the number of threads in the update, which is run with each; the last rollout's actions,
        (horizon, actors, 17)
    """
    rollout, seconds = 0.0, dict.fromkeys(order, 0.0)
    for _ in range(sizes.updates):
        th.set_num_threads(1)
        rollout += training.collect()
        actions = training.model.rollout_buffer.actions.copy()  # an update may put them into another order
        for threads in seconds:
            th.set_num_threads(threads)
            seconds[threads] += training.update()
    steps = sizes.updates * training.model.n_steps * training.model.n_envs
    return {threads: Iterations(rollout, update, steps) for threads, update in seconds.items()}, actions


def best_peer_size(env_id: str, sizes: Sizes) -> int:
    """The number of actors with which SB3 collects its rollouts fastest; prints the rates.

    The policy is called once for all actors, so the fastest environments by themselves are not always the best.
    """
    short = sizes._replace(horizon=max(1, sizes.horizon // 4))
    results = Results()
    th.set_num_threads(1)
    with ExitStack() as stack:
        trainings = {
            f"SB3's rollout, {n_envs} actors": sb3_training(
                stack.enter_context(closing(peer_env(env_id, n_envs))), short
            )
            for n_envs in PEER_SIZES
        }
        for training in trainings.values():
            training.collect()  # warms up
        for _ in range(CHOICE_ROUNDS):
            for who, training in trainings.items():
                results.add_rate(who, short.horizon * N_ENVS / training.collect())
    for who in trainings:
        print(results.line(who), flush=True)
    return trainings[results.best(list(trainings))].model.n_envs


def peer_env(env_id: str, n_envs: int) -> VecEnv:
    return SubprocVecEnv([partial(monitored, partial(make_quiet_peer, PEERS[env_id]))] * n_envs)


def our_training(env: VecEnv, sizes: Sizes) -> Training:
    return Training(PPOClipPaper, env, **{**PRESET, "n_steps": sizes.horizon, "batch_size": sizes.batch_size})


def sb3_training(env: VecEnv, sizes: Sizes) -> Training:
    return Training(
        PPO,
        env,
        **{name: PRESET[name] for name in ("learning_rate", "n_epochs", "gamma", "gae_lambda")},
        n_steps=sizes.horizon * N_ENVS // env.num_envs,
        batch_size=sizes.batch_size,
        policy_kwargs={"log_std_init": PRESET["log_std_schedule"](1.0)},
    )


class Rounds(NamedTuple):
    """What was measured of one task, a value per round; the first is the warm-up's."""

    ours: list[dict[int, Iterations]]
    """By the number of threads in the update."""
    alone: list[Played]
    sb3: list[dict[int, Iterations]]
    """As ours."""


def take_turns(ours: Training, alone: VecEnv, sb3: Training | None, sizes: Sizes) -> Rounds:
    rounds = Rounds([], [], [])
    for number in range(1 + sizes.rounds):
        started = time.perf_counter()
        # One update warms up; with all threads it would wait for other programs as long as a round does.
        order = sizes.threads[:: -1 if number % 2 else 1] if number else sizes.threads[:1]
        iterations, actions = iterate(ours, sizes, order)
        rounds.ours.append(iterations)
        rounds.alone.append(play_vectorised(alone, partial(recorded, actions), len(actions)))
        if sb3 is not None:
            rounds.sb3.append(iterate(sb3, sizes, order)[0])
        print(f"  round {number or 'to warm up'}: {time.perf_counter() - started:.0f} s", flush=True)
    return rounds


def recorded(actions: NDArray[np.float32], step: int, _: NDArray[np.float32]) -> NDArray[np.float32]:
    return actions[step]


def describe(results: Results, who: str, rounds: list[dict[int, Iterations]]) -> str:
    """Add the rates to the results, and print them with the split of the time.

    :return: the better number of threads in the update, as a name in the results
    """
    names = []
    for threads in sorted(rounds[1]):
        name = f"{who}, update on {threads} thread{'s' * (threads > 1)}"
        names.append(name)
        parts = [one[threads] for one in rounds[1:]]
        for part in parts:
            results.add_rate(name, part.steps / (part.rollout + part.update))
        share = statistics.median(part.update / (part.rollout + part.update) for part in parts)
        print(f"{results.line(name)}, rollout {1 - share:.0%}, update {share:.0%}")
    return results.best(names)


def report(rounds: Rounds) -> None:
    results = Results()
    for played in rounds.alone[1:]:
        results.add(ALONE, played)
    print(results.line(ALONE))
    ours = describe(results, "ours", rounds.ours)
    print(f"  {ours} / its environments alone: {verdict(results.ratio(ours, ALONE), ALONE_BAR)}")
    if rounds.sb3:
        sb3 = describe(results, "SB3", rounds.sb3)
        print(f"  {ours} / {sb3}: {verdict(results.ratio(ours, sb3), PEER_BAR)}")


def compare(env_id: str, with_peer: bool, sizes: Sizes) -> None:
    """Measure and print one task."""
    print(f"\n{env_id}: {N_ENVS} actors, {sizes.workers} workers, ", end="")
    print(f"medians of {sizes.rounds} rounds of {sizes.updates} iterations", flush=True)
    make = partial(gym.make, our_id(env_id))
    with ExitStack() as stack:
        sb3 = None
        if with_peer:
            n_envs = best_peer_size(env_id, sizes)
            sb3 = sb3_training(stack.enter_context(closing(peer_env(env_id, n_envs))), sizes)
        alone = stack.enter_context(closing(SharedMemoryVecEnv([make] * N_ENVS, sizes.workers)))
        env = stack.enter_context(closing(SharedMemoryVecEnv([partial(monitored, make)] * N_ENVS, sizes.workers)))
        report(take_turns(our_training(env, sizes), alone, sb3, sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", choices=list(PEERS), default=list(PEERS)[:1])
    parser.add_argument("--updates", type=int, default=1, help="iterations per round")
    parser.add_argument("--rounds", type=int, default=2, help="an even number gives each --threads the same turns")
    parser.add_argument("--workers", type=int, default=cores(), help="default: one per core")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores()}), help="in the update")
    parser.add_argument("--horizon", type=int, default=PRESET["n_steps"], help="to try the script; default: Table 4's")
    parser.add_argument("--batch-size", type=int, default=PRESET["batch_size"], help="likewise")
    arguments = parser.parse_args()
    sizes = Sizes(
        horizon=arguments.horizon,
        batch_size=arguments.batch_size,
        updates=arguments.updates,
        rounds=arguments.rounds,
        workers=arguments.workers,
        threads=arguments.threads,
    )
    multiprocessing.set_forkserver_preload(["stable_baselines3", PEER_MODULE])  # see env_throughput.py
    with_peer = has_peer()
    for env_id in arguments.env:
        compare(env_id, with_peer, sizes)


if __name__ == "__main__":
    main()
