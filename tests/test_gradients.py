"""Every gradient against central finite differences, and the explicit passes against autograd through SB3's policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import nn

import sb3_ppo_variants
from sb3_ppo_variants import PPOAdaptiveKLPaper, PPOClipPaper, losses
from sb3_ppo_variants.distributions import Bernoulli, Categorical, Gaussian
from sb3_ppo_variants.evaluation import (
    FEW_ELEMENTS,
    CalledPolicy,
    Perceptron,
    StockMlp,
    StockPolicy,
    evaluator_of,
)

ALGORITHMS = [getattr(sb3_ppo_variants, name) for name in sb3_ppo_variants.ALGORITHMS.values()]

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
both_roundings = pytest.mark.parametrize("exact_rounding", [True, False])

# Central differences of step h err by O(h²) and by rounding / h: with h = 1e-5 in double precision, 1e-10 and 1e-11
# for functions and derivatives of order 1.
STEP = 1e-5
CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}


def normal(seed: int, *shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


@th.no_grad()
def finite_differences(function: Callable[[], th.Tensor], x: th.Tensor) -> th.Tensor:
    """The gradient by ``x`` of a scalar function that reads ``x``."""
    gradient = th.empty_like(x)
    for place in np.ndindex(*x.shape):
        before = x[place].item()
        ends = []
        for end in (before + STEP, before - STEP):
            x[place] = end
            ends.append(function().item())
        x[place] = before
        gradient[place] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def check(function: Callable[[], th.Tensor], *leaves: th.Tensor) -> None:
    """Autograd's gradient of ``function`` by each of ``leaves`` is that of finite differences, and not 0."""
    for leaf in leaves:
        leaf.requires_grad_()
    for leaf, gradient in zip(leaves, th.autograd.grad(function(), leaves), strict=True):
        assert gradient.abs().max() > 1e-3
        th.testing.assert_close(gradient, finite_differences(function, leaf.detach()), **CLOSE)


# ------------------------------------------------------------------ objectives

OLD_LOG_PROB = normal(0, 8)
# Well off the kinks at 1 ± 0.2 and exp(±0.2): r = exp(0.05), exp(−0.05), exp(0.5), exp(−0.5), for either sign of Â.
LOG_RATIO = th.tensor([0.05, -0.05, 0.5, -0.5] * 2, dtype=th.float64)
ADVANTAGES = th.tensor([1.5] * 4 + [-0.7] * 4, dtype=th.float64)


def of_ratio(surrogate: Callable[..., th.Tensor], *rest: Any) -> Callable[[th.Tensor], th.Tensor]:
    return lambda log_prob: surrogate(losses.probability_ratio(log_prob, OLD_LOG_PROB), ADVANTAGES, *rest)


OBJECTIVES: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "policy gradient": lambda log_prob: losses.policy_gradient(log_prob, ADVANTAGES),
    "conservative policy iteration": of_ratio(losses.conservative_policy_iteration),
    "clip": of_ratio(losses.clipped_surrogate, 0.2),
    "clip, as tensor": of_ratio(losses.clipped_surrogate, th.tensor(0.2)),
    "log-clip": lambda log_prob: losses.log_clipped_surrogate(log_prob - OLD_LOG_PROB, ADVANTAGES, 0.2),
    "approximate KL": lambda log_prob: losses.approximate_kl(log_prob - OLD_LOG_PROB),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str) -> None:
    log_prob = OLD_LOG_PROB + LOG_RATIO
    check(lambda: OBJECTIVES[name](log_prob).mean(), log_prob)


@pytest.mark.parametrize("beta", [3.0, th.tensor(3.0)])
def test_the_penalised_objective(beta: Any) -> None:
    old = Gaussian(normal(1, 8, 2), normal(2, 2).exp())
    actions, mean, log_std = normal(3, 8, 2), normal(4, 8, 2), normal(5, 2)
    old_log_prob = old.log_prob_and_entropy(actions)[0]

    def objective() -> th.Tensor:
        new = Gaussian(mean, log_std.exp())
        ratio = losses.probability_ratio(new.log_prob_and_entropy(actions)[0], old_log_prob)
        surrogate = losses.conservative_policy_iteration(ratio, ADVANTAGES)
        return losses.kl_penalized_surrogate(surrogate, old.kl(new), beta).mean()

    check(objective, mean, log_std)


