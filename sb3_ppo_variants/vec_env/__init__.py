"""Vectorised environments: a few worker processes, each stepping a chunk of environments.

The names load on first use: a worker process imports this package for its worker, which needs neither torch nor SB3.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sb3_ppo_variants.vec_env.worker import EnvironmentRaisedError, WorkerDiedError

if TYPE_CHECKING:
    from sb3_ppo_variants.vec_env.shared_memory import SharedMemoryVecEnv

__all__ = ["EnvironmentRaisedError", "SharedMemoryVecEnv", "WorkerDiedError"]


def __getattr__(name: str) -> Any:
    if name != "SharedMemoryVecEnv":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.shared_memory").SharedMemoryVecEnv
