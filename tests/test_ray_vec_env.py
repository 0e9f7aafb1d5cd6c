"""``RayVecEnv``: what SB3's ``DummyVecEnv`` gives, from Ray actors; and what happens when actors are lost.

The tests that start Ray are slow ones: Ray alone takes seconds to start.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

ray = pytest.importorskip("ray")  # before what needs it
# ruff: noqa: E402

from ray.cluster_utils import Cluster

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.vec_env import ActorLostWarning, RayVecEnv
from tests import vec_env_cases as cases
from tests.vec_env_cases import (
    ACTIONS,
    OBSERVATIONS,
    assert_same,
    dying,
    functions,
    is_running,
    steps_of,
    trajectory,
)

HEAD_CPUS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with one node, to which this process is connected; tests add further nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False})
        ray.init(started.address, log_to_driver=False)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Callable[[], Any]]:
    """Adds a node of three CPUs to the cluster, for the time of the test."""
    nodes: list[Any] = []

    def add() -> Any:
        nodes.append(cluster.add_node(num_cpus=3))
        return nodes[-1]

    yield add
    for node in cluster.worker_nodes & set(nodes):
        cluster.remove_node(node)
    cluster.wait_for_nodes()  # until Ray has noticed, which the next test may depend on


def end_node(cluster: Any, node: Any, env: RayVecEnv) -> None:
    """End a node as its machine's failure would: its actors with it, which else outlive it by seconds."""
    on_node = [pid for pid, actor in zip(processes(env), env._chunks, strict=True) if node.node_id in actor.place]
    cluster.remove_node(node, allow_graceful=False)
    for pid in on_node:
        os.kill(pid, signal.SIGKILL)


def on_ray(env_fns: list[Callable[[], gym.Env]], n_actors: int = 2, **kwargs: Any) -> RayVecEnv:
    return RayVecEnv(env_fns, n_actors, **kwargs)


def processes(env: RayVecEnv) -> list[int]:
    return [int(re.findall(r"process (\d+)", actor.place)[0]) for actor in env._chunks]


def kill_actor(env: RayVecEnv, number: int) -> None:
    """Kill an actor, and see to it that it is gone."""
    worker = processes(env)[number]
    ray.kill(env._chunks[number]._handle)
    wait_for_the_end_of([worker])


# ------------------------------------------------------------------ without Ray running


def test_the_worst_arguments_are_named_before_ray_is_started() -> None:
    fns = functions("box", "box", 2)
    with pytest.raises(ValueError, match="env_fns must hold at least one"):
        RayVecEnv([])
    for n_actors in (0, 3, 1.5):
        with pytest.raises(ValueError, match="n_actors must be an integer from 1 to the number of environments, 2"):
            RayVecEnv(fns, n_actors)  # type: ignore[arg-type]
    for num_cpus in (-1, 1.5, np.inf, "1"):
        with pytest.raises(ValueError, match="num_cpus must be a number from 0 to 1 or a larger integer"):
            RayVecEnv(fns, num_cpus=num_cpus)  # type: ignore[arg-type]
    for max_restarts in (-1, 0.5):
        with pytest.raises(ValueError, match="max_restarts must be an integer >= 0"):
            RayVecEnv(fns, max_restarts=max_restarts)  # type: ignore[arg-type]
    for start_timeout in (0, np.inf):
        with pytest.raises(ValueError, match="start_timeout must be a finite number of seconds > 0"):
            RayVecEnv(fns, start_timeout=start_timeout)
    assert not ray.is_initialized()


@pytest.mark.parametrize("source", ["address", "RAY_ADDRESS"])
def test_a_ray_client_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = "ray://192.0.2.1:10001"
    monkeypatch.setenv("RAY_ADDRESS", client)
    address = client if source == "address" else None
    with pytest.raises(ValueError, match=f"{source} must not be that of a Ray Client; got '{client}'"):
        RayVecEnv(functions("box", "box", 2), address=address)
    assert not ray.is_initialized()


