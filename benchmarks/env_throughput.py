"""Control steps per second of our humanoids, of the nearest tasks of pybullet_envs_gymnasium, and of the physics alone.

    python benchmarks/env_throughput.py [--env RoboschoolHumanoid-v1 ...] [--gait stand early] [--agent WEIGHTS]
    python benchmarks/env_throughput.py --memory

All take turns, and each line gives medians over the rounds, and ratios the medians of the ratios within a round, so
that what slows the machine down slows all of them. In one process:

- **ours** and **peer** are made by `gymnasium.make`, and their time includes the resets after a fall.
- **physics alone** is `stepSimulation` in our own world, replaying our own episodes bit for bit, with the clock stopped
  while torques are set and worlds are reset. A step that lies on the ground costs more than one in the air, so only
  the same states are comparable.

Vectorised, with as many workers as there are cores:

- **ours** is 32 environments under `SharedMemoryVecEnv`, and for information under SB3's `SubprocVecEnv`.
- **peer** is 2, 8 and 32 environments under `SubprocVecEnv`, a process each; the best counts.
- **physics alone** is that of the same 32 environments' episodes, shared out to as many processes as workers:
  **projected**, the sum of the rates that each process has while the others wait, and **at once**, the sum of their
  rates while all of them run, which also has what they take from one another; each replays one episode after the
  other in one world. **In turn** they go step by step through as many worlds as a worker has, which push one another
  out of the processor's caches, as the worker's do.

Ours plays recorded actions, and is checked to end as many episodes as were recorded; the peer is played by the same
policy on its own observations, because it would fall at once under actions meant for ours. The clock is stopped while
a policy decides. Gaits: `stand` holds the initial pose with a spring and a damper in each joint; `early` is a policy
before its training, which falls after 20 steps, so that resets count; `agent` (with `--agent`) plays a ReLU network of
three layers, given as `agent_score.py` takes it.

`--memory` gives the memory of 128 environments of the harder task and of their two workers instead.

The peer is for this comparison only: pip install --no-deps pybullet_envs_gymnasium
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from recording import (
    PhysicsProcesses,
    Policy,
    Recording,
    network_policy,
    record,
    standing_policy,
    time_physics,
    untrained_policy,
)
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_ppo_variants.vec_env import SharedMemoryVecEnv

PEER_MODULE = "pybullet_envs_gymnasium"
PEERS = {
    "RoboschoolHumanoid-v1": "HumanoidBulletEnv-v0",
    "RoboschoolHumanoidFlagrun-v1": "HumanoidFlagrunBulletEnv-v0",
    "RoboschoolHumanoidFlagrunHarder-v1": "HumanoidFlagrunHarderBulletEnv-v0",
}
"""The nearest task of the peer, by ours."""
N_ENVS = 32
PEER_SIZES = (2, 8, 32)
"""Environments, and so processes, of the peer's SubprocVecEnv."""
MEMORY_TASK, MEMORY_ENVS, MEMORY_WORKERS, MEMORY_STEPS, MEMORY_BAR = (
    "RoboschoolHumanoidFlagrunHarder-v1",
    128,
    2,
    200,
    8.0,
)
SEED = 0

Act = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
"""The number of the step and observations → actions."""


class Bars(NamedTuple):
    """What a ratio is to reach; None where nothing is asked."""

    physics: float | None
    """Ours over the physics alone, in one process."""
    peer: float
    """Ours over the peer, in one process."""
    vectorised_physics: float | None
    """The same of two workers, over the physics alone in two processes."""
    vectorised_peer: float
    """The same of two workers, over the peer's best SubprocVecEnv."""


LONG, EARLY = Bars(0.80, 2.3, 0.78, 3.2), Bars(None, 2.5, None, 2.5)


class Gait(NamedTuple):
    """A way to act."""

    policy: Callable[[int], Policy]
    """Made anew for every round, from a seed."""
    bars: Bars


class Played(NamedTuple):
    """A round of one contestant."""

    seconds: float
    steps: int
    """Of all environments together."""
    ends: int
    """Episodes that ended."""


class Results:
    """What was played, by contestant and round."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}
        """Steps per second of each round."""
        self._steps: dict[str, float] = {}

    def add(self, who: str, played: Played) -> None:
        self.add_rate(who, played.steps / played.seconds)
        self._steps[who] = played.steps / max(1, played.ends)

    def add_rate(self, who: str, rate: float) -> None:
        self.rates.setdefault(who, []).append(rate)

    def median(self, who: str) -> float:
        return statistics.median(self.rates[who])

    def best(self, contestants: list[str]) -> str:
        return max(contestants, key=self.median)

    def ratio(self, who: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(self.rates[who], self.rates[other], strict=True))

    def line(self, who: str) -> str:
        length = f", {self._steps[who]:4.0f} steps per episode" if who in self._steps else ""
        return f"  {who:36s}{self.median(who):8.0f} steps/s{length}"


def verdict(ratio: float, bar: float | None) -> str:
    """The ratio, and in brackets whether it reaches its bar."""
    return f"{ratio:.2f}" + ("" if bar is None else f" [{bar:.2f}: {'pass' if ratio >= bar else 'short'}]")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def our_id(env_id: str) -> str:
    """With its module, so that worker processes find it."""
    return f"sb3_ppo_variants:{env_id}"


def has_peer() -> bool:
    if importlib.util.find_spec(PEER_MODULE) is None:
        print(f"{PEER_MODULE} is not installed, so it is left out (pip install --no-deps {PEER_MODULE}).")
        return False
    return True


def make_peer(peer_id: str) -> gym.Env[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gym.make(f"{PEER_MODULE}:{peer_id}")


def make_quiet_peer(peer_id: str) -> gym.Env[Any, Any]:
    """For a worker process, whose output is dropped: PyBullet prints a line for every world of the peer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return make_peer(peer_id)


