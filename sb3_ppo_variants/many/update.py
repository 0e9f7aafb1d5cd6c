"""One update of several agents: the epochs of Algorithm 1, a minibatch of every agent at a time.

Shapes: ``P`` agents, ``N`` samples of a rollout and ``M`` of a minibatch of each agent, ``K`` minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th

from sb3_ppo_variants import losses
from sb3_ppo_variants.distributions import ActionDistribution, Categorical, Gaussian
from sb3_ppo_variants.many.groups import Group, groups_of, in_order
from sb3_ppo_variants.many.hooks import guarded, is_users
from sb3_ppo_variants.many.metrics import EpochRecord, UpdateMetrics
from sb3_ppo_variants.many.rollout import RolloutSamples
from sb3_ppo_variants.many.stack import Stack
from sb3_ppo_variants.on_policy import ADVANTAGE_EPSILON, EARLY_STOPPING_FACTOR, UpdateConstants
from sb3_ppo_variants.optimizer import prefer_fused
from sb3_ppo_variants.rollout_data import EVALUATION_ROWS

_mean_value_loss = th.func.vmap(losses.value_loss)
_approximate_kl = th.func.vmap(losses.approximate_kl)


class Minibatches:
    """A rollout, from which each epoch takes every agent's samples in an order of the agent's own."""

    def __init__(self, samples: RolloutSamples, with_reference: bool, reference: Gaussian | Categorical):
        self._fields: dict[str, th.Tensor] = {
            "features": samples.features,
            "actions": samples.actions,
            "advantages": samples.advantages,
            "returns": samples.returns,
            "old_values": samples.old_values,
            "old_log_prob": samples.old_log_prob,
        }
        self._std = reference.std if isinstance(reference, Gaussian) else None
        if with_reference:
            self._fields["reference"] = reference.mean if isinstance(reference, Gaussian) else reference.logits[0]
        self._n_samples = samples.advantages.shape[1]

    def epoch(
        self, orders: np.ndarray, batch_size: int, names: Sequence[str] | None = None
    ) -> list[dict[str, th.Tensor]]:
        """Whole minibatches ``(K, P, M, …)`` by field, then the truncated one, if any, likewise with ``K`` of 1.

        :param orders: of the samples, ``(P, N)``
        :param names: of the fields; None: all
        """
        fields = self._fields if names is None else {name: self._fields[name] for name in names}
        n_agents, n_samples = orders.shape
        rows = th.from_numpy(orders + np.arange(n_agents)[:, None] * n_samples)
        whole = n_samples // batch_size * batch_size
        parts = [(rows[:, :whole], batch_size), (rows[:, whole:], n_samples - whole)]
        return [_taken(fields, part, size) for part, size in parts if part.shape[1]]

    def reference(self, field: th.Tensor) -> ActionDistribution:
        """π_old's distributions at a minibatch, from its field."""
        return Categorical((field,)) if self._std is None else Gaussian(field, self._std)


def _taken(fields: Mapping[str, th.Tensor], rows: th.Tensor, size: int) -> dict[str, th.Tensor]:
    n_agents = len(rows)
    order = rows.reshape(n_agents, -1, size).transpose(0, 1).flatten()
    return {
        name: field.flatten(end_dim=1).index_select(0, order).view(-1, n_agents, size, *field.shape[2:])
        for name, field in fields.items()
    }


