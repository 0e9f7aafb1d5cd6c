"""Whether agents trained at once score what they score alone: 20 seeds of each, on InvertedPendulum-v5.

    python benchmarks/many_scores.py [--timesteps 40960] [--seeds 20]

`train_many` of all seeds, then `learn` of each by itself, both `PPOClipPaper` with Table 3's settings but a horizon of
512 and a stepsize of 1e-3, with which 40,960 timesteps, not the paper's million, solve the task. A score is the mean
return of the episodes that ended in the last quarter of the training. The verdict is that of two one-sided tests
(Welch's, 5 %) that the mean scores differ by less than 10 %.
"""

import argparse
import math
import statistics
import time
from typing import Any

import numpy as np
import torch as th

from sb3_ppo_variants import PPOClipPaper, presets, train_many

ENV = "InvertedPendulum-v5"
SETTINGS: dict[str, Any] = {**presets.TABLE_1, "n_steps": 512, "learning_rate": 1e-3}
BOUND = 0.1
"""By how much of the score the means may differ."""
QUANTILE = 1.69
"""Student's t at 5 %, one-sided, with 38 degrees of freedom: of twenty scores each, of like variance."""


def score(model: Any) -> float:
    """Mean return of the episodes that ended in the last quarter of the training."""
    (monitor,) = model.env.envs
    ends = np.cumsum(monitor.get_episode_lengths())
    returns = np.array(monitor.get_episode_rewards())
    model.env.close()
    return float(returns[ends > 0.75 * model.num_timesteps].mean())


def describe(who: str, scores: list[float], seconds: float) -> None:
    """Print them."""
    listed = " ".join(f"{value:.0f}" for value in scores)
    print(f"{who}: mean {statistics.mean(scores):.1f}, in {seconds:.0f} s: {listed}", flush=True)


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=40_960, help="of each agent (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="(default: %(default)s)")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    started = time.perf_counter()
    models = train_many(PPOClipPaper, ENV, arguments.timesteps, seeds=range(arguments.seeds), **SETTINGS)
    together = [score(model) for model in models]
    describe("at once", together, time.perf_counter() - started)
    started = time.perf_counter()
    alone = []
    for seed in range(arguments.seeds):
        model = PPOClipPaper("MlpPolicy", ENV, seed=seed, device="cpu", **SETTINGS)
        alone.append(score(model.learn(arguments.timesteps)))
    describe("alone", alone, time.perf_counter() - started)
    difference = statistics.mean(together) - statistics.mean(alone)
    variances = [statistics.variance(scores) / len(scores) for scores in (together, alone)]
    margin = QUANTILE * math.sqrt(sum(variances))
    bound = BOUND * statistics.mean(alone)
    print(f"they differ by {difference:+.1f} ± {margin:.1f} (90 %), at most ±{bound:.1f} wanted: ", end="")
    print("equivalent" if abs(difference) + margin < bound else "NOT SHOWN")


if __name__ == "__main__":
    main()
