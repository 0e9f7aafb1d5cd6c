"""Vanilla policy gradient, L^PG (§2.1): from REINFORCE to the actor-critic with generalised advantages."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutBufferSamples

from sb3_ppo_variants import losses
from sb3_ppo_variants.arguments import require_choice
from sb3_ppo_variants.episodes import (
    Steps,
    concatenate_samples,
    cut_after_last_end,
    discounted_returns,
    join,
    steps_of_each,
    to_keep,
)
from sb3_ppo_variants.evaluation import CalledPolicy
from sb3_ppo_variants.metrics import MeanMetrics
from sb3_ppo_variants.on_policy import ADVANTAGE_EPSILON, Minibatch, PaperOnPolicyAlgorithm, UpdateConstants
from sb3_ppo_variants.optimizer import OptimizerSteps
from sb3_ppo_variants.rollout_data import EVALUATION_ROWS, Rollout, StoredRollout, has_stock_reader, samples_of

ESTIMATORS = ("gae", "td", "baseline", "reinforce")
# Rollouts for which an episode may go on before its waiting steps are worth a warning.
ENDLESS_ROLLOUTS = 10
# Those that need the return of the whole episode.
MONTE_CARLO = ("baseline", "reinforce")


class VanillaPGPaper(PaperOnPolicyAlgorithm):
    """One gradient step per rollout on the score-function objective of eq. 2, with Table 3's other defaults.

    The policy takes one step of Adam on the whole batch; then the value function is fitted to the returns in
    ``n_epochs`` epochs of minibatches of ``batch_size``. Where policy and value function share a features
    extractor, that fit moves the shared layers too. With ``stepsize_kl_target`` this is the "Vanilla PG, Adaptive"
    of Fig. 3. As both have one optimiser, the stepsize that adapts to the policy's KL is that of the value function's
    fit too; the paper does not say whether it is.

    Takes every argument of SB3's ``PPO``; see :class:`PaperOnPolicyAlgorithm` for them and for what is ours.

    :param batch_size: minibatch size of the value function's fit
    :param n_epochs: epochs of the value function's fit
    :param gae_lambda: λ of the estimator ``"gae"``; the others have none
    :param clip_range: None; the objective has no ratio to clip
    :param target_kl: None; a single step leaves nothing to stop early
    :param normalize_advantage: over the whole batch, for both ``"batch"`` and True; ``"reinforce"`` divides by the root
        mean square without subtracting the mean, which would be a baseline
    :param compile: False; there is no compiled update
    :param advantage_estimator: Â of eq. 2, in the order in which the code lab builds them up:

        - ``"reinforce"``: the Monte-Carlo return of the episode's rest, without a baseline and without a value
          function (nothing is credited at a time limit)
        - ``"baseline"``: the same minus V(s)
        - ``"td"``: the TD error r + γ V(s') − V(s), an actor-critic (λ = 0)
        - ``"gae"`` (default): eqs. 11–12

        The first two use complete episodes only: the steps of an episode that the rollout cut wait for its end in a
        later rollout; they are saved with the model, and dropped where the environments are reset (as SB3's ``load``
        does unless ``force_reset=False``). A rollout in which no episode ends makes no update
    :raises ValueError: for an argument outside its range, named in the message
    """

    default_clip_range = None
    clipping = "never"

    def __init__(
        self,
        *args: Any,
        advantage_estimator: Literal["gae", "td", "baseline", "reinforce"] = "gae",
        **kwargs: Any,
    ):
        self.advantage_estimator = advantage_estimator
        self.unfinished: list[Steps | None] = []
        """what waits of each environment's running episode (``"baseline"`` and ``"reinforce"``)"""
        self._warned_of_endless_episodes = False
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        require_choice("advantage_estimator", self.advantage_estimator, ESTIMATORS)
        if self.target_kl is not None:
            raise ValueError(f"target_kl must be None: VanillaPGPaper's policy takes one step; got {self.target_kl!r}")
        if self.compile:
            raise ValueError("compile must be False: VanillaPGPaper has no compiled update")

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.advantage_estimator == "td":
            self.rollout_buffer.gae_lambda = 0.0
        if self.advantage_estimator in MONTE_CARLO and not has_stock_reader(self.rollout_buffer):
            raise ValueError(
                f"advantage_estimator={self.advantage_estimator!r} needs one of SB3's own rollout buffers, whose order "
                f"it knows; got the rollout_buffer_class {type(self.rollout_buffer).__name__}"
            )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # the environments will be reset: no episode goes on
            self.unfinished = []
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    def get_resume_state(self) -> None:
        """Nothing: a resumed run begins the episodes under way again, so no steps wait for their ends."""

    def set_resume_state(self, _state: None) -> None:
        """Drop what waits."""
        self.unfinished = []

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """As the base class's."""
        is_complete = False
        try:
            is_complete = super().collect_rollouts(*args, **kwargs)
        finally:
            if not is_complete:  # the steps of this rollout are lost, and with them the middle of the episodes
                self.unfinished = []
        return is_complete

    def _standardize(self, rollout: Rollout) -> None:
        """Over the whole batch, the policy's only minibatch; without a shift where there is to be no baseline."""
        if self.normalize_advantage and self.advantage_estimator == "reinforce":
            assert isinstance(rollout, StoredRollout)
            rollout.scale_advantages(ADVANTAGE_EPSILON)
        elif self.normalize_advantage:
            rollout.standardize_advantages(ADVANTAGE_EPSILON)

    def _warn_of_endless_episodes(self) -> None:
        longest = max(len(steps.rewards) for steps in self.unfinished if steps is not None)
        if longest > ENDLESS_ROLLOUTS * self.n_steps and not self._warned_of_endless_episodes:
            self._warned_of_endless_episodes = True
            warnings.warn(
                f"an episode has gone on for {longest} steps, {ENDLESS_ROLLOUTS} rollouts and more, and "
                f"advantage_estimator={self.advantage_estimator!r} waits for its end: set a time limit, or take 'gae'",
                stacklevel=2,
            )

    def objective(self, batch: Minibatch) -> th.Tensor:
        """L^PG of each sample (eq. 2), shape ``(M,)``."""
        return losses.policy_gradient(batch.log_prob, batch.advantages)

    def _credit_timeouts(self, *args: Any) -> None:
        if self.advantage_estimator != "reinforce":
            super()._credit_timeouts(*args)

    def _read_rollout(self, evaluator: CalledPolicy) -> Rollout | None:
        if self.advantage_estimator not in MONTE_CARLO:
            return super()._read_rollout(evaluator)
        samples = self._complete_episodes()
        self.logger.record("train/waiting_timesteps", sum(len(steps.rewards) for steps in self.unfinished if steps))
        return None if samples is None else StoredRollout(samples, evaluator, with_reference=self._knows_kl)

    def _complete_episodes(self) -> RolloutBufferSamples | None:
        """The samples of all episodes that have ended, with Monte-Carlo returns; None where none has."""
        buffer = self.rollout_buffer
        ends = np.array([*buffer.episode_starts[1:], self._last_episode_starts], dtype=bool)
        each = steps_of_each(samples_of(buffer), buffer.rewards, ends)
        earlier = self.unfinished or [None] * len(each)
        cut = [cut_after_last_end(join(*pair)) for pair in zip(earlier, each, strict=True)]
        self.unfinished = [to_keep(waiting) for _, waiting in cut]
        self._warn_of_endless_episodes()
        complete = [self._with_returns(steps) for steps, _ in cut if len(steps.rewards) > 0]
        return concatenate_samples(complete) if complete else None

    def _with_returns(self, steps: Steps) -> RolloutBufferSamples:
        samples = steps.samples
        returns = th.as_tensor(discounted_returns(steps.rewards, steps.ends, self.gamma), device=self.device)
        advantages = returns if self.advantage_estimator == "reinforce" else returns - samples.old_values
        return samples._replace(returns=returns, advantages=advantages)

    def _run_epochs(
        self, evaluator: CalledPolicy, rollout: Rollout, constants: UpdateConstants, metrics: MeanMetrics
    ) -> None:
        steps = OptimizerSteps(self.policy.optimizer)
        self._policy_step(steps, evaluator, rollout, constants, metrics)
        if self.advantage_estimator == "reinforce":
            self._n_updates += 1
            return
        for _ in range(self.n_epochs):
            for samples, _ in rollout.minibatches(self.batch_size, with_reference=False):
                self._value_step(steps, samples, constants, metrics)
            self._n_updates += 1

    def _policy_step(
        self,
        steps: OptimizerSteps,
        evaluator: CalledPolicy,
        rollout: Rollout,
        constants: UpdateConstants,
        metrics: MeanMetrics,
    ) -> None:
        """One step on the mean over the whole batch, whose gradient is added up in parts that fit into memory."""
        steps.zero_grad()
        n_samples = len(rollout)
        for samples, _ in rollout.minibatches(EVALUATION_ROWS, with_reference=False):
            samples = self._with_flat_actions(samples)
            evaluation = evaluator.evaluate(samples.observations, samples.actions, False)
            terms = self._loss_terms(evaluation, samples, None, constants._replace(vf_coef=0.0))
            share = len(samples.advantages) / n_samples
            evaluator.backward(terms["loss"] * share)
            metrics.add({name: term for name, term in terms.items() if name != "value_loss"}, weight=share)
        self._clip_and_step(steps)

    def _value_step(
        self, steps: OptimizerSteps, samples: RolloutBufferSamples, constants: UpdateConstants, metrics: MeanMetrics
    ) -> None:
        """One step of the value function's fit."""
        steps.zero_grad()
        values = self.policy.predict_values(samples.observations).flatten()
        value_loss = self._value_loss(values, samples, constants)
        (constants.vf_coef * value_loss).backward()
        metrics.add({"value_loss": value_loss})
        self._clip_and_step(steps)
