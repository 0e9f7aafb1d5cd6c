"""Our tensors of distributions against SB3's and torch's own distributions."""

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

from sb3_ppo_variants.distributions import Bernoulli, Categorical, Gaussian, concatenate, from_sb3, has_exact_kl


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


MAKERS = [gaussian, gsde, categorical, multi_categorical, bernoulli]
every_kind = pytest.mark.parametrize("make", MAKERS)


@every_kind
def test_kl_is_torchs_summed_over_the_action_dimensions(make: Any) -> None:
    old, new = make(0), make(10)
    ours = from_sb3(old).kl(from_sb3(new))  # type: ignore[arg-type]  # both are of one kind
    pairs = zip(
        *(d.distribution if isinstance(d.distribution, list) else [d.distribution] for d in (old, new)), strict=True
    )
    theirs = sum(kl_divergence(a, b).reshape(7, -1).sum(dim=1) for a, b in pairs)
    assert ours.shape == (7,)
    th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_kind
def test_kl_to_itself_is_exactly_zero(make: Any) -> None:
    assert from_sb3(make(0)).kl(from_sb3(make(0))).tolist() == [0.0] * 7  # type: ignore[arg-type]


@every_kind
def test_log_prob_and_entropy_are_sb3s_bit_for_bit(make: Any) -> None:
    theirs = make(0)
    th.manual_seed(1)
    actions = theirs.sample() if make is not gsde else normal(5, 7, 3)  # gSDE's noise needs as many rows as states
    log_prob, entropy = from_sb3(theirs).log_prob_and_entropy(actions)
    assert th.equal(log_prob, theirs.log_prob(actions))
    assert th.equal(entropy, theirs.entropy())


@pytest.mark.parametrize("exact_rounding", [True, False])
@pytest.mark.parametrize("make", [maker for maker in MAKERS if maker is not gsde])  # gSDE samples its noise elsewhere
def test_samples_are_sb3s(make: Any, exact_rounding: bool) -> None:
    theirs = make(0)
    th.manual_seed(2)
    actions, log_prob = from_sb3(theirs).sample(exact_rounding)
    th.manual_seed(2)
    expected = theirs.sample()
    assert actions.dtype == expected.dtype
    # Gaussian draws and their log-probability are computed from the noise where SB3's rounding is not asked for.
    tolerance = 0.0 if exact_rounding or make is not gaussian else 1e-5
    th.testing.assert_close(actions, expected, rtol=tolerance, atol=tolerance)
    th.testing.assert_close(log_prob, theirs.log_prob(expected), rtol=tolerance, atol=tolerance)


@every_kind
def test_rows_and_concatenate(make: Any) -> None:
    whole: Any = from_sb3(make(0))
    other: Any = from_sb3(make(10))
    indices = th.tensor([4, 1, 6])
    assert th.equal(whole.rows(indices).kl(other.rows(indices)), whole.kl(other)[indices])
    assert th.equal(whole.rows(slice(2, 5)).kl(other.rows(slice(2, 5))), whole.kl(other)[2:5])
    rebuilt: Any = concatenate([whole.rows(th.arange(3)), whole.rows(th.arange(3, 7))])
    assert type(rebuilt) is type(whole)
    assert th.equal(rebuilt.kl(other), whole.kl(other))


def test_a_concatenation_keeps_its_own_copy_of_a_shared_deviation() -> None:
    # π_old must not follow the policy's σ, of which a Gaussian may be a view.
    std = th.ones(2)
    stored: Any = concatenate([Gaussian(th.zeros(1, 2), std), Gaussian(th.ones(1, 2), std)])
    std.fill_(5.0)
    assert stored.std.tolist() == [1.0, 1.0]


def test_the_families() -> None:
    kinds = {maker.__name__: type(from_sb3(maker(0))) for maker in MAKERS}
    assert kinds == {
        "gaussian": Gaussian,
        "gsde": Gaussian,
        "categorical": Categorical,
        "multi_categorical": Categorical,
        "bernoulli": Bernoulli,
    }
    assert all(has_exact_kl(maker(0)) for maker in MAKERS)


def test_an_unknown_distribution_is_named() -> None:
    class Laplace:
        """None of SB3's five."""

    assert not has_exact_kl(Laplace())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"DiagGaussianDistribution, .*; the policy's is a Laplace"):
        from_sb3(Laplace())  # type: ignore[arg-type]
