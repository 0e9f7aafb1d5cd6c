"""The peers of Fig. 3 that are written here: A2C's trust region and the cross-entropy method."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants.reproduce.a2c_trust_region import A2CTrustRegion, trust_region_gradient
from sb3_ppo_variants.reproduce.cem import CEM
from sb3_ppo_variants.reproduce.settings import SETTINGS

# ------------------------------------------------------------------ the projection


def test_projection_by_hand() -> None:
    # z* = g − max(0, (kᵀg − δ) / |k|²) k with δ = 1.
    gradient = th.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [-3.0, 0.0]])
    kl_gradient = th.tensor([[2.0, 0.0], [0.1, 0.1], [1.0, 2.0], [5.0, 0.0]])
    # kᵀg = 6: (6 − 1) / 4 = 1.25, z = (3 − 2.5, 4) = (0.5, 4). kᵀg = 0.7 < 1: as it is.
    # kᵀg = 11: 10 / 5 = 2, z = (3 − 2, 4 − 4) = (1, 0). kᵀg = −15: as it is.
    expected = th.tensor([[0.5, 4.0], [3.0, 4.0], [1.0, 0.0], [-3.0, 0.0]])
    th.testing.assert_close(trust_region_gradient(gradient, kl_gradient, 1.0), expected)


def test_the_projected_gradient_keeps_to_the_constraint_and_no_nearer_one_does() -> None:
    th.manual_seed(0)
    gradient, kl_gradient = th.randn(50, 6, dtype=th.float64), th.randn(50, 6, dtype=th.float64)
    delta = 0.3
    projected = trust_region_gradient(gradient, kl_gradient, delta)
    assert ((kl_gradient * projected).sum(dim=1) <= delta + 1e-12).all()
    distance = (projected - gradient).norm(dim=1)
    for _ in range(200):
        other = projected + 0.1 * th.randn_like(projected)
        allowed = (kl_gradient * other).sum(dim=1) <= delta
        assert ((other - gradient).norm(dim=1) >= distance)[allowed].all()


def test_without_a_kl_gradient_or_a_bound_nothing_is_projected() -> None:
    gradient = th.tensor([[3.0, 4.0]])
    assert th.equal(trust_region_gradient(gradient, th.zeros(1, 2), 0.0), gradient)
    assert th.equal(trust_region_gradient(gradient, th.ones(1, 2), math.inf), gradient)


# ------------------------------------------------------------------ A2C with it


def weights(model: Any) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def trained(algorithm: Any, **arguments: Any) -> Any:
    return algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", ent_coef=0.01, **arguments).learn(60)


def test_without_a_bound_it_is_a2c() -> None:
    th.testing.assert_close(
        weights(trained(A2CTrustRegion, delta=math.inf)), weights(trained(A2C)), rtol=1e-5, atol=1e-6
    )


def test_the_gradients_of_a_sample_by_hand() -> None:
    model: Any = A2CTrustRegion("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    average = SimpleNamespace(distribution=th.distributions.Normal(th.zeros(1, 1), th.ones(1, 1)))
    model.average_policy = SimpleNamespace(get_distribution=lambda _: average)
    samples = SimpleNamespace(observations=None, actions=th.tensor([[3.0]]))
    # μ = 1, σ = 2, a = 3, Â = 2. By μ: Â (a − μ)/σ² = 1; by log σ: Â ((a − μ)²/σ² − 1) = 0.
    # KL[N(0, 1), π] = log σ + (1 + μ²)/(2 σ²) − ½; by μ: μ/σ² = ¼; by log σ: 1 − (1 + μ²)/σ² = ½.
    gradient, kl_gradient, kl = model._gradients(
        th.tensor([[1.0]]), th.tensor([[math.log(2)]]), samples, th.tensor([2.0])
    )
    th.testing.assert_close(gradient, th.tensor([[1.0, 0.0]]))
    th.testing.assert_close(kl_gradient, th.tensor([[0.25, 0.5]]))
    assert float(kl) == pytest.approx(math.log(2) + 2 / 8 - 0.5)


def test_a_bound_changes_the_training_and_tells_of_it() -> None:
    model = trained(A2CTrustRegion, delta=0.0)
    assert not th.allclose(weights(model), weights(trained(A2C)), atol=1e-6)
    assert 0 < model.logger.name_to_value["train/projected_fraction"] <= 1


def test_a_bound_of_zero_keeps_the_policy_nearer_to_its_average() -> None:
    # Along a gradient that is projected with δ = 0 the KL does not grow, to first order.
    kls = {}
    for delta in (0.0, math.inf):
        model = trained(A2CTrustRegion, delta=delta, learning_rate=5e-3)
        kls[delta] = model.logger.name_to_value["train/kl_to_average"]
    assert kls[0.0] < kls[math.inf]


def test_the_average_policy_follows() -> None:
    begun = A2CTrustRegion("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", average_decay=0.9)
    start = weights(begun)
    begun.learn(5)  # one update
    average = th.cat([parameter.flatten() for parameter in begun.average_policy.parameters()])
    th.testing.assert_close(average, 0.9 * start + 0.1 * weights(begun))
    assert not th.equal(average, start)


def test_the_average_policy_is_saved(tmp_path: Path) -> None:
    model = trained(A2CTrustRegion, delta=0.5)
    model.save(tmp_path / "model.zip")
    loaded = A2CTrustRegion.load(tmp_path / "model.zip", env=model.env, device="cpu")
    assert loaded.delta == 0.5
    for name, value in model.average_policy.state_dict().items():
        assert th.equal(loaded.average_policy.state_dict()[name], value)


@pytest.mark.parametrize(
    ("env", "arguments", "words"),
    [
        ("Pendulum-v1", {"delta": -1.0}, "delta must be a number >= 0"),
        ("Pendulum-v1", {"average_decay": 1.5}, r"average_decay must be a number in \[0, 1\]"),
        ("Pendulum-v1", {"use_sde": True}, "must have a Box of actions and no gSDE"),
        ("CartPole-v1", {}, "must have a Box of actions and no gSDE; got Discrete"),
    ],
)
def test_a2c_trust_region_names_mistakes(env: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        A2CTrustRegion("MlpPolicy", env, device="cpu", **arguments)


# ------------------------------------------------------------------ the cross-entropy method


class Target(gym.Env):
    """One step an episode; the return is largest, 0, at the action (0.5, −0.25)."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return np.zeros(2), -float(((action - [0.5, -0.25]) ** 2).sum()), True, False, {}


