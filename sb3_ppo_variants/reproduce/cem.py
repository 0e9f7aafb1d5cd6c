"""The cross-entropy method with decaying noise (Szita & Lőrincz 2006), which Fig. 3 compares with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_ppo_variants.arguments import require

Callback = Callable[[dict[str, Any], dict[str, Any]], object]
"""a function of an algorithm's names and its module's, as SB3 takes it"""


class CEM:
    """The cross-entropy method over linear policies ``a = W s + b``.

    Each generation draws weights from a diagonal Gaussian and plays one episode with each, deterministically; the
    Gaussian's mean and variance become those of the best, the elite. Extra variance, added to what is drawn from and
    decaying linearly to 0, keeps it from narrowing too soon. The training ends with the episode in which the timesteps
    are used up.

    The paper says neither which policies nor which settings. A linear policy has a few dozen weights, which generations
    of some dozens can tell from one another; §6.1's network has thousands.

    :param policy: ``"MlpPolicy"`` or whatever else the other algorithms are given; there is one kind of policy
    :param env: a ``VecEnv`` of one environment with a ``Box`` of actions, to which they are clipped
    :param population: weights that a generation draws
    :param elite_fraction: of the population, in (0, 1]
    :param initial_std: of each weight, > 0
    :param extra_std: root of the extra variance at the beginning, >= 0
    :param extra_fraction: of the timesteps, in (0, 1], after which there is no extra variance
    :param seed: of the weights that are drawn, and of the environment
    :param device: not used
    :raises ValueError: for an argument outside its range
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        population: int,
        elite_fraction: float,
        initial_std: float,
        extra_std: float,
        extra_fraction: float,
        seed: int = 0,
        device: str = "cpu",
    ):
        require("population", population, "an integer >= 2", lambda value: value >= 2, integer=True)
        require("elite_fraction", elite_fraction, "a number in (0, 1]", lambda value: 0 < value <= 1)
        require("initial_std", initial_std, "a number > 0", lambda value: value > 0)
        require("extra_std", extra_std, "a number >= 0", lambda value: value >= 0)
        require("extra_fraction", extra_fraction, "a number in (0, 1]", lambda value: 0 < value <= 1)
        require("env.num_envs", env.num_envs, "1", lambda value: value == 1, integer=True)
        self.env = env
        self.population = population
        self.n_elite = max(1, round(elite_fraction * population))
        self.extra_std, self.extra_fraction = extra_std, extra_fraction
        self.num_timesteps = 0
        n_features, n_actions = int(np.prod(env.observation_space.shape)), int(np.prod(env.action_space.shape))
        self._shape = n_actions, n_features + 1
        size = n_actions * (n_features + 1)
        self.mean = np.zeros(size)
        """of the Gaussian, ``(n_weights,)``"""
        self.std = np.full(size, float(initial_std))
        """of the Gaussian, without the extra noise, ``(n_weights,)``"""
        self._random = np.random.default_rng(seed)
        env.seed(seed)

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> CEM:
        """Run generations until the timesteps are used up; the last one may be cut and then changes nothing.

        :param callback: called after each episode, as SB3 calls a function; what it returns is not looked at
        """
        while self.num_timesteps < total_timesteps:
            weights = self.draw(1 - self.num_timesteps / (self.extra_fraction * total_timesteps))
            returns = []
            for each in weights:
                returns.append(self.play(each))
                if callback is not None:
                    callback({"self": self}, {})
                if self.num_timesteps >= total_timesteps:
                    return self
            self.update(weights, np.array(returns))
        return self

    def draw(self, extra: float) -> np.ndarray:
        """A generation, ``(population, n_weights)``.

        :param extra: the share of the extra variance; below 0 it is 0
        """
        std = np.sqrt(self.std**2 + max(0.0, extra) * self.extra_std**2)
        return self.mean + std * self._random.standard_normal((self.population, len(self.mean)))

    def update(self, weights: np.ndarray, returns: np.ndarray) -> None:
        """Move the Gaussian to the elite.

        :param weights: ``(population, n_weights)``
        :param returns: ``(population,)``
        """
        elite = weights[np.argsort(-returns, kind="stable")[: self.n_elite]]
        self.mean, self.std = elite.mean(axis=0), elite.std(axis=0)

    def play(self, weights: np.ndarray) -> float:
        """Play one episode; its return."""
        matrix = weights.reshape(self._shape)
        space = self.env.action_space
        observation, total, over = self.env.reset(), 0.0, False
        while not over:
            features = np.append(np.asarray(observation[0], dtype=float).ravel(), 1.0)
            action = np.clip((matrix @ features).reshape(space.shape), space.low, space.high)
            observation, reward, done, _ = self.env.step(action[None].astype(space.dtype))
            total, over = total + float(reward[0]), bool(done[0])
            self.num_timesteps += 1
        return total
