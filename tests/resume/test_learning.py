"""A run that is interrupted and resumed is the run that was not."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch as th
from stable_baselines3.common import callbacks as sb3_callbacks
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper, PPOFixedKLPaper, PPOUnclippedPaper, VanillaPGPaper
from sb3_ppo_variants.files import atomic_write
from sb3_ppo_variants.resume import learning
from sb3_ppo_variants.resume.folder import KEPT, BundleWarning, RunFolder
from sb3_ppo_variants.resume.format import BundleError
from sb3_ppo_variants.resume.names import bundle_name, bundle_paths
from sb3_ppo_variants.vec_env import SharedMemoryVecEnv, record_episodes
from tests.resume.runs import (
    ITERATION,
    N_ENVS,
    OPENED,
    Interrupt,
    episodes,
    make_env,
    make_model,
    moments,
    progress,
    scramble,
    weights,
)

ALGORITHMS = [PPOClipPaper, PPOAdaptiveKLPaper, PPOFixedKLPaper, PPOUnclippedPaper, VanillaPGPaper]


def interrupted(
    folder: Path, total: int, times: int, kind: str = "dummy", algorithm: Any = PPOAdaptiveKLPaper, **arguments: Any
) -> Any:
    """A run of ``total`` timesteps that is interrupted ``times`` times and resumed by new models."""
    for attempt in range(times + 1):
        scramble()
        model = make_model(algorithm, make_env(kind, folder), **arguments)
        stop = Interrupt(1) if attempt < times else None
        try:
            model.learn(total, callback=stop, run_folder=folder, resume="auto")
        except KeyboardInterrupt:
            assert attempt < times
        model.env.close()
    return model


def assert_same(first: Any, second: Any) -> None:
    assert th.equal(weights(first), weights(second))
    assert th.equal(moments(first), moments(second))
    for name in ("num_timesteps", "n_iterations", "_n_updates", "stepsize_factor", "beta"):
        assert getattr(first, name, None) == getattr(second, name, None), name
    for one, other in ((first.env.obs_rms, second.env.obs_rms), (first.env.ret_rms, second.env.ret_rms)):
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.var, other.var)
        assert one.count == other.count
    returns = [[(episode["r"], episode["l"]) for episode in model.ep_info_buffer] for model in (first, second)]
    assert returns[0] == returns[1]


@pytest.mark.parametrize("kind", ["dummy", "shared_memory"])
def test_five_interruptions_change_nothing(tmp_path: Path, kind: str) -> None:
    unbroken = make_model(env=make_env(kind, tmp_path / "unbroken"))
    unbroken.learn(6 * ITERATION, run_folder=tmp_path / "unbroken")
    unbroken.env.close()
    resumed = interrupted(tmp_path / "resumed", 6 * ITERATION, 5, kind)
    assert_same(unbroken, resumed)
    assert progress(tmp_path / "unbroken") == progress(tmp_path / "resumed")
    assert len(progress(tmp_path / "resumed")) == 6
    assert episodes(tmp_path / "unbroken") == episodes(tmp_path / "resumed")
    assert len(episodes(tmp_path / "resumed")) == N_ENVS


def test_environments_in_processes_of_sb3(tmp_path: Path) -> None:
    unbroken = make_model(env=make_env("subproc"))
    unbroken.learn(2 * ITERATION, run_folder=tmp_path / "unbroken")
    unbroken.env.close()
    assert_same(unbroken, interrupted(tmp_path / "resumed", 2 * ITERATION, 1, "subproc"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(tmp_path: Path, algorithm: Any) -> None:
    unbroken = make_model(algorithm).learn(3 * ITERATION, run_folder=tmp_path / "unbroken")
    assert_same(unbroken, interrupted(tmp_path / "resumed", 3 * ITERATION, 2, algorithm=algorithm))


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_sde": True, "sde_sample_freq": 4, "log_std_schedule": None},
        {"advantage_estimator": "reinforce", "algorithm": VanillaPGPaper},
        {"ent_coef": lambda left: 0.01 * left, "target_kl": 0.05, "algorithm": PPOClipPaper},
    ],
)
def test_settings_with_a_state_of_their_own(tmp_path: Path, arguments: dict[str, Any]) -> None:
    unbroken = make_model(**arguments).learn(3 * ITERATION, run_folder=tmp_path / "unbroken")
    assert_same(unbroken, interrupted(tmp_path / "resumed", 3 * ITERATION, 2, **arguments))


def test_a_run_folder_changes_nothing_of_the_run(tmp_path: Path) -> None:
    plain = make_model().learn(2 * ITERATION)
    assert_same(plain, make_model().learn(2 * ITERATION, run_folder=tmp_path))


def test_iterations_are_logged_at_the_same_interval(tmp_path: Path) -> None:
    for folder, times in ((tmp_path / "unbroken", 0), (tmp_path / "resumed", 3)):
        for attempt in range(times + 1):
            model = make_model(env=make_env("dummy", folder))
            stop = Interrupt(1) if attempt < times else None
            with contextlib.suppress(KeyboardInterrupt):
                model.learn(4 * ITERATION, stop, log_interval=3, run_folder=folder, resume="auto")
    assert progress(tmp_path / "unbroken") == progress(tmp_path / "resumed")
    assert [row["time/iterations"] for row in progress(tmp_path / "resumed")] == ["3"]


def test_tensorboard_goes_on_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Files of events are read in the order of their names, which tell the second.
    seconds = itertools.count(1_800_000_000)
    clock = SimpleNamespace(time=lambda: next(seconds))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)
    scalars = []
    for name, times in (("unbroken", 0), ("resumed", 2)):
        interrupted(tmp_path / name, 3 * ITERATION, times, tensorboard_log=str(tmp_path / name / "tb"))
        (folder,) = (tmp_path / name / "tb").iterdir()
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        tags = sorted(set(events.Tags()["scalars"]) - {"time/fps"})
        scalars.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert scalars[0] == scalars[1]
    assert len(scalars[0]["train/loss"]) == 2


def test_evaluations_go_on(tmp_path: Path) -> None:
    results = []
    for name, times in (("unbroken", 0), ("resumed", 2)):
        folder = tmp_path / name
        for attempt in range(times + 1):
            scramble()
            evaluation = EvalCallback(
                make_env("dummy"), eval_freq=6, n_eval_episodes=2, log_path=str(folder), verbose=0
            )
            evaluation.eval_env.seed(5)
            stop = [Interrupt(1)] if attempt < times else []
            with contextlib.suppress(KeyboardInterrupt):
                make_model().learn(3 * ITERATION, [evaluation, *stop], run_folder=folder, resume="auto")
        found = np.load(folder / "evaluations.npz")
        results.append({key: found[key].tolist() for key in found} | {"best": evaluation.best_mean_reward})
    assert results[0] == results[1]
    assert len(results[0]["timesteps"]) == 8


def test_callbacks_may_come_and_go(tmp_path: Path) -> None:
    class Counter(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.rollouts = 0

        def _on_rollout_start(self) -> None:
            self.rollouts += 1

        def _on_step(self) -> bool:
            return True

    make_model().learn(2 * ITERATION, [Interrupt(9), Counter()], run_folder=tmp_path)
    first, second = Counter(), Counter()
    make_model().learn(3 * ITERATION, [first, second], run_folder=tmp_path, resume=True)
    assert (first.rollouts, second.rollouts) == (3, 1)


def test_the_progress_bar_begins_where_the_run_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar:
        def __init__(self, **arguments: int):
            self.n = arguments["initial"]
            self.arguments = arguments
            bars.append(self)

        def update(self, n: int) -> None:
            self.n += n

        def refresh(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(sb3_callbacks, "tqdm", Bar)
    make_model().learn(ITERATION, run_folder=tmp_path, progress_bar=True)
    make_model().learn(3 * ITERATION, run_folder=tmp_path, resume=True, progress_bar=True)
    assert [bar.arguments["initial"] for bar in bars] == [0, ITERATION]
    assert [bar.arguments["total"] for bar in bars] == [ITERATION, 3 * ITERATION]
    assert bars[1].n == 3 * ITERATION


# ------------------------------------------------------------------ extending a run


def learning_rates(folder: Path) -> list[float]:
    """Of the updates that ``progress.csv`` tells of: all but the last."""
    return [float(row["train/learning_rate"]) for row in progress(folder)[1:]]


def test_extending_leaves_the_schedules_alone(tmp_path: Path) -> None:
    make_model(PPOClipPaper).learn(2 * ITERATION, run_folder=tmp_path)
    model = make_model(PPOClipPaper).learn(5 * ITERATION, run_folder=tmp_path, resume="auto")
    assert model.num_timesteps == 5 * ITERATION
    assert learning_rates(tmp_path) == pytest.approx([1.5e-3, 0, 0, 0])
    # and so they stay when the extended run is resumed
    make_model(PPOClipPaper).learn(6 * ITERATION, run_folder=tmp_path, resume="auto")
    assert learning_rates(tmp_path)[-1] == 0


def test_schedules_are_stretched_if_asked(tmp_path: Path) -> None:
    make_model(PPOClipPaper).learn(2 * ITERATION, run_folder=tmp_path)
    make_model(PPOClipPaper).learn(4 * ITERATION, run_folder=tmp_path, resume=True, stretch_schedules=True)
    # The first two were those of the shorter run.
    assert learning_rates(tmp_path) == pytest.approx([1.5e-3, 0, 0.75e-3])


def test_a_shorter_end_leaves_the_schedules_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_model(PPOClipPaper).learn(8 * ITERATION, Interrupt(1), run_folder=tmp_path)
    model = make_model(PPOClipPaper).learn(3 * ITERATION, run_folder=tmp_path, resume=True)
    assert model.num_timesteps == 3 * ITERATION
    assert learning_rates(tmp_path) == pytest.approx([3e-3 * 7 / 8, 3e-3 * 6 / 8])


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_model().learn(2 * ITERATION, run_folder=tmp_path)
    second = make_model(verbose=1).learn(2 * ITERATION, run_folder=tmp_path, resume=True)
    assert_same(first, second)
    assert "Nothing is left to do" in capsys.readouterr().out


# ------------------------------------------------------------------ what a bundle is worth


def test_a_resumed_model_is_a_model(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 2 * ITERATION, 1)
    model = make_model()
    model.learn(3 * ITERATION, run_folder=tmp_path / "run", resume=True)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=make_env("dummy"))
    observations = model.env.reset()
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    assert loaded.beta == model.beta
    assert math.isfinite(evaluate_policy(model, model.env, n_eval_episodes=4)[0])  # type: ignore[arg-type]
    model.set_parameters(loaded.get_parameters())
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.num_timesteps == 4 * ITERATION


def test_bundles_are_two_and_hold_no_pickle(tmp_path: Path) -> None:
    make_model().learn(4 * ITERATION, run_folder=tmp_path, bundle_interval=0)
    names = [path.name for path in bundle_paths(tmp_path)]
    assert names == [f"bundle_{number * ITERATION:012d}.safetensors" for number in (4, 3)]
    for path in bundle_paths(tmp_path):
        assert len(safetensors.torch.load_file(path)) > 20
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == [*sorted(names), "lock", "run_id"]


def damage_truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def damage_header(data: bytes) -> bytes:
    return data.replace(b'"num_timesteps', b'"num_timestepz', 1).replace(b"_n_updates", b"_n_updatez", 1)


def damage_empty(_data: bytes) -> bytes:
    return b""


def damage_foreign(_data: bytes) -> bytes:
    return safetensors.torch.save({"a": th.zeros(3)}, {"format": "pt"})


def damage_pickle(_data: bytes) -> bytes:
    return b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."


DAMAGES = [damage_truncate, damage_flip, damage_header, damage_empty, damage_foreign, damage_pickle]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_and_the_one_before_it_used(tmp_path: Path, damage: Any) -> None:
    unbroken = make_model().learn(4 * ITERATION, run_folder=tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        make_model().learn(4 * ITERATION, Interrupt(3), run_folder=tmp_path / "run", bundle_interval=0)
    newest = bundle_paths(tmp_path / "run")[0]
    newest.write_bytes(damage(newest.read_bytes()))
    scramble()
    model = make_model()
    with pytest.warns(BundleWarning, match=rf"{newest.name} is not used: it"):
        model.learn(4 * ITERATION, Interrupt(9), run_folder=tmp_path / "run", resume=True)
    assert_same(unbroken, model)
    assert progress(tmp_path / "unbroken") == progress(tmp_path / "run")
    assert newest.with_name(newest.name + ".unreadable").exists()


def test_no_readable_bundle_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    make_model().learn(2 * ITERATION, run_folder=tmp_path, bundle_interval=0)
    paths = bundle_paths(tmp_path)
    for path in paths:
        path.write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"no resume bundle in .* can be used: .*cut off.*Start anew"):
        make_model().learn(2 * ITERATION, run_folder=tmp_path, resume="auto")
    # Also not at the second try, as of a program that is started again and again.
    with pytest.raises(BundleError, match="no resume bundle"):
        make_model().learn(2 * ITERATION, run_folder=tmp_path, resume="auto")
    assert all(path.read_bytes() == b"nothing" for path in paths)
    assert len(progress(tmp_path)) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make_model(PPOClipPaper), "its algorithm is PPOAdaptiveKLPaper, here it is PPOClipPaper"),
        (lambda: make_model(env=make_env("dummy", normalize=False)), r"its environments are in \['VecNormalize'\]"),
        (lambda: make_model(policy_kwargs={"net_arch": [8]}), "it does not fit this run"),
        (lambda: make_model(env=make_env("dummy", n_envs=2), batch_size=32), "its n_envs is 4, here it is 2"),
    ],
)
def test_a_bundle_of_another_run_is_refused(tmp_path: Path, other: Any, message: str) -> None:
    make_model().learn(ITERATION, run_folder=tmp_path)
    model = other()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BundleWarning)
        with pytest.raises(BundleError, match=rf"can(not)? be (resumed|used): .*{message}"):
            model.learn(2 * ITERATION, run_folder=tmp_path, resume=True)
    assert len(bundle_paths(tmp_path)) == 2  # also the one of before the first iteration


def test_other_settings_are_told(tmp_path: Path) -> None:
    make_model().learn(ITERATION, run_folder=tmp_path)
    with pytest.warns(
        BundleWarning, match=r"other settings: kl_target was 0.01 and is 0.02; n_epochs was 10 and is 5$"
    ):
        make_model(kl_target=0.02, n_epochs=5).learn(2 * ITERATION, run_folder=tmp_path, resume=True)


def test_other_versions_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().learn(ITERATION, run_folder=tmp_path)
    monkeypatch.setattr(learning.run_state, "versions", lambda: {"torch": "1.0"})
    with pytest.warns(BundleWarning, match=r"other versions: .*torch was '2[^']*' and is '1.0'"):
        make_model().learn(2 * ITERATION, run_folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resume": True}, "run_folder must name the folder"),
        ({"stretch_schedules": True}, "run_folder must name the folder"),
        ({"resume": "yes"}, "resume must be one of True, False, 'auto'"),
        ({"bundle_interval": -1}, "bundle_interval must be a finite number >= 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model().learn(ITERATION, **arguments)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    make_model().learn(ITERATION, run_folder=tmp_path)
    with pytest.raises(BundleError, match="holds the bundles of a run: resume='auto' goes on with it"):
        make_model().learn(ITERATION, run_folder=tmp_path)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no resume bundle in"):
        make_model().learn(ITERATION, run_folder=tmp_path, resume=True)


def test_two_processes_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_variants.resume.folder.LOCK_PATIENCE", 0.2)
    with RunFolder(tmp_path).owned(), pytest.raises(BundleError, match="another process trains in it"):
        make_model().learn(ITERATION, run_folder=tmp_path)
    make_model().learn(ITERATION, run_folder=tmp_path)


def test_bundles_do_not_pile_up_where_each_writer_is_killed_before_it_removes_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def write_and_die(path: Path, data: bytes) -> None:
        atomic_write(path, data)
        if path.name.startswith("bundle_"):
            raise Killed

    for num_timesteps in range(1, 6):
        monkeypatch.setattr("sb3_ppo_variants.resume.folder.atomic_write", write_and_die)
        with pytest.raises(Killed):
            RunFolder(tmp_path).write(num_timesteps, {})
        assert bundle_paths(tmp_path)[0].name == bundle_name(num_timesteps)
        assert len(bundle_paths(tmp_path)) <= KEPT + 1
    monkeypatch.undo()
    RunFolder(tmp_path).write(6, {})
    assert [path.name for path in bundle_paths(tmp_path)] == [bundle_name(6), bundle_name(5)]


def test_environments_that_do_not_tell_are_named(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from tests.resume.runs import RandomWalk

    def make() -> Any:
        env = SubprocVecEnv([RandomWalk] * N_ENVS, start_method="fork")
        OPENED.append(env)
        return make_model(PPOClipPaper, env)

    with pytest.warns(BundleWarning, match=r"SubprocVecEnv do not tell how their episodes began.*record_episodes"):
        make().learn(ITERATION, run_folder=tmp_path)
    with pytest.warns(BundleWarning, match="do not tell"):
        assert make().learn(2 * ITERATION, run_folder=tmp_path, resume=True).num_timesteps == 2 * ITERATION


def test_an_environment_that_begins_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.resume.runs import RandomWalk

    make_model().learn(ITERATION, run_folder=tmp_path)
    monkeypatch.setattr(RandomWalk, "set_resume_state", lambda self, state: None)
    with pytest.warns(BundleWarning, match="environments 0, 1, 2, 3 begin otherwise than before"):
        make_model().learn(2 * ITERATION, run_folder=tmp_path, resume=True)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    make_model().learn(ITERATION, run_folder=tmp_path)
    with pytest.raises(BundleError, match="it is of another run: its seed is 3, here it is 4"):
        make_model(seed=4).learn(2 * ITERATION, run_folder=tmp_path, resume="auto")
    assert make_model(seed=None).learn(2 * ITERATION, run_folder=tmp_path, resume=True).num_timesteps == 2 * ITERATION


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SharedMemoryVecEnv])
def test_another_task_of_the_same_spaces_is_another_run(vec_env: Any, tmp_path: Path) -> None:
    def go_on(task: str) -> None:
        settings = {"n_workers": 1, "start_method": "fork"} if vec_env is SharedMemoryVecEnv else {}
        env = vec_env([lambda: record_episodes(gym.make(task))], **settings)
        OPENED.append(env)
        model = PPOClipPaper("MlpPolicy", env, n_steps=8, batch_size=8, seed=1, device="cpu")
        model.learn(8, run_folder=tmp_path, resume="auto")

    gym.register("resume/Pole-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    try:
        go_on("CartPole-v1")
        with pytest.raises(BundleError, match="its env_id is CartPole-v1, here it is resume/Pole-v0"):
            go_on("resume/Pole-v0")
    finally:
        gym.registry.pop("resume/Pole-v0")


def test_a_bundle_of_another_run_is_passed_over(tmp_path: Path) -> None:
    """Also one of the same settings, and of a later timestep."""
    make_model().learn(4 * ITERATION, run_folder=tmp_path / "other")
    make_model().learn(2 * ITERATION, run_folder=tmp_path / "run")
    foreign = bundle_paths(tmp_path / "other")[0]
    (tmp_path / "run" / "bundles" / foreign.name).write_bytes(foreign.read_bytes())
    with pytest.warns(BundleWarning, match="is not used: it is of another run"):
        model = make_model().learn(2 * ITERATION, run_folder=tmp_path / "run", resume=True)
    assert_same(make_model().learn(2 * ITERATION), model)


# ------------------------------------------------------------------ interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_the_run_leaves_its_last_iteration(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error) as caught:
        make_model().learn(9 * ITERATION, Interrupt(2, error), run_folder=tmp_path)
    assert bundle_paths(tmp_path)[0].name == f"bundle_{2 * ITERATION:012d}.safetensors"
    if sys.version_info >= (3, 11):
        assert "can go on from 128 timesteps" in caught.value.__notes__[0]


@pytest.mark.slow
def test_sigterm_ends_the_program_with_a_bundle(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import threading, os, signal, time
        from sb3_ppo_variants.resume.names import bundle_paths
        from pathlib import Path
        from tests.resume.runs import make_model

        def end():
            while not (Path({str(tmp_path)!r}) / "progress.csv").exists() or not model.num_timesteps > 200:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        model = make_model()
        threading.Thread(target=end, daemon=True).start()
        try:
            model.learn(10_000_000, run_folder={str(tmp_path)!r})
        finally:
            print("at", model.num_timesteps)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    reached = int(done.stdout.split()[-1])
    # The last iteration that ended; with its last timestep, it may not have come to its update.
    ends = {reached // ITERATION * ITERATION, (reached - 1) // ITERATION * ITERATION}
    assert int(bundle_paths(tmp_path)[0].name[7:19]) in ends - {0}


def test_the_handler_of_sigterm_is_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    make_model().learn(ITERATION, run_folder=tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_is_survived_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_ppo_variants.resume import folder

    original, calls = folder.atomic_write, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if path.name.startswith("bundle") and 2 <= sum(name.startswith("bundle") for name in calls) <= 3:
            raise OSError(28, "No space left on device")
        original(path, data)

    monkeypatch.setattr(folder, "atomic_write", full)
    with pytest.warns(BundleWarning, match="No space left on device. The training goes on; the last bundle is that of"):
        model = make_model().learn(4 * ITERATION, run_folder=tmp_path, bundle_interval=0)
    assert model.num_timesteps == 4 * ITERATION
    assert [int(path.name[7:19]) for path in bundle_paths(tmp_path)] == [4 * ITERATION, 3 * ITERATION]


@pytest.mark.slow
def test_a_really_full_disk_leaves_the_bundle_before(tmp_path: Path) -> None:
    """The process may write no file beyond a size that its first bundle fits into, but not a second, larger one."""
    program = textwrap.dedent(
        f"""
        import os, resource, signal, warnings
        from pathlib import Path
        from sb3_ppo_variants.resume.names import bundle_paths
        from tests.resume.runs import ITERATION, make_model

        warnings.simplefilter("always")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder = Path({str(tmp_path)!r})
        model = make_model()
        model.learn(ITERATION, run_folder=folder)
        size = bundle_paths(folder)[0].stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, size))
        model = make_model()
        model.learn(3 * ITERATION, run_folder=folder, resume=True, bundle_interval=0)
        print(model.num_timesteps, sorted(os.listdir(folder / "bundles")))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "File too large. The training goes on; the last bundle is that of 64 timesteps" in done.stderr
    bundles = [f"bundle_{number * ITERATION:012d}.safetensors" for number in (0, 1)]
    assert done.stdout.strip() == f"{3 * ITERATION} {[*bundles, 'lock', 'run_id']}"


