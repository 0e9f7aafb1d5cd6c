"""Networks that are symmetric under a task's mirror image: π(a|s) = π(M_a a | M_o s) and V(s) = V(M_o s), exactly.

Each linear layer is kept equivariant: with P_in and P_out the mirror's signed permutations of its inputs and outputs,
W = P_out W P_in and b = P_out b. The hidden units are mirrored in pairs, unit i with unit i + n/2. What is equivariant
stays so where gradients are projected, G ← ½ (G + P_out G P_in), since Adam acts on each weight alone. The networks are
ordinary ones, no slower than any of their size; half of the weights are free. That is a group-equivariant network of
the group of two elements (Mittal et al. 2024, arXiv:2403.04359, compare its kinds for locomotion; Abdolhosseini et al.
2019 for bipeds).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_ppo_variants.arguments import shown

# Layers without weights that act on each unit alone, so that a permutation of units passes through.
_POINTWISE = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU)


class SignedPermutation(NamedTuple):
    """What a mirror does to a vector: component i of the image is ``signs[i] · x[indices[i]]``."""

    indices: np.ndarray
    """``(n,)``, int64"""
    signs: np.ndarray
    """``(n,)``, float64, 1 or −1"""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The mirror image of vectors ``(…, n)``."""
        image: np.ndarray = values[..., self.indices] * self.signs
        return image


class MirrorSymmetry(NamedTuple):
    """The mirror image of a task: it carries over from state to state as the actions' images do."""

    observation: SignedPermutation
    action: SignedPermutation


def symmetry_of(env: VecEnv | None) -> Any:
    """What environments tell of their mirror image.

    :raises ValueError: if they tell nothing
    """
    # Asked for what it does not have, a worker process of SubprocVecEnv would end.
    if env is None or not env.has_attr("mirror_symmetry"):
        raise ValueError("mirror_symmetry=True needs an environment with an attribute mirror_symmetry")
    return env.get_attr("mirror_symmetry", 0)[0]


