"""One network that does what a teacher does: policy distillation (Rusu et al. 2016, arXiv:1511.06295).

The teacher may be two agents, each in charge of a part of the states (:class:`Switch`): the student then has the skills
of both in one network, from which a training goes on. It learns at the states that it comes to itself, too, where the
teacher tells what it would do (DAgger: Ross et al. 2011, arXiv:1011.0686). Before, either of the two may be trained in
the states that the other leaves it in (:class:`Handover`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_variants.arguments import require, shown
from sb3_ppo_variants.export import load_policy
from sb3_ppo_variants.on_policy import PaperOnPolicyAlgorithm
from sb3_ppo_variants.symmetry import MirrorSymmetry, symmetrize_statistics

__all__ = ["Handover", "Predictor", "Switch", "distill"]

LAST_STEPSIZE = 0.02
"""Share of the stepsize at the end of each round, to which it falls linearly; ours."""
SMALLEST_VARIANCE = 1e-4
"""Added to the variance of a component of the observation, which may be constant; ours."""
MAX_SKIPPED = 100
"""Episodes in a row in which a learner does not come to act, after which a :class:`Handover` gives up; ours."""


class Predictor(Protocol):
    """What acts on observations as the task gives them: an exported policy, or a model trained without VecNormalize."""

    def predict(self, observation: np.ndarray, *, deterministic: bool) -> tuple[np.ndarray, Any]:
        """As SB3's, for observations ``(B, *shape)``."""


class Switch:
    """Two agents as one: the second acts where a component of the observation has reached a threshold.

    :param below: acts where it is less
    :param above: acts elsewhere
    :param component: its index in the observation, of one axis
    :param threshold: as the task gives it, not normalised
    :raises ValueError: for a component below 0, or a threshold that is not finite
    """

    def __init__(self, below: Predictor, above: Predictor, component: int, threshold: float):
        _require_border(component, threshold)
        self.below, self.above = below, above
        self.component, self.threshold = component, threshold

    def predict(self, observation: np.ndarray, *, deterministic: bool) -> tuple[np.ndarray, None]:
        """For each of the observations ``(B, n)`` the action of who is in charge, ``(B, m)``; and None.

        :raises ValueError: if observations have no such component, or the agents' actions are of two shapes
        """
        if observation.ndim != 2 or self.component >= observation.shape[1]:
            raise ValueError(f"observation must be (B, n) with n > {self.component}; got {observation.shape}")
        actions = [agent.predict(observation, deterministic=deterministic)[0] for agent in (self.below, self.above)]
        if actions[0].shape != actions[1].shape:
            raise ValueError(f"below and above must act alike; got {actions[0].shape} and {actions[1].shape}")
        is_above = observation[:, self.component] >= self.threshold
        return np.where(is_above[:, None], actions[1], actions[0]), None


