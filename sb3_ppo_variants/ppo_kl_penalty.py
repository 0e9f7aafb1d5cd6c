"""PPO with a penalty on the KL divergence, L^KLPEN (§4): with an adaptive and with a fixed coefficient."""

from __future__ import annotations

import math
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import require
from sb3_ppo_variants.controllers import BETA_MAX, BETA_MIN, adapt_beta
from sb3_ppo_variants.on_policy import Minibatch, PaperOnPolicyAlgorithm


class _KLPenaltyPaper(PaperOnPolicyAlgorithm):
    """What the two penalties share: the objective, and that nothing is clipped unless asked for."""

    needs_kl = True
    default_clip_range = None

    def objective(self, batch: Minibatch) -> th.Tensor:
        """L^KLPEN of each sample (eq. 8), on top of L^CLIP where a ``clip_range`` is set (§4), shape ``(M,)``."""
        assert batch.kl is not None
        if batch.clip_range is None:
            surrogate = losses.conservative_policy_iteration(batch.ratio, batch.advantages)
        else:
            surrogate = losses.clipped_surrogate(batch.ratio, batch.advantages, batch.clip_range)
        return losses.kl_penalized_surrogate(surrogate, batch.kl, batch.coefficients["beta"])


class PPOAdaptiveKLPaper(_KLPenaltyPaper):
    """PPO with the adaptive KL penalty of eq. 8 and §4, with the defaults of the paper's Table 3.

    After each update β is halved where E[KL[π_old, π_new]] over the whole batch fell below ``kl_target`` / 1.5,
    doubled where it exceeded 1.5 ``kl_target``; the new β serves the next update. The KL is the exact one of the
    whole distribution, against π_old's as stored before the update.

    Takes every argument of SB3's ``PPO``; see :class:`PaperOnPolicyAlgorithm` for them and for what is ours.
    ``target_kl`` keeps SB3's meaning, early stopping, and has nothing to do with ``kl_target``.

    ``beta`` is the live coefficient: logged as ``train/beta``, saved with the model and restored with it;
    ``load(..., beta=...)`` sets another.

    :param clip_range: ε of a clip applied together with the penalty (§4 names the combination), or a schedule
        of it; None (default): no clipping
    :param kl_target: d_targ > 0, in nats (Table 1's best: 0.01)
    :param beta_init: β ≥ 0 of the first update (caption of Table 1: 1; the Korean review that this project
        started from says "about 2", and the paper's own caption wins); 0: no penalty, ever, as neither halving
        nor doubling moves it
    :raises ValueError: for an argument outside its range, named in the message
    :raises TypeError: for a policy whose distribution has no known exact KL
    """

    def __init__(self, *args: Any, kl_target: float = 0.01, beta_init: float = 1.0, **kwargs: Any):
        self.kl_target = kl_target
        self.beta_init = beta_init
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require("kl_target", self.kl_target, "a finite number > 0", lambda value: 0 < value < math.inf)
        if not hasattr(self, "beta"):  # neither restored from a zip nor handed to load()
            self.beta = self.beta_init
        for name in ("beta_init", "beta"):
            require(name, getattr(self, name), f"0 or a number in [{BETA_MIN:.2g}, {BETA_MAX:.2g}]", _is_beta)

    def coefficients(self) -> dict[str, float]:
        """β of this update."""
        return {"beta": self.beta}

    def after_update(self, kl: float) -> None:
        """Set the next update's β (§4)."""
        self.beta = adapt_beta(self.beta, kl, self.kl_target)


class PPOFixedKLPaper(_KLPenaltyPaper):
    """PPO with a fixed coefficient for the KL penalty of eq. 8, with the defaults of the paper's Table 3.

    Takes every argument of SB3's ``PPO``; see :class:`PaperOnPolicyAlgorithm` for them and for what is ours.
    ``target_kl`` keeps SB3's meaning, early stopping.

    :param clip_range: as for :class:`PPOAdaptiveKLPaper`; None (default): no clipping
    :param beta: β ≥ 0 (Table 1's best: 3; the paper tried 0.3, 1, 3 and 10), or a schedule of it
    :raises ValueError: for an argument outside its range, named in the message
    :raises TypeError: for a policy whose distribution has no known exact KL
    """

    def __init__(self, *args: Any, beta: float | Schedule = 3.0, **kwargs: Any):
        self.beta = beta
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        allowed = "a finite number >= 0 or a schedule"
        require("beta", self.beta, allowed, lambda value: 0 <= value < math.inf, schedule=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        if callable(self.beta):
            self.beta = FloatSchedule(self.beta)

    def coefficients(self) -> dict[str, float]:
        """β of this update."""
        return {"beta": self._current_value("beta", self.beta)}


def _is_beta(value: float) -> bool:
    return value == 0 or BETA_MIN <= value <= BETA_MAX
