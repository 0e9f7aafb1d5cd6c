"""Control steps per second in one process: ours, pybullet_envs_gymnasium, and the physics alone.

    python benchmarks/env_throughput.py [--gait random stand] [--agent WEIGHTS.npz]

The three take turns in one process, and each line gives medians over the rounds, so that what slows the machine
down slows all of them. All play the same recorded actions:

- **ours** and **peer** are made by `gymnasium.make`, and their time includes the resets after a fall (the
  peer's robot falls at other times than ours, as its physics differ).
- **physics** is `stepSimulation` in our own world, replaying our own episodes bit for bit, with the clock
  stopped while torques are set and worlds are reset. A step that lies on the ground costs more than one in
  the air, so only the same states are comparable.

Gaits: `random` actions fall within a second; `stand` holds the initial pose with a spring and a damper in each
joint; `agent` (with `--agent`) plays a ReLU network of three layers, given as OpenAI's agents of 2017 are:
dense1_w, dense1_b, dense2_w, dense2_b, final_w, final_b.

The peer is for this comparison only: pip install --no-deps pybullet_envs_gymnasium
"""

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_ppo_variants.envs.quiet import pybullet
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid

OURS = "sb3_ppo_variants:RoboschoolHumanoid-v1"
PEER = "HumanoidBulletEnv-v0"
PEER_MODULE = "pybullet_envs_gymnasium"
SPRING, DAMPER = 3.0, 1.0
"""Gains of the `stand` gait, action per unit of scaled joint position and speed; found by trial."""

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Recording(NamedTuple):
    """What was played: actions of shape (steps, 17), and the seed of each episode by its first step."""

    actions: NDArray[np.float32]
    seeds: dict[int, int]


def random_policy(seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda observation: rng.uniform(-1.0, 1.0, 17).astype(np.float32)


def standing_policy() -> Policy:
    reference = _straight_pose()
    return lambda observation: (SPRING * (reference - observation[8:42:2]) - DAMPER * observation[9:42:2]).astype(
        np.float32
    )


def _straight_pose() -> NDArray[np.float32]:
    env = RoboschoolHumanoid(joint_range=0.0)
    observation, _ = env.reset(seed=0)
    env.close()
    return observation[8:42:2]


def network_policy(file: str) -> Policy:
    weights = np.load(file, allow_pickle=False)

    def policy(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        hidden = np.maximum(observation @ weights["dense1_w"] + weights["dense1_b"], 0.0)
        hidden = np.maximum(hidden @ weights["dense2_w"] + weights["dense2_b"], 0.0)
        return hidden @ weights["final_w"] + weights["final_b"]

    return policy


def record(env: gym.Env[Any, Any], policy: Policy, steps: int) -> Recording:
    """Play `steps` steps of `policy`, one episode after another."""
    actions = np.zeros((steps, 17), np.float32)
    seeds: dict[int, int] = {}
    over = True
    for step in range(steps):
        if over:
            seeds[step] = len(seeds)
            observation, _ = env.reset(seed=seeds[step])
        actions[step] = policy(observation)
        observation, _, terminated, truncated, _ = env.step(actions[step])
        over = terminated or truncated
    return Recording(actions, seeds)


def time_environment(env: gym.Env[Any, Any], recording: Recording) -> float:
    """Seconds to play the recorded actions, with a reset whenever this environment needs one."""
    env.reset(seed=0)
    started = time.perf_counter()
    over, episode = True, 0
    for action in recording.actions:
        if over:
            env.reset(seed=episode)
            episode += 1
        _, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return time.perf_counter() - started


def time_physics(env: gym.Env[Any, Any], recording: Recording) -> float:
    """Seconds that `stepSimulation` alone takes on the recorded episodes."""
    task = env.unwrapped
    assert isinstance(task, RoboschoolHumanoid)
    client = task.client
    seconds = 0.0
    for step, action in enumerate(recording.actions.astype(float).tolist()):
        if step in recording.seeds:
            task.reset(seed=recording.seeds[step])
        task.robot.act(action)
        started = time.perf_counter()
        pybullet.stepSimulation(client)
        seconds += time.perf_counter() - started
    return seconds


def make_peer() -> gym.Env[Any, Any] | None:
    if importlib.util.find_spec(PEER_MODULE) is None:
        print(f"{PEER_MODULE} is not installed, so it is left out (pip install --no-deps {PEER_MODULE}).")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(PEER_MODULE)
        return gym.make(PEER)


def compare(name: str, policy: Policy, peer: gym.Env[Any, Any] | None, steps: int, rounds: int) -> None:
    with gym.make(OURS) as ours:
        recording = record(ours, policy, steps)
        times: dict[str, list[float]] = {"physics": [], "ours": [], "peer": []}
        for _ in range(rounds):
            times["physics"].append(time_physics(ours, recording))
            times["ours"].append(time_environment(ours, recording))
            if peer is not None:
                times["peer"].append(time_environment(peer, recording))
    print(f"\n{name}: {steps} steps in {len(recording.seeds)} episodes, medians of {rounds} rounds")
    for who, seconds in times.items():
        if seconds:
            ratio = statistics.median(p / s for p, s in zip(times["physics"], seconds, strict=True))
            print(f"  {who:8s}{steps / statistics.median(seconds):8.0f} steps/s  {ratio:5.2f} of the physics alone")
    if times["peer"]:
        ratio = statistics.median(p / s for p, s in zip(times["peer"], times["ours"], strict=True))
        print(f"  ours is {ratio:.2f} × {PEER_MODULE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gait", nargs="+", choices=["random", "stand"], default=["random", "stand"])
    parser.add_argument("--agent", help="weights (.npz) of a walking agent, as a further gait")
    parser.add_argument("--steps", type=int, default=1000, help="control steps per round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    policies = {"random": lambda: random_policy(0), "stand": standing_policy}
    peer = make_peer()
    for gait in arguments.gait:
        compare(gait, policies[gait](), peer, arguments.steps, arguments.rounds)
    if arguments.agent:
        compare("agent", network_policy(arguments.agent), peer, arguments.steps, arguments.rounds)
    if peer is not None:
        peer.close()


if __name__ == "__main__":
    main()
