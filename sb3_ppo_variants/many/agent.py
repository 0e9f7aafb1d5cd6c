"""One agent of many: an ordinary model, and the random generators that it would have to itself alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th


class Agent:
    """A model beside others in one process.

    Its generators begin as the global ones are now: to be made right after the model.

    :param model: any of the package's algorithms
    :param name: for messages
    """

    def __init__(self, model: Any, name: str):
        self.model, self.name = model, name
        self.noise = th.Generator()
        """where its actions' noise comes from: what torch's global generator is to a model alone"""
        self.order = np.random.RandomState()
        """where the order of its samples comes from: what NumPy's global generator is to a model alone"""
        self.error: FloatingPointError | None = None
        """why it has been left out"""
        self._capture()

    def is_training(self) -> bool:
        """Whether there is more to train."""
        return self.error is None and self.model.num_timesteps < self.model._total_timesteps

    @contextmanager
    def generators(self) -> Iterator[None]:
        """Put the agent's generators in the place of the global ones."""
        before = random.getstate(), np.random.get_state(), th.get_rng_state()
        random.setstate(self._python)
        np.random.set_state(self.order.get_state())
        th.set_rng_state(self.noise.get_state())
        try:
            yield
        finally:
            self._capture()
            random.setstate(before[0])
            np.random.set_state(before[1])
            th.set_rng_state(before[2])

    def _capture(self) -> None:
        self._python = random.getstate()
        self.order.set_state(np.random.get_state())
        self.noise.set_state(th.get_rng_state())
