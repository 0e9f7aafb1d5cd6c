"""The optimiser's part of a minibatch step: Adam as one fused kernel where PyTorch has it."""

from __future__ import annotations

from typing import Any

import torch as th
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


def prefer_fused(optimizer: th.optim.Optimizer) -> None:
    """Let Adam and AdamW step by one fused kernel (equal to the other implementations up to rounding).

    An optimiser whose ``fused`` or ``foreach`` was chosen, and any other class, is left as it is.
    """
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW):
        return
    for group in optimizer.param_groups:
        is_open = group["fused"] is None and group["foreach"] is None
        if is_open and all(_can_fuse(parameter) for parameter in group["params"]):
            group["fused"] = True
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if "step" in state:  # an unfused optimiser, whose state was restored, keeps it on the CPU
                    state["step"] = state["step"].to(parameter.device)


def is_fused(optimizer: th.optim.Optimizer) -> bool:
    """Whether the optimiser steps by a fused kernel."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _can_fuse(parameter: th.Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()


class OptimizerSteps:
    """The steps of one update, by the optimiser's own methods.

    :param optimizer: any optimiser
    """

    def __init__(self, optimizer: th.optim.Optimizer):
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad()

    def step(self) -> None:
        """One step on the gradients as they are."""
        self.optimizer.step()

    def finish(self) -> None:
        """To be called after the last step of the update."""


class FusedAdamSteps(OptimizerSteps):
    """The same for fused Adam: calls the kernel that its ``step`` calls, on lists that are made once an update.

    That bookkeeping otherwise takes four times as long as the kernel, where networks are small.
    """

    def __init__(self, optimizer: th.optim.Optimizer):
        super().__init__(optimizer)
        group: Any = optimizer.param_groups[0]
        # The parameters that learn: the others never had a gradient, and have no state.
        self._parameters = [parameter for parameter in group["params"] if optimizer.state.get(parameter)]
        states = [optimizer.state[parameter] for parameter in self._parameters]
        self._first_moments = [state["exp_avg"] for state in states]
        self._second_moments = [state["exp_avg_sq"] for state in states]
        self._counts = [state["step"] for state in states]
        self._count = self._counts[0].clone()  # one for all, until finish()
        self._shared_counts = [self._count] * len(states)
        self._is_plain = False
        self._settings = {
            "lr": group["lr"],
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "weight_decay": group["weight_decay"],
            "eps": group["eps"],
            "amsgrad": False,
            "maximize": False,
        }

    @classmethod
    def can_take(cls, optimizer: th.optim.Optimizer) -> bool:
        """Whether it does what ``optimizer.step()`` would do: a plain fused Adam, past its first step, no hooks."""
        if type(optimizer) is not th.optim.Adam or "step" in vars(optimizer) or len(optimizer.param_groups) != 1:
            return False
        group = optimizer.param_groups[0]
        special = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
        hooks: Any = (
            optimizer._optimizer_step_pre_hooks,
            optimizer._optimizer_step_post_hooks,
            _global_optimizer_pre_hooks,
            _global_optimizer_post_hooks,
        )
        if not group["fused"] or any(group.get(name) for name in special) or any(hooks):
            return False
        states = [optimizer.state.get(parameter) for parameter in group["params"] if parameter.requires_grad]
        counts = {float(state["step"]) for state in states if state}
        return bool(states) and all(states) and len(counts) == 1

    def zero_grad(self) -> None:
        """As the base class's."""
        if self._is_plain:
            super().zero_grad()
        for parameter in self._parameters:
            parameter.grad = None

    @th.no_grad()
    def step(self) -> None:
        """As the base class's."""
        gradients = [parameter.grad for parameter in self._parameters]
        # A parameter that has learned and does no longer (frozen, or its term switched off) is left out by the
        # optimiser's own step, and from then on has a count of its own.
        if self._is_plain or any(gradient is None for gradient in gradients):
            self.finish()
            self._is_plain = True
            super().step()
            return
        self._count.add_(1)
        th._fused_adam_(
            self._parameters,
            gradients,
            self._first_moments,
            self._second_moments,
            [],
            self._shared_counts,
            **self._settings,
        )

    def finish(self) -> None:
        """As the base class's: writes the number of steps back into the optimiser's state."""
        if not self._is_plain:
            for count in self._counts:
                count.copy_(self._count)


def steps_of(optimizer: th.optim.Optimizer) -> OptimizerSteps:
    """The fastest way to make an update's steps that does what ``optimizer.step()`` does."""
    return FusedAdamSteps(optimizer) if FusedAdamSteps.can_take(optimizer) else OptimizerSteps(optimizer)