CEM_SETTINGS: dict[str, Any] = SETTINGS["cem"].arguments("Pendulum-v1")


def cem(**changes: Any) -> CEM:
    return CEM("MlpPolicy", DummyVecEnv([Target]), seed=0, **{**CEM_SETTINGS, **changes})


def test_cem_finds_the_best_action() -> None:
    model = cem().learn(4000)
    # The observation is 0: the weights of the bias, the last of each row, are the action.
    np.testing.assert_allclose(model.mean.reshape(2, 3)[:, 2], [0.5, -0.25], atol=0.02)
    assert model.num_timesteps == 4000


def test_cem_moves_to_the_elite() -> None:
    model = cem(population=5, elite_fraction=0.4)
    weights = np.arange(30.0).reshape(5, 6)
    model.update(weights, np.array([0.0, 3.0, 1.0, 9.0, 2.0]))
    # The best two are rows 3 and 1: 18 … 23 and 6 … 11, with the mean 12 … 17 and the deviation 6.
    np.testing.assert_array_equal(model.mean, np.arange(12.0, 18.0))
    np.testing.assert_array_equal(model.std, np.full(6, 6.0))


def test_cems_extra_variance_decays() -> None:
    model = cem(population=20_000, initial_std=3.0, extra_std=4.0)
    # √(3² + 4²) = 5, then √(9 + 16/4) = 3.61, then 3.
    for extra, std in ((1.0, 5.0), (0.25, math.sqrt(13)), (-0.5, 3.0)):
        assert model.draw(extra).std() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"population": 1}, "population must be an integer >= 2"),
        ({"elite_fraction": 0.0}, r"elite_fraction must be a number in \(0, 1\]"),
        ({"initial_std": 0.0}, "initial_std must be a number > 0"),
        ({"extra_std": -1.0}, "extra_std must be a number >= 0"),
        ({"extra_fraction": 0.0}, r"extra_fraction must be a number in \(0, 1\]"),
    ],
)
def test_cem_names_mistakes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cem(**changes)
