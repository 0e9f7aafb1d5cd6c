"""Vectorised environments: a few worker processes, each stepping a chunk of environments.

The names load on first use: a worker process imports this package for its worker, which needs neither torch nor SB3.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sb3_ppo_variants.vec_env.episode_start import record_episodes
from sb3_ppo_variants.vec_env.worker import (
    ActorLostWarning,
    EnvironmentRaisedError,
    WorkerDiedError,
    WorkerLostWarning,
)

if TYPE_CHECKING:
    from sb3_ppo_variants.vec_env.chunked import ChunkedVecEnv
    from sb3_ppo_variants.vec_env.monitor import ActorsMonitor, WorkersMonitor
    from sb3_ppo_variants.vec_env.ray import RayVecEnv as RayVecEnv
    from sb3_ppo_variants.vec_env.shared_memory import SharedMemoryVecEnv

# Without RayVecEnv, which needs the [ray] extra: `import *` works where it is not installed.
__all__ = [
    "ActorLostWarning",
    "ActorsMonitor",
    "ChunkedVecEnv",
    "EnvironmentRaisedError",
    "SharedMemoryVecEnv",
    "WorkerDiedError",
    "WorkerLostWarning",
    "WorkersMonitor",
    "record_episodes",
]

_MODULES = {
    "ActorsMonitor": "monitor",
    "ChunkedVecEnv": "chunked",
    "RayVecEnv": "ray",
    "SharedMemoryVecEnv": "shared_memory",
    "WorkersMonitor": "monitor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
