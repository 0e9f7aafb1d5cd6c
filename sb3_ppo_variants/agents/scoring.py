"""The score of an exported policy: one deterministic episode for each of a range of seeds."""

from __future__ import annotations

import csv
import importlib
import io
import multiprocessing
import signal
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sb3_ppo_variants.arguments import require

FIRST_SEED = 1000
"""beyond those that trainings are usually given"""
EPISODES = 100
UPRIGHT_STEPS = 60
"""about one second, for which the torso stays off the ground where the robot got up"""


class Episode(NamedTuple):
    """One episode; the columns of ``episodes.csv``."""

    seed: int
    episode_return: float
    """undiscounted, raw"""
    length: int
    """steps"""
    terminated: bool
    """whether it ended before its limit; on the humanoids: by a fall"""
    flags_reached: int | None
    """None: the task has no flags"""
    pose: str | None
    """in which it began; None: the task has but one"""
    got_up: bool | None
    """whether the robot began on the ground and got up; None: it did not begin there

    It got up if the torso's centre of mass was at least `minimum_height` (0.8 m; below it the task itself takes the
    robot to lie) above the floor in each of ``UPRIGHT_STEPS`` successive steps.
    """


class Player(NamedTuple):
    """What plays: an exported policy and the task as its training saw it."""

    policy: Path
    """folder of the export"""
    env_id: str
    env_kwargs: dict[str, Any]
    wrapping: dict[str, Any]
    modules: tuple[str, ...] = ()
    """that register the task"""

    @contextmanager
    def opened(self, **env_kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """The policy, on the CPU, and a VecEnv of one environment, closed in the end.

        :param env_kwargs: more arguments of the environment's constructor
        """
        from sb3_ppo_variants.export import load_policy
        from sb3_ppo_variants.zoo import make_played_env

        for module in self.modules:
            importlib.import_module(module)
        policy = load_policy(self.policy, "cpu")
        env = make_played_env(self.env_id, {**self.env_kwargs, **env_kwargs}, self.wrapping)
        with closing(env):
            yield policy, env


def play(player: Player, episodes: int = EPISODES, workers: int = 1) -> list[Episode]:
    """Play one episode from each of the seeds 1000, 1001, …, deterministically.

    An episode depends on its seed alone, and on nothing that was played before it.

    :param episodes: how many
    :param workers: processes
    :raises ValueError: for a number that is not allowed
    """
    require("episodes", episodes, "an integer >= 1", lambda value: value >= 1, integer=True)
    require("workers", workers, "an integer >= 1", lambda value: value >= 1, integer=True)
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    if workers == 1:
        return list(_shown(_played(player, seeds), episodes))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        with _interrupts_ignored():  # by the processes that begin here, as long as they live: Ctrl-C is this one's
            futures = [pool.submit(_play_in_worker, player, seed) for seed in seeds]
        try:
            return list(_shown((future.result() for future in futures), episodes))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is being played ends
            raise


def _begin_worker() -> None:
    import torch as th

    th.set_num_threads(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_PLAYING: dict[Path, Any] = {}
"""of a worker: what it has opened, until its process ends"""


def _play_in_worker(player: Player, seed: int) -> Episode:
    if player.policy not in _PLAYING:
        opened = player.opened()
        _PLAYING[player.policy] = (opened, opened.__enter__())
    _, (policy, env) = _PLAYING[player.policy]
    return _play_one(policy, env, seed)


def _played(player: Player, seeds: Sequence[int]) -> Iterator[Episode]:
    with player.opened() as (policy, env):
        for seed in seeds:
            yield _play_one(policy, env, seed)


def _shown(episodes: Iterator[Episode], total: int) -> Iterator[Episode]:
    from tqdm import tqdm

    return iter(tqdm(episodes, total=total, unit=" episodes", disable=None))  # None: not into a file


def _play_one(policy: Any, env: Any, seed: int) -> Episode:
    env.seed(seed)
    observations = env.reset()
    pose = env.reset_infos[0].get("pose")
    upright = longest = 0
    while True:
        actions, _ = policy.predict(observations, deterministic=True)
        observations, _, dones, infos = env.step(actions)
        # An episode of the task, of which a wrapper may make several: its end is told by SB3's Monitor.
        if "episode" in infos[0]:
            break
        if not dones[0]:
            upright = upright + 1 if _is_up(env) else 0
            longest = max(longest, upright)
    return Episode(
        seed=seed,
        episode_return=float(infos[0]["episode"]["r"]),
        length=int(infos[0]["episode"]["l"]),
        terminated=not infos[0].get("TimeLimit.truncated", False),
        flags_reached=infos[0].get("flags_reached"),
        pose=pose,
        got_up=longest >= UPRIGHT_STEPS if pose in ("stand_up", "roll_over") else None,
    )


def humanoid_of(env: Any) -> Any:
    """Our humanoid's environment in a VecEnv of one; None where it is another task."""
    from sb3_ppo_variants.envs.tasks import RoboschoolHumanoid

    task = env.unwrapped.envs[0].unwrapped
    return task if isinstance(task, RoboschoolHumanoid) else None


def _is_up(env: Any) -> bool:
    task = humanoid_of(env)
    return task is not None and task.robot.torso_height >= task.minimum_height


def summarized(episodes: Sequence[Episode]) -> dict[str, Any]:
    """What ``agent.json`` tells of the episodes.

    :return: ``mean`` and ``std`` (of the population) of the returns, their smallest and largest, ``mean_length`` in
        steps, ``terminated`` (episodes that ended before their limit); where the task has them ``flags_reached`` (mean
        per episode), ``began_on_ground`` and ``got_up`` (episodes)
    """
    returns = [episode.episode_return for episode in episodes]
    flags = [episode.flags_reached for episode in episodes if episode.flags_reached is not None]
    ups = [episode.got_up for episode in episodes if episode.got_up is not None]
    summary: dict[str, Any] = {
        "episodes": len(episodes),
        "first_seed": episodes[0].seed,
        "deterministic": True,
        "mean": round(statistics.fmean(returns), 2),
        "std": round(statistics.pstdev(returns), 2),
        "min": round(min(returns), 2),
        "max": round(max(returns), 2),
        "mean_length": round(statistics.fmean(episode.length for episode in episodes), 2),
        "terminated": sum(episode.terminated for episode in episodes),
    }
    if flags:
        summary["flags_reached"] = round(statistics.fmean(flags), 2)
    if any(episode.pose is not None for episode in episodes):
        summary |= {"began_on_ground": len(ups), "got_up": sum(ups)}
    return summary


def episodes_csv(episodes: Sequence[Episode]) -> bytes:
    """The content of ``episodes.csv``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, Episode._fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_without_none(episode._asdict()) for episode in episodes)
    return text.getvalue().encode()


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if isinstance(value, bool) else value for name, value in row.items() if value is not None}
