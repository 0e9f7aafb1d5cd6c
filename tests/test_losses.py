"""Each equation against numbers derived by hand, and each KL against torch's own."""

from __future__ import annotations

import math

import pytest
import torch as th
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from sb3_ppo_variants import losses


def close(actual: th.Tensor, expected: list[float]) -> None:
    th.testing.assert_close(actual, th.tensor(expected))


def test_policy_gradient() -> None:
    # log π · Â = log(1/2) · 2, log(1/4) · (−1)
    objective = losses.policy_gradient(th.log(th.tensor([0.5, 0.25])), th.tensor([2.0, -1.0]))
    close(objective, [-2 * math.log(2), math.log(4)])


def test_probability_ratio() -> None:
    # 0.3 / 0.2 and 0.1 / 0.4
    ratio = losses.probability_ratio(th.log(th.tensor([0.3, 0.1])), th.log(th.tensor([0.2, 0.4])))
    close(ratio, [1.5, 0.25])


def test_conservative_policy_iteration() -> None:
    close(losses.conservative_policy_iteration(th.tensor([1.5, 0.25]), th.tensor([2.0, -4.0])), [3.0, -1.0])


def test_clipped_surrogate_in_each_corner() -> None:
    # ε = 0.2. Columns: r inside, above and below the interval, for Â = +1 and then Â = −1.
    ratio = th.tensor([1.1, 1.5, 0.5, 1.1, 1.5, 0.5])
    advantages = th.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    # Â > 0: min(r, clip r) = 1.1, 1.2 (held at 1 + ε), 0.5 (the unclipped, lower one).
    # Â < 0: min(−r, −clip r) = −1.1, −1.5 (the unclipped, lower one), −0.8 (held at 1 − ε).
    close(losses.clipped_surrogate(ratio, advantages, 0.2), [1.1, 1.2, 0.5, -1.1, -1.5, -0.8])


def test_clipped_surrogate_has_no_gradient_where_it_is_held() -> None:
    # ∂L/∂r = Â inside and where the unclipped term is the smaller one, 0 where the clip holds (Fig. 1).
    ratio = th.tensor([1.1, 1.5, 0.5, 1.1, 1.5, 0.5], requires_grad=True)
    advantages = th.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    losses.clipped_surrogate(ratio, advantages, 0.2).sum().backward()
    assert ratio.grad is not None
    close(ratio.grad, [1.0, 0.0, 1.0, -1.0, -1.0, 0.0])


def test_log_clipped_surrogate() -> None:
    # ε = 0.5, Â = 1: log r = 1 is held at 0.5, so exp(0.5); log r = −1 gives the lower, unclipped exp(−1).
    # Â = −1: log r = 1 gives the lower, unclipped −exp(1); log r = −1 is held at −0.5, so −exp(−0.5).
    log_ratio = th.tensor([1.0, -1.0, 1.0, -1.0])
    objective = losses.log_clipped_surrogate(log_ratio, th.tensor([1.0, 1.0, -1.0, -1.0]), 0.5)
    close(objective, [math.exp(0.5), math.exp(-1), -math.exp(1), -math.exp(-0.5)])


def test_kl_penalized_surrogate() -> None:
    # 3 − 2 · 0.5 and −1 − 2 · 0.25
    objective = losses.kl_penalized_surrogate(th.tensor([3.0, -1.0]), th.tensor([0.5, 0.25]), beta=2.0)
    close(objective, [2.0, -1.5])


def test_kl_penalty_of_weight_zero_ignores_an_infinite_kl() -> None:
    # 0 · inf would be NaN.
    close(losses.kl_penalized_surrogate(th.tensor([3.0]), th.tensor([math.inf]), beta=0.0), [3.0])


def test_value_loss() -> None:
    # ((1 − 3)² + (2 − 1)²) / 2 = 5 / 2
    assert losses.value_loss(th.tensor([1.0, 2.0]), th.tensor([3.0, 1.0])).item() == 2.5


