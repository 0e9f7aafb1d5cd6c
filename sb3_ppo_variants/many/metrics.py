"""What an update logs of each agent: means over its minibatches, or over the parts of its batch.

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
        self._weights: list[dict[str, float]] = [{} for _ in range(n_agents)]

    @th.no_grad()
    def add(self, record: EpochRecord, weight: float = 1.0) -> None:
        """Count an epoch's steps.

        :param weight: what each of them counts for beside others
        """
        fields = record.fields
        fields["ratio"] = losses.probability_ratio(fields["log_prob"], fields["old_log_prob"])
        for group in self._groups:
            self._add(group.indices, group.metrics(fields), record.counts[:, group.indices], weight)
        terms = {
            **record.losses,
            "entropy_loss": -fields["entropy"].mean(dim=2),
            "approx_kl": _approximate_kl(fields["log_prob"] - fields["old_log_prob"]),
        }
        self.add_terms(terms, record.counts, weight)

    def add_terms(self, terms: Mapping[str, th.Tensor], counts: th.Tensor, weight: float = 1.0) -> None:
        """Count terms by themselves.

        :param terms: ``(K, P)`` each
        :param counts: which agents were training, ``(K, P)``
        :param weight: as :meth:`add`'s
        """
        self._add(range(len(self._sums)), terms, counts, weight)

    def _add(self, indices: Sequence[int], terms: Mapping[str, th.Tensor], counts: th.Tensor, weight: float) -> None:
        weights = (counts.sum(dim=0) * weight).tolist()
        for name, term in terms.items():
            sums = (th.where(counts, term, 0.0).sum(dim=0) * weight).tolist()
            for index, value, counted in zip(indices, sums, weights, strict=True):
                self._sums[index][name] = self._sums[index].get(name, 0.0) + value
                self._weights[index][name] = self._weights[index].get(name, 0.0) + counted

    def means(self) -> list[dict[str, float]]:
        """Of each agent, by name; all of them 0 where it was not training."""
        return [
            {name: value / (weights[name] or 1.0) for name, value in sums.items()}
            for sums, weights in zip(self._sums, self._weights, strict=True)
        ]
