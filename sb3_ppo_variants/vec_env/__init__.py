"""Vectorised environments: a few worker processes, each stepping a chunk of environments."""

from sb3_ppo_variants.vec_env.shared_memory import SharedMemoryVecEnv
from sb3_ppo_variants.vec_env.worker import EnvironmentRaisedError, WorkerDiedError

__all__ = ["EnvironmentRaisedError", "SharedMemoryVecEnv", "WorkerDiedError"]
