"""``compile=True``: the loss and its gradient as one compiled function."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_ppo_variants.distributions import ActionDistribution
from sb3_ppo_variants.evaluation import CalledPolicy, Evaluation, StockMlp, StockPolicy

Terms = dict[str, th.Tensor]
LossOf = Callable[[Evaluation, Any, "ActionDistribution | None", Any], Terms]


class CompilationError(RuntimeError):
    """The loss could not be compiled."""


class CompiledLoss:
    """The terms of the loss of a minibatch and, in the parameters' ``grad``, the loss's gradient.

    For a :class:`StockMlp` the whole gradient is one compiled function without autograd; it sees the policy only
    through the minibatch, so an objective must not read the policy's parameters by another way. Other stock
    policies are compiled with autograd.

    :param evaluator: evaluates the policy
    :param loss_of: computes the terms from an evaluation, the samples, π_old and the update's constants; the
        term ``"loss"`` is the one to differentiate
    """

    def __init__(self, evaluator: StockPolicy, loss_of: LossOf):
        self.evaluator = evaluator
        self._key = _key_of(evaluator)
        self._loss_of = loss_of
        is_mlp = isinstance(evaluator, StockMlp)
        function: Callable[..., Any] = self._with_gradients if is_mlp else self._with_autograd
        self._compiled: Callable[..., Any] = th.compile(function, dynamic=False, fullgraph=True)

    def serves(self, evaluator: CalledPolicy) -> bool:
        """Whether it is compiled for just this policy: the same parameters, the same of them learned."""
        return self._key == _key_of(evaluator)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the algorithm compiles its own: functions are not copied

    def differentiate(
        self, samples: RolloutBufferSamples, old_distribution: ActionDistribution | None, constants: Any
    ) -> Terms:
        """Add the gradient to the parameters' ``grad`` and return the terms, detached.

        :raises CompilationError: if the objective cannot be compiled, or not again for yet another value of an
            attribute that it reads
        """
        # Outside the graph: a one-hot encoding cannot be traced.
        read = self.evaluator.features(samples.observations) if isinstance(self.evaluator, StockMlp) else None
        try:
            terms, gradients = self._compiled(read, samples, old_distribution, constants)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # takes a second to import, and is loaded by now

            if not isinstance(error, TorchDynamoException):
                raise
            raise CompilationError(_first_line(error)) from error
        if gradients is None:
            terms["loss"].backward()
            return {name: term.detach() for name, term in terms.items()}
        evaluator: Any = self.evaluator
        n_actor = len(evaluator.actor.parameters())
        n_critic = len(evaluator.critic.parameters())
        evaluator.actor.accumulate(gradients[:n_actor])
        evaluator.critic.accumulate(gradients[n_actor : n_actor + n_critic])
        if len(gradients) > n_actor + n_critic:
            evaluator.policy.log_std.grad = gradients[-1]
        return terms

    def _with_autograd(self, _: None, samples: Any, old_distribution: Any, constants: Any) -> tuple[Terms, None]:
        evaluation = self.evaluator.evaluate(samples.observations, samples.actions, True)
        return self._loss_of(evaluation, samples, old_distribution, constants), None

    @th.no_grad()
    def _with_gradients(
        self, features: th.Tensor, samples: Any, old_distribution: Any, constants: Any
    ) -> tuple[Terms, list[th.Tensor]]:
        evaluator: Any = self.evaluator
        output, actor_inputs = evaluator.actor.forward(features)
        values, critic_inputs = evaluator.critic.forward(features)
        log_std = getattr(evaluator.policy, "log_std", None)
        leaves = [output, values.flatten()]
        if log_std is not None and log_std.requires_grad:
            leaves.append(log_std)

        def loss(*leaves: th.Tensor) -> tuple[th.Tensor, Terms]:
            evaluation = evaluator.evaluate_outputs(leaves[0], leaves[1], None, samples.actions, *leaves[2:])
            terms = self._loss_of(evaluation, samples, old_distribution, constants)
            return terms["loss"], terms

        by_output, terms = th.func.grad(loss, argnums=tuple(range(len(leaves))), has_aux=True)(*leaves)
        gradients = evaluator.actor.gradients(actor_inputs, by_output[0])
        gradients += evaluator.critic.gradients(critic_inputs, by_output[1].unsqueeze(1))
        return terms, [*gradients, *by_output[2:]]


def compiler_problem() -> str | None:
    """Why nothing can be compiled on this machine, in words; None where a trial compilation works."""
    try:
        th.compile(lambda x: x * 2 + 1)(th.zeros(2))
    except Exception as error:  # whatever the toolchain says: a missing compiler, headers, a read-only cache
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _key_of(evaluator: CalledPolicy) -> tuple[Any, ...]:
    parameters = evaluator.policy.parameters()
    # The evaluator that is compiled keeps its parameters alive, so that no other can have the id of one of them.
    return type(evaluator), *((id(parameter), parameter.requires_grad) for parameter in parameters)


def warn_uncompiled(reason: str) -> None:
    """Say that ``compile=True`` was asked for and what runs in its place."""
    warnings.warn(f"compile=True has no effect, updates run uncompiled: {reason}", stacklevel=2)
