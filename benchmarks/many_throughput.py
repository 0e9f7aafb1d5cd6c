"""Agent-steps per second of the 33 runs that a task of Table 1 takes: trained at once, and by SB3 one after another.

    python benchmarks/many_throughput.py [--env Hopper-v5 InvertedPendulum-v5] [--timesteps 4096] [--rounds 3]

Eleven settings (Table 1: no clipping or penalty, three ε, three targets of the adaptive KL penalty, four β), three
seeds of each, one environment, Table 3's other settings.

- **at once** is `train_many` of all 33, in one process on one core.
- **SB3** is its `PPO` with the same settings as far as it has them (clipping only; the others have no peer there), its
  own defaults otherwise: `--peers` runs of them, one after another. Each of its runs takes as long as the next.
- **two processes** (`--processes 2`): the agents divided among processes that run at once, against one with all.

An agent-step is one timestep of one agent, its share of the updates included, and of the making of models and
environments, which counts the less the longer the trainings are.
With fewer `--timesteps` than Table 3's horizon of 2048, the horizon is as short: for a quick look. They take turns in
this process, after a short warm-up, and ratios are medians of the rounds' ratios, by CPU time: other programs of the
machine change what a clock shows. How processes scale can only be told by the clock; it needs idle cores. A control
says how far the machine itself scales: as many processes that step the environment alone, and share nothing.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3 import PPO

from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper, PPOFixedKLPaper, PPOUnclippedPaper, presets, train_many

BARS = {"Hopper-v5": 3.0, "InvertedPendulum-v5": 4.5}
"""How many times SB3's agent-steps per second are wanted, on one core."""
SCALING_BAR = 1.8
"""How many times those of one process are wanted of two."""
WARM_UP = 64
"""Timesteps before anything is measured."""
SEEDS = range(3)
SETTINGS: list[tuple[Any, dict[str, Any]]] = [
    (PPOUnclippedPaper, {}),
    *((PPOClipPaper, {"clip_range": clip_range}) for clip_range in (0.1, 0.2, 0.3)),
    *((PPOAdaptiveKLPaper, {"kl_target": target}) for target in (0.003, 0.01, 0.03)),
    *((PPOFixedKLPaper, {"beta": beta}) for beta in (0.3, 1.0, 3.0, 10.0)),
]
Work = Callable[[str, int, slice], int]
AGENTS = [(algorithm, settings, seed) for algorithm, settings in SETTINGS for seed in SEEDS]


def table_1(timesteps: int) -> dict[str, Any]:
    """Table 1's settings, with a horizon that a short training reaches."""
    return {**presets.TABLE_1, "n_steps": min(presets.TABLE_1["n_steps"], timesteps)}


class Times:
    """Seconds since it was made, by the clock and of the processor."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rates(self, steps: int) -> tuple[float, float]:
        """Steps per second of CPU time, and by the clock."""
        return steps / (time.process_time() - self._cpu), steps / (time.perf_counter() - self._wall)


def at_once(env: str, timesteps: int, agents: list[Any]) -> tuple[float, float]:
    """Agent-steps per second, by CPU time and by the clock."""
    times = Times()
    models = train_many(agents, env, timesteps, **table_1(timesteps))
    rates = times.rates(sum(model.num_timesteps for model in models))
    for model in models:
        model.env.close()
    return rates


def one_after_another(env: str, timesteps: int, peers: int) -> tuple[float, float]:
    """The same of SB3's PPO."""
    settings = {name: value for name, value in table_1(timesteps).items() if name != "clip_actions"}
    times, steps = Times(), 0
    for seed in range(peers):
        model = PPO("MlpPolicy", env, seed=seed, device="cpu", **settings)
        steps += model.learn(timesteps).num_timesteps
        if model.env is not None:
            model.env.close()
    return times.rates(steps)


