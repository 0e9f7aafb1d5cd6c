"""Episodes of our humanoids, recorded with all that moves their bodies, so that the physics alone can replay them.

A step of a robot that lies on the ground costs more than one in the air, so the physics alone are a yardstick only
on the same states. A `Recording` holds what reaches the simulation (torques, and bodies put somewhere: at the start of
an episode, or a cube that is thrown); `time_physics` replays it bit for bit and says so if it did not.
"""

import ast
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_ppo_variants.envs.bullet import Body, World
from sb3_ppo_variants.envs.quiet import pybullet
from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid

SPRING, DAMPER = 3.0, 1.0
"""Gains of the `stand` gait, action per unit of scaled joint position and speed; found by trial."""

WEIGHTS = ("dense1_w", "dense1_b", "dense2_w", "dense2_b", "final_w", "final_b")
"""of OpenAI's agents of 2017"""

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Observations (..., 44) → actions (..., 17)."""
Placement = tuple[int, tuple[Any, ...]]
"""A body's index in its world, and the arguments of `Body.place`."""


class Recording(NamedTuple):
    """Steps of one environment, episode after episode."""

    actions: NDArray[np.float32]
    """(steps, 17)"""
    starts: set[int]
    """The steps before which an episode starts; 0 is one of them."""
    placements: dict[int, list[Placement]]
    """The bodies that are put somewhere before a step, by that step."""
    ends: int
    """Episodes that ended."""
    final: Any
    """The torso's pose and speed after the last step."""


def untrained_policy(seed: int) -> Policy:
    """Actions of a Gaussian of deviation 1, clipped to the box: SB3's PPO before its first update."""
    rng = np.random.default_rng(seed)
    return lambda observations: rng.normal(size=(*observations.shape[:-1], 17)).clip(-1.0, 1.0).astype(np.float32)


def standing_policy() -> Policy:
    """A spring and a damper in each joint, which hold the straight pose."""
    env = RoboschoolHumanoid(joint_range=0.0)
    straight = env.reset(seed=0)[0][8:42:2]
    env.close()
    return lambda observations: (
        SPRING * (straight - observations[..., 8:42:2]) - DAMPER * observations[..., 9:42:2]
    ).astype(np.float32)


