"""What one update reads: the rollout's minibatches, each with the distributions that π_old had at its states."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples

from sb3_ppo_variants.distributions import ActionDistribution, concatenate
from sb3_ppo_variants.evaluation import CalledPolicy, evaluator_of

# Rows per forward pass where the whole batch is evaluated: bounds the memory that image observations take.
EVALUATION_ROWS = 2048
# Several minibatches are selected from the rollout in one go, as many as fit into so many bytes of observations.
SELECTION_BYTES = 2**22

Sample = tuple[RolloutBufferSamples, ActionDistribution | None]


class StoredRollout:
    """A rollout as tensors, from one of SB3's own buffers.

    Draws the same permutations from NumPy's global generator as the buffer's own ``get``.

    :param samples: (Dict)RolloutBufferSamples, as :func:`samples_of` gives them
    :param evaluator: evaluates π_old, in evaluation mode
    :param with_reference: whether to store π_old's distributions for the whole batch
    """

    def __init__(self, samples: Any, evaluator: CalledPolicy, with_reference: bool):
        self._samples = samples
        self._size = len(samples.advantages)
        self.has_reference = with_reference
        self._reference = self._distributions(evaluator) if with_reference else None

    def __len__(self) -> int:
        """The number of samples."""
        return self._size

    def standardize_advantages(self, epsilon: float) -> None:
        """Shift and scale the advantages to mean 0 and population standard deviation 1.

        :param epsilon: added to the standard deviation
        """
        advantages = self._samples.advantages
        std = advantages.std(correction=0) + epsilon
        self._samples = self._samples._replace(advantages=(advantages - advantages.mean()) / std)

    def scale_advantages(self, epsilon: float) -> None:
        """Scale the advantages to root mean square 1; unlike a shift, that adds no baseline.

        :param epsilon: added to the root mean square
        """
        advantages = self._samples.advantages
        scale = advantages.square().mean().sqrt() + epsilon
        self._samples = self._samples._replace(advantages=advantages / scale)

    def values_and_returns(self) -> tuple[np.ndarray, np.ndarray]:
        """V_old(s) and V_targ of all samples, each ``(size,)``."""
        return self._samples.old_values.cpu().numpy(), self._samples.returns.cpu().numpy()

    def minibatches(self, batch_size: int, with_reference: bool) -> Iterator[Sample]:
        """One epoch: every sample once, in a random order.

        :param with_reference: whether each minibatch comes with π_old's distributions at its states
        """
        order = th.as_tensor(np.random.permutation(self._size), device=self._samples.actions.device)
        for indices in order.split(self._rows_at_once(batch_size)):
            selected = type(self._samples)(*(take_rows(field, indices) for field in self._samples))
            reference = self._reference.rows(indices) if with_reference and self._reference is not None else None
            parts = zip(*(split_rows(field, batch_size) for field in selected), strict=True)
            for number, part in enumerate(parts):
                rows = slice(number * batch_size, (number + 1) * batch_size)
                yield type(selected)(*part), None if reference is None else reference.rows(rows)

    def _rows_at_once(self, batch_size: int) -> int:
        observations = self._samples.observations
        tensors = observations.values() if isinstance(observations, dict) else [observations]
        row_bytes = max(1, sum(tensor[0].nbytes for tensor in tensors))
        return max(1, SELECTION_BYTES // (row_bytes * batch_size)) * batch_size

    def mean_kl(self, evaluator: CalledPolicy) -> float:
        """E[KL[π_old, π]] over the whole batch, in nats; π is the evaluator's policy as it is now."""
        assert self._reference is not None
        kl: th.Tensor = self._reference.kl(self._distributions(evaluator))  # type: ignore[arg-type]
        return kl.mean().item()

    @th.no_grad()
    def _distributions(self, evaluator: CalledPolicy) -> ActionDistribution:
        rows = [slice(start, start + EVALUATION_ROWS) for start in range(0, self._size, EVALUATION_ROWS)]
        return concatenate([evaluator.distribution(take_rows(self._samples.observations, part)) for part in rows])


