"""The hooks of a user's class read in a stack what they read alone, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_ppo_variants import PaperOnPolicyAlgorithm, PPOClipPaper, PPOFixedKLPaper, VanillaPGPaper, train_many
from sb3_ppo_variants.on_policy import Minibatch
from tests.many.cases import alone, assert_same

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2}


class Reading(PaperOnPolicyAlgorithm):
    """Reads and sets what is each agent's own, in every hook."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        assert cls.__mro__[1] is Reading, "the guard of the hooks is no variant of its own"
        super().__init_subclass__(**keywords)

    def coefficients(self) -> dict[str, float]:
        return {"spread": float(self.policy.log_std.detach().exp().mean())}

    def objective(self, batch: Minibatch) -> th.Tensor:
        assert self.ep_info_buffer is not None
        lengths = [info["l"] for info in self.ep_info_buffer]
        scale = np.mean(lengths) + 0.1 * self._n_updates + self.num_timesteps / 100
        assert (batch.kl is not None) == (self.needs_kl and isinstance(self, PPOFixedKLPaper))
        return float(scale) * batch.coefficients["spread"] * super().objective(batch)

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        assert self.ep_info_buffer is not None
        self.logger.record("hook/seed", self.seed)
        return {"ratio": batch.ratio.mean() * len(self.ep_info_buffer)}

    def after_update(self, kl: float) -> None:
        with th.no_grad():
            self.policy.log_std.clamp_(min=0.05 * (self.n_iterations + np.random.rand()))
        if self.n_iterations == 2:
            self.policy.optimizer.state.clear()
        if self.n_iterations == 3:
            del self.policy.optimizer.state[self.policy.value_net.weight]
            self.normalize_advantage = True
            self.max_grad_norm, self.ent_coef = 0.5, 0.01
        self.clip_actions = False
        self.gamma, self.gae_lambda = 0.9, 0.5


class ReadingClip(Reading, PPOClipPaper):
    pass


class ReadingKL(Reading, PPOFixedKLPaper):
    def coefficients(self) -> dict[str, float]:
        return Reading.coefficients(self) | PPOFixedKLPaper.coefficients(self)


class ReadingGradient(Reading, VanillaPGPaper):
    needs_kl = True


@pytest.mark.parametrize("algorithm", [ReadingClip, ReadingKL, ReadingGradient])
def test_hooks_that_read_what_is_each_agents_own(algorithm: Any) -> None:
    specs: Any = [(algorithm, {}, seed) for seed in range(3)]
    models = train_many(specs, "InvertedPendulum-v5", 5 * 32, **SMALL)
    for spec, model in zip(specs, models, strict=True):
        assert type(model) is algorithm
        assert_same(model, alone(spec, "InvertedPendulum-v5", 5 * 32, 1, **SMALL))
        assert model.logger.name_to_value["hook/seed"] == model.seed


class Penalised(PPOClipPaper):
    def objective(self, batch: Minibatch) -> th.Tensor:
        return super().objective(batch) - self.policy.log_std.square().sum()


class PenalisedByAnotherName(PPOClipPaper):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.learned = [self.policy.log_std]

    def objective(self, batch: Minibatch) -> th.Tensor:
        return super().objective(batch) - self.learned[0].square().sum()


class Catching(PPOClipPaper):
    def objective(self, batch: Minibatch) -> th.Tensor:
        try:
            penalty: Any = self.policy.log_std.square().sum()
        except Exception:
            penalty = 0.0
        return super().objective(batch) - penalty


class Counting(PPOClipPaper):
    calls = 0

    def objective(self, batch: Minibatch) -> th.Tensor:
        self.calls += 1
        return super().objective(batch) / self.calls


class MeasuringRewards(PPOClipPaper):
    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        return {"ratio": batch.ratio.mean() * float(self.rollout_buffer.rewards.mean())}


class ScaledByRewards(PPOClipPaper):
    def coefficients(self) -> dict[str, float]:
        return {"scale": float(self.rollout_buffer.rewards.std())}


class AdaptingToRewards(PPOClipPaper):
    def after_update(self, kl: float) -> None:
        self.target_kl = 1 + float(self.rollout_buffer.rewards.std())


class FittingValues(VanillaPGPaper):
    def objective(self, batch: Minibatch) -> th.Tensor:
        return batch.log_prob * (batch.returns - batch.values)


class FittingValuesToNothing(VanillaPGPaper):
    def objective(self, batch: Minibatch) -> th.Tensor:
        return super().objective(batch) + 0.0 * batch.values


class Freezing(PPOClipPaper):
    def after_update(self, kl: float) -> None:
        self.policy.log_std.requires_grad_(False)


class Lengthening(PPOClipPaper):
    def after_update(self, kl: float) -> None:
        self.n_steps *= 2


@pytest.mark.parametrize(
    ("algorithm", "what"),
    [
        (Penalised, "objective reads self.policy,"),
        (PenalisedByAnotherName, "objective reads self.learned,"),
        (Catching, "objective reads self.policy,"),
        (Counting, "objective sets self.calls,"),
        (FittingValuesToNothing, "objective differentiates the batch's values,"),
        (FittingValues, "objective differentiates the batch's values,"),
        (MeasuringRewards, "minibatch_metrics reads self.rollout_buffer,"),
        (ScaledByRewards, "coefficients reads self.rollout_buffer,"),
        (AdaptingToRewards, "after_update reads self.rollout_buffer,"),
        (Freezing, "after_update replaces parameters of self.policy, or changes which of them learn,"),
        (Lengthening, "after_update sets self.n_steps,"),
    ],
)
def test_hooks_that_a_stack_cannot_follow(algorithm: Any, what: str) -> None:
    message = f"^train_many cannot stack {algorithm.__name__}: its {what} .* with learn$"
    with pytest.raises(ValueError, match=message):
        train_many(algorithm, "InvertedPendulum-v5", 64, seeds=range(2), **SMALL)


def test_a_hook_that_makes_the_agents_sizes_differ() -> None:
    class Growing(PPOClipPaper):
        def after_update(self, kl: float) -> None:
            self.batch_size += self.seed or 0

    with pytest.raises(ValueError, match=r"^batch_size must be the same for all agents of train_many: it is 16 .* 17"):
        train_many(Growing, "CartPole-v1", 64, seeds=range(2), **SMALL)