def network_policy(file: str) -> Policy:
    """A ReLU network of three layers, from a file of Roboschool's agent zoo (.weights, .py) or an .npz of the same."""
    weights = network_weights(file)

    def policy(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        hidden = np.maximum(observations @ weights["dense1_w"] + weights["dense1_b"], 0.0)
        hidden = np.maximum(hidden @ weights["dense2_w"] + weights["dense2_b"], 0.0)
        return hidden @ weights["final_w"] + weights["final_b"]

    return policy


def network_weights(file: str) -> Mapping[str, NDArray[np.float32]]:
    """The arrays `WEIGHTS`; code in the file is read, not run."""
    if file.endswith(".npz"):
        return np.load(file, allow_pickle=False)
    weights = {}
    for statement in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign([ast.Name(name)], ast.Call(args=[numbers])) if name.startswith("weights_"):
                weights[name.removeprefix("weights_")] = np.array(ast.literal_eval(numbers), np.float32)
    missing = [name for name in WEIGHTS if name not in weights]
    if missing:
        raise ValueError(f"{file} must assign weights_{missing[0]}, as a .weights of Roboschool's agent zoo does")
    return weights


def record(env: gym.Env[Any, Any], policy: Policy, steps: int, seed: int) -> Recording:
    """Play `steps` steps of `policy` from `reset(seed=seed)` on, one episode after another."""
    task = _task_of(env)
    actions = np.zeros((steps, 17), np.float32)
    starts, ends = {0}, 0
    placements: dict[int, list[Placement]] = {}
    with _taped(task) as tape:
        observation, _ = env.reset(seed=seed)
        for step in range(steps):
            placements[step] = tape.copy()
            tape.clear()
            actions[step] = policy(observation)
            observation, _, terminated, truncated, _ = env.step(actions[step])
            final = task._world.bodies[0].read_root()
            if terminated or truncated:
                ends += 1
                starts.add(step + 1)
                observation, _ = env.reset()
    return Recording(actions, starts, {step: bodies for step, bodies in placements.items() if bodies}, ends, final)


@contextmanager
def _taped(task: RoboschoolHumanoid) -> Iterator[list[Placement]]:
    """A list to which every `Body.place` is added; `World.forget`, which moves the bodies itself, empties it."""
    tape: list[Placement] = []
    place, forget = Body.place, World.forget

    def taped_place(body: Body, *arguments: Any) -> None:
        tape.append((task._world.bodies.index(body), arguments))
        place(body, *arguments)

    def taped_forget(world: World) -> None:
        forget(world)
        tape.clear()

    with patch.object(Body, "place", taped_place), patch.object(World, "forget", taped_forget):
        yield tape


def time_physics(env: gym.Env[Any, Any], recording: Recording) -> float:
    """Seconds that `stepSimulation` alone takes on the recorded steps.

    The clock stands while torques are set, bodies placed and the world is made to forget.

    :raises RuntimeError: if the replay does not end where the recording does
    """
    return sum(_replay(env, recording))


def time_physics_in_turn(envs: list[gym.Env[Any, Any]], recordings: list[Recording]) -> float:
    """The same of several recordings of one length, each in its own world, the worlds taking turns step by step.

    They share the processor's caches, as the environments of one worker do.
    """
    replays = [_replay(env, recording) for env, recording in zip(envs, recordings, strict=True)]
    return sum(sum(seconds) for seconds in zip(*replays, strict=True))


def _replay(env: gym.Env[Any, Any], recording: Recording) -> Iterator[float]:
    task = _task_of(env)
    world, client = task._world, task.client
    for step, action in enumerate(recording.actions.astype(float).tolist()):
        if step in recording.starts:
            world.forget()
        for body, arguments in recording.placements.get(step, ()):
            world.bodies[body].place(*arguments)
        task.robot.act(action)
        started = time.perf_counter()
        pybullet.stepSimulation(client)
        yield time.perf_counter() - started
    if world.bodies[0].read_root() != recording.final:
        raise RuntimeError("the physics did not replay the recorded episodes bit for bit")


def _task_of(env: gym.Env[Any, Any]) -> RoboschoolHumanoid:
    task = env.unwrapped
    assert isinstance(task, RoboschoolHumanoid)
    return task


class PhysicsProcesses:
    """Processes that replay recordings, each its own, to time the physics alone in several at once.

    :param env_id: of our environments
    :param recordings: of each process
    """

    def __init__(self, env_id: str, recordings: list[list[Recording]]) -> None:
        context = multiprocessing.get_context("forkserver")
        self._steps = [sum(len(recording.actions) for recording in own) for own in recordings]
        self._connections: list[Connection] = []
        self._processes = []
        for own in recordings:
            connection, remote = context.Pipe()
            process = context.Process(target=_serve, args=(remote, env_id, own), daemon=True)
            process.start()
            remote.close()
            self._connections.append(connection)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv()

    def rate_at_once(self, in_turn: bool = False) -> float:
        """Steps per second of the physics alone, summed over the processes while all of them replay.

        :param in_turn: each recording in a world of its own, the worlds of a process taking turns; otherwise one
            after the other in one world.
        """
        for connection in self._connections:
            connection.send(in_turn)
        return sum(steps / connection.recv() for steps, connection in zip(self._steps, self._connections, strict=True))

    def projected_rate(self) -> float:
        """The same sum, each process replaying while the others wait."""
        total = 0.0
        for steps, connection in zip(self._steps, self._connections, strict=True):
            connection.send(False)
            total += steps / connection.recv()
        return total

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.close()
            process.join()


def _serve(remote: Connection, env_id: str, recordings: list[Recording]) -> None:
    with ExitStack() as stack:
        envs = [stack.enter_context(gym.make(env_id)) for _ in recordings]
        remote.send("ready")
        while True:
            try:
                in_turn = remote.recv()
            except EOFError:  # the parent has closed its end
                return
            if in_turn:
                remote.send(time_physics_in_turn(envs, recordings))
            else:
                remote.send(sum(time_physics(envs[0], recording) for recording in recordings))
