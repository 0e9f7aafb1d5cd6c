"""Which agents of a stack share a surrogate, and that surrogate for all of them at a time.

Shapes: ``P`` agents of the stack, ``G`` of a group; ``M`` samples of a minibatch, ``K`` minibatches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch as th

from sb3_ppo_variants.many.hooks import NeedsOwnCallError, guarded, is_users
from sb3_ppo_variants.on_policy import Minibatch, UpdateConstants
from sb3_ppo_variants.ppo_clip import PPOClipPaper
from sb3_ppo_variants.ppo_kl_penalty import PPOAdaptiveKLPaper
from sb3_ppo_variants.ppo_unclipped import PPOUnclippedPaper
from sb3_ppo_variants.resume.state import MADE_ANEW, settings_of
from sb3_ppo_variants.vanilla_pg import VanillaPGPaper

# Arguments of which each agent of a group has its own: none of them is read by an objective but through the minibatch.
_OF_EACH_AGENT = frozenset(
    {
        "advantage_estimator",
        "beta",
        "beta_init",
        "bootstrap_on_timeout",
        "clip_actions",
        "clip_range",
        "clip_range_vf",
        "ent_coef",
        "gae_lambda",
        "gamma",
        "kl_target",
        "learning_rate",
        "log_std_schedule",
        "max_grad_norm",
        "normalize_advantage",
        "policy_kwargs",
        "stats_window_size",
        "stepsize_bounds",
        "stepsize_kl_target",
        "target_kl",
        "vf_coef",
        "weight_init",
    }
)
# What a model's run changes, and what it is made of: the package's objectives read none of it but through the
# minibatch. A user's hook that reads of it what is not the same for all is called for each agent by itself.
_OF_EACH_RUN = frozenset(
    {
        "_compiled",
        "_episode_num",
        "_logger",
        "_n_updates",
        "_vec_normalize_env",
        "action_noise",
        "action_space",
        "device",
        "env",
        "ep_info_buffer",
        "ep_success_buffer",
        "lr_schedule",
        "observation_space",
        "policy",
        "rollout_buffer",
        "seed",
        "stepsize_factor",
        "tensorboard_log",
        *MADE_ANEW,
    }
)
# Objectives that treat (G, M) as (M,), given coefficients (G, 1); any other is mapped over the agents.
_ELEMENTWISE: frozenset[Any] = frozenset(
    {PPOClipPaper.objective, PPOAdaptiveKLPaper.objective, PPOUnclippedPaper.objective, VanillaPGPaper.objective}
)
# What the minibatches of an update tell an objective, beside the constants.
_FIELDS = {
    "features": "observations",
    "actions": "actions",
    "advantages": "advantages",
    "returns": "returns",
    "old_values": "old_values",
    "old_log_prob": "old_log_prob",
    "values": "values",
    "log_prob": "log_prob",
    "entropy": "entropy",
    "ratio": "ratio",
    "kl": "kl",
}


class Group:
    """Agents of one class that differ in nothing but numbers that the minibatch tells; of a user's class, in nothing.

    :param indices: of the agents in the stack
    :param models: theirs
    :param constants: of this update
    """

    def __init__(self, indices: list[int], models: Sequence[Any], constants: Sequence[UpdateConstants]):
        self.indices = indices
        is_run = indices == list(range(indices[0], indices[-1] + 1))
        self._rows: Any = slice(indices[0], indices[-1] + 1) if is_run else th.tensor(indices)
        self._members = list(zip(indices, models, constants, strict=True))
        self._apart: list[Group] = []
        """a group of each agent, once it is known that a hook has to be called for each by itself"""
        self._model = models[0]
        self._in_objective = guarded(models, "objective", _OF_EACH_RUN)
        self._in_metrics = guarded(models, "minibatch_metrics", _OF_EACH_RUN)
        self.needs_kl: bool = self._model.needs_kl
        self._constants: dict[str, th.Tensor] = {}
        if constants[0].clip_range is not None:
            self._constants["clip_range"] = _tensor([each.clip_range for each in constants])
        self._zeros: dict[str, float] = {}
        for name, value in constants[0].coefficients.items():
            if value == 0:
                self._zeros[name] = 0.0
            else:
                self._constants[name] = _tensor([each.coefficients[name] for each in constants])

    def objective(self, fields: Mapping[str, th.Tensor]) -> th.Tensor:
        """The objective of each sample, ``(G, M)``.

        :param fields: of the whole stack's minibatch, ``(P, M, …)``
        """
        results = self._results(Group._objective, fields)
        return results[0] if len(results) == 1 else th.cat(results)

    def _results(
        self, method: Callable[[Group, Mapping[str, th.Tensor]], Any], fields: Mapping[str, th.Tensor]
    ) -> list[Any]:
        """What a method gives for the group, or for each agent where a hook needs that."""
        if not self._apart:
            try:
                return [method(self, fields)]
            except NeedsOwnCallError:
                self._apart = [Group([index], [model], [each]) for index, model, each in self._members]
        return [method(each, fields) for each in self._apart]

    def _objective(self, fields: Mapping[str, th.Tensor]) -> th.Tensor:
        fields = {name: fields[name][self._rows] for name in self._names(fields)}
        if type(self._model).objective in _ELEMENTWISE:
            columns = {name: value.unsqueeze(1) for name, value in self._constants.items()}
            return self._model.objective(self._minibatch(fields, columns))
        mapped = th.func.vmap(lambda *each: self._model.objective(self._minibatch(*each)))
        with self._in_objective:
            objective: th.Tensor = mapped(fields, self._constants)
        return objective

    def metrics(self, fields: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """The algorithm's own metrics of each minibatch, ``(K, G)`` by name.

        :param fields: of ``K`` minibatches of the whole stack, ``(K, P, M, …)``
        """
        results = self._results(Group._metrics, fields)
        if len(results) == 1:
            return results[0]
        return {name: th.cat([each[name] for each in results], dim=1) for name in results[0]}

    def _metrics(self, fields: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        fields = {name: fields[name][:, self._rows] for name in self._names(fields)}

        def metrics(*each: Any) -> dict[str, th.Tensor]:
            return self._model.minibatch_metrics(self._minibatch(*each))

        with self._in_metrics:
            mapped = th.func.vmap(th.func.vmap(metrics), in_dims=(0, None))
            found: dict[str, th.Tensor] = mapped(fields, self._constants)
        return found

    def _names(self, fields: Mapping[str, th.Tensor]) -> list[str]:
        return [name for name in _FIELDS if name in fields and (name != "kl" or self.needs_kl)]

    def _minibatch(self, fields: Mapping[str, th.Tensor], constants: Mapping[str, th.Tensor]) -> Minibatch:
        values: dict[str, Any] = {_FIELDS[name]: field for name, field in fields.items()}
        coefficients: dict[str, Any] = {
            **self._zeros,
            **{name: value for name, value in constants.items() if name != "clip_range"},
        }
        values.setdefault("kl", None)
        return Minibatch(**values, clip_range=constants.get("clip_range"), coefficients=coefficients)


def groups_of(models: Sequence[Any], constants: Sequence[UpdateConstants]) -> list[Group]:
    """The groups of a stack's agents in this update; a coefficient of 0 makes a group of its own, being a term that
    is off."""
    members: dict[Any, list[int]] = {}
    for index, (model, each) in enumerate(zip(models, constants, strict=True)):
        off = tuple(sorted((name, value == 0) for name, value in each.coefficients.items()))
        members.setdefault((group_key(model), each.clip_range is None, off), []).append(index)
    return [
        Group(indices, [models[index] for index in indices], [constants[index] for index in indices])
        for indices in members.values()
    ]


def group_key(model: Any) -> tuple[Any, ...]:
    """What the models of a group have in common."""
    settings: dict[str, Any] = settings_of(model)
    if not is_users(type(model)):
        settings = {name: value for name, value in settings.items() if name not in _OF_EACH_AGENT}
    else:  # a user's objective may read any attribute, and is called with one model's
        settings |= {name: _identity(value) for name, value in vars(model).items() if _may_be_read(name, value)}
    return type(model), tuple(sorted((name, repr(value)) for name, value in settings.items()))


def _may_be_read(name: str, value: Any) -> bool:
    """Whether a user's objective may read an attribute of which the settings do not tell enough."""
    return name not in _OF_EACH_RUN and not (name in _OF_EACH_AGENT and callable(value))


def _identity(value: Any) -> Any:
    """What tells a value from others: itself, or where it lies in memory."""
    if isinstance(value, (tuple, list)):
        return [_identity(each) for each in value]
    if isinstance(value, dict):
        return {name: _identity(each) for name, each in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)


def in_order(groups: Sequence[Group]) -> Callable[[th.Tensor], th.Tensor]:
    """What puts values of the groups' agents, ``(P, …)`` one group after the other, into the order of the stack."""
    indices = [index for group in groups for index in group.indices]
    if indices == sorted(indices):
        return lambda values: values
    inverse = th.tensor(indices).argsort()
    return lambda values: values.index_select(0, inverse)


def _tensor(values: Sequence[Any]) -> th.Tensor:
    return th.tensor([float(value) for value in values])
