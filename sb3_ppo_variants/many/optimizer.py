"""Adam on stacked parameters, with stepsizes and numbers of steps of each agent's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch as th

# What clip_grad_norm_ adds to the norm that it divides by.
_NORM_EPSILON = 1e-6


class StackedAdam:
    """The steps of an update, by PyTorch's own fused kernel.

    The kernel takes one stepsize, so it is called once for each run of neighbouring agents that have the same.

    :param tensors: parameters, ``(P, …)`` each
    :param gradients: of the same shapes
    """

    def __init__(self, tensors: Sequence[th.Tensor], gradients: Sequence[th.Tensor]):
        self._tensors, self._gradients = tensors, gradients
        self.first_moments = [th.zeros_like(tensor) for tensor in tensors]
        self.second_moments = [th.zeros_like(tensor) for tensor in tensors]
        self.counts = np.zeros((len(tensors[0]), len(tensors)), dtype=np.int64)
        """steps that each agent has made with each of its tensors, ``(P, number of tensors)``"""
        self._settings: list[dict[str, float]] = []
        self._norms: th.Tensor | None = None
        self._active: list[bool] = []
        self._part: list[int] = []
        self._runs: list[dict[str, Any]] = []

    def begin(self, groups: Sequence[dict[str, Any]], max_norms: Sequence[float | None]) -> None:
        """Begin an update.

        :param groups: each agent's parameter group, as of ``torch.optim.Adam``
        :param max_norms: the largest norm of each agent's gradient; None: any
        """
        self._settings = [
            {
                "lr": float(group["lr"]),
                "beta1": group["betas"][0],
                "beta2": group["betas"][1],
                "eps": group["eps"],
            }
            for group in groups
        ]
        limits = [float("inf") if norm is None else float(norm) for norm in max_norms]
        self._norms = None if all(norm is None for norm in max_norms) else th.tensor(limits)
        self._active = []

    @th.no_grad()
    def step(self, active: Sequence[bool], part: Sequence[int] | None = None) -> None:
        """One step on the gradients as they are.

        :param active: which agents make it
        :param part: indices of the tensors that take it; None: all
        """
        part = range(len(self._tensors)) if part is None else part
        if list(active) != self._active or list(part) != self._part:
            self.finish()
            self._active, self._part = list(active), list(part)
            self._runs = [self._run(*bounds) for bounds in self._bounds()]
        if self._norms is not None:
            self._clip()
        for run in self._runs:
            for count in run["counts"]:
                count.add_(1)
            th._fused_adam_(*run["lists"], **run["settings"], weight_decay=0.0, amsgrad=False, maximize=False)

    def finish(self) -> None:
        """To be called after the last step of the update: counts the steps."""
        for run in self._runs:
            self.counts[slice(*run["bounds"]), self._part] = [int(count) for count in run["lists"][-1]]
        self._runs = []

    def _clip(self) -> None:
        """Scale each agent's gradients down to its norm, as ``clip_grad_norm_``."""
        assert self._norms is not None
        gradients = [self._gradients[index] for index in self._part]
        squares = [gradient.flatten(start_dim=1).square().sum(dim=1) for gradient in gradients]
        factors = (self._norms / (th.stack(squares).sum(dim=0).sqrt() + _NORM_EPSILON)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def _bounds(self) -> list[tuple[int, int]]:
        """First agent of each run, and the one after its last; those that make no step are in none."""
        counts = self.counts[:, self._part].tolist()
        kinds = list(zip(self._active, self._settings, counts, strict=True))
        starts = [agent for agent in range(len(kinds)) if agent == 0 or kinds[agent] != kinds[agent - 1]]
        return [bounds for bounds in pairwise([*starts, len(kinds)]) if self._active[bounds[0]]]

    def _run(self, start: int, stop: int) -> dict[str, Any]:
        of = [
            [tensors[index][start:stop] for index in self._part]
            for tensors in (self._tensors, self._gradients, self.first_moments, self.second_moments)
        ]
        counts = self.counts[start, self._part].tolist()
        shared = {count: th.tensor(float(count)) for count in counts}
        return {
            "bounds": (start, stop),
            "counts": list(shared.values()),
            "lists": [*of, [], [shared[count] for count in counts]],
            "settings": self._settings[start],
        }
