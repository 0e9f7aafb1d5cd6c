"""The parameters of several agents as one stack, taken out of their models and written back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_ppo_variants.many.actions import stacked_actions
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.hooks import refusal
from sb3_ppo_variants.many.networks import StackedPerceptron
from sb3_ppo_variants.many.optimizer import StackedAdam


class Stack:
    """Networks, action distributions and optimisers of several agents.

    :param agents: of one shape (see ``shapes.py``); the stack begins as their models and optimisers are
    """

    def __init__(self, agents: Sequence[Agent]):
        self.agents = list(agents)
        models = [agent.model for agent in agents]
        self.actor = StackedPerceptron([actor_layers(model) for model in models])
        self.critic = StackedPerceptron([critic_layers(model) for model in models])
        self.actions = stacked_actions(models)
        tensors = [*self.actor.tensors, *self.critic.tensors, *self.actions.tensors]
        gradients = [*self.actor.gradients, *self.critic.gradients, *self.actions.gradients]
        self.optimizer = StackedAdam(tensors, gradients)
        n_actor, n_critic = len(self.actor.tensors), len(self.critic.tensors)
        self.value_part = range(n_actor, n_actor + n_critic)
        """which of the optimiser's tensors are the value function's"""
        self.policy_part = [index for index in range(len(tensors)) if index not in self.value_part]
        """which are the policy's"""
        self._tensors = tensors
        self._learned = [_learned(model) for model in models]
        for index in range(len(agents)):
            self._load_moments(index)

    def _load_moments(self, index: int) -> None:
        model = self.agents[index].model
        first, second = (
            self._parts(index, self.optimizer.first_moments),
            self._parts(index, self.optimizer.second_moments),
        )
        for place, (parameter, *parts) in enumerate(zip(_parameters(model), first, second, strict=True)):
            state = model.policy.optimizer.state.get(parameter)
            for part, name in zip(parts, ("exp_avg", "exp_avg_sq"), strict=True):
                part.copy_(state[name]) if state else part.zero_()
            self.optimizer.counts[index, place] = int(state["step"]) if state else 0

    @th.no_grad()
    def load(self, index: int, hook: str) -> None:
        """Take an agent's weights, and its optimiser's state, as a hook has left them in its model.

        :raises ValueError: if it has put other parameters there, or changed which of them learn
        """
        model = self.agents[index].model
        if _learned(model) != self._learned[index]:
            raise refusal(type(model), hook, "replaces parameters of self.policy, or changes which of them learn")
        for parameter, part in zip(_parameters(model), self._parts(index, self._tensors), strict=True):
            part.copy_(parameter)
        self._load_moments(index)

    @th.no_grad()
    def store(self, index: int) -> None:
        """Write an agent's weights, and its optimiser's state, back into its model."""
        model, counts = self.agents[index].model, self.optimizer.counts[index].tolist()
        parts = [self._parts(index, each) for each in (self._tensors, self.optimizer.first_moments)]
        parts.append(self._parts(index, self.optimizer.second_moments))
        for parameter, count, value, first, second in zip(_parameters(model), counts, *parts, strict=True):
            parameter.copy_(value)
            if not count or not parameter.requires_grad:
                continue
            state = model.policy.optimizer.state[parameter]
            if not state:
                state["step"] = th.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameter), th.zeros_like(parameter)
            state["step"].fill_(count)
            state["exp_avg"].copy_(first)
            state["exp_avg_sq"].copy_(second)

    def is_finite(self) -> list[bool]:
        """Whether each agent's weights are free of NaN and infinity."""
        finite = [tensor.isfinite().flatten(start_dim=1).all(dim=1) for tensor in self._tensors]
        flags: list[bool] = th.stack(finite).all(dim=0).tolist()
        return flags

    def _parts(self, index: int, tensors: Sequence[th.Tensor]) -> list[th.Tensor]:
        n_actor, n_critic = len(self.actor.tensors), len(self.critic.tensors)
        actor, critic, rest = tensors[:n_actor], tensors[n_actor : n_actor + n_critic], tensors[n_actor + n_critic :]
        parts = self.actor.parts_of(index, actor) + self.critic.parts_of(index, critic)
        return [*parts, *(tensor[index, 0] for tensor in rest)]


def actor_layers(model: Any) -> list[nn.Module]:
    """The modules between the features and the action distribution's parameters."""
    return [*model.policy.mlp_extractor.policy_net, model.policy.action_net]


def critic_layers(model: Any) -> list[nn.Module]:
    """The modules between the features and V(s)."""
    return [*model.policy.mlp_extractor.value_net, model.policy.value_net]


def _parameters(model: Any) -> list[nn.Parameter]:
    """A model's parameters in the order of a stack's tensors."""
    layers: list[Any] = [*actor_layers(model)[::2], *critic_layers(model)[::2]]
    log_std = [model.policy.log_std] if hasattr(model.policy, "log_std") else []
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)] + log_std


def _learned(model: Any) -> list[tuple[int, bool]]:
    """Which parameters there are, and whether each learns."""
    return [(id(parameter), parameter.requires_grad) for parameter in _parameters(model)]
