"""Agents that differ in all that a stack allows, and the same agents trained alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_variants import (
    PaperOnPolicyAlgorithm,
    PPOAdaptiveKLPaper,
    PPOClipPaper,
    PPOFixedKLPaper,
    PPOUnclippedPaper,
    VanillaPGPaper,
)
from sb3_ppo_variants.on_policy import Minibatch

TOLERANCE = 1e-5
"""How far weights may be from those of the same agent alone: rounding, after a few updates."""


class Truncating(PPOClipPaper):
    """A user's surrogate, with a number of its own, a coefficient and a metric; it looks at the whole minibatch."""

    def __init__(self, *args: Any, floor: float = 0.5, **kwargs: Any):
        self.floor = floor
        super().__init__(*args, **kwargs)

    def coefficients(self) -> dict[str, float]:
        return {"scale": 1.0 + self.num_timesteps * 1e-4 * self.gamma}

    def objective(self, batch: Minibatch) -> th.Tensor:
        centred = batch.advantages - batch.advantages.mean()
        return batch.coefficients["scale"] * batch.ratio.clamp(min=self.floor) * centred

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        return {"largest_ratio": batch.ratio.max()}


class Adapting(PPOClipPaper):
    """A user's surrogate that reads what differs from agent to agent from the model itself."""

    def __init__(self, *args: Any, signs: Any = (1.0,), **kwargs: Any):
        self.signs, self.scale = np.array(signs), 1.0
        super().__init__(*args, **kwargs)

    def objective(self, batch: Minibatch) -> th.Tensor:
        return self.scale * float(self.signs[0]) * self.gamma * super().objective(batch)

    def after_update(self, kl: float) -> None:
        self.scale *= 1 + 10 * kl


Spec = tuple[type[PaperOnPolicyAlgorithm], dict[str, Any], int]

SPECS: list[Spec] = [
    (PPOClipPaper, {}, 0),
    (PPOFixedKLPaper, {"beta": 1.0}, 1),
    (PPOClipPaper, {"clip_range": 0.1, "learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}, 2),
    (PPOClipPaper, {"surrogate": "log_clip", "clip_range": LinearSchedule(0.3, 0.1, 1.0)}, 3),
    (PPOAdaptiveKLPaper, {}, 4),
    (PPOAdaptiveKLPaper, {"kl_target": 0.003, "beta_init": 0.5, "clip_range": 0.2}, 5),
    (PPOFixedKLPaper, {"beta": 0}, 6),
    (PPOUnclippedPaper, {"stepsize_kl_target": 0.003, "bootstrap_on_timeout": False}, 7),
    (
        PPOClipPaper,
        {
            "normalize_advantage": True,
            "max_grad_norm": 0.5,
            "ent_coef": 0.01,
            "vf_coef": 0.5,
            "clip_range_vf": 0.2,
            "gamma": 0.9,
            "gae_lambda": 0.8,
        },
        8,
    ),
    (PPOClipPaper, {"target_kl": 0.001, "normalize_advantage": False}, 9),
    (Truncating, {}, 10),
    (Truncating, {"floor": 0.9}, 11),
    (Adapting, {}, 14),
    (Adapting, {}, 15),
    (Adapting, {"signs": (-1.0,)}, 16),
    (Adapting, {"gamma": 0.5}, 17),
]


class CentredGradient(VanillaPGPaper):
    """A user's policy gradient, with a metric; it looks at the whole batch."""

    def objective(self, batch: Minibatch) -> th.Tensor:
        return batch.log_prob * (batch.advantages - batch.values.detach())

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        return {"mean_value": batch.values.mean()}


VANILLA_SPECS: list[Spec] = [
    (VanillaPGPaper, {}, 0),
    (VanillaPGPaper, {"advantage_estimator": "td", "learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}, 1),
    (VanillaPGPaper, {"stepsize_kl_target": 0.01, "gae_lambda": 0.8, "gamma": 0.9}, 2),
    (
        VanillaPGPaper,
        {"normalize_advantage": True, "max_grad_norm": 0.5, "ent_coef": 0.01, "vf_coef": 0.5, "clip_range_vf": 0.2},
        3,
    ),
    (VanillaPGPaper, {"normalize_advantage": False, "bootstrap_on_timeout": False, "vf_coef": 0}, 4),
    (
        VanillaPGPaper,
        {
            "ent_coef": LinearSchedule(0.1, 0.0, 1.0),
            "vf_coef": LinearSchedule(1.0, 0.5, 1.0),
            "clip_range_vf": LinearSchedule(0.5, 0.1, 1.0),
            "max_grad_norm": 0.5,
        },
        7,
    ),
    (CentredGradient, {}, 5),
    (CentredGradient, {}, 6),
]
BOX_ONLY: list[Spec] = [
    (PPOClipPaper, {"clip_actions": False}, 12),
    (PPOClipPaper, {"log_std_schedule": LinearSchedule(-0.7, -1.6, 1.0)}, 13),
]
VANILLA_BOX_ONLY: list[Spec] = [
    (VanillaPGPaper, {"clip_actions": False}, 8),
    (VanillaPGPaper, {"log_std_schedule": LinearSchedule(-0.7, -1.6, 1.0), "max_grad_norm": 0.5}, 9),
]


def alone(spec: Spec, env: str | Callable[[], VecEnv], total: int, n_envs: int, **settings: Any) -> Any:
    """An agent trained by itself."""
    algorithm, own, seed = spec
    vec_env = make_vec_env(env, n_envs) if isinstance(env, str) else env()
    model = algorithm("MlpPolicy", vec_env, seed=seed, device="cpu", **{**settings, **own})
    return model.learn(total)


def distance(one: Any, other: Any) -> float:
    """The largest difference of two models' weights."""
    weights, others = one.policy.state_dict(), other.policy.state_dict()
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


def assert_same(model: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Two models have learned the same, and tell the same of it."""
    assert distance(model, expected) <= tolerance
    for name in ("num_timesteps", "_n_updates", "n_iterations", "_total_timesteps", "_episode_num"):
        assert getattr(model, name) == getattr(expected, name), name
    for name in ("stepsize_factor", "beta", "_current_progress_remaining"):
        assert getattr(model, name, None) == pytest.approx(getattr(expected, name, None)), name
    for info, other in zip(model.ep_info_buffer, expected.ep_info_buffer, strict=True):
        assert info["l"] == other["l"]
        assert info["r"] == pytest.approx(other["r"], rel=1e-4, abs=1e-4)
    assert model._last_obs == pytest.approx(expected._last_obs, rel=1e-3, abs=1e-3)
    assert model._last_obs.dtype == expected._last_obs.dtype
    assert (model._last_episode_starts == expected._last_episode_starts).all()
    logged, others = model.logger.name_to_value, expected.logger.name_to_value
    assert logged.keys() == others.keys()
    for name in (name for name in others if not name.startswith("time/")):
        assert logged[name] == pytest.approx(others[name], rel=1e-3, abs=1e-5), name
    moments, expected_moments = (each.policy.optimizer.state_dict()["state"] for each in (model, expected))
    assert moments.keys() == expected_moments.keys()
    for parameter, other in expected_moments.items():
        assert moments[parameter]["step"] == other["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            scale = float(other[name].abs().max())
            assert float((moments[parameter][name] - other[name]).abs().max()) <= 1e-3 * scale, name
