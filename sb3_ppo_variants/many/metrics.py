"""What an update logs of each agent: means over its minibatches, computed an epoch at a time.

Shapes: ``P`` agents, ``M`` samples of a minibatch, ``K`` minibatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch as th

from sb3_ppo_variants import losses
from sb3_ppo_variants.many.groups import Group

# What differs from step to step beside the samples.
_RECORDED = ("advantages", "values", "log_prob", "entropy", "kl")

_approximate_kl = th.func.vmap(th.func.vmap(losses.approximate_kl))


class EpochRecord:
    """What the steps of an epoch have computed.

    :param fields: of the epoch's minibatches, ``(K, P, M, …)`` each
    """

    def __init__(self, fields: Mapping[str, th.Tensor]):
        self.fields = dict(fields)
        self.losses: dict[str, th.Tensor] = {}
        """``(K, P)`` each"""
        self.counts = th.zeros(fields["advantages"].shape[:2], dtype=th.bool)
        """which agents were training, ``(K, P)``"""
        self._next = 0

    def add(self, fields: Mapping[str, th.Tensor], active: Sequence[bool], **terms: th.Tensor) -> None:
        """Record a step.

        :param fields: of the minibatch, ``(P, M, …)``
        :param active: which agents are training
        :param terms: of the loss, ``(P,)`` each
        """
        number, self._next = self._next, self._next + 1
        if number == 0:
            shape = self.fields["returns"].shape
            self.fields.update({name: th.empty(shape) for name in _RECORDED if name in fields})
            self.losses = {name: th.empty(shape[:2]) for name in terms}
        for name in _RECORDED:
            if name in fields:
                self.fields[name][number] = fields[name].detach()
        for name, term in terms.items():
            self.losses[name][number] = term.detach()
        self.counts[number] = th.tensor(active)


class UpdateMetrics:
    """The means over an update.

    :param groups: of the stack
    """

    def __init__(self, groups: Sequence[Group]):
        self._groups = groups
        n_agents = sum(len(group.indices) for group in groups)
        self._sums: list[dict[str, float]] = [{} for _ in range(n_agents)]
        self._counts = [0] * n_agents

    @th.no_grad()
    def add(self, record: EpochRecord) -> None:
        """Count an epoch's steps."""
        fields = record.fields
        fields["ratio"] = losses.probability_ratio(fields["log_prob"], fields["old_log_prob"])
        everyone = list(range(len(self._counts)))
        for group in self._groups:
            self._add(group.indices, group.metrics(fields), record.counts[:, group.indices])
        terms = {
            **record.losses,
            "entropy_loss": -fields["entropy"].mean(dim=2),
            "approx_kl": _approximate_kl(fields["log_prob"] - fields["old_log_prob"]),
        }
        self._add(everyone, terms, record.counts)
        for index, count in enumerate(record.counts.sum(dim=0).tolist()):
            self._counts[index] += count

    def _add(self, indices: list[int], terms: Mapping[str, th.Tensor], counts: th.Tensor) -> None:
        for name, term in terms.items():
            sums = th.where(counts, term, 0.0).sum(dim=0).tolist()
            for index, value in zip(indices, sums, strict=True):
                self._sums[index][name] = self._sums[index].get(name, 0.0) + value

    def means(self) -> list[dict[str, float]]:
        """Of each agent, by name."""
        return [
            {name: value / max(1, count) for name, value in sums.items()}
            for sums, count in zip(self._sums, self._counts, strict=True)
        ]
