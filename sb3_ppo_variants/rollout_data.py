"""What one update reads: the rollout's minibatches, each with the distributions that π_old had at its states."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples

from sb3_ppo_variants.distributions import ActionDistribution

# Rows per forward pass where the whole batch is evaluated: bounds the memory that image observations take.
EVALUATION_ROWS = 2048

Sample = tuple[RolloutBufferSamples, ActionDistribution | None]


def policy_distribution(policy: ActorCriticPolicy, observations: PyTorchObs) -> ActionDistribution:
    """π(·|s) of ``policy`` at ``observations`` (one forward pass of the actor).

    :raises TypeError: where the policy's distribution is none of SB3's
    """
    return ActionDistribution.from_sb3(policy.get_distribution(observations))


class StoredRollout:
    """A rollout in one of SB3's own buffers, turned into tensors once.

    Draws the same permutations from NumPy's global generator as the buffer's own ``get``.

    :param buffer: a full rollout buffer
    :param policy: π_old, in evaluation mode
    :param with_reference: whether to store π_old's distributions for the whole batch
    """

    def __init__(self, buffer: RolloutBuffer, policy: ActorCriticPolicy, with_reference: bool):
        self._samples = _in_storage_order(buffer)
        self._size = buffer.buffer_size * buffer.n_envs
        self.has_reference = with_reference
        self._reference = self._evaluate(policy) if with_reference else None

    def minibatches(self, batch_size: int) -> Iterator[Sample]:
        """One epoch: every sample once, in a random order, with π_old's distributions at its states."""
        order = th.as_tensor(np.random.permutation(self._size), device=self._samples.actions.device)
        for indices in order.split(batch_size):
            yield _rows(self._samples, indices), self._reference.rows(indices) if self._reference else None

    def mean_kl(self, policy: ActorCriticPolicy) -> float:
        """E[KL[π_old, π]] over the whole batch, in nats; π is ``policy`` as it is now."""
        assert self._reference is not None
        return self._reference.kl(self._evaluate(policy)).mean().item()

    @th.no_grad()
    def _evaluate(self, policy: ActorCriticPolicy) -> ActionDistribution:
        rows = th.arange(self._size, device=self._samples.actions.device).split(EVALUATION_ROWS)
        parts = [policy_distribution(policy, _select(self._samples.observations, part)) for part in rows]
        return ActionDistribution.concatenate(parts)


class CustomRollout:
    """A rollout in a user's own buffer, read through the buffer's own ``get``.

    Which rows a minibatch holds is the buffer's secret, so π_old is kept as a frozen copy of the policy and
    evaluated where its distributions are needed.

    :param buffer: a full rollout buffer
    :param policy: π_old, in evaluation mode
    :param with_reference: whether to keep π_old
    """

    def __init__(self, buffer: RolloutBuffer, policy: ActorCriticPolicy, with_reference: bool):
        self._buffer = buffer
        self.has_reference = with_reference
        self._old_policy = _frozen_copy(policy) if with_reference else None

    def minibatches(self, batch_size: int) -> Iterator[Sample]:
        """One epoch of the buffer's ``get(batch_size)``, with π_old's distributions at each minibatch's states."""
        for samples in self._buffer.get(batch_size):
            yield samples, self._old_distribution(samples)

    @th.no_grad()
    def mean_kl(self, policy: ActorCriticPolicy) -> float:
        """E[KL[π_old, π]] over one pass through the buffer, in nats; π is ``policy`` as it is now."""
        values = []
        with _same_draws():
            for samples in self._buffer.get(EVALUATION_ROWS):
                old = self._old_distribution(samples)
                assert old is not None
                values.append(old.kl(policy_distribution(policy, samples.observations)))
        return th.cat(values).mean().item()

    @th.no_grad()
    def _old_distribution(self, samples: RolloutBufferSamples) -> ActionDistribution | None:
        if self._old_policy is None:
            return None
        return policy_distribution(self._old_policy, samples.observations)


Rollout = StoredRollout | CustomRollout


def has_stock_reader(buffer: RolloutBuffer) -> bool:
    """Whether the buffer is read by SB3's own methods, whatever class it is of."""
    stock = [(cls.get, cls._get_samples) for cls in (RolloutBuffer, DictRolloutBuffer)]
    return (type(buffer).get, getattr(type(buffer), "_get_samples", None)) in stock


def _in_storage_order(buffer: RolloutBuffer) -> Any:
    """All samples of the buffer as one (Dict)RolloutBufferSamples of tensors.

    ``get`` also lays the buffer out as a flat batch; its permutation is drawn and thrown away.
    """
    with _same_draws():
        next(buffer.get(batch_size=1))
    return buffer._get_samples(np.arange(buffer.buffer_size * buffer.n_envs))


@contextmanager
def _same_draws() -> Iterator[None]:
    """Put NumPy's generator back afterwards, so that the minibatches are the ones that SB3 would draw."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _frozen_copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    # The distribution object holds tensors that carry gradients (gSDE's noise), which cannot be deep-copied; a
    # shallow copy serves, since each use of it replaces those tensors. Adam's moments are of no use to π_old.
    return copy.deepcopy(policy, {id(policy.action_dist): copy.copy(policy.action_dist), id(policy.optimizer): None})


def _select(observations: PyTorchObs, indices: th.Tensor) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: tensor[indices] for key, tensor in observations.items()}
    return observations[indices]


def _rows(samples: RolloutBufferSamples, indices: th.Tensor) -> RolloutBufferSamples:
    return type(samples)(*(_select(field, indices) for field in samples))  # type: ignore[arg-type]
