"""What several test modules use."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.buffers import RolloutBuffer


class CountingBuffer(RolloutBuffer):
    """A user's buffer with a ``get`` of its own."""

    calls = 0

    def get(self, batch_size: int | None = None) -> Any:
        type(self).calls += 1
        return super().get(batch_size)
