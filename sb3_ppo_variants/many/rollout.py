"""Rollouts of several agents in step: one forward pass for all, their environments one after another.

Shapes: ``P`` agents, ``T`` timesteps, ``E`` environments of each agent, ``F`` features of an observation; ``N`` is
``E · T``, one environment after the other, as SB3's buffers lay out their samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_ppo_variants.many.stack import Stack
from sb3_ppo_variants.many.stepping import steppers_of
from sb3_ppo_variants.rollout_data import EVALUATION_ROWS


class RolloutSamples(NamedTuple):
    """The samples of one rollout of each agent."""

    features: th.Tensor
    """observations as the networks read them, ``(P, N, F)``"""
    actions: th.Tensor
    """as they were sampled: ``(P, N, A)``, or indices ``(P, N)``"""
    output: th.Tensor
    """of the action networks of π_old, ``(P, N, n_out)``"""
    old_log_prob: th.Tensor
    """log π_old(a|s), ``(P, N)``"""
    old_values: th.Tensor
    """V_old(s), ``(P, N)``"""
    advantages: th.Tensor
    """Â by GAE, ``(P, N)``"""
    returns: th.Tensor
    """V_targ, the λ-return, ``(P, N)``"""


class Collector:
    """Collects rollouts, again and again in the same memory.

    :param stack: the agents, whose models stand at the beginning of a rollout
    """

    def __init__(self, stack: Stack):
        self._stack, self._agents = stack, stack.agents
        model = self._agents[0].model
        self._n_steps, self._n_envs = model.n_steps, model.n_envs
        self._space = model.action_space
        shape = (self._n_steps, len(self._agents), self._n_envs)
        self._features = th.zeros(shape[0] + 1, *shape[1:], model.policy.features_dim)
        self._noise = th.zeros(shape[1], shape[0], shape[2], *stack.actions.noise_shape)
        is_discrete = isinstance(self._space, spaces.Discrete)
        self._actions = th.zeros(shape, dtype=th.int64) if is_discrete else th.zeros(*shape, *self._space.shape)
        self._rewards = np.zeros(shape, dtype=np.float32)
        self._ends = np.zeros((shape[0] + 1, *shape[1:]), dtype=np.float32)
        self._steppers = steppers_of(self._agents)

    def _bounds(self) -> tuple[Any, Any]:
        """Between which actions each agent's environments get them, ``(P, 1, A)`` each; None where all take any."""
        models = [agent.model for agent in self._agents]
        if not isinstance(self._space, spaces.Box) or not any(model.clip_actions for model in models):
            return None, None
        infinite = np.full(self._space.shape, np.inf, dtype=np.float32)
        lows = [model.action_space.low if model.clip_actions else -infinite for model in models]
        highs = [model.action_space.high if model.clip_actions else infinite for model in models]
        return np.stack(lows)[:, None], np.stack(highs)[:, None]

    def collect(self) -> RolloutSamples:
        """One rollout of each agent.

        An agent whose environments give what is not finite gets its ``error`` set; its samples are of no use.
        """
        features = self._features.numpy()
        self._low, self._high = self._bounds()  # each time: a hook may set clip_actions
        for index, agent in enumerate(self._agents):
            agent.model.policy.set_training_mode(False)
            self._set_log_std(index, agent.model)
            self._stack.actions.draw(agent.noise, self._noise[index])
        for stepper in self._steppers:
            stepper.begin(features[0], self._ends[0])
        with th.no_grad():
            for step in range(self._n_steps):
                self._step(step, features)
            for stepper in self._steppers:
                stepper.finish()
            return self._samples()

    def _set_log_std(self, index: int, model: Any) -> None:
        if model.log_std_schedule is not None:
            model._set_log_std(model._progress_remaining())
            self._stack.actions.tensors[0][index, 0] = model.policy.log_std

    def _step(self, step: int, features: np.ndarray) -> None:
        output, _ = self._stack.actor.forward(self._features[step])
        sampled = self._stack.actions.act(output, self._noise[:, step])
        self._actions[step] = sampled
        actions = sampled.numpy()
        if self._low is not None:
            actions = np.minimum(np.maximum(actions, self._low), self._high)
        for stepper in self._steppers:
            stepper.step(actions, features[step + 1], self._rewards[step], self._ends[step + 1])
        for index, agent in enumerate(self._agents):
            if agent.error is not None:  # what it gave must not reach the others' metrics
                features[step + 1, index], self._rewards[step, index] = 0.0, 0.0

    def _samples(self) -> RolloutSamples:
        features = self._flat(self._features[:-1])
        actions = self._flat(self._actions)
        parts = [self._evaluate(rows, actions_of) for rows, actions_of in _in_parts(features, actions)]
        output, log_prob, values = (th.cat(part, dim=1) for part in zip(*parts, strict=True))
        last_values = self._stack.critic.forward(self._features[-1])[0].squeeze(-1)
        by_step = values.view(len(self._agents), self._n_envs, self._n_steps).permute(2, 0, 1)
        advantages = self._flat(th.from_numpy(self._advantages(by_step.numpy(), last_values.numpy())))
        return RolloutSamples(features, actions, output, log_prob, values, advantages, advantages + values)

    def _evaluate(self, features: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        stack = self._stack
        output, _ = stack.actor.forward(features)
        log_prob, _, _ = stack.actions.evaluate(output, actions, stack.actions.leaves())
        return output, log_prob, stack.critic.forward(features)[0].squeeze(-1)

    def _flat(self, tensor: th.Tensor) -> th.Tensor:
        """``(T, P, E, …)`` as ``(P, N, …)``."""
        return tensor.transpose(0, 1).transpose(1, 2).flatten(start_dim=1, end_dim=2).contiguous()

    def _advantages(self, values: np.ndarray, last_values: np.ndarray) -> np.ndarray:
        """GAE of eqs. 11–12, ``(T, P, E)``, in SB3's order of operations."""
        buffers = [agent.model.rollout_buffer for agent in self._agents]
        gamma = np.array([buffer.gamma for buffer in buffers], dtype=np.float32)[:, None]
        decay = np.array([buffer.gamma * buffer.gae_lambda for buffer in buffers], dtype=np.float32)[:, None]
        advantages = np.zeros_like(self._rewards)
        goes_on = 1.0 - self._ends[1:]
        last: Any = 0
        next_values = last_values
        for step in reversed(range(self._n_steps)):
            delta = self._rewards[step] + gamma * next_values * goes_on[step] - values[step]
            last = delta + decay * goes_on[step] * last
            advantages[step] = last
            next_values = values[step]
        return advantages


def _in_parts(*tensors: th.Tensor) -> list[tuple[th.Tensor, ...]]:
    """Tensors ``(P, N, …)`` in parts of so many samples of each agent as one agent alone takes at a time."""
    return list(zip(*(tensor.split(EVALUATION_ROWS, dim=1) for tensor in tensors), strict=True))