def play(env: gym.Env[Any, Any], act: Act, steps: int) -> Played:
    """Play one environment; its time includes the resets but the first."""
    observation, _ = env.reset(seed=SEED)
    seconds, ends = 0.0, 0
    for step in range(steps):
        action = act(step, observation)
        started = time.perf_counter()
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
            ends += 1
        seconds += time.perf_counter() - started
    return Played(seconds, steps, ends)


def play_vectorised(env: VecEnv, act: Act, steps: int) -> Played:
    """Play each environment for `steps` steps; the time includes the resets but the first."""
    env.seed(SEED)
    observations = env.reset()
    seconds, ends = 0.0, 0
    for step in range(steps):
        assert isinstance(observations, np.ndarray)
        actions = act(step, observations)
        started = time.perf_counter()
        observations, _, dones, _ = env.step(actions)
        seconds += time.perf_counter() - started
        ends += int(np.count_nonzero(dones))
    return Played(seconds, steps * env.num_envs, ends)


def playing(policy: Policy) -> Act:
    return lambda step, observations: policy(observations)


def as_recorded(played: Played, recordings: list[Recording]) -> Played:
    """What was played, once it is sure that it is what was recorded.

    :raises RuntimeError: if other episodes were played than were recorded
    """
    recorded = sum(recording.ends for recording in recordings)
    if played.ends != recorded:
        raise RuntimeError(f"{recorded} episodes were recorded, and {played.ends} ended when they were played again")
    return played


def compare_one_process(env_id: str, gait: Gait, peer: gym.Env[Any, Any] | None, steps: int, rounds: int) -> None:
    results = Results()
    with gym.make(our_id(env_id)) as ours:
        recording = record(ours, gait.policy(SEED), steps, SEED)
        for _ in range(rounds):
            results.add_rate("physics alone", steps / time_physics(ours, recording))
            played = play(ours, lambda step, _: recording.actions[step], steps)
            results.add("ours", as_recorded(played, [recording]))
            if peer is not None:
                results.add("peer", play(peer, playing(gait.policy(SEED)), steps))
    for who in results.rates:
        print(results.line(who))
    print(f"  ours / physics alone: {verdict(results.ratio('ours', 'physics alone'), gait.bars.physics)}")
    if peer is not None:
        print(f"  ours / peer: {verdict(results.ratio('ours', 'peer'), gait.bars.peer)}")


OURS_SHARED, OURS_SUBPROC = "ours, SharedMemoryVecEnv", "ours, SubprocVecEnv"


def peer_name(n_envs: int) -> str:
    return f"peer, SubprocVecEnv of {n_envs}"


@contextmanager
def vectorised(env_id: str, workers: int, with_peer: bool) -> Iterator[dict[str, VecEnv]]:
    """The vectorised contestants by name."""
    make_ours = partial(gym.make, our_id(env_id))
    with ExitStack() as stack:
        envs: dict[str, VecEnv] = {
            OURS_SHARED: stack.enter_context(closing(SharedMemoryVecEnv([make_ours] * N_ENVS, workers))),
            OURS_SUBPROC: stack.enter_context(closing(SubprocVecEnv([make_ours] * N_ENVS))),
        }
        for n_envs in PEER_SIZES if with_peer else ():
            makes: list[Callable[[], gym.Env]] = [partial(make_quiet_peer, PEERS[env_id])] * n_envs
            envs[peer_name(n_envs)] = stack.enter_context(closing(SubprocVecEnv(makes)))
        yield envs


