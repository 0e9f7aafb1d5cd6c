"""``ppo-variants demo``: clip PPO on the Roboschool humanoid, from nothing to a curve, a film and a model."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_ppo_variants.agents.folder import find_agent
from sb3_ppo_variants.film import film

TASK = "RoboschoolHumanoid-v1"
# With its module: worker processes that have not imported this package find the task too.
TASK_ID = f"sb3_ppo_variants:{TASK}"
EVALUATION_SEEDS = range(1000, 1020)
# Student's t, two-sided 95 %, 19 degrees of freedom.
T_95 = 2.093
FILM_SECONDS = 6.0

N_ENVS = 8
DEMO_TIMESTEPS = 120_000
SETTINGS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 128,
    "n_epochs": 10,
    "learning_rate": 3e-4,
    "clip_actions": False,
    "policy_kwargs": {"log_std_init": -0.7},
}


class Score(NamedTuple):
    """Returns of some episodes: their mean and the half-width of its 95 % confidence interval."""

    mean: float
    margin: float

    @classmethod
    def of(cls, returns: Sequence[float]) -> Score:
        """The score of as many returns as ``T_95`` is made for."""
        assert len(returns) == len(EVALUATION_SEEDS)
        return cls(float(np.mean(returns)), T_95 * float(np.std(returns, ddof=1)) / math.sqrt(len(returns)))

    def __str__(self) -> str:
        return f"{self.mean:.1f} (95 % interval {self.mean - self.margin:.1f} to {self.mean + self.margin:.1f})"


def evaluate(model: Any, normalizer: Any) -> Score:
    """Mean return of the deterministic policy over 20 episodes, one fresh seed each."""
    env = gym.make(TASK_ID)
    returns = [_episode_return(env, model, normalizer, seed) for seed in EVALUATION_SEEDS]
    env.close()
    return Score.of(returns)


def _episode_return(env: gym.Env, model: Any, normalizer: Any, seed: int) -> float:
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        action, _ = model.predict(normalizer.normalize_obs(observation), deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        over = terminated or truncated
    return total


def film_of(model: Any, normalizer: Any | None, path: Path) -> None:
    """Film ``FILM_SECONDS`` of a deterministic policy; its normaliser, or None where it has its own."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    env: Any = DummyVecEnv([lambda: gym.make(TASK_ID, render_mode="rgb_array")])
    policy = model if normalizer is None else _Normalized(model, normalizer)
    film(policy, env, path, FILM_SECONDS, EVALUATION_SEEDS[0])
    env.close()


class _Normalized(NamedTuple):
    """A model on raw observations."""

    model: Any
    normalizer: Any

    def predict(self, observations: Any, deterministic: bool) -> Any:
        """As SB3's."""
        return self.model.predict(self.normalizer.normalize_obs(observations), deterministic=deterministic)


def show_shipped(path: Path) -> None:
    """Film the agent that ships for the task, if there is one."""
    agent = find_agent(TASK)
    if agent is None:
        return
    from sb3_ppo_variants.export import load_policy

    film_of(load_policy(agent.folder, "cpu"), None, path)
    print(f"Trained for longer, the agent that ships: {agent.described()}\nFilm:  {path}")


def draw_curve(timesteps: Sequence[int], returns: Sequence[float], before: Score, after: Score, path: Path) -> None:
    """Draw the learning curve with the scores before and after the training beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        timesteps,
        returns,
        color="C0",
        marker=".",
        markersize=3,
        label="while training (stochastic policy, last 100 episodes)",
    )
    for step, score, name in ((0, before, "before"), (timesteps[-1], after, "after")):
        axes.errorbar(
            step, score.mean, score.margin, fmt="o", color="C1", capsize=5, clip_on=False,
            label="deterministic policy, 20 fresh seeds, 95 % interval" if name == "after" else None,
        )  # fmt: skip
    axes.set_title(f"PPOClipPaper on {TASK}")
    axes.set_xlabel("timesteps")
    axes.set_ylabel("mean return")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def _train(timesteps: int, seed: int) -> tuple[Any, Any, Score, list[int], list[float]]:
    """Train; returns the model, its normaliser, the score before, and the curve."""
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.utils import safe_mean
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
    from tqdm import tqdm

    from sb3_ppo_variants import PPOClipPaper

    th.set_num_threads(1)  # the networks are small, and the workers need the cores
    steps: list[int] = []
    returns: list[float] = []

    class Curve(BaseCallback):
        """Notes the mean return after each rollout and shows it on the progress bar."""

        def _on_training_start(self) -> None:
            self.bar = tqdm(total=timesteps, unit=" steps", mininterval=1)

        def _on_step(self) -> bool:
            self.bar.update(self.training_env.num_envs)
            return True

        def _on_rollout_end(self) -> None:
            if self.model.ep_info_buffer:
                steps.append(self.num_timesteps)
                returns.append(safe_mean([episode["r"] for episode in self.model.ep_info_buffer]))
                self.bar.set_postfix_str(f"mean return {returns[-1]:.1f}", refresh=False)

        def _on_training_end(self) -> None:
            self.bar.close()

    env = VecNormalize(make_vec_env(TASK_ID, N_ENVS, seed=seed, vec_env_cls=SubprocVecEnv), clip_obs=5.0)
    model = PPOClipPaper("MlpPolicy", env, seed=seed, device="cpu", **SETTINGS)
    before = evaluate(model, env)
    print(f"Mean return before, 20 fresh seeds: {before}", flush=True)
    model.learn(timesteps, callback=Curve())
    env.close()
    return model, env, before, steps, returns


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, evaluate, and write curve, film and model.

    :param arguments: the command line after ``demo``; None: the process's own
    :return: the exit status, 0
    """
    parser = argparse.ArgumentParser(prog="ppo-variants demo", description=__doc__)
    parser.add_argument(
        "--timesteps", type=int, default=DEMO_TIMESTEPS, help="timesteps to train for (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.timesteps < 1:
        parser.error(f"argument --timesteps must be >= 1; got {options.timesteps}")
    if not 0 <= options.seed < 2**32:
        parser.error(f"argument --seed must be in [0, 2**32); got {options.seed}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"argument --out must be a folder; got the file {options.out}")
    options.out.mkdir(parents=True, exist_ok=True)

    print(f"Training PPOClipPaper on {TASK} for {options.timesteps:,} timesteps.")
    if options.timesteps == DEMO_TIMESTEPS:
        print("That takes two or three minutes on two cores.")
    start = time.perf_counter()
    model, normalizer, before, steps, returns = _train(options.timesteps, options.seed)
    print(f"Trained in {time.perf_counter() - start:.0f} s.")
    after = evaluate(model, normalizer)
    better = after.mean - after.margin > before.mean + before.margin
    print(f"Mean return before, 20 fresh seeds: {before}")
    print(f"Mean return after, the same seeds:  {after}")
    print("The intervals do not overlap: it has learnt." if better else "The intervals overlap: train for longer.")

    draw_curve(steps, returns, before, after, options.out / "curve.png")
    film_of(model, normalizer, options.out / "film.mp4")
    model.save(options.out / "model.zip")
    normalizer.save(str(options.out / "vecnormalize.pkl"))
    print(f"Curve: {options.out / 'curve.png'}\nFilm:  {options.out / 'film.mp4'}")
    print(f"Model: {options.out / 'model.zip'} (observations normalised by {options.out / 'vecnormalize.pkl'})")
    show_shipped(options.out / "shipped_agent.mp4")
    return 0
