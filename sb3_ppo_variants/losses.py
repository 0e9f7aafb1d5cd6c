"""The paper's objectives as pure functions of tensors: one function, one equation.

Every surrogate is written as the paper writes it, as something to be MAXIMISED, one value per sample;
the update driver takes the mean over the minibatch and flips the sign. ``value_loss`` is the only loss.

Shapes: ``B`` samples, ``A`` action dimensions, ``n`` categories. Advantages, log-probabilities, ratios,
values and returns are ``(B,)``.

Source: Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347v2.
"""

from __future__ import annotations

import torch as th


def policy_gradient(log_prob: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """L^PG, the score-function objective (eq. 2): ``log π(a|s) Â``.

    :param log_prob: log π_θ(a|s), shape ``(B,)``
    :param advantages: Â, shape ``(B,)``
    :return: the objective of each sample, shape ``(B,)``
    """
    return advantages * log_prob


def probability_ratio(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """r(θ) = π_θ(a|s) / π_old(a|s) (§3), 1 at θ = θ_old.

    :param log_prob: log π_θ(a|s), shape ``(B,)``
    :param old_log_prob: log π_old(a|s), shape ``(B,)``
    :return: the ratio of each sample, shape ``(B,)``
    """
    return th.exp(log_prob - old_log_prob)


def conservative_policy_iteration(ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """L^CPI, neither clipped nor penalised (eq. 6): ``r Â``.

    :param ratio: r(θ), shape ``(B,)``
    :param advantages: Â, shape ``(B,)``
    :return: the objective of each sample, shape ``(B,)``
    """
    return advantages * ratio


def clipped_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float | th.Tensor) -> th.Tensor:
    """L^CLIP, a pessimistic bound on L^CPI (eq. 7): ``min(r Â, clip(r, 1−ε, 1+ε) Â)``.

    :param ratio: r(θ), shape ``(B,)``
    :param advantages: Â, shape ``(B,)``
    :param clip_range: ε ≥ 0
    :return: the objective of each sample, shape ``(B,)``
    """
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)  # type: ignore[arg-type]  # two of one kind
    return th.min(advantages * ratio, advantages * clipped_ratio)


def log_clipped_surrogate(log_ratio: th.Tensor, advantages: th.Tensor, clip_range: float | th.Tensor) -> th.Tensor:
    """L^CLIP with the clipping done in log space (§6.1, "no better"): ``min(r Â, exp(clip(log r, −ε, ε)) Â)``.

    The interval for r is ``[exp(−ε), exp(ε)]``, symmetric in log r. The paper names the idea without a
    formula; this is its plainest reading.

    :param log_ratio: log r(θ), shape ``(B,)``
    :param advantages: Â, shape ``(B,)``
    :param clip_range: ε ≥ 0, in nats
    :return: the objective of each sample, shape ``(B,)``
    """
    clipped_ratio = th.exp(log_ratio.clamp(-clip_range, clip_range))  # type: ignore[arg-type]
    return th.min(advantages * th.exp(log_ratio), advantages * clipped_ratio)


def kl_penalized_surrogate(surrogate: th.Tensor, kl: th.Tensor, beta: float | th.Tensor) -> th.Tensor:
    """L^KLPEN (eq. 8): ``r Â − β KL[π_old, π_θ]``.

    :param surrogate: ``r Â`` (eq. 6), or L^CLIP (eq. 7) where clip and penalty act together (§4), shape ``(B,)``
    :param kl: KL[π_old(·|s), π_θ(·|s)] in nats, shape ``(B,)``
    :param beta: β ≥ 0; at the number 0 the surrogate comes back untouched, so that no ``0·inf`` arises
    :return: the objective of each sample, shape ``(B,)``
    """
    is_off = not isinstance(beta, th.Tensor) and beta == 0
    return surrogate if is_off else surrogate - beta * kl


def value_loss(values: th.Tensor, returns: th.Tensor) -> th.Tensor:
    """L^VF of eq. 9, a loss to be minimised: the mean of ``(V − V_targ)²``.

    :param values: V_θ(s), shape ``(B,)``
    :param returns: V_targ, the λ-return, shape ``(B,)``
    :return: the mean squared error, a scalar
    """
    return th.nn.functional.mse_loss(returns, values)


def clipped_values(values: th.Tensor, old_values: th.Tensor, clip_range_vf: float | th.Tensor) -> th.Tensor:
    """Keep V within ±``clip_range_vf`` of the value it had in the rollout (not in the paper; as SB3 does).

    :param values: V_θ(s), shape ``(B,)``
    :param old_values: V_old(s), shape ``(B,)``
    :param clip_range_vf: > 0, in units of the return
    :return: the clipped values, shape ``(B,)``
    """
    return old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)  # type: ignore[arg-type]


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """SB3's ``approx_kl``, the estimate ``mean((r − 1) − log r)`` of KL[π_old, π_θ] from the taken actions.

    It steers ``target_kl`` only; the paper's rules use the exact KL below.

    :param log_ratio: log r(θ), shape ``(B,)``
    :return: a scalar, in nats
    """
    return th.mean((th.exp(log_ratio) - 1) - log_ratio)


