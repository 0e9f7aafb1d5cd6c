"""PPO without clipping or penalty, L^CPI: the first row of Table 1."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

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

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: None = None,
        *args: Any,
        **kwargs: Any,
    ):
        # Here only, not where a zip is loaded: rl_zoo3 hands every model that it loads a clip_range.
        if clip_range is not None:
            raise ValueError(
                f"clip_range must be None: PPOUnclippedPaper clips nothing (PPOClipPaper does); got {clip_range!r}"
            )
        super().__init__(
            policy, env, learning_rate, n_steps, batch_size, n_epochs, gamma, gae_lambda, clip_range, *args, **kwargs
        )

    def objective(self, batch: Minibatch) -> th.Tensor:
        """L^CPI of each sample (eq. 6), shape ``(M,)``."""
        return losses.conservative_policy_iteration(batch.ratio, batch.advantages)
