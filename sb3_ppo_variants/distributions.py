"""A policy's action distributions as plain tensors and closed forms, without the objects of torch.distributions.

Each gives the numbers that SB3's distribution of the same name gives, gradients included, bit for bit (but for
``sample(exact_rounding=False)``, which differs by rounding); and each can be stored, selected by row and compared by
its exact KL, which SB3's cannot.

Shapes: ``B`` states, ``A`` action dimensions, ``n`` categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sb3_ppo_variants import losses

Rows = th.Tensor | slice

LOG_SQRT_TWO_PI = math.log(math.sqrt(2 * math.pi))
GAUSSIAN_ENTROPY = 0.5 + 0.5 * math.log(2 * math.pi)  # of a unit Gaussian, in nats


class Gaussian(NamedTuple):
    """Diagonal Gaussians (Box actions, gSDE included; a squashing tanh changes no KL)."""

    mean: th.Tensor
    """``(B, A)``"""
    std: th.Tensor
    """``(A,)`` where all states share it, else ``(B, A)``"""

    def log_prob_and_entropy(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """log π(a|s) and S[π](s), each ``(B,)``.

        :param actions: ``(B, A)``
        """
        if th.compiler.is_compiling():  # the compiler fuses the plain formulas by itself
            return _gaussian_log_prob(self.mean, self.std, actions), _gaussian_entropy(self.mean, self.std)
        log_prob, entropy = _GaussianTerms.apply(self.mean, self.std, actions)
        return log_prob, entropy

    def kl(self, new: Gaussian) -> th.Tensor:
        """Exact KL[self, new] of each state in nats, ``(B,)``."""
        return losses.gaussian_kl(self.mean, self.std, new.mean, new.std)

    def sample(self, exact_rounding: bool) -> tuple[th.Tensor, th.Tensor]:
        """Actions ``(B, A)`` and their log π(a|s) ``(B,)``, without gradients.

        Draws from torch's global generator what SB3's distribution draws.

        :param exact_rounding: whether log π(a|s) is rounded as SB3's, or computed from the noise itself
        """
        noise = th.randn_like(self.mean)
        actions = self.mean + noise * self.std
        if exact_rounding:
            return actions, _gaussian_log_prob(self.mean, self.std, actions)
        return actions, (noise.square_().mul_(-0.5) - (self.std.log() + LOG_SQRT_TWO_PI)).sum(dim=1)

    def rows(self, indices: Rows) -> Gaussian:
        """The distributions of the states ``indices``, a slice or a ``(M,)`` tensor of integers."""
        return Gaussian(self.mean[indices], self.std if self.std.dim() == 1 else self.std[indices])


class Categorical(NamedTuple):
    """Independent categorical distributions (Discrete: one; MultiDiscrete: one per action dimension)."""

    logits: tuple[th.Tensor, ...]
    """log-probabilities ``(B, n_i)`` of each action dimension"""

    @classmethod
    def from_output(cls, output: th.Tensor, sizes: list[int]) -> Categorical:
        """From a network's output.

        :param output: unnormalised log-probabilities, ``(B, Σ n_i)``
        :param sizes: the n_i
        """
        parts = output.split(sizes, dim=1) if len(sizes) > 1 else (output,)
        return cls(tuple(part - part.logsumexp(dim=-1, keepdim=True) for part in parts))

    def log_prob_and_entropy(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """log π(a|s) and S[π](s), each ``(B,)``.

        :param actions: indices, ``(B,)`` for a single category, else ``(B, A)``
        """
        return self._log_prob(actions), _sum_of([_categorical_entropy(logits) for logits in self.logits])

    def _log_prob(self, actions: th.Tensor) -> th.Tensor:
        columns = actions.long().reshape(len(actions), -1).split(1, dim=1)
        pairs = zip(self.logits, columns, strict=True)
        return _sum_of([logits.gather(-1, column).squeeze(-1) for logits, column in pairs])

    def kl(self, new: Categorical) -> th.Tensor:
        """Exact KL[self, new] of each state in nats, ``(B,)``."""
        pairs = zip(self.logits, new.logits, strict=True)
        return _sum_of([losses.categorical_kl(old, fresh) for old, fresh in pairs])

    def sample(self, exact_rounding: bool) -> tuple[th.Tensor, th.Tensor]:
        """Indices, ``(B,)`` for a single category, else ``(B, A)``; the rest as for :meth:`Gaussian.sample`."""
        draws = [th.multinomial(F.softmax(logits, dim=-1), 1, True).T.squeeze(0) for logits in self.logits]
        actions = draws[0] if len(draws) == 1 else th.stack(draws, dim=1)
        return actions, self._log_prob(actions)

    def rows(self, indices: Rows) -> Categorical:
        """The distributions of the states ``indices``, a slice or a ``(M,)`` tensor of integers."""
        return Categorical(tuple(logits[indices] for logits in self.logits))


class Bernoulli(NamedTuple):
    """Independent Bernoulli variables (MultiBinary)."""

    logits: th.Tensor
    """log-odds, ``(B, A)``"""

    def log_prob_and_entropy(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """log π(a|s) and S[π](s), each ``(B,)``.

        :param actions: zeros and ones, ``(B, A)``
        """
        probabilities = th.sigmoid(self.logits)
        entropy = F.binary_cross_entropy_with_logits(self.logits, probabilities, reduction="none").sum(dim=1)
        return self._log_prob(actions), entropy

    def _log_prob(self, actions: th.Tensor) -> th.Tensor:
        return -F.binary_cross_entropy_with_logits(self.logits, actions, reduction="none").sum(dim=1)

    def kl(self, new: Bernoulli) -> th.Tensor:
        """Exact KL[self, new] of each state in nats, ``(B,)``."""
        return losses.bernoulli_kl(self.logits, new.logits)

    def sample(self, exact_rounding: bool) -> tuple[th.Tensor, th.Tensor]:
        """Zeros and ones ``(B, A)``; the rest as for :meth:`Gaussian.sample`."""
        actions = th.bernoulli(th.sigmoid(self.logits))
        return actions, self._log_prob(actions)

    def rows(self, indices: Rows) -> Bernoulli:
        """The distributions of the states ``indices``, a slice or a ``(M,)`` tensor of integers."""
        return Bernoulli(self.logits[indices])


ActionDistribution = Gaussian | Categorical | Bernoulli

FAMILIES: dict[type[Distribution], type[Any]] = {
    DiagGaussianDistribution: Gaussian,
    StateDependentNoiseDistribution: Gaussian,
    CategoricalDistribution: Categorical,
    MultiCategoricalDistribution: Categorical,
    BernoulliDistribution: Bernoulli,
}


def has_exact_kl(distribution: Distribution) -> bool:
    """Whether ``distribution`` is one of SB3's five, whose exact KL is known."""
    return isinstance(distribution, tuple(FAMILIES))


