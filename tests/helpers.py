"""What several test modules use."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from stable_baselines3.common.buffers import RolloutBuffer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A benchmark as a module, loaded anew."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CountingBuffer(RolloutBuffer):
    """A user's buffer with a ``get`` of its own."""

    calls = 0

    def get(self, batch_size: int | None = None) -> Any:
        type(self).calls += 1
        return super().get(batch_size)
