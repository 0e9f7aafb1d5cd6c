"""Where an agent of FlagrunHarder falls: without cubes and under fire, as it runs straight and as it turns.

    python benchmarks/falls.py [--agent trained_agents/RoboschoolHumanoidFlagrunHarder-v1] [--episodes 60]

Episodes begin upright and end with the first fall. Under fire a cube is thrown in every 30th step, and not
only after 100 as in the task; it counts whether it hits or not. The robot turns while the flag is, or was in
the 40 steps before, more than 60° to a side; what it was doing 25 steps before the end of an episode is what it fell
from.
"""

import argparse
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import sb3_ppo_variants  # noqa: F401  # registers the tasks
from sb3_ppo_variants import load_policy

TASK = "RoboschoolHumanoidFlagrunHarder-v1"
COSINE = 2
"""index of the observation's cosine of the angle to the flag"""
SIDEWAYS = 0.5
"""cosine below which the flag is to a side"""
MEMORY = 40
"""steps that a turn lasts from there"""
BEFORE = 25
"""steps that a fall takes"""
PERIOD = 30
"""steps between cubes"""


class Episode(NamedTuple):
    """One episode: its return, whether the robot turned in each of its steps, and whether it ended in a fall."""

    episode_return: float
    turning: NDArray[np.bool_]
    fell: bool

    @property
    def fell_in_turn(self) -> bool:
        return self.fell and bool(self.turning[max(len(self.turning) - BEFORE, 0)])


def is_turning(cosines: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the flag is, or was in the ``MEMORY`` steps before, to a side; ``(n_steps,)`` from the cosines."""
    sideways = np.asarray(cosines) < SIDEWAYS
    return np.array([sideways[max(step - MEMORY, 0) : step + 1].any() for step in range(len(sideways))])


def play(policy: Any, env: gym.Env, seed: int) -> Episode:
    """One deterministic episode."""
    observation, _ = env.reset(seed=seed)
    cosines, total = [], 0.0
    while True:
        cosines.append(observation[COSINE])
        action, _ = policy.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return Episode(total, is_turning(np.array(cosines)), terminated)


def described(episodes: list[Episode], period: int) -> str:
    """The mean return, and for each way of going its falls and for how many steps, or cubes, there is one.

    :param period: steps between cubes; 0: there are none
    """
    returns = np.array([each.episode_return for each in episodes])
    falls = sum(each.fell for each in episodes)
    error = returns.std(ddof=1) / np.sqrt(len(returns))
    lines = [f"return {returns.mean():.0f} (standard error {error:.0f}), falls: {falls} of {len(episodes)} episodes"]
    for name, turns in (("straight", False), ("turning", True)):
        # Every step, or those in which a cube is thrown.
        steps = [each.turning[period :: max(period, 1)] for each in episodes]
        amount = sum(int((turning == turns).sum()) for turning in steps)
        here = sum(each.fell and each.fell_in_turn == turns for each in episodes)
        one_in = f", one in {amount / here:.1f}" if here else ""
        lines.append(f"  {name}: {here} in {amount} {'cubes' if period else 'steps'}{one_in}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--agent", default=f"trained_agents/{TASK}")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--first-seed", type=int, default=500)
    arguments = parser.parse_args()
    policy = load_policy(arguments.agent)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.episodes)
    for title, period in (("without cubes", 0), ("under fire", PERIOD)):
        env = gym.make(TASK, pose_probabilities=(1.0, 0.0, 0.0), throw_period=period, throw_after=0)
        print(f"{title}: {described([play(policy, env, seed) for seed in seeds], period)}", flush=True)
        env.close()


if __name__ == "__main__":
    main()
