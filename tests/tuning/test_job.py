"""Jobs: what a file may say, and what is said of what it may not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from sb3_ppo_variants import ALGORITHMS
from sb3_ppo_variants.tuning import load_job, read_job
from sb3_ppo_variants.tuning.job import jobs_that_ship
from sb3_ppo_variants.tuning.spaces import has_papers_values, paper_params
from sb3_ppo_variants.zoo import data_folder

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "algorithm": "ppo_clip_paper",
    "environment": "Pendulum-v1",
    "budget": {"trials": 3, "timesteps": 100_000},
}


def test_what_a_job_leaves_out() -> None:
    job = read_job(MINIMAL)
    assert job.seeds == 3
    assert job.training_seeds == [0, 1000, 2000]
    assert job.fresh_seeds == [1_000_000 + index * 1000 for index in range(5)]
    assert (job.sampler.name, job.pruner.name) == ("tpe", "median")
    assert job.url == "sqlite:///logs/tune/tiny/study.db"
    assert job.base["learning_rate"]["start"] == 1e-3  # zoo_configs' entry for the task
    assert job.base["n_timesteps"] == 100_000
    assert job.boundaries[-1] == 100_000
    assert len(job.boundaries) == 3  # the longest rollout of the space is 16 * 2048


def test_an_atari_game_has_table_5_and_a_base_for_pictures() -> None:
    budget = {"trials": 3, "timesteps": 1_000_000}
    for environment in ("ALE/Pong-v5", "ale_py:ALE/Pong-v5"):
        job = read_job({**MINIMAL, "environment": environment, "budget": budget})
        assert job.environment == "ALE/Pong-v5"
        assert (job.base["policy"], job.base["frame_stack"]) == ("CnnPolicy", 4)
        settings = job.settings(paper_params(job.algorithm, job.environment, job.space))
        assert (settings["n_envs"], settings["n_steps"], settings["batch_size"]) == (8, 128, 256)
        assert has_papers_values(job.algorithm, job.environment, settings)
    with pytest.raises(ValueError, match="has settings neither for ALE/Pong-v5 nor for 'atari'"):
        read_job({**MINIMAL, "algorithm": "vanilla_pg_paper", "environment": "ALE/Pong-v5", "budget": budget})


def test_seeds_are_farther_apart_than_a_trainings_environments_are_many() -> None:
    """SB3 seeds environment i with seed + i."""
    job = load_job("ppo_clip_paper_humanoid")
    largest = max(next(each for each in job.space if each.name == "n_envs").choices)
    seeds = sorted([*job.training_seeds, *job.fresh_seeds])
    assert all(later - earlier >= largest for earlier, later in itertools.pairwise(seeds))


def test_a_chunk_holds_the_longest_rollout() -> None:
    objective = {"chunks": 4}
    with pytest.raises(ValueError, match=r"objective: chunks must be at most 3, so that .* rollout, 32768 of 100000"):
        read_job({**MINIMAL, "objective": objective})
    assert len(read_job({**MINIMAL, "objective": objective, "space": {"n_steps": {"choices": [512]}}}).boundaries) == 4


@pytest.mark.parametrize("name", jobs_that_ship())
def test_the_jobs_that_ship(name: str) -> None:
    job = load_job(name)
    assert job.name == name
    assert load_job(data_folder("tune") / f"{name}.yml") == job


def test_each_variant_has_a_job_that_ships() -> None:
    assert {load_job(name).algorithm for name in jobs_that_ship()} == set(ALGORITHMS)
    assert "ppo_clip_paper_humanoid" in jobs_that_ship()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": 1}, "unknown key of a job 'nmae', did you mean 'name'"),
        ({"name": "a/b"}, "name must be 1 to 100 letters"),
        ({"algorithm": "ppo_clip_papre"}, "algorithm must be one of .*did you mean 'ppo_clip_paper'"),
        ({"environment": "Pendulum-v7x"}, "unknown task 'Pendulum-v7x', did you mean 'Pendulum-v1'"),
        ({"budget": {"trials": 3}}, "budget must have 'timesteps'"),
        ({"budget": {"trials": 0, "timesteps": 10}}, "budget: trials must be an integer >= 1; got 0"),
        ({"budget": {"trials": 1, "timestep": 10}}, "unknown key of budget 'timestep', did you mean 'timesteps'"),
        ({"fixed": {"n_timesteps": 5}}, "fixed: n_timesteps is what 'budget: timesteps' says; leave it out"),
        ({"fixed": {"stats_window_size": 5}}, "fixed: stats_window_size is what 'objective: episodes' says"),
        ({"space": {"n_minibatches": None, "n_steps": {"choices": [100]}}}, "batch_size must divide .*; 64 does not"),
        ({"seeds": 0}, "seeds must be an integer >= 1; got 0"),
        ({"sampler": "tpee"}, "sampler must be one of 'tpe', 'random'; got 'tpee'"),
        ({"sampler": {"seed": 1}}, "sampler must be a name or a mapping with a name"),
        ({"pruner": 3}, "pruner must be a mapping with strings as keys; got 3"),
        ({"objective": {"chunks": 0}}, "objective: chunks must be an integer >= 1; got 0"),
        ({"rerun": {"seeds": 1}}, "rerun: seeds must be an integer >= 2; got 1"),
        ({"heartbeat": {"interval": 10, "grace": 10}}, "grace must be larger than its interval 10; got 10"),
        ({"storage": "study.db"}, "storage must be journal:<file> or a URL"),
        ({"patience": -1}, "patience must be a finite number of seconds >= 0; got -1"),
        ({"fixed": {"gamam": 1}}, "unknown config key 'gamam', did you mean 'gamma'"),
        ({"fixed": {"gamma": 2}}, r"gamma must be a number in \[0, 1\]; got 2"),
        ({"base": "nowhere.yml"}, "nowhere.yml cannot be read"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_job({**MINIMAL, **change})


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "job.yml"
    path.write_text("name: x\nname: y\n")
    with pytest.raises(ValueError, match=r"job.yml, line 2: the key 'name' is given twice"):
        load_job(path)
    path.write_text("name: x\n")
    with pytest.raises(ValueError, match=r"job.yml: a job must have 'algorithm'"):
        load_job(path)
    with pytest.raises(ValueError, match=r"unknown job .*did you mean 'ppo_clip_paper_pendulum'"):
        load_job("ppo_clip_paper_pendulun")


def test_a_base_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("default: {policy: MlpPolicy, n_timesteps: 1, gamma: 0.9}\n")
    job = read_job({**MINIMAL, "base": "base.yml"}, tmp_path)
    assert job.base == {"policy": "MlpPolicy", "n_timesteps": 100_000, "gamma": 0.9}
    assert read_job({**MINIMAL, "base": {"policy": "MlpPolicy"}}).base["policy"] == "MlpPolicy"