class Handover(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray], RecordConstructorArgs):
    """Trains one of the two agents of a :class:`Switch`, while the other acts where it is in charge.

    The learner is given states of its own alone, and so those in which the other leaves it. What the other earns is
    added, undiscounted, to the reward of the learner's step before, and what it earns before the learner's first step
    is left out. An episode that ends while the other acts ends with the learner's step before; where it is cut short,
    as by a time limit, the last observation is the one that the learner acted on, whose value its critic can tell. An
    episode in which the learner has no step is skipped. What is inside, as SB3's ``Monitor`` where ``make_vec_env`` has
    put it, sees every step; the learner's steps alone are its training's timesteps.

    :param env: with observations of one axis
    :param agent: acts, deterministically, in its part of the states; or the folder of an export
    :param component: as of :class:`Switch`
    :param threshold: as of :class:`Switch`
    :param part: `agent`'s: ``"below"`` the threshold, or ``"above"``: from it on
    :raises ValueError: if an argument is not allowed, or observations have no such component
    """

    def __init__(
        self,
        env: gym.Env[np.ndarray, np.ndarray],
        agent: Predictor | str | Path,
        component: int,
        threshold: float,
        part: Literal["below", "above"] = "below",
    ):
        _require_border(component, threshold)
        shape = env.observation_space.shape
        if shape is None or len(shape) != 1 or component >= shape[0]:
            raise ValueError(f"env must have observations of one axis, of more than {component}; got {shape}")
        if part not in ("below", "above"):
            raise ValueError(f"part must be 'below' or 'above'; got {part!r}")
        RecordConstructorArgs.__init__(
            self, _disable_deepcopy=True, agent=agent, component=component, threshold=threshold, part=part
        )
        super().__init__(env)
        self._agent: Predictor = load_policy(agent, "cpu") if isinstance(agent, str | Path) else agent
        self._component, self._threshold, self._is_above = component, threshold, part == "above"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, and let the other act until it is the learner's turn.

        :raises RuntimeError: if that is in none of 100 episodes
        """
        for _ in range(MAX_SKIPPED):
            observation, info = self.env.reset(seed=seed, options=options)
            observation, _, terminated, truncated, info = self._hand_over(observation, 0.0, False, False, info)
            if not (terminated or truncated):
                self._own = observation
                return observation, info
            seed = options = None
        raise RuntimeError(f"agent hands over in none of {MAX_SKIPPED} episodes")

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The learner's step, and those of the other that follow."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, reward, terminated, truncated, info = self._hand_over(
            observation, float(reward), terminated, truncated, info
        )
        if truncated and not terminated and self._is_others(observation):
            observation = self._own
        self._own = observation
        return observation, reward, terminated, truncated, info

    def _is_others(self, observation: np.ndarray) -> bool:
        return bool((observation[self._component] >= self._threshold) == self._is_above)

    def _hand_over(
        self, observation: np.ndarray, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        while not (terminated or truncated) and self._is_others(observation):
            action = self._agent.predict(observation[None], deterministic=True)[0][0]
            observation, more, terminated, truncated, info = self.env.step(action)
            reward += float(more)
        return observation, reward, terminated, truncated, info


def _require_border(component: int, threshold: float) -> None:
    require("component", component, "an integer >= 0", lambda value: value >= 0, integer=True)
    require("threshold", threshold, "a finite number", math.isfinite)


def distill(
    model: PaperOnPolicyAlgorithm,
    teacher: Predictor,
    total_timesteps: int,
    *,
    rounds: int = 4,
    teacher_share: float = 0.3,
    n_epochs: int = 10,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
) -> list[float]:
    """Fit the mean action of a model's policy to a teacher's action, by the squared error.

    Each round takes as many steps in the model's environments, where in the first the teacher acts, and later in each
    episode either the teacher, with probability `teacher_share`, or the student; its states are added to those of the
    rounds before, and the student is fitted to all of them. Where a ``VecNormalize`` normalises observations, its
    statistics are those of the first round; its statistics of returns stay. The critic learns nothing, the noise stays.

    Random numbers come from torch's and NumPy's generators, which its constructor's `seed` sets.

    :param model: with Gaussian actions, and environments of observations of one axis; a training resets them first
    :param teacher: its actions for raw observations, deterministic
    :param total_timesteps: of all rounds and environments; rounded up to full steps of all environments
    :param rounds: at least 1
    :param teacher_share: 0 to 1
    :param n_epochs: passes over all states, in each round
    :param batch_size: states to a step of Adam; at least 1
    :param learning_rate: Adam's at the start of a round; it falls to a fiftieth
    :return: the mean squared error of an action's component in each round's last pass
    :raises ValueError: if the model is not such, the teacher's actions are of another shape or not finite, or an
        argument is not allowed
    """
    require("total_timesteps", total_timesteps, "an integer >= 1", lambda value: value >= 1, integer=True)
    for name, count in (("rounds", rounds), ("n_epochs", n_epochs), ("batch_size", batch_size)):
        require(name, count, "an integer >= 1", lambda value: value >= 1, integer=True)
    require("teacher_share", teacher_share, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    require("learning_rate", learning_rate, "a finite number > 0", lambda value: 0 < value < math.inf)
    env = _require_model(model)
    steps = math.ceil(total_timesteps / (rounds * env.num_envs))
    states, actions = [], []
    optimizer = th.optim.Adam(model.policy.parameters(), learning_rate)
    losses = []
    model._last_obs = None  # a training resets the environments first
    for number in range(rounds):
        seen, labels = _collect(model, teacher, env, steps, 1.0 if number == 0 else teacher_share)
        states.append(seen)
        actions.append(labels)
        if number == 0:
            _set_statistics(model, seen)
        losses.append(
            _fit(model, optimizer, np.concatenate(states), np.concatenate(actions), n_epochs, batch_size, learning_rate)
        )
    return losses


def _require_model(model: Any) -> VecEnv:
    """The model's environments.

    :raises ValueError: if it is none that can be distilled into
    """
    if not isinstance(model, PaperOnPolicyAlgorithm):
        raise ValueError(f"model must be of one of this package's algorithms; got {shown(model)}")
    env, space = model.env, model.observation_space
    if env is None:
        raise ValueError("model must have environments: model.set_env(env)")
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"model must have observations of one axis; got {space}")
    if not isinstance(model.policy.action_dist, DiagGaussianDistribution):
        raise ValueError(f"model must have Gaussian actions; got {type(model.policy.action_dist).__name__}")
    return env


def _collect(
    model: PaperOnPolicyAlgorithm, teacher: Predictor, env: VecEnv, steps: int, teacher_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """States ``(steps · n_envs, *shape)`` as the task gives them, and the teacher's actions there."""
    normalizer = model.get_vec_normalize_env()
    learns = normalizer is not None and normalizer.training
    if normalizer is not None:
        normalizer.training = False
    try:
        observation: Any = env.reset()
        acts = np.random.random(env.num_envs) < teacher_share
        states, labels = [], []
        for _ in range(steps):
            raw: Any = observation if normalizer is None else normalizer.get_original_obs()
            label, _ = teacher.predict(raw, deterministic=True)
            if label.shape != (env.num_envs, *(model.action_space.shape or ())) or not np.isfinite(label).all():
                raise ValueError(f"teacher must give finite actions of the model's shape; got {shown(label)}")
            states.append(raw.copy())
            labels.append(label)
            own = label
            if not acts.all():
                own = model.predict(observation, deterministic=True)[0]
            observation, _, dones, _ = env.step(np.where(acts[:, None], label, own))
            acts = np.where(dones, np.random.random(env.num_envs) < teacher_share, acts)
    finally:
        if normalizer is not None:
            normalizer.training = learns
    return np.concatenate(states), np.concatenate(labels).astype(np.float32)