def train(env: str, timesteps: int, share: slice) -> int:
    """Train a share of the agents.

    :return: agent-steps
    """
    agents = AGENTS[share]
    at_once(env, timesteps, agents)
    n_steps = table_1(timesteps)["n_steps"]
    return len(agents) * (-(-timesteps // n_steps) * n_steps)


def play(env: str, timesteps: int, share: slice) -> int:
    """Step that many environments one after another, at random and without any agent: a control.

    :return: agent-steps
    """
    steps = len(AGENTS[share]) * timesteps
    with gym.make(env) as alone:
        alone.reset(seed=0)
        for _ in range(steps):
            *_, terminated, truncated, _ = alone.step(alone.action_space.sample())
            if terminated or truncated:
                alone.reset()
    return steps


def work(what: Work, env: str, timesteps: int, share: slice, ready: Any, begin: Any, done: Any) -> None:
    """One of several processes."""
    th.set_num_threads(1)
    what(env, WARM_UP, share)
    ready.release()
    begin.wait()
    done.put(what(env, timesteps, share))


def in_processes(what: Work, env: str, timesteps: int, processes: int) -> float:
    """Agent-steps per second by the clock, with the agents divided among processes."""
    context = multiprocessing.get_context("spawn")
    ready, begin, done = context.Semaphore(0), context.Event(), context.SimpleQueue()
    shares = [slice(index, None, processes) for index in range(processes)]
    workers = [context.Process(target=work, args=(what, env, timesteps, share, ready, begin, done)) for share in shares]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    begin.set()
    started = time.perf_counter()
    steps = sum(done.get() for _ in workers)
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.join()
    return steps / seconds


def verdict(ratio: float, bar: float | None) -> str:
    """In words."""
    return "" if bar is None else f", at least {bar} wanted: {'holds' if ratio >= bar else 'SHORT'}"


def compare(env: str, timesteps: int, rounds: int, peers: int) -> None:
    """Measure and print one task."""
    ratios = []
    at_once(env, WARM_UP, AGENTS)
    one_after_another(env, WARM_UP, 1)
    for number in range(rounds):
        order = ["ours", "sb3"] if number % 2 else ["sb3", "ours"]
        rates = {
            who: at_once(env, timesteps, AGENTS) if who == "ours" else one_after_another(env, timesteps, peers)
            for who in order
        }
        ratios.append([ours / sb3 for ours, sb3 in zip(rates["ours"], rates["sb3"], strict=True)])
        ours, sb3 = rates["ours"][0], rates["sb3"][0]
        print(
            f"{env}, round {number + 1}: {len(AGENTS)} at once {ours:,.0f} agent-steps per second of CPU "
            f"({1e6 / ours:.0f} µs), SB3 {sb3:,.0f} ({1e6 / sb3:.0f} µs): {ratios[-1][0]:.2f} times "
            f"(by the clock {ratios[-1][1]:.2f})",
            flush=True,
        )
    ratio = statistics.median(each[0] for each in ratios)
    print(f"{env}: {ratio:.2f} times SB3's{verdict(ratio, BARS.get(env))}", flush=True)


def scale(env: str, timesteps: int, rounds: int, processes: int) -> None:
    """Measure and print how one task scales with processes, and how its environment alone does."""
    ratios, controls = [], []
    for number in range(rounds):
        counts = [1, processes] if number % 2 else [processes, 1]
        rates = {count: in_processes(train, env, timesteps, count) for count in counts}
        ratios.append(rates[processes] / rates[1])
        alone = {count: in_processes(play, env, timesteps, count) for count in counts}
        controls.append(alone[processes] / alone[1])
        print(
            f"{env}, round {number + 1}: one process {rates[1]:,.0f} agent-steps per second, {processes} "
            f"{rates[processes]:,.0f}: {ratios[-1]:.2f} times; its environment alone {controls[-1]:.2f} times",
            flush=True,
        )
    ratio, control = statistics.median(ratios), statistics.median(controls)
    judged = verdict(ratio, SCALING_BAR if processes == 2 else None)
    print(f"{env}: {processes} processes {ratio:.2f} times{judged}; its environment alone {control:.2f} times")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(BARS), help="(default: %(default)s)")
    parser.add_argument("--timesteps", type=int, default=4096, help="of each agent and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--peers", type=int, default=3, help="runs of SB3's in a round (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="2: measure the scaling instead")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    for env in arguments.env:
        if arguments.processes > 1:
            scale(env, arguments.timesteps, arguments.rounds, arguments.processes)
        else:
            compare(env, arguments.timesteps, arguments.rounds, arguments.peers)


if __name__ == "__main__":
    main()
