"""Metrics of an update: each is the mean over the update's minibatches, or over the parts of its batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch as th


class MeanMetrics:
    """Running means of scalar tensors, read from the device once, at the end."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], th.Tensor] = {}
        self._weights: dict[tuple[str, ...], float] = {}

    def add(self, values: Mapping[str, th.Tensor | float], weight: float = 1.0) -> None:
        """Count one more observation of each of ``values``, scalars by name.

        :param weight: what it counts for beside the others
        """
        names = tuple(values)
        scalars = [value.detach() for value in values.values() if isinstance(value, th.Tensor)]
        if len(scalars) < len(values):  # plain numbers among them
            device = scalars[0].device if scalars else None
            scalars = [th.as_tensor(value, dtype=th.float32, device=device).detach() for value in values.values()]
        weighted = th.stack(scalars) * weight
        if names in self._sums:
            self._sums[names].add_(weighted)
            self._weights[names] += weight
        else:
            self._sums[names], self._weights[names] = weighted, weight

    def means(self) -> dict[str, float]:
        """The mean of each metric over what was added."""
        totals: dict[str, float] = {}
        weights: dict[str, float] = {}
        for names, sums in self._sums.items():
            for name, total in zip(names, sums.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + total
                weights[name] = weights.get(name, 0.0) + self._weights[names]
        return {name: total / weights[name] for name, total in totals.items()}
