"""PPO without clipping or penalty, L^CPI: the first row of Table 1."""

from __future__ import annotations

import torch as th

from sb3_ppo_variants import losses
from sb3_ppo_variants.on_policy import Minibatch, PaperOnPolicyAlgorithm


class PPOUnclippedPaper(PaperOnPolicyAlgorithm):
    """The surrogate of conservative policy iteration (eq. 6), with the defaults of the paper's Table 3.

    Nothing holds the policy near the one that collected the data: Table 1's "no clipping or penalty" scores −0.39,
    for HalfCheetah with ``clip_actions=False`` goes far below a random policy. It is here for comparison.

    Takes every argument of SB3's ``PPO``; see :class:`PaperOnPolicyAlgorithm` for them and for what is ours.

    :param clip_range: None; the surrogate has none
    :raises ValueError: for an argument outside its range, a ``clip_range`` among them; named in the message
    """

    default_clip_range = None
    clipping = "never"

    def objective(self, batch: Minibatch) -> th.Tensor:
        """L^CPI of each sample (eq. 6), shape ``(M,)``."""
        return losses.conservative_policy_iteration(batch.ratio, batch.advantages)
