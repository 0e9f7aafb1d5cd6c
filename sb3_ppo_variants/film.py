"""Films of a policy: one episode after another, as an MP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILM_FPS = 30
"""at most, of the film"""


def film(policy: Any, env: Any, path: Path, seconds: float, seed: int) -> None:
    """Film the deterministic policy at the speed of the task's own clock.

    :param policy: with SB3's ``predict``; takes what ``env`` observes
    :param env: a VecEnv of one environment with ``render_mode="rgb_array"``
    :param path: the file, which ends in ``.mp4``
    :param seconds: of the task's time
    :param seed: of the first episode
    """
    import imageio.v2 as imageio

    task_fps = env.unwrapped.envs[0].metadata.get("render_fps", FILM_FPS)
    stride = max(1, round(task_fps / FILM_FPS))
    env.seed(seed)
    observations = env.reset()
    writer: Any
    with imageio.get_writer(path, fps=task_fps / stride, macro_block_size=2) as writer:
        for step in range(round(seconds * task_fps)):
            if step % stride == 0:
                writer.append_data(env.render())
            actions, _ = policy.predict(observations, deterministic=True)
            observations, *_ = env.step(actions)
