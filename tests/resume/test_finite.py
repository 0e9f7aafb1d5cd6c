"""NaN and infinity never reach the weights."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper, PPOFixedKLPaper, PPOUnclippedPaper, VanillaPGPaper
from tests.resume.runs import moments, weights

BAD = [math.nan, math.inf, -math.inf]


class Faulty(gym.Env):
    """Gives one reward, observation or last observation that is not finite, at step 20."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, fault: str = "", value: float = 0.0, as_dict: bool = False):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space: Any = spaces.Dict({"place": box, "picture": spaces.Box(0, 255, (2,), np.uint8)})
        if not as_dict:
            self.observation_space = box
        self.fault, self.value, self.as_dict = fault, value, as_dict
        self.total = 0

    def observe(self, bad: bool) -> Any:
        place = np.array([0.5, self.value if bad else 0.1 * (self.total % 7)], np.float32)
        return {"place": place, "picture": np.zeros(2, np.uint8)} if self.as_dict else place

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observe(self.fault == "reset"), {}

    def step(self, action: np.ndarray) -> Any:
        self.total += 1
        at_fault = self.total == 20
        reward = self.value if at_fault and self.fault == "reward" else float(action[0])
        truncated = self.total % 10 == 0
        bad = at_fault and self.fault == "last" and truncated
        return self.observe(bad or (self.total == 19 and self.fault == "observation")), reward, False, truncated, {}


def make(fault: str, value: float, *, normalize: bool, as_dict: bool = False, algorithm: Any = PPOClipPaper) -> Any:
    fns: list[Any] = [lambda index=index: Faulty(fault if index == 2 else "", value, as_dict) for index in range(3)]
    env: Any = DummyVecEnv(fns)
    if normalize:
        env = VecNormalize(env, norm_obs_keys=["place"] if as_dict else None)
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    return algorithm(policy, env, n_steps=8, batch_size=8, n_epochs=2, seed=1)


class Weights(BaseCallback):
    """Remembers the weights at the beginning of each rollout."""

    def _on_rollout_start(self) -> None:
        self.before = weights(self.model)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reward", r"environment 2 gave a reward of (nan|inf|-inf) at iteration 2 \(60 timesteps\)"),
        ("observation", r"environment 2 gave an observation that is not finite .*at iteration 2 \(57 timesteps\)"),
        ("last", r"environment 2 gave a terminal_observation whose value is not finite at iteration 2"),
        ("reset", r"environment 2 gave an observation that is not finite .*at iteration 0 \(0 timesteps\)"),
    ],
)
def test_what_environments_give(fault: str, message: str, normalize: bool, value: float) -> None:
    if fault == "last":
        value = math.nan  # of an infinite input tanh makes a finite value
    model = make(fault, value, normalize=normalize)
    callback = Weights()
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match=message):
        model.learn(1000, callback)
    assert th.equal(weights(model), callback.before)
    assert weights(model).isfinite().all()


def test_a_part_of_a_dict() -> None:
    model = make("observation", math.nan, normalize=False, as_dict=True)
    with pytest.raises(FloatingPointError, match="environment 2 gave an observation 'place' that is not finite"):
        model.learn(1000)


@pytest.mark.parametrize(
    "algorithm", [PPOClipPaper, PPOAdaptiveKLPaper, PPOFixedKLPaper, PPOUnclippedPaper, VanillaPGPaper]
)
def test_an_update_that_diverges_is_undone(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("", 0.0, normalize=False, algorithm=algorithm)
    model.learn(24)
    objective, calls = type(model).objective, []

    def bad(self: Any, batch: Any) -> th.Tensor:
        calls.append(batch)
        value = objective(self, batch)
        return value * math.nan if len(calls) == (1 if algorithm is VanillaPGPaper else 3) else value

    monkeypatch.setattr(algorithm, "objective", bad)
    before, before_moments = weights(model), moments(model)
    with pytest.raises(FloatingPointError, match=r"diverged, and the weights are those before this update"):
        model.learn(24, reset_num_timesteps=False)
    assert th.equal(weights(model), before)
    assert th.equal(moments(model), before_moments)
    # The model can go on.
    monkeypatch.undo()
    model.learn(24, reset_num_timesteps=False)
    assert not th.equal(weights(model), before)
    assert weights(model).isfinite().all()


def test_the_first_update_is_undone_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("", 0.0, normalize=False)
    before = weights(model)
    monkeypatch.setattr(PPOClipPaper, "objective", lambda _self, batch: batch.ratio * math.nan)
    with pytest.raises(FloatingPointError):
        model.learn(24)
    assert th.equal(weights(model), before)
    assert not model.policy.optimizer.state


def test_a_stepsize_that_overflows() -> None:
    model = make("", 0.0, normalize=False)
    model.lr_schedule = lambda _left: 1e38
    before = weights(model)
    with pytest.raises(FloatingPointError):
        model.learn(24)
    assert th.equal(weights(model), before)
