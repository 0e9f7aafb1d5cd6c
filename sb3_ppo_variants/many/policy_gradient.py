"""One update of several agents of ``VanillaPGPaper``: a step of the policy, then the value function's fit.

Shapes: ``P`` agents, ``N`` samples of a rollout and ``M`` of a minibatch of each agent, ``K`` minibatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th

from sb3_ppo_variants.many.groups import Group
from sb3_ppo_variants.many.hooks import is_users, refusal
from sb3_ppo_variants.many.metrics import EpochRecord, UpdateMetrics
from sb3_ppo_variants.many.update import Minibatches, Update
from sb3_ppo_variants.rollout_data import EVALUATION_ROWS


class PolicyGradientUpdate(Update):
    """As :class:`Update`; the policy takes one step on the whole batch, and the epochs are the value function's."""

    def _standardizes_batch(self, model: Any) -> bool:
        return bool(model.normalize_advantage)

    def _reads_reference(self, groups: Sequence[Group]) -> bool:
        return False

    def _run_epochs(self, groups: list[Group], minibatches: Minibatches, metrics: UpdateMetrics) -> None:
        if not any(self._active):
            return
        self._policy_step(groups, minibatches, metrics)
        for _ in range(self._models[0].n_epochs):
            self._value_epoch(minibatches, metrics)

    def _policy_step(self, groups: list[Group], minibatches: Minibatches, metrics: UpdateMetrics) -> None:
        """One step on the mean over the whole batch, whose gradient is added up in parts, as an agent alone does."""
        stack = self._stack
        gradients = [*stack.actor.gradients, *stack.actions.gradients]
        sums = [th.zeros_like(gradient) for gradient in gradients]
        n_samples = self._samples.advantages.shape[1]
        for part in minibatches.epoch(self._orders(), EVALUATION_ROWS):
            record = EpochRecord(part)
            share = part["advantages"].shape[2] / n_samples
            for number in range(len(part["advantages"])):
                fields = {name: field[number] for name, field in part.items()}
                self._differentiate(groups, minibatches, fields, record)
                for total, gradient in zip(sums, gradients, strict=True):
                    total.add_(gradient, alpha=share)
            metrics.add(record, weight=share)
        for total, gradient in zip(sums, gradients, strict=True):
            gradient.copy_(total)
        stack.optimizer.step(self._active, stack.policy_part)

    def _differentiate(
        self, groups: list[Group], minibatches: Minibatches, fields: dict[str, th.Tensor], record: EpochRecord
    ) -> None:
        """The gradients of the policy's loss on a part of the batch, and a record of it."""
        stack = self._stack
        with th.no_grad():
            output, actor_inputs = stack.actor.forward(fields["features"])
            raw_values, _ = stack.critic.forward(fields["features"])
        inputs = [output.requires_grad_(), *stack.actions.leaves()]
        policy_loss, loss = self._policy_losses(
            groups, minibatches, fields, output, raw_values.requires_grad_(), inputs[1:]
        )
        by_output, *by_leaves = th.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        with th.no_grad():
            record.add(fields, self._active, loss=loss, policy_gradient_loss=policy_loss)
            stack.actor.backward(actor_inputs, by_output)
            stack.actions.accumulate(by_leaves)

    def _objectives(self, groups: list[Group], fields: Mapping[str, th.Tensor]) -> list[th.Tensor]:
        """As the base class's; that of a user's class must leave the value function alone."""
        objectives = super()._objectives(groups, fields)
        for group, objective in zip(groups, objectives, strict=True):
            kind = type(self._models[group.indices[0]])
            if is_users(kind) and _depends(objective, fields["values"]):
                raise refusal(kind, "objective", "differentiates the batch's values")
        return objectives

    def _value_epoch(self, minibatches: Minibatches, metrics: UpdateMetrics) -> None:
        names = ("features", "returns", "old_values")
        for part in minibatches.epoch(self._orders(), self._models[0].batch_size, names):
            value_losses = th.stack(
                [
                    self._value_step({name: field[number] for name, field in part.items()})
                    for number in range(len(part["returns"]))
                ]
            )
            counts = th.tensor(self._active).expand_as(value_losses)
            metrics.add_terms({"value_loss": value_losses}, counts)
        for model, active in zip(self._models, self._active, strict=True):
            model._n_updates += active

    def _value_step(self, fields: Mapping[str, th.Tensor]) -> th.Tensor:
        """One step of the value functions; their losses, ``(P,)``."""
        stack = self._stack
        with th.no_grad():
            raw_values, inputs = stack.critic.forward(fields["features"])
        raw_values.requires_grad_()
        loss = self._value_loss(raw_values, fields)
        (by_values,) = th.autograd.grad((self._vf_coef[:, 0] * loss).sum(), raw_values)
        with th.no_grad():
            stack.critic.backward(inputs, by_values)
            stack.optimizer.step(self._active, stack.value_part)
        return loss.detach()


def _depends(objective: th.Tensor, values: th.Tensor) -> bool:
    """Whether a gradient by the values comes of an objective, be it 0."""
    if not objective.requires_grad:
        return False
    (gradient,) = th.autograd.grad(objective.sum(), values, retain_graph=True, allow_unused=True)
    return gradient is not None
