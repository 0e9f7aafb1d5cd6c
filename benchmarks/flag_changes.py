"""How much of the variance of a flagrun agent's advantages is due to new flags, whose place is chance.

    python benchmarks/flag_changes.py [--agent trained_agents/RoboschoolHumanoidFlagrun-v1] [--updates 10]

The agent is trained further for some updates, so that its critic and the scale of rewards settle. Then GAE's advantages
of the last rollout are computed again, as they are and without the temporal-difference errors of the steps that brought
a new flag. With `EpisodePerFlag` those steps end an episode.
"""

import argparse

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_variants import PPOClipPaper, load_policy

LAMBDAS = (0.95, 0.9, 0.8)


class FlagChanges(BaseCallback):
    """Records which steps of a rollout brought a new flag, ``(n_steps, n_envs)``; of the first it cannot tell."""

    def _on_rollout_start(self) -> None:
        self.flags: list[list[int]] = []

    def _on_step(self) -> bool:
        self.flags.append([info["flag"] for info in self.locals["infos"]])
        return True

    def changes(self) -> NDArray[np.bool_]:
        flags = np.array(self.flags)
        # They are counted up, and from 0 in each episode.
        return np.vstack([np.zeros_like(flags[:1], dtype=bool), flags[1:] > flags[:-1]])


def gae(errors: NDArray[np.float64], ends: NDArray[np.bool_], decay: float) -> NDArray[np.float64]:
    """Advantages from temporal-difference errors, both ``(n_steps, n_envs)``; nothing passes an episode's end."""
    advantages = np.zeros_like(errors)
    following = np.zeros(errors.shape[1])
    for step in reversed(range(len(errors))):
        following = errors[step] + decay * np.where(ends[step], 0.0, following)
        advantages[step] = following
    return advantages


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--agent", default="trained_agents/RoboschoolHumanoidFlagrun-v1")
    parser.add_argument("--env", default="RoboschoolHumanoidFlagrun-v1")
    parser.add_argument("--updates", type=int, default=10, help="of 8192 timesteps each")
    arguments = parser.parse_args()
    policy = load_policy(arguments.agent)
    env = policy.vec_normalize(make_vec_env(arguments.env, 16, seed=0), count=1_000_000)
    model = PPOClipPaper(
        "MlpPolicy",
        env,
        learning_rate=5e-5,
        n_steps=512,
        batch_size=1024,
        log_std_schedule=-1.6,
        clip_actions=False,
        policy_kwargs={"net_arch": [128, 128]},
        mirror_symmetry=True,
        seed=0,
    )
    policy.start(model)
    callback = FlagChanges()
    model.learn(arguments.updates * 512 * 16, callback=callback)
    buffer = model.rollout_buffer
    # Training flattens the buffer's values, environment by environment, and leaves rewards and starts alone.
    values = buffer.values.reshape(model.n_envs, -1).T
    # Of the last step the value that follows is not in the buffer.
    ends = buffer.episode_starts[1:].astype(bool)
    following = np.where(ends, 0.0, values[1:])
    errors = (buffer.rewards[:-1] + model.gamma * following - values[:-1]).astype(np.float64)
    # An episode's end is no change: its errors stay.
    changes = callback.changes()[:-1] & ~ends
    print(f"{changes.sum()} new flags in {changes.size} timesteps")
    with_flag, without = (np.abs(errors[steps]).mean() for steps in (changes, ~changes))
    print(f"mean |error|: {with_flag:.3f} with a new flag, {without:.3f} without")
    for factor in LAMBDAS:
        whole = gae(errors, ends, model.gamma * factor).var()
        rest = gae(np.where(changes, 0.0, errors), ends, model.gamma * factor).var()
        print(f"λ = {factor}: new flags make {1.0 - rest / whole:.0%} of the advantages' variance")


if __name__ == "__main__":
    main()
