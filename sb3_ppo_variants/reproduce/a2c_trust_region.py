"""A2C with the trust region of ACER (Wang et al. 2017, §3.3), which Fig. 3 compares with."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.utils import explained_variance, polyak_update
from torch.nn import functional as F

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import require

DELTA = 1.0
"""δ of Wang et al. (their Atari experiments; the paper gives none)"""
AVERAGE_DECAY = 0.99
"""α of their average policy network"""


def trust_region_gradient(gradient: th.Tensor, kl_gradient: th.Tensor, delta: float) -> th.Tensor:
    """The nearest vector to each gradient along which the KL grows by at most δ (Wang et al. 2017, eq. 12).

    ``z* = g − max(0, (kᵀg − δ) / |k|²) k``, the solution of: minimise ½|g − z|² subject to kᵀz ≤ δ.

    :param gradient: g, of the objective by the distribution's parameters, ``(B, P)``
    :param kl_gradient: k, of KL[π_average, π] by the same, ``(B, P)``
    :param delta: δ ≥ 0
    :return: z*, ``(B, P)``
    """
    excess = (kl_gradient * gradient).sum(dim=-1, keepdim=True) - delta
    squared = kl_gradient.square().sum(dim=-1, keepdim=True)
    # Where k = 0 the constraint asks nothing.
    factor = th.where(squared > 0, excess.clamp(min=0) / squared.clamp(min=th.finfo(squared.dtype).tiny), 0.0)
    return gradient - factor * kl_gradient


class A2CTrustRegion(A2C):
    """SB3's A2C whose policy gradient is projected onto a trust region around an average of past policies.

    The gradient by the parameters of each state's Gaussian, mean and log σ, is projected so that its step would raise
    KL[π_average, π] by at most δ (to first order); the chain rule takes it from there to the weights. π_average's
    weights follow the policy's, ``θ_average ← α θ_average + (1 − α) θ``, after each update. Of ACER nothing else is
    here: neither replay nor Retrace.

    Takes every argument of SB3's ``A2C``; the policy is an MLP for a ``Box`` of actions.

    :param delta: δ ≥ 0; with ``math.inf`` this is A2C
    :param average_decay: α in [0, 1]
    :raises ValueError: for an argument outside its range, and for other policies and action spaces
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        delta: float = DELTA,
        average_decay: float = AVERAGE_DECAY,
        **kwargs: Any,
    ):
        require("delta", delta, "a number >= 0", lambda value: value >= 0)
        require("average_decay", average_decay, "a number in [0, 1]", lambda value: 0 <= value <= 1)
        self.delta, self.average_decay = delta, average_decay
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.use_sde or not isinstance(self.action_space, spaces.Box):
            raise ValueError(f"A2CTrustRegion must have a Box of actions and no gSDE; got {self.action_space}")
        self.average_policy = deepcopy(self.policy)
        self.average_policy.set_training_mode(False)
        for parameter in self.average_policy.parameters():
            parameter.requires_grad_(False)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "average_policy"], tensors

    def train(self) -> None:
        """One step on the whole rollout, as A2C's, with the policy's gradient projected."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        (samples,) = self.rollout_buffer.get(batch_size=None)
        mean, log_std, values = self._distribution_and_values(samples.observations)
        advantages = samples.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        gradient, kl_gradient, kl = self._gradients(mean, log_std, samples, advantages)
        projected = trust_region_gradient(gradient, kl_gradient, self.delta)
        # Its gradient by the weights is the chain rule's: minus the mean over samples of z* ∂(mean, log σ)/∂θ.
        policy_loss = -(projected * th.cat([mean, log_std], dim=-1)).sum(dim=-1).mean()
        value_loss = F.mse_loss(samples.returns, values)
        loss = policy_loss + self.vf_coef * value_loss
        self.policy.optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        polyak_update(self.policy.parameters(), self.average_policy.parameters(), 1 - self.average_decay)
        self._n_updates += 1
        self._log(kl, (projected != gradient).any(dim=-1).float().mean(), value_loss)

    def _distribution_and_values(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean and log σ of each state's Gaussian, ``(B, A)`` each, and V, ``(B,)``."""
        policy: Any = self.policy
        distribution = policy.get_distribution(observations).distribution
        values = policy.predict_values(observations).flatten()
        return distribution.mean, policy.log_std.expand_as(distribution.mean), values

    def _gradients(
        self, mean: th.Tensor, log_std: th.Tensor, samples: Any, advantages: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """g and k of each sample by its mean and log σ, ``(B, 2A)`` each, and the mean KL[π_average, π], in nats."""
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (mean, log_std)]
        normal = th.distributions.Normal(leaves[0], leaves[1].exp())
        log_prob = normal.log_prob(samples.actions).sum(dim=-1)
        objective = advantages * log_prob + self.ent_coef * normal.entropy().sum(dim=-1)
        with th.no_grad():
            average: Any = self.average_policy.get_distribution(samples.observations).distribution
        kl = losses.gaussian_kl(average.mean, average.stddev, leaves[0], leaves[1].exp())
        gradients = [
            th.cat(th.autograd.grad(total.sum(), leaves, retain_graph=True), dim=-1) for total in (objective, kl)
        ]
        return gradients[0], gradients[1], kl.detach().mean()

    def _log(self, kl: th.Tensor, projected: th.Tensor, value_loss: th.Tensor) -> None:
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/value_loss", value_loss.item())
        self.logger.record("train/kl_to_average", kl.item())
        self.logger.record("train/projected_fraction", projected.item())
        log_std: Any = self.policy.log_std
        self.logger.record("train/std", log_std.exp().mean().item())
