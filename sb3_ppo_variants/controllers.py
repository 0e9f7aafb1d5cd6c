"""The rules that act BETWEEN updates: each takes what the last update did and returns what the next one uses."""

from __future__ import annotations

# §4: β moves when the KL leaves the band [d_targ / 1.5, 1.5 d_targ], by a factor of 2.
KL_BAND = 1.5
BETA_FACTOR = 2.0

# Footnote 3's code (CS294, homework 4): the stepsize moves by a factor of 1.5 when the KL leaves
# [d_targ / 2, 2 d_targ].
STEPSIZE_BAND = 2.0
STEPSIZE_FACTOR = 1.5

# Not in the paper: the range in which β is kept, 64 doublings either way from 1, so that a run whose KL
# stays on one side of the band for very long ends neither at 0, from where doubling never returns, nor at inf.
BETA_MIN = 2.0**-64
BETA_MAX = 2.0**64


def adapt_beta(beta: float, kl: float, kl_target: float) -> float:
    """The penalty coefficient of the NEXT update (§4).

    ``d < d_targ / 1.5 → β / 2``; ``d > 1.5 d_targ → 2 β``; otherwise, both boundaries included, β stays.

    :param beta: β of the update just done, ≥ 0; 0 stays 0
    :param kl: d = E[KL[π_old, π_new]] in nats, measured after that update over the whole batch
    :param kl_target: d_targ > 0, in nats
    :return: β of the next update, within [``BETA_MIN``, ``BETA_MAX``] unless it is 0
    """
    if beta == 0:
        return beta
    if kl < kl_target / KL_BAND:
        return max(beta / BETA_FACTOR, BETA_MIN)
    if kl > kl_target * KL_BAND:
        return min(beta * BETA_FACTOR, BETA_MAX)
    return beta


def adapt_stepsize(stepsize: float, kl: float, kl_target: float, bounds: tuple[float, float]) -> float:
    """Adam's stepsize in the NEXT update, adapted to a target KL (Table 4; the rule is that of footnote 3's code).

    ``d > 2 d_targ → stepsize / 1.5``; ``d < d_targ / 2 → 1.5 stepsize``; otherwise, both boundaries included, it
    stays. A bound is never crossed; a stepsize that a schedule has taken beyond one is moved no further out.

    :param stepsize: of the update just done, > 0
    :param kl: d = E[KL[π_old, π_new]] in nats, measured after that update over the whole batch
    :param kl_target: d_targ > 0, in nats
    :param bounds: the smallest and the largest stepsize
    :return: the stepsize of the next update
    """
    smallest, largest = bounds
    if kl > kl_target * STEPSIZE_BAND:
        return max(stepsize / STEPSIZE_FACTOR, min(smallest, stepsize))
    if kl < kl_target / STEPSIZE_BAND:
        return min(stepsize * STEPSIZE_FACTOR, max(largest, stepsize))
    return stepsize