def from_sb3(distribution: Distribution) -> ActionDistribution:
    """Read the tensors out of one of SB3's distributions, after its ``proba_distribution``.

    :raises TypeError: for a distribution that is none of SB3's five
    """
    if not has_exact_kl(distribution):
        raise TypeError(
            f"the exact KL is known for the distributions {', '.join(base.__name__ for base in FAMILIES)}; "
            f"the policy's is a {type(distribution).__name__}"
        )
    family = next(family for base, family in FAMILIES.items() if isinstance(distribution, base))
    inner: Any = distribution.distribution  # torch distributions, which SB3 annotates as its own
    if family is Gaussian:
        return Gaussian(inner.mean, inner.stddev)
    if family is Bernoulli:
        return Bernoulli(inner.logits)
    parts = inner if isinstance(inner, list) else [inner]
    return Categorical(tuple(part.logits for part in parts))


def concatenate(parts: Sequence[ActionDistribution]) -> ActionDistribution:
    """One distribution over the states of all ``parts``, in their order; the parts are of one kind."""
    first: Any = parts[0]
    columns: Any = zip(*(part.logits if isinstance(part, Categorical) else part for part in parts), strict=True)
    # A standard deviation that all states share has no rows.
    tensors = [column[0].clone() if column[0].dim() == 1 else th.cat(column) for column in columns]
    return Categorical(tuple(tensors)) if isinstance(first, Categorical) else type(first)(*tensors)


def _sum_of(parts: list[th.Tensor]) -> th.Tensor:
    return parts[0] if len(parts) == 1 else th.stack(parts, dim=1).sum(dim=1)


def _categorical_entropy(logits: th.Tensor) -> th.Tensor:
    floored = th.clamp(logits, min=th.finfo(logits.dtype).min)  # a category that is ruled out adds 0, not NaN
    return -(floored * F.softmax(logits, dim=-1)).sum(dim=-1)


def _gaussian_log_prob(mean: th.Tensor, std: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return (-((actions - mean) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_TWO_PI).sum(dim=1)


def _gaussian_entropy(mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    return (GAUSSIAN_ENTROPY + std.log()).sum(dim=-1).expand(len(mean))


class _GaussianTerms(th.autograd.Function):
    """log π(a|s) and entropy of diagonal Gaussians, differentiated by hand.

    Autograd would record a dozen operations on ``(B, A)`` tensors. The backward pass makes those that it would
    make, in its order and with its rounding (factors of 2 and −1 round nothing and are moved).
    """

    @staticmethod
    def forward(ctx: Any, mean: th.Tensor, std: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        variance = std**2
        distance = actions - mean
        exponent = (distance**2).neg_().div_(2 * variance)
        log_std = std.log()
        ctx.save_for_backward(distance, exponent, std, variance)
        ctx.set_materialize_grads(False)
        entropy = (GAUSSIAN_ENTROPY + log_std).sum(dim=-1).expand(len(mean))
        return (exponent - log_std).sub_(LOG_SQRT_TWO_PI).sum(dim=1), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[th.Tensor | None, th.Tensor | None, None]:
        distance, exponent, std, variance = ctx.saved_tensors
        of_log_prob, of_entropy = (None if gradient is None else gradient.unsqueeze(1) for gradient in gradients)
        of_mean = of_std = None
        if of_entropy is not None:
            of_std = (of_entropy / std).expand_as(distance)
        if of_log_prob is not None:
            of_mean = (of_log_prob / variance).mul_(distance)
            if ctx.needs_input_grad[1]:
                by_scale = of_log_prob / std
                by_scale = by_scale.neg_() if of_std is None else of_std - by_scale
                by_variance = (exponent / variance).mul_(of_log_prob).mul_(std).mul_(-2)
                of_std = by_variance.add_(by_scale)
        if of_std is not None and std.dim() == 1:
            of_std = of_std.sum(dim=0)
        return of_mean, of_std, None
