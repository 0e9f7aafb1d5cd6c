"""An agent whose training cannot go on ends by itself; the others learn what they would have learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ppo_variants import DivergenceWarning, PPOClipPaper, PPOUnclippedPaper, VanillaPGPaper, train_many
from tests.many.cases import alone, assert_same, distance

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}


class Breaking(gym.Wrapper):
    """Gives a number that is not finite at one step."""

    def __init__(self, env: gym.Env, at: int, what: str):
        super().__init__(env)
        self.at, self.what, self.steps = at, what, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.steps == self.at:
            if self.what == "reward":
                return observation, math.inf, terminated, truncated, info
            return np.full_like(observation, math.nan), reward, terminated, truncated, info
        return observation, reward, terminated, truncated, info


def make_breaking(number: int, at: int, what: str, normalize: bool) -> Callable[[], VecEnv]:
    """Makes the environments of one agent after another; that of agent ``number`` breaks."""
    made = iter(range(100))

    def make() -> VecEnv:
        is_breaking = next(made) == number
        env = make_vec_env(lambda: Breaking(gym.make("CartPole-v1"), at if is_breaking else -1, what))
        return VecNormalize(env) if normalize else env

    return make


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of VecNormalize, which counts it
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("normalize", [False, True])
def test_environments_that_give_what_is_not_finite(what: str, normalize: bool) -> None:
    specs: Any = [(PPOClipPaper, {}, seed) for seed in range(3)]
    with pytest.warns(DivergenceWarning, match=rf"agent 1 \(PPOClipPaper, seed 1\) ends: environment 0 gave .*{what}"):
        models = train_many(specs, make_breaking(1, 100, what, normalize), 192, **SMALL)
    assert [model.num_timesteps for model in models] == [192, 100, 192]
    for index in (0, 2):
        assert_same(models[index], alone(specs[index], make_breaking(-1, 0, what, normalize), 192, 1, **SMALL))
    at_first_end = alone(specs[1], make_breaking(-1, 0, what, normalize), 64, 1, **SMALL)
    assert distance(models[1], at_first_end) < 1e-5


def test_an_update_that_diverges_is_taken_back() -> None:
    specs: Any = [(PPOClipPaper, {}, 0), (PPOUnclippedPaper, {"learning_rate": 1e38}, 1), (PPOClipPaper, {}, 2)]
    with pytest.warns(
        DivergenceWarning, match=r"agent 1 .* at iteration 1 \(64 timesteps\): the training has diverged"
    ):
        models = train_many(specs, "Pendulum-v1", 128, **SMALL)
    begun = PPOUnclippedPaper("MlpPolicy", "Pendulum-v1", seed=1, device="cpu", **SMALL)
    assert distance(models[1], begun) == 0.0
    for index in (0, 2):
        assert_same(models[index], alone(specs[index], "Pendulum-v1", 128, 1, **SMALL))


def test_a_policy_gradient_that_diverges_is_taken_back() -> None:
    rate = {"learning_rate": lambda left: 1e38 if left < 0.6 else 3e-4}  # from the second iteration on
    specs: Any = [(VanillaPGPaper, {}, 0), (VanillaPGPaper, rate, 1), (VanillaPGPaper, {}, 2)]
    with pytest.warns(
        DivergenceWarning, match=r"agent 1 .* at iteration 2 \(128 timesteps\): the training has diverged"
    ):
        models = train_many(specs, "Pendulum-v1", 256, **SMALL)
    with pytest.raises(FloatingPointError, match=r"at iteration 2 \(128 timesteps\)"):
        alone(specs[1], "Pendulum-v1", 256, 1, **SMALL)
    assert distance(models[1], alone((VanillaPGPaper, {}, 1), "Pendulum-v1", 64, 1, **SMALL)) < 1e-5
    for index in (0, 2):
        assert_same(models[index], alone(specs[index], "Pendulum-v1", 256, 1, **SMALL))


@pytest.mark.parametrize("algorithm", [PPOClipPaper, VanillaPGPaper])
def test_when_all_agents_have_failed_the_training_ends(algorithm: Any) -> None:
    with pytest.warns(DivergenceWarning, match="agent 0"):
        (model,) = train_many(algorithm, make_breaking(0, 10, "reward", False), 192, seeds=[0], **SMALL)
    assert model.num_timesteps == 10


def test_an_error_of_an_environment_goes_through_and_closes_all() -> None:
    closed: list[bool] = []

    class Faulty(gym.Wrapper):
        def step(self, action: Any) -> Any:
            raise OSError("the simulator is gone")

        def close(self) -> None:
            closed.append(True)
            super().close()

    with pytest.raises(OSError, match="simulator"):
        train_many(PPOClipPaper, lambda: Faulty(gym.make("CartPole-v1")), 64, seeds=[0, 1], **SMALL)
    assert len(closed) == 2