class Update:
    """One update of the agents of a stack.

    :param stack: its agents' models tell settings and schedules
    :param samples: of the rollouts
    """

    def __init__(self, stack: Stack, samples: RolloutSamples):
        self._stack, self._agents = stack, stack.agents
        self._models = [agent.model for agent in stack.agents]
        self._active = [agent.error is None for agent in stack.agents]
        self._constants: list[UpdateConstants] = []
        self._samples = samples._replace(advantages=self._standardized(samples.advantages))

    def run(self) -> None:
        """Make the update, tell the models of it, and let their rules act for the next one.

        An agent whose training has diverged gets its ``error`` set; its model is as it was before.
        """
        for model, active in zip(self._models, self._active, strict=True):
            model.n_iterations += active
            prefer_fused(model.policy.optimizer)
            model._update_learning_rate(model.policy.optimizer)
        reference = self._stack.actions.distribution(self._samples.output)
        self._constants = []
        for index, model in enumerate(self._models):
            with self._calling(index, "coefficients"):
                self._constants.append(model._update_constants())
        groups = groups_of(self._models, self._constants)
        self._in_order = in_order(groups)
        self._set_coefficients()
        minibatches = Minibatches(self._samples, self._reads_reference(groups), reference)
        metrics = UpdateMetrics(groups)
        optimizer = self._stack.optimizer
        optimizer.begin(
            [model.policy.optimizer.param_groups[0] for model in self._models],
            [model.max_grad_norm for model in self._models],
        )
        self._run_epochs(groups, minibatches, metrics)
        optimizer.finish()
        with th.no_grad():
            kl = self._mean_kl(reference)
        self._conclude(metrics.means(), kl)

    @contextmanager
    def _calling(self, index: int, hook: str) -> Iterator[None]:
        """A context for a hook between epochs: a user's draws from the agent's generators, and what it does to the
        agent's weights holds for the stack too."""
        agent = self._agents[index]
        if not is_users(type(agent.model)):
            yield
            return
        with agent.generators(), guarded([agent.model], hook):
            yield
        self._stack.load(index, hook)

    def _standardized(self, advantages: th.Tensor) -> th.Tensor:
        """The advantages, standardised over the batch where an agent asks for that."""
        mean = advantages.mean(dim=1, keepdim=True)
        std = advantages.std(dim=1, correction=0, keepdim=True) + ADVANTAGE_EPSILON
        return th.where(
            self._column([self._standardizes_batch(model) for model in self._models]),
            (advantages - mean) / std,
            advantages,
        )

    def _standardizes_batch(self, model: Any) -> bool:
        """Whether an agent's advantages are standardised over the batch."""
        return bool(model.normalize_advantage == "batch")

    def _reads_reference(self, groups: Sequence[Group]) -> bool:
        """Whether an objective is given the KL from π_old."""
        return any(group.needs_kl for group in groups)

    def _column(self, values: Sequence[Any]) -> th.Tensor:
        column = th.tensor(values)
        return (column if column.dtype is th.bool else column.float()).unsqueeze(1)

    def _set_coefficients(self) -> None:
        constants = self._constants
        per_minibatch = [bool(each.normalize_advantage) and not self._standardizes_batch(each) for each in self._models]
        self._per_minibatch = self._column(per_minibatch) if any(per_minibatch) else None
        self._ent_coef = (
            self._column([each.ent_coef for each in constants])
            if any(each.ent_coef != 0 for each in constants)
            else None
        )
        self._vf_coef = self._column([each.vf_coef for each in constants])
        limits = [each.clip_range_vf for each in constants]
        self._clips_values = self._column([limit is not None for limit in limits])
        self._clip_range_vf = (
            self._column([0.0 if limit is None else limit for limit in limits])
            if any(limit is not None for limit in limits)
            else None
        )
        targets = [model.target_kl for model in self._models]
        self._kl_limits = (
            th.tensor([math.inf if target is None else EARLY_STOPPING_FACTOR * target for target in targets])
            if any(target is not None for target in targets)
            else None
        )

    def _run_epochs(self, groups: list[Group], minibatches: Minibatches, metrics: UpdateMetrics) -> None:
        for _ in range(self._models[0].n_epochs):
            if any(self._active):
                self._run_epoch(groups, minibatches, metrics)

    def _orders(self) -> np.ndarray:
        """Of each agent's samples in an epoch, ``(P, N)``, from its own generator."""
        n_samples = self._samples.advantages.shape[1]
        orders = np.zeros((len(self._agents), n_samples), dtype=np.int64)
        for index, agent in enumerate(self._agents):
            if self._active[index]:
                orders[index] = agent.order.permutation(n_samples)
        return orders

    def _run_epoch(self, groups: list[Group], minibatches: Minibatches, metrics: UpdateMetrics) -> None:
        began = list(self._active)
        for part in minibatches.epoch(self._orders(), self._models[0].batch_size):
            record = EpochRecord(part)
            for number in range(len(part["advantages"])):
                if any(self._active):
                    self._minibatch_step(
                        groups, {name: field[number] for name, field in part.items()}, minibatches, record
                    )
            if record.counts.any():
                metrics.add(record)
        for model, active in zip(self._models, began, strict=True):
            model._n_updates += active

    def _minibatch_step(
        self, groups: list[Group], fields: dict[str, th.Tensor], minibatches: Minibatches, record: EpochRecord
    ) -> None:
        stack = self._stack
        fields["advantages"] = self._standardize_minibatch(fields["advantages"])
        with th.no_grad():
            output, actor_inputs = stack.actor.forward(fields["features"])
            raw_values, critic_inputs = stack.critic.forward(fields["features"])
        output.requires_grad_()
        raw_values.requires_grad_()
        leaves = stack.actions.leaves()
        policy_loss, loss = self._policy_losses(groups, minibatches, fields, output, raw_values, leaves)
        value_loss = self._value_loss(raw_values, fields)
        loss = loss + self._vf_coef[:, 0] * value_loss
        by_output, by_values, *by_leaves = th.autograd.grad(
            loss.sum(), [output, raw_values, *leaves], allow_unused=True, materialize_grads=True
        )
        with th.no_grad():
            record.add(fields, self._active, loss=loss, policy_gradient_loss=policy_loss, value_loss=value_loss)
            stack.actor.backward(actor_inputs, by_output)
            stack.critic.backward(critic_inputs, by_values)
            stack.actions.accumulate(by_leaves)
            self._stop_early(fields["log_prob"], fields["old_log_prob"])
            stack.optimizer.step(self._active)

    def _policy_losses(
        self,
        groups: list[Group],
        minibatches: Minibatches,
        fields: dict[str, th.Tensor],
        output: th.Tensor,
        raw_values: th.Tensor,
        leaves: list[th.Tensor],
    ) -> tuple[th.Tensor, th.Tensor]:
        """The objectives' loss, and with the entropy's share, ``(P,)`` each; what they are made of joins the fields.

        :param fields: of a minibatch, ``(P, M, …)``
        :param output: of the action networks, ``(P, M, n_out)``
        :param raw_values: V(s), ``(P, M, 1)``
        """
        log_prob, entropy, distribution = self._stack.actions.evaluate(output, fields["actions"], leaves)
        fields.update(
            log_prob=log_prob,
            entropy=entropy,
            values=raw_values.squeeze(-1),
            ratio=losses.probability_ratio(log_prob, fields["old_log_prob"]),
        )
        if "reference" in fields:
            fields["kl"] = minibatches.reference(fields.pop("reference")).kl(distribution)  # type: ignore[arg-type]
        loss = -self._in_order(th.cat(self._objectives(groups, fields))).mean(dim=1)
        return loss, loss if self._ent_coef is None else loss - self._ent_coef[:, 0] * entropy.mean(dim=1)

    def _objectives(self, groups: list[Group], fields: Mapping[str, th.Tensor]) -> list[th.Tensor]:
        """Each group's objective of each sample, ``(G, M)``."""
        return [group.objective(fields) for group in groups]

    def _value_loss(self, raw_values: th.Tensor, fields: Mapping[str, th.Tensor]) -> th.Tensor:
        """L^VF of each agent, ``(P,)``."""
        values = self._clipped(raw_values.squeeze(-1), fields["old_values"])
        loss: th.Tensor = _mean_value_loss(values, fields["returns"])
        return loss

    def _standardize_minibatch(self, advantages: th.Tensor) -> th.Tensor:
        if self._per_minibatch is None or advantages.shape[1] < 2:
            return advantages
        mean, std = advantages.mean(dim=1, keepdim=True), advantages.std(dim=1, keepdim=True)
        return th.where(self._per_minibatch, (advantages - mean) / (std + ADVANTAGE_EPSILON), advantages)

    def _clipped(self, values: th.Tensor, old_values: th.Tensor) -> th.Tensor:
        if self._clip_range_vf is None:
            return values
        return th.where(self._clips_values, losses.clipped_values(values, old_values, self._clip_range_vf), values)

    def _stop_early(self, log_prob: th.Tensor, old_log_prob: th.Tensor) -> None:
        """Leave out the agents whose ``target_kl`` forbids this step and those that follow."""
        if self._kl_limits is None:
            return
        exceeds = (_approximate_kl(log_prob - old_log_prob) > self._kl_limits).tolist()
        self._active = [active and not stops for active, stops in zip(self._active, exceeds, strict=True)]

    def _mean_kl(self, reference: Gaussian | Categorical) -> list[float]:
        """E[KL[π_old, π_new]] over the whole batch of each agent, in nats."""
        total = th.zeros(len(self._agents))
        features = self._samples.features
        for start in range(0, features.shape[1], EVALUATION_ROWS):
            rows = slice(start, start + EVALUATION_ROWS)
            new: Any = self._stack.actions.distribution(self._stack.actor.forward(features[:, rows])[0])
            if isinstance(reference, Gaussian):
                old: Any = Gaussian(reference.mean[:, rows], reference.std)
            else:
                old = Categorical((reference.logits[0][:, rows],))
            total += old.kl(new).sum(dim=1)
        means: list[float] = (total / features.shape[1]).tolist()
        return means

    def _conclude(self, means: list[dict[str, float]], kls: list[float]) -> None:
        """Store the new weights and let each model log the update and prepare the next."""
        finite = self._stack.is_finite()
        values, returns = self._samples.old_values.numpy(), self._samples.returns.numpy()
        for index, (agent, kl) in enumerate(zip(self._agents, kls, strict=True)):
            model = agent.model
            if agent.error is not None:
                continue
            if not math.isfinite(means[index]["loss"]):
                agent.error = model._divergence(f"the loss is {means[index]['loss']}")
            elif model._steers_by_kl and not math.isfinite(kl):
                agent.error = model._divergence(f"KL[π_old, π_new] is {kl}")
            elif not finite[index]:
                agent.error = model._divergence("a weight of the policy is not finite")
            else:
                self._stack.store(index)
                rollout: Any = _ValuesAndReturns(values[index], returns[index])
                model._log_update(means[index], kl, self._constants[index], rollout)
                model._adapt_stepsize(kl)
                with self._calling(index, "after_update"):
                    model.after_update(kl)


class _ValuesAndReturns:
    """What a model's log reads of a rollout."""

    def __init__(self, values: np.ndarray, returns: np.ndarray):
        self._pair = values, returns

    def values_and_returns(self) -> tuple[np.ndarray, np.ndarray]:
        """V_old(s) and V_targ of all samples, ``(N,)`` each."""
        return self._pair
