"""GAE and the returns in the rollout buffer (eqs. 10–12) against numbers derived by hand."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import sb3_ppo_variants
from sb3_ppo_variants import PPOClipPaper
from tests.helpers import CountingBuffer

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]

GAMMA = GAE_LAMBDA = 0.5
Steps = list[tuple[float, float, str]]


class Scripted(gym.Env):
    """Begins every episode at 1 and then follows a script of (reward, next observation, how the episode ends)."""

    observation_space = spaces.Box(-100, 100, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, script: Steps):
        self.script = iter(script)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.ones(1, dtype=np.float32), {}

    def step(self, action: int) -> Any:
        reward, observation, end = next(self.script)
        return np.full(1, observation, dtype=np.float32), reward, end in ("T", "both"), end in ("L", "both"), {}


def collect(env: Any, algorithm: Any = PPOClipPaper, n_steps: int = 4, **kwargs: Any) -> Any:
    """The buffer after one rollout of a policy with V(s) = s."""
    model = algorithm(
        "MlpPolicy",
        env,
        n_steps=n_steps,
        batch_size=n_steps * env.num_envs,
        n_epochs=1,
        gamma=GAMMA,
        gae_lambda=GAE_LAMBDA,
        policy_kwargs={"net_arch": []},
        seed=0,
        device="cpu",
        **kwargs,
    )
    model.policy.value_net.weight.data.fill_(1.0)
    model.policy.value_net.bias.data.fill_(0.0)
    return model.learn(n_steps * env.num_envs).rollout_buffer


def vec_env(*scripts: Steps) -> DummyVecEnv:
    return DummyVecEnv([lambda script=script: Scripted(script) for script in scripts])  # type: ignore[misc]


def check(buffer: Any, values: Any, advantages: Any) -> None:
    """``values`` and ``advantages``: a row for each environment, as the update laid them out."""
    assert buffer.values.flatten().tolist() == np.ravel(values).tolist()
    assert buffer.advantages.flatten() == pytest.approx(np.ravel(advantages))
    assert buffer.returns.flatten() == pytest.approx(np.ravel(values) + np.ravel(advantages))


# γ = λ = 1/2, so that γλ = 1/4 and all numbers are exact. V(s) = s, and rewards are 1, 2, 3, 4.
# δ = r + γ V(s') − V(s), with V(s') = 0 after an end; Â = δ + γλ Â', with Â' = 0 after an end.

# s: 1, 2, 4, 8, and then 16: δ = 1 + 1 − 1, 2 + 2 − 2, 3 + 4 − 4, 4 + 8 − 8 = 1, 2, 3, 4.
# Â from the back: 4, 3 + 4/4 = 4, 2 + 4/4 = 3, 1 + 3/4.
RUNNING: Steps = [(1, 2, ""), (2, 4, ""), (3, 8, ""), (4, 16, "")]
RUNNING_ADVANTAGES = [1.75, 3, 4, 4]


# The episode ends after its second step, in 4. s: 1, 2, 1, 2, and then 4, in the midst of the next episode.
def ending(end: str) -> Steps:
    return [(1, 2, ""), (2, 4, end), (3, 2, ""), (4, 4, "")]


# δ = 1 + 1 − 1, 2 − 2, 3 + 1 − 1, 4 + 2 − 2 = 1, 0, 3, 4. Â from the back: 4, 3 + 4/4, 0, 1 + 0/4.
TERMINATED_ADVANTAGES = [1, 0, 4, 4]
# Credited with γ V(4) = 2 for what would have followed: δ = 1, 2 + 2 − 2, 3, 4. Â: 4, 4, 2, 1 + 2/4.
CREDITED_ADVANTAGES = [1.5, 2, 4, 4]

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
either_choice = pytest.mark.parametrize("bootstrap", [True, False])


@every_algorithm
def test_a_rollout_that_ends_in_the_midst_of_an_episode(algorithm: Any) -> None:
    check(collect(vec_env(RUNNING), algorithm), [[1, 2, 4, 8]], [RUNNING_ADVANTAGES])


@either_choice
@every_algorithm
def test_termination(algorithm: Any, bootstrap: bool) -> None:
    buffer = collect(vec_env(ending("T")), algorithm, bootstrap_on_timeout=bootstrap)
    check(buffer, [[1, 2, 1, 2]], [TERMINATED_ADVANTAGES])
    assert buffer.rewards.flatten().tolist() == [1, 2, 3, 4]
    assert buffer.episode_starts.flatten().tolist() == [1, 0, 1, 0]


@every_algorithm
def test_a_time_limit(algorithm: Any) -> None:
    credited = collect(vec_env(ending("L")), algorithm, bootstrap_on_timeout=True)
    check(credited, [[1, 2, 1, 2]], [CREDITED_ADVANTAGES])
    assert credited.rewards.flatten().tolist() == [1, 2 + 0.5 * 4, 3, 4]
    terminal = collect(vec_env(ending("L")), algorithm, bootstrap_on_timeout=False)
    check(terminal, [[1, 2, 1, 2]], [TERMINATED_ADVANTAGES])


@either_choice
@every_algorithm
def test_termination_at_the_time_limit_is_termination(algorithm: Any, bootstrap: bool) -> None:
    buffer = collect(vec_env(ending("both")), algorithm, bootstrap_on_timeout=bootstrap)
    check(buffer, [[1, 2, 1, 2]], [TERMINATED_ADVANTAGES])


@pytest.mark.parametrize(
    ("end", "bootstrap", "advantages"),
    [
        # As if the episode went on: γ V(16) is in the reward, and the new episode's V(1) must not come on top.
        ("L", True, RUNNING_ADVANTAGES),
        # δ = 1, 2, 3, 4 − 8 = −4. Â from the back: −4, 3 − 1, 2 + 2/4, 1 + 2.5/4.
        ("L", False, [1.625, 2.5, 2, -4]),
        ("T", True, [1.625, 2.5, 2, -4]),
        ("T", False, [1.625, 2.5, 2, -4]),
        ("both", True, [1.625, 2.5, 2, -4]),
    ],
)
def test_an_episode_that_ends_with_the_rollout(end: str, bootstrap: bool, advantages: list[float]) -> None:
    script = [*RUNNING[:3], (4.0, 16.0, end)]
    check(collect(vec_env(script), bootstrap_on_timeout=bootstrap), [[1, 2, 4, 8]], [advantages])


@every_algorithm
def test_environments_are_kept_apart(algorithm: Any) -> None:
    buffer = collect(vec_env(RUNNING, ending("T"), ending("L")), algorithm)
    advantages = [RUNNING_ADVANTAGES, TERMINATED_ADVANTAGES, CREDITED_ADVANTAGES]
    check(buffer, [[1, 2, 4, 8], [1, 2, 1, 2], [1, 2, 1, 2]], advantages)


def test_a_buffer_of_ones_own() -> None:
    buffer = collect(vec_env(RUNNING, ending("L")), rollout_buffer_class=CountingBuffer)
    check(buffer, [[1, 2, 4, 8], [1, 2, 1, 2]], [RUNNING_ADVANTAGES, CREDITED_ADVANTAGES])


def test_the_value_after_the_rollout_is_the_next_rollouts_first() -> None:
    # The second rollout goes on where the first ended: its V is 16, and 5 + 16 − 16, … follow.
    env = vec_env([*RUNNING, (5, 32, ""), (6, 64, "T"), (7, 2, ""), (8, 4, "")])
    model = PPOClipPaper(
        "MlpPolicy", env, n_steps=4, batch_size=4, n_epochs=1, gamma=GAMMA, gae_lambda=GAE_LAMBDA, learning_rate=0.0,
        policy_kwargs={"net_arch": []}, device="cpu",
    )  # fmt: skip
    model.policy.value_net.weight.data.fill_(1.0)
    model.policy.value_net.bias.data.fill_(0.0)
    model.learn(8)
    # s: 16, 32, 1, 2, and then 4: δ = 5 + 16 − 16, 6 − 32, 7 + 1 − 1, 8 + 2 − 2 = 5, −26, 7, 8.
    # Â from the back: 8, 7 + 8/4, −26, 5 − 26/4.
    check(model.rollout_buffer, [[16, 32, 1, 2]], [[-1.5, -26, 9, 8]])


# ------------------------------------------------------------------ VecNormalize


def running_variance(seen: list[float]) -> float:
    """The variance that SB3 keeps: of what was seen and of 1e-4 samples of mean 0 and variance 1."""
    count = len(seen) + 1e-4
    mean = sum(seen) / count
    return (sum(x * x for x in seen) + 1e-4) / count - mean**2


@pytest.mark.parametrize("bootstrap", [True, False])
def test_normalised_rewards(bootstrap: bool) -> None:
    # Rewards 1 and 2, then the time limit, in 4. They are divided by the deviation of the discounted return so far,
    # R = 1, then 2 + γ·1 = 2.5; R begins anew with the next episode: 3. The credit for the time limit, γ V(4) = 2, is
    # in units of V, and normalised already.
    env = VecNormalize(vec_env([(1, 2, ""), (2, 4, "L"), (3, 2, "")]), norm_obs=False, gamma=GAMMA)
    buffer = collect(env, n_steps=3, bootstrap_on_timeout=bootstrap)
    deviations = [math.sqrt(running_variance(seen) + 1e-8) for seen in ([1.0], [1.0, 2.5], [1.0, 2.5, 3.0])]
    rewards = [min(reward / deviation, 10) for reward, deviation in zip([1, 2, 3], deviations, strict=True)]
    assert rewards[0] == 10  # a single return hardly deviates; SB3 clips at 10
    rewards[1] += 2 if bootstrap else 0
    assert buffer.rewards.flatten() == pytest.approx(rewards, rel=1e-5)
    # s: 1, 2, 1, and then 2.
    deltas = [rewards[0] + 1 - 1, rewards[1] - 2, rewards[2] + 1 - 1]
    first = deltas[0] + deltas[1] / 4
    assert buffer.advantages.flatten() == pytest.approx([first, *deltas[1:]], rel=1e-5)
    assert buffer.returns.flatten() == pytest.approx([first + 1, rewards[1], deltas[2] + 1], rel=1e-5)


def test_the_observation_at_a_time_limit_is_normalised_as_the_others() -> None:
    # By the time the limit cuts the episode in 4, VecNormalize has seen 1, 2, and 1, where the next one begins.
    env = VecNormalize(vec_env([(1, 2, ""), (2, 4, "L")]), norm_reward=False, gamma=GAMMA)
    buffer = collect(env, n_steps=2)
    mean = (1 + 2 + 1) / (3 + 1e-4)
    value = (4 - mean) / math.sqrt(running_variance([1, 2, 1]) + 1e-8)
    assert buffer.rewards.flatten() == pytest.approx([1, 2 + 0.5 * value], rel=1e-4)