def test_the_value_loss_clipped_and_not() -> None:
    # Old values 0; the limit 0.5 holds the second and the fourth.
    values, returns = th.tensor([0.3, 0.9, -0.2, -1.5], dtype=th.float64), normal(1, 4)
    check(lambda: losses.value_loss(values, returns), values)
    check(lambda: losses.value_loss(losses.clipped_values(values, th.zeros(4), 0.5), returns), values)


# ------------------------------------------------------------------ distributions


def gaussian(output: th.Tensor, log_std: th.Tensor) -> Gaussian:
    return Gaussian(output, log_std.exp())


GAUSSIAN_ACTIONS = normal(9, 6, 5)
FAMILIES: dict[str, tuple[Callable[..., Any], list[th.Tensor], th.Tensor]] = {
    # from the leaves to the distribution, the leaves, actions
    "gaussian": (gaussian, [normal(0, 6, 5), normal(1, 5)], GAUSSIAN_ACTIONS),
    "gaussian, σ by state": (gaussian, [normal(0, 6, 5), normal(1, 6, 5)], GAUSSIAN_ACTIONS),
    "categorical": (
        lambda output: Categorical.from_output(output, [5]),
        [normal(0, 6, 5)],
        th.tensor([0, 4, 2, 2, 1, 3]),
    ),
    "multi-categorical": (
        lambda output: Categorical.from_output(output, [2, 3]),
        [normal(0, 6, 5)],
        th.tensor([[0, 2], [1, 1], [0, 0], [1, 2], [1, 0], [0, 1]]),
    ),
    "bernoulli": (Bernoulli, [normal(0, 6, 5)], (GAUSSIAN_ACTIONS > 0).double()),
}
WEIGHTS = normal(11, 6)  # one per state, so that each state's gradient is its own