def read_symmetry(value: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> MirrorSymmetry:
    """Read ``{"observation": (indices, signs), "action": (indices, signs)}``.

    :param value: that mapping, or a :class:`MirrorSymmetry`
    :param observation_space: of vectors, as :func:`check_policy` sees to; so the action space
    :raises ValueError: if it is none, of other sizes than the spaces', or applied twice is not the identity
    """
    if isinstance(value, MirrorSymmetry):
        value = value._asdict()
    if not isinstance(value, Mapping) or set(value) != {"observation", "action"}:
        raise ValueError(
            f"mirror_symmetry must be True, False or {{'observation': (indices, signs), 'action': (indices, signs)}}; "
            f"got {shown(value)}"
        )
    sizes = {"observation": math.prod(observation_space.shape or ()), "action": math.prod(action_space.shape or ())}
    return MirrorSymmetry(**{name: _read_permutation(name, value[name], size) for name, size in sizes.items()})


def _read_permutation(name: str, pair: Any, size: int) -> SignedPermutation:
    problem = f"mirror_symmetry: {name} must be (indices, signs), {size} of each"
    try:
        indices, signs = (np.asarray(part) for part in pair)
    except (TypeError, ValueError):
        raise ValueError(f"{problem}; got {shown(pair)}") from None
    if indices.shape != (size,) or signs.shape != (size,) or indices.dtype.kind not in "iu":
        raise ValueError(f"{problem}; got {shown(pair)}")
    if sorted(indices) != list(range(size)) or not np.isin(signs, (1, -1)).all():
        raise ValueError(f"{problem}: each index from 0 to {size - 1} once, and signs of 1 or -1; got {shown(pair)}")
    permutation = SignedPermutation(indices.astype(np.int64), signs.astype(np.float64))
    numbers = np.arange(1.0, size + 1.0)
    if not np.array_equal(permutation.apply(permutation.apply(numbers)), numbers):
        raise ValueError(f"mirror_symmetry: {name}, applied twice, must give back what was mirrored; got {shown(pair)}")
    return permutation


def symmetrize_statistics(statistics: RunningMeanStd, mirror: SignedPermutation) -> None:
    """Make running statistics those of all that was seen together with its mirror image, in place."""
    mean, image = statistics.mean, mirror.apply(statistics.mean)
    spread = 0.5 * (statistics.var + statistics.var[mirror.indices]) + (0.5 * (mean - image)) ** 2
    statistics.mean, statistics.var = 0.5 * (mean + image), spread


class SymmetricNetworks:
    """Keeps the networks of a policy symmetric.

    :param policy: SB3's own, with ``MlpPolicy``'s networks and Gaussian actions
    :param symmetry: of the task
    :raises ValueError: for a policy that cannot be kept so
    """

    def __init__(self, policy: ActorCriticPolicy, symmetry: MirrorSymmetry):
        check_policy(policy)
        self.policy = policy
        self._projections: list[_Projection] = []
        device = policy.device
        extractor = policy.mlp_extractor
        paths: list[tuple[nn.Module, ...]] = [
            (extractor.policy_net, policy.action_net),
            (extractor.value_net, policy.value_net),
        ]
        scalar = SignedPermutation(np.zeros(1, dtype=np.int64), np.ones(1))
        for modules, last in zip(paths, (symmetry.action, scalar), strict=True):
            layers = list(_linear_layers(modules))
            inputs = symmetry.observation
            for layer in layers:
                outputs = last if layer is layers[-1] else _of_pairs(layer.out_features)
                self._projections.append(_Projection(layer.weight, outputs, inputs, device))
                self._projections.append(_Projection(layer.bias, outputs, None, device))
                inputs = outputs
        unsigned = SignedPermutation(symmetry.action.indices, np.ones(len(symmetry.action.signs)))
        self._projections.append(_Projection(policy.log_std, unsigned, None, device))

    @th.no_grad()
    def begin(self) -> None:
        """Make freshly drawn weights symmetric, and as large as they were."""
        for projection in self._projections:
            projection.begin()

    @th.no_grad()
    def require_symmetric(self) -> None:
        """Check weights that come from elsewhere.

        :raises ValueError: if they are not symmetric
        """
        for parameter, apply in ((each.parameter, each.apply) for each in self._projections):
            symmetric = parameter.detach().clone()
            apply(symmetric)
            if not th.allclose(symmetric, parameter, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ValueError("mirror_symmetry must be False: the policy has weights that are not symmetric")

    @th.no_grad()
    def project_gradients(self) -> None:
        """Make the gradients those of symmetric networks."""
        for projection in self._projections:
            gradient = projection.parameter.grad
            if gradient is not None:
                projection.apply(gradient)

    @th.no_grad()
    def project_weights(self) -> None:
        """Take away what rounding has made of the symmetry."""
        for projection in self._projections:
            projection.apply(projection.parameter)


class _Projection:
    """Projects a layer's weight or bias onto the equivariant ones."""

    def __init__(
        self,
        parameter: th.Tensor,
        outputs: SignedPermutation,
        inputs: SignedPermutation | None,
        device: th.device,
    ):
        self.parameter = parameter
        places, signs = outputs.indices, outputs.signs
        if inputs is not None:
            places = outputs.indices[:, None] * len(inputs.indices) + inputs.indices
            signs = outputs.signs[:, None] * inputs.signs
        self._places = th.as_tensor(places, device=device).flatten()
        self._signs = th.as_tensor(signs, dtype=parameter.dtype, device=device).flatten()

    def apply(self, tensor: th.Tensor) -> None:
        flat = tensor.view(-1)
        flat.add_(flat[self._places].mul_(self._signs)).mul_(0.5)

    def begin(self) -> None:
        before = self.parameter.norm()
        self.apply(self.parameter)
        after = self.parameter.norm()
        if after > 0:
            self.parameter.mul_(before / after)


def check_policy(policy: Any) -> None:
    """Check that a policy can be kept symmetric.

    :raises ValueError: if not
    """
    reason = _reason_against(policy)
    if reason is not None:
        raise ValueError(f"mirror_symmetry must be False: {reason}")


def _reason_against(policy: Any) -> str | None:
    if type(policy) is not ActorCriticPolicy:
        return f"it is for 'MlpPolicy', and the policy is {type(policy).__name__}"
    space = policy.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape or ()) != 1:
        return f"it is for observations that are vectors, not {space}"
    if type(policy.action_dist) is not DiagGaussianDistribution or len(policy.action_space.shape or ()) != 1:
        return f"it is for Gaussian actions that are vectors, not {policy.action_space} with {type(policy.action_dist)}"
    if type(policy.features_extractor) is not FlattenExtractor:
        return f"features_extractor_class must be FlattenExtractor; got {type(policy.features_extractor).__name__}"
    modules = (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)
    for module in (each for network in modules for each in network):
        if not isinstance(module, (nn.Linear, *_POINTWISE)):
            return f"it is for networks of linear layers and pointwise activations, not {type(module).__name__}"
        if isinstance(module, nn.Linear) and module.out_features % 2:
            return f"net_arch must have even numbers of units, which are mirrored in pairs; got {module.out_features}"
    return None


def _linear_layers(modules: Sequence[nn.Module]) -> Iterator[nn.Linear]:
    for module in modules:
        yield from (each for each in module.modules() if isinstance(each, nn.Linear))


def _of_pairs(n_units: int) -> SignedPermutation:
    return SignedPermutation(np.roll(np.arange(n_units), n_units // 2), np.ones(n_units))