def test_a_jump_of_the_clock_is_left_out_of_logged_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = 0.0
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(offset * 1e9))

    class Jump(BaseCallback):
        def _on_rollout_start(self) -> None:
            nonlocal offset
            if self.num_timesteps == ITERATION:
                offset = -5000.0

        def _on_step(self) -> bool:
            return True

    env = make_env("dummy", tmp_path)
    with pytest.warns(BundleWarning, match="clock jumped by -5000 seconds"):
        make_model(env=env).learn(3 * ITERATION, Jump(), run_folder=tmp_path)
    last = float((tmp_path / "0.monitor.csv").read_text().splitlines()[-1].split(",")[2])
    assert 0 <= last < 100
    with open(tmp_path / "progress.csv", newline="") as file:
        elapsed = [int(row["time/time_elapsed"]) for row in csv.DictReader(file)]
    assert elapsed == sorted(elapsed)
    assert all(0 <= seconds < 100 for seconds in elapsed)


def test_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    make_model().learn(ITERATION, run_folder=tmp_path)
    stale = tmp_path / "bundles" / f".bundle_{2 * ITERATION:012d}.safetensors.abc.tmp"
    stale.write_bytes(b"half a bundle")
    make_model().learn(2 * ITERATION, run_folder=tmp_path, resume=True)
    assert not stale.exists()
