"""What users do to a model between and within updates, and to the classes: it takes effect, or is refused by name."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_ppo_variants import Minibatch, PaperOnPolicyAlgorithm, PPOClipPaper, PPOUnclippedPaper, VanillaPGPaper, losses

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


class Scripted(gym.Env[np.ndarray, np.ndarray]):
    """Episodes of ``length`` steps, with two rewards by turns."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int, rewards: tuple[float, float] = (1.0, 1.0), bad_step: int = -1):
        self.length, self.rewards, self.bad_step = length, rewards, bad_step
        self.n_steps = self.total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        self.total += 1
        observation = np.full(2, np.nan if self.total == self.bad_step else 0.01 * self.n_steps, np.float32)
        return observation, self.rewards[self.n_steps % 2], self.n_steps == self.length, False, {}


class At(BaseCallback):
    """Calls ``act`` at one step of the training."""

    def __init__(self, step: int, act: Any):
        super().__init__()
        self.step, self.act = step, act

    def _on_step(self) -> bool:
        return self.act(self.model) is not False if self.n_calls == self.step else True


# ------------------------------------------------------------------ weights, changed from outside


def test_weights_that_a_callback_replaces_are_those_that_act_from_then_on() -> None:
    def double(model: Any) -> None:
        # load_from_vector gives the parameters new memory, where load_state_dict writes into the old.
        model.policy.load_from_vector(2 * model.policy.parameters_to_vector())

    exact: dict[str, Any] = {"policy_kwargs": {"optimizer_kwargs": {"fused": False, "eps": 1e-5}}}
    rollouts = []
    for algorithm in (PPO, PPOClipPaper):
        model: Any = algorithm("MlpPolicy", "Pendulum-v1", **SMALL, **exact)
        model.learn(32, callback=At(10, double))
        rollouts.append(model.rollout_buffer)
    assert np.array_equal(rollouts[0].values, rollouts[1].values)
    assert np.array_equal(rollouts[0].log_probs, rollouts[1].log_probs)


def test_an_interrupted_update_keeps_adams_count_of_steps() -> None:
    model = PPOClipPaper("MlpPolicy", "CartPole-v1", **SMALL).learn(32)
    step, made = model._step, list[int]()

    def interrupted(*args: Any) -> bool:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return step(*args)

    model._step = interrupted  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        model.learn(32, reset_num_timesteps=False)
    # 2 epochs of 2 minibatches, and 3 steps more.
    assert {int(state["step"]) for state in model.policy.optimizer.state.values()} == {4 + 3}


def test_an_observation_that_is_not_finite_is_named_before_the_policy_learns_from_it() -> None:
    model = PPOClipPaper("MlpPolicy", Scripted(10, bad_step=37), **SMALL)
    model.learn(32)
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(FloatingPointError, match=r"environment 0 gave an observation that .* at iteration 1"):
        model.learn(32, reset_num_timesteps=False)
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


# ------------------------------------------------------------------ settings, changed at load


def test_a_stepsize_that_no_longer_adapts_is_the_schedules(tmp_path: Any) -> None:
    model = PPOClipPaper("MlpPolicy", "CartPole-v1", stepsize_kl_target=1.0, **SMALL).learn(96)
    assert model.stepsize_factor > 1  # the KL is far below 1
    model.save(tmp_path / "model")
    loaded = PPOClipPaper.load(tmp_path / "model", env=model.env, stepsize_kl_target=None, learning_rate=1e-4)
    loaded.learn(32)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_the_stepsize_stays_within_its_bounds_when_the_schedule_begins_again() -> None:
    model = PPOClipPaper(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=LinearSchedule(3e-4, 0.0, 1.0),
        stepsize_kl_target=10.0,  # never reached: the factor grows in every update
        stepsize_bounds=(1e-5, 1e-3),
        **SMALL,
    )
    stepsizes = []
    for _ in range(2):
        for _ in range(6):
            model.learn(32 * 6, callback=At(33, lambda _: False), reset_num_timesteps=model.num_timesteps >= 32 * 6)
            stepsizes.append(model.policy.optimizer.param_groups[0]["lr"])
    assert max(stepsizes) <= 1e-3


