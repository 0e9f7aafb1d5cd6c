"""The action distributions of several agents, stacked; each agent draws from a generator of its own.

Shapes: ``P`` agents, ``T`` timesteps, ``E`` environments and ``B`` samples of each agent, ``A`` action dimensions,
``n`` categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_ppo_variants.distributions import GAUSSIAN_ENTROPY, LOG_SQRT_TWO_PI, Categorical, Gaussian

# Up to so many normal numbers PyTorch draws one by one, so that several small draws can be made in one call.
_DRAWN_ONE_BY_ONE = 15


class GaussianActions:
    """Diagonal Gaussians (a ``Box`` action space) with state-independent deviations.

    :param log_stds: the parameter of each agent, ``(A,)``; one that requires no gradient is not learned
    """

    def __init__(self, log_stds: Sequence[th.Tensor]):
        self.log_std = th.stack([log_std.detach() for log_std in log_stds]).unsqueeze(1)  # (P, 1, A)
        self.tensors = [self.log_std]
        self.gradients = [th.zeros_like(self.log_std)]
        self._is_learned = th.tensor([log_std.requires_grad for log_std in log_stds]).view(-1, 1, 1)
        self.noise_shape = (self.log_std.shape[2],)

    def leaves(self) -> list[th.Tensor]:
        """What :meth:`evaluate` differentiates by, beside the networks' output."""
        return [self.log_std.detach().requires_grad_()]

    def accumulate(self, gradients: Sequence[th.Tensor]) -> None:
        """Take the gradients by the leaves."""
        th.mul(gradients[0], self._is_learned, out=self.gradients[0])

    def evaluate(
        self, output: th.Tensor, actions: th.Tensor, leaves: Sequence[th.Tensor]
    ) -> tuple[th.Tensor, th.Tensor, Gaussian]:
        """log π(a|s) and S[π](s) in nats, each ``(P, B)``, and π(·|s), with gradients.

        :param output: of the action networks, ``(P, B, A)``
        :param actions: ``(P, B, A)``
        """
        log_std = leaves[0]
        std = log_std.exp()
        exponent = ((actions - output) / std).square() * -0.5
        log_prob = (exponent - log_std).sum(dim=-1) - LOG_SQRT_TWO_PI * actions.shape[-1]
        entropy = (log_std + GAUSSIAN_ENTROPY).sum(dim=-1).expand_as(log_prob)
        return log_prob, entropy, Gaussian(output, std)

    def distribution(self, output: th.Tensor) -> Gaussian:
        """π(·|s), without gradients."""
        return Gaussian(output, self.log_std.exp())

    @staticmethod
    def draw(generator: th.Generator, out: th.Tensor) -> None:
        """Draw one agent's noise of a rollout: the numbers that it would draw alone, step by step.

        :param out: ``(T, E, A)``, contiguous
        """
        flat, per_step = out.view(-1), out[0].numel()
        at_once = max(1, _DRAWN_ONE_BY_ONE // per_step) * per_step
        for start in range(0, len(flat), at_once):
            flat[start : start + at_once].normal_(generator=generator)

    def act(self, output: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Actions ``(P, E, A)`` from the networks' output and noise of that shape."""
        return th.addcmul(output, noise, self.log_std.exp())


class CategoricalActions:
    """Categorical distributions (a ``Discrete`` action space).

    :param n: the number of categories
    """

    def __init__(self, n: int):
        self.tensors: list[th.Tensor] = []
        self.gradients: list[th.Tensor] = []
        self.noise_shape = (n,)

    def leaves(self) -> list[th.Tensor]:
        """As :meth:`GaussianActions.leaves`: none."""
        return []

    def accumulate(self, gradients: Sequence[th.Tensor]) -> None:
        """As :meth:`GaussianActions.accumulate`."""

    def evaluate(
        self, output: th.Tensor, actions: th.Tensor, leaves: Sequence[th.Tensor]
    ) -> tuple[th.Tensor, th.Tensor, Categorical]:
        """As :meth:`GaussianActions.evaluate`.

        :param output: unnormalised log-probabilities, ``(P, B, n)``
        :param actions: indices, ``(P, B)``
        """
        distribution = self.distribution(output)
        logits = distribution.logits[0]
        log_prob = logits.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        floored = th.clamp(logits, min=th.finfo(logits.dtype).min)
        return log_prob, -(floored * logits.exp()).sum(dim=-1), distribution

    def distribution(self, output: th.Tensor) -> Categorical:
        """As :meth:`GaussianActions.distribution`, where ``output`` carries gradients with them."""
        return Categorical((output - output.logsumexp(dim=-1, keepdim=True),))

    @staticmethod
    def draw(generator: th.Generator, out: th.Tensor) -> None:
        """As :meth:`GaussianActions.draw`: what ``torch.multinomial`` draws.

        :param out: ``(T, E, n)``, contiguous
        """
        for step in out:
            step.exponential_(generator=generator)

    def act(self, output: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Indices ``(P, E)`` from the networks' output ``(P, E, n)`` and noise of that shape."""
        return (th.softmax(output, dim=-1) / noise).argmax(dim=-1)


StackedActions = GaussianActions | CategoricalActions


def stacked_actions(models: Sequence[Any]) -> StackedActions:
    """The distributions of several models, all Gaussian or all categorical."""
    first = models[0].policy
    if hasattr(first, "log_std"):
        return GaussianActions([model.policy.log_std for model in models])
    return CategoricalActions(first.action_dist.action_dim)
