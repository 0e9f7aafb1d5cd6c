"""The benchmarks run, and the physics alone are those of the recorded episodes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import sb3_ppo_variants  # noqa: F401  # registers the tasks
from tests.helpers import BENCHMARKS, benchmark

HARDER = "RoboschoolHumanoidFlagrunHarder-v1"
TASKS = ["RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrun-v1", HARDER]


@pytest.fixture
def recording() -> ModuleType:
    return benchmark("recording")


@pytest.fixture
def soak() -> ModuleType:
    return benchmark("soak")


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("task", TASKS)
def test_the_physics_replay_the_recorded_episodes_bit_for_bit(recording: ModuleType, task: str) -> None:
    # The harder task throws its cube at once, so that a replay without the throws would show.
    hard = {"throw_period": 2, "throw_after": 0, "pose_probabilities": (1.0, 0.0, 0.0)}
    keywords: dict[str, Any] = hard if task == HARDER else {}
    with gym.make(task, **keywords) as env, gym.make(task, **keywords) as other:
        recorded = recording.record(env, recording.untrained_policy(0), 60, 0)
        assert recording.time_physics(env, recorded) > 0.0
        assert recording.time_physics(other, recorded) > 0.0
    places = [body for bodies in recorded.placements.values() for body, _ in bodies]
    assert len(recorded.starts) == recorded.ends + 1 > 2
    assert places.count(0) == len(recorded.starts)
    assert (places.count(1) > 5) == (task == HARDER)


@pytest.mark.parametrize("field", ["actions", "placements"])
def test_a_replay_of_something_else_is_refused(recording: ModuleType, field: str) -> None:
    with gym.make("RoboschoolHumanoid-v1") as env:
        recorded = recording.record(env, recording.untrained_policy(0), 30, 0)
        changed = {"actions": -recorded.actions, "placements": {0: recorded.placements[0]}}
        with pytest.raises(RuntimeError, match="bit for bit"):
            recording.time_physics(env, recorded._replace(**{field: changed[field]}))


def test_the_policies_take_one_observation_or_many(recording: ModuleType) -> None:
    for policy in (recording.untrained_policy(0), recording.standing_policy()):
        assert policy(np.zeros(44, np.float32)).shape == (17,)
        assert policy(np.zeros((3, 44), np.float32)).shape == (3, 17)


def test_the_weights_of_roboschools_files_are_read_and_nothing_is_run(recording: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "dense1_w": (44, 8),
        "dense1_b": (8,),
        "dense2_w": (8, 4),
        "dense2_b": (4,),
        "final_w": (4, 17),
        "final_b": (17,),
    }
    arrays = {name: rng.normal(size=shape).round(4).astype(np.float32) for name, shape in shapes.items()}
    text = "\n".join(f"weights_{name} = np.array({array.tolist()})" for name, array in arrays.items())
    (tmp_path / "agent.weights").write_text(f"import numpy as np\nimport no_such_module\n{text}\nraise SystemExit\n")
    np.savez(tmp_path / "agent.npz", **arrays)  # type: ignore[arg-type]
    observation = rng.normal(size=44).astype(np.float32)
    hidden = np.maximum(observation @ arrays["dense1_w"] + arrays["dense1_b"], 0)
    hidden = np.maximum(hidden @ arrays["dense2_w"] + arrays["dense2_b"], 0)
    for name in ("agent.weights", "agent.npz"):
        action = recording.network_policy(str(tmp_path / name))(observation)
        assert action == pytest.approx(hidden @ arrays["final_w"] + arrays["final_b"], abs=1e-5)
    for text, name in (("import os", "dense1_w"), ("weights_dense1_w = np.array([[1.0]])", "dense1_b")):
        (tmp_path / "agent.py").write_text(text)
        with pytest.raises(ValueError, match=rf"agent\.py must assign weights_{name}"):
            recording.network_policy(str(tmp_path / "agent.py"))


@pytest.mark.slow
def test_env_throughput_compares_in_one_process_and_vectorised() -> None:
    printed = run("env_throughput.py", "--env", HARDER, "--steps", "20", "--vectorised-steps", "10", "--rounds", "1")
    assert printed.count("one process:") == printed.count("vectorised:") == 2
    assert printed.count("ours / physics alone") == 2 + 2 * 3


@pytest.mark.slow
def test_env_throughput_measures_memory() -> None:
    assert "GiB [8.00: pass]" in run("env_throughput.py", "--memory")


@pytest.mark.slow
def test_train_throughput_trains_ours_and_the_peers() -> None:
    sizes = ["--horizon", "16", "--batch-size", "128", "--rounds", "1", "--threads", "1"]
    printed = run("train_throughput.py", "--env", "RoboschoolHumanoid-v1", *sizes)
    assert "ours, update on 1 thread" in printed
    assert ("SB3, update on 1 thread" in printed) == (importlib.util.find_spec("pybullet_envs_gymnasium") is not None)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_many_throughput_measures_ours_and_the_peer(processes: str) -> None:
    sizes = ["--env", "InvertedPendulum-v5", "--timesteps", "64", "--rounds", "1", "--processes", processes]
    printed = run("many_throughput.py", *sizes)
    assert re.search(r"InvertedPendulum-v5: .* times.*wanted: (holds|SHORT)", printed)
    assert bool(re.search(r"its environment alone \d+\.\d\d times$", printed.strip())) == (processes == "2")


@pytest.mark.slow
def test_many_scores_compares_agents_with_themselves_alone() -> None:
    printed = run("many_scores.py", "--timesteps", "1024", "--seeds", "3")
    assert re.search(r"they differ by .* wanted: (equivalent|NOT SHOWN)", printed)


@pytest.mark.slow
def test_update_throughput_measures_both_parts() -> None:
    printed = run("update_throughput.py", "--shapes", "table_3", "--threads", "1", "--repetitions", "1")
    assert "update, per gradient step" in printed
    assert "rollout, per step" in printed


@pytest.mark.slow
def test_render_rate_compares_with_pybullets_pictures() -> None:
    printed = run("render_rate.py", "--frames", "2")
    assert "tiny: medians of 2 frames" in printed
    assert printed.count("ours / this:") == 3


@pytest.mark.slow
def test_vec_env_overhead_compares_all_four() -> None:
    pytest.importorskip("ray")
    printed = run("vec_env_overhead.py", "--n-envs", "2", "--steps", "5", "--rounds", "1")
    for name in ("DummyVecEnv", "SubprocVecEnv", "SharedMemoryVecEnv", "RayVecEnv"):
        assert f"  {name} " in printed


@pytest.mark.slow
def test_vec_env_overhead_measures_the_memory_of_a_worker() -> None:
    pytest.importorskip("ray")
    printed = run("vec_env_overhead.py", "--memory", "--workers", "1")
    assert printed.count("MB per environment") == (2 if Path("/proc/self/smaps_rollup").exists() else 0)


def test_soak_sees_nearly_all_of_a_leak(soak: ModuleType) -> None:
    leaking = [(seconds, 1 + 0.06 * seconds / 1800) for seconds in np.arange(0.0, 1800.0, 10.0)]
    assert soak.growth(leaking) > 0.05
    assert soak.growth([(seconds, memory if seconds < 60 else 1.0) for seconds, memory in leaking]) == 0
    assert soak.growth(leaking[:3]) == 0  # no longer than what may grow


def test_soak_tells_of_what_ended_its_killing(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watch:
        elapsed, replaced, seconds = 1.0, 0, 60.0

    def no_such_process() -> float:
        asked.set()
        raise ProcessLookupError("it was there")

    asked = threading.Event()
    monkeypatch.setattr(soak, "tree_memory", no_such_process)
    watch = Watch()
    with pytest.raises(ProcessLookupError, match="it was there"), soak.Killer(watch, 10.0).at_work():
        assert asked.wait(10)
    assert watch.seconds == 0  # the training ends


@pytest.mark.slow
def test_soak_kills_and_counts() -> None:
    printed = run("soak.py", "--minutes", "0.2", "--envs", "2", "--kill-every", "4")
    assert "FAIL" not in printed
    assert printed.count("ok   ") == 10


def test_advantages_without_the_errors_of_new_flags() -> None:
    flag_changes = benchmark("flag_changes")
    errors = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 8.0]])
    ends = np.array([[False, False], [True, False], [False, False]])
    advantages = flag_changes.gae(errors, ends, 0.5)
    np.testing.assert_allclose(advantages, [[2.0, 2.0], [2.0, 4.0], [4.0, 8.0]])
    callback = flag_changes.FlagChanges()
    callback.locals = {"infos": [{"flag": 0}, {"flag": 3}]}
    callback._on_rollout_start()
    for flags in ((0, 3), (1, 3), (1, 0)):
        callback.locals["infos"] = [{"flag": flag} for flag in flags]
        callback._on_step()
    np.testing.assert_array_equal(callback.changes(), [[False, False], [True, False], [False, False]])


def test_falls_are_told_apart_by_what_went_before() -> None:
    falls = benchmark("falls")
    cosines = np.full(120, 1.0)
    cosines[30] = 0.4
    turning = falls.is_turning(cosines)
    assert np.flatnonzero(turning).tolist() == list(range(30, 71))
    in_turn, straight = falls.Episode(10.0, turning[:80], True), falls.Episode(20.0, turning, True)
    through = falls.Episode(60.0, turning, False)
    assert [each.fell_in_turn for each in (in_turn, straight, through)] == [True, False, False]
    assert [line.strip() for line in falls.described([in_turn, straight, through], 0).splitlines()] == [
        "return 30 (standard error 15), falls: 2 of 3 episodes",
        "straight: 1 in 197 steps, one in 197.0",
        "turning: 1 in 123 steps, one in 123.0",
    ]
    # In steps 30 and 60 of each, and 90 of the longer two.
    assert [line.strip() for line in falls.described([in_turn, straight, through], 30).splitlines()[1:]] == [
        "straight: 1 in 2 cubes, one in 2.0",
        "turning: 1 in 6 cubes, one in 6.0",
    ]


def test_under_fire_the_agent_that_ships_falls_sooner() -> None:
    agent = str(Path(__file__).parents[1] / "trained_agents" / HARDER)
    printed = run("falls.py", "--agent", agent, "--episodes", "3")
    without, fire = (float(each) for each in re.findall(r"return (\d+)", printed))
    assert fire < without
    assert re.search(r"without cubes: .*\n  straight: .* steps", printed)
    assert re.search(r"under fire: .*\n  straight: .* cubes", printed)


def test_a_rewards_terms_add_up_and_actions_beyond_the_motors_cost() -> None:
    terms = benchmark("reward_terms")

    class Outstretched:
        """Gives all motors twice what they can."""

        def predict(self, observation: Any, deterministic: bool) -> tuple[Any, None]:
            return np.full(17, 2.0, dtype=np.float32), None

    env = gym.make("RoboschoolHumanoidFlagrun-v1")
    raw, clipped = (terms.play(Outstretched(), env, range(3, 5), clips=clips) for clips in (False, True))
    env.close()
    for steps in (raw, clipped):
        assert steps.returns.sum() == pytest.approx(steps.n_steps * sum(steps.terms.values()))
        assert (steps.beyond, len(steps.returns)) == (1.0, 2)
        assert steps.hinges_at_limit == pytest.approx(-steps.terms["joints_at_limit"] / 0.2)
    assert raw.n_steps == clipped.n_steps  # the motors give the same
    assert raw.terms["electricity"] < 2 * clipped.terms["electricity"] < 0.0
    assert f"return {raw.returns.mean():.0f} " in terms.described(raw)


def test_the_reward_terms_of_the_agent_that_ships() -> None:
    printed = run("reward_terms.py", "RoboschoolHumanoid-v1", "--episodes", "2")
    as_it_is, clipped = map(int, re.findall(r"return (\d+) ", printed))
    assert 4400 < as_it_is < clipped
    assert re.search(r"in the mean step: alive 2\.000, progress \d\.\d+, electricity -", printed)
