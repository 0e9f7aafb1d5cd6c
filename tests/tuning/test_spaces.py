"""Spaces: the paper's values are in them, exactly; whatever is drawn trains; what a job changes is checked."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS
from sb3_ppo_variants.tuning import read_job
from sb3_ppo_variants.tuning.job import Job
from sb3_ppo_variants.tuning.spaces import (
    Parameter,
    default_space,
    has_papers_values,
    paper_params,
    paper_settings,
    settings_of,
    suggest,
)
from sb3_ppo_variants.zoo import read_hyperparams

TASKS = ("Pendulum-v1", "CartPole-v1", "RoboschoolHumanoid-v1", "RoboschoolHumanoidFlagrunHarder-v0", "ALE/Pong-v5")
CASES = [
    (algorithm, task)
    for algorithm in ALGORITHMS
    for task in TASKS
    if task != "ALE/Pong-v5" or algorithm == "ppo_clip_paper"  # Table 5 is of the clipped surrogate
]


class Draw:
    """A trial that draws evenly."""

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)

    def suggest_categorical(self, _name: str, choices: list[Any]) -> Any:
        return choices[self._random.integers(len(choices))]

    def suggest_float(self, _name: str, low: float, high: float, log: bool) -> float:
        if log:
            return float(np.clip(math.exp(self._random.uniform(math.log(low), math.log(high))), low, high))
        return float(self._random.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, log: bool) -> int:
        return round(self.suggest_float(name, low, high, log))


def base_of(task: str) -> dict[str, Any]:
    policy = "CnnPolicy" if task.startswith("ALE/") else "MlpPolicy"
    return {"policy": policy, "n_timesteps": 1_000_000}


def job_of(algorithm: str = "ppo_clip_paper", timesteps: int = 200_000, **keys: Any) -> Job:
    budget = {"trials": 2, "timesteps": timesteps}
    return read_job({"name": "x", "algorithm": algorithm, "environment": "Pendulum-v1", "budget": budget, **keys})


@pytest.mark.parametrize(("algorithm", "task"), CASES)
def test_the_papers_values_are_in_the_space_exactly(algorithm: str, task: str) -> None:
    space = default_space(algorithm, task, base_of(task))
    params = paper_params(algorithm, task, space)
    paper = paper_settings(algorithm, task)
    assert all(parameter.contains(params[parameter.name]) for parameter in space if parameter.name in params)

    kind = getattr(sb3_ppo_variants, ALGORITHMS[algorithm])
    settings = read_hyperparams(kind, settings_of(algorithm, base_of(task), params))
    for name in ("n_envs", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef"):
        assert settings[name] == paper[name], name
    assert has_papers_values(algorithm, task, settings_of(algorithm, base_of(task), params))
    for name, value in (("n_steps", 100), ("learning_rate", 1e-7), ("gamma", 0.5)):
        changed = {**settings_of(algorithm, base_of(task), params), name: value}
        assert not has_papers_values(algorithm, task, changed), name


@pytest.mark.parametrize(("algorithm", "task"), CASES)
def test_whatever_is_drawn_is_taken_and_its_minibatches_divide_the_rollout(algorithm: str, task: str) -> None:
    space = default_space(algorithm, task, base_of(task))
    kind = getattr(sb3_ppo_variants, ALGORITHMS[algorithm])
    for seed in range(30):
        params = suggest(space, Draw(seed))
        settings = settings_of(algorithm, base_of(task), params)
        assert json.loads(json.dumps(settings)) == settings
        read_hyperparams(kind, settings)
        rollout = settings["n_envs"] * settings["n_steps"]
        assert rollout // settings["batch_size"] == params["n_minibatches"]
        assert rollout % settings["batch_size"] == 0


def test_conditional_parameters_exist_where_they_matter() -> None:
    space = default_space("vanilla_pg_paper", "Pendulum-v1", base_of("Pendulum-v1"))
    for seed in range(40):
        params = suggest(space, Draw(seed))
        assert ("log_std_start" in params) == params["anneal_log_std"]
        assert ("stepsize_kl_target" in params) == params["adapt_stepsize"]
        assert ("ent_coef" in params) == params["entropy_bonus"]
        assert ("gae_lambda" in params) == (params["advantage_estimator"] == "gae")


def test_discrete_actions_have_no_log_std() -> None:
    names = [parameter.name for parameter in default_space("ppo_clip_paper", "CartPole-v1")]
    assert "anneal_log_std" not in names
    assert "adapt_stepsize" not in [each.name for each in default_space("ppo_adaptive_kl_paper", "CartPole-v1")]


def test_rollouts_that_are_no_powers_of_two_have_minibatches_that_divide_them() -> None:
    base = {"policy": "MlpPolicy", "n_timesteps": 1, "n_envs": 5, "n_steps": 200}
    assert settings_of("ppo_clip_paper", base, {"n_minibatches": 32})["batch_size"] == 25
    assert settings_of("ppo_clip_paper", {**base, "n_envs": 1, "n_steps": 7}, {"n_minibatches": 4})["batch_size"] == 1


def test_gamma_is_one_value() -> None:
    base = {"policy": "MlpPolicy", "n_timesteps": 1, "normalize": {"norm_obs": True, "gamma": 0.5}}
    settings = settings_of("ppo_clip_paper", base, {"one_minus_gamma": 1 - 0.99})
    assert settings["gamma"] == 0.99
    assert settings["normalize"] == {"norm_obs": True}  # rl_zoo3 hands it the agent's
    assert base["normalize"] == {"norm_obs": True, "gamma": 0.5}


def test_nothing_is_annealed_where_neither_stepsize_nor_clip_range_varies() -> None:
    keys: dict[str, Any] = {"algorithm": "ppo_fixed_kl_paper", "fixed": {"learning_rate": 1e-4}}
    assert "anneal" not in {each.name for each in job_of(**keys).space}
    left_out = job_of(algorithm="ppo_fixed_kl_paper", space={"learning_rate": None})
    assert "anneal" not in {each.name for each in left_out.space}


def test_what_is_fixed_does_not_vary() -> None:
    names = {each.name for each in job_of(fixed={"learning_rate": 1e-4, "policy_kwargs": {"net_arch": [32]}}).space}
    assert not names & {"learning_rate", "anneal", "network", "activation"}
    assert "clip_range" in names


def test_a_job_changes_a_space() -> None:
    job = job_of(
        space={
            "surrogate": None,
            "anneal_log_std": None,
            "learning_rate": {"high": "1e-3"},
            "n_epochs": {"type": "categorical", "choices": [5, 20]},
            "vf_coef": {"type": "float", "low": 0.1, "high": 2, "when": {"anneal": True}},
        }
    )
    space = {parameter.name: parameter for parameter in job.space}
    assert not {"surrogate", "anneal_log_std", "log_std_start", "log_std_end"} & set(space)
    assert (space["learning_rate"].low, space["learning_rate"].high, space["learning_rate"].log) == (1e-5, 1e-3, True)
    assert space["vf_coef"].exists({"anneal": True})
    assert not space["vf_coef"].exists({"anneal": False})
    names = list(space)
    assert names.index("anneal") < names.index("vf_coef")
    # The paper's ten epochs are no choice any more: the nearest is.
    assert paper_params("ppo_clip_paper", "Pendulum-v1", job.space)["n_epochs"] == 5


@pytest.mark.parametrize(
    "keys",
    [
        {"space": {"network": {"choices": ["256x256"]}}},
        {"fixed": {"policy_kwargs": {"net_arch": [8]}}},
        {"fixed": {"vf_coef": 50}},
        {"fixed": {"normalize_advantage": False}},
    ],
)
def test_a_first_trial_that_is_not_the_papers_is_not_called_so(keys: dict[str, Any]) -> None:
    job = job_of(**keys)
    params = paper_params(job.algorithm, job.environment, job.space)
    assert not has_papers_values(job.algorithm, job.environment, job.settings(params))


def test_a_space_may_be_what_the_job_names_and_nothing_else() -> None:
    job = job_of(space={"clip_range": {}, "learning_rate": {"low": 1e-4}}, whole_space=False)
    assert {parameter.name: parameter.low for parameter in job.space} == {"clip_range": 0.05, "learning_rate": 1e-4}
    with pytest.raises(ValueError, match="whole_space must be one of True, False; got 'no'"):
        job_of(whole_space="no")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"n_steps": {"choices": ["a"]}}, "space: n_steps must be integers >= 1; got 'a'"),
        ({"n_minibatches": {"choices": [0]}}, "space: n_minibatches must be integers >= 1; got 0"),
        ({"n_epochs": {"type": "float", "low": 1, "high": 2}}, "n_epochs: type must be 'int' or 'categorical'"),
        ({"anneal": {"choices": ["x"]}}, "space: anneal must have choices true, false or both"),
        ({"activation": {"choices": ["foo"]}}, "space: the first trial's values are refused: unknown activation_fn"),
        (
            {"one_minus_gamma": {"type": "categorical", "choices": ["a"]}},
            "space: one_minus_gamma must be finite numbers; got 'a'",
        ),
        (
            {"learning_rate": None, "clip_range": None, "anneal": {"choices": [True]}},
            "space: anneal needs learning_rate or clip_range",
        ),
        ({"n_envs": {"type": "int", "low": 1, "high": 10**12}}, "n_envs \\* n_steps must be at most"),
        ({"learnig_rate": None}, "unknown parameter of the space 'learnig_rate', did you mean 'learning_rate'"),
        ({"gamma": {"type": "float", "low": 0.9, "high": 1}}, "unknown parameter of the space 'gamma'"),
        ({"vf_coef": {"low": 1, "high": 2}}, "vf_coef must have a type: float, int, categorical"),
        ({"vf_coef": {"type": "flaot"}}, "vf_coef: type must be one of .*did you mean 'float'"),
        ({"vf_coef": 3}, "vf_coef must be null or a mapping"),
        ({"vf_coef": {"type": "float", "low": 2, "high": 1}}, "low must be at most high; got 2.0 and 1.0"),
        ({"vf_coef": {"type": "float", "low": "x", "high": 1}}, "vf_coef: low must be a finite number; got 'x'"),
        ({"vf_coef": {"type": "float", "low": 1}}, "vf_coef: high must be a finite number; got None"),
        ({"clip_range": {"low": 0}}, "clip_range: low must be > 0 on a log scale; got 0.0"),
        ({"gae_lambda": {"high": 1.5}}, r"gae_lambda cannot be 1.5: gae_lambda must be a number in \[0, 1\]; got 1.5"),
        ({"one_minus_gamma": {"high": 2.0}}, r"one_minus_gamma cannot be 2.0: gamma must be a number in \[0, 1\]"),
        ({"n_epochs": {"type": "int", "low": 0, "high": 3}}, "space: n_epochs must be integers >= 1; got 0"),
        ({"surrogate": {"choices": ["clip", "clop"]}}, "surrogate cannot be 'clop': surrogate must be one of"),
        ({"surrogate": {"choices": []}}, "choices must be a list of numbers, strings, booleans or null"),
        ({"surrogate": {"choices": ["clip", "clip"]}}, "surrogate: choices must differ"),
        ({"surrogate": {"low": 1}}, "a categorical parameter must have choices, and neither low, high nor log"),
        ({"n_epochs": {"choices": [1]}}, "choices go with type: categorical; got type: int"),
        ({"network": {"choices": ["64x"]}}, "network: choices must be widths of layers such as 64x64"),
        (
            {"anneal_log_std": None, "log_std_start": {"high": 0}},
            "log_std_start: when names 'anneal_log_std', which is no parameter",
        ),
        ({"gae_lambda": {"when": {"surrogate": "clop"}}}, "when wants 'clop' of surrogate, which cannot take it"),
        (
            {
                "gae_lambda": {"when": {"surrogate": "clip"}},
                "surrogate": {"when": {"anneal": True}},
                "anneal": {"when": {"surrogate": "clip"}},
            },
            "when must not go in circles",
        ),
        ({"n_envs": {"choices": [1, 1024]}}, r"n_envs \* n_steps must be at most the budget's timesteps, 200000"),
        ({"n_envs": {"choices": [0]}}, "space: n_envs must be integers >= 1; got 0"),
    ],
)
def test_what_is_wrong_with_a_space_is_named(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job_of(space=space)


def test_what_is_fixed_cannot_be_in_the_space() -> None:
    with pytest.raises(ValueError, match="one_minus_gamma cannot vary while 'gamma' is fixed"):
        job_of(fixed={"gamma": 0.9}, space={"one_minus_gamma": {"high": 0.1}})
    with pytest.raises(ValueError, match=r"batch_size must divide every rollout where it is fixed; 96 does not divide"):
        job_of(fixed={"batch_size": 96})
    assert "n_minibatches" not in {each.name for each in job_of(fixed={"batch_size": 64}).space}


def test_the_nearest_value() -> None:
    assert Parameter("x", "float", 0.0, 1.0).nearest(3) == 1.0
    assert Parameter("x", "int", 2, 5).nearest(1) == 2
    assert Parameter("x", "float", 0.0, 1.0).nearest(None) == 0.0
    assert Parameter("x", "categorical", choices=(1, 8)).nearest(7) == 8
    assert Parameter("x", "categorical", choices=("a", "b")).nearest("c") == "a"
    assert not Parameter("x", "categorical", choices=(1,)).contains(True)