def gaussian_kl(old_mean: th.Tensor, old_std: th.Tensor, new_mean: th.Tensor, new_std: th.Tensor) -> th.Tensor:
    """Exact KL[N_old, N_new] of diagonal Gaussians, summed over the action dimensions.

    ``Σ_A log(σ_new/σ_old) + (σ_old² + (μ_old − μ_new)²) / (2 σ_new²) − ½``

    :param old_mean: μ_old, shape ``(B, A)``
    :param old_std: σ_old > 0, shape ``(B, A)``, or ``(A,)`` where all samples share it
    :param new_mean: μ_new, shape ``(B, A)``
    :param new_std: σ_new > 0, shape ``(B, A)`` or ``(A,)``
    :return: the KL of each sample in nats, shape ``(B,)``
    """
    variance_ratio = (old_std / new_std) ** 2
    distance = ((old_mean - new_mean) / new_std) ** 2
    # Two sums, as the first needs no row for each sample where all share their σ.
    return 0.5 * ((variance_ratio - 1 - th.log(variance_ratio)).sum(dim=-1) + distance.sum(dim=-1))


def categorical_kl(old_logits: th.Tensor, new_logits: th.Tensor) -> th.Tensor:
    """Exact KL[p_old, p_new] of categorical distributions: ``Σ_n p_old (log p_old − log p_new)``.

    A category that p_old rules out (logit −inf, as masked actions have) adds nothing.

    :param old_logits: unnormalised log-probabilities, shape ``(B, n)``
    :param new_logits: unnormalised log-probabilities, shape ``(B, n)``
    :return: the KL of each sample in nats, shape ``(B,)``
    """
    old_log_prob = th.log_softmax(old_logits, dim=-1)
    difference = old_log_prob - th.log_softmax(new_logits, dim=-1)
    # Chosen before the product, so that neither the value nor the gradient meets 0·inf.
    difference = th.where(old_log_prob.isneginf(), 0.0, difference)
    return (old_log_prob.exp() * difference).sum(dim=-1)


def bernoulli_kl(old_logits: th.Tensor, new_logits: th.Tensor) -> th.Tensor:
    """Exact KL[p_old, p_new] of independent Bernoulli variables, summed over the action dimensions.

    :param old_logits: log-odds, shape ``(B, A)``
    :param new_logits: log-odds, shape ``(B, A)``
    :return: the KL of each sample in nats, shape ``(B,)``
    """
    log_sigmoid = th.nn.functional.logsigmoid
    ones = th.sigmoid(old_logits) * (log_sigmoid(old_logits) - log_sigmoid(new_logits))
    zeros = th.sigmoid(-old_logits) * (log_sigmoid(-old_logits) - log_sigmoid(-new_logits))
    return (ones + zeros).sum(dim=-1)
