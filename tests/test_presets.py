"""The presets against the paper's numbers, against our configs and in training; the authors' initialisation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib.trpo.trpo
import torch as th
import yaml
from sb3_contrib import TRPO
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import ALGORITHMS, initialization, presets, zoo
from sb3_ppo_variants.runs import OUR_RECIPE

MUJOCO_TASKS = {
    "HalfCheetah-v5": 6,
    "Hopper-v5": 3,
    "InvertedDoublePendulum-v5": 1,
    "InvertedPendulum-v5": 1,
    "Reacher-v5": 2,
    "Swimmer-v5": 2,
    "Walker2d-v5": 6,
}
"""The seven tasks of Table 1, with the number of dimensions of their actions."""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log where it runs


def plain(value: Any) -> Any:
    """A schedule as its values at the start, after a quarter, halfway and at the end; all else as it is."""
    if isinstance(value, LinearSchedule):
        return [pytest.approx(value(progress), abs=1e-12) for progress in (1.0, 0.75, 0.5, 0.0)]
    return value


# ------------------------------------------------------------------ the paper's numbers

# Copied from the paper once more, by table: a slip in either place shows.
TABLE_3 = {
    "n_steps": 2048,
    "learning_rate": 3e-4,
    "n_epochs": 10,
    "batch_size": 64,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "policy_kwargs": {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": nn.Tanh},
}
# The stepsize's start and the KL target are not the paper's.
TABLE_4 = {
    "n_steps": 512,
    "learning_rate": 3e-4,
    "stepsize_kl_target": 0.01,
    "n_epochs": 15,
    "batch_size": 4096,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "log_std_schedule": [-0.7, -0.925, -1.15, -1.6],  # a quarter of the way: −0.7 − 0.9 / 4
    "clip_actions": False,
}
NUMBERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MUJOCO": (TABLE_3, {"policy": "MlpPolicy", "n_envs": 1, "n_timesteps": 1_000_000}),
    "TABLE_1": ({**TABLE_3, "clip_actions": False}, {"policy": "MlpPolicy", "n_envs": 1, "n_timesteps": 1_000_000}),
    "ROBOSCHOOL_LOCOMOTION": (TABLE_4, {"policy": "MlpPolicy", "n_envs": 32, "n_timesteps": 50_000_000}),
    "ROBOSCHOOL_FLAGRUN": (TABLE_4, {"policy": "MlpPolicy", "n_envs": 128, "n_timesteps": 100_000_000}),
    "ATARI": (
        {
            "n_steps": 128,
            "learning_rate": [2.5e-4, 1.875e-4, 1.25e-4, 0.0],
            "n_epochs": 3,
            "batch_size": 32 * 8,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "clip_range": [0.1, 0.075, 0.05, 0.0],
            "vf_coef": 1.0,
            "ent_coef": 0.01,
        },
        {
            "policy": "CnnPolicy",
            "n_envs": 8,
            "n_timesteps": 40_000_000 // 4,
            "env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"],
            "frame_stack": 4,
            "env_kwargs": {"frameskip": 1, "repeat_action_probability": 0.0},
        },
    ),
    "AUTHORS_CODE": (
        {
            **TABLE_3,
            "learning_rate": [3e-4, 2.25e-4, 1.5e-4, 0.0],
            "clip_range": [0.2, 0.15, 0.1, 0.0],
            "clip_range_vf": None,
            "vf_coef": 1.0,
            "max_grad_norm": None,
            "normalize_advantage": "batch",
            "weight_init": "normc",
            "bootstrap_on_timeout": False,
            "clip_actions": False,
        },
        {
            "policy": "MlpPolicy",
            "n_envs": 1,
            "n_timesteps": 1_000_000,
            "normalize": {"norm_obs": True, "norm_reward": False, "clip_obs": 5.0},
        },
    ),
    "CODE_LAB": (
        {
            "n_steps": 2048,
            "learning_rate": 1e-4,
            "n_epochs": 10,
            "batch_size": 64,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "clip_range": 0.2,
            "policy_kwargs": {"net_arch": {"pi": [128, 128], "vf": [128, 128]}, "activation_fn": nn.Tanh},
            "clip_actions": False,
        },
        {"policy": "MlpPolicy", "n_envs": 1, "n_timesteps": 20_000_000},
    ),
    # Fig. 3 names the methods and gives no numbers: what is not Table 3's is not the paper's.
    "FIG3_VANILLA_PG": (
        {**TABLE_3, "clip_actions": False, "stepsize_kl_target": 0.01},
        {"policy": "MlpPolicy", "n_envs": 1, "n_timesteps": 1_000_000},
    ),
    "FIG3_A2C": (
        {
            "n_steps": 5,
            "learning_rate": 7e-4,
            "gamma": 0.99,
            "gae_lambda": 1.0,
            "ent_coef": 0.0,
            "vf_coef": 0.5,
            "max_grad_norm": 0.5,
            "policy_kwargs": TABLE_3["policy_kwargs"],
        },
        {"policy": "MlpPolicy", "n_envs": 16, "n_timesteps": 1_000_000},
    ),
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_number_is_the_papers(name: str) -> None:
    settings, run = NUMBERS[name]
    preset = presets.PRESETS[name]
    assert preset is getattr(presets, name)
    assert {key: plain(value) for key, value in preset.items()} == settings
    assert preset.run == run


def test_trpo_bounds_the_sum_of_the_kl_over_dimensions() -> None:
    preset = presets.fig3_trpo(6)
    assert dict(preset) == {
        "n_steps": 2048,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "n_critic_updates": 5,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "target_kl": 0.01 / 6,
        "cg_max_steps": 10,
        "cg_damping": 0.1 / 6,
        "policy_kwargs": TABLE_3["policy_kwargs"],
    }
    assert preset.run == {"policy": "MlpPolicy", "n_envs": 1, "n_timesteps": 1_000_000}


@pytest.mark.parametrize("action_dim", [0, 1.5, None])
def test_trpo_refuses_what_is_no_number_of_dimensions(action_dim: Any) -> None:
    with pytest.raises(ValueError, match="action_dim must be an integer >= 1; got"):
        presets.fig3_trpo(action_dim)


@pytest.mark.parametrize("preset", [*presets.PRESETS.values(), presets.fig3_trpo(2)], ids=[*presets.PRESETS, "TRPO"])
def test_every_value_has_a_source_of_its_own_kind(preset: presets.Preset) -> None:
    assert set(preset.sources) == {*preset, *preset.run}
    assert not set(preset) & set(preset.run)
    for name, source in preset.sources.items():
        assert any(place in source for place in ("Table", "§", "Fig.", "eq.", "openai/baselines", "code lab", "SB3")), (
            name
        )


# ------------------------------------------------------------------ nobody can change a preset


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("TABLE_1", lambda preset: preset["policy_kwargs"]["net_arch"]["pi"].append(1)),
        ("TABLE_1", lambda preset: preset["policy_kwargs"].update(ortho_init=False)),
        ("TABLE_1", lambda preset: preset.sources.clear()),
        ("ATARI", lambda preset: setattr(preset["clip_range"], "start", 1.0)),
        ("ATARI", lambda preset: preset.run["env_kwargs"].clear()),
        ("ATARI", lambda preset: preset.run["env_wrapper"].clear()),
        ("AUTHORS_CODE", lambda preset: preset.run.clear()),
        # SB3's A2C writes its optimiser into the policy arguments that it is given.
        ("FIG3_A2C", lambda preset: A2C("MlpPolicy", "CartPole-v1", device="cpu", **preset)),
    ],
)
def test_changes_reach_copies_only(name: str, change: Any) -> None:
    preset = presets.PRESETS[name]
    sources = preset.sources
    change(preset)
    test_every_number_is_the_papers(name)
    assert preset.sources == sources


def test_a_preset_refuses_changes() -> None:
    preset: Any = presets.TABLE_1
    with pytest.raises(TypeError):
        preset["n_steps"] = 1
    with pytest.raises(TypeError):
        del preset["n_steps"]
    for attribute in ("run", "sources", "n_steps"):
        with pytest.raises(AttributeError):
            setattr(preset, attribute, {})
    with pytest.raises(TypeError):
        presets.PRESETS["MINE"] = preset  # type: ignore[index]


def test_extending_leaves_the_original_alone() -> None:
    mine = presets.TABLE_1.extended({"gamma": (0.9, "mine")}, run={"n_envs": (2, "mine")})
    assert (mine["gamma"], mine["n_steps"], mine.run["n_envs"]) == (0.9, 2048, 2)
    assert (mine.sources["gamma"], mine.sources["n_envs"]) == ("mine", "mine")
    assert (presets.TABLE_1["gamma"], presets.TABLE_1.run["n_envs"]) == (0.99, 1)
    assert mine.run["n_timesteps"] == 1_000_000


def test_a_preset_shows_its_values() -> None:
    shown = repr(presets.ATARI)
    assert "'n_steps': 128" in shown
    assert "LinearSchedule(start=0.1, end=0.0" in shown
    assert "'frame_stack': 4" in shown


# ------------------------------------------------------------------ presets in training


def algorithm_named(name: str) -> type[BaseAlgorithm]:
    """SB3's and contrib's by their name in the zoo, and ours."""
    others: dict[str, type[BaseAlgorithm]] = {"a2c": A2C, "trpo": TRPO}
    return others[name] if name in others else getattr(sb3_ppo_variants, ALGORITHMS[name])


def pendulum() -> VecEnv:
    return make_vec_env("Pendulum-v1", n_envs=2, seed=0)


def pictures() -> VecEnv:
    """Random grey pictures of the size that AtariWrapper gives, four in a row."""
    np.random.seed(0)  # the pictures come from the global generator
    env = make_vec_env(lambda: FakeImageEnv(screen_height=84, screen_width=84, n_channels=1), n_envs=2, seed=0)
    return VecFrameStack(env, presets.ATARI.run["frame_stack"])


def check_that_it_trains(algo: str, preset: presets.Preset, env: VecEnv) -> None:
    """Two updates on few samples: a linear schedule that ends at 0 is there after the second."""
    few = {"n_steps": 8, "batch_size": 8, "n_epochs": 2}
    settings = {**preset, **{name: value for name, value in few.items() if name in preset}}
    model = algorithm_named(algo)(preset.run["policy"], env, seed=0, device="cpu", **settings)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(2 * 2 * settings["n_steps"])
    after = list(model.policy.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("algo", "name"),
    [
        *[(algo, name) for algo in ALGORITHMS for name in ("MUJOCO", "TABLE_1")],
        ("ppo_clip_paper", "ROBOSCHOOL_LOCOMOTION"),
        ("ppo_clip_paper", "ROBOSCHOOL_FLAGRUN"),
        ("ppo_clip_paper", "ATARI"),
        ("ppo_clip_paper", "AUTHORS_CODE"),
        ("ppo_clip_paper", "CODE_LAB"),
        ("vanilla_pg_paper", "FIG3_VANILLA_PG"),
        ("a2c", "FIG3_A2C"),
    ],
)
def test_each_preset_trains_its_algorithm(algo: str, name: str) -> None:
    check_that_it_trains(algo, presets.PRESETS[name], pictures() if name == "ATARI" else pendulum())


def test_fig3_trpo_trains() -> None:
    check_that_it_trains("trpo", presets.fig3_trpo(1), pendulum())


def test_fig3_trpo_steps_as_with_the_summed_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    def policy_after_an_update(**settings: Any) -> th.Tensor:
        model = TRPO("MlpPolicy", "Reacher-v5", seed=0, device="cpu", **{**presets.fig3_trpo(2), **settings})
        model.learn(256)
        return th.cat([p.detach().flatten() for name, p in model.policy.named_parameters() if "value" not in name])

    mean = policy_after_an_update(n_steps=256)
    monkeypatch.setattr(sb3_contrib.trpo.trpo, "kl_divergence", lambda *pair: kl_divergence(*pair).sum(dim=1))
    summed = policy_after_an_update(n_steps=256, target_kl=0.01, cg_damping=0.1)
    start = policy_after_an_update(n_steps=256, target_kl=1e-12, cg_damping=0.1)
    step = (summed - start).norm()
    assert step > 1e-2
    assert (mean - summed).norm() < 1e-2 * step  # the solver amplifies rounding


# ------------------------------------------------------------------ presets and configs agree

AGREEMENTS: list[tuple[str, str, presets.Preset]] = [
    *[
        (algo, task, presets.TABLE_1)
        for algo in ("ppo_clip_paper", "ppo_adaptive_kl_paper", "ppo_fixed_kl_paper", "ppo_unclipped_paper")
        for task in MUJOCO_TASKS
    ],
    *[("vanilla_pg_paper", task, presets.FIG3_VANILLA_PG) for task in MUJOCO_TASKS],
    *[("a2c", task, presets.FIG3_A2C) for task in MUJOCO_TASKS],
    *[("trpo", task, presets.fig3_trpo(dimensions)) for task, dimensions in MUJOCO_TASKS.items()],
    *[("ppo_clip_paper", task, presets.ATARI) for task in ("atari", "ALE/Pong-v5", "ALE/Breakout-v5")],
]


# Of Table 4 as written: a recipe of its own.
TABLE_4_TASKS = [
    (f"RoboschoolHumanoid{task}-{version}", preset)
    for task, preset in (
        ("", presets.ROBOSCHOOL_LOCOMOTION),
        ("Flagrun", presets.ROBOSCHOOL_FLAGRUN),
        ("FlagrunHarder", presets.ROBOSCHOOL_FLAGRUN),
    )
    for version in ("v0", "v1")
]


def config_of(algo: str, task: str, recipe: str = OUR_RECIPE) -> dict[str, Any]:
    """The settings that a config gives a task, checked and with schedules as objects."""
    content = yaml.safe_load(zoo.config_path(algo, recipe).read_text(encoding="utf-8"))
    return zoo.read_hyperparams(algorithm_named(algo), content[task])


def what_the_constructor_gets(algo: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument but those of the command line, those left out at the constructor's and the policy's defaults."""
    parameters = inspect.signature(algorithm_named(algo)).parameters
    names = set(parameters) - zoo.COMMAND_LINE_KEYS - {"policy"}
    assert set(settings) <= names
    arguments = {name: plain(settings.get(name, parameters[name].default)) for name in names}
    layers = {"pi": [64, 64], "vf": [64, 64]}
    arguments["policy_kwargs"] = {"net_arch": layers, "activation_fn": nn.Tanh, **(arguments["policy_kwargs"] or {})}
    return arguments


