"""What an agent of a humanoid task is paid for: its reward's terms in the mean step, hinges at their limits, actions.

    python benchmarks/reward_terms.py RoboschoolHumanoidFlagrun-v1 [--agent FOLDER] [--episodes 12]

The motors give no more than at an action of ±1, but electricity is paid for the action as it was given. An agent that
goes beyond is therefore played twice: as it is, and with its actions clipped.
"""

import argparse
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import sb3_ppo_variants  # noqa: F401  # registers the tasks
from sb3_ppo_variants import load_policy
from sb3_ppo_variants.envs.rewards import LIMIT_FRACTION

HINGES = slice(8, -2, 2)
"""those of the observation's components that are positions of hinges"""
TERM = "reward_"
"""what the names of the reward's terms begin with in ``info``"""


class Steps(NamedTuple):
    """Episodes of an agent."""

    returns: NDArray[np.float64]
    """``(n_episodes,)``"""
    falls: int
    n_steps: int
    terms: dict[str, float]
    """the reward's, of the mean step"""
    hinges_at_limit: float
    """in the mean step"""
    beyond: float
    """share of an action's components beyond ±1, as the agent gives them"""


def play(policy: Any, env: gym.Env, seeds: range, *, clips: bool) -> Steps:
    """One deterministic episode a seed.

    :param clips: whether actions are clipped to ±1
    """
    returns, falls, n_steps = [], 0, 0
    terms: dict[str, float] = {}
    at_limit = beyond = 0.0
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            action, _ = policy.predict(observation, deterministic=True)
            beyond += float(np.mean(np.abs(action) > 1.0))
            observation, reward, terminated, truncated, info = env.step(np.clip(action, -1.0, 1.0) if clips else action)
            at_limit += float(np.sum(np.abs(observation[HINGES]) > LIMIT_FRACTION))
            for name, value in info.items():
                if name.startswith(TERM):
                    terms[name] = terms.get(name, 0.0) + value
            total += float(reward)
            n_steps += 1
            falls += terminated
            is_over = terminated or truncated
        returns.append(total)
    means = {name.removeprefix(TERM): value / n_steps for name, value in terms.items()}
    return Steps(np.array(returns), falls, n_steps, means, at_limit / n_steps, beyond / n_steps)


def described(steps: Steps) -> str:
    """What was measured, in two lines."""
    error = steps.returns.std(ddof=1) / np.sqrt(len(steps.returns))
    terms = ", ".join(f"{name} {value:.3f}" for name, value in steps.terms.items())
    return (
        f"return {steps.returns.mean():.0f} (standard error {error:.0f}), falls: {steps.falls} of {len(steps.returns)} "
        f"episodes; {steps.hinges_at_limit:.2f} hinges at a limit, {100 * steps.beyond:.1f} % of actions beyond ±1\n"
        f"  in the mean step: {terms}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--agent", help="folder of an exported agent; by default the one that ships for the task")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=40_000)
    arguments = parser.parse_args()
    policy = load_policy(arguments.agent or f"trained_agents/{arguments.task}")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.episodes)
    env = gym.make(arguments.task)
    steps = play(policy, env, seeds, clips=False)
    print(f"as it is: {described(steps)}", flush=True)
    if steps.beyond > 0.0:
        print(f"clipped to ±1: {described(play(policy, env, seeds, clips=True))}", flush=True)
    env.close()


if __name__ == "__main__":
    main()
