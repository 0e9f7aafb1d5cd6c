"""Real trainings, tiny: each algorithm's, and one that is killed and gone on with."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_ppo_variants import PPOClipPaper, presets
from sb3_ppo_variants.reproduce.figure3 import figure3
from sb3_ppo_variants.reproduce.monitor import read_episodes
from sb3_ppo_variants.reproduce.results import Results, Row
from sb3_ppo_variants.reproduce.settings import FIGURE_3_SETTINGS, SETTINGS, TABLE_1_SETTINGS, Run, selected
from sb3_ppo_variants.reproduce.training import train_runs
from tests.reproduce.environments import BREAKING, ECHO, EVEN

STEPS = 4096


def _unheard(_: int) -> None: ...


PROGRAM = """
import sys
import sb3_ppo_variants.reproduce.training as training
from sb3_ppo_variants.reproduce.table1 import table1
training.BUNDLE_INTERVAL = 0.0
if __name__ == "__main__":
    table1(tasks=["tests.reproduce.environments:Reacher64-v0"], settings=["none", "clip_0.2"], seeds=[0, 1],
           timesteps=4096, results=sys.argv[1], output=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_table_has_the_rows_of_an_unkilled_one(tmp_path: Path) -> None:
    def run(folder: Path) -> Any:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], start_new_session=True)

    selection = selected(TABLE_1_SETTINGS, [EVEN], ["none", "clip_0.2"], [0, 1], STEPS)
    killed = Results(tmp_path / "killed", STEPS)
    process = run(killed.folder)
    # Between the first iteration's bundles, all of them, and the end.
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(killed.in_progress.glob("*/agent_*/bundles/*2048*"))) == 4:
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert len(killed.missing(selection.runs())) == 4
    assert len(list(killed.in_progress.glob("*/agent_*/bundles/*2048*"))) == 4
    assert run(killed.folder).wait(120) == 0
    unkilled = Results(tmp_path / "unkilled", STEPS)
    assert run(unkilled.folder).wait(120) == 0
    rows = killed.rows(selection.runs())
    assert len(rows) == 4
    assert rows == unkilled.rows(selection.runs())
    assert killed.path(EVEN).read_bytes() == unkilled.path(EVEN).read_bytes()


@pytest.mark.slow
def test_a_row_is_that_of_the_algorithm_alone(tmp_path: Path) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    (row,) = train_runs([Run(EVEN, SETTINGS["clip_0.2"], 3)], 2048, tmp_path / "block", _unheard)
    # In one rollout nothing is learned yet: the episodes are bit for bit those of the algorithm alone.
    env = make_vec_env(EVEN, monitor_dir=str(tmp_path / "alone"))
    PPOClipPaper("MlpPolicy", env, seed=3, device="cpu", clip_range=0.2, **presets.TABLE_1).learn(2048)
    env.close()
    alone = read_episodes(tmp_path / "alone")
    assert (row.episodes, row.score) == (32, pytest.approx(np.mean(alone.returns), abs=1e-5))
    assert row.settings["clip_range"] == 0.2
    assert row.settings["policy_kwargs"]["activation_fn"] == "Tanh"
    assert json.loads(json.dumps(row.settings)) == row.settings


@pytest.mark.slow
@pytest.mark.parametrize("name", [setting.name for setting in FIGURE_3_SETTINGS])
def test_each_algorithm_of_figure_3(name: str, tmp_path: Path) -> None:
    figure = figure3(
        tasks=["InvertedPendulum-v5"], settings=[name], seeds=[0], timesteps=2500, results=tmp_path, output=tmp_path
    )
    (row,) = figure.rows
    assert (row.setting, row.timesteps, row.diverged) == (name, 2500, None)
    assert row.score is not None
    assert 2 < row.score < 200
    assert row.episodes > 20
    assert sum(value is not None for value in row.curve) > 50
    assert list(tmp_path.glob("in_progress/2500/*/")) == []


@pytest.mark.parametrize("name", ["a2c", "a2c_trust_region", pytest.param("trpo", marks=pytest.mark.slow)])
def test_actions_are_not_clipped(name: str, tmp_path: Path) -> None:
    (row,) = train_runs([Run(ECHO, SETTINGS[name], 0)], 80, tmp_path, _unheard)
    # The larger of two actions of deviation 1, five times; clipped to the box it would be 0.5.
    assert row.score is not None
    assert row.score > 2
    assert row.settings["clip_actions"] is False


@pytest.mark.parametrize("name", ["clip_0.2", "vanilla_pg", "a2c", "cem"])
def test_a_training_says_how_far_it_is(name: str, tmp_path: Path) -> None:
    setting, heard = SETTINGS[name], list[int]()
    if name in ("clip_0.2", "vanilla_pg"):
        own = {**dict(setting.own), "n_steps": 16, "batch_size": 16}
        setting = dataclasses.replace(setting, own=tuple(own.items()))
    train_runs([Run(ECHO, setting, 0)], 80, tmp_path, heard.append)
    assert heard[-1] == 80
    assert heard == sorted(heard)
    assert len(heard) >= 5


def _diverging_after(n_steps: int) -> Run:
    """A run whose first update, after so many timesteps, diverges."""
    own = (("learning_rate", 1e38), ("n_steps", n_steps), ("batch_size", n_steps), ("n_epochs", 2))
    return Run(ECHO, dataclasses.replace(SETTINGS["none"], own=own), 0)


def test_a_training_that_diverges_in_its_last_update_has_diverged(tmp_path: Path) -> None:
    (row,) = train_runs([_diverging_after(64)], 64, tmp_path, _unheard)
    assert (row.diverged, row.episodes) == (64, 12)  # of five timesteps


def test_a_training_that_diverges_before_an_episode_has_ended_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    diverging = _diverging_after(4)  # of the five timesteps of an episode
    own = tuple((name, value) for name, value in diverging.setting.own if name != "learning_rate")
    other = Run(ECHO, dataclasses.replace(diverging.setting, name="clip_0.1", own=own), 0)
    results = Results(tmp_path, 40)
    results.add(train_runs([diverging, other], 40, tmp_path / "block", _unheard))
    first, second = results.rows([diverging, other]).values()
    assert (first.score, first.episodes, first.diverged, set(first.curve)) == (None, 0, 4, {None})
    assert (second.episodes, second.diverged) == (8, None)
    assert second.score is not None
    with pytest.raises(ValueError, match=r"timesteps must be enough for an episode of .* to end; got 4"):
        train_runs([other], 4, tmp_path / "short", _unheard)


@pytest.mark.slow
def test_a_training_that_diverges_is_a_row(tmp_path: Path) -> None:
    # 299 steps of each environment have rewards: four episodes of 64. PPO has one environment, A2C sixteen.
    for name, n_envs in (("clip_0.2", 1), ("vanilla_pg", 1), ("a2c", 16)):
        rows: list[Row] = train_runs([Run(BREAKING, SETTINGS[name], 0)], 10_000, tmp_path / name, _unheard)
        assert rows[0].diverged is not None
        assert 300 * n_envs <= rows[0].diverged <= 310 * n_envs
        assert rows[0].episodes == 4 * n_envs
        assert rows[0].score is not None
        assert -1000 < rows[0].score < 0


@pytest.mark.slow
def test_too_few_timesteps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timesteps must be enough for an episode of HalfCheetah-v5 to end; got 50"):
        train_runs([Run("HalfCheetah-v5", SETTINGS["a2c"], 0)], 50, tmp_path, _unheard)