def test_clipped_values() -> None:
    # V_old = 1, limit 0.5: 1.2 stays, 3 is held at 1.5, −1 at 0.5.
    close(losses.clipped_values(th.tensor([1.2, 3.0, -1.0]), th.ones(3), 0.5), [1.2, 1.5, 0.5])


def test_approximate_kl() -> None:
    # r = 2 and 1/2: ((2 − 1) − log 2 + (1/2 − 1) + log 2) / 2 = 0.25
    log_ratio = th.log(th.tensor([2.0, 0.5]))
    assert losses.approximate_kl(log_ratio).item() == pytest.approx(0.25)


def test_gaussian_kl_by_hand() -> None:
    # One state, two dimensions. First: same σ = 1, means 1 apart: ½. Second: same mean, σ_old = 1, σ_new = 2:
    # log 2 + 1/8 − ½. The sum over dimensions is log 2 + 1/8.
    kl = losses.gaussian_kl(
        th.tensor([[0.0, 0.0]]), th.tensor([[1.0, 1.0]]), th.tensor([[1.0, 0.0]]), th.tensor([[1.0, 2.0]])
    )
    close(kl, [math.log(2) + 0.125])


def test_categorical_kl_by_hand() -> None:
    # p_old = (½, ½), p_new = (¼, ¾): ½ log 2 + ½ log(2/3). Adding a constant to all logits changes nothing.
    old, new = th.log(th.tensor([[0.5, 0.5]])), th.log(th.tensor([[0.25, 0.75]])) + 7
    close(losses.categorical_kl(old, new), [0.5 * math.log(2) + 0.5 * math.log(2 / 3)])


def test_categorical_kl_with_a_category_that_is_ruled_out() -> None:
    # p_old = (1, 0): against itself 0, against (½, ½) log 2; 0·(−inf) would be NaN, in the gradient too.
    old = th.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    new = th.tensor([[0.0, -math.inf], [0.0, 0.0]], requires_grad=True)
    kl = losses.categorical_kl(old, new)
    close(kl.detach(), [0.0, math.log(2)])
    kl.sum().backward()
    assert new.grad is not None
    # ∂KL/∂logits = p_new − p_old
    close(new.grad[1], [-0.5, 0.5])
    assert new.grad.isfinite().all()


def test_bernoulli_kl_by_hand() -> None:
    # As the categorical one in the first dimension (log-odds 0 and −log 3); 0 in the second.
    kl = losses.bernoulli_kl(th.tensor([[0.0, 1.0]]), th.tensor([[-math.log(3), 1.0]]))
    close(kl, [0.5 * math.log(2) + 0.5 * math.log(2 / 3)])


def test_every_kl_agrees_with_torch() -> None:
    generator = th.Generator().manual_seed(0)
    a, b, c, d = (th.randn(50, 4, generator=generator) for _ in range(4))
    gaussians = Independent(Normal(a, b.exp()), 1), Independent(Normal(c, d.exp()), 1)
    th.testing.assert_close(losses.gaussian_kl(a, b.exp(), c, d.exp()), kl_divergence(*gaussians), rtol=1e-5, atol=1e-5)
    categoricals = Categorical(logits=a), Categorical(logits=b)
    th.testing.assert_close(losses.categorical_kl(a, b), kl_divergence(*categoricals))
    bernoullis = Independent(Bernoulli(logits=a), 1), Independent(Bernoulli(logits=b), 1)
    th.testing.assert_close(losses.bernoulli_kl(a, b), kl_divergence(*bernoullis))


def test_kl_is_not_symmetric_in_old_and_new() -> None:
    # Guards the order of the arguments: KL[N(0, 1), N(0, 2)] = log 2 − 3/8, the other way round 3/2 − log 2.
    zero, one, two = th.zeros(1, 1), th.ones(1, 1), th.full((1, 1), 2.0)
    close(losses.gaussian_kl(zero, one, zero, two), [math.log(2) - 0.375])
    close(losses.gaussian_kl(zero, two, zero, one), [1.5 - math.log(2)])