@pytest.mark.parametrize(("algo", "task", "preset"), AGREEMENTS, ids=[f"{algo} {task}" for algo, task, _ in AGREEMENTS])
def test_a_config_gives_what_its_preset_gives(algo: str, task: str, preset: presets.Preset) -> None:
    check_agreement(algo, config_of(algo, task), preset)


@pytest.mark.parametrize(("task", "preset"), TABLE_4_TASKS)
def test_the_papers_recipe_is_table_4(task: str, preset: presets.Preset) -> None:
    config = config_of("ppo_clip_paper", task, "paper")
    assert config.pop("vec_env") == "shared_memory"
    check_agreement("ppo_clip_paper", config, preset)


def check_agreement(algo: str, config: dict[str, Any], preset: presets.Preset) -> None:
    run = {"n_envs": 1, **{name: config.pop(name) for name in ("policy", *zoo.ZOO_KEYS) if name in config}}
    assert run == preset.run
    expected = what_the_constructor_gets(algo, preset)
    if "policy_kwargs" not in preset:
        config.pop("policy_kwargs", None)
    actual = what_the_constructor_gets(algo, config)
    for name, value in expected.items():
        # Thirds and sixths in trpo.yml are cut after eight digits.
        assert actual[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


@pytest.mark.parametrize("task", MUJOCO_TASKS)
def test_the_dimensions_of_the_actions_are_as_written(task: str) -> None:
    with gym.make(task) as env:
        assert env.action_space.shape == (MUJOCO_TASKS[task],)


@pytest.mark.parametrize("algo", ["a2c", "trpo"])
def test_the_configs_for_other_peoples_algorithms_hold_the_tasks_of_fig_3_alone(algo: str) -> None:
    # rl_zoo3 has settings for the rest.
    assert set(yaml.safe_load(zoo.config_path(algo).read_text(encoding="utf-8"))) == set(MUJOCO_TASKS)


def test_the_humanoids_config_takes_table_4s_log_std_and_unclipped_actions() -> None:
    config = config_of("ppo_clip_paper", "RoboschoolHumanoid-v1")
    for name in ("log_std_schedule", "clip_actions"):
        assert plain(config[name]) == plain(presets.ROBOSCHOOL_LOCOMOTION[name])
    # As docs/fidelity.md tells them.
    assert (config["n_envs"], config["n_steps"], config["batch_size"]) == (16, 128, 256)
    assert (config["stepsize_kl_target"], config["mirror_symmetry"]) == (0.02, True)
    assert config["policy_kwargs"] == {"net_arch": [128, 128]}
    assert config["normalize"] == {"norm_obs": True, "norm_reward": True, "clip_obs": 5.0}


# ------------------------------------------------------------------ the authors' initialisation


def make_policy(kind: type[ActorCriticPolicy], observations: gym.Space, actions: gym.Space) -> ActorCriticPolicy:
    return kind(observations, actions, lambda _: 3e-4)


def layers_of(policy: ActorCriticPolicy) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in policy.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


PICTURE = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
MLP_AND_CNN = [
    (ActorCriticPolicy, gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (3,)), 6),
    (ActorCriticPolicy, gym.spaces.Discrete(25), gym.spaces.Discrete(4), 6),
    (ActorCriticCnnPolicy, PICTURE, gym.spaces.Discrete(4), 6),
]


