"""A policy's action distributions as plain tensors, which can be stored, selected by row and compared exactly."""

from __future__ import annotations

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

from sb3_ppo_variants import losses

_FAMILIES: dict[type[Distribution], str] = {
    DiagGaussianDistribution: "gaussian",
    StateDependentNoiseDistribution: "gaussian",
    CategoricalDistribution: "categorical",
    MultiCategoricalDistribution: "categorical",
    BernoulliDistribution: "bernoulli",
}


def family_of(distribution: Distribution) -> str | None:
    """``"gaussian"``, ``"categorical"`` or ``"bernoulli"``; None where the exact KL is not known."""
    matches = (family for base, family in _FAMILIES.items() if isinstance(distribution, base))
    return next(matches, None)


class ActionDistribution(NamedTuple):
    """π(·|s) for ``B`` states.

    ``family`` and what ``parameters`` then holds:

    - ``"gaussian"`` (gSDE included; a squashing tanh changes no KL): mean and standard deviation, each ``(B, A)``
    - ``"categorical"`` (Discrete, MultiDiscrete): one tensor of logits ``(B, n_i)`` per action dimension
    - ``"bernoulli"`` (MultiBinary): logits ``(B, A)``
    """

    family: str
    parameters: tuple[th.Tensor, ...]

    @classmethod
    def from_sb3(cls, distribution: Distribution) -> ActionDistribution:
        """Read the tensors out of one of SB3's distributions, after its ``proba_distribution``.

        :raises TypeError: for a distribution that is none of SB3's five
        """
        family = family_of(distribution)
        if family is None:
            raise TypeError(
                f"the exact KL is known for the distributions {', '.join(base.__name__ for base in _FAMILIES)}; "
                f"the policy's is a {type(distribution).__name__}"
            )
        inner: Any = distribution.distribution  # torch distributions, which SB3 annotates as its own
        if family == "gaussian":
            return cls(family, (inner.mean, inner.stddev))
        parts = inner if isinstance(inner, list) else [inner]
        return cls(family, tuple(part.logits for part in parts))

    def rows(self, indices: th.Tensor) -> ActionDistribution:
        """The distributions of the states ``indices``, a ``(M,)`` tensor of integers."""
        return self._replace(parameters=tuple(tensor[indices] for tensor in self.parameters))

    def kl(self, new: ActionDistribution) -> th.Tensor:
        """Exact KL[self, new] of each state in nats, shape ``(B,)``."""
        if self.family == "gaussian":
            return losses.gaussian_kl(*self.parameters, *new.parameters)
        if self.family == "categorical":
            pairs = zip(self.parameters, new.parameters, strict=True)
            return th.stack([losses.categorical_kl(old, fresh) for old, fresh in pairs]).sum(dim=0)
        return losses.bernoulli_kl(*self.parameters, *new.parameters)

    @classmethod
    def concatenate(cls, parts: list[ActionDistribution]) -> ActionDistribution:
        """One distribution over the states of all ``parts``, in their order."""
        columns = zip(*(part.parameters for part in parts), strict=True)
        return cls(parts[0].family, tuple(th.cat(column) for column in columns))