QUANTITIES: dict[str, Callable[[Any, th.Tensor, Any], th.Tensor]] = {
    "log-probability": lambda new, actions, _: new.log_prob_and_entropy(actions)[0],
    "entropy": lambda new, actions, _: new.log_prob_and_entropy(actions)[1],
    "both": lambda new, actions, _: sum(new.log_prob_and_entropy(actions)),
    "KL, the new one moving": lambda new, _, old: old.kl(new),
    "KL, the old one moving": lambda new, _, old: new.kl(old),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_distributions(family: str, quantity: str) -> None:
    make, originals, actions = FAMILIES[family]
    leaves = [leaf.clone() for leaf in originals]
    old = make(*(leaf + 0.3 * normal(20, *leaf.shape) for leaf in originals))
    # A Gaussian's entropy is that of its deviations alone.
    moved = leaves[1:] if quantity == "entropy" and make is gaussian else leaves
    check(lambda: (WEIGHTS * QUANTITIES[quantity](make(*leaves), actions, old)).sum(), *moved)


def test_a_gaussian_of_fixed_deviation() -> None:
    mean, std = normal(0, 6, 5), normal(1, 5).exp()
    check(lambda: (WEIGHTS * Gaussian(mean, std).log_prob_and_entropy(GAUSSIAN_ACTIONS)[0]).sum(), mean)
    assert not std.requires_grad


# ------------------------------------------------------------------ policies


class DoubleExtractor(FlattenExtractor):
    """SB3 reads observations in single precision; finite differences need the networks in double."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


BOX = spaces.Box(-2, 2, (3,))
ACTION_SPACES: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1, (2,)),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
GSDE: dict[str, dict[str, Any]] = {
    "gsde": {"use_sde": True},
    "gsde, one σ per feature": {"use_sde": True, "full_std": False},
    "gsde, expln": {"use_sde": True, "use_expln": True},
    "gsde, squashed": {"use_sde": True, "squash_output": True},
}
POLICIES: dict[str, tuple[spaces.Space, dict[str, Any]]] = {
    **{name: (space, {}) for name, space in ACTION_SPACES.items()},
    **{name: (ACTION_SPACES["box"], kwargs) for name, kwargs in GSDE.items()},
    "own extractors": (ACTION_SPACES["box"], {"share_features_extractor": False}),
    "shared layers": (ACTION_SPACES["discrete"], {"activation_fn": nn.ReLU}),
}


def make_policy(observations: spaces.Space, actions: spaces.Space, **kwargs: Any) -> Any:
    th.manual_seed(0)
    policy = ActorCriticPolicy(observations, actions, lambda _: 1e-3, **kwargs)
    with th.no_grad():  # SB3's last layer is so small that the policy hardly depends on the others
        for parameter in policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return policy


def double_policy(name: str) -> Any:
    space, kwargs = POLICIES[name]
    policy = make_policy(BOX, space, net_arch=[3], features_extractor_class=DoubleExtractor, **kwargs).double()
    if hasattr(policy.action_dist, "learn_features"):
        # SB3 cuts the gradient through the features that scale gSDE's noise, which finite differences cannot.
        policy.action_dist.learn_features = True
    return policy


def draw(space: spaces.Space, n: int) -> th.Tensor:
    space.seed(1)
    batch = th.as_tensor(np.array([space.sample() for _ in range(n)]))
    return batch if isinstance(space, spaces.Box | spaces.Discrete) else batch.float()


def is_squashed(policy: Any) -> bool:
    return getattr(policy.action_dist, "bijector", None) is not None


@pytest.mark.parametrize("evaluator_class", [StockPolicy, CalledPolicy])
@pytest.mark.parametrize("name", POLICIES)
def test_policies(name: str, evaluator_class: Any) -> None:
    policy = double_policy(name)
    evaluator = StockPolicy(policy, True) if evaluator_class is StockPolicy else CalledPolicy(policy)
    observations, actions = draw(BOX, 6), draw(policy.action_space, 6)
    if actions.is_floating_point():
        actions = 0.9 * actions.double() if is_squashed(policy) else actions.double()
    with th.no_grad():
        old = evaluator.distribution(observations)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)

    def loss() -> th.Tensor:
        values, log_prob, entropy, new = evaluator.evaluate(observations, actions, True)
        assert (entropy is None) == is_squashed(policy)
        terms = [values**2, log_prob, 3 * old.kl(new)] + ([] if entropy is None else [entropy])  # type: ignore[arg-type]
        return (WEIGHTS * sum(terms)).sum()

    evaluator.backward(loss())
    for key, parameter in policy.named_parameters():
        assert parameter.grad is not None, key
        th.testing.assert_close(parameter.grad, finite_differences(loss, parameter.data), **CLOSE)


@both_roundings
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("widths", [[], [16], [16, 4], [4, 16, 2]])
def test_perceptrons(widths: list[int], activation: type[nn.Module], exact_rounding: bool) -> None:
    th.manual_seed(0)
    sizes = [3, *widths, 2]
    modules: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        modules += [nn.Linear(n_in, n_out).double(), activation()]
    perceptron = Perceptron(modules[:-1], exact_rounding)
    rows = FEW_ELEMENTS // 16  # so that a layer of 16 is large enough for the faster tanh
    x, weights = normal(0, rows, 3), normal(1, rows, 2)

    def loss() -> th.Tensor:
        return (weights * perceptron.forward(x)[0]).sum()

    with th.no_grad():
        output, inputs = perceptron.forward(x, reuse=True)
        gradients = perceptron.gradients(inputs, weights, reuse=True)
    th.testing.assert_close(output, nn.Sequential(*modules[:-1])(x))
    for parameter, gradient in zip(perceptron.parameters(), gradients, strict=True):
        # The sums over the rows are of order 100.
        th.testing.assert_close(gradient, finite_differences(loss, parameter.detach()), rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------ the loss of a whole minibatch


class SpacesEnv(gym.Env):
    """Any spaces; nothing in it is ever stepped."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space


def make_model(algorithm: Any, actions: spaces.Space, observations: spaces.Space = BOX, **kwargs: Any) -> Any:
    model = algorithm(
        "MlpPolicy", SpacesEnv(observations, actions), n_steps=64, device="cpu", seed=0, vf_coef=0.7, ent_coef=0.05,
        clip_range_vf=0.5, **kwargs,
    )  # fmt: skip
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * th.randn_like(parameter))
    return model


def make_samples(model: Any, rows: int) -> RolloutBufferSamples:
    generator = th.Generator().manual_seed(3)
    observations, actions = draw(model.observation_space, rows), draw(model.action_space, rows)
    with th.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(observations, actions)
    drawn = th.randn(3, rows, generator=generator)
    # Ratios on both sides of 1 ± 0.2; some values past their limit.
    return RolloutBufferSamples(
        observations, actions, values.flatten() + drawn[0], log_prob + 0.3 * drawn[1], drawn[2], drawn[0] * 2
    )


