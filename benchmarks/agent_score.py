"""The score of a ReLU network, such as OpenAI's agents of 2017, on a humanoid task: mean return, deviation, falls.

    python benchmarks/agent_score.py WEIGHTS [--env RoboschoolHumanoidFlagrun-v1] [--episodes 100]

Episode i starts from `reset(seed=i)`. WEIGHTS is a file of agent_zoo in github.com/openai/roboschool, as
RoboschoolHumanoid_v1_2017jul.weights or RoboschoolHumanoid_v0_2017may.py, which is read and not run; or an .npz with
dense1_w (44, 256), dense1_b, dense2_w (256, 128), dense2_b, final_w (128, 17) and final_b.
"""

import argparse

import gymnasium as gym
import numpy as np
from recording import Policy, network_policy

from sb3_ppo_variants.envs import TASKS
from sb3_ppo_variants.envs.humanoid import OBSERVATION_SIZE


def shifted(policy: Policy, height: float) -> Policy:
    """The policy, given observations with `height` added to their first number."""
    shift = np.zeros(OBSERVATION_SIZE, np.float32)
    shift[0] = height
    return lambda observations: policy(observations + shift)


def play(env_id: str, policy: Policy, episodes: int) -> tuple[list[float], int]:
    """The return of each episode, and how many ended in a fall."""
    returns, falls = [], 0
    with gym.make(env_id) as env:
        for seed in range(episodes):
            observation, _ = env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                observation, reward, terminated, truncated, _ = env.step(policy(observation))
                total += float(reward)
                over = terminated or truncated
            returns.append(total)
            falls += terminated
    return returns, falls


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", help="a .weights or .py file of Roboschool's agent zoo, or an .npz")
    tasks = [task for task in TASKS if task.startswith("RoboschoolHumanoid")]
    parser.add_argument("--env", choices=tasks, default="RoboschoolHumanoid-v1")
    parser.add_argument("--episodes", type=int, default=100)
    shift = (
        "added to the observed height: OpenAI's scripts add -0.6 for the agents of Humanoid-v0 and HumanoidFlagrun-v0"
    )
    parser.add_argument("--height-shift", type=float, default=0.0, help=shift)
    arguments = parser.parse_args()
    policy = shifted(network_policy(arguments.weights), arguments.height_shift)
    returns, falls = play(arguments.env, policy, arguments.episodes)
    print(f"{np.mean(returns):.0f} ± {np.std(returns):.0f} over {len(returns)} episodes, {falls} falls")


if __name__ == "__main__":
    main()
