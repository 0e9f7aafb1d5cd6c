"""PPO with the clipped surrogate, L^CLIP (§3)."""

from __future__ import annotations

from typing import Any, Literal

import torch as th

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import require_choice
from sb3_ppo_variants.on_policy import Minibatch, PaperOnPolicyAlgorithm


class PPOClipPaper(PaperOnPolicyAlgorithm):
    """PPO with the clipped surrogate of eq. 7, with the defaults of the paper's Table 3.

    Takes every argument of SB3's ``PPO``; see :class:`PaperOnPolicyAlgorithm` for them and for what is ours.
    Zips that SB3's ``PPO`` saved load into it.

    :param surrogate: ``"clip"`` clips the ratio to [1−ε, 1+ε] (eq. 7); ``"log_clip"`` clips its logarithm to
        [−ε, ε] (§6.1: "no better")
    :raises ValueError: for an argument outside its range, named in the message
    """

    clipping = "required"

    def __init__(self, *args: Any, surrogate: Literal["clip", "log_clip"] = "clip", **kwargs: Any):
        self.surrogate = surrogate
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_choice("surrogate", self.surrogate, ("clip", "log_clip"))

    def objective(self, batch: Minibatch) -> th.Tensor:
        """L^CLIP of each sample (eq. 7), shape ``(M,)``."""
        assert batch.clip_range is not None
        if self.surrogate == "log_clip":
            log_ratio = batch.log_prob - batch.old_log_prob
            return losses.log_clipped_surrogate(log_ratio, batch.advantages, batch.clip_range)
        return losses.clipped_surrogate(batch.ratio, batch.advantages, batch.clip_range)

    def minibatch_metrics(self, batch: Minibatch) -> dict[str, th.Tensor]:
        """As the base class's; under ``"log_clip"`` the ``clip_fraction`` is the share with |log r| > ε."""
        if self.surrogate == "log_clip":
            assert batch.clip_range is not None
            log_ratio = batch.log_prob - batch.old_log_prob
            return {"clip_fraction": (log_ratio.abs() > batch.clip_range).float().mean()}
        return super().minibatch_metrics(batch)