class CustomRollout:
    """A rollout in a user's own buffer, read through the buffer's own ``get``.

    Which rows a minibatch holds is the buffer's secret, so π_old is kept as a frozen copy of the policy and
    evaluated where its distributions are needed.

    :param buffer: a full rollout buffer
    :param evaluator: evaluates π_old, in evaluation mode
    :param with_reference: whether to keep π_old
    """

    def __init__(self, buffer: RolloutBuffer, evaluator: CalledPolicy, with_reference: bool):
        self._buffer = buffer
        self.has_reference = with_reference
        self._old = evaluator_of(_frozen_copy(evaluator.policy), evaluator.exact_rounding) if with_reference else None
        self._advantage_mean, self._advantage_scale = 0.0, 1.0

    def __len__(self) -> int:
        """The number of samples."""
        return self._buffer.buffer_size * self._buffer.n_envs

    def standardize_advantages(self, epsilon: float) -> None:
        """As :meth:`StoredRollout.standardize_advantages`, when they are read."""
        advantages = self._buffer.advantages
        self._advantage_mean, self._advantage_scale = float(advantages.mean()), float(advantages.std()) + epsilon

    def values_and_returns(self) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`StoredRollout.values_and_returns`."""
        return self._buffer.values.flatten(), self._buffer.returns.flatten()

    def minibatches(self, batch_size: int, with_reference: bool) -> Iterator[Sample]:
        """One epoch of the buffer's ``get(batch_size)``.

        :param with_reference: whether each minibatch comes with π_old's distributions at its states
        """
        for samples in self._buffer.get(batch_size):
            advantages = (samples.advantages - self._advantage_mean) / self._advantage_scale
            old = self._old_distribution(samples) if with_reference else None
            yield samples._replace(advantages=advantages), old

    @th.no_grad()
    def mean_kl(self, evaluator: CalledPolicy) -> float:
        """E[KL[π_old, π]] over one pass through the buffer, in nats; π is the evaluator's policy as it is now."""
        values: list[th.Tensor] = []
        with _same_draws():
            for samples in self._buffer.get(EVALUATION_ROWS):
                new = evaluator.distribution(samples.observations)
                values.append(self._old_distribution(samples).kl(new))  # type: ignore[arg-type]
        return th.cat(values).mean().item()

    @th.no_grad()
    def _old_distribution(self, samples: RolloutBufferSamples) -> ActionDistribution:
        assert self._old is not None
        return self._old.distribution(samples.observations)


Rollout = StoredRollout | CustomRollout


def has_stock_reader(buffer: RolloutBuffer) -> bool:
    """Whether the buffer is read by SB3's own methods, whatever class it is of."""
    stock = [(cls.get, cls._get_samples) for cls in (RolloutBuffer, DictRolloutBuffer)]
    return (type(buffer).get, getattr(type(buffer), "_get_samples", None)) in stock


def samples_of(buffer: RolloutBuffer) -> Any:
    """All samples of the buffer as one (Dict)RolloutBufferSamples of tensors, one environment after the other.

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


def take_rows(field: PyTorchObs, rows: th.Tensor | slice) -> PyTorchObs:
    """Some rows of a tensor, or of each tensor of a dict: a slice, or a ``(M,)`` tensor of integers."""
    if isinstance(field, dict):
        return {key: _take(tensor, rows) for key, tensor in field.items()}
    return _take(field, rows)


def _take(tensor: th.Tensor, rows: th.Tensor | slice) -> th.Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def split_rows(field: PyTorchObs, batch_size: int) -> Sequence[PyTorchObs]:
    """A tensor, or a dict of tensors, in parts of ``batch_size`` rows, the last of what is left."""
    if isinstance(field, dict):
        columns = zip(*(tensor.split(batch_size) for tensor in field.values()), strict=True)
        return [dict(zip(field, column, strict=True)) for column in columns]
    return field.split(batch_size)
