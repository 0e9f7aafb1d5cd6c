"""The rules between updates, over scripted sequences."""

from __future__ import annotations

import pytest

from sb3_ppo_variants.controllers import BETA_MAX, BETA_MIN, adapt_beta


def test_beta_over_a_scripted_sequence_of_kls() -> None:
    # d_targ = 0.3, so the band is [0.2, 0.45]. β starts at 1 and the rule of §4, by hand:
    # 0.5 > 0.45 → 2; 0.46 → 4; 0.3 in the band → 4; 0.19 < 0.2 → 2; 0 → 1; 0.1 → 0.5; inf would double → 1.
    trace, beta = [], 1.0
    for kl in (0.5, 0.46, 0.3, 0.19, 0.0, 0.1, float("inf")):
        beta = adapt_beta(beta, kl, kl_target=0.3)
        trace.append(beta)
    assert trace == [2, 4, 4, 2, 1, 0.5, 1]


@pytest.mark.parametrize("kl", [0.75 / 1.5, 0.75 * 1.5])
def test_beta_stays_on_both_boundaries(kl: float) -> None:
    assert adapt_beta(1.0, kl, kl_target=0.75) == 1.0


def test_beta_zero_stays_zero() -> None:
    assert adapt_beta(0.0, kl=10.0, kl_target=0.01) == 0.0


def test_beta_returns_from_either_end() -> None:
    beta = 1.0
    for _ in range(2000):
        beta = adapt_beta(beta, kl=0.0, kl_target=0.01)
    assert beta == BETA_MIN
    for _ in range(2000):
        beta = adapt_beta(beta, kl=1.0, kl_target=0.01)
    assert beta == BETA_MAX
