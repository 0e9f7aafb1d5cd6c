"""The exact KL of each of SB3's distributions against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch.distributions import kl_divergence

from sb3_ppo_variants.distributions import ActionDistribution


def normal(seed: int, *shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed))


def gaussian(seed: int) -> Any:
    return DiagGaussianDistribution(3).proba_distribution(normal(seed, 7, 3), normal(seed + 1, 3))


def gsde(seed: int) -> Any:
    distribution = StateDependentNoiseDistribution(3)
    distribution.proba_distribution_net(latent_dim=5, latent_sde_dim=5)
    return distribution.proba_distribution(normal(seed, 7, 3), normal(seed + 1, 5, 3), normal(seed + 2, 7, 5))


def categorical(seed: int) -> Any:
    return CategoricalDistribution(4).proba_distribution(normal(seed, 7, 4))


def multi_categorical(seed: int) -> Any:
    return MultiCategoricalDistribution([2, 3]).proba_distribution(normal(seed, 7, 5))


def bernoulli(seed: int) -> Any:
    return BernoulliDistribution(3).proba_distribution(normal(seed, 7, 3))


@pytest.mark.parametrize("make", [gaussian, gsde, categorical, multi_categorical, bernoulli])
def test_kl_is_torchs_summed_over_the_action_dimensions(make: Any) -> None:
    old, new = make(0), make(10)
    ours = ActionDistribution.from_sb3(old).kl(ActionDistribution.from_sb3(new))
    pairs = zip(
        *(d.distribution if isinstance(d.distribution, list) else [d.distribution] for d in (old, new)), strict=True
    )
    theirs = sum(kl_divergence(a, b).reshape(7, -1).sum(dim=1) for a, b in pairs)
    assert ours.shape == (7,)
    th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [gaussian, gsde, categorical, multi_categorical, bernoulli])
def test_rows_and_concatenate(make: Any) -> None:
    whole, other = ActionDistribution.from_sb3(make(0)), ActionDistribution.from_sb3(make(10))
    indices = th.tensor([4, 1, 6])
    assert th.equal(whole.rows(indices).kl(other.rows(indices)), whole.kl(other)[indices])
    rebuilt = ActionDistribution.concatenate([whole.rows(th.arange(3)), whole.rows(th.arange(3, 7))])
    assert th.equal(rebuilt.kl(other), whole.kl(other))