def moved(model: Any) -> None:
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(1.05)


def gradients_by(model: Any, evaluator: Any, samples: Any, old: Any) -> dict[str, th.Tensor]:
    model.policy.zero_grad()
    model._differentiate(evaluator, samples, old, model._update_constants())
    return {name: parameter.grad.clone() for name, parameter in model.policy.named_parameters()}


@pytest.mark.parametrize("name", ["box", "discrete", "gsde"])
@every_algorithm
def test_the_loss_of_every_algorithm_by_finite_differences(algorithm: Any, name: str) -> None:
    policy = double_policy(name)
    model = make_model(algorithm, policy.action_space)
    model.policy = policy
    samples = make_samples(model, 6)
    evaluator = evaluator_of(policy, True)
    assert type(evaluator) is StockPolicy
    with th.no_grad():
        old = evaluator.distribution(samples.observations)
    moved(model)

    def loss() -> th.Tensor:
        evaluation = evaluator.evaluate(samples.observations, samples.actions, True)
        return model._loss_terms(evaluation, samples, old, model._update_constants())["loss"]

    for key, gradient in gradients_by(model, evaluator, samples, old).items():
        parameter = policy.get_parameter(key)
        th.testing.assert_close(gradient, finite_differences(loss, parameter.data), **CLOSE)


def assert_gradients_agree(model: Any, exact_rounding: bool, rows: int = 96) -> None:
    """The explicit passes against autograd, through the closed forms and through SB3's ``evaluate_actions``."""
    samples = make_samples(model, rows)
    with th.no_grad():
        old = CalledPolicy(model.policy).distribution(samples.observations)
    moved(model)
    ours = gradients_by(model, StockMlp(model.policy, exact_rounding), samples, old)
    for evaluator in (StockPolicy(model.policy, exact_rounding), CalledPolicy(model.policy)):
        theirs = gradients_by(model, evaluator, samples, old)
        assert ours.keys() == theirs.keys()
        # SB3 has no way to the log-probability and the KL in one pass, so that the KL's gradient is added separately.
        is_exact = exact_rounding and not (model.needs_kl and type(evaluator) is CalledPolicy)
        tolerance: dict[str, Any] = {"rtol": 0.0, "atol": 0.0} if is_exact else {"rtol": 1e-4, "atol": 1e-5}
        for name, gradient in theirs.items():
            assert gradient.abs().max() > 0, name
            th.testing.assert_close(ours[name], gradient, **tolerance)


@both_roundings
@pytest.mark.parametrize("actions", ACTION_SPACES)
@every_algorithm
def test_explicit_passes_equal_autograd_for_every_algorithm(algorithm: Any, actions: str, exact_rounding: bool) -> None:
    model = make_model(algorithm, ACTION_SPACES[actions])
    assert type(evaluator_of(model.policy, exact_rounding)) is StockMlp
    assert_gradients_agree(model, exact_rounding)


@both_roundings
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("widths", [[], [16], [16, 8], [8, 16, 4], {"pi": [16], "vf": []}])
def test_explicit_passes_equal_autograd_for_every_architecture(
    widths: Any, activation: Any, exact_rounding: bool
) -> None:
    kwargs = {"net_arch": widths, "activation_fn": activation}
    model = make_model(PPOAdaptiveKLPaper, ACTION_SPACES["box"], policy_kwargs=kwargs)
    assert type(evaluator_of(model.policy, exact_rounding)) is StockMlp
    assert_gradients_agree(model, exact_rounding)


OBSERVATION_SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "double": spaces.Box(-1, 1, (3,), dtype=np.float64),
    "bytes": spaces.Box(0, 9, (3,), dtype=np.uint8),
    "picture": spaces.Box(0, 255, (8, 8, 1), dtype=np.uint8),
}


@both_roundings
@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
def test_explicit_passes_equal_autograd_for_every_observation_space(observations: str, exact_rounding: bool) -> None:
    model = make_model(PPOClipPaper, ACTION_SPACES["discrete"], OBSERVATION_SPACES[observations])
    assert type(evaluator_of(model.policy, exact_rounding)) is StockMlp
    assert_gradients_agree(model, exact_rounding)