def test_actors_are_ended_and_the_connection_left_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        alive = True
        users = 1

        def leave(self) -> None:
            self.users -= 1

    env = RayVecEnv.__new__(RayVecEnv)
    connection: Any = Broken()
    env._connection = connection
    broken: Any = [object()]  # no actor
    env._chunks = broken
    with pytest.raises(AttributeError):
        env.close()
    assert connection.users == 0
    env.close()


@pytest.mark.slow
def test_without_ray_the_extra_is_named_and_nothing_else_needs_it() -> None:
    code = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from sb3_ppo_variants import PPOClipPaper
PPOClipPaper("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8)
from sb3_ppo_variants.vec_env import *
print(SharedMemoryVecEnv.__name__, ActorLostWarning.__name__)
from sb3_ppo_variants.vec_env import RayVecEnv
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout == "SharedMemoryVecEnv ActorLostWarning\n"
    assert 'ImportError: RayVecEnv needs the [ray] extra: pip install "sb3-ppo-variants[ray]"' in ended.stderr


# ------------------------------------------------------------------ what DummyVecEnv gives


@pytest.mark.slow
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_equals_dummy_vec_env_for_every_observation_space(cluster: Any, observations: str) -> None:
    fns = functions(observations, "box", 5)
    cases.check_it_equals_dummy_vec_env(on_ray(fns), fns)


@pytest.mark.slow
@pytest.mark.parametrize("actions", ACTIONS)
def test_equals_dummy_vec_env_for_every_action_space(cluster: Any, actions: str) -> None:
    fns = functions("box", actions, 3)
    cases.check_it_equals_dummy_vec_env(on_ray(fns), fns)


@pytest.mark.slow
def test_training_gives_what_dummy_vec_env_gives(cluster: Any) -> None:
    cases.check_that_training_equals_dummy_vec_envs(RayVecEnv, n_actors=2)


@pytest.mark.slow
def test_an_actor_with_plain_environments_imports_neither_torch_nor_sb3(cluster: Any) -> None:
    env = on_ray([partial(gym.make, "CartPole-v1")], 1)
    cases.check_that_a_worker_with_plain_environments_imports_neither_torch_nor_sb3(env)


@pytest.mark.slow
def test_attributes_methods_wrappers_and_frames(cluster: Any) -> None:
    cases.check_attributes_methods_wrappers_and_frames(on_ray(functions("box", "discrete", 5)))


@pytest.mark.slow
def test_wrong_numbers_of_actions_are_refused(cluster: Any) -> None:
    cases.check_that_wrong_numbers_of_actions_are_refused(on_ray(functions("box", "box", 4)), np.float32)


@pytest.mark.slow
def test_what_cannot_be_pickled_is_told(cluster: Any) -> None:
    cases.check_that_what_cannot_be_pickled_is_told(on_ray(functions("box", "box", 4)))


@pytest.mark.slow
def test_a_closed_one_says_so(cluster: Any) -> None:
    env = on_ray(functions("box", "box", 2))
    env.close()
    cases.check_that_nothing_can_be_asked(env, np.zeros((2, 2), np.float32))
    env.close()  # again is no harm


@pytest.mark.slow
def test_as_many_actors_by_default_as_fit_on_the_nodes(cluster: Any, add_node: Callable[[], Any]) -> None:
    add_node()
    add_node()
    env = RayVecEnv(functions("box", "box", 6), num_cpus=2)  # 2 on the head node's 4 CPUs, 1 on 3 CPUs each
    assert len(env._chunks) == 4
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize(("n_actors", "num_cpus"), [(1, 1), (3, 1), (5, 0.5), (None, 1), (None, 3), (None, 0)])
def test_the_number_of_actors_changes_nothing(cluster: Any, n_actors: int | None, num_cpus: float) -> None:
    env = RayVecEnv(functions("dict", "discrete", 5), n_actors, num_cpus=num_cpus)
    by_default = {1: HEAD_CPUS, 3: 1, 0: HEAD_CPUS}  # of each actor's CPUs
    assert len(env._chunks) == (n_actors or by_default[int(num_cpus)])
    cases.check_it_equals_dummy_vec_env(env, functions("dict", "discrete", 5))


@pytest.mark.slow
def test_torch_keeps_to_one_thread_while_actors_step(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch as th

    env = on_ray([partial(gym.make, "CartPole-v1")], 1)
    model = PPOClipPaper("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    chosen: list[int] = []
    monkeypatch.setattr(th, "get_num_threads", lambda: 7)
    monkeypatch.setattr(th, "set_num_threads", chosen.append)
    model.learn(8)
    env.close()
    assert chosen == [1, 7]


# ------------------------------------------------------------------ environments that raise


@pytest.mark.slow
def test_an_environment_that_raises_ends_everything_and_is_named(cluster: Any) -> None:
    env = on_ray(functions("box", "box", 5, troubled=3))
    workers = processes(env)
    cases.check_that_an_environment_that_raises_ends_everything_and_is_named(env)
    assert env.lost_actors == 0
    wait_for_the_end_of(workers)


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_is_named(cluster: Any) -> None:
    cases.check_that_an_environment_that_cannot_be_made_is_named(on_ray)


def wait_for_the_end_of(workers: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


# ------------------------------------------------------------------ lost actors


@pytest.mark.slow
def test_a_loss_during_a_step_truncates_its_episodes_and_no_others(cluster: Any, tmp_path: Path) -> None:
    message = r"the Ray actor of environments 2 to 3 .process \d+ on node .* was lost"
    cases.check_a_loss_during_a_step_truncates_its_episodes_and_no_others(on_ray, tmp_path, message, victim=2)


@pytest.mark.slow
@pytest.mark.parametrize("observations", ["discrete", "dict", "tuple"])
def test_the_terminal_observation_has_the_form_of_the_space(cluster: Any, observations: str) -> None:
    env = on_ray(functions(observations, "box", 2))
    cases.check_that_the_terminal_observation_has_the_form_of_the_space(env, kill_actor, observations)


@pytest.mark.slow
def test_a_loss_during_a_reset_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    cases.check_that_a_loss_during_a_reset_changes_nothing(on_ray, tmp_path)


@pytest.mark.slow
def test_a_loss_in_a_later_reset_cuts_nothing_and_points_at_its_caller(cluster: Any, tmp_path: Path) -> None:
    cases.check_that_a_loss_in_a_later_reset_cuts_nothing(on_ray, tmp_path)


@pytest.mark.slow
def test_two_actors_lost_in_one_step(cluster: Any, tmp_path: Path) -> None:
    cases.check_two_workers_lost_in_one_step(on_ray, tmp_path)


@pytest.mark.slow
def test_a_replacement_that_dies_while_it_starts_is_replaced_too(cluster: Any, tmp_path: Path) -> None:
    cases.check_that_a_replacement_that_dies_while_it_starts_is_replaced_too(on_ray, kill_actor, tmp_path)


@pytest.mark.slow
def test_normalisation_goes_over_a_cut_as_over_any_end(cluster: Any) -> None:
    cases.check_that_normalisation_goes_over_a_cut_as_over_any_end(on_ray, kill_actor)


@pytest.mark.slow
def test_an_interruption_while_a_replacement_starts_leaves_the_cut_to_tell(cluster: Any) -> None:
    cases.check_that_an_interruption_while_a_replacement_starts_leaves_the_cut_to_tell(on_ray, kill_actor, ray, "wait")


@pytest.mark.slow
def test_a_loss_while_environments_are_made_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    with pytest.warns(ActorLostWarning, match=r"environments 2 to 3 .not placed yet. was lost"):
        env = on_ray(dying(tmp_path, "make"))
    assert_same(trajectory(env), trajectory(DummyVecEnv(dying(tmp_path, "never"))))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["env_method", "get_attr", "set_attr"])
def test_a_question_to_a_lost_actor_is_asked_again(cluster: Any, tmp_path: Path, method: str) -> None:
    cases.check_that_a_question_to_a_lost_worker_is_asked_again(on_ray, kill_actor, tmp_path, method)


@pytest.mark.slow
def test_a_question_between_the_halves_of_a_step(cluster: Any) -> None:
    env = on_ray(functions("box", "box", 4))
    env.reset()
    kill_actor(env, 0)
    env.step_async(np.zeros((4, 2), np.float32))
    with pytest.warns(ActorLostWarning):
        env.get_attr("n_steps")
    *_, infos = env.step_wait()
    assert [info.get("actor_lost", False) for info in infos] == [True, True, False, False]
    assert env.lost_actors == 1
    env.close()


@pytest.mark.slow
def test_a_reset_after_a_loss_leaves_nothing_to_tell(cluster: Any) -> None:
    cases.check_that_a_reset_after_a_loss_leaves_nothing_to_tell(on_ray, kill_actor)


@pytest.mark.slow
@pytest.mark.parametrize("max_restarts", [0, 2])
def test_an_actor_lost_too_often_ends_everything(cluster: Any, max_restarts: int) -> None:
    made: list[RayVecEnv] = []

    def make(*args: Any, **kwargs: Any) -> RayVecEnv:
        made.append(on_ray(*args, **kwargs))
        return made[0]

    cases.check_that_a_worker_lost_too_often_ends_everything(make, max_restarts)
    assert made[0].lost_actors == max_restarts + 1
    wait_for_the_end_of(processes(made[0]))


@pytest.mark.slow
def test_healthy_steps_give_the_restarts_back(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.check_that_healthy_steps_give_the_restarts_back(on_ray, kill_actor, monkeypatch)


# ------------------------------------------------------------------ nodes


class NodeFails(BaseCallback):
    """Ends a node in the midst of a rollout, and keeps what the steps told of lost actors."""

    def __init__(self, fail: Callable[[], None]):
        super().__init__()
        self.fail = fail
        self.told: list[tuple[int, int, bool, float]] = []

    def _on_step(self) -> bool:
        if self.n_calls == 20:
            self.fail()
        for index, info in enumerate(self.locals["infos"]):
            if info.get("actor_lost"):
                assert info["TimeLimit.truncated"]
                assert info["terminal_observation"].shape == (4,)
                self.told.append((self.n_calls, index, self.locals["dones"][index], self.locals["rewards"][index]))
        return True


@pytest.mark.slow
def test_a_node_that_dies_during_training_costs_its_episodes(cluster: Any, add_node: Callable[[], Any]) -> None:
    node = add_node()
    another = None

    def fail() -> None:
        nonlocal another
        another = add_node()
        assert isinstance(env, RayVecEnv)
        end_node(cluster, node, env)

    # Each actor takes three CPUs, so that the head node has room for one.
    vec_env_cls: Any = RayVecEnv
    env = make_vec_env("CartPole-v1", 4, seed=1, vec_env_cls=vec_env_cls, vec_env_kwargs={"n_actors": 2, "num_cpus": 3})
    assert isinstance(env, RayVecEnv)
    on_node = [node.node_id in actor.place for actor in env._chunks]
    assert sorted(on_node) == [False, True]
    lost = env._chunks[on_node.index(True)]
    callback = NodeFails(fail)
    model = PPOClipPaper("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu")
    with pytest.warns(ActorLostWarning, match=f"{lost.name} .*{node.node_id}.* was lost") as caught:
        model.learn(384, callback)
    assert len(caught) == 1
    assert model.num_timesteps == 384
    # The callback of a step sees its infos; the node ended with the 20th, so the 21st tells, for each environment once.
    assert callback.told == [(21, index, True, 0.0) for index in range(4)[lost.part]]
    assert env.lost_actors == 1
    assert another is not None
    assert another.node_id in lost.place
    env.close()


@pytest.mark.slow
def test_no_room_for_a_replacement_is_told_after_a_while(cluster: Any, add_node: Callable[[], Any]) -> None:
    node = add_node()
    env = on_ray(functions("box", "box", 2), num_cpus=3, start_timeout=10)
    workers = processes(env)
    env.reset()
    end_node(cluster, node, env)
    message = r"1 of 2 Ray actors did not start within start_timeout=10 seconds: those of environment \d\. .*num_cpus=3"
    with pytest.warns(ActorLostWarning), pytest.raises(TimeoutError, match=message):
        steps_of(env, 1)
    wait_for_the_end_of(workers)


@pytest.mark.slow
def test_no_room_at_the_start_is_told_as_well(cluster: Any) -> None:
    message = f"2 of 2 Ray actors did not start within start_timeout=3 .*the cluster has {HEAD_CPUS} CPUs, .* of them"
    with pytest.raises(TimeoutError, match=message):
        on_ray(functions("box", "box", 2), num_cpus=HEAD_CPUS + 1, start_timeout=3)


# ------------------------------------------------------------------ whose Ray it is


@pytest.mark.slow
def test_a_connection_that_was_there_stays(cluster: Any) -> None:
    with pytest.raises(
        ValueError, match=r"address must be None, 'auto' or '.*', the cluster .*; got '192\.0\.2\.1:6379'"
    ):
        RayVecEnv(functions("box", "box", 2), address="192.0.2.1:6379")
    RayVecEnv(functions("box", "box", 2), address=cluster.address).close()
    assert ray.is_initialized()


PROGRAM = """
import os, sys
import gymnasium as gym
import ray
from sb3_ppo_variants.vec_env import RayVecEnv

def make():
    return gym.make("CartPole-v1")

address = sys.argv[1] if len(sys.argv) > 1 else None
one = RayVecEnv([make] * 4, 4, address)
print("cpus", ray.cluster_resources()["CPU"])
two = RayVecEnv([make], address=address or os.environ.get("RAY_ADDRESS", "local"), num_cpus=0)
one.close()
two.reset()
print("open", ray.is_initialized())
two.close()
print("open", ray.is_initialized())
print("pids", *[actor.place.split()[1] for actor in one._chunks + two._chunks])
"""


def outcome(*arguments: str, **variables: str) -> tuple[list[str], list[int]]:
    """What the program prints, and the processes of its actors."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    *lines, pids = [line for line in ended.stdout.splitlines() if line.startswith(("cpus", "open", "pids"))]
    return lines, [int(pid) for pid in pids.split()[1:]]


@pytest.mark.slow
def test_what_was_started_is_shut_down_with_the_last_user() -> None:
    lines, workers = outcome()
    cpus = max(4, len(os.sched_getaffinity(0)))
    assert lines == [f"cpus {float(cpus)}", "open True", "open False"]
    wait_for_the_end_of(workers)


ENDED = """
import gymnasium as gym
import ray
from sb3_ppo_variants.vec_env import RayVecEnv

env = RayVecEnv([lambda: gym.make("CartPole-v1")], 1, "local")
env.reset()
ray.shutdown()
try:
    env.reset()
except RuntimeError as error:
    print(error, ray.is_initialized(), env.closed, sep="; ")
"""


@pytest.mark.slow
def test_a_connection_that_somebody_ended_is_told() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True, check=True)
    message = "this RayVecEnv has lost its environments: its connection to Ray was ended"
    assert ended.stdout.splitlines()[-1] == f"{message}; False; True"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["argument", "other text", "variable"])
def test_a_running_cluster_is_joined_and_left(cluster: Any, how: str) -> None:
    if how == "variable":
        lines, workers = outcome(RAY_ADDRESS=cluster.address)
    else:
        port = cluster.address.rsplit(":", 1)[1]
        lines, workers = outcome(cluster.address if how == "argument" else f"localhost:{port}")
    assert lines == [f"cpus {float(HEAD_CPUS)}", "open True", "open False"]
    wait_for_the_end_of(workers)
    assert len(cluster.list_all_nodes()) == 1


@pytest.mark.slow
def test_nothing_survives_the_learner(cluster: Any) -> None:
    program = PROGRAM.replace("one.close()", "print('pids', *[a.place.split()[1] for a in one._chunks], flush=True)")
    command = [sys.executable, "-c", program.replace("two.reset()", "while True: two.reset()"), cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as learner:
        assert learner.stdout is not None
        line = next(line for line in learner.stdout if line.startswith("pids"))
        learner.send_signal(signal.SIGKILL)
    workers = [int(pid) for pid in line.split()[1:]]
    assert len(workers) == 4
    wait_for_the_end_of(workers)