def test_the_td_estimator_leaves_lambda_as_it_was_set(tmp_path: Any) -> None:
    model = VanillaPGPaper("MlpPolicy", "CartPole-v1", gae_lambda=0.9, advantage_estimator="td", **SMALL)
    assert (model.gae_lambda, model.rollout_buffer.gae_lambda) == (0.9, 0.0)
    model.save(tmp_path / "model")
    loaded = VanillaPGPaper.load(tmp_path / "model", env=model.env, advantage_estimator="gae")
    assert loaded.rollout_buffer.gae_lambda == 0.9


@pytest.mark.parametrize("algorithm", [PPOUnclippedPaper, VanillaPGPaper])
def test_a_clip_range_that_is_handed_to_load_is_not_said_to_be_in_force(algorithm: Any, tmp_path: Any) -> None:
    model = algorithm("MlpPolicy", "CartPole-v1", **SMALL)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.env, clip_range=0.3).learn(32)
    assert not {"train/clip_range", "train/clip_fraction"} & set(loaded.logger.name_to_value)


# ------------------------------------------------------------------ vanilla policy gradient


def test_reinforce_has_no_baseline() -> None:
    # With one, a reward of 101 in place of 1 for every step would change nothing but the scale, which is divided out.
    weights = []
    for reward in (1.0, 101.0):
        env = Scripted(8, rewards=(reward, reward + 1))
        model = VanillaPGPaper("MlpPolicy", env, advantage_estimator="reinforce", learning_rate=1e-2, **SMALL)
        weights.append(model.learn(32).policy.get_parameter("action_net.weight").detach().clone())
    assert not th.allclose(weights[0], weights[1], atol=1e-6)


def test_episodes_are_not_joined_across_steps_that_were_lost() -> None:
    env = Scripted(20)
    model = VanillaPGPaper("MlpPolicy", env, gamma=1.0, advantage_estimator="baseline", **SMALL)
    model.learn(32)
    assert [len(steps.rewards) for steps in model.unfinished if steps is not None] == [12]  # 32 = 20 + 12
    model.learn(32, callback=At(5, lambda _: False), reset_num_timesteps=False)  # 5 steps, and no rollout of them
    assert model.unfinished == []


def test_an_episode_without_end_is_warned_of() -> None:
    model = VanillaPGPaper("MlpPolicy", Scripted(10**9), advantage_estimator="reinforce", **{**SMALL, "n_steps": 16})
    with pytest.warns(UserWarning, match="an episode has gone on for 176 steps") as warned:
        model.learn(16 * 13)
    assert len(warned) == 1


def test_a_compiled_vanilla_policy_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="compile must be False"):
        VanillaPGPaper("MlpPolicy", "CartPole-v1", compile=True)


# ------------------------------------------------------------------ classes of one's own


class Mixin:
    """Not one of ours."""


class Mixed(Mixin, PPOClipPaper):
    """Its first base is no algorithm."""


class OfItsOwn(PaperOnPolicyAlgorithm):
    """A constructor that takes what it likes."""

    def __init__(self, env: str):
        super().__init__("MlpPolicy", env, **SMALL)

    def objective(self, batch: Minibatch) -> th.Tensor:
        """L^CPI."""
        return losses.conservative_policy_iteration(batch.ratio, batch.advantages)

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, Any]:
        """A plain number is a metric too."""
        return {"rows": float(len(batch.ratio))}


def test_subclasses_with_other_bases_and_constructors() -> None:
    assert inspect.signature(Mixed).parameters["clip_range"].default == 0.2
    assert list(inspect.signature(OfItsOwn).parameters) == ["env"]
    model = OfItsOwn("CartPole-v1").learn(32)
    assert model.logger.name_to_value["train/rows"] == 16
