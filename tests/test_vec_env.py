"""``SharedMemoryVecEnv``: what SB3's ``DummyVecEnv`` gives, from a few processes; and what goes wrong in them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants import PPOClipPaper
from sb3_ppo_variants.vec_env import (
    ActorLostWarning,
    ActorsMonitor,
    EnvironmentRaisedError,
    SharedMemoryVecEnv,
    WorkerDiedError,
    WorkerLostWarning,
    WorkersMonitor,
    chunked,
    shared_memory,
)
from tests import vec_env_cases as cases
from tests.helpers import benchmark
from tests.vec_env_cases import (
    ACTIONS,
    OBSERVATIONS,
    DyingEnv,
    SlowEnv,
    assert_same,
    dying,
    functions,
    is_running,
    losses_in,
    steps_of,
    trajectory,
)


def fork(env_fns: list[Callable[[], gym.Env]], n_workers: int = 2, **kwargs: Any) -> SharedMemoryVecEnv:
    return SharedMemoryVecEnv(env_fns, n_workers=n_workers, start_method="fork", **kwargs)


def kill_worker(env: SharedMemoryVecEnv, number: int) -> None:
    """Kill a worker, and see to it that it is gone."""
    process = env._chunks[number]._process
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_equals_dummy_vec_env_for_every_observation_space(observations: str) -> None:
    fns = functions(observations, "box", 5)
    cases.check_it_equals_dummy_vec_env(fork(fns), fns)


@pytest.mark.parametrize("actions", ACTIONS)
def test_equals_dummy_vec_env_for_every_action_space(actions: str) -> None:
    fns = functions("box", actions, 3)
    cases.check_it_equals_dummy_vec_env(fork(fns), fns)


@pytest.mark.parametrize("n_workers", [1, 2, 3, 5])
def test_the_number_of_workers_changes_nothing(n_workers: int) -> None:
    fns = functions("dict", "discrete", 5)
    cases.check_it_equals_dummy_vec_env(fork(fns, n_workers), fns)


def test_training_gives_what_dummy_vec_env_gives() -> None:
    cases.check_that_training_equals_dummy_vec_envs(SharedMemoryVecEnv, n_workers=2, start_method="fork")


def test_attributes_methods_wrappers_and_frames() -> None:
    cases.check_attributes_methods_wrappers_and_frames(fork(functions("box", "discrete", 5)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # through the memory, and as they are
def test_wrong_numbers_of_actions_are_refused(dtype: Any) -> None:
    cases.check_that_wrong_numbers_of_actions_are_refused(fork(functions("box", "box", 4)), dtype)


def test_what_cannot_be_pickled_is_told() -> None:
    cases.check_that_what_cannot_be_pickled_is_told(fork(functions("box", "box", 4)))


def test_a_closed_one_says_so() -> None:
    env = fork(functions("box", "box", 2))
    env.close()
    cases.check_that_nothing_can_be_asked(env, np.zeros((2, 2), np.float32))
    env.close()  # again is no harm


def test_nothing_is_asked_during_a_step() -> None:
    env = fork(functions("box", "box", 4))
    env.reset()
    actions = np.zeros((4, 2), np.float32)
    env.step_async(actions)
    for ask in (
        env.reset,
        partial(env.get_attr, "n_steps"),
        partial(env.env_method, "add", 1),
        partial(env.step_async, actions),
    ):
        with pytest.raises(RuntimeError, match="a step is under way; end it with step_wait first"):
            ask()
    *_, infos = env.step_wait()
    assert [info["steps"] for info in infos] == [1] * 4
    assert env.get_attr("n_steps") == [1] * 4
    env.close()


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_other_start_methods_give_the_same(start_method: str) -> None:
    def make() -> gym.Env:
        return gym.make("CartPole-v1")

    env = SharedMemoryVecEnv([make] * 3, n_workers=1, start_method=start_method)
    cases.check_it_equals_dummy_vec_env(env, [make] * 3, 30)


def test_a_worker_with_plain_environments_imports_neither_torch_nor_sb3() -> None:
    env = SharedMemoryVecEnv([partial(gym.make, "CartPole-v1")], start_method="forkserver")
    cases.check_that_a_worker_with_plain_environments_imports_neither_torch_nor_sb3(env)


def test_actions_of_another_type_reach_the_environment_as_they_are() -> None:
    env = fork(functions("box", "box", 3))
    env.reset()
    *_, infos = env.step(np.full((3, 2), 0.1, np.float64))
    assert all(info["action"].dtype == np.float64 for info in infos)
    env.close()


def test_what_is_returned_is_not_overwritten() -> None:
    env = fork(functions("dict", "discrete", 3))
    first: Any = env.reset()
    kept = {key: value.copy() for key, value in first.items()}
    result = env.step(np.array([0, 1, 2]))
    rewards, dones = result[1].copy(), result[2].copy()
    env.step(np.array([3, 3, 3]))
    assert_same(first, kept)
    assert np.array_equal(result[1], rewards)
    assert np.array_equal(result[2], dones)
    env.close()


def test_the_worst_arguments_are_named() -> None:
    fns = functions("box", "box", 2)
    with pytest.raises(ValueError, match="env_fns must hold at least one"):
        SharedMemoryVecEnv([])
    for n_workers in (0, 3, 1.5):
        with pytest.raises(ValueError, match="n_workers must be an integer from 1 to the number of environments, 2"):
            SharedMemoryVecEnv(fns, n_workers=n_workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start_method must be one of"):
        SharedMemoryVecEnv(fns, start_method="thread")
    for max_restarts in (-1, 0.5):
        with pytest.raises(ValueError, match="max_restarts must be an integer >= 0"):
            SharedMemoryVecEnv(fns, max_restarts=max_restarts)  # type: ignore[arg-type]


def children() -> set[int]:
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "ps" not in line.split()[1]}


def test_an_environment_that_raises_ends_everything_and_is_named() -> None:
    before = children()
    cases.check_that_an_environment_that_raises_ends_everything_and_is_named(
        fork(functions("box", "box", 5, troubled=3))
    )
    assert children() == before


def test_an_environment_that_cannot_be_made_is_named() -> None:
    before = children()
    cases.check_that_an_environment_that_cannot_be_made_is_named(fork)
    assert children() == before


@pytest.mark.parametrize("max_restarts", [0, 1])
@pytest.mark.parametrize("when", ["between", "during"])
def test_a_worker_that_dies_is_noticed_within_seconds(when: str, max_restarts: int) -> None:
    before = children()
    env = fork(functions("box", "box", 4), max_restarts=max_restarts)
    env.reset()
    victim = env._chunks[1]._process.pid
    assert victim is not None
    if when == "during":
        os.kill(victim, signal.SIGSTOP)
        env.step_async(np.zeros((4, 2), np.float32))
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    if when == "between":
        env._chunks[1]._process.join()
    go_on: Callable[[], Any] = env.step_wait if when == "during" else partial(env.step, np.zeros((4, 2), np.float32))
    if max_restarts == 0:
        with pytest.raises(WorkerDiedError, match="environments 2 to 3 ended by signal SIGKILL, and max_restarts=0"):
            go_on()
    else:
        with pytest.warns(WorkerLostWarning, match="environments 2 to 3 ended by signal SIGKILL; its environments are"):
            *_, infos = go_on()
        assert losses_in(infos) == [False, False, True, True]
        env.close()
    assert time.monotonic() - started < 20  # it does not hang
    assert children() == before


# ------------------------------------------------------------------ lost workers


@pytest.mark.parametrize("victim", [2, 3])  # before a row of the worker's was written, and after
def test_a_loss_during_a_step_truncates_its_episodes_and_no_others(tmp_path: Path, victim: int) -> None:
    message = r"the worker process \d+ of environments 2 to 3 ended by signal SIGKILL"
    cases.check_a_loss_during_a_step_truncates_its_episodes_and_no_others(fork, tmp_path, message, victim)


@pytest.mark.parametrize("observations", ["discrete", "dict", "tuple", "image"])
def test_the_terminal_observation_has_the_form_of_the_space(observations: str) -> None:
    env = fork(functions(observations, "box", 2))
    cases.check_that_the_terminal_observation_has_the_form_of_the_space(env, kill_worker, observations)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_other_start_methods_replace_workers_too(start_method: str) -> None:
    env = SharedMemoryVecEnv(functions("box", "box", 2), 2, start_method)
    cases.check_that_the_terminal_observation_has_the_form_of_the_space(env, kill_worker, "box")


def test_a_loss_while_environments_are_first_made_ends_everything(tmp_path: Path) -> None:
    before = children()
    with pytest.raises(WorkerDiedError, match=r"worker process \d+ of environments 2 to 3 ended by signal SIGKILL"):
        fork(dying(tmp_path, "make"))
    assert children() == before


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    lines = [
        "import gymnasium as gym",
        "from sb3_ppo_variants.vec_env import SharedMemoryVecEnv",
        "SharedMemoryVecEnv([lambda: gym.make('CartPole-v1')] * 2, 2)",
    ]
    script.write_text("\n".join(lines))
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ended.returncode == 1
    expected = r"environment 0 ended with exit code 1 while it started; .* under if __name__ == '__main__':"
    assert re.search(expected, ended.stderr), ended.stderr


def test_a_loss_during_a_reset_changes_nothing(tmp_path: Path) -> None:
    cases.check_that_a_loss_during_a_reset_changes_nothing(fork, tmp_path)


def test_a_loss_in_a_later_reset_cuts_nothing_and_points_at_its_caller(tmp_path: Path) -> None:
    cases.check_that_a_loss_in_a_later_reset_cuts_nothing(fork, tmp_path)


def test_two_workers_lost_in_one_step(tmp_path: Path) -> None:
    cases.check_two_workers_lost_in_one_step(fork, tmp_path)


def test_a_replacement_that_dies_while_it_starts_is_replaced_too(tmp_path: Path) -> None:
    cases.check_that_a_replacement_that_dies_while_it_starts_is_replaced_too(fork, kill_worker, tmp_path)


def test_normalisation_goes_over_a_cut_as_over_any_end() -> None:
    cases.check_that_normalisation_goes_over_a_cut_as_over_any_end(fork, kill_worker)


def test_an_interruption_while_a_replacement_starts_leaves_the_cut_to_tell() -> None:
    cases.check_that_an_interruption_while_a_replacement_starts_leaves_the_cut_to_tell(
        fork, kill_worker, shared_memory._Worker, "share"
    )


def check_it_goes_on(env: SharedMemoryVecEnv, env_fns: list[Callable[[], gym.Env]]) -> None:
    """With a step, and after a reset as if nothing had been."""
    assert not env.waiting
    *_, infos = steps_of(env, 1)[0]
    assert env.get_attr("n_steps") == [info.get("steps", 0) for info in infos]
    env.env_method("set_wrapper_attr", "n_steps", 0)
    assert_same(trajectory(env), trajectory(DummyVecEnv(env_fns)))


def interrupt(patch: pytest.MonkeyPatch, where: Any, name: str, call: int, instead: Callable[..., Any]) -> None:
    """Let Ctrl-C come in the ``call``-th call of a method, of which ``instead`` is then done."""
    whole = getattr(where, name)
    calls = iter(range(1, 100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) != call:
            return whole(*arguments)
        instead(*arguments)
        raise KeyboardInterrupt

    patch.setattr(where, name, interrupted)


ASKED: dict[str, Callable[[SharedMemoryVecEnv], Any]] = {
    "reset": lambda env: env.reset(),
    "step": lambda env: steps_of(env, 1),
    "question": lambda env: env.get_attr("n_steps"),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(("name", "call"), [("receive", 1), ("receive", 2), ("send", 2)])
def test_an_interruption_leaves_the_workers_in_step(asked: str, name: str, call: int) -> None:
    fns = functions("dict", "box", 5)
    env = fork(fns)
    workers = [chunk._process for chunk in env._chunks]
    if asked != "reset":
        env.reset()
        steps_of(env, 2)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, shared_memory._Worker, name, call, lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            ASKED[asked](env)
    env._require_ready()
    assert [chunk._process for chunk in env._chunks] == workers
    env.reset()
    check_it_goes_on(env, fns)
    assert env.lost_workers == 0


def test_ctrl_c_in_a_long_step() -> None:
    fns: list[Callable[[], gym.Env]] = [partial(SlowEnv, 0.4 * (index == 1)) for index in range(2)]
    env = fork(fns)
    env.reset()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(2):  # the second also while what the first left is waited for
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                steps_of(env, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert env.get_attr("n_steps") == [1, 1]
    *_, infos = steps_of(env, 1)[0]
    assert [info["steps"] for info in infos] == [2, 2]
    assert env.lost_workers == 0
    env.close()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ["recv_bytes", "send_bytes"])
def test_an_interruption_in_the_midst_of_a_message_replaces_its_worker(asked: str, name: str) -> None:
    def half(connection: Any, *_: Any) -> None:
        if name == "recv_bytes":
            os.read(connection.fileno(), 4)
        else:
            os.write(connection.fileno(), b"\0\0")

    fns = functions("dict", "box", 5)
    env = fork(fns)
    workers = [chunk._process for chunk in env._chunks]
    env.reset()
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, Connection, name, 2, half)
        with pytest.raises(KeyboardInterrupt):
            ASKED[asked](env)
    *_, infos = steps_of(env, 1)[0]
    assert losses_in(infos) == [False] * 3 + [True] * 2
    assert [chunk._process is process for chunk, process in zip(env._chunks, workers, strict=True)] == [True, False]
    assert not any(losses_in(steps_of(env, 1)[0][3]))
    check_it_goes_on(env, fns)


def test_a_torn_message_does_not_keep_it_from_closing() -> None:
    before = children()
    env = fork(functions("box", "box", 4))
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, Connection, "recv_bytes", 1, lambda connection: os.read(connection.fileno(), 4))
        with pytest.raises(KeyboardInterrupt):
            env.reset()
    started = time.monotonic()
    env.close()
    assert time.monotonic() - started < 2
    assert children() == before


def test_an_environment_that_raises_in_an_interrupted_step_ends_everything() -> None:
    before = children()
    env = fork(functions("box", "box", 4, troubled=3))
    env.reset()
    steps_of(env, 2)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, shared_memory._Worker, "receive", 1, lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            steps_of(env, 1)
    with pytest.raises(EnvironmentRaisedError, match="environment 3 raised a ZeroDivisionError"):
        env.get_attr("n_steps")
    assert children() == before


def test_a_loss_in_an_interrupted_step_is_a_cut() -> None:
    env = fork([partial(DyingEnv, "")] * 4)
    env.reset()
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, shared_memory._Worker, "receive", 2, lambda *_: kill_worker(env, 1))
        with pytest.raises(KeyboardInterrupt):
            steps_of(env, 1)
    kill_worker(env, 0)
    with pytest.warns(WorkerLostWarning):
        *_, infos = steps_of(env, 1)[0]
    assert losses_in(infos) == [True] * 4
    env.close()


def test_a_step_that_nobody_began_cannot_be_waited_for() -> None:
    env = fork(functions("box", "box", 2))
    env.reset()
    with pytest.raises(RuntimeError, match="no step is under way; begin one with step_async first"):
        env.step_wait()
    steps_of(env, 1)
    env.close()


def test_a_loss_in_a_step_before_any_reset_is_a_cut(tmp_path: Path) -> None:
    env = fork(dying(tmp_path, "step 1"))
    with pytest.warns(WorkerLostWarning, match="made anew, and their episodes truncated"):
        _, _, dones, infos = steps_of(env, 1)[0]
    assert dones.tolist() == losses_in(infos) == [False, False, True, True]
    assert env.get_attr("n_resets") == [0, 0, 1, 1]
    assert not any(losses_in(steps_of(env, 1)[0][3]))
    env.close()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="what tells a process from the fork server's children")
def test_the_end_of_the_fork_server_is_not_that_of_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    env = SharedMemoryVecEnv([partial(SlowEnv, 0.3)] * 2, 2, "forkserver")
    env.reset()
    workers = [chunk._process.pid for chunk in env._chunks]
    env.step_async(np.zeros((2, 2), np.float32))
    server: Any = forkserver._forkserver
    os.kill(server._forkserver_pid, signal.SIGKILL)
    *_, infos = env.step_wait()
    assert [info["steps"] for info in infos] == [1, 1]
    assert env.lost_workers == 0
    os.kill(workers[0], signal.SIGKILL)  # and the next fork server starts its replacement
    with pytest.warns(WorkerLostWarning, match="of environment 0 ended"):
        steps_of(env, 1)
    env.set_attr("seconds", 60)
    env.step_async(np.zeros((2, 2), np.float32))
    monkeypatch.setattr(shared_memory, "CLOSING_SECONDS", 0.2)
    workers += [chunk._process.pid for chunk in env._chunks]
    env.close()
    assert not any(is_running(pid) for pid in workers)


@pytest.mark.parametrize("method", ["env_method", "get_attr", "set_attr"])
def test_a_question_to_a_lost_worker_is_asked_again(tmp_path: Path, method: str) -> None:
    cases.check_that_a_question_to_a_lost_worker_is_asked_again(fork, kill_worker, tmp_path, method)


def test_a_reset_after_a_loss_leaves_nothing_to_tell() -> None:
    cases.check_that_a_reset_after_a_loss_leaves_nothing_to_tell(fork, kill_worker)


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_a_worker_lost_too_often_ends_everything(max_restarts: int) -> None:
    before = children()
    cases.check_that_a_worker_lost_too_often_ends_everything(fork, max_restarts)
    assert children() == before


@pytest.mark.parametrize("where", ["make", "step 1"])
def test_a_worker_that_always_dies_at_once_does_not_go_on_for_ever(tmp_path: Path, where: str) -> None:
    hopeless = tmp_path / "hopeless"

    def make() -> gym.Env:
        return DyingEnv(where if hopeless.exists() else "step 5")

    before = children()
    env = fork([make, partial(DyingEnv, "")], max_restarts=2)
    env.reset()
    hopeless.touch()
    with (
        pytest.warns(WorkerLostWarning) as told,
        pytest.raises(WorkerDiedError, match=r"environment 0 .*max_restarts=2"),
    ):
        steps_of(env, 10)
    assert len(told) == 2
    assert children() == before


def test_healthy_steps_give_the_restarts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cases.check_that_healthy_steps_give_the_restarts_back(fork, kill_worker, monkeypatch)


def test_an_environment_that_raises_in_a_replacement_ends_everything(tmp_path: Path) -> None:
    broken = tmp_path / "broken"

    def make() -> gym.Env:
        if broken.exists():
            raise OSError("no such world")
        return DyingEnv("")

    before = children()
    env = fork([make] * 4)
    env.reset()
    broken.touch()
    kill_worker(env, 1)
    with (
        pytest.warns(WorkerLostWarning),
        pytest.raises(EnvironmentRaisedError, match=r"environment 2 raised a OSError"),
    ):
        steps_of(env, 1)
    assert children() == before


class DiesInClose(DyingEnv):
    """Kills its process when it is closed."""

    def close(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_while_closing_is_the_end_as_well() -> None:
    before = children()
    env = fork([partial(DiesInClose, "")] * 2)
    env.reset()
    env.close()
    assert children() == before


def test_training_goes_on_over_losses_and_counts_its_steps() -> None:
    env = fork([partial(gym.make, "CartPole-v1")] * 4)
    model = PPOClipPaper("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=1, device="cpu")
    lost: list[tuple[int, int]] = []

    def at_each_step(local: dict[str, Any], _: dict[str, Any]) -> bool:
        n_calls = local["n_steps"] + 1
        lost.extend((n_calls, index) for index, info in enumerate(local["infos"]) if info.get("worker_lost"))
        if n_calls == 20:
            kill_worker(env, 1)
        return True

    with pytest.warns(WorkerLostWarning):
        model.learn(256, at_each_step)
    env.close()
    assert model.num_timesteps == 256
    assert env.lost_workers == 2
    assert lost == [(21, 2), (21, 3)] * 2


def replace(env: SharedMemoryVecEnv, number: int) -> None:
    kill_worker(env, number)
    with pytest.warns(WorkerLostWarning):
        steps_of(env, 2)


def check_that_replacements_leave_nothing(n_times: int, start_method: str) -> None:
    if start_method == "forkserver":
        SharedMemoryVecEnv([partial(DyingEnv, "")], start_method=start_method).close()  # the fork server stays
    resources = benchmark("soak").resources
    outside = resources()
    env = SharedMemoryVecEnv([partial(DyingEnv, "")] * 4, 2, start_method)
    env.reset()

    replace(env, 0)  # with "fork", a replacement has a copy of what the parent has by now, which the first had not
    replace(env, 1)
    before = resources()
    for number in range(n_times):
        replace(env, number % 2)
    assert resources() == before
    assert env.lost_workers == n_times + 2
    env.close()
    del env
    assert resources() == outside


def test_replacements_leave_nothing_behind() -> None:
    check_that_replacements_leave_nothing(4, "fork")


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_50_replacements_leave_nothing_behind(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "HEALTHY_STEPS", 1)
    check_that_replacements_leave_nothing(50, start_method)


# ------------------------------------------------------------------ what is left behind


def test_closing_during_a_step_leaves_nothing_behind() -> None:
    before = children()
    env = fork(functions("image", "box", 4))
    env.reset()
    env.step_async(np.zeros((4, 2), np.float32))
    env.close()
    assert children() == before


def test_open_files_do_not_grow() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    fork(functions("box", "box", 2)).close()
    before = descriptors()
    for _ in range(5):
        env = fork(functions("box", "box", 2))
        env.reset()
        env.close()
        del env
    assert descriptors() <= before


PROGRAM = """
import os, sys, time
import gymnasium as gym
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv
if __name__ == "__main__":
    env = SharedMemoryVecEnv([lambda: gym.make("CartPole-v1")] * 4, n_workers=2, start_method=sys.argv[1])
    env.reset()
    print(*[w._process.pid for w in env._chunks], flush=True)
    while True:
        env.step(__import__("numpy").zeros(4, dtype=int))