def _set_statistics(model: PaperOnPolicyAlgorithm, states: np.ndarray) -> None:
    normalizer = model.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs:
        return
    running = RunningMeanStd(shape=states.shape[1:])
    running.update(states.astype(np.float64))
    running.var += SMALLEST_VARIANCE
    if isinstance(model.mirror_symmetry, MirrorSymmetry):
        symmetrize_statistics(running, model.mirror_symmetry.observation)
    normalizer.obs_rms = running  # type: ignore[assignment]  # SB3 has a dict of them for observations that are dicts


def _fit(
    model: PaperOnPolicyAlgorithm,
    optimizer: th.optim.Optimizer,
    states: np.ndarray,
    actions: np.ndarray,
    n_epochs: int,
    batch_size: int,
    learning_rate: float,
) -> float:
    normalizer = model.get_vec_normalize_env()
    seen: Any = states if normalizer is None else normalizer.normalize_obs(states)
    inputs, wanted = (th.as_tensor(values, device=model.device) for values in (seen, actions))
    policy, symmetric = model.policy, model._symmetric()
    done, total = 0, n_epochs * math.ceil(len(inputs) / batch_size)
    losses: list[float] = []
    for _ in range(n_epochs):
        losses = []
        for places in th.randperm(len(inputs), device=model.device).split(batch_size):
            update_learning_rate(optimizer, learning_rate * max(1.0 - done / total, LAST_STEPSIZE))
            gaussian: Any = policy.get_distribution(inputs[places]).distribution
            loss = (gaussian.mean - wanted[places]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if symmetric is not None:
                symmetric.project_gradients()
            optimizer.step()
            done += 1
            losses.append(loss.item())
    if symmetric is not None:
        symmetric.project_weights()
    return float(np.mean(losses))
