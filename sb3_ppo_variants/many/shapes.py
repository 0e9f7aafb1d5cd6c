"""What can be stacked: each refusal is one sentence that names the agent and the setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants.evaluation import StockMlp, evaluator_of
from sb3_ppo_variants.many.agent import Agent
from sb3_ppo_variants.many.stack import actor_layers, critic_layers
from sb3_ppo_variants.on_policy import PaperOnPolicyAlgorithm
from sb3_ppo_variants.vanilla_pg import MONTE_CARLO, VanillaPGPaper

# What the engine does in an algorithm's place; a variant with its own would not be what it is.
_DONE_IN_ITS_PLACE = (
    "collect_rollouts",
    "learn",
    "train",
    "_act",
    "_adapt_stepsize",
    "_check_for_divergence",
    "_clip_and_step",
    "_collect",
    "_differentiate",
    "_evaluator",
    "_loss_terms",
    "_minibatch",
    "_prepare",
    "_read_rollout",
    "_run_epoch",
    "_run_epochs",
    "_standardize",
    "_step",
    "_to_environment",
    "_value_loss",
)
# For variants of VanillaPGPaper, which has two more.
_DONE_IN_ITS_PLACE_OF_VANILLA_PG = (*_DONE_IN_ITS_PLACE, "_policy_step", "_value_step")

# Arguments, and the reason where there is something to explain.
_MUST_BE_FALSE = {"compile": "", "mirror_symmetry": "", "use_sde": ": gSDE's noise cannot be stacked"}


def require_stackable(agents: Sequence[Agent]) -> None:
    """Check that the agents can be trained as one stack.

    :raises ValueError: if not
    """
    for agent in agents:
        reason = reason_against(agent.model)
        if reason is not None:
            raise ValueError(f"train_many cannot take {agent.name}: {reason}")
    first = _shape(agents[0].model)
    for agent in agents[1:]:
        for name, value in _shape(agent.model).items():
            if value != first[name]:
                raise ValueError(
                    f"{name} must be the same for all agents of train_many: it is {first[name]} for {agents[0].name} "
                    f"and {value} for {agent.name}"
                )
    owners: dict[int, str] = {}
    for agent in agents:
        env = agent.model.env.unwrapped
        if id(env) in owners:
            raise ValueError(f"env must make environments anew for each agent: {agent.name} got {owners[id(env)]}'s")
        owners[id(env)] = agent.name


def reason_against(model: Any) -> str | None:
    """Why a model is for no stack, as a sentence; None where it can be stacked with others of its shape."""
    reason = _reason_against_class(type(model)) or _reason_against_settings(model)
    if reason is not None:
        return reason
    if model.device.type != "cpu":
        return f"device must be 'cpu'; got {str(model.device)!r}"
    if type(model.rollout_buffer) is not RolloutBuffer:
        return f"rollout_buffer_class must be None; got {type(model.rollout_buffer).__name__}"
    if not isinstance(model.action_space, (spaces.Box, spaces.Discrete)):
        return f"the action space must be a Box or Discrete; got {model.action_space}"
    if type(evaluator_of(model.policy, exact_rounding=False)) is not StockMlp:
        return (
            f"policy must be 'MlpPolicy' with SB3's own networks of tanh or ReLU layers, the value function's apart "
            f"from the policy's; got {type(model.policy).__name__}"
        )
    return _reason_against_optimizer(model.policy.optimizer)


def _reason_against_class(kind: type) -> str | None:
    base, names = (
        (VanillaPGPaper, _DONE_IN_ITS_PLACE_OF_VANILLA_PG)
        if issubclass(kind, VanillaPGPaper)
        else (PaperOnPolicyAlgorithm, _DONE_IN_ITS_PLACE)
    )
    replaced = [name for name in names if getattr(kind, name) is not getattr(base, name)]
    return f"{kind.__name__} has a {replaced[0]} of its own, which the stack would not call" if replaced else None


def _reason_against_settings(model: Any) -> str | None:
    for name, why in _MUST_BE_FALSE.items():
        if getattr(model, name):
            return f"{name} must be False{why}"
    if isinstance(model, VanillaPGPaper) and model.advantage_estimator in MONTE_CARLO:
        return (
            f"advantage_estimator must be 'gae' or 'td', whose rollouts are all of one size; "
            f"got {model.advantage_estimator!r}"
        )
    return None


def _reason_against_optimizer(optimizer: th.optim.Optimizer) -> str | None:
    groups: list[dict[str, Any]] = optimizer.param_groups
    if type(optimizer) is not th.optim.Adam:
        return f"policy_kwargs: optimizer_class must be Adam; got {type(optimizer).__name__}"
    special = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
    for name in special:
        if any(group.get(name) for group in groups):
            return f"policy_kwargs: optimizer_kwargs must leave {name} as it is"
    return None


def _shape(model: Any) -> dict[str, Any]:
    """What must be the same for all, by name."""
    space = model.observation_space
    return {
        "the update": "VanillaPGPaper's" if isinstance(model, VanillaPGPaper) else "PPO's",
        "n_steps": model.n_steps,
        "n_envs": model.n_envs,
        "batch_size": model.batch_size,
        "n_epochs": model.n_epochs,
        "the observation space": f"{type(space).__name__}{space.shape}",
        "the number of features": model.policy.features_dim,
        "the action space": _kind(model.action_space),
        "net_arch": {"pi": _units(actor_layers(model)), "vf": _units(critic_layers(model))},
        "activation_fn": model.policy.activation_fn.__name__,
    }


def _kind(space: spaces.Space[Any]) -> str:
    return f"Discrete({space.n})" if isinstance(space, spaces.Discrete) else f"Box{space.shape}"


def _units(layers: Sequence[Any]) -> list[int]:
    return [layer.out_features for layer in layers[:-1:2]]
