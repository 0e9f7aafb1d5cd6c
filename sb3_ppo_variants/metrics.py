"""Metrics of an update: each is the mean over the update's minibatches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch as th


class MeanMetrics:
    """Running means of scalar tensors, read from the device once, at the end."""

    def __init__(self) -> None:
        self._sums: dict[str, th.Tensor] = {}
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, values: Mapping[str, th.Tensor]) -> None:
        """Count one more observation of each of ``values``, scalars by name."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """The mean of each metric over what was added."""
        return {name: total.item() / self._counts[name] for name, total in self._sums.items()}
