"""How a policy is evaluated: SB3's stock policies by closed forms and explicit passes, a user's own by its methods.

SB3's ``ActorCriticPolicy`` builds distribution objects and validates them at every call. For the policies that
leave its methods alone, :class:`StockPolicy` computes the same numbers from the networks' outputs, and
:class:`StockMlp` also runs the multilayer perceptrons and their gradients itself, without autograd. Whatever a
subclass overrides is called: then :class:`CalledPolicy` serves.

Shapes: ``M`` samples, ``A`` action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_ppo_variants.distributions import FAMILIES, ActionDistribution, Bernoulli, Categorical, Gaussian, from_sb3

# What the closed forms stand for: a policy that overrides any of these is called.
_STOCK_METHODS = (
    "evaluate_actions",
    "extract_features",
    "forward",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
)


# Below so many elements PyTorch's own tanh, one call in place of three, is the faster one.
FEW_ELEMENTS = 1024


class Evaluation(NamedTuple):
    """``M`` actions evaluated under a policy."""

    values: th.Tensor
    """V(s), ``(M,)``"""
    log_prob: th.Tensor
    """log π(a|s), ``(M,)``"""
    entropy: th.Tensor | None
    """S[π](s) in nats, ``(M,)``; None where it has no closed form"""
    distribution: ActionDistribution | None
    """π(·|s); None where nobody asked for it"""


class CalledPolicy:
    """A policy evaluated by its own methods, whatever they are."""

    exact_rounding = True

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy

    def evaluate(self, observations: PyTorchObs, actions: th.Tensor, with_distribution: bool) -> Evaluation:
        """Evaluate ``actions``, with gradients, as ``policy.evaluate_actions`` does.

        :param observations: ``(M, *obs_shape)`` or a dict of such
        :param actions: ``(M,)`` for a Discrete space, else ``(M, A)``
        :param with_distribution: whether the distributions are wanted too
        """
        values, log_prob, entropy = self.policy.evaluate_actions(observations, actions)
        distribution = self.distribution(observations) if with_distribution else None
        return Evaluation(values.flatten(), log_prob, entropy, distribution)

    def backward(self, loss: th.Tensor) -> None:
        """Add the gradient of ``loss``, a scalar computed from the last evaluation, to the parameters' ``grad``."""
        loss.backward()

    def act(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Sample actions: ``(M, *action_shape)``, with V(s) ``(M, 1)`` and log π(a|s) ``(M,)``."""
        return self.policy(observations)

    def distribution(self, observations: PyTorchObs) -> ActionDistribution:
        """π(·|s) at ``observations``.

        :raises TypeError: where the policy's distribution is none of SB3's
        """
        return from_sb3(self.policy.get_distribution(observations))


class StockPolicy(CalledPolicy):
    """A policy whose methods are SB3's: distributions by closed forms, networks through autograd.

    :param exact_rounding: whether every number is SB3's bit for bit, or may differ from it by rounding
    """

    def __init__(self, policy: ActorCriticPolicy, exact_rounding: bool):
        super().__init__(policy)
        self.exact_rounding = exact_rounding

    def evaluate(self, observations: PyTorchObs, actions: th.Tensor, with_distribution: bool) -> Evaluation:
        """As :meth:`CalledPolicy.evaluate`; the distributions cost nothing here."""
        latent_pi, latent_vf = self._latents(observations)
        return self.evaluate_outputs(
            self.policy.action_net(latent_pi), self.policy.value_net(latent_vf).flatten(), latent_pi, actions
        )

    def act(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """As :meth:`CalledPolicy.act`, with the same draws."""
        if self.policy.use_sde:  # its noise belongs to the distribution object
            return self.policy(observations)
        output, values = self._outputs(observations)
        actions, log_prob = self._distribution(output, None).sample(self.exact_rounding)
        return actions.reshape((-1, *self.policy.action_space.shape)), values, log_prob  # type: ignore[misc]

    def distribution(self, observations: PyTorchObs) -> ActionDistribution:
        """As :meth:`CalledPolicy.distribution`."""
        features = BaseModel.extract_features(self.policy, observations, self.policy.pi_features_extractor)
        latent_pi = self.policy.mlp_extractor.forward_actor(features)
        return self._distribution(self.policy.action_net(latent_pi), latent_pi)

    def _latents(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        features = self.policy.extract_features(observations)
        if self.policy.share_features_extractor:
            return self.policy.mlp_extractor(features)
        pi_features, vf_features = features
        extractor = self.policy.mlp_extractor
        return extractor.forward_actor(pi_features), extractor.forward_critic(vf_features)

    def _outputs(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """The action network's output and V(s) ``(M, 1)``."""
        latent_pi, latent_vf = self._latents(observations)
        return self.policy.action_net(latent_pi), self.policy.value_net(latent_vf)

    def evaluate_outputs(
        self,
        output: th.Tensor,
        values: th.Tensor,
        latent_pi: th.Tensor | None,
        actions: th.Tensor,
        log_std: th.Tensor | None = None,
    ) -> Evaluation:
        """Evaluate ``actions`` from the networks' outputs.

        :param output: of the action network, ``(M, n_out)``
        :param values: V(s), ``(M,)``
        :param latent_pi: the layer before the action network's output, which gSDE reads
        :param actions: as in :meth:`evaluate`
        :param log_std: stands in for the policy's own
        """
        distribution = self._distribution(output, latent_pi, log_std)
        bijector = getattr(self.policy.action_dist, "bijector", None)
        if bijector is None:
            return Evaluation(values, *distribution.log_prob_and_entropy(actions), distribution)
        unsquashed = bijector.inverse(actions)
        log_prob, _ = distribution.log_prob_and_entropy(unsquashed)
        log_prob = log_prob - bijector.log_prob_correction(unsquashed).sum(dim=1)
        return Evaluation(values, log_prob, None, distribution)

    def _distribution(
        self, output: th.Tensor, latent_pi: th.Tensor | None, log_std: th.Tensor | None = None
    ) -> ActionDistribution:
        """π(·|s) from the action network's output; gSDE also reads the layer before it."""
        noise: Any = self.policy.action_dist
        if isinstance(noise, DiagGaussianDistribution):
            return Gaussian(output, (self.policy.log_std if log_std is None else log_std).exp())
        if isinstance(noise, StateDependentNoiseDistribution):
            assert latent_pi is not None
            latent = latent_pi if noise.learn_features else latent_pi.detach()
            variance = th.mm(latent**2, noise.get_std(self.policy.log_std) ** 2)
            return Gaussian(output, th.sqrt(variance + noise.epsilon))
        if isinstance(noise, CategoricalDistribution):
            return Categorical.from_output(output, [noise.action_dim])
        if isinstance(noise, MultiCategoricalDistribution):
            return Categorical.from_output(output, list(noise.action_dims))
        return Bernoulli(output)


class StockMlp(StockPolicy):
    """SB3's two separate multilayer perceptrons, their forward and backward passes written out.

    Only what follows the two networks' outputs goes through autograd. The passes make the products that autograd
    would make, so the gradients are the same bit for bit; the hidden layers' memory is used again for every
    minibatch of an update.

    :param exact_rounding: whether tanh is rounded as PyTorch's, or computed five times as fast, within 2e-7 of it
    """

    def __init__(self, policy: ActorCriticPolicy, exact_rounding: bool):
        super().__init__(policy, exact_rounding)
        extractor = policy.mlp_extractor
        self.actor = Perceptron([*extractor.policy_net, policy.action_net], exact_rounding)
        self.critic = Perceptron([*extractor.value_net, policy.value_net], exact_rounding)
        space = policy.observation_space
        # What SB3's preprocessing leaves as it is.
        self._reads_as_is = isinstance(space, spaces.Box) and len(space.shape) == 1
        self._last: tuple[list[th.Tensor], list[th.Tensor], th.Tensor, th.Tensor] | None = None

    def evaluate(self, observations: PyTorchObs, actions: th.Tensor, with_distribution: bool) -> Evaluation:
        """As :meth:`StockPolicy.evaluate`. The next evaluation of as many samples uses the memory again."""
        with th.no_grad():
            features = self.features(observations)
            output, actor_inputs = self.actor.forward(features, reuse=True)
            values, critic_inputs = self.critic.forward(features, reuse=True)
            values = values.flatten()
        self._last = (actor_inputs, critic_inputs, output.requires_grad_(), values.requires_grad_())
        return self.evaluate_outputs(output, values, None, actions)

    def backward(self, loss: th.Tensor) -> None:
        """As :meth:`CalledPolicy.backward`."""
        loss.backward()
        assert self._last is not None
        actor_inputs, critic_inputs, output, values = self._last
        with th.no_grad():
            if output.grad is not None:
                self.actor.accumulate(self.actor.gradients(actor_inputs, output.grad, reuse=True))
            if values.grad is not None:
                self.critic.accumulate(self.critic.gradients(critic_inputs, values.grad.unsqueeze(1), reuse=True))

    def distribution(self, observations: PyTorchObs) -> ActionDistribution:
        """As :meth:`StockPolicy.distribution`, without gradients."""
        with th.no_grad():
            return self._distribution(self.actor.forward(self.features(observations))[0], None)

    def features(self, observations: PyTorchObs) -> th.Tensor:
        """The observations as the networks read them, ``(M, n_in)``; nothing in here is learned."""
        if self._reads_as_is and isinstance(observations, th.Tensor) and observations.dtype is th.float32:
            return observations
        return BaseModel.extract_features(self.policy, observations, self.policy.features_extractor)

    def _outputs(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        features = self.features(observations)
        return self.actor.forward(features)[0], self.critic.forward(features)[0]


class Perceptron:
    """Linear layers with tanh or ReLU between them.

    :param modules: ``nn.Linear`` and activations by turns, a linear layer last
    :param exact_rounding: as for :class:`StockMlp`
    """

    def __init__(self, modules: Sequence[nn.Module], exact_rounding: bool):
        layers: list[Any] = list(modules[::2])
        self._weights: list[th.Tensor] = [layer.weight for layer in layers]
        self._biases: list[th.Tensor] = [layer.bias for layer in layers]
        self._is_tanh = [isinstance(module, nn.Tanh) for module in modules[1::2]]
        self._exact_rounding = exact_rounding
        self._minus_one = self._weights[0].new_tensor(-1.0)
        self._memory: dict[tuple[int, int], th.Tensor] = {}

    def forward(self, x: th.Tensor, reuse: bool = False) -> tuple[th.Tensor, list[th.Tensor]]:
        """The output ``(M, n_out)`` for the input ``(M, n_in)``, and the input of each layer.

        :param reuse: lay the hidden layers out in memory that the next such call with as many rows uses again
        """
        inputs = [x]
        for depth, is_tanh in enumerate(self._is_tanh):
            weight, bias = self._weights[depth], self._biases[depth]
            if reuse:
                x = th.addmm(bias, x, weight.t(), out=self._reused(depth, x, len(bias)))
            else:
                x = F.linear(x, weight, bias)
            x = self._activate(is_tanh, x)
            inputs.append(x)
        return F.linear(x, self._weights[-1], self._biases[-1]), inputs

    def gradients(self, inputs: list[th.Tensor], gradient: th.Tensor, reuse: bool = False) -> list[th.Tensor]:
        """The gradients of each layer's weight and bias, the last layer first.

        :param inputs: each layer's input, from :meth:`forward`
        :param gradient: the gradient by the output, ``(M, n_out)``
        :param reuse: as in :meth:`forward`
        """
        gradients = []
        for depth in reversed(range(len(inputs))):
            x = inputs[depth]
            gradients += [gradient.t().mm(x), gradient.sum(dim=0)]
            if depth > 0:
                out = self._reused(-depth, gradient, x.shape[1]) if reuse else None
                gradient = th.mm(gradient, self._weights[depth], out=out)
                gradient = self._through_activation(self._is_tanh[depth - 1], gradient, x)
        return gradients

    def parameters(self) -> list[th.Tensor]:
        """Weight and bias of each layer, in the order of :meth:`gradients`."""
        pairs = zip(reversed(self._weights), reversed(self._biases), strict=True)
        return [tensor for pair in pairs for tensor in pair]

    def accumulate(self, gradients: list[th.Tensor]) -> None:
        """Add ``gradients``, as :meth:`gradients` gives them, to the parameters' ``grad``."""
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _activate(self, is_tanh: bool, x: th.Tensor) -> th.Tensor:
        if not is_tanh:
            return x.relu_()
        if self._exact_rounding or x.numel() < FEW_ELEMENTS:
            return x.tanh_()
        if th.compiler.is_compiling():
            return 2 * th.sigmoid(2 * x) - 1
        return th.add(self._minus_one, x.mul_(2).sigmoid_(), alpha=2, out=x)

    def _through_activation(self, is_tanh: bool, gradient: th.Tensor, activated: th.Tensor) -> th.Tensor:
        if not is_tanh:
            return gradient.mul_(activated > 0)
        if th.compiler.is_compiling():
            return gradient * (1 - activated**2)
        return th.ops.aten.tanh_backward.grad_input(gradient, activated, grad_input=gradient)

    def _reused(self, place: int, x: th.Tensor, columns: int) -> th.Tensor:
        key = (place, len(x))
        if key not in self._memory:
            self._memory[key] = x.new_empty(len(x), columns)
        return self._memory[key]


def evaluator_of(policy: ActorCriticPolicy, exact_rounding: bool) -> CalledPolicy:
    """The fastest way to evaluate ``policy`` that calls everything a user has overridden.

    :param exact_rounding: whether every number must be SB3's bit for bit, or may differ from it by rounding
    """
    original: Any = getattr(policy, "_orig_mod", policy)  # what torch.compile wraps
    if original is not policy or not _is_stock(original):
        return CalledPolicy(policy)
    return StockMlp(original, exact_rounding) if _is_plain_mlp(original) else StockPolicy(original, exact_rounding)


def _is_stock(policy: ActorCriticPolicy) -> bool:
    return (
        all(_method(policy, name) is getattr(ActorCriticPolicy, name) for name in _STOCK_METHODS)
        and type(policy.action_dist) in FAMILIES
        and not _has_hooks(policy)
    )


def _method(policy: ActorCriticPolicy, name: str) -> Any:
    return vars(policy).get(name, getattr(type(policy), name))


def _is_plain_mlp(policy: ActorCriticPolicy) -> bool:
    extractor = policy.mlp_extractor
    if type(extractor) is not MlpExtractor or isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return False
    modules = [policy.features_extractor, extractor, extractor.policy_net, extractor.value_net]
    towers = [[*extractor.policy_net, policy.action_net], [*extractor.value_net, policy.value_net]]
    return (
        type(policy.pi_features_extractor) is type(policy.vf_features_extractor) is FlattenExtractor
        and all(_is_tower(tower) for tower in towers)
        and not any(_has_hooks(module) for module in (*modules, *towers[0], *towers[1]))
    )


def _is_tower(modules: Sequence[nn.Module]) -> bool:
    """Whether linear layers and activations alternate, all parameters being learned in single precision."""
    return (
        all(type(module) is nn.Linear for module in modules[::2])
        and all(type(module) in (nn.Tanh, nn.ReLU) for module in modules[1::2])
        and all(_is_learned(parameter) for module in modules[::2] for parameter in (module.weight, module.bias))
    )


def _is_learned(parameter: Any) -> bool:
    if parameter is None or not parameter.requires_grad or parameter.dtype is not th.float32:
        return False
    return not parameter._backward_hooks and not parameter._post_accumulate_grad_hooks


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