def test_explicit_gradients_add_up_and_memory_is_used_again() -> None:
    # Parts of several sizes, one of them twice, without zero_grad in between.
    model = make_model(PPOClipPaper, ACTION_SPACES["box"])
    parts = [make_samples(model, rows) for rows in (64, 10, 64)]
    moved(model)
    results = []
    for evaluator in (StockMlp(model.policy, True), CalledPolicy(model.policy)):
        model.policy.zero_grad()
        for part in parts:
            model._differentiate(evaluator, part, None, model._update_constants())
        results.append([parameter.grad.clone() for parameter in model.policy.parameters()])
    for ours, theirs in zip(*results, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@both_roundings
def test_an_objective_that_leaves_the_policy_out_moves_the_value_function_only(exact_rounding: bool) -> None:
    class ValueOnly(PPOClipPaper):
        def objective(self, batch: Any) -> th.Tensor:
            return th.zeros_like(batch.advantages)

    model = ValueOnly("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, n_epochs=2, device="cpu", seed=0)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(96)  # several updates: the fused steps begin with the second
    after = model.policy.state_dict()
    assert th.equal(after["mlp_extractor.policy_net.0.weight"], before["mlp_extractor.policy_net.0.weight"])
    assert not th.equal(after["mlp_extractor.value_net.0.weight"], before["mlp_extractor.value_net.0.weight"])


# ------------------------------------------------------------------ KL before and after a step


@pytest.mark.parametrize("name", [*ACTION_SPACES, "gsde"])
def test_kl_is_exactly_zero_before_the_first_step_and_positive_after_it(name: str) -> None:
    model = make_model(PPOAdaptiveKLPaper, ACTION_SPACES.get(name, ACTION_SPACES["box"]), use_sde=name == "gsde")
    samples = make_samples(model, 64)
    evaluator = model._evaluator()
    with th.no_grad():
        old = evaluator.distribution(samples.observations)
    kls = []
    for _ in range(2):
        evaluation = evaluator.evaluate(samples.observations, samples.actions, True)
        kls.append(old.kl(evaluation.distribution).detach())
        model.policy.zero_grad()
        model._differentiate(evaluator, samples, old, model._update_constants())
        model.policy.optimizer.step()
    assert kls[0].tolist() == [0.0] * 64
    assert kls[1].min() >= 0
    assert kls[1].mean() > 1e-6


# ------------------------------------------------------------------ the choice of the evaluator


def evaluator_class_of(policy: Any) -> type[CalledPolicy]:
    return type(evaluator_of(policy, exact_rounding=False))


def plain_policy(**kwargs: Any) -> Any:
    return make_policy(BOX, ACTION_SPACES["box"], **kwargs)


OVERRIDABLE = [
    "evaluate_actions",
    "extract_features",
    "forward",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
]


@pytest.mark.parametrize("on", ["class", "instance"])
@pytest.mark.parametrize("name", OVERRIDABLE)
def test_an_overridden_method_is_called(name: str, on: str) -> None:
    calls = 0
    original = getattr(ActorCriticPolicy, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    policy_class: Any = type("Own", (ActorCriticPolicy,), {name: counted} if on == "class" else {})
    model = PPOAdaptiveKLPaper(policy_class, "Pendulum-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    if on == "instance":
        setattr(model.policy, name, lambda *args, **kwargs: counted(model.policy, *args, **kwargs))
    assert evaluator_class_of(model.policy) is CalledPolicy
    model.learn(16)
    # 16 steps of the rollout, 1 value at its end, 1 minibatch, whose KL takes 1 more, 2 measurements for E[KL].
    assert (
        calls
        == {
            "forward": 16,
            "evaluate_actions": 1,
            "extract_features": 16 + 1,
            "get_distribution": 1 + 2,
            "predict_values": 1,
            "_get_action_dist_from_latent": 16 + 1 + 1 + 2,
        }[name]
    )


class OwnGaussian(DiagGaussianDistribution):
    """A user's distribution: another density under the name of a Gaussian."""

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return 2 * super().log_prob(actions)


class OwnLinear(nn.Linear):
    """A user's layer."""


def with_own_distribution(policy: Any) -> Any:
    policy.action_dist = OwnGaussian(2)
    return policy


def with_frozen_layer(policy: Any) -> Any:
    policy.mlp_extractor.policy_net[0].requires_grad_(False)
    return policy


def with_own_layer(policy: Any) -> Any:
    policy.action_net = OwnLinear(64, 2)
    return policy


def with_weight_norm(policy: Any) -> Any:
    nn.utils.parametrizations.weight_norm(policy.value_net)
    return policy


CHOICES: dict[str, tuple[Callable[[], Any], type[CalledPolicy]]] = {
    "plain": (plain_policy, StockMlp),
    "ReLU": (lambda: plain_policy(activation_fn=nn.ReLU), StockMlp),
    "ELU": (lambda: plain_policy(activation_fn=nn.ELU), StockPolicy),
    "unshared extractors": (lambda: plain_policy(share_features_extractor=False), StockMlp),
    "subclass without methods": (
        lambda: type("Named", (ActorCriticPolicy,), {})(BOX, ACTION_SPACES["box"], lambda _: 1e-3),
        StockMlp,
    ),
    "own extractor": (lambda: plain_policy(features_extractor_class=DoubleExtractor).double(), StockPolicy),
    "double precision": (lambda: plain_policy().double(), StockPolicy),
    "gsde": (lambda: plain_policy(use_sde=True), StockPolicy),
    "cnn": (
        lambda: ActorCriticCnnPolicy(spaces.Box(0, 255, (1, 40, 40), np.uint8), ACTION_SPACES["box"], lambda _: 1e-3),
        StockPolicy,
    ),
    "dict": (
        lambda: MultiInputActorCriticPolicy(
            spaces.Dict({"a": BOX, "b": BOX}), ACTION_SPACES["discrete"], lambda _: 1e-3
        ),
        StockPolicy,
    ),
    "own distribution": (lambda: with_own_distribution(plain_policy()), CalledPolicy),
    "frozen layer": (lambda: with_frozen_layer(plain_policy()), StockPolicy),
    "own layer": (lambda: with_own_layer(plain_policy()), StockPolicy),
    "weight norm": (lambda: with_weight_norm(plain_policy()), StockPolicy),
    "compiled": (lambda: th.compile(plain_policy(), backend="eager"), CalledPolicy),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_fastest_evaluator_that_calls_what_is_the_users(name: str) -> None:
    make, expected = CHOICES[name]
    assert evaluator_class_of(make()) is expected


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize(
    "where", ["", "mlp_extractor", "features_extractor", "action_net", "mlp_extractor.value_net.1"]
)
def test_a_module_with_a_hook_is_called(where: str, kind: str) -> None:
    policy = plain_policy()
    getattr(policy.get_submodule(where), f"register_{kind}")(lambda *_: None)
    # The policy itself is called only by its own methods; its modules are by the closed forms too.
    assert evaluator_class_of(policy) is (CalledPolicy if where == "" else StockPolicy)


@pytest.mark.parametrize("where", ["", "action_net", "mlp_extractor", "mlp_extractor.value_net"])
def test_a_hook_runs_with_every_minibatch(where: str) -> None:
    model = PPOClipPaper("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, n_epochs=3, device="cpu", seed=0)
    sizes: list[int] = []
    model.policy.get_submodule(where).register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    # A hook on the policy sees its forward pass: 32 steps of the rollout. The others see the 6 minibatches too.
    model.learn(32)
    assert sizes.count(1) >= 32
    assert where == "" or sizes.count(16) == 6


@pytest.mark.parametrize("learned_before", [False, True])
def test_a_frozen_layer_stays_and_the_others_learn(learned_before: bool) -> None:
    model = PPOClipPaper("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, n_epochs=3, device="cpu", seed=0)
    if learned_before:
        model.learn(32)
    with_frozen_layer(model.policy)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    changed = {key for key, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[key])}
    frozen = {"mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias"}
    assert changed == set(before) - frozen


def test_a_hook_on_a_parameters_gradient_runs() -> None:
    # A usual way to scale one layer's gradient: here to nothing, so that the layer stays.
    model = PPOClipPaper("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, n_epochs=3, device="cpu", seed=0)
    weight = model.policy.get_parameter("mlp_extractor.policy_net.0.weight")
    weight.register_hook(th.zeros_like)
    before = weight.detach().clone()
    model.learn(64)
    assert th.equal(weight, before)