def compare_vectorised(env_id: str, gait: Gait, envs: dict[str, VecEnv], workers: int, steps: int, rounds: int) -> None:
    """Measure and print the vectorised contestants of one gait.

    :param steps: of each of the 32 environments; fewer environments take as many more
    """
    with gym.make(our_id(env_id)) as env:
        recordings = [record(env, gait.policy(SEED + i), steps, SEED + i) for i in range(N_ENVS)]
    actions = np.stack([recording.actions for recording in recordings], axis=1)
    chunks = [[recordings[i] for i in chunk] for chunk in np.array_split(np.arange(N_ENVS), workers)]
    projected, at_once = f"physics alone, {workers} projected", f"physics alone, {workers} at once"
    in_turn = f"physics alone, {workers} at once, {N_ENVS // workers} worlds in turn"
    results = Results()
    with closing(PhysicsProcesses(our_id(env_id), chunks)) as physics:
        for _ in range(rounds):
            results.add_rate(projected, physics.projected_rate())
            results.add_rate(at_once, physics.rate_at_once())
            results.add_rate(in_turn, physics.rate_at_once(in_turn=True))
            for who, venv in envs.items():
                if who in (OURS_SHARED, OURS_SUBPROC):
                    played = play_vectorised(venv, lambda step, _: actions[step], steps)
                    results.add(who, as_recorded(played, recordings))
                else:
                    act = playing(gait.policy(SEED))
                    results.add(who, play_vectorised(venv, act, steps * N_ENVS // venv.num_envs))
    for who in results.rates:
        print(results.line(who))
    report_vectorised(results, gait.bars if workers == 2 else None, [projected, at_once])
    print(f"  ours / {in_turn}: {verdict(results.ratio(OURS_SHARED, in_turn), None)}")


def report_vectorised(results: Results, bars: Bars | None, physics: list[str]) -> None:
    """Print ours over the physics alone, and over the peer's best.

    :param bars: None where there are not two workers, of which the bars are
    """
    for yardstick in physics:
        ratio = results.ratio(OURS_SHARED, yardstick)
        print(f"  ours / {yardstick}: {verdict(ratio, bars and bars.vectorised_physics)}")
    peers = [who for who in results.rates if who.startswith("peer")]
    if peers:
        best = results.best(peers)
        ratio = results.ratio(OURS_SHARED, best)
        print(f"  ours / the peer's best ({best}): {verdict(ratio, bars and bars.vectorised_peer)}")


def compare(env_id: str, gaits: dict[str, Gait], with_peer: bool, arguments: argparse.Namespace) -> None:
    """Measure and print one task."""
    rounds, workers = arguments.rounds, arguments.workers
    peer = make_peer(PEERS[env_id]) if with_peer else None
    for name, gait in gaits.items():
        print(f"\n{env_id}, {name}, one process: {arguments.steps} steps, medians of {rounds} rounds", flush=True)
        compare_one_process(env_id, gait, peer, arguments.steps, rounds)
    if peer is not None:
        peer.close()
    with vectorised(env_id, workers, with_peer) as envs:
        for name, gait in gaits.items():
            print(f"\n{env_id}, {name}, vectorised: {N_ENVS} × {arguments.vectorised_steps} steps, ", end="")
            print(f"{workers} workers, medians of {rounds} rounds", flush=True)
            compare_vectorised(env_id, gait, envs, workers, arguments.vectorised_steps, rounds)


def resident_memory(pid: int) -> float:
    """GiB of a process: its proportional set size, in which what several processes share is divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no line `Pss:`")


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that they have."""
    children = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    return children + [below for child in children for below in descendants(child)]


def measure_memory(n_envs: int = MEMORY_ENVS, steps: int = MEMORY_STEPS) -> None:
    """Print the memory of environments of the harder task, with their workers and this process."""
    if not Path("/proc/self/smaps_rollup").exists():
        print("This system has no /proc/self/smaps_rollup, so the memory is not measured.")
        return
    makes: list[Callable[[], gym.Env]] = [partial(gym.make, our_id(MEMORY_TASK))] * n_envs
    with closing(SharedMemoryVecEnv(makes, MEMORY_WORKERS)) as envs:
        play_vectorised(envs, playing(untrained_policy(SEED)), steps)
        own = resident_memory(os.getpid())
        others = [resident_memory(pid) for pid in descendants(os.getpid())]
    total = own + sum(others)
    print(f"{MEMORY_TASK}: {n_envs} environments, {MEMORY_WORKERS} workers, after {steps} steps each")
    print(f"  this process {own:.2f} GiB, its workers and their server " + ", ".join(f"{pss:.2f}" for pss in others))
    print(f"  all: {total:.2f} GiB [{MEMORY_BAR:.2f}: {'pass' if total <= MEMORY_BAR else 'over'}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", choices=list(PEERS), default=list(PEERS)[:2])
    parser.add_argument("--gait", nargs="+", choices=["stand", "early"], default=["stand", "early"])
    parser.add_argument("--agent", help="weights of a walking agent, as agent_score.py takes them, as a further gait")
    parser.add_argument("--steps", type=int, default=1000, help="control steps per round, in one process")
    parser.add_argument("--vectorised-steps", type=int, default=100, help="the same of each of the 32 environments")
    parser.add_argument("--workers", type=int, default=cores(), help="default: one per core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure the memory instead")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory()
        return
    known = {"stand": Gait(lambda _: standing_policy(), LONG), "early": Gait(untrained_policy, EARLY)}
    gaits = {name: known[name] for name in arguments.gait}
    if arguments.agent:
        agent = network_policy(arguments.agent)
        gaits["agent"] = Gait(lambda _: agent, LONG)
    # Else each of some 80 processes would load SB3 and torch by itself, which takes minutes.
    multiprocessing.set_forkserver_preload(["stable_baselines3", PEER_MODULE])
    with_peer = has_peer()
    for env_id in arguments.env:
        compare(env_id, gaits, with_peer, arguments)


if __name__ == "__main__":
    main()