"""


@pytest.mark.parametrize(
    ("start_method", "end"),
    [("fork", signal.SIGKILL), pytest.param("forkserver", signal.SIGINT, marks=pytest.mark.slow)],
)
def test_nothing_survives_the_parent(end: signal.Signals, start_method: str, tmp_path: Any) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), start_method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(0.2)
        parent.send_signal(end)
        _, errors = parent.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)
    assert "leaked" not in errors  # Python's own complaint about segments and semaphores


class InfoWhereItIsCut(gym.Wrapper):
    """CartPole cut after some steps, with ``at_end`` in the infos of the cut and ``reward`` for its step."""

    def __init__(self, n_steps: int, reward: float, at_end: dict[str, Any]):
        super().__init__(gym.make("CartPole-v1", max_episode_steps=n_steps))
        self.reward, self.at_end = reward, at_end

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, ends, cut, info = self.env.step(action)
        return observation, self.reward if cut else reward, ends, cut, info | (self.at_end if cut else {})


def test_the_monitor_over_workers_writes_what_their_monitors_tell_and_what_was_cut(tmp_path: Path) -> None:
    def monitored() -> gym.Env:
        whole = Monitor(InfoWhereItIsCut(3, 5.0, {"level": 7}), info_keywords=("level",))
        return TransformReward(whole, lambda reward: 0.1 * float(reward))  # of which the file is to know nothing

    def lost() -> gym.Env:
        return InfoWhereItIsCut(5, 0.0, {"worker_lost": True})

    env = WorkersMonitor(DummyVecEnv([monitored, lost]), tmp_path / "0.monitor.csv", ["level"])
    env.reset()
    actions = np.zeros(2, np.int64)
    for _ in range(5):
        *_, infos = env.step(actions)
    assert (infos[1]["episode"]["r"], infos[1]["episode"]["l"]) == (4.0, 4)
    env.step(actions)
    env.reset()  # which forgets the lost one's step
    for _ in range(5):
        env.step(actions)
    env.close()
    written = load_results(str(tmp_path))
    assert written["r"].tolist() == [7.0, 4.0, 7.0, 7.0, 4.0]
    assert written["l"].tolist() == [3, 4, 3, 3, 4]
    assert written["level"].fillna(-1).tolist() == [7, -1, 7, 7, -1]


def test_the_names_from_when_only_ray_replaced_workers_stand() -> None:
    assert ActorsMonitor is WorkersMonitor
    assert issubclass(ActorLostWarning, WorkerLostWarning)
