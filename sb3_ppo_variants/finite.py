"""Guards that keep NaN and infinity out of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.policies import BasePolicy

from sb3_ppo_variants.resume.format import copied


def is_finite(values: Any) -> bool:
    """Whether an array, or each of a mapping's, is free of NaN and infinity; arrays of integers always are."""
    if isinstance(values, dict):
        return all(map(is_finite, values.values()))
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def describe_non_finite(rewards: np.ndarray, observations: Any) -> str:
    """Which environments gave what, for a message.

    :param rewards: ``(N,)``
    :param observations: ``(N, *obs_shape)``, or a dict of such
    """
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad) > 0:
        return f"{_environments(bad)} gave a reward of {rewards[bad[0]]}"
    for key, array in observations.items() if isinstance(observations, dict) else [(None, observations)]:
        if is_finite(array):
            continue
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        what = "an observation" if key is None else f"an observation {key!r}"
        values = array[bad[0]]
        return f"{_environments(bad)} gave {what} that is not finite (it holds {values[~np.isfinite(values)][0]})"
    return "a normaliser gave what is not finite: its statistics have left the finite numbers"


def _environments(indices: np.ndarray) -> str:
    if len(indices) == 1:
        return f"environment {indices[0]}"
    return f"environments {', '.join(map(str, indices[:8]))}{', …' if len(indices) > 8 else ''}"


@contextmanager
def undone_on_divergence(policy: BasePolicy) -> Iterator[None]:
    """Take back what happens to a policy, its buffers and its optimiser if a FloatingPointError comes of it."""
    before = copied(policy.state_dict())
    optimizer_before = copied(policy.optimizer.state_dict())
    try:
        yield
    except FloatingPointError:
        policy.load_state_dict(before)
        policy.optimizer.load_state_dict(optimizer_before)
        policy.optimizer.zero_grad()
        raise