@pytest.mark.parametrize(("kind", "observations", "actions", "n_layers"), MLP_AND_CNN)
def test_normc_gives_every_unit_its_norm(kind: Any, observations: gym.Space, actions: gym.Space, n_layers: int) -> None:
    policy = make_policy(kind, observations, actions)
    parameters = list(policy.parameters())
    initialization.normc_(policy)
    assert all(old is new for old, new in zip(parameters, policy.parameters(), strict=True))  # the optimiser has them
    assert len(layers_of(policy)) == n_layers
    for name, layer in layers_of(policy):
        assert isinstance(layer.weight, th.Tensor)
        assert isinstance(layer.bias, th.Tensor)
        assert layer.weight.requires_grad
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        assert norms == pytest.approx(0.01 if name == "action_net" else 1.0, rel=1e-5), name
        assert not layer.bias.any()


def test_normc_scales_rows_of_normal_draws() -> None:
    policy = make_policy(*MLP_AND_CNN[0][:3])
    log_std = policy.log_std.clone()
    th.manual_seed(3)
    initialization.normc_(policy)
    th.manual_seed(3)
    draws = th.randn(64, 5)
    first = layers_of(policy)[0][1].weight
    assert isinstance(first, th.Tensor)
    assert th.allclose(first, draws / (draws**2).sum(dim=1, keepdim=True).sqrt())
    assert policy.log_std.equal(log_std)


def test_normc_takes_the_last_layer_of_a_policys_own_head() -> None:
    policy = make_policy(*MLP_AND_CNN[0][:3])
    policy.action_net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    initialization.normc_(policy)
    hidden, last = (weight.detach().norm(dim=1) for weight in policy.action_net.parameters() if weight.dim() == 2)
    assert hidden == pytest.approx(1.0, rel=1e-5)
    assert last == pytest.approx(0.01, rel=1e-5)
