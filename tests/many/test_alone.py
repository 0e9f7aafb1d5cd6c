"""Each agent of a stack learns what it learns alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper, rollout_data, train_many, vanilla_pg
from sb3_ppo_variants.many import policy_gradient, rollout, update
from sb3_ppo_variants.many.actions import CategoricalActions, GaussianActions
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.groups import groups_of
from sb3_ppo_variants.many.rollout import RolloutSamples
from sb3_ppo_variants.many.stack import Stack
from sb3_ppo_variants.many.update import Update
from sb3_ppo_variants.rollout_data import samples_of
from tests.many.cases import (
    BOX_ONLY,
    SPECS,
    TOLERANCE,
    VANILLA_BOX_ONLY,
    VANILLA_SPECS,
    Spec,
    Truncating,
    alone,
    assert_same,
    distance,
)

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}


@pytest.mark.parametrize(
    ("env", "n_envs", "specs"),
    [
        ("InvertedPendulum-v5", 1, SPECS[:6]),
        ("InvertedPendulum-v5", 1, SPECS[6:] + BOX_ONLY),
        pytest.param("Pendulum-v1", 3, SPECS[:6], marks=pytest.mark.slow),
        pytest.param("Pendulum-v1", 3, SPECS[6:] + BOX_ONLY, marks=pytest.mark.slow),
        ("CartPole-v1", 1, SPECS[:6]),
        pytest.param("CartPole-v1", 2, SPECS[6:], marks=pytest.mark.slow),
        ("InvertedPendulum-v5", 1, VANILLA_SPECS + VANILLA_BOX_ONLY),
        ("CartPole-v1", 2, VANILLA_SPECS),
    ],
)
def test_three_iterations_are_those_of_each_agent_alone(env: str, n_envs: int, specs: list[Spec]) -> None:
    total = 3 * SMALL["n_steps"] * n_envs
    models = train_many(specs, env, total, n_envs=n_envs, **SMALL)
    for spec, model in zip(specs, models, strict=True):
        assert type(model) is spec[0]
        assert_same(model, alone(spec, env, total, n_envs, **SMALL))


def test_agents_of_a_users_class_share_a_call_where_nothing_but_their_runs_differs() -> None:
    specs: list[Spec] = [(Truncating, {"target_kl": 0.01}, seed) for seed in range(3)]
    models = train_many([*specs, (Truncating, {"floor": 0.1, "target_kl": 0.01}, 0)], "CartPole-v1", 192, **SMALL)
    groups = groups_of(models, [model._update_constants() for model in models])
    assert [group.indices for group in groups] == [[0, 1, 2], [3]]


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_all_agents_stop_before_the_truncated_minibatch() -> None:
    settings: dict[str, Any] = {"n_steps": 50, "batch_size": 16, "n_epochs": 3, "target_kl": 1e-9}
    specs: list[Spec] = [(PPOClipPaper, {}, 0), (PPOAdaptiveKLPaper, {"target_kl": 1e-8}, 1)]
    for spec, model in zip(specs, train_many(specs, "CartPole-v1", 100, **settings), strict=True):
        assert_same(model, alone(spec, "CartPole-v1", 100, 1, **settings))


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_a_truncated_minibatch_and_other_networks() -> None:
    settings: dict[str, Any] = {"n_steps": 50, "batch_size": 33, "n_epochs": 2}
    settings["policy_kwargs"] = {"net_arch": {"pi": [8], "vf": [16, 4, 4]}, "activation_fn": th.nn.ReLU}
    for spec, model in zip(SPECS, train_many(SPECS, "CartPole-v1", 100, **settings), strict=True):
        assert_same(model, alone(spec, "CartPole-v1", 100, 1, **settings))


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_a_policy_gradient_in_parts_and_truncated_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (policy_gradient, rollout, rollout_data, update, vanilla_pg):
        monkeypatch.setattr(module, "EVALUATION_ROWS", 20)
    settings: dict[str, Any] = {"n_steps": 50, "batch_size": 16, "n_epochs": 2}
    for spec, model in zip(VANILLA_SPECS, train_many(VANILLA_SPECS, "CartPole-v1", 150, **settings), strict=True):
        assert_same(model, alone(spec, "CartPole-v1", 150, 1, **settings))


def test_observations_that_are_numbers_of_states() -> None:
    specs = SPECS[:3]
    for spec, model in zip(specs, train_many(specs, "GridWorld-v0", 192, **SMALL), strict=True):
        assert_same(model, alone(spec, "GridWorld-v0", 192, 1, **SMALL))


def test_each_agent_normalises_by_statistics_of_its_own() -> None:
    def make() -> VecEnv:
        return VecNormalize(make_vec_env("Pendulum-v1", 2), gamma=0.9)

    specs = SPECS[:3]
    models = train_many(specs, make, 2 * 192, **SMALL)
    for spec, model in zip(specs, models, strict=True):
        expected = alone(spec, make, 2 * 192, 2, **SMALL)
        assert_same(model, expected)
        assert model.env.obs_rms.mean == pytest.approx(expected.env.obs_rms.mean, rel=1e-4, abs=1e-5)
        assert model.env.ret_rms.count == expected.env.ret_rms.count


def rollout_of(models: list[Any]) -> RolloutSamples:
    """Rollouts that the models have collected alone, as a stack takes them."""
    each = [samples_of(model.rollout_buffer) for model in models]
    fields = [th.stack([getattr(samples, name) for samples in each]) for name in each[0]._fields]
    observations, actions, values, log_prob, advantages, returns = fields
    with th.no_grad():
        features = observations.float()
        output = th.stack(
            [
                model.policy.get_distribution(part).distribution.mean
                for model, part in zip(models, features, strict=True)
            ]
        )
    return RolloutSamples(features, actions, output, log_prob, values, advantages, returns)


@pytest.mark.parametrize("start", [0, 6])
def test_three_updates_on_recorded_rollouts_are_those_of_each_agent_alone(start: int) -> None:
    specs = (SPECS + BOX_ONLY)[start : start + 8]
    recorded: list[list[Any]] = [[], []]
    for models in recorded:
        for algorithm, own, seed in specs:
            settings = {"n_steps": 96, "n_epochs": 4, "batch_size": 32, **own}
            model = algorithm("MlpPolicy", make_vec_env("InvertedPendulum-v5"), seed=seed, device="cpu", **settings)
            model._setup_learn(1000)
            env: Any = model.env
            model.collect_rollouts(env, model._init_callback(None), model.rollout_buffer, 96)
            models.append(model)
    together, expected = recorded
    for seed, model in enumerate(together):
        model.set_random_seed(seed)
    agents = []
    for seed, model in enumerate(together):
        np.random.seed(seed)
        agents.append(Agent(model, str(seed)))
    stack = Stack(agents)
    for _ in range(3):
        Update(stack, rollout_of(together)).run()
    for seed, model in enumerate(expected):
        np.random.seed(seed)
        for _ in range(3):
            model.train()
        assert agents[seed].error is None
        assert distance(together[seed], model) <= TOLERANCE, specs[seed]


@pytest.mark.parametrize("n_envs", [1, 2, 5])
@pytest.mark.parametrize("n_actions", [1, 3, 17])
def test_the_noise_of_gaussian_actions_is_that_of_an_agent_alone(n_envs: int, n_actions: int) -> None:
    generator, out = th.Generator().manual_seed(3), th.zeros(23, n_envs, n_actions)
    GaussianActions.draw(generator, out)
    th.manual_seed(3)
    assert all(th.equal(step, th.randn(n_envs, n_actions)) for step in out)
    assert th.equal(generator.get_state(), th.get_rng_state())


@pytest.mark.parametrize("n", [2, 40])
def test_the_draws_of_categorical_actions_are_those_of_an_agent_alone(n: int) -> None:
    actions, output, noise = CategoricalActions(n), th.randn(1, 5, n), th.zeros(50, 5, n)
    generator = th.Generator().manual_seed(3)
    actions.draw(generator, noise)
    th.manual_seed(3)
    for step in noise:
        expected = th.multinomial(th.softmax(output[0], dim=-1), 1, True).squeeze(1)
        assert th.equal(actions.act(output, step.unsqueeze(0))[0], expected)
    assert th.equal(generator.get_state(), th.get_rng_state())


def test_the_models_are_ordinary(tmp_path: Any) -> None:
    models = train_many(PPOAdaptiveKLPaper, "CartPole-v1", 64, seeds=range(3), **SMALL)
    assert [model.seed for model in models] == [0, 1, 2]
    observation = models[0].env.reset()
    assert distance(models[0], models[1]) > TOLERANCE
    for index, model in enumerate(models):
        model.save(tmp_path / f"{index}.zip")
        loaded = PPOAdaptiveKLPaper.load(tmp_path / f"{index}.zip")
        assert distance(model, loaded) == 0.0
        assert loaded.beta == model.beta
        assert model.predict(observation, deterministic=True) == loaded.predict(observation, deterministic=True)
        assert (tmp_path / f"{index}.zip").stat().st_size < 500_000  # its own weights, not the stack's
        mean, _ = evaluate_policy(model, model.env, n_eval_episodes=2)
        assert isinstance(mean, float)
        assert mean > 0
        model.learn(64, reset_num_timesteps=False)
        assert model.num_timesteps == 128


def test_agents_may_share_a_seed_and_differ_in_numbers() -> None:
    specs: list[Spec] = [(PPOClipPaper, {"learning_rate": rate}, 0) for rate in (1e-3, 1e-4)]
    fast, slow = train_many(specs, "CartPole-v1", 64, **SMALL)
    begun = PPOClipPaper("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **SMALL)
    assert distance(begun, fast) > 3 * distance(begun, slow) > 0


def test_every_agents_episodes_are_told_by_its_monitor() -> None:
    (model,) = train_many(PPOClipPaper, "CartPole-v1", 192, seeds=[5], **SMALL)
    monitor = model.env.envs[0]
    assert monitor.get_episode_rewards()[-len(model.ep_info_buffer) :] == [info["r"] for info in model.ep_info_buffer]
    assert 192 - 96 < sum(monitor.get_episode_lengths()) <= 192
